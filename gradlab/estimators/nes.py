r"""Natural evolution strategies: the gradient of the loss smoothed by a Gaussian on the weights.

For :math:`w = \mu + \sigma\varepsilon`, :math:`\varepsilon \sim N(0, I)`, the smoothed loss
:math:`J(\mu, \sigma) = E f(w)` is differentiable even where f is a staircase, and

.. math:: \nabla_\mu J = \tfrac1\sigma E[f\varepsilon], \qquad
    \nabla_\sigma J = \tfrac1\sigma E[f(\varepsilon^2 - 1)], \qquad
    \nabla_{\log\sigma} J = E[f(\varepsilon^2 - 1)]

(Wierstra, Schaul, Glasmachers, Sun, Peters and Schmidhuber, "Natural Evolution Strategies", JMLR
15, 2014, equations 2-5). With raw or centred fitness the plain gradient is unbiased; its variance
falls as 1/population and grows with the number of weights, at the cost of ``population`` forward
passes. ``gradient`` chooses the metric:

- ``plain``: as above;
- ``natural``: divided by the Gaussian's own Fisher information: 1/σ² for μ, 2/σ² for σ and 2 for
  log σ;
- ``empirical_fisher``: divided by the Fisher information estimated from the same sample, jointly
  over all tensors, and ``empirical_fisher_per_tensor``: each tensor alone. It is the least-squares
  regression of the fitness on the noise, of minimum norm where there are fewer members than weights
  (``ridge`` in units of the true Fisher regularizes it; the rank is in the diagnostics). Biased.

``population`` may be a list: smaller populations are prefixes of the largest one's sample, so one
evaluation serves all; their estimates are correlated.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("linear", num_dim=2)
>>> params = {"x": torch.zeros(2, dtype=torch.float64)}
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = NES(population=20_000).estimate(objective, params, generator=generator)
>>> [round(g) for g in estimate.gradient["x"].tolist()], estimate.forward_passes
([1, 10], 20000.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.estimators.base import (
    GradientEstimate,
    NestedEstimates,
    above_zero,
    one_of,
    require_finite,
    split_half_diagnostics,
    true_or_false,
)
from gradlab.estimators.empirical_fisher import minimum_norm
from gradlab.estimators.fitness_shaping import FITNESS, shape
from gradlab.evaluation import gpu
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import GaussianPopulation, Params
from gradlab.objectives.base import Objective

GRADIENTS = ("plain", "natural", "empirical_fisher", "empirical_fisher_per_tensor")
SIGMA_GRADIENTS = ("none", "sigma", "log_sigma")
# Floats of noise regenerated at a time: 16 MiB.
_NOISE_FLOATS = 2**22


@dataclass(frozen=True)
class NES(NestedEstimates):
    """Weight-space natural evolution strategies.

    Args:
        population: number of evaluations (antithetic: half as many pairs), or an ascending list of
            nested populations.
        sigma: standard deviation of the search distribution, in units of the weights.
        gradient: "plain", "natural", "empirical_fisher" or "empirical_fisher_per_tensor".
        sigma_gradient: "none", "sigma" or "log_sigma": also the gradient in each coordinate's
            width.
        fitness: "raw", "centered", "z_score", "centered_rank" or "utilities".
        antithetic: members come in mirrored pairs.
        ridge: for the empirical Fisher, in units of the true Fisher information.
        rounded: members are rounded to bfloat16; the gradient still averages the noise before
            rounding, so it is biased by some thousandths of sigma.

    Raises:
        ValueError: an option out of range, an antithetic population that is not even, or, when
            estimating, rounding by more than a hundredth of sigma.
    """

    population: int | Sequence[int] = 500
    sigma: float = 0.1
    gradient: str = "plain"
    sigma_gradient: str = "none"
    fitness: str = "centered"
    antithetic: bool = True
    ridge: float = 0.0
    rounded: bool = False

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        one_of("gradient", self.gradient, GRADIENTS)
        one_of("sigma_gradient", self.sigma_gradient, SIGMA_GRADIENTS)
        one_of("fitness", self.fitness, FITNESS)
        true_or_false("antithetic", self.antithetic)
        true_or_false("rounded", self.rounded)
        if self.ridge != 0:
            above_zero("ridge", self.ridge)
        for size in self.sizes:
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"population is {size!r}: give a whole number of at least 1.")
            if self.antithetic and size % 2:
                raise ValueError(
                    f"population is {size}: mirrored pairs need an even number; give {size + 1}, "
                    "or antithetic = false."
                )
            if size == 1 and self.fitness != "raw":
                raise ValueError(
                    f'population is 1: {self.fitness} fitness compares members; use fitness = "raw"'
                    " or at least two members."
                )
            compared = self.sigma_gradient != "none" and self.fitness != "raw"
            if size == 2 and self.antithetic and compared:
                # both members have the same noise², and weights that sum to zero
                raise ValueError(
                    "population is 2: one mirrored pair has no sigma gradient under "
                    f'{self.fitness} fitness; use at least 4, or fitness = "raw".'
                )
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(
                f"population is {self.population!r}: give one number, or different numbers in "
                "ascending order."
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The nested population sizes."""
        sizes: Any = self.population
        return tuple(sizes) if isinstance(sizes, list | tuple) else (sizes,)

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, all from one sample."""
        params = require_finite(params)
        key = draw_key(generator)
        whole = GaussianPopulation(
            params,
            float(self.sigma),
            key,
            0,
            self.sizes[-1],
            antithetic=self.antithetic,
            rounded=self.rounded,
        )
        losses = objective.losses(whole)
        weights = torch.stack([row for size in self.sizes for row in self._weights(losses, size)])
        first, second = weighted_noise(whole, weights, second=self.sigma_gradient != "none")
        estimates = []
        for index, size in enumerate(self.sizes):
            rows = first[3 * index : 3 * index + 3] / self.sigma
            halves = [pop.unflatten(row, params) for row in rows[1:]]
            diagnostics = {}
            if size >= 8:
                diagnostics = split_half_diagnostics((halves[0], halves[1]), size)
            part = whole.part(0, size)
            gradient, more = self._metric(part, weights[3 * index, :size], rows[0], power=1)
            sigma_gradient = None
            if second is not None:
                raw = second[3 * index]
                if self.sigma_gradient == "sigma":
                    raw = raw / self.sigma
                sigma_gradient, _ = self._metric(part, weights[3 * index, :size], raw, power=2)
            estimates.append(
                GradientEstimate(
                    gradient=gradient,
                    sigma_gradient=sigma_gradient,
                    forward_passes=float(size),
                    diagnostics=diagnostics | more,
                )
            )
        return estimates

    def _weights(self, losses: Tensor, size: int) -> list[Tensor]:
        """Rows that average the noise of a population and of its two halves, zero beyond it."""
        rows = []
        unit = 2 if self.antithetic else 1
        owner = torch.arange(size, device=losses.device) // unit % 2
        everyone = torch.ones(size, dtype=torch.bool, device=losses.device)
        for chosen in (everyone, owner == 0, owner == 1):
            row = torch.zeros_like(losses)
            indices = chosen.nonzero()[:, 0]
            if size >= 8 or len(indices) == size:
                shaped = shape(losses[indices], self.fitness, antithetic=self.antithetic)
                row[indices] = shaped / len(indices)
            rows.append(row)
        return rows

    def _metric(
        self, whole: GaussianPopulation, weights: Tensor, plain: Tensor, power: int
    ) -> tuple[Params, dict[str, float]]:
        """A flat plain gradient in the chosen metric, unflattened."""
        sigma, params = self.sigma, whole.mean
        # The Fisher information of mu, of sigma and of log sigma.
        fisher = 1 / sigma**2
        if power == 2:
            fisher = 2.0 if self.sigma_gradient == "log_sigma" else 2 / sigma**2
        more: dict[str, float] = {}
        if self.gradient == "natural":
            plain = plain / fisher
        elif self.gradient.startswith("empirical_fisher"):
            per_tensor = self.gradient.endswith("per_tensor")
            scale = 1.0 if power == 2 and self.sigma_gradient == "log_sigma" else sigma
            plain, ranks = minimum_norm(
                whole, weights * len(weights), power, per_tensor=per_tensor, ridge=self.ridge
            )
            plain = plain * scale
            suffix = "" if power == 1 else "_sigma"
            more = {f"fisher_rank{suffix}/{name}": float(rank) for name, rank in ranks.items()}
        gradient = {
            name: tensor.to(params[name].dtype)
            for name, tensor in pop.unflatten(plain, params).items()
        }
        return gradient, more

    def label(self) -> str:
        """``NES 500``, with options that are not the default."""
        text = "NES " + "/".join(str(size) for size in self.sizes)
        text += "" if self.sigma == 0.1 else f" σ={self.sigma:g}"
        text += "" if self.gradient == "plain" else f" {self.gradient.replace('_', ' ')}"
        text += "" if self.fitness == "centered" else f" {self.fitness.replace('_', ' ')}"
        text += "" if self.ridge == 0 else f" ridge={self.ridge:g}"
        text += " rounded" if self.rounded else ""
        return text + ("" if self.antithetic else " not antithetic")


def weighted_noise(
    population: GaussianPopulation, weights: Tensor, *, second: bool
) -> tuple[Tensor, Tensor | None]:
    r""":math:`\sum_i w_i\varepsilon_i` and, if asked, :math:`\sum_i w_i(\varepsilon_i^2 - 1)`.

    The noise is regenerated a few members at a time and never stored.

    Args:
        population: whose noise.
        weights: ``(R, P)``: R weighted sums at once.
        second: whether to return the second sum.

    Returns:
        ``(R, d)`` float64 each.
    """
    if weights.is_cuda and gpu.available(weights.device) is None:
        return gpu.weighted_noise(population, weights, second=second)
    size = pop.num_coordinates(population.mean)
    first_sum = torch.zeros(len(weights), size, dtype=torch.float64, device=weights.device)
    second_sum = torch.zeros_like(first_sum) if second else None
    if population.antithetic:
        # A mirrored pair shares its noise: generate it once. A part may begin or end within one.
        start, stop = population.start, population.stop
        pairs = F.pad(weights, (start % 2, stop % 2)).reshape(len(weights), -1, 2)
        signed, squared = pairs[..., 0] - pairs[..., 1], pairs[..., 0] + pairs[..., 1]
        population = GaussianPopulation(
            population.mean, population.sigma, population.key, start // 2, (stop + 1) // 2
        )
    else:
        signed = squared = weights
    for low, high in pop.chunks(len(population), max(1, _NOISE_FLOATS // size)):
        noise = population.part(low, high).noise()
        first_sum += signed[:, low:high].to(noise.dtype) @ noise
        if second_sum is not None:
            second_sum += squared[:, low:high].to(noise.dtype) @ (noise.square() - 1)
    return first_sum, second_sum
