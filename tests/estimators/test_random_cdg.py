"""A random few of the central differences against all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradlab.estimators import create
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees


@pytest.mark.parametrize("weight", ["real", "binary"])
@pytest.mark.parametrize("activation", ["binary", "2bit"])
@pytest.mark.parametrize("coordinates", [21, 1000])
def test_all_coordinates_are_cdg(weight: str, activation: str, coordinates: int) -> None:
    objective = TeacherStudent(3, 300, seed=0, depth=2, weight=weight, activation=activation)
    params = {name: 0.3 * w for name, w in objective.initial_params(0).items()}
    cdg = create("cdg", epsilon=0.2).estimate(objective, params, generator=torch.Generator())
    found = create("random_cdg", coordinates=coordinates, epsilon=0.2).estimate(
        objective, params, generator=torch.Generator().manual_seed(0)
    )
    assert found.forward_passes == cdg.forward_passes == 42
    for name, gradient in cdg.gradient.items():
        torch.testing.assert_close(found.gradient[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_subset_holds_the_scaled_differences_of_that_subset() -> None:
    objective = TestFunction("quadratic", num_dim=30)
    params = objective.initial_params(0)
    exact = objective.surrogate_gradient(params)["x"]
    for scaled, factor in ((True, 30 / 7), (False, 1.0)):
        found = create("random_cdg", coordinates=7, scaled=scaled).estimate(
            objective, params, generator=torch.Generator().manual_seed(3)
        )
        (chosen,) = found.gradient["x"].nonzero(as_tuple=True)
        assert len(chosen) == 7
        torch.testing.assert_close(found.gradient["x"][chosen], factor * exact[chosen])


def test_every_coordinate_is_drawn_equally_often_and_the_mean_is_cdg() -> None:
    objective = TestFunction("quadratic", num_dim=8)
    params = objective.initial_params(0)
    exact = objective.surrogate_gradient(params)
    estimator = create("random_cdg", coordinates=3)
    found = referees.repeated_estimates(estimator, objective, params, 2000)
    gradients = [estimate.gradient for estimate in found]
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    variance = torch.stack([gradient["x"] for gradient in gradients]).var(dim=0)
    # of 2000 draws with probability 3/8: some 1 %
    assert ((variance / ((8 / 3 - 1) * exact["x"].square()) - 1).abs() < 0.05).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"coordinates": 0}, "coordinates is 0"),
        ({"coordinates": "all"}, "coordinates is 'all'"),
        ({"epsilon": -1}, "epsilon is -1: give a finite number above 0."),
        ({"scaled": "no"}, "scaled is 'no': give true or false."),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        create("random_cdg", **options)


def test_label() -> None:
    assert create("random_cdg").label() == "random CDG (32 coordinates)"
    estimator = create("random_cdg", coordinates=1, epsilon=0.5, scaled=False)
    assert estimator.label() == "random CDG (1 coordinate) ε=0.5 unscaled"
