r"""Coordinate discrete gradient: a central difference along every weight.

.. math:: \mathrm{CDG}_i = \frac{L(w + \varepsilon e_i) - L(w - \varepsilon e_i)}{2\varepsilon}

(Kim, Kim and Kim, "BinaryDuo: Reducing Gradient Mismatch in Binary Activation Network by Coupling
Binary Activations", ICLR 2020, section 3). It is exactly the derivative of the loss smoothed by a
box of half-width ε along that coordinate alone, so ε is part of what is measured: small ε sees only
the few examples near a threshold, large ε smooths the landscape away.

Deterministic given the batch; no variance over repeats, but with few examples the batch's own
sampling noise remains. Cost by definition: two forward passes per coordinate. The MLP's own
implementation (:mod:`gradlab.evaluation.coordinates`) needs about as many as there are neurons.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=2)
>>> params = {"x": torch.tensor([1.0, -2.0], dtype=torch.float64)}
>>> estimate = CDG(epsilon=0.5).estimate(objective, params, generator=torch.Generator())
>>> [round(g, 9) for g in estimate.gradient["x"].tolist()], estimate.forward_passes
([1.0, -20.0], 4.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, require_finite
from gradlab.evaluation.population import Params, num_coordinates
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class CDG(OneEstimate):
    """Central differences of width ``epsilon`` along every coordinate.

    Args:
        epsilon: half-width of the difference, in units of the weights.

    Raises:
        ValueError: epsilon is not a finite number above zero, or a parameter is not finite.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        above_zero("epsilon", self.epsilon)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The coordinate discrete gradient; the generator is not used."""
        params = require_finite(params)
        differences = objective.coordinate_differences(params, float(self.epsilon))
        gradient = {
            name: (difference / (2 * self.epsilon)).to(params[name].dtype)
            for name, difference in differences.items()
        }
        return GradientEstimate(gradient, forward_passes=2.0 * num_coordinates(params))

    def label(self) -> str:
        """``CDG``, with epsilon where it is not 0.1."""
        return "CDG" if self.epsilon == 0.1 else f"CDG ε={self.epsilon:g}"
