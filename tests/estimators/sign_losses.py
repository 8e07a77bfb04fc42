"""Losses of a few signs, small enough to enumerate, and exact moments of their estimators.

An estimate from losses alone depends on the drawn signs and on nothing else, unless it uses the
noise behind them. So one seed for each pattern of signs gives its whole distribution: the mean and
the variance are sums over patterns, without sampling error.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlab import estimators
from gradlab.binary import surrogates
from gradlab.evaluation import GaussianPopulation, Params, Population, noise
from gradlab.evaluation import population as pop
from tests.estimators import referees

SIGMA = 0.5


def mean_weights(*values: float) -> Params:
    return {"w": torch.tensor(values, dtype=torch.float64)}


@dataclass(frozen=True)
class SignTable:
    """A loss of its own for every pattern of signs: nothing in it is smooth."""

    table: Tensor  # (2,) * d
    binary_weights: tuple[str, ...] = ("w",)

    @classmethod
    def random(cls, dim: int) -> SignTable:
        draw = torch.randn((2,) * dim, generator=torch.Generator().manual_seed(1))
        return cls(draw.double() + 3)  # far from zero, where a baseline matters

    def losses(self, population: Population) -> Tensor:
        plus = (pop.members(population)["w"] >= 0).long()
        return self.table[tuple(plus.mT)]

    def decreases(self, params: Params, population: Population) -> Tensor:
        return self.losses({"w": params["w"][None]}) - self.losses(population)

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        steps = epsilon * torch.eye(len(params["w"]), dtype=params["w"].dtype)
        up, down = ({"w": params["w"] + step} for step in (steps, -steps))
        return {"w": self.losses(up) - self.losses(down)}


@dataclass(frozen=True)
class SignPolynomial:
    """b·c + b·A·b + Σ k b³, with derivatives between the signs."""

    linear: Tensor
    quadratic: Tensor
    cubic: Tensor
    binary_weights: tuple[str, ...] = ("w",)

    def value(self, signs: Tensor) -> Tensor:
        square = ((signs @ self.quadratic) * signs).sum(dim=-1)
        return signs @ self.linear + square + signs**3 @ self.cubic

    def surrogate_gradient(
        self, params: Params, surrogate: Any, weight_surrogate: Any = None
    ) -> Params:
        leaf = params["w"].clone().requires_grad_()
        loss = self.value(surrogates.binarize(leaf, weight_surrogate))
        return {"w": torch.autograd.grad(loss, leaf)[0]}

    @property
    def table(self) -> SignTable:
        patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(self.linear))))
        return SignTable(self.value(patterns.double()).reshape((2,) * len(self.linear)))


def exact_gradient(table: Tensor, mean: Tensor, sigma: float = SIGMA) -> Tensor:
    """Of Σ P(b) f(b), by autograd."""
    mean = mean.clone().requires_grad_()
    expected = table
    for ratio in mean / sigma:
        expected = referees.distribution(-ratio) * expected[0] + (
            referees.distribution(ratio) * expected[1]
        )
    return torch.autograd.grad(expected, mean)[0]


def members(params: Params, seed: int, size: int, *, antithetic: bool) -> GaussianPopulation:
    """The population that an estimator draws with this seed."""
    key = noise.draw_key(torch.Generator().manual_seed(seed))
    return GaussianPopulation(params, SIGMA, key, 0, size, antithetic=antithetic)


def by_pattern(
    name: str, objective: Any, params: Params, options: Mapping[str, Any], *, pairs: bool = False
) -> dict[tuple[tuple[bool, ...], ...], Tensor]:
    """The estimate for every pattern of signs, of one member or of a mirrored pair."""
    dim = len(params["w"])
    found: dict[tuple[tuple[bool, ...], ...], Tensor] = {}
    estimator = estimators.create(name, sigma=SIGMA, **options)
    for seed in range(4000):
        drawn = members(params, seed, 2 if pairs else 1, antithetic=pairs).members()["w"] >= 0
        pattern = tuple(tuple(row) for row in drawn.tolist())
        if pattern not in found:
            generator = torch.Generator().manual_seed(seed)
            found[pattern] = estimator.estimate(objective, params, generator=generator).gradient[
                "w"
            ]
        if len(found) == (3 if pairs else 2) ** dim:
            return found
    raise AssertionError(f"only {len(found)} patterns were drawn")


def moments(found: Mapping[Any, Tensor], mean: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and second moment of an estimate over all patterns."""
    ratio = mean / SIGMA
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for pattern, gradient in found.items():
        chance = pattern_probability(torch.tensor(pattern), ratio)
        first, second = first + chance * gradient, second + chance * gradient**2
    return first, second


def pattern_probability(pattern: Tensor, ratio: Tensor) -> Tensor:
    """Of one member's signs ``(1, d)``, or of both of a mirrored pair ``(2, d)``."""
    if len(pattern) == 1:
        return referees.distribution(torch.where(pattern[0], ratio, -ratio)).prod()
    rare = referees.distribution(-ratio.abs())
    common = torch.where(pattern[0] == (ratio >= 0), 1 - 2 * rare, 0 * rare)
    return torch.where(pattern[0] != pattern[1], rare, common).prod()
