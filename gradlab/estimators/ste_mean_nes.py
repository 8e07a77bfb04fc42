r"""NES around the point to which a straight-through step leads.

.. math:: \hat g \approx \nabla J(w - \text{step} \cdot g_{\mathrm{STE}}), \qquad
    J(\mu) = E f(\mu + \sigma\varepsilon)

The mean of the search distribution is moved along the STE direction, and what is returned is the
plain NES gradient there (:mod:`gradlab.estimators.nes`): unbiased for the gradient of the smoothed
loss *at the moved mean*, with NES's own variance. As an estimate of the gradient at w it is biased
by step times J's Hessian times the STE gradient, to first order. It is a look-ahead, as in
Nesterov's method and the extragradient: it asks which way is down from where STE is going, and
where the surrogate leads astray, it says so. With step 0 it is NES.

Cost: the population's forward passes, and one forward and one backward pass for the STE gradient.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=1)
>>> params = {"x": torch.ones(1, dtype=torch.float64)}
>>> generator = torch.Generator().manual_seed(0)
>>> estimator = STEMeanNES(population=10_000, step=0.2)
>>> estimate = estimator.estimate(objective, params, generator=generator)
>>> round(float(estimate.gradient["x"]), 1), estimate.forward_passes, estimate.backward_passes
(0.8, 10001.0, 1.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gradlab.binary.layers import Choice
from gradlab.estimators.base import GradientEstimate, NestedEstimates, finite, require_finite
from gradlab.estimators.nes import NES
from gradlab.estimators.ste import STE, surrogate_label
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class STEMeanNES(NestedEstimates):
    """NES whose search distribution has its mean moved along the STE direction.

    Args:
        surrogate: of the straight-through step, as for ``ste``.
        step: its lr: the mean is w - step·gradient.
        population: number of evaluations, or an ascending list of nested populations.
        sigma: standard deviation of the search distribution, in units of the weights.
        fitness: as for ``nes``.
        antithetic: members come in mirrored pairs.

    Raises:
        ValueError: an option out of range, or a parameter is not finite, before or after the step.
    """

    surrogate: Choice = "hardtanh"
    step: float = 0.1
    population: int | Sequence[int] = 500
    sigma: float = 0.1
    fitness: str = "centered"
    antithetic: bool = True

    def __post_init__(self) -> None:
        STE(self.surrogate)
        finite("step", self.step)
        self._nes()

    def _nes(self) -> NES:
        return NES(self.population, self.sigma, fitness=self.fitness, antithetic=self.antithetic)

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, all from one sample."""
        params = require_finite(params)
        first = STE(self.surrogate).estimate(objective, params, generator=generator)
        moved = {name: w - self.step * first.gradient[name] for name, w in params.items()}
        return [
            replace(
                estimate,
                forward_passes=estimate.forward_passes + first.forward_passes,
                backward_passes=first.backward_passes,
            )
            for estimate in self._nes().estimates(objective, moved, generator=generator)
        ]

    def label(self) -> str:
        """``STE-mean NES 500 hardtanh``, with options that are not the default."""
        text = f"STE-mean {self._nes().label()} {surrogate_label(self.surrogate)}"
        return text if self.step == 0.1 else f"{text} step={self.step:g}"
