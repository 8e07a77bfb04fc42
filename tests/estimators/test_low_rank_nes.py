"""Low-rank perturbations: their moments, and what the estimate is unbiased for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab.estimators import create
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from tests.estimators import referees

SHAPES = {"matrix": (3, 4), "convolution": (2, 2, 1, 2), "vector": (2,)}
START = {name: torch.full(shape, 0.5, dtype=torch.float64) for name, shape in SHAPES.items()}
SIZE = 22
GRADIENT = torch.linspace(-1, 2, SIZE).double()
CURVATURE = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0)).double()


class Function:
    """A function of all weights in a row."""

    def __init__(self, value: Callable[[Tensor], Tensor]) -> None:
        self.value = value

    def losses(self, population: Params) -> Tensor:
        return self.value(torch.cat([w.flatten(1) for w in population.values()], dim=1))


def linear(w: Tensor) -> Tensor:
    return w @ GRADIENT


def quadratic(w: Tensor) -> Tensor:
    return linear(w) + 0.5 * ((w @ CURVATURE) * w).sum(dim=1)


def cubic(w: Tensor) -> Tensor:
    return w.pow(3).sum(dim=1)


def gradients(value: Callable[[Tensor], Tensor], seeds: int = 200, **options: Any) -> list[Any]:
    estimator = create("low_rank_nes", **{"population": 200, "sigma": 0.5} | options)
    found = referees.repeated_estimates(estimator, Function(value), START, seeds)
    return [estimate.gradient for estimate in found]


def worst(found: list[Any], expected: Tensor) -> float:
    samples = torch.stack([referees.flat(each) for each in found])
    error = samples.std(dim=0) / len(samples) ** 0.5
    return float(((samples.mean(dim=0) - expected) / error).abs().max())


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("value", [linear, quadratic])
def test_it_is_unbiased_for_linear_and_quadratic_functions(
    rank: int, value: Callable[[Tensor], Tensor]
) -> None:
    exact = GRADIENT.clone()
    if value is quadratic:
        exact += 0.5 * (CURVATURE + CURVATURE.T) @ torch.full((SIZE,), 0.5).double()
    found = gradients(value, rank=rank)
    assert worst(found, exact) < 4.5
    # without the factor 1/√r the gradient would be r times as long, and this would see it
    if rank == 2:
        assert worst(found, exact / 2) > 10


@pytest.mark.parametrize("rank", [1, 2])
def test_a_cubic_function_shows_the_fourth_moment(rank: int) -> None:
    # w³ has (f(w + σe) − f(w − σe))e/2σ = 3w²e² + σ²e⁴, and e⁴ has the mean 3 + 6/r
    fourth = torch.full((SIZE,), 3.0).double()
    fourth[:12] += 6 / rank
    if rank == 1:  # at rank 2 the (2, 4) convolution is no larger than the rank
        fourth[12:20] += 6
    found = gradients(cubic, seeds=600, rank=rank)
    assert worst(found, 3 * 0.5**2 + 0.5**2 * fourth) < 4.5
    assert worst(found, torch.full((SIZE,), 6 * 0.5**2).double()) > 10  # what NES estimates


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_perturbations_have_the_rank_and_uncorrelated_entries_of_unit_variance(rank: int) -> None:
    seen: list[Params] = []

    class Watched(Function):
        def losses(self, population: Params) -> Tensor:
            seen.append(population)
            return super().losses(population)

    create("low_rank_nes", population=40_000, sigma=0.5, rank=rank).estimate(
        Watched(linear), START, generator=torch.Generator().manual_seed(0)
    )
    drawn = {n: torch.cat([part[n] for part in seen]) - START[n] for n in START}
    ranks = torch.linalg.matrix_rank(drawn["matrix"][:100])
    assert (ranks == min(rank, 3)).all()
    ranks = torch.linalg.matrix_rank(drawn["convolution"][:100].flatten(2))
    assert (ranks == min(rank, 2)).all()
    flat = torch.cat([each.flatten(1) for each in drawn.values()], dim=1) / 0.5
    second = flat.T @ flat / len(flat)
    # 20,000 pairs; a product of two entries has a variance of at most 8
    assert (second - torch.eye(SIZE)).abs().max() < 4.5 * (8 / 20_000) ** 0.5


def test_with_a_rank_as_large_as_every_matrix_it_is_nes() -> None:
    objective = TeacherStudent(3, 100, seed=0, depth=2)
    params = objective.initial_params(0)
    low, nes = (
        create(name, population=60, sigma=0.2, **options).estimate(
            objective, params, generator=torch.Generator().manual_seed(7)
        )
        for name, options in (("low_rank_nes", {"rank": 3}), ("nes", {}))
    )
    for name in params:
        torch.testing.assert_close(low.gradient[name], nes.gradient[name], rtol=1e-4, atol=1e-5)
    assert low.diagnostics == pytest.approx(nes.diagnostics, rel=1e-3)


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_bad_rank_is_refused(rank: object) -> None:
    with pytest.raises(ValueError, match=f"^rank is {rank}: give a whole number of at least 1"):
        create("low_rank_nes", rank=rank)


def test_label() -> None:
    assert create("low_rank_nes").label() == "low-rank NES 500 (rank 1)"
    estimator = create("low_rank_nes", population=[10, 20], sigma=1, rank=4)
    assert estimator.label() == "low-rank NES 10/20 σ=1 (rank 4)"
