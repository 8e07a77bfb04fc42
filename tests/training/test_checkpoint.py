"""Checkpoints: exact, whole or refused, and the one before when the newest is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.training import checkpoint, files
from gradlab.training.files import FileProblem
from gradlab.training.loop import train_epoch
from gradlab.training.setup import prepare
from gradlab.training.state import State
from tests.training import tiny

FACTS = {"spec_digest": "abc", "notes": []}


def trained(epochs: int, **changes: Any) -> State:
    setup, state = prepare(tiny.spec(**changes), tiny.datasets())
    gradients = setup.gradients(None, state.model, lambda _: None)
    for _ in range(epochs):
        train_epoch(state, setup, gradients, lambda _: None)
    return state


def everything(state: State) -> dict[str, torch.Tensor]:
    averaged = {} if state.average is None else state.average.model.state_dict()
    held = {
        f"{index}.{key}": tensor
        for index, values in state.optimizer.state_dict()["state"].items()
        for key, tensor in values.items()
    }
    return {**state.model.state_dict(), **{f"a.{k}": v for k, v in averaged.items()}, **held}


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    changes = {"loop": {"ema": 0.9, "gradient_norms": True}}
    state = trained(2, **changes)
    checkpoint.write(tmp_path, state, FACTS)
    found = checkpoint.read(tmp_path)
    assert found is not None
    assert found.facts["spec_digest"] == "abc"
    other = trained(0, **changes)
    checkpoint.restore(other, found)
    assert (other.epoch, other.step) == (2, 6)
    assert other.rows == state.rows
    assert [list(row) for row in other.rows] == [list(row) for row in state.rows]
    assert other.norms == state.norms
    assert tiny.same(everything(other), everything(state))


def test_the_memory_format_is_the_networks_own(tmp_path: Path) -> None:
    changes = {"model": {"name": "lenet", "width": 2, "input_shape": [1, 8, 8]}}

    def convolutional(epochs: int) -> State:
        spec = tiny.spec(**changes)
        setup, state = prepare(spec, tiny.datasets(shape=(1, 8, 8)))
        gradients = setup.gradients(None, state.model, lambda _: None)
        for _ in range(epochs):
            train_epoch(state, setup, gradients, lambda _: None)
        return state

    state, other = convolutional(1), convolutional(0)
    checkpoint.write(tmp_path, state, FACTS)
    found = checkpoint.read(tmp_path)
    assert found is not None
    checkpoint.restore(other, found)
    for name, tensor in everything(state).items():
        assert everything(other)[name].stride() == tensor.stride(), name


def test_there_is_none_at_first(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path) is None
    assert checkpoint.read(tmp_path / "none") is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of two epochs."""
    folder = tmp_path_factory.mktemp("run")
    checkpoint.write(folder, trained(1), FACTS)
    found = checkpoint.read(folder)
    assert found is not None
    setup, again = prepare(tiny.spec(), tiny.datasets())
    checkpoint.restore(again, found)
    train_epoch(again, setup, setup.gradients(None, again.model, print), lambda _: None)
    checkpoint.write(folder, again, FACTS)
    return folder


class TestDamage:
    """What is not whole is not read, and what was before it is."""

    @settings(max_examples=25)
    @given(share=st.floats(0, 1, exclude_max=True))
    def test_a_truncated_checkpoint_gives_way_to_the_one_before(
        self, share: float, folder: Path
    ) -> None:
        path = folder / checkpoint.FILE
        whole = path.read_bytes()
        try:
            path.write_bytes(whole[: int(share * len(whole))])
            found = checkpoint.read(folder)
            assert found is not None
            assert found.facts["epoch"] == 1
            assert len(found.notes) == 1
            assert "damaged" in found.notes[0]
        finally:
            path.write_bytes(whole)
        found = checkpoint.read(folder)
        assert found is not None
        assert (found.facts["epoch"], found.notes) == (2, [])

    @pytest.mark.parametrize("place", [0.001, 0.3, 0.9])
    def test_a_changed_byte_is_noticed(self, place: float, folder: Path) -> None:
        path = folder / checkpoint.FILE
        whole = path.read_bytes()
        try:
            changed = bytearray(whole)
            changed[int(place * len(whole))] ^= 0x10
            path.write_bytes(bytes(changed))
            found = checkpoint.read(folder)
            assert found is not None
            assert found.facts["epoch"] == 1
        finally:
            path.write_bytes(whole)

    def test_a_new_one_that_was_not_yet_renamed_counts(self, folder: Path) -> None:
        path = folder / checkpoint.FILE
        arriving = folder / (checkpoint.FILE + ".new")
        path.rename(arriving)
        try:
            found = checkpoint.read(folder)
            assert found is not None
            assert found.facts["epoch"] == 2
        finally:
            arriving.rename(path)

    def test_two_damaged_ones_are_no_reason_to_start_again(
        self, folder: Path, tmp_path: Path
    ) -> None:
        for name in (checkpoint.FILE, checkpoint.PREVIOUS):
            (tmp_path / name).write_bytes((folder / name).read_bytes()[:100])
        with pytest.raises(FileProblem, match=r"no other whole checkpoint: delete .* start anew"):
            checkpoint.read(tmp_path)


def test_a_full_disk_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    state = trained(1)
    checkpoint.write(tmp_path, state, FACTS)
    before = (tmp_path / checkpoint.FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileProblem, match=r"no space left .*; the checkpoint of epoch 1 is intact"):
        checkpoint.write(tmp_path, state, FACTS, "the checkpoint of epoch 1 is intact")
    assert (tmp_path / checkpoint.FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]


def test_the_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, trained(1), FACTS)
    found = checkpoint.read(tmp_path)
    assert found is not None
    other = trained(0, model={"depth": 2})
    with pytest.raises(FileProblem, match=r"is of another network .missing: hidden\.1"):
        checkpoint.restore(other, found)


def test_another_format_is_refused(tmp_path: Path) -> None:
    content = files.packed({"a": torch.zeros(1)}, {**FACTS, "format": 99})
    (tmp_path / checkpoint.FILE).write_bytes(content)
    with pytest.raises(FileProblem, match=r"by another version of gradlab .format 99, not 1"):
        checkpoint.read(tmp_path)
