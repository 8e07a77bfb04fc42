"""From a cell to live objects, and to the columns that tell its rows from others."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from gradlab import estimators
from gradlab.estimators import STE, GradientEstimate
from gradlab.evaluation.noise import draw_key
from gradlab.objectives import TeacherStudent
from gradlab.studies import cells
from tests.studies import configs

ESTIMATORS = [
    configs.CDG,
    configs.STE,
    {**configs.STE, "surrogate": "matched"},
    {"name": "sr_ste", "samples": 3},
    configs.NES,
    {**configs.NES, "population": [8, 16]},
    configs.LOCAL,
    {**configs.LOCAL, "passes": 5},
]


def config(*arguments: Any, **options: Any) -> dict[str, Any]:
    return configs.cell("loss_decrease", *arguments, **options)


def test_seeds_depend_on_every_coordinate_and_on_nothing_else() -> None:
    cell = config()
    seeds = [
        cells.derived_seed({**cell, "seed": seed}, *coordinates)
        for seed in (0, 1)
        for coordinates in [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 0, 0), (1, 0, 0, 2**30)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert cells.derived_seed(cell, 1, 2) == cells.derived_seed(config(configs.NES, lr=[9]), 1, 2)


def test_estimators_of_one_batch_share_their_random_numbers() -> None:
    keys = {
        draw_key(cells.generator_of(config(estimator, lr=[lr])))
        for estimator, lr in itertools.product(ESTIMATORS, (0.1, 1))
    }
    assert len(keys) == 1
    others = [
        cells.generator_of(config(init=1)),
        cells.generator_of(config(batch=1)),
        cells.generator_of(config(seed=1)),
        cells.generator_of(config(), repeat=1),
    ]
    keys |= {draw_key(generator) for generator in others}
    assert len(keys) == 5


def test_an_init_fixes_the_teacher_and_a_batch_the_inputs() -> None:
    def built(**options: Any) -> TeacherStudent:
        objective = cells.objective_of(config(**options))
        assert isinstance(objective, TeacherStudent)
        return objective

    first, batch, init = built(), built(batch=1), built(init=1)
    name = "layers.0.weight"
    assert torch.equal(first.teacher[name], batch.teacher[name])
    assert not torch.equal(first.teacher[name], init.teacher[name])
    assert not torch.equal(first.inputs, batch.inputs)
    assert not torch.equal(first.inputs, init.inputs)
    student = first.initial_params(cells.derived_seed(config(), 0, 0))
    assert not torch.equal(student[name], first.teacher[name])


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("num_dim", [2, 5])
def test_costs_known_beforehand_are_those_reported(estimator: dict[str, Any], num_dim: int) -> None:
    cell = config(estimator, {**configs.TEACHER, "num_dim": num_dim})
    objective = cells.objective_of(cell)
    params = objective.initial_params(0)
    assert cells.sizes_of(cell) == (len(params), sum(w.numel() for w in params.values()))
    estimate = cells.estimator_of(cell).estimate(
        objective, params, generator=cells.generator_of(cell)
    )
    assert cells.nominal_passes(cell) == estimate.forward_passes + estimate.backward_passes
    assert cells.estimator_work(cell) > 0


def test_more_of_anything_is_more_work() -> None:
    def work(estimator: dict[str, Any], **objective: Any) -> float:
        return cells.estimator_work(config(estimator, {**configs.TEACHER, **objective}))

    assert work(configs.CDG, num_dim=8) > work(configs.CDG)
    assert work(configs.CDG, depth=3) > work(configs.CDG)
    assert work(configs.CDG, activation="full", num_dim=32) > work(configs.CDG, num_dim=32)
    assert work({**configs.LOCAL, "passes": 8}) > work(configs.LOCAL)
    assert work({**configs.NES, "population": [10, 90]}) == 90
    assert work({"name": "sr_ste", "samples": 2}) > work({"name": "sr_ste"}) > work(configs.STE)
    assert work({**configs.STE, "surrogate": {"name": "matched", "sigma": 1.0}}) > work(configs.STE)


def test_sizes_of_a_test_function() -> None:
    assert cells.sizes_of(config(configs.CDG, configs.QUADRATIC)) == (1, 5)


@dataclass(frozen=True)
class Clashing(STE):
    """An estimator of somebody else's, with options named like other columns."""

    normalize: bool = False
    batch: int = 7
    passes: int = 3


def test_an_option_called_like_another_column_has_one_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(estimators.REGISTRY._factories, "clashing", Clashing)
    columns = cells.key_columns(config({"name": "clashing"}))
    assert (columns["normalize"], columns["clashing_normalize"]) == ("tensor", False)
    assert (columns["batch"], columns["clashing_batch"]) == (0, 7)
    assert columns["passes"] == 3
    # a study without such a setting leaves the name to the option
    quality = configs.cell("gradient_quality", {"name": "clashing"})
    assert cells.key_columns(quality)["normalize"] is False


def test_columns_hold_plain_values() -> None:
    surrogate = {"name": "hardtanh", "threshold": 0.5}
    columns = cells.key_columns(config({**configs.STE, "surrogate": surrogate}))
    assert columns["surrogate"] == "hardtanh(threshold=0.5)"
    assert columns["lr"] == str(columns["lr"])
    assert "lr" not in cells.key_columns(config(), leave_out=("lr",))
    assert "weight_surrogate" not in columns  # it is not given
    layers = cells.key_columns(config({**configs.LOCAL, "layers": ["layers.0.weight"]}))
    assert layers["layers"] == '["layers.0.weight"]'
    assert all(isinstance(value, (str, int, float, bool)) for value in columns.values())


def test_the_time_of_nested_populations_is_shared_out() -> None:
    small, large, free = (GradientEstimate({}, forward_passes=n) for n in (5.0, 20.0, 0.0))
    assert cells.share_of(small, large) == 0.25
    assert cells.share_of(large, large) == cells.share_of(free, free) == 1


def test_populations() -> None:
    assert cells.populations_of(config(configs.NES)) == [24]
    assert cells.populations_of(config({**configs.NES, "population": [8, 16]})) == [8, 16]
    assert cells.populations_of(config(configs.STE)) == [None]


@pytest.mark.parametrize(
    ("estimator", "objective", "sentence"),
    [
        (configs.LOCAL, configs.QUADRATIC, "nes_local perturbs .* TestFunction is not: use nes"),
        (
            {**configs.STE, "surrogate": "matched"},
            configs.QUADRATIC,
            "matched STE perturbs .* TestFunction is not",
        ),
        (configs.LOCAL, {**configs.TEACHER, "weight": "binary"}, "nes_local needs real weights"),
        (
            {**configs.STE, "surrogate": {"name": "matched", "sigma": 0.2}},
            {**configs.TEACHER, "weight": "binary"},
            "matched STE needs real weights",
        ),
        (
            {**configs.LOCAL, "layers": ["layers.7.weight"]},
            configs.TEACHER,
            "unknown layer 'layers.7.weight'",
        ),
        (
            {**configs.STE, "surrogate": "steep"},
            {**configs.TEACHER, "activation": "2bit"},
            "use the surrogate hardtanh",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(
    estimator: dict[str, Any], objective: dict[str, Any], sentence: str
) -> None:
    huge = {**objective, "batch_size": 10**12} if "batch_size" in objective else objective
    with pytest.raises(ValueError, match=sentence) as caught:
        cells.require_runnable(config(estimator, huge))
    assert str(caught.value).count(". ") == 0  # one sentence


def test_a_converged_student_needs_a_teacher() -> None:
    cell = config(configs.CDG, configs.QUADRATIC, student={"state": "converged", "steps": 1})
    with pytest.raises(ValueError, match="needs the objective teacher_student"):
        cells.require_runnable(cell)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_what_goes_together_is_accepted(estimator: dict[str, Any]) -> None:
    torch.manual_seed(0)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    cells.require_runnable(config(estimator, {**configs.TEACHER, "batch_size": 10**12}))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


@dataclass(frozen=True)
class Broken(STE):
    """An estimator of somebody else's, with a mistake in it."""

    def estimate(self, *_: Any, **__: Any) -> GradientEstimate:
        raise TypeError("no such thing")


@pytest.fixture
def broken_estimator(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setitem(estimators.REGISTRY._factories, "broken", Broken)
    yield "broken"
    cells._rehearsed_passes.cache_clear()


def test_a_mistake_in_an_estimator_is_one_sentence_too(broken_estimator: str) -> None:
    with pytest.raises(ValueError, match=r"broken fails on teacher_student .*TypeError: no such"):
        cells.require_runnable(config({"name": broken_estimator}))
