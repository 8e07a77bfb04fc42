"""What a study is: one cell of a sweep in, tidy rows out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pydantic

Cell = Mapping[str, Any]
Row = dict[str, Any]
Tables = dict[str, list[Row]]


def derived_seed(cell: Cell, *coordinates: int) -> int:
    """A 63-bit seed from the study's seed and the cell's coordinates.

    The estimator is deliberately not among them: estimators on the same (init, batch, repeat)
    share their random numbers, which pairs their comparison.
    """
    sequence = np.random.SeedSequence(cell["seed"], spawn_key=coordinates)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


class Settings(pydantic.BaseModel):
    """Base of every study's settings: unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Study(Protocol):
    """One kind of measurement."""

    name: str
    settings_model: type[Settings]

    def validate(self, cell: Cell) -> None:
        """Refuse an impossible combination in one sentence, before anything is computed."""

    def forward_passes(self, cell: Cell) -> float:
        """About how many full-batch forward passes the cell will take on this implementation."""

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """Measure one cell: table name to rows of plain numbers and words.

        A pure function of the cell (its time columns apart); ``scratch`` is a folder for caches
        that cells share.
        """


def number(value: float) -> float | None:
    """A measurement as it is stored: None where it is not finite.

    >>> number(1.5), number(float("nan"))
    (1.5, None)
    """
    value = float(value)
    return value if math.isfinite(value) else None
