r"""NES with perturbations of low rank: EGGROLL.

A weight matrix (m x n) is perturbed by

.. math:: E = \tfrac{1}{\sqrt r} A B^\top, \qquad A \in R^{m \times r},\ B \in R^{n \times r}
    \text{ with standard normal entries}

and the estimate is that of mirrored NES with E as if it were Gaussian noise,
:math:`\hat g = \frac{1}{\sigma P}\sum_k E_k (f(w + \sigma E_k) - f(w - \sigma E_k))` over P/2 pairs
(Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652, 2025). Vectors, and
matrices no larger than r on one side, get Gaussian noise, which costs no more numbers there; with r
as large as every matrix this is NES. Convolutions are matrices (out, in·height·width).

The entries of E have mean zero, variance 1 and no correlation, which the factor
:math:`1/\sqrt r` sees to, so that the estimate is **unbiased for the gradient of linear and
quadratic f**. The entries are not independent, and each has the fourth moment 3 + 6/r, where a
Gaussian has 3. So for other f it is unbiased neither for the gradient of the Gaussian-smoothed loss
nor for that of the loss smoothed by E, whose score is not E: f = w³ gives
:math:`3w^2 + (3 + 6/r)\sigma^2`, NES :math:`3w^2 + 3\sigma^2`. The difference falls as 1/r. The
average over the population has full rank.

Its purpose is speed: r(m + n) numbers per member instead of mn, and products with thin matrices.
Here members are written out as whole matrices, so that what is measured is the estimate alone. Cost
by definition: P forward passes.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=256, seed=0)
>>> params = objective.initial_params(seed=0)
>>> estimator = LowRankNES(population=[10, 100], rank=2)
>>> estimates = estimator.estimates(objective, params, generator=torch.Generator().manual_seed(0))
>>> [estimate.forward_passes for estimate in estimates]
[10.0, 100.0]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, NestedEstimates, above_zero, require_finite
from gradlab.estimators.mirrored import mirrored_estimates, nested_sizes
from gradlab.evaluation import noise
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class LowRankNES(NestedEstimates):
    """Mirrored NES whose noise on matrices has low rank.

    Args:
        population: number of evaluations, two per pair, or an ascending list of nested populations.
        sigma: standard deviation of every weight, in units of the weights.
        rank: r, of a matrix's perturbation.

    Raises:
        ValueError: an option out of range, or a parameter is not finite.
    """

    population: int | Sequence[int] = 500
    sigma: float = 0.1
    rank: int = 1

    def __post_init__(self) -> None:
        nested_sizes(self.population)
        above_zero("sigma", self.sigma)
        positive_integer("rank", self.rank)

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, all from one sample."""
        params = require_finite(params)
        key = noise.draw_key(generator)
        device = next(iter(params.values())).device

        def steps(low: int, high: int) -> Tensor:
            parts, start = [], 0
            for tensor in params.values():
                count = self._numbers(tensor)
                drawn = noise.normal(key, (low, high), (start, start + count), device=device)
                parts.append(self._perturbations(drawn.double(), tensor))
                start += count
            return self.sigma * torch.cat(parts, dim=1)

        sizes = nested_sizes(self.population)
        return mirrored_estimates(objective, params, sizes, steps, lambda d: d / self.sigma**2)

    def _numbers(self, tensor: Tensor) -> int:
        """How many normals make one perturbation."""
        if not self._low(tensor):
            return tensor.numel()
        return self.rank * (len(tensor) + tensor.numel() // len(tensor))

    def _low(self, tensor: Tensor) -> bool:
        return tensor.dim() > 1 and min(len(tensor), tensor.numel() // len(tensor)) > self.rank

    def _perturbations(self, drawn: Tensor, tensor: Tensor) -> Tensor:
        """Unit-variance perturbations ``(P, numel)`` from standard normals ``(P, numbers)``."""
        if not self._low(tensor):
            return drawn
        split = self.rank * len(tensor)
        left = drawn[:, :split].reshape(len(drawn), -1, self.rank)
        right = drawn[:, split:].reshape(len(drawn), -1, self.rank)
        return (left @ right.mT / math.sqrt(self.rank)).flatten(1)

    def label(self) -> str:
        """``low-rank NES 500 (rank 1)``, with sigma where it is not 0.1."""
        text = "low-rank NES " + "/".join(str(size) for size in nested_sizes(self.population))
        text += "" if self.sigma == 0.1 else f" σ={self.sigma:g}"
        return f"{text} (rank {self.rank})"
