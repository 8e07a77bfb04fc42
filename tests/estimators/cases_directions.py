"""Estimators along directions and by finite differences, with their costs on the toy (d = 36)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from gradlab.binary import surrogates
from gradlab.evaluation import Params
from gradlab.evaluation import population as pop
from gradlab.objectives import TeacherStudent
from tests.estimators.case import Case, as_layers, central_differences, smoothed


def straight_through(objective: TeacherStudent, params: Params) -> dict[str, Tensor]:
    """What a forward gradient is unbiased for."""
    return objective.surrogate_gradient(params, surrogates.create("hardtanh"))


def smoothed_after_a_step(objective: TeacherStudent, params: Params) -> dict[str, Tensor]:
    """The smoothed gradient where a straight-through step of lr 0.1 leads."""
    gradient = straight_through(objective, params)
    return smoothed(objective, {name: w - 0.1 * gradient[name] for name, w in params.items()})


def all_sign_patterns(objective: TeacherStudent, params: Params) -> dict[str, Tensor]:
    """The expectation of SPSA: its mean over all Δ in {-1, 1}^d, in float64."""
    flat = pop.flatten(params).double()
    patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(flat)))).double()
    losses = as_layers(objective).losses(pop.unflatten(flat + 0.1 * patterns, params))
    # mirrored patterns are all there, so that half of a difference is the loss itself
    return pop.unflatten(losses @ patterns / len(patterns) / 0.1, params)


def guided(population: Any = 500, used: int = 3, referee: Any = None, **options: Any) -> Case:
    largest = population if isinstance(population, int) else population[-1]
    options = {"population": population} | options
    return Case("guided", options, float(largest + used), float(used), referee=referee)


def sampled(name: str, passes: float, referee: Any = None, weight: str = "real", **o: Any) -> Case:
    return Case(name, o, passes, 0.0, referee=referee, weight=weight)


def fixed(name: str, forward: float, backward: float = 0.0, weight: str = "real", **o: Any) -> Case:
    return Case(name, o, forward, backward, sampled=False, weight=weight)


# Of trace 1: a step of this length in 36 dimensions has 0.1 in each.
LENGTH = 0.6

CASES = [
    guided(),
    guided([20, 100, 500]),
    guided(used=2, surrogates=["hardtanh", {"name": "hardtanh", "threshold": 0.5}], beta=2.0),
    guided(used=1, surrogates=["matched"], alpha=0.25),
    guided(sigma=0.5, form="unbiased"),
    guided(sigma=0.5, density="uniform"),
    guided(alpha=0),
    guided(alpha=0, form="unbiased", density="uniform"),
    guided(alpha=1, sigma=LENGTH, form="unbiased", referee=smoothed),
    guided(alpha=1, sigma=LENGTH, beta=36.0, referee=smoothed),
    Case("guided", {"population": 500, "sigma": 0.3}, 503.0, 3.0, weight="binary"),
    Case("ste_mean_nes", {}, 501.0, 1.0, referee=smoothed_after_a_step),
    Case("ste_mean_nes", {"population": [20, 500], "step": 0.05, "sigma": 0.2}, 501.0, 1.0),
    Case(
        "ste_mean_nes",
        {"surrogate": "identity", "fitness": "centered_rank", "antithetic": False},
        501.0,
        1.0,
    ),
    sampled("spsa", 500.0),
    sampled("spsa", 500.0, population=[20, 100, 500], epsilon=0.2),
    sampled("spsa", 500.0, referee=all_sign_patterns, weight="binary"),
    sampled("forward_gradient", 101.0, referee=straight_through, directions=100),
    sampled(
        "forward_gradient", 101.0, referee=straight_through, directions=100,
        distribution="rademacher",
    ),
    sampled("forward_gradient", 51.0, directions=50, surrogate="polynomial"),
    sampled("random_cdg", 36.0, referee=central_differences, coordinates=18),
    sampled("random_cdg", 36.0, coordinates=18, epsilon=0.2, scaled=False),
    sampled("random_cdg", 6.0, referee=central_differences, weight="binary", coordinates=3),
    sampled("regression_nes", 500.0),
    sampled("regression_nes", 500.0, population=[40, 500], ridge=0.1),
    sampled("regression_nes", 30.0, population=30, sigma=0.2),
    sampled("regression_nes", 500.0, antithetic=False),
    sampled("regression_nes", 500.0, weight="binary"),
    sampled("low_rank_nes", 500.0),
    sampled("low_rank_nes", 500.0, population=[20, 500], rank=3, sigma=0.2),
    # No matrix of the toy is larger: Gaussian noise throughout.
    sampled("low_rank_nes", 500.0, referee=smoothed, rank=4),
    sampled("low_rank_nes", 500.0, weight="binary"),
    fixed("greedy_discrete", 288.0),
    fixed("greedy_discrete", 216.0, epsilon=0.2, levels=1, steps=3),
    fixed("greedy_discrete", 48.0, weight="binary"),
    fixed("multi_step_ste", 5.0, 5.0),
    fixed("multi_step_ste", 2.0, 2.0, surrogate="polynomial", steps=2, lr=0.5),
    fixed("multi_step_ste", 5.0, 5.0, weight="binary", weight_surrogate="polynomial"),
]  # fmt: skip
