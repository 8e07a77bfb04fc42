"""Forward gradients against the straight-through gradient that they estimate."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradlab.estimators import create
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize(
    "surrogate", ["hardtanh", "polynomial", {"name": "hardtanh", "threshold": 0.5}], ids=str
)
def test_it_is_unbiased_for_the_straight_through_gradient(
    distribution: str, surrogate: Any
) -> None:
    objective = TeacherStudent(3, 50, seed=0, depth=2)
    params = objective.initial_params(0)
    ste = create("ste", surrogate=surrogate)
    exact = ste.estimate(objective, params, generator=torch.Generator()).gradient
    estimator = create(
        "forward_gradient", surrogate=surrogate, directions=100, distribution=distribution
    )
    found = referees.repeated_estimates(estimator, objective, params, 100)
    gradients = [estimate.gradient for estimate in found]
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    assert referees.relative_standard_error(gradients, exact) < 0.1


@pytest.mark.parametrize(("distribution", "sign"), [("normal", 1), ("rademacher", -1)])
def test_variance_is_as_documented(distribution: str, sign: int) -> None:
    objective = TestFunction("linear", num_dim=4)
    params = objective.initial_params(0)
    gradient = objective.surrogate_gradient(params)["x"]
    estimator = create("forward_gradient", directions=10, distribution=distribution)
    found = referees.repeated_estimates(estimator, objective, params, 3000)
    variance = torch.stack([estimate.gradient["x"] for estimate in found]).var(dim=0)
    expected = (gradient.square().sum() + sign * gradient.square()) / 10
    # of 3000 numbers of a kurtosis of at most 3 + 6/10·(a few): some 3 %
    assert ((variance / expected - 1).abs() < 0.15).all()


def test_one_direction_gives_that_direction_uphill() -> None:
    objective = TestFunction("quadratic", num_dim=6)
    params = objective.initial_params(0)
    exact = objective.surrogate_gradient(params)["x"]
    for seed in range(20):
        found = create("forward_gradient", distribution="rademacher").estimate(
            objective, params, generator=torch.Generator().manual_seed(seed)
        )
        sizes = found.gradient["x"].abs()
        torch.testing.assert_close(sizes, sizes[:1].expand(6))
        assert found.gradient["x"] @ exact > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"directions": 0}, "directions is 0"),
        ({"directions": 1.5}, "directions is 1.5"),
        ({"distribution": "gaussian"}, "unknown distribution 'gaussian'"),
        ({"surrogate": "hardtan"}, "unknown surrogate 'hardtan': did you mean 'hardtanh'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        create("forward_gradient", **options)


def test_label() -> None:
    assert create("forward_gradient").label() == "forward gradient (1 direction) hardtanh"
    estimator = create(
        "forward_gradient", directions=8, surrogate="identity", distribution="rademacher"
    )
    assert estimator.label() == "forward gradient (8 directions) identity rademacher"
