"""STE with NES to fall back on: cases on either side of the switch, with their costs on the toy."""

from __future__ import annotations

from typing import Any

from tests.estimators.case import Case, smoothed

# More than all of the loss: no step lowers it by as much.
NEVER = 1.0


def stays(**options: Any) -> Case:
    """The straight-through step lowers the toy's loss."""
    return Case("switching", options, 2.0, 1.0, sampled=False)


def switches(population: Any = 500, referee: Any = smoothed, **options: Any) -> Case:
    """It does not: what is estimated is NES's."""
    largest = population if isinstance(population, int) else population[-1]
    options = {"population": population, "tolerance": NEVER} | options
    return Case("switching", options, largest + 2.0, 1.0, referee=referee)


CASES = [
    stays(),
    stays(surrogate="identity", lr=0.01, population=[20, 100]),
    Case("switching", {"lr": 0.01}, 2.0, 1.0, sampled=False, weight="binary"),
    switches(),
    switches([20, 100, 500], surrogate="polynomial"),
    switches(referee=None, sigma=0.2, fitness="centered_rank", antithetic=False),
    Case("switching", {"tolerance": NEVER}, 502.0, 1.0, referee=smoothed, weight="binary"),
]
