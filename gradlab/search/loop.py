"""The loop: ask, evaluate, tell, and a line of the trace for every generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params, Population
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective
from gradlab.search.noise import chunk
from gradlab.search.state import SearchState, consider


class SearchMethod(Protocol):
    """A search as pure functions over its state; the method itself holds options alone."""

    def initial(self, params: Params, *, generator: torch.Generator) -> SearchState:
        """The state before the first generation."""

    def size(self, state: SearchState) -> int:
        """How many members need a loss."""

    def ask(self, state: SearchState, start: int = 0, stop: int | None = None) -> Population:
        """These members, or a part of them."""

    def tell(self, state: SearchState, losses: Tensor) -> SearchState:
        """The state after their losses are known."""

    def sigma_of(self, state: SearchState) -> float:
        """Width of the search distribution, in units of the parameters."""

    def widths(self, state: SearchState) -> Tensor:
        """Its principal standard deviations, flat: one number where all are the same."""


@dataclass(frozen=True)
class TraceRow:
    """One generation.

    Attributes:
        generation: how many were told; 0 is the starting point.
        loss: at the search distribution's mean.
        best_loss: the lowest loss of anything evaluated so far, means included.
        sigma: geometric mean of the search distribution's standard deviations.
        evaluations: forward passes so far, those at the mean included.
    """

    generation: int
    loss: float
    best_loss: float
    sigma: float
    evaluations: int


@dataclass(frozen=True)
class Trace:
    """A search: one row per generation, and the state to go on from."""

    rows: tuple[TraceRow, ...]
    state: SearchState


Callback = Callable[[SearchState, TraceRow], bool | None]


def minimize(
    objective: Objective,
    params: Params,
    method: SearchMethod,
    generations: int,
    generator: torch.Generator,
    callback: Callback | None = None,
) -> Trace:
    """Search from ``params`` for a low loss.

    Args:
        objective: whose ``loss`` and ``losses`` are asked.
        params: the search distribution's first mean.
        method: how to search.
        generations: how many.
        generator: gives one key, from which all noise follows.
        callback: called with the state and the row of each generation; True ends the search.

    Returns:
        The trace, from the starting point on: one row more than generations.

    Raises:
        ValueError: the parameters are not finite, or all members of a generation fail.

    >>> from gradlab.objectives import TestFunction
    >>> from gradlab.search import XNES
    >>> objective = TestFunction("rosenbrock", num_dim=2)
    >>> start, generator = objective.initial_params(1), torch.Generator().manual_seed(0)
    >>> trace = minimize(objective, start, XNES(sigma=0.5), 10, generator)
    >>> more = advance(objective, XNES(sigma=0.5), trace.state, 300)
    >>> more.rows[-1].generation, more.rows[-1].best_loss < 1e-6
    (310, True)
    """
    state = method.initial(params, generator=generator)
    return advance(objective, method, state, generations, callback)


def advance(
    objective: Objective,
    method: SearchMethod,
    state: SearchState,
    generations: int,
    callback: Callback | None = None,
) -> Trace:
    """Go on with a search; a stored and restored state gives the bits of an uninterrupted run.

    Args:
        objective: as before.
        method: as before.
        state: from :meth:`SearchMethod.initial`, a trace, or :meth:`SearchState.restore`.
        generations: how many more.
        callback: called with the state and the row of each generation; True ends the search.
    """
    positive_integer("generations", generations)
    trace = []
    begun = state.evaluations > 0
    for step in range(generations + (not begun)):
        if begun or step:
            state = method.tell(state, evaluate(objective, method, state))
        loss = objective.loss(state.params())
        state = consider(state, state.params(), loss)
        row = TraceRow(
            state.generation,
            float(loss),
            float(state.best_loss),
            method.sigma_of(state),
            state.evaluations,
        )
        trace.append(row)
        if callback is not None and callback(state, row):
            break
    return Trace(tuple(trace), state)


def evaluate(objective: Objective, method: SearchMethod, state: SearchState) -> Tensor:
    """Losses ``(P,)`` of the members that ``method`` asks for, a part of them in memory at a time.

    Args:
        objective: whose losses.
        method: a search.
        state: its state.
    """
    parts = [
        objective.losses(method.ask(state, start, stop))
        for start, stop in pop.chunks(method.size(state), chunk(len(state.mean)))
    ]
    return torch.cat(parts) if parts else state.mean.new_empty(0)
