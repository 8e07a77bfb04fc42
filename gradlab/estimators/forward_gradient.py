r"""Forward gradient: a directional derivative times its direction.

.. math:: \hat g = \frac1K \sum_{k=1}^{K} (g \cdot v_k)\,v_k, \qquad E[v v^\top] = I

(Baydin, Pearlmutter, Syme, Wood and Torr, "Gradients without Backpropagation", arXiv 2202.08587,
2022, definition 1), where :math:`g \cdot v` comes from one forward-mode pass and nothing is
backpropagated. The true gradient of a binarized network is zero almost everywhere, so g is here
the gradient through a *surrogate* derivative. The estimate is unbiased for that straight-through
gradient, and so has all the bias that STE has for anything else: it is STE with noise, for less
memory, and the question is what the noise costs.

Coordinate i has variance :math:`(\lVert g \rVert^2 + g_i^2)/K` with normal v, and
:math:`(\lVert g \rVert^2 - g_i^2)/K` with Rademacher signs, which no other independent coordinates
undercut; its cosine to g is about :math:`\sqrt{K/(d + K)}`. Cost by definition: one pass for the
values and one for every tangent, K + 1 forward passes. The surrogates are written for
backpropagation, so that this implementation backpropagates once and projects; the numbers are the
same.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("linear", num_dim=2)
>>> params = {"x": torch.zeros(2, dtype=torch.float64)}
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = ForwardGradient(directions=20_000).estimate(objective, params, generator=generator)
>>> [round(g) for g in estimate.gradient["x"].tolist()], estimate.forward_passes
([1, 10], 20001.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.binary.layers import Choice
from gradlab.estimators.base import GradientEstimate, OneEstimate, one_of, require_finite
from gradlab.estimators.mirrored import MEMBER_FLOATS, like
from gradlab.estimators.ste import STE, surrogate_label
from gradlab.evaluation import noise
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective

DISTRIBUTIONS = ("normal", "rademacher")


@dataclass(frozen=True)
class ForwardGradient(OneEstimate):
    """Directional derivatives of the surrogate network along random directions.

    Args:
        surrogate: the derivative in place of the sign's, as for ``ste``.
        directions: how many directions are averaged.
        distribution: "normal", as in the paper, or "rademacher".

    Raises:
        ValueError: an option out of range, or a parameter is not finite.
    """

    surrogate: Choice = "hardtanh"
    directions: int = 1
    distribution: str = "normal"

    def __post_init__(self) -> None:
        STE(self.surrogate)
        positive_integer("directions", self.directions)
        one_of("distribution", self.distribution, DISTRIBUTIONS)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The mean over the directions."""
        params = require_finite(params)
        surrogate = STE(self.surrogate).estimate(objective, params, generator=generator)
        gradient = pop.flatten(surrogate.gradient).double()
        key, size = noise.draw_key(generator), len(gradient)
        total = torch.zeros_like(gradient)
        for rows in pop.chunks(self.directions, MEMBER_FLOATS // size):
            drawn = noise.normal(key, rows, (0, size), device=gradient.device).double()
            if self.distribution == "rademacher":
                drawn = torch.where(drawn < 0, -1.0, 1.0).double()
            total += (drawn @ gradient) @ drawn
        return GradientEstimate(
            like(total / self.directions, params), forward_passes=1.0 + self.directions
        )

    def label(self) -> str:
        """``forward gradient (1 direction) hardtanh``, with options that are not the default."""
        text = f"forward gradient ({self.directions} direction{'s' * (self.directions > 1)}) "
        text += surrogate_label(self.surrogate)
        return text if self.distribution == "normal" else f"{text} {self.distribution}"
