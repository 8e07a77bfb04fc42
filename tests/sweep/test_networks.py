"""Specs of networks: their axes, and what a plan makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradlab import studies
from gradlab.sweep import expand, plan, read_spec
from gradlab.sweep.cells import group_labels
from gradlab.sweep.spec import SpecError
from tests.objectives.images import small_images

__all__ = ["small_images"]

pytestmark = pytest.mark.usefixtures("small_images")

SPEC = """
name = "network"
study = "{study}"
inits = 1
batches = 1
[objective]
name = "network"
dataset = "mnist"
model = "xnor_mlp"
width = [4, 6]
depth = 2
layers = [[0], [0, -1]]
batch_size = 16
[student]
state = "{state}"
epochs = 2
examples = 64
batch_size = 16
[[estimators]]
name = "ste"
surrogate = [{{name = "hardtanh", threshold = 0.5}}, "polynomial"]
[[estimators]]
name = "nes"
population = [4, 8]
[[estimators]]
name = "cdg"
"""
WriteSpec = Callable[..., Path]


def configs(
    write_spec: WriteSpec, *overrides: str, study: str = "loss_decrease", state: str = "mid"
) -> list[dict[str, Any]]:
    path = write_spec(text=SPEC.format(study=study, state=state))
    return [cell.config for cell in expand(read_spec(path, overrides))]


def test_every_option_can_be_an_axis(write_spec: WriteSpec) -> None:
    found = configs(write_spec, "student.state=['fresh', 'early', 'converged']")
    assert len(found) == 2 * 2 * 3 * 4
    assert [config["objective"]["layers"] for config in found[:: len(found) // 4]] == [
        [0], [0, -1], [0], [0, -1],
    ]  # fmt: skip
    states = {str(config["student"]) for config in found}
    assert len(states) == 3
    assert found[0]["student"] == {"state": "fresh"}
    # one list is no axis, and one layer is a list of one
    for given in ("[0, 1]", "[1]", "1"):
        for config in configs(write_spec, f"objective.layers={given}"):
            assert config["objective"]["layers"] == ([0, 1] if given == "[0, 1]" else [1])
    given = "[{name='hardtanh', threshold=1}, 'ede']"
    surrogates = [
        c["objective"]["surrogate"] for c in configs(write_spec, f"objective.surrogate={given}")
    ]
    assert {str(each) for each in surrogates} == {"{'name': 'hardtanh', 'threshold': 1}", "ede"}


def test_a_student_of_its_own_kind(write_spec: WriteSpec) -> None:
    with pytest.raises(SpecError, match=r"unknown key of \[student\] 'steps'"):
        configs(write_spec, "student.steps=4")
    with pytest.raises(SpecError, match="unknown state 'late'"):
        configs(write_spec, "student.state=late")
    with pytest.raises(SpecError, match="layer 2 is not there: this network has 2 binarized"):
        configs(write_spec, "objective.layers=[2]")


def test_what_only_some_cells_have_tells_no_groups_apart(write_spec: WriteSpec) -> None:
    found = configs(write_spec, "student.state=['fresh', 'mid']", "objective.width=4")
    problems = {problem for problem, _ in group_labels(found)}
    assert problems == {
        f"layers={layers} state={state}" for layers in ("[0]", "[0, -1]")
        for state in ("fresh", "mid")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("study", "overrides"),
    [
        ("loss_decrease", ["settings.lr=[0.1]"]),
        ("gradient_quality", []),
        ("trajectory", ["settings.steps=3", "estimators.nes.population=4"]),
        ("loss_slice", ["objective.coordinates=2", "estimators.nes.population=4"]),
        ("loss_slice", ["settings.along=ste", "estimators.nes.population=4"]),
    ],
)
def test_plans(study: str, overrides: list[str], write_spec: WriteSpec, tmp_path: Path) -> None:
    path = write_spec(text=SPEC.format(study=study, state="mid"))
    spec = read_spec(path, ["objective.width=4", "objective.layers=[0]", *overrides])
    found = plan(spec, tmp_path, jobs=1)
    assert 0 < found.seconds < 600
    assert found.bytes > 2**28
    kinds = {expense.kind: expense for expense in found.expenses}
    training = kinds["training step of a network"]
    assert training.count == pytest.approx(64 / 16)  # one of two epochs
    for cell in expand(spec):
        assert studies.create(study).forward_passes(cell.config) > 0


def test_a_plan_of_training_runs(write_spec: WriteSpec, tmp_path: Path) -> None:
    path = write_spec(text=SPEC.format(study="training_run", state="fresh"))
    changes = [
        "objective.width=[4, 8]", "settings.weight_decay=[0.0, 1e-4]", "settings.epochs=3",
        "estimators.nes.population=4",
    ]  # fmt: skip
    text = path.read_text().replace("layers = [[0], [0, -1]]\n", "")
    path.write_text(text)
    spec = read_spec(path, changes)
    cells = expand(spec)
    assert len(cells) == 2 * 2 * 4
    decays = {cell.config["settings"]["weight_decay"] for cell in cells}
    assert decays == {0.0, 1e-4}
    found = plan(read_spec(path, [*changes, "settings.examples=64"]), tmp_path, jobs=1)
    (expense,) = found.expenses
    assert expense.kind == "training step of a network"
    assert expense.count == 16 * 3 * 4
    assert found.seconds > 0
