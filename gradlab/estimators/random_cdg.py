r"""Coordinate discrete gradient on a random few of the coordinates.

.. math:: \hat g_i = \frac{d}{k}\,m_i\,\mathrm{CDG}_i,
    \qquad m \text{ one of the } k\text{-subsets of } d \text{ coordinates, uniformly}

Each coordinate is drawn with probability k/d, so that the estimate is unbiased for the coordinate
discrete gradient (:mod:`gradlab.estimators.cdg`) of the same epsilon, with variance
:math:`(d/k - 1)\,\mathrm{CDG}_i^2`: randomized block coordinate descent (Nesterov, "Efficiency of
Coordinate Descent Methods on Huge-Scale Optimization Problems", SIAM Journal on Optimization 22(2),
2012), with a difference in place of the derivative. With ``scaled=False`` the drawn coordinates
keep their differences and the others are zero: no estimate of the gradient but a part of it, of
expectation k/d times CDG.

Cost: 2k forward passes, which is also what is computed: for most of the coordinates of an MLP, all
of them by sparse flips, as CDG has them, are quicker.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("linear", num_dim=4)
>>> params = {"x": torch.zeros(4, dtype=torch.float64)}
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = RandomCDG(coordinates=2).estimate(objective, params, generator=generator)
>>> [round(g, 6) for g in estimate.gradient["x"].tolist()], estimate.forward_passes
([0.0, 0.0, 14.0, 20.0], 4.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.estimators.base import (
    GradientEstimate,
    OneEstimate,
    above_zero,
    require_finite,
    true_or_false,
)
from gradlab.estimators.mirrored import MEMBER_FLOATS, like, surroundings
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class RandomCDG(OneEstimate):
    """Central differences along randomly chosen coordinates.

    Args:
        coordinates: k, how many; all of them if there are not so many.
        epsilon: half-width of the difference, in units of the weights.
        scaled: times d/k, so that the expectation is the whole coordinate discrete gradient.

    Raises:
        ValueError: an option out of range, or a parameter is not finite.
    """

    coordinates: int = 32
    epsilon: float = 0.1
    scaled: bool = True

    def __post_init__(self) -> None:
        positive_integer("coordinates", self.coordinates)
        above_zero("epsilon", self.epsilon)
        true_or_false("scaled", self.scaled)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The differences of one subset."""
        params = require_finite(params)
        size = pop.num_coordinates(params)
        chosen = min(self.coordinates, size)
        device = next(iter(params.values())).device
        # drawn on the processor, whose numbers do not depend on the machine
        draws = torch.Generator().manual_seed(draw_key(generator) % 2**63)
        subset = torch.randperm(size, generator=draws)[:chosen].to(device)
        gradient = torch.zeros(size, dtype=torch.float64, device=device)
        for low, high in pop.chunks(chosen, MEMBER_FLOATS // (2 * size)):
            steps = torch.zeros(high - low, size, dtype=torch.float64, device=device)
            steps[torch.arange(high - low, device=device), subset[low:high]] = self.epsilon
            losses = objective.losses(surroundings(params, torch.cat((steps, -steps))))
            difference = losses[: high - low] - losses[high - low :]
            gradient[subset[low:high]] = difference / (2 * self.epsilon)
        if self.scaled:
            gradient *= size / chosen
        return GradientEstimate(like(gradient, params), forward_passes=2.0 * chosen)

    def label(self) -> str:
        """``random CDG (32 coordinates)``, with options that are not the default."""
        text = f"random CDG ({self.coordinates} coordinate{'s' * (self.coordinates > 1)})"
        text += "" if self.epsilon == 0.1 else f" ε={self.epsilon:g}"
        return text if self.scaled else f"{text} unscaled"
