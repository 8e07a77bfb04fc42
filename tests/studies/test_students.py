"""Students trained once, kept, and shared by the cells of an init."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gradlab.evaluation import Params
from gradlab.studies import cells, students
from tests.studies import configs

SHORT = {"state": "converged", "steps": 60, "batch_size": 512}


def config(*arguments: Any, **options: Any) -> dict[str, Any]:
    return configs.cell("loss_decrease", *arguments, **{"student": SHORT, **options})


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The inits for which a student was trained."""
    found: list[int] = []
    original = students._train

    def counted(cell: Any, params: Params) -> Params:
        found.append(cell["init"])
        return original(cell, params)

    monkeypatch.setattr(students, "_train", counted)
    return found


def same(first: Params, second: Params) -> bool:
    return list(first) == list(second) and all(torch.equal(first[n], second[n]) for n in first)


def test_a_fresh_student_is_the_initial_one(tmp_path: Path) -> None:
    fresh = config(student={"state": "fresh"}, init=2)
    objective = cells.objective_of(fresh)
    expected = objective.initial_params(cells.derived_seed(fresh, 0, 2))
    assert same(students.student_of(fresh, tmp_path), expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("activation", ["binary", "ternary"])
@pytest.mark.parametrize("weight", ["real", "binary"])
def test_a_converged_student_has_a_lower_loss(activation: str, weight: str, tmp_path: Path) -> None:
    objective_options = {**configs.TEACHER, "activation": activation, "weight": weight}
    converged = config(objective=objective_options)
    # on data that neither training nor the cell has seen
    unseen = cells.objective_of(converged, batch=12345)
    before = unseen.initial_params(cells.derived_seed(converged, 0, 0))
    after = students.student_of(converged, tmp_path)
    assert float(unseen.loss(after)) < 0.8 * float(unseen.loss(before))


def test_the_cells_of_an_init_share_one_student(tmp_path: Path, trainings: list[int]) -> None:
    first = students.student_of(config(), tmp_path)
    for other in (
        config(batch=1),
        config(configs.NES),
        config(objective={**configs.TEACHER, "batch_size": 100}),
        config(lr=[0.5]),
        configs.cell("gradient_quality", student=SHORT),
    ):
        assert same(first, students.student_of(other, tmp_path))
    assert trainings == [0]
    for other in (
        config(init=1),
        config(seed=1),
        config(objective={**configs.TEACHER, "num_dim": 5}),
        config(objective={**configs.TEACHER, "activation": "ternary"}),
        config(student={**SHORT, "steps": 61}),
        config(student={**SHORT, "batch_size": 513}),
    ):
        changed = students.student_of(other, tmp_path)
        assert not same(first, changed)
    assert trainings == [0, 1, 0, 0, 0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 7


def test_training_starts_where_the_fresh_student_does_and_is_repeatable(tmp_path: Path) -> None:
    one = config(student={**SHORT, "steps": 1})
    fresh = cells.objective_of(one).initial_params(cells.derived_seed(one, 0, 0))
    trained = students.student_of(one, tmp_path / "a")
    for name, tensor in trained.items():
        # Adam's first step is the lr in every weight that has a gradient
        assert (tensor - fresh[name]).abs().max() == pytest.approx(0.01, rel=1e-3)
    assert same(trained, students.student_of(one, tmp_path / "b"))


def test_training_ends_when_the_loss_stops_falling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    original = students.objective_of

    def counted(cell: Any, batch: int | None = None) -> Any:
        if batch is not None:
            drawn.append(batch)
        return original(cell, batch)

    monkeypatch.setattr(students, "objective_of", counted)
    small = {**configs.TEACHER, "num_dim": 2, "depth": 1}
    students.student_of(
        config(objective=small, student={**SHORT, "steps": 2000, "batch_size": 64}), tmp_path
    )
    assert 201 <= len(drawn) < 2000
    assert len(drawn) % 100 == 1
    assert len(set(drawn)) == len(drawn)
    assert min(drawn) == cells.TRAINING_BATCHES


def test_a_deep_student_is_the_same_computed_or_read(tmp_path: Path) -> None:
    # a file gives layers.10 before layers.2, and NES numbers weights in the order of the dict
    deep = {**configs.TEACHER, "num_dim": 2, "depth": 11}
    cell = config(configs.NES, deep, student={**SHORT, "steps": 1})
    computed = configs.run(cell, tmp_path)
    read = configs.run(cell, tmp_path)
    assert configs.without_seconds(computed) == configs.without_seconds(read)
    names = [f"layers.{layer}.weight" for layer in range(12)]
    assert list(students.student_of(cell, tmp_path)) == names


def test_the_rows_say_how_the_student_was_trained(tmp_path: Path) -> None:
    (row, *_) = configs.run(config(lr=[0.1]), tmp_path)
    assert row["student"] == "converged (60 steps, 512 examples)"
    assert cells.student_label(students.canonical({"state": "converged"})) == "converged"
    assert row["batch_size"] == 256


def tensors(value: float) -> Params:
    return {"b": torch.full((2,), value), "a": torch.full((3, 2), value).T}


def test_the_cache_computes_once_and_keeps_every_bit(tmp_path: Path) -> None:
    calls = []
    for _ in range(2):
        found = students.cached(
            tmp_path / "new", "kind", {"x": 0.1}, lambda: calls.append(1) or tensors(0.1)
        )
        assert {name: tensor.tolist() for name, tensor in found.items()} == {
            name: tensor.tolist() for name, tensor in tensors(0.1).items()
        }
    assert calls == [1]
    students.cached(tmp_path / "new", "other", {"x": 0.1}, lambda: tensors(1))
    students.cached(tmp_path / "new", "kind", {"x": 0.2}, lambda: tensors(2))
    assert len(list((tmp_path / "new").iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, b"no tensors at all"])
def test_a_damaged_file_is_computed_again(damage: bytes, tmp_path: Path) -> None:
    students.cached(tmp_path, "kind", {}, lambda: tensors(1))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    found = students.cached(tmp_path, "kind", {}, lambda: tensors(2))
    assert float(found["b"][0]) == 2
    assert float(load_file(path)["b"][0]) == 2


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails() -> Params:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        students.cached(tmp_path, "kind", {}, fails)
    with pytest.raises(AttributeError):
        students.cached(tmp_path, "kind", {}, lambda: {"a": "no tensor"})  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_two_workers_at_once(tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=30)

    def compute() -> Params:
        both.wait()  # neither has found the other's file
        return tensors(3)

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(students.cached, tmp_path, "kind", {}, compute) for _ in range(2)]
        assert all(float(job.result()["b"][0]) == 3 for job in jobs)
    (path,) = tmp_path.iterdir()
    assert float(load_file(path)["b"][0]) == 3


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ({"state": "convergd"}, "did you mean 'converged'"),
        ({"stat": "fresh"}, "did you mean 'state'"),
        ({"state": "converged", "steps": 0}, "student.steps is 0"),
        ({"state": "converged", "batch_size": 0.5}, "student.batch_size is 0.5"),
        ({"state": "converged", "steps": True}, "student.steps is True"),
    ],
)
def test_impossible_students_are_refused(student: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        students.canonical(student)
