r"""Greedy discrete gradient: the cheapest moves of single weights by which the loss falls.

A binarized network's loss is a staircase in its hidden weights, so that a small move does nothing
and a slope says little about the next step down. This looks for the steps themselves:

1. of every coordinate, the smallest δ among :math:`\varepsilon/m, 2\varepsilon/m, \dots,
   \varepsilon` (``levels`` m) at which :math:`f(w \pm \delta e_i) < f(w)`; if both signs fall,
   that which falls further;
2. coordinates are ranked by their decrease per δ²;
3. in this order they are moved together, as long as :math:`\sum \delta^2 \le \varepsilon^2`.

That is the greedy rule of the knapsack problem (Dantzig, "Discrete-variable extremum problems",
Operations Research 5(2), 1957) with δ² as weight, which would be optimal, but for the last item, if
decreases added up. They do not: two moves that flip the same example are counted twice. ``steps``
therefore splits the budget: that many rounds of :math:`\varepsilon/\text{steps}` each, every one
from where the one before ended, within the same distance ε of w. Weights in which the loss is
smooth, those of the output layer, fall at the smallest δ already and are therefore served first.

What is returned as the gradient is **minus the whole step**: a direction and a length, no estimate
of a derivative, unbiased for nothing. A step of lr 1 along it makes exactly these moves, of lr ½
half of each, which may no longer reach the next stair. Deterministic; zero where no move of a
single weight helps.

Cost by definition: 2·levels·d forward passes for each round. Coordinates that have fallen are not
evaluated at larger δ.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("linear", num_dim=5)
>>> params = {"x": torch.zeros(5, dtype=torch.float64)}
>>> estimator = GreedyDiscrete(epsilon=0.1, levels=2)
>>> estimate = estimator.estimate(objective, params, generator=torch.Generator())
>>> [round(g, 9) for g in estimate.gradient["x"].tolist()], estimate.forward_passes
([0.0, 0.05, 0.05, 0.05, 0.05], 20.0)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, require_finite
from gradlab.estimators.mirrored import MEMBER_FLOATS, like, surroundings
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class GreedyDiscrete(OneEstimate):
    """Minus the step that greedily combines the moves of single weights that lower the loss.

    Args:
        epsilon: length of the whole step, and the largest move of a weight, in units of the
            weights.
        levels: how many δ are tried in either direction.
        steps: rounds among which epsilon is split.

    Raises:
        ValueError: an option out of range, or a parameter or a loss is not finite.
    """

    epsilon: float = 0.1
    levels: int = 4
    steps: int = 1

    def __post_init__(self) -> None:
        above_zero("epsilon", self.epsilon)
        positive_integer("levels", self.levels)
        positive_integer("steps", self.steps)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """Minus the step; the generator is not used."""
        params = require_finite(params)
        first = next(iter(params.values()))
        size = pop.num_coordinates(params)
        step = torch.zeros(size, dtype=torch.float64, device=first.device)
        moved = 0
        for _ in range(self.steps):
            here = {name: w[0] for name, w in surroundings(params, step[None]).items()}
            moves, decreases = self._moves(objective, here)
            chosen = self._affordable(moves, decreases)
            step[chosen] += moves[chosen]
            moved += len(chosen)
        return GradientEstimate(
            like(0 - step, params),  # no negative zeros
            forward_passes=2.0 * self.levels * size * self.steps,
            diagnostics={"moves": float(moved)},
        )

    def _moves(self, objective: Objective, params: Params) -> tuple[Tensor, Tensor]:
        """The smallest move of every coordinate that lowers the loss, and by how much; or zeros."""
        size = pop.num_coordinates(params)
        device = next(iter(params.values())).device
        moves, decreases = torch.zeros(2, size, dtype=torch.float64, device=device)
        for level in range(1, self.levels + 1):
            length = self.epsilon / self.steps * (level / self.levels)
            (left,) = (decreases == 0).nonzero(as_tuple=True)
            for low, high in pop.chunks(len(left), MEMBER_FLOATS // (2 * size)):
                index = left[low:high]
                trials = torch.zeros(len(index), size, dtype=torch.float64, device=device)
                trials[torch.arange(len(index), device=device), index] = length
                found = objective.decreases(
                    params, surroundings(params, torch.cat((trials, -trials)))
                )
                up, down = found.reshape(2, -1)
                if found.isnan().any():
                    # comparisons with it are false: it would pass for a loss that no move lowers
                    raise ValueError(
                        "the loss, or that of a single move, is NaN: estimate before the run "
                        "diverges."
                    )
                best = torch.maximum(up, down).clamp_min(0)
                decreases[index] = best
                signs = torch.where(up >= down, 1.0, -1.0).double()
                moves[index] = length * signs * (best > 0)
        return moves, decreases

    def _affordable(self, moves: Tensor, decreases: Tensor) -> Tensor:
        """Coordinates in the order of their decrease per squared length, up to the budget."""
        (falling,) = (decreases > 0).nonzero(as_tuple=True)
        worth = decreases[falling] / moves[falling].square()
        order = falling[torch.argsort(worth, descending=True, stable=True)]
        # a hair above, for a sum that would be the budget but for rounding
        budget = (self.epsilon / self.steps) ** 2 * (1 + 1e-9)
        return order[moves[order].square().cumsum(dim=0) <= budget]

    def label(self) -> str:
        """``greedy discrete``, with options that are not the default."""
        text = "greedy discrete"
        text += "" if self.epsilon == 0.1 else f" ε={self.epsilon:g}"
        text += "" if self.levels == 4 else f" {self.levels} level{'s' * (self.levels > 1)}"
        return text if self.steps == 1 else f"{text} ({self.steps} steps)"
