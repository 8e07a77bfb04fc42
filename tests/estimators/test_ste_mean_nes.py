"""NES at a moved mean: where the mean is, and what is estimated there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradlab.estimators import create
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("fitness", ["centered", "utilities"])
@pytest.mark.parametrize("step", [0, 0.5, -0.5])
def test_it_is_nes_at_the_moved_mean(step: float, fitness: str) -> None:
    objective = TeacherStudent(4, 200, seed=0)
    params = objective.initial_params(0)
    ste = create("ste", surrogate="polynomial")
    gradient = ste.estimate(objective, params, generator=generator()).gradient
    moved = {name: w - step * gradient[name] for name, w in params.items()}
    shared: dict[str, Any] = {"population": [20, 60], "sigma": 0.2, "fitness": fitness}
    nes = create("nes", **shared).estimates(objective, moved, generator=generator())
    found = create("ste_mean_nes", surrogate="polynomial", step=step, **shared).estimates(
        objective, params, generator=generator()
    )
    for a, b in zip(found, nes, strict=True):
        assert all(torch.equal(a.gradient[name], b.gradient[name]) for name in params)
        assert a.diagnostics == b.diagnostics
        assert (a.forward_passes, a.backward_passes) == (b.forward_passes + 1, 1)


def test_on_a_quadratic_it_is_unbiased_for_the_gradient_after_the_step() -> None:
    objective = TestFunction("quadratic", num_dim=4)
    params = objective.initial_params(0)
    curvature = torch.linspace(1, 10, 4).double()
    expected = curvature * (1 - 0.05 * curvature) * params["x"]
    estimator = create("ste_mean_nes", step=0.05)
    found = referees.repeated_estimates(estimator, objective, params, 80)
    gradients = [estimate.gradient for estimate in found]
    assert referees.z_scores(gradients, {"x": expected}).abs().max() < 4.5
    # and not for the gradient at w
    unmoved = {"x": curvature * params["x"]}
    assert referees.z_scores(gradients, unmoved).abs().max() > 10


def test_a_step_that_leaves_the_finite_numbers_is_refused() -> None:
    objective = TestFunction("quadratic", num_dim=2)
    params = {"x": torch.full((2,), 1e308, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"^parameter x has NaN or infinite entries"):
        create("ste_mean_nes", step=1e10).estimate(objective, params, generator=generator())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"step": float("nan")}, "step is nan: give a finite number."),
        ({"step": "far"}, "step is 'far': give a finite number."),
        ({"surrogate": "hardtan"}, "unknown surrogate 'hardtan': did you mean 'hardtanh'"),
        ({"population": 5}, "population is 5: mirrored pairs need an even number"),
        ({"fitness": "rank"}, "unknown fitness 'rank'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        create("ste_mean_nes", **options)


def test_label() -> None:
    assert create("ste_mean_nes").label() == "STE-mean NES 500 hardtanh"
    estimator = create("ste_mean_nes", surrogate="identity", step=1, sigma=0.5, antithetic=False)
    assert estimator.label() == "STE-mean NES 500 σ=0.5 not antithetic identity step=1"
