"""Files that are whole or not there, and damage that is always found."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab.training import files
from gradlab.training.files import FileProblem

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(3),
    "c": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "d": torch.tensor([True, False]),
    "e": torch.zeros(0, 4),
    "f": torch.tensor([1, 2], dtype=torch.int64),
}
FACTS = {"epoch": 3, "rows": [{"loss": 0.1 + 0.2, "missing": None}], "text": "σ"}
CONTENT = files.packed(TENSORS, FACTS)


def test_tensors_and_facts_come_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write(path, CONTENT)
    tensors, facts = files.unpacked(path)
    assert facts == FACTS
    assert list(facts) == list(FACTS)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_is_read_no_longer_depends_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write(path, CONTENT)
    tensors, _ = files.unpacked(path)
    path.write_bytes(b"\0" * len(CONTENT))
    assert torch.equal(tensors["a"], TENSORS["a"])


def test_tensors_that_share_memory_are_stored(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    files.write(tmp_path / "a", files.packed({"x": whole, "y": whole[1:], "z": whole.t()}, {}))
    tensors, _ = files.unpacked(tmp_path / "a")
    assert tensors["y"].tolist() == [1.0, 2.0, 3.0]


@given(length=st.integers(0, len(CONTENT) - 1))
def test_a_file_that_ends_early_is_never_read(
    length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    path.write_bytes(CONTENT[:length])
    with pytest.raises(FileProblem, match="damaged") as caught:
        files.unpacked(path)
    assert str(path) in str(caught.value)


@given(place=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_changes_nothing(
    place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(CONTENT)
    content[place] ^= 1 << bit
    path = tmp_path_factory.mktemp("flip") / "a.safetensors"
    path.write_bytes(bytes(content))
    try:
        tensors, facts = files.unpacked(path)
    except FileProblem:
        return
    assert facts == FACTS  # such as a space for a tab in the header's padding
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_other_files_are_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "model.pt"
    torch.save(TENSORS, pickled)
    with pytest.raises(FileProblem, match=r"no safetensors file .*: no other format is read"):
        files.unpacked(pickled)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(FileProblem, match="was not written by gradlab"):
        files.unpacked(tmp_path / "foreign")
    with pytest.raises(FileProblem, match="there is no file"):
        files.unpacked(tmp_path / "none")


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "the disk has no space left for its .* MiB: free some"),
     (errno.EACCES, "permission denied.*mend the permissions")],
)  # fmt: skip
def test_a_file_that_cannot_be_written_leaves_the_old_one(
    failing: str, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    files.write(path, b"old")

    def fail(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    if failing == "write":
        real = Path.open

        def opened(self: Path, *arguments: Any, **options: Any) -> Any:
            stream = real(self, *arguments, **options)

            class Full:
                write, flush, fileno = fail, stream.flush, stream.fileno

                def __enter__(self) -> Full:
                    return self

                def __exit__(self, *_: object) -> None:
                    stream.close()

            return Full()

        monkeypatch.setattr(Path, "open", opened)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(FileProblem, match=words) as caught:
        files.write(path, b"new content", kept="the checkpoint of epoch 2 is intact")
    monkeypatch.undo()
    assert str(caught.value).endswith("; the checkpoint of epoch 2 is intact.")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"x": [float("nan"), 1.0], "y": -float("inf")})
    assert (tmp_path / "a.json").read_text().split() == ['{', '"x":', '[', 'null,', '1.0', '],',
                                                         '"y":', 'null', '}']  # fmt: skip
