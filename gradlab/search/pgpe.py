r"""Parameter-exploring policy gradients with symmetric sampling.

Sehnke, Osendorfer, Rückstieß, Graves, Peters and Schmidhuber, "Parameter-exploring policy
gradients", Neural Networks 23, 2010. Members are mirrored pairs
:math:`x^\pm = \mu \pm \sigma \odot \varepsilon`. With losses :math:`f^\pm`, their mean
:math:`\bar f`, the baseline b and :math:`f_*` the lowest loss of all generations, steps
proportional to σ² along the gradients of the log density are

.. math:: \mu \leftarrow \mu - \eta_\mu\,\frac{f^+ - f^-}{f^+ + f^- - 2f_*}\,\sigma\varepsilon,
    \qquad \sigma \leftarrow \sigma - \eta_\sigma\,\frac{\bar f - b}{b - f_*}\,\sigma
    (\varepsilon^2 - 1)

averaged over the pairs of a generation. The difference of a pair does not see the baseline; the
width needs it, a moving average of :math:`\bar f`. Dividing by the distance to the best loss makes
the steps independent of the loss's unit. ``normalized=False`` steps by
:math:`\tfrac12(f^+ - f^-)` and :math:`\bar f - b` instead; the expected steps then are
:math:`-\eta_\mu\sigma^2\nabla_\mu J` and :math:`-\eta_\sigma\sigma^2\nabla_\sigma J`, with J the
smoothed loss.

The width is a number that such a step could turn negative: ``max_change`` bounds how much of itself
it may gain or lose at once, which the paper leaves to small learning rates.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=3)
>>> method = PGPE(sigma=0.5)
>>> state = method.initial(objective.initial_params(0), generator=torch.Generator().manual_seed(0))
>>> for _ in range(100):
...     state = method.tell(state, objective.losses(method.ask(state)))
>>> bool(objective.loss(state.params()) < 0.01 * objective.loss(objective.initial_params(0)))
True
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradlab.estimators.base import above_zero, probability, true_or_false
from gradlab.evaluation.population import Params
from gradlab.search import blocks
from gradlab.search.losses import comparable, told
from gradlab.search.natural import check_population
from gradlab.search.noise import rows, sums
from gradlab.search.state import SearchState, as_params, begin


@dataclass(frozen=True, kw_only=True)
class PGPE:
    """Parameter-exploring policy gradients.

    Args:
        population: members of a generation, two for each direction.
        sigma: initial standard deviation of every coordinate, in units of the parameters.
        learning_rate: of the mean.
        learning_rate_sigma: of the standard deviations.
        baseline_decay: share of the old baseline in the new one.
        normalized: whether steps are divided by the distance to the best loss.
        max_change: the largest part of itself that a standard deviation changes by at once.
        update: "joint", or round robin "layer_wise" or "parameter_wise"
            (:mod:`gradlab.search.blocks`).
        block_size: coordinates of a turn of parameter-wise updates.

    Raises:
        ValueError: an option out of range, or a population that is not even.
    """

    population: int = 20
    sigma: float = 0.1
    learning_rate: float = 1.0
    learning_rate_sigma: float = 0.1
    baseline_decay: float = 0.9
    normalized: bool = True
    max_change: float = 0.2
    update: str = "joint"
    block_size: int = 1

    def __post_init__(self) -> None:
        check_population(self.population, mirrored=True)
        for name in ("sigma", "learning_rate", "learning_rate_sigma"):
            above_zero(name, getattr(self, name))
        probability("baseline_decay", self.baseline_decay)
        probability("max_change", self.max_change)
        true_or_false("normalized", self.normalized)
        blocks.check(self.update, self.block_size)

    def initial(self, params: Params, *, generator: torch.Generator) -> SearchState:
        """The state of a search that starts at ``params``; takes one key from the generator.

        Raises:
            ValueError: a parameter is not finite or no floating-point number.
        """
        dims = sum(tensor.numel() for tensor in params.values())
        return begin(params, generator, torch.full((dims,), float(self.sigma)))

    def size(self, state: SearchState) -> int:
        """Members of a generation."""
        return self.population

    def sigma_of(self, state: SearchState) -> float:
        """Geometric mean of the standard deviations."""
        return math.exp(float(state.spread.log().mean()))

    def widths(self, state: SearchState) -> Tensor:
        """The standard deviations, ``(d,)`` float64."""
        return state.spread

    def ask(self, state: SearchState, start: int = 0, stop: int | None = None) -> Params:
        """Members ``start`` … ``stop - 1`` of the next generation, all by default.

        Returns:
            A dict of ``(P, ...)`` tensors, a function of the state alone.
        """
        low, high = self._turn(state)
        stop = self.population if stop is None else stop
        members = state.mean.repeat(stop - start, 1)
        noise = rows(state, (low, high), antithetic=True)(start, stop)
        members[:, low:high] += state.spread[low:high] * noise
        return as_params(members, state.best)

    def tell(self, state: SearchState, losses: Tensor) -> SearchState:
        """The state after a generation.

        Args:
            state: what :meth:`ask` was given.
            losses: of the members that it returned, in their order; NaN counts as the worst.

        Raises:
            ValueError: another number of losses, or none that is finite.
        """
        low, high = self._turn(state)
        after, losses = told(state, losses, self.population, lambda *part: self.ask(state, *part))
        losses = comparable(losses, "raw")
        pairs = losses.reshape(-1, 2)
        half, average = (pairs[:, 0] - pairs[:, 1]) / 2, pairs.mean(dim=1)
        baseline = state.extra.get("baseline", average.mean())
        over = average - baseline
        if self.normalized:
            half = _ratio(half, average - after.best_loss)
            over = _ratio(over, (baseline - after.best_loss).expand_as(over))
        # both members of a pair have a weight: halved, and with the sign of the noise
        first = torch.stack((half, -half), dim=1).flatten() / self.population
        second = over.repeat_interleave(2) / self.population
        noise = rows(state, (low, high), antithetic=True)
        along, across = sums(noise, high - low, first, second)
        mean, spread = state.mean.clone(), state.spread.clone()
        mean[low:high] -= self.learning_rate * spread[low:high] * along
        change = (-self.learning_rate_sigma * across).clamp(-self.max_change, self.max_change)
        spread[low:high] *= 1 + change
        decay = self.baseline_decay
        return replace(
            after,
            mean=mean,
            spread=spread,
            extra={"baseline": decay * baseline + (1 - decay) * average.mean()},
            drawn=state.drawn + self.population,
            generation=state.generation + 1,
        )

    def _turn(self, state: SearchState) -> tuple[int, int]:
        """The coordinates that are searched in the next generation."""
        if len(state.spread) != len(state.mean):
            raise ValueError(
                f"the state was not begun by {self}: go on with the method that its initial(params)"
                " came from."
            )
        parts = blocks.blocks(state.best, self.update, self.block_size)
        return parts[state.generation % len(parts)]


def _ratio(numerator: Tensor, distance: Tensor) -> Tensor:
    """Zero where there is no distance: all losses are equal, and say nothing."""
    return torch.where(distance > 0, numerator / distance.clamp_min(1e-300), 0.0)
