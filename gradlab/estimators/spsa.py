r"""Simultaneous perturbation: every weight moved by ±epsilon at once.

.. math:: \hat g = \frac{2}{P} \sum_{k=1}^{P/2}
    \frac{f(w + \varepsilon\Delta_k) - f(w - \varepsilon\Delta_k)}{2\varepsilon}\,\Delta_k^{-1},
    \qquad \Delta_{ki} = \pm 1

(Spall, "Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient
Approximation", IEEE Transactions on Automatic Control 37(3), 1992; his :math:`c_k` is
``epsilon``). Its expectation is known exactly: coordinate i of it is the coordinate discrete
gradient (:mod:`gradlab.estimators.cdg`) of half-width epsilon, averaged over all ways to move every
*other* weight by ±epsilon. It is unbiased for that and for the gradient of a quadratic function;
it is biased for the CDG at w itself, and for the gradient of the loss smoothed by a Gaussian, which
NES estimates: both have other moments than a sign, from the third derivative on.

On a linear f coordinate i has variance :math:`\sum_{j \neq i} g_j^2 / (P/2)`: that of mirrored NES
less :math:`2g_i^2`, since a sign has no length to vary. Cost: P forward passes.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("linear", num_dim=2)
>>> params = {"x": torch.zeros(2, dtype=torch.float64)}
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = SPSA(population=20_000).estimate(objective, params, generator=generator)
>>> [round(g) for g in estimate.gradient["x"].tolist()], estimate.forward_passes
([1, 10], 20000.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, NestedEstimates, above_zero, require_finite
from gradlab.estimators.mirrored import mirrored_estimates, nested_sizes
from gradlab.evaluation import noise
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class SPSA(NestedEstimates):
    """Simultaneous perturbation stochastic approximation of the gradient.

    Args:
        population: number of evaluations, two for each drawn Δ, or an ascending list of nested
            populations.
        epsilon: how far every weight is moved, in units of the weights.

    Raises:
        ValueError: an option out of range, or a parameter is not finite.
    """

    population: int | Sequence[int] = 500
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        nested_sizes(self.population)
        above_zero("epsilon", self.epsilon)

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, all from one sample."""
        params = require_finite(params)
        key = noise.draw_key(generator)
        coordinates = (0, pop.num_coordinates(params))
        device = next(iter(params.values())).device

        def steps(low: int, high: int) -> Tensor:
            drawn = noise.normal(key, (low, high), coordinates, device=device)
            return self.epsilon * torch.where(drawn < 0, -1.0, 1.0).double()

        sizes = nested_sizes(self.population)
        return mirrored_estimates(objective, params, sizes, steps, lambda d: d / self.epsilon**2)

    def label(self) -> str:
        """``SPSA 500``, with epsilon where it is not 0.1."""
        text = "SPSA " + "/".join(str(size) for size in nested_sizes(self.population))
        return text if self.epsilon == 0.1 else f"{text} ε={self.epsilon:g}"
