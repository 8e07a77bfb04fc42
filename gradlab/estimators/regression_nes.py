r"""The gradient as the slope of a regression of the loss on the noise.

.. math:: \min_{c,\,g}\ \sum_i \bigl(f(w + \sigma\varepsilon_i) - c - \sigma\,g\cdot\varepsilon_i
    \bigr)^2 + \lambda P\,\sigma^2 \lVert g \rVert^2, \qquad \varepsilon_i \sim N(0, I)

By Stein's identity the slope of the best linear fit in expectation is the smoothed gradient
:math:`\nabla J = E[f\varepsilon]/\sigma`, so the regression estimates what NES estimates, but with
the sample's own covariance of the noise in place of I: the part of NES's variance that comes from
the noise not being orthogonal is gone. With as many evaluations as there are unknowns it is
**exact**: on linear f for P > d, and with mirrored pairs, where all that is even cancels, on
quadratic f too, for P ≥ 2d. Otherwise it is biased by O(1/P) at P > d; below that the minimum-norm
solution is the gradient projected on the noise, of expectation
:math:`\tfrac{r}{d}\nabla f` for linear f, with r the number of independent rows (P/2 mirrored, else
P - 1). ``ridge`` (λ) shrinks it further.

It is NES's empirical-Fisher gradient (:mod:`gradlab.estimators.empirical_fisher`) over σ², with an
intercept: without mirrored pairs the noise is centred as well as the loss, or a linear f would not
be exact. It is the linear response-surface model of simulation optimization (Box and Wilson, 1951)
around w. Cost: P forward passes, and a system of min(P, d) equations.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=2)
>>> params = {"x": torch.tensor([1.0, -2.0], dtype=torch.float64)}
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = RegressionNES(population=4).estimate(objective, params, generator=generator)
>>> [round(g, 5) for g in estimate.gradient["x"].tolist()], estimate.forward_passes
([1.0, -20.0], 4.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, NestedEstimates, require_finite
from gradlab.estimators.empirical_fisher import _LARGEST, minimum_norm
from gradlab.estimators.mirrored import MEMBER_FLOATS, like
from gradlab.estimators.nes import NES
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import GaussianPopulation, Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class RegressionNES(NestedEstimates):
    """Least squares of the losses on the noise of the weights.

    Args:
        population: number of evaluations, or an ascending list of nested populations.
        sigma: standard deviation of the search distribution, in units of the weights.
        ridge: λ, in units of the noise's true second moment.
        antithetic: members come in mirrored pairs.

    Raises:
        ValueError: an option out of range, a parameter is not finite, or the system is too large.
    """

    population: int | Sequence[int] = 500
    sigma: float = 0.1
    ridge: float = 0.0
    antithetic: bool = True

    def __post_init__(self) -> None:
        self._nes()

    def _nes(self) -> NES:
        return NES(self.population, self.sigma, ridge=self.ridge, antithetic=self.antithetic)

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, all from one sample."""
        params = require_finite(params)
        sizes = self._nes().sizes
        rows = sizes[-1] // 2 if self.antithetic else sizes[-1]
        if min(rows, pop.num_coordinates(params)) ** 2 > _LARGEST:
            raise ValueError(
                f"a regression of {sizes[-1]} losses on {pop.num_coordinates(params)} coordinates "
                "is too large to solve: use a smaller population, or nes."
            )
        whole = GaussianPopulation(
            params, float(self.sigma), draw_key(generator), 0, sizes[-1], antithetic=self.antithetic
        )
        losses = objective.losses(whole)
        estimates = []
        for size in sizes:
            noise, fitness = _centered(whole.part(0, size), losses[:size])
            slope, ranks = minimum_norm(noise, fitness, 1, per_tensor=False, ridge=self.ridge)
            estimates.append(
                GradientEstimate(
                    like(slope / self.sigma, params),
                    forward_passes=float(size),
                    diagnostics={"regression_rank": float(ranks["all"])},
                )
            )
        return estimates

    def label(self) -> str:
        """``regression NES 500``, with options that are not the default."""
        return f"regression {self._nes().label()}"


def _centered(population: GaussianPopulation, losses: Tensor) -> tuple[GaussianPopulation, Tensor]:
    """The noise and the losses without their means: what an intercept leaves of both.

    The noise of mirrored pairs has mean zero: there one row for a pair, with half of its difference
    in loss, says the same.
    """
    mean, sigma, key, size = population.mean, population.sigma, population.key, len(population)
    if population.antithetic:
        halves = (losses[0::2] - losses[1::2]) / 2
        return GaussianPopulation(mean, sigma, key, 0, size // 2), halves
    width = pop.num_coordinates(mean)
    average = torch.zeros(width, dtype=torch.float64, device=losses.device)
    for low, high in pop.chunks(size, MEMBER_FLOATS // width):
        # in float64: what rounding left of the average would pass for one more independent row
        average += population.part(low, high).noise().double().sum(dim=0) / size
    return _CenteredNoise(mean, sigma, key, 0, size, average=average), losses - losses.mean()


@dataclass(frozen=True)
class _CenteredNoise(GaussianPopulation):
    """A population whose noise is given less its average, float64."""

    average: Tensor | float = 0.0

    def noise(self, coordinates: tuple[int, int] | None = None) -> Tensor:
        low, high = coordinates or (0, pop.num_coordinates(self.mean))
        assert isinstance(self.average, Tensor)
        return super().noise((low, high)).double() - self.average[low:high]
