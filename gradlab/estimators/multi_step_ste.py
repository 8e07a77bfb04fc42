r"""Several straight-through steps in the place of one.

From :math:`w_0 = w`, k steps of lr/k:

.. math:: w_{j+1} = w_j - \tfrac{\mathrm{lr}}{k}\,g_{\mathrm{STE}}(w_j), \qquad
    \hat g = \frac{w_0 - w_k}{\mathrm{lr}} = \frac1k \sum_{j < k} g_{\mathrm{STE}}(w_j)

A single step of lr along the result ends at :math:`w_k`, so that one long step and several short
ones are compared at the same lr and within the same budget of length: what is gained is what the
straight-through gradient learns on the way, where signs have flipped. The estimate is the mean of
the STE gradients along the path, unbiased for nothing; with one step it is ``ste``, and for
small lr it approaches it. On a quadratic of curvature c it is
:math:`(1 - (1 - c\,\mathrm{lr}/k)^k)\,w/\mathrm{lr}`. Deterministic but for surrogates that draw.

Cost: k forward and k backward passes.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=1)
>>> params = {"x": torch.ones(1, dtype=torch.float64)}
>>> estimator = MultiStepSTE(steps=2, lr=1.0)
>>> estimate = estimator.estimate(objective, params, generator=torch.Generator())
>>> float(estimate.gradient["x"]), estimate.backward_passes
(0.75, 2.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.binary.layers import Choice
from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, require_finite
from gradlab.estimators.ste import STE
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class MultiStepSTE(OneEstimate):
    """The mean straight-through gradient along a path of short steps.

    Args:
        surrogate: as for ``ste``.
        weight_surrogate: as for ``ste``.
        steps: k, how many.
        lr: of all steps together.

    Raises:
        ValueError: an option out of range, or a parameter is not finite.
    """

    surrogate: Choice = "hardtanh"
    weight_surrogate: Choice | None = None
    steps: int = 5
    lr: float = 0.1

    def __post_init__(self) -> None:
        STE(self.surrogate, self.weight_surrogate)
        positive_integer("steps", self.steps)
        above_zero("lr", self.lr)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The displacement over lr."""
        params = require_finite(params)
        ste = STE(self.surrogate, self.weight_surrogate)
        # the mean gradient, not a difference of weights, which would lose its last digits
        total = {name: torch.zeros_like(w) for name, w in params.items()}
        for _ in range(self.steps):
            here = {name: w - self.lr / self.steps * total[name] for name, w in params.items()}
            gradient = ste.estimate(objective, here, generator=generator).gradient
            total = {name: total[name] + gradient[name] for name in params}
        return GradientEstimate(
            {name: tensor / self.steps for name, tensor in total.items()},
            forward_passes=float(self.steps),
            backward_passes=float(self.steps),
        )

    def label(self) -> str:
        """``multi-step STE hardtanh (5 steps)``, with options that are not the default."""
        text = f"multi-step {STE(self.surrogate, self.weight_surrogate).label()}"
        text += f" ({self.steps} step{'s' * (self.steps > 1)})"
        return text if self.lr == 0.1 else f"{text} lr={self.lr:g}"
