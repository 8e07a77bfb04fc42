"""The noise of a generation, regenerated from the state a few members at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.population import GaussianPopulation
from gradlab.search.state import SearchState

Rows: TypeAlias = Callable[[int, int], Tensor]
"""Standard normal noise of members ``start`` … ``stop - 1``, ``(stop - start, n)`` float64."""

# Numbers held at a time, 32 MiB in float64.
_FLOATS = 2**22


def rows(state: SearchState, coordinates: tuple[int, int], *, antithetic: bool = False) -> Rows:
    """The noise of the next generation at a range of flat coordinates.

    >>> from gradlab.search.state import begin
    >>> state = begin({"w": torch.zeros(3)}, torch.Generator().manual_seed(0), torch.ones(1))
    >>> noise = rows(state, (0, 3), antithetic=True)
    >>> torch.equal(noise(0, 4)[2], -noise(3, 4)[0])
    True
    """
    mean = {"mean": state.mean}

    def noise(start: int, stop: int) -> Tensor:
        first, last = state.drawn + start, state.drawn + stop
        whole = GaussianPopulation(mean, 1.0, state.key, first, last, antithetic=antithetic)
        return whole.noise(coordinates).double()

    return noise


def at_hand(noise: Tensor) -> Rows:
    """Noise that is held already, ``(P, n)``."""
    return lambda start, stop: noise[start:stop]


def chunk(dims: int) -> int:
    """How many members of ``dims`` numbers are held at a time: even, a function of these alone."""
    return max(2, _FLOATS // dims // 2 * 2)


def sums(
    noise: Rows, dims: int, first: Tensor, second: Tensor, *, matrix: bool = False
) -> tuple[Tensor, Tensor]:
    r""":math:`\sum_i w_i\varepsilon_i` and :math:`\sum_i v_i(\varepsilon_i^2 - 1)`.

    Args:
        noise: where ε comes from.
        dims: number of its coordinates, n.
        first: the weights w, ``(P,)``.
        second: the weights v, ``(P,)``.
        matrix: for the second sum :math:`\sum_i v_i(\varepsilon_i\varepsilon_i^T - I)`.

    Returns:
        ``(n,)`` and ``(n,)`` or ``(n, n)``, float64.
    """

    def part(start: int, stop: int) -> tuple[Tensor, Tensor]:
        drawn, w, v = noise(start, stop), first[start:stop], second[start:stop]
        if not matrix:
            return w @ drawn, v @ (drawn.square() - 1)
        identity = torch.eye(dims, dtype=drawn.dtype, device=drawn.device)
        return w @ drawn, (v[:, None] * drawn).mT @ drawn - v.sum() * identity

    parts = [part(*each) for each in pop.chunks(len(first), chunk(dims))]
    return functools.reduce(lambda one, two: (one[0] + two[0], one[1] + two[1]), parts)
