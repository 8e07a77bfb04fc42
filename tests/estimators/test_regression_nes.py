"""Regression on the noise: exact where it must be, and its bias where it is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab.estimators import create
from gradlab.objectives import TestFunction
from tests.estimators import referees


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("function", "population", "antithetic"),
    [
        ("linear", 9, False),  # eight slopes and an intercept
        ("linear", 40, False),
        ("linear", 16, True),
        ("quadratic", 16, True),
        ("quadratic", 40, True),
    ],
)
def test_it_is_exact_with_as_many_losses_as_unknowns(
    function: str, population: int, antithetic: bool
) -> None:
    objective = TestFunction(function, num_dim=8)
    params = objective.initial_params(0)
    exact = objective.surrogate_gradient(params)["x"]
    for seed in range(5):
        found = create("regression_nes", population=population, antithetic=antithetic).estimate(
            objective, params, generator=generator(seed)
        )
        torch.testing.assert_close(found.gradient["x"], exact, rtol=1e-6, atol=1e-6)
        assert found.diagnostics["regression_rank"] == 8


@pytest.mark.parametrize(("antithetic", "rank"), [(True, 3), (False, 5)])
def test_with_fewer_it_is_the_gradient_projected_on_the_noise(antithetic: bool, rank: int) -> None:
    objective = TestFunction("linear", num_dim=8)
    params = objective.initial_params(0)
    exact = objective.surrogate_gradient(params)["x"]
    estimator = create("regression_nes", population=6, antithetic=antithetic)
    found = referees.repeated_estimates(estimator, objective, params, 400)
    gradients = [estimate.gradient for estimate in found]
    assert referees.z_scores(gradients, {"x": rank / 8 * exact}).abs().max() < 4.5
    for estimate in found[:20]:
        assert estimate.diagnostics["regression_rank"] == rank
        gradient = estimate.gradient["x"]
        # a projection: its own component along the gradient is its squared length
        torch.testing.assert_close(gradient @ exact, gradient @ gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("population", [20, 60])
def test_without_pairs_it_solves_the_normal_equations_with_an_intercept(population: int) -> None:
    objective, params = referees.problem(3, 2)
    seen: list[Tensor] = []
    losses: list[Tensor] = []

    class Watched(referees.Layers):
        def losses(self, population: Any) -> Tensor:
            seen.append(population.noise().double())
            losses.append(super().losses(population))
            return losses[-1]

    watched = Watched(objective.model, objective.inputs, objective.targets)
    found = create(
        "regression_nes", population=population, sigma=0.3, ridge=0.2, antithetic=False
    ).estimate(watched, params, generator=generator())
    noise = torch.cat((torch.ones(population, 1).double(), seen[0]), dim=1)
    penalty = 0.2 * population * torch.eye(noise.shape[1]).double()
    penalty[0, 0] = 0
    slope = torch.linalg.solve(noise.T @ noise + penalty, noise.T @ losses[0])[1:] / 0.3
    torch.testing.assert_close(referees.flat(found.gradient), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("population", [10, 200])
def test_mirrored_pairs_give_the_empirical_fisher_gradient_over_sigma_squared(
    population: int,
) -> None:
    objective, params = referees.problem(3, 2)
    options = {"population": population, "sigma": 0.3, "ridge": 0.5}
    found = create("regression_nes", **options).estimate(objective, params, generator=generator())
    fisher = create("nes", gradient="empirical_fisher", **options).estimate(
        objective, params, generator=generator()
    )
    for name, gradient in fisher.gradient.items():
        torch.testing.assert_close(found.gradient[name], gradient / 0.3**2, rtol=1e-4, atol=1e-5)


def test_a_large_ridge_leaves_nes() -> None:
    objective, params = referees.problem(3, 2)
    found = create("regression_nes", population=50, ridge=1e6).estimate(
        objective, params, generator=generator()
    )
    nes = create("nes", population=50).estimate(objective, params, generator=generator())
    for name, gradient in nes.gradient.items():
        torch.testing.assert_close(1e6 * found.gradient[name], gradient, rtol=1e-4, atol=1e-5)


def test_it_approaches_the_smoothed_gradient_sooner_than_nes() -> None:
    objective = TestFunction("rastrigin", num_dim=6)
    params = {"x": torch.linspace(-0.4, 0.5, 6).double()}
    exact, _ = objective.smoothed_gradient(params, 0.05)
    errors = {}
    for name in ("nes", "regression_nes"):
        estimator = create(name, population=400, sigma=0.05)
        found = referees.repeated_estimates(estimator, objective, params, 10)
        errors[name] = sum((f.gradient["x"] - exact["x"]).norm() for f in found) / 10
    assert errors["regression_nes"] < 0.05 * exact["x"].norm()
    assert errors["regression_nes"] < 0.5 * errors["nes"]


def test_a_system_that_is_too_large_is_refused_before_anything_is_evaluated() -> None:
    class Unasked(TestFunction):
        def losses(self, population: Any) -> Tensor:
            raise AssertionError("evaluated")

    objective = Unasked("linear", num_dim=12_000)
    sentence = "^a regression of 24000 losses on 12000 coordinates is too large to solve: use a "
    with pytest.raises(ValueError, match=sentence):
        create("regression_nes", population=24_000).estimate(
            objective, objective.initial_params(0), generator=generator()
        )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"population": 5}, "population is 5: mirrored pairs need an even number"),
        ({"population": 1, "antithetic": False}, "population is 1"),
        ({"ridge": -1}, "ridge is -1: give a finite number above 0."),
        ({"sigma": 0}, "sigma is 0: give a finite number above 0."),
        ({"antithetic": "no"}, "antithetic is 'no': give true or false."),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        create("regression_nes", **options)


def test_label() -> None:
    assert create("regression_nes").label() == "regression NES 500"
    estimator = create("regression_nes", population=[10, 20], ridge=0.1, antithetic=False)
    assert estimator.label() == "regression NES 10/20 ridge=0.1 not antithetic"
