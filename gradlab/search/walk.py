r"""Random walks over weights: where a point may go next, and whether it goes there.

The target is :math:`\pi(w) \propto p(w)\,e^{-f(w)/T}` with the loss f, a temperature T and a prior
p. From w a symmetric proposal leads to w', which is accepted with the probability

.. math:: \min\left(1, \frac{p(w')}{p(w)}\, e^{-(f(w') - f(w))/T}\right)

(Metropolis, Rosenbluth, Rosenbluth, Teller and Teller, "Equation of state calculations by fast
computing machines", J. Chem. Phys. 21, 1953; Hastings, "Monte Carlo sampling methods using Markov
chains and their applications", Biometrika 57, 1970, whose ratio of proposal densities is one for
symmetric proposals). This leaves π as it is, whatever the proposal.

Real weights move by Gaussian noise, all at once. Binary weights, of which only the sign enters the
loss, move by flips, one to ``flips`` of them at once: were it always one, a chain that accepts
everything would have an even number of flips behind it after every second move, and never forget
where it began. With both kinds of weights the moves take turns, since a change of both at once is
accepted more rarely than either.

The prior of real weights is a Gaussian around the parameters that the search began with, or flat;
that of signs is even. A network of sign activations does not see the length of its real weights, so
under a flat prior its chains have no stationary distribution to converge to: they drift outward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.estimators.base import above_zero, require_finite
from gradlab.evaluation.noise import normal
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.search.losses import comparable
from gradlab.search.noise import rows
from gradlab.search.state import SearchState, as_params, begin

# The stream of uniform numbers beside that of the population's noise, and its columns.
_UNIFORM = 1
ACCEPT, CHOOSE, COUNT, FLIP = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class RandomWalk:
    """Options of a walk; a subclass says how many points walk, at which temperatures.

    Args:
        sigma: standard deviation of a move of real weights, in units of the weights.
        prior_sigma: standard deviation of the prior of real weights around the parameters given to
            :meth:`initial`; None for a flat one.
        binary_weights: names of the parameters of which only the sign enters the loss, for instance
            those that :func:`gradlab.estimators.bernoulli.binary_weights` finds.
        flips: the most signs that a move of binary weights flips.

    Raises:
        ValueError: an option out of range.
    """

    sigma: float = 0.1
    prior_sigma: float | None = None
    binary_weights: Sequence[str] = ()
    flips: int = 2

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        if self.prior_sigma is not None:
            above_zero("prior_sigma", self.prior_sigma)
        positive_integer("flips", self.flips)
        if isinstance(self.binary_weights, str):
            raise ValueError(
                f"binary_weights is {self.binary_weights!r}: give a list of parameter names."
            )

    def initial(self, params: Params, *, generator: torch.Generator) -> SearchState:
        """The state before the first generation; takes one key from the generator.

        Raises:
            ValueError: a parameter is not finite or no floating-point number, or a name in
                ``binary_weights`` is not a parameter's.
        """
        for name in self.binary_weights:
            if name not in params:
                raise ValueError(unknown("parameter in binary_weights", name, params))
        held = {}
        for name, w in require_finite(params).items():
            # zero has no sign to flip
            signed = name in self.binary_weights and w.is_floating_point()
            held[name] = w.masked_fill(w == 0, torch.finfo(w.dtype).tiny) if signed else w
        return begin(held, generator, torch.tensor(float(self.sigma)))

    def sigma_of(self, state: SearchState) -> float:
        """Standard deviation of a move of real weights."""
        return float(self.sigma)

    def widths(self, state: SearchState) -> Tensor:
        """The standard deviation of a move of real weights, ``(1,)`` float64."""
        return state.spread.reshape(1)

    def size(self, state: SearchState) -> int:
        """How many points walk."""
        raise NotImplementedError

    def ask(self, state: SearchState, start: int = 0, stop: int | None = None) -> Params:
        """Points ``start`` … ``stop - 1`` that need a loss, all by default: where the walk may go.

        Returns:
            A dict of ``(P, ...)`` tensors, a function of the state alone.
        """
        stop = self.size(state) if stop is None else stop
        return as_params(self._candidates(state, start, stop), state.best)

    def _candidates(self, state: SearchState, start: int, stop: int) -> Tensor:
        """The same, flat ``(P, d)`` in float64."""
        raise NotImplementedError

    def _binary(self, state: SearchState) -> Tensor:
        """Which flat coordinates are binary weights, ``(d,)`` bool."""
        parts = [torch.full_like(w, n in self.binary_weights) for n, w in state.best.items()]
        return torch.cat([part.flatten() for part in parts]) > 0

    def _proposed(self, state: SearchState, points: Tensor, start: int) -> Tensor:
        """One move from each of the points ``(P, d)``, which are those from ``start`` on."""
        binary, span = self._binary(state), (start, start + len(points))
        count = int(binary.sum())
        if not count or (count < len(binary) and state.generation % 2 == 0):
            noise = rows(state, (0, len(binary)))(*span)
            return points + torch.where(binary, 0.0, self.sigma * noise)
        moved = (uniform(state, span, COUNT) * self.flips).floor()
        flipped = torch.zeros_like(points, dtype=torch.bool)
        places = binary.nonzero()[:, 0]
        everyone = torch.arange(len(points), device=points.device)
        for turn in range(self.flips):
            chosen = (uniform(state, span, FLIP + turn) * count).long()
            flipped[everyone, places[chosen]] |= moved >= turn
        return torch.where(flipped, -points, points)

    def _walked(
        self, state: SearchState, losses: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Points, losses and which were accepted, ``(P,)``, once the candidates' losses are known.

        Args:
            state: with ``points`` and ``losses`` among its extras.
            losses: of the candidates, infinite where they failed.
            inverse: 1/T of each point.
        """
        points, before = state.extra["points"], state.extra["losses"]
        candidates = self._candidates(state, 0, len(points))
        prior = self._log_prior(state, candidates) - self._log_prior(state, points)
        # NaN, between two points that both failed, is no reason to go
        chance = prior - inverse * (losses - before)
        accepted = uniform(state, (0, len(points)), ACCEPT).log() < chance
        points = torch.where(accepted[:, None], candidates, points)
        return points, torch.where(accepted, losses, before), accepted

    def _log_prior(self, state: SearchState, points: Tensor) -> Tensor:
        """Logarithm of the prior's density at ``(P, d)``, up to a constant: ``(P,)``."""
        if self.prior_sigma is None:
            return points.new_zeros(len(points))
        offsets = (points - state.extra["start"])[:, ~self._binary(state)]
        return -0.5 * (offsets / self.prior_sigma).square().sum(-1)

    def _extra(self, state: SearchState, name: str) -> Tensor:
        """What the state remembers under this name since the first generation."""
        if name not in state.extra:
            raise ValueError("the walk has not begun: tell the losses of ask(state) first.")
        return state.extra[name]


def first_losses(losses: Tensor) -> Tensor:
    """Losses with infinity for those that failed.

    Raises:
        ValueError: all did.
    """
    comparable(losses, "raw")
    return losses.nan_to_num(nan=math.inf)


def uniform(state: SearchState, members: tuple[int, int], column: int) -> Tensor:
    """Numbers between 0 and 1, both excluded, for these members of the generation: ``(P,)``.

    >>> from gradlab.search.state import begin
    >>> state = begin({"w": torch.zeros(3)}, torch.Generator().manual_seed(0), torch.ones(1))
    >>> drawn = uniform(state, (0, 1000), ACCEPT)
    >>> bool((drawn > 0).all() and (drawn < 1).all()), round(float(drawn.mean()), 1)
    (True, 0.5)
    """
    span = (state.drawn + members[0], state.drawn + members[1])
    drawn = normal(state.key, span, (column, column + 1), stream=_UNIFORM,
                   device=state.mean.device)  # fmt: skip
    found: Tensor = torch.special.ndtr(drawn[:, 0].double())
    return found
