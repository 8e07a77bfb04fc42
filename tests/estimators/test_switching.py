"""When the switch falls, and that either side of it is the estimator it names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradlab.estimators import create
from gradlab.evaluation import Params, Population
from gradlab.evaluation import population as pop
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@dataclass
class Misled:
    """Σ tanh(xᵢ) with a surrogate gradient of the wrong sign: every step along it is uphill."""

    def losses(self, population: Population) -> Tensor:
        return torch.tanh(pop.members(population)["x"].double()).sum(-1)

    def loss(self, params: Params) -> Tensor:
        return self.losses({"x": params["x"][None]})[0]

    def decreases(self, params: Params, population: Population) -> Tensor:
        return self.loss(params) - self.losses(population)

    def gradient(self, params: Params) -> Tensor:
        return 1 - torch.tanh(params["x"]).square()

    def surrogate_gradient(self, params: Params, surrogate: Any, **_: Any) -> Params:
        return {"x": -self.gradient(params)}


def identical(first: Params, second: Params) -> bool:
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("lr", [1e-3, 0.1, 10.0])
def test_where_every_straight_through_step_is_uphill_it_is_nes(lr: float) -> None:
    objective = Misled()
    params = {"x": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)}
    shared: dict[str, Any] = {"population": [20, 60], "sigma": 0.2}
    nes = create("nes", **shared).estimates(objective, params, generator=generator())  # type: ignore[arg-type]
    found = create("switching", lr=lr, **shared).estimates(
        objective,  # type: ignore[arg-type]
        params,
        generator=generator(),
    )
    for ours, theirs in zip(found, nes, strict=True):
        assert identical(ours.gradient, theirs.gradient)
        assert theirs.diagnostics.items() <= ours.diagnostics.items()
        assert ours.diagnostics["switched"] == 1
        assert ours.diagnostics["ste_decrease"] < 0
        assert (ours.forward_passes, ours.backward_passes) == (theirs.forward_passes + 2, 1)
        assert float(ours.gradient["x"] @ objective.gradient(params)) > 0


def test_where_it_switches_it_is_unbiased_for_the_smoothed_gradient() -> None:
    # a step of 1 is too long for all curvatures above 2, and they raise the loss most
    objective = TestFunction("quadratic", num_dim=4)
    params = objective.initial_params(0)
    found = referees.repeated_estimates(create("switching", lr=1.0), objective, params, 80)
    assert {each.diagnostics["switched"] for each in found} == {1.0}
    exact, _ = objective.smoothed_gradient(params, 0.1)
    assert referees.z_scores([each.gradient for each in found], exact).abs().max() < 4.5


def test_a_converged_student_has_no_straight_through_step_that_helps() -> None:
    objective = TeacherStudent(4, 200, seed=0)
    found = create("switching").estimate(objective, objective.teacher, generator=generator())
    # the loss is zero, and so is the gradient by backpropagation
    assert found.diagnostics["ste_decrease"] == 0
    assert found.diagnostics["switched"] == 1
    nes = create("nes").estimate(objective, objective.teacher, generator=generator())
    assert identical(found.gradient, nes.gradient)


@pytest.mark.parametrize("weight", ["real", "binary"])
def test_where_the_step_lowers_the_loss_it_is_ste(weight: str) -> None:
    objective = TeacherStudent(4, 200, seed=0, weight=weight)
    params = objective.initial_params(0)
    ste = create("ste", surrogate="polynomial").estimate(objective, params, generator=generator())
    switching = create("switching", surrogate="polynomial", lr=0.02, population=[10, 40])
    several = switching.estimates(objective, params, generator=generator())
    after = {name: w - 0.02 * ste.gradient[name] for name, w in params.items()}
    decrease = float(objective.loss(params) - objective.loss(after))
    assert decrease > 0
    assert len(several) == 2
    for found in several:
        assert identical(found.gradient, ste.gradient)
        assert found.diagnostics["switched"] == 0
        assert found.diagnostics["ste_decrease"] == pytest.approx(decrease, rel=1e-5)
        assert (found.forward_passes, found.backward_passes) == (2, 1)


@given(
    lr=st.floats(0.01, 3.0),
    tolerance=st.one_of(st.just(0.0), st.floats(0.0, 1.2)),
    x=st.floats(0.1, 10.0),
)
@settings(max_examples=60, deadline=None)
def test_the_switch_falls_at_the_tolerance(lr: float, tolerance: float, x: float) -> None:
    # on x²/2 the step leads to (1 - lr) x and lowers the loss by this part of it
    part = 1 - (1 - lr) ** 2
    if math.isclose(part, tolerance, abs_tol=1e-9):
        return
    objective = TestFunction("quadratic", num_dim=1)
    params = {"x": torch.tensor([x], dtype=torch.float64)}
    found = create("switching", lr=lr, tolerance=tolerance, population=2).estimate(
        objective, params, generator=generator()
    )
    assert found.diagnostics["switched"] == float(part < tolerance)
    assert found.diagnostics["ste_decrease"] == pytest.approx(part * x**2 / 2, rel=1e-9)


def test_the_tolerance_is_a_part_of_the_size_of_a_negative_loss() -> None:
    # Σ cᵢxᵢ with c = 1: a step of lr lowers it by lr, here from -2
    objective = TestFunction("linear", num_dim=1)
    params = {"x": torch.tensor([-2.0], dtype=torch.float64)}
    for tolerance, switched in ((0.24, 0.0), (0.26, 1.0)):
        found = create("switching", lr=0.5, tolerance=tolerance).estimate(
            objective, params, generator=generator()
        )
        assert found.diagnostics["switched"] == switched


def test_a_step_that_leaves_the_finite_numbers_is_no_decrease() -> None:
    objective = TestFunction("quadratic", num_dim=2)
    params = objective.initial_params(0)
    found = create("switching", lr=1e308).estimate(objective, params, generator=generator())
    assert found.diagnostics["switched"] == 1
    assert torch.isfinite(found.gradient["x"]).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lr": 0}, "lr is 0: give a finite number above 0."),
        ({"tolerance": -0.1}, "tolerance is -0.1: give a finite number of at least 0."),
        ({"surrogate": "hardtan"}, "unknown surrogate 'hardtan': did you mean 'hardtanh'"),
        ({"population": 5}, "population is 5: mirrored pairs need an even number"),
        ({"fitness": "rank"}, "unknown fitness 'rank'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        create("switching", **options)


def test_label() -> None:
    assert create("switching").label() == "STE→NES 500 hardtanh"
    estimator = create("switching", surrogate="identity", lr=1, tolerance=0.01, sigma=0.5)
    assert estimator.label() == "STE→NES 500 σ=0.5 identity lr=1 tolerance=0.01"
