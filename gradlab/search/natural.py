"""What SNES and xNES share: one generation of natural evolution strategies, step by step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gradlab.estimators.base import above_zero, one_of, probability, true_or_false
from gradlab.estimators.fitness_shaping import FITNESS, shape
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import normal
from gradlab.evaluation.population import Params
from gradlab.search import adaptation, blocks
from gradlab.search.losses import comparable, told
from gradlab.search.mixing import Mixed, mix
from gradlab.search.noise import Rows, at_hand, chunk, rows, sums
from gradlab.search.state import SearchState, as_params, begin

# The stream of uniform numbers, beside that of the population's noise.
_UNIFORM = 1


class Step(NamedTuple):
    """How the search distribution moves.

    Attributes:
        mean: what is added to the mean, ``(n,)``.
        spread: the new width of the block.
        ratio: the width that a rate larger by half would have brought, divided by the new one:
            ``(n,)``, or one number for all coordinates.
    """

    mean: Tensor
    spread: Tensor
    ratio: Tensor


@dataclass(frozen=True, kw_only=True)
class NaturalSearch(ABC):
    """Options and loop of a natural evolution strategy; a subclass gives the distribution.

    Args:
        population: members of a generation; by default 4 + ⌊3 ln d⌋, with d the coordinates that
            are searched together.
        sigma: initial standard deviation, in units of the parameters.
        learning_rate: of the mean.
        learning_rate_sigma: of the width; its default depends on d.
        fitness: "utilities" and "centered_rank" use ranks alone; "raw", "centered" and "z_score"
            follow the natural gradient of the smoothed loss itself.
        update: "joint", or round robin "layer_wise" or "parameter_wise"
            (:mod:`gradlab.search.blocks`).
        block_size: coordinates of a turn of parameter-wise updates.
        importance_mixing: None, or the smallest fraction of fresh members
            (:mod:`gradlab.search.mixing`).
        adaptation_sampling: whether the rate of the width adapts itself
            (:mod:`gradlab.search.adaptation`).

    Raises:
        ValueError: an option out of range, or two that exclude each other.
    """

    population: int | None = None
    sigma: float = 0.1
    learning_rate: float = 1.0
    learning_rate_sigma: float | None = None
    fitness: str = "utilities"
    update: str = "joint"
    block_size: int = 1
    importance_mixing: float | None = None
    adaptation_sampling: bool = False

    def __post_init__(self) -> None:
        if self.population is not None:
            check_population(self.population)
        above_zero("sigma", self.sigma)
        above_zero("learning_rate", self.learning_rate)
        if self.learning_rate_sigma is not None:
            above_zero("learning_rate_sigma", self.learning_rate_sigma)
        one_of("fitness", self.fitness, FITNESS)
        blocks.check(self.update, self.block_size)
        true_or_false("adaptation_sampling", self.adaptation_sampling)
        if self.importance_mixing is not None:
            probability("importance_mixing", self.importance_mixing)
        for name in ("importance_mixing", "adaptation_sampling"):
            if getattr(self, name) and self.update != "joint":
                raise ValueError(
                    f"{name} compares generations of the same coordinates, and {self.update} "
                    'updates search others every time: leave it out, or use update = "joint".'
                )

    # The search distribution.

    _matrix: ClassVar[bool] = False
    """Whether the second moment of a step is a matrix."""

    @abstractmethod
    def _default_rate(self, dims: int) -> float:
        """Learning rate of the width of so many coordinates."""

    @abstractmethod
    def _first_spread(self, dims: int) -> Tensor:
        """The initial width of a block of so many coordinates, flat."""

    @abstractmethod
    def _offsets(self, spread: Tensor, noise: Tensor) -> Tensor:
        """Noise ``(P, n)`` to differences from the mean."""

    @abstractmethod
    def _noise_of(self, spread: Tensor, offsets: Tensor) -> Tensor:
        """The inverse of :meth:`_offsets`."""

    @abstractmethod
    def _log_scale(self, spread: Tensor) -> Tensor:
        """Logarithm of the product of a block's principal standard deviations."""

    def _principal(self, spread: Tensor) -> Tensor:
        """A block's principal standard deviations."""
        return spread

    @abstractmethod
    def _step(self, spread: Tensor, first: Tensor, second: Tensor, rate: float) -> Step:
        """The step of a block along the natural gradients of its mean and width."""

    # The loop.

    def initial(self, params: Params, *, generator: torch.Generator) -> SearchState:
        """The state of a search that starts at ``params``; takes one key from the generator.

        Raises:
            ValueError: a parameter is not finite or no floating-point number.
        """
        parts = blocks.blocks(params, self.update, self.block_size)
        return begin(params, generator, torch.cat([self._first_spread(b - a) for a, b in parts]))

    def size(self, state: SearchState) -> int:
        """How many members need a loss now: a generation, or with importance mixing a part."""
        return len(self._mixed(state).fresh) if self._mixes(state) else self._size(state)

    def _size(self, state: SearchState) -> int:
        """Members of a generation."""
        if self.population is not None:
            return self.population
        parts = blocks.blocks(state.best, self.update, self.block_size)
        return 4 + math.floor(3 * math.log(max(high - low for low, high in parts)))

    def sigma_of(self, state: SearchState) -> float:
        """Geometric mean of the search distribution's principal standard deviations."""
        parts = [state.spread]
        if self._matrix:
            parts = [state.spread[place] for _, place in self._layout(state)]
        return math.exp(sum(float(self._log_scale(part)) for part in parts) / len(state.mean))

    def widths(self, state: SearchState) -> Tensor:
        """The search distribution's principal standard deviations, ``(d,)`` float64."""
        parts = [self._principal(state.spread[place]) for _, place in self._layout(state)]
        return torch.cat(parts)

    def ask(self, state: SearchState, start: int = 0, stop: int | None = None) -> Params:
        """Members ``start`` … ``stop - 1`` of those that need a loss now; all of them by default.

        With importance mixing these are the fresh members alone, now and then none.

        Returns:
            A dict of ``(P, ...)`` tensors, a function of the state alone.
        """
        if self._mixes(state):
            return as_params(self._mixed(state).fresh[start:stop], state.best)
        (low, high), place = self._turn(state)
        stop = self._size(state) if stop is None else stop
        noise = rows(state, (low, high))(start, stop)
        members = state.mean.repeat(stop - start, 1)
        members[:, low:high] += self._offsets(state.spread[place], noise)
        return as_params(members, state.best)

    def tell(self, state: SearchState, losses: Tensor) -> SearchState:
        """The state after a generation.

        Args:
            state: what :meth:`ask` was given.
            losses: of the members that it returned, in their order; NaN ranks last.

        Raises:
            ValueError: another number of losses, or none of the generation's is finite.
        """
        size, (coordinates, place) = self._size(state), self._turn(state)
        spread, dims = state.spread[place], coordinates[1] - coordinates[0]
        mixed = self._mixed(state) if self._mixes(state) else None
        asked = size if mixed is None else len(mixed.fresh)
        after, losses = told(state, losses, asked, lambda *part: self.ask(state, *part))
        noise, extra = rows(state, coordinates), {}
        if self.importance_mixing is not None:
            if mixed is None:
                samples = state.mean + self._offsets(spread, noise(0, size))
            else:
                samples = torch.cat((state.extra["samples"][mixed.kept], mixed.fresh))
                losses = torch.cat((state.extra["losses"][mixed.kept], losses))
            extra = {"samples": samples, "losses": losses, "mean": state.mean, "spread": spread}
            noise = at_hand(self._noise_of(spread, samples - state.mean))
        losses = comparable(losses, self.fitness)
        rate = self._rate(state, noise, losses, dims)
        weights = -shape(losses, self.fitness, antithetic=False) / size
        first, second = sums(noise, dims, weights, weights, matrix=self._matrix)
        step = self._step(spread, first, second, rate)
        if self.adaptation_sampling:
            extra["rate"] = losses.new_tensor(rate)
            extra["ratio"] = step.ratio
        mean, spreads = state.mean.clone(), state.spread.clone()
        mean[slice(*coordinates)] += step.mean
        spreads[place] = step.spread
        drawn = size if mixed is None else max(size, mixed.drawn)
        return replace(after, mean=mean, spread=spreads, extra=extra, drawn=state.drawn + drawn,
                       generation=state.generation + 1)  # fmt: skip

    def _layout(self, state: SearchState) -> list[tuple[tuple[int, int], slice]]:
        """The coordinates of each block, and where its width lies in the state."""
        layout, start = [], 0
        for low, high in blocks.blocks(state.best, self.update, self.block_size):
            stop = start + (high - low) ** (2 if self._matrix else 1)
            layout.append(((low, high), slice(start, stop)))
            start = stop
        if start != len(state.spread):
            raise ValueError(
                f"the state was not begun by {self}: go on with the method that its initial(params)"
                " came from."
            )
        return layout

    def _turn(self, state: SearchState) -> tuple[tuple[int, int], slice]:
        """The entry of the layout that is searched in the next generation."""
        layout = self._layout(state)
        return layout[state.generation % len(layout)]

    def _rate(self, state: SearchState, noise: Rows, losses: Tensor, dims: int) -> float:
        """The learning rate of the width for this step."""
        initial = self.learning_rate_sigma or self._default_rate(dims)
        if not self.adaptation_sampling or "ratio" not in state.extra:
            return initial
        ratio = state.extra["ratio"]
        parts = pop.chunks(len(losses), chunk(dims))
        logs = [adaptation.log_weights(noise(*part), ratio) for part in parts]
        weights = torch.cat(logs).exp()
        return adaptation.adapted(float(state.extra["rate"]), initial, losses, weights, dims)

    def _mixes(self, state: SearchState) -> bool:
        return self.importance_mixing is not None and "samples" in state.extra

    def _mixed(self, state: SearchState) -> Mixed:
        """The next generation, made of the last one."""
        size, last = self._size(state), state.extra

        def log_density(mean: Tensor, spread: Tensor, points: Tensor) -> Tensor:
            noise = self._noise_of(spread, points - mean)
            return -0.5 * noise.square().sum(-1) - self._log_scale(spread)

        def candidates(start: int) -> Tensor:
            noise = rows(state, (0, len(state.mean)))(start, start + size)
            return state.mean + self._offsets(state.spread, noise)

        def log_uniform(start: int, column: int) -> Tensor:
            span = (state.drawn + start, state.drawn + start + size)
            drawn = normal(state.key, span, (column, column + 1), stream=_UNIFORM,
                           device=state.mean.device)  # fmt: skip
            logarithms: Tensor = torch.special.log_ndtr(drawn[:, 0].double())
            return logarithms

        return mix(
            last["samples"],
            lambda points: log_density(last["mean"], last["spread"], points),
            lambda points: log_density(state.mean, state.spread, points),
            candidates,
            log_uniform,
            self.importance_mixing or 0.0,
        )


def check_population(population: object, *, mirrored: bool = False) -> None:
    """Refuse a population that cannot be compared, in one sentence."""
    least = 4 if mirrored else 2
    if isinstance(population, bool) or not isinstance(population, int) or population < least:
        raise ValueError(f"population is {population!r}: give a whole number of at least {least}.")
    if mirrored and population % 2:
        raise ValueError(
            f"population is {population}: mirrored pairs need an even number; give "
            f"{population + 1}."
        )
