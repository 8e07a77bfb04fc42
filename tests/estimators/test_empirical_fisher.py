"""The empirical Fisher against dense pseudo-inverses, and its limit, the natural gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from gradlab.estimators import GradientEstimate, create
from gradlab.estimators import empirical_fisher as module
from gradlab.estimators.fitness_shaping import shape
from gradlab.evaluation import GaussianPopulation
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from tests.estimators import referees

SIGMA = 0.3
OBJECTIVE, PARAMS = referees.problem(3, 1)  # 12 weights in tensors of 9 and 3


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def nes(population: int, **options: Any) -> GradientEstimate:
    estimator = create("nes", population=population, sigma=SIGMA, **options)
    return estimator.estimate(OBJECTIVE, PARAMS, generator=generator())


def dense(
    population: int, antithetic: bool, per_tensor: bool, ridge: float, kind: str
) -> dict[str, np.ndarray]:
    """Mean of scores times fitness, divided by the mean of their outer products, as defined."""
    sample = GaussianPopulation(
        PARAMS, SIGMA, draw_key(generator()), 0, population, antithetic=antithetic
    )
    noise = sample.noise().double().numpy()
    losses = OBJECTIVE.losses(sample)
    fitness = shape(losses, "centered", antithetic=antithetic).numpy()
    # ∇ log π and the true Fisher information of each kind of parameter (JMLR 15, 2014)
    scores, fisher = {
        "mu": (noise / SIGMA, 1 / SIGMA**2),
        "sigma": ((noise**2 - 1) / SIGMA, 2 / SIGMA**2),
        "log_sigma": (noise**2 - 1, 2.0),
    }[kind]
    blocks = pop.coordinate_ranges(PARAMS) if per_tensor else {"all": (0, scores.shape[1])}
    solution = np.zeros(scores.shape[1])
    for a, b in blocks.values():
        block = scores[:, a:b]
        matrix = block.T @ block / population + ridge * fisher * np.eye(b - a)
        solution[a:b] = np.linalg.pinv(matrix, rcond=1e-10) @ (block.T @ fitness / population)
    return {n: solution[a:b] for n, (a, b) in pop.coordinate_ranges(PARAMS).items()}


@pytest.mark.parametrize("population", [6, 16, 200])  # fewer than weights, about as many, more
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("sigma_gradient", ["sigma", "log_sigma"])
def test_it_is_the_dense_pseudo_inverse(
    population: int, antithetic: bool, per_tensor: bool, ridge: float, sigma_gradient: str
) -> None:
    estimate = nes(
        population,
        gradient="empirical_fisher" + ("_per_tensor" if per_tensor else ""),
        antithetic=antithetic,
        ridge=ridge,
        sigma_gradient=sigma_gradient,
    )
    for got, kind in [(estimate.gradient, "mu"), (estimate.sigma_gradient, sigma_gradient)]:
        assert got is not None
        expected = dense(population, antithetic, per_tensor, ridge, kind)
        for name, tensor in got.items():
            scale = np.abs(expected[name]).max()
            np.testing.assert_allclose(
                tensor.flatten().numpy(), expected[name], rtol=1e-4, atol=1e-5 * scale
            )


@pytest.mark.parametrize(
    ("population", "antithetic", "per_tensor", "ranks"),
    [
        (6, False, False, {"all": 6}),
        (6, True, False, {"all": 3}),  # mirrored members share a direction
        (200, True, False, {"all": 12}),
        (6, False, True, {"layers.0.weight": 6, "layers.1.weight": 3}),
        (4, True, True, {"layers.0.weight": 2, "layers.1.weight": 2}),
        (24, True, False, {"all": 12}),
        (22, True, False, {"all": 11}),
    ],
)
def test_rank_is_in_the_diagnostics(
    population: int, antithetic: bool, per_tensor: bool, ranks: dict[str, int]
) -> None:
    gradient = "empirical_fisher" + ("_per_tensor" if per_tensor else "")
    estimate = nes(population, gradient=gradient, antithetic=antithetic)
    found = {
        key.removeprefix("fisher_rank/"): value
        for key, value in estimate.diagnostics.items()
        if key.startswith("fisher_rank/")
    }
    assert found == ranks


def test_rank_and_solution_hold_for_hundreds_of_members() -> None:
    objective, params = referees.problem(20, 1)  # 420 weights
    for population in (300, 600):
        estimator = create("nes", population=population, gradient="empirical_fisher")
        estimate = estimator.estimate(objective, params, generator=generator())
        assert estimate.diagnostics["fisher_rank/all"] == population // 2
        sample = GaussianPopulation(
            params, 0.1, draw_key(generator()), 0, population, antithetic=True
        )
        noise = sample.noise().double()
        fitness = shape(objective.losses(sample), "centered", antithetic=True)
        expected = 0.1 * torch.linalg.pinv(noise, rtol=1e-9) @ fitness
        got = referees.flat(estimate.gradient)
        assert (got - expected).norm() < 1e-4 * expected.norm()


def test_members_on_one_side_of_the_choice_of_system_agree_with_the_other() -> None:
    # P x P and d x d systems have one solution
    sample = GaussianPopulation(PARAMS, SIGMA, 3, 0, 30)
    weights = torch.randn(30, dtype=torch.float64, generator=generator())
    for power in (1, 2):
        for ridge in (0.0, 0.5):
            gram, _ = module._by_gram(sample, (0, 12), weights, power, ridge)
            moments, rank = module._by_moments(sample, (0, 12), weights, power, ridge)
            torch.testing.assert_close(gram, moments, rtol=1e-8, atol=1e-8)
            assert rank == 12


def test_many_members_give_the_natural_gradient() -> None:
    differences = []
    for population in (2_000, 50_000):
        natural = referees.flat(nes(population, gradient="natural").gradient)
        empirical = referees.flat(nes(population, gradient="empirical_fisher").gradient)
        differences.append(float((natural - empirical).norm() / natural.norm()))
    assert differences[1] < 0.2
    assert differences[1] < differences[0] / 2  # √25 = 5 in expectation


def test_natural_is_the_plain_gradient_over_the_true_fisher_information() -> None:
    for sigma_gradient, over in [("sigma", 2 / SIGMA**2), ("log_sigma", 2.0)]:
        plain = nes(100, sigma_gradient=sigma_gradient)
        natural = nes(100, sigma_gradient=sigma_gradient, gradient="natural")
        assert plain.sigma_gradient is not None
        assert natural.sigma_gradient is not None
        for name in PARAMS:
            mean = natural.gradient[name] / SIGMA**2
            torch.testing.assert_close(mean, plain.gradient[name])
            width = natural.sigma_gradient[name] * over
            torch.testing.assert_close(width, plain.sigma_gradient[name])


def test_log_sigma_is_sigma_times_the_gradient_in_sigma() -> None:
    in_sigma = nes(100, sigma_gradient="sigma").sigma_gradient
    in_log = nes(100, sigma_gradient="log_sigma").sigma_gradient
    assert in_sigma is not None
    assert in_log is not None
    for name in PARAMS:
        torch.testing.assert_close(in_log[name], SIGMA * in_sigma[name])


def test_a_system_too_large_to_solve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST", 100)
    with pytest.raises(ValueError, match="12 coordinates and 200 members is too large to solve"):
        nes(200, gradient="empirical_fisher")
