"""How problems are laid out: what stands along an axis, and what gets panels of its own.

A teacher-student study varies num_dim, and that is its axis. Networks have none: their problems
differ in layers, students, widths, and one of these takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradlab.reporting import columns
from gradlab.reporting.layers import JOINED
from gradlab.reporting.problems import is_network, phrase, position
from gradlab.reporting.wording import word

ALONG = ("layers", "width", "student")
ACROSS = ("student", "layers", "width")
LABELS = {"layers": "layer that steps", "width": "width", "student": "training of the network"}


@dataclass(frozen=True)
class Axis:
    """What stands along the x-axis.

    Attributes:
        column: the column; its values are words unless it is num_dim.
        values: its values in order.
        label: what to call it; empty where there is nothing to tell apart.
    """

    column: str
    values: list[Any]
    label: str


def along(frame: pd.DataFrame) -> tuple[pd.DataFrame, Axis]:
    """The problem axis of a table of steps, and the table with conditions that leave it out.

    Args:
        frame: an annotated table.
    """
    chosen = _first_varying(frame, ALONG)
    if not is_network(frame) or chosen is None:
        sizes = sorted(int(n) for n in frame["num_dim"].unique())
        return frame, Axis("num_dim", sizes, "num_dim (units per layer)" if max(sizes) > 0 else "")
    values = sorted(frame[chosen].unique(), key=lambda value: position(chosen, value))
    words = frame[chosen].map(lambda value: _tick(chosen, value))
    # The conditions' words are made from the column's own values, so they come first.
    frame = frame.assign(condition=columns.conditions_apart_from(frame, [chosen]))
    frame[chosen] = words
    return frame, Axis(chosen, [_tick(chosen, value) for value in values], LABELS[chosen])


@dataclass(frozen=True)
class Grid:
    """Rows and columns of panels.

    Attributes:
        rows: the title of each row.
        columns: the title of each column.
        panels: for (row, column), what the rows of its panel have in common; a panel that is not
            there has no data.
    """

    rows: list[str]
    columns: list[str]
    panels: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)


def grid(frame: pd.DataFrame, apart_from: str = "") -> Grid:
    """Panels for every condition and num_dim: num_dim, or else one part of the condition, across.

    Args:
        frame: an annotated table.
        apart_from: the column that its conditions leave out, see :func:`along`.

    >>> table = columns.annotate(pd.DataFrame(
    ...     [{"dataset": "mnist", "estimator": "ste", "layers": l, "student": s}
    ...      for l in ("first layer", "layer -2") for s in ("converged", "fresh")]))
    >>> found = grid(table)
    >>> found.rows, found.columns, found.panels[1, 0]["condition"]
    (['first layer', 'layer −2'], ['fresh', 'converged'], 'layer −2, fresh')
    """
    conditions = columns.conditions(frame)
    across = _first_varying(frame, [column for column in ACROSS if column != apart_from])
    if not is_network(frame) or across is None:
        num_dims = sorted(int(n) for n in frame["num_dim"].unique())
        titles = [f"num_dim = {n}" if n > 0 else "" for n in num_dims]
        present = set(zip(frame["condition"], frame["num_dim"], strict=True))
        return Grid(conditions, titles, {
            (row, column): {"condition": condition, "num_dim": num_dim}
            for row, condition in enumerate(conditions)
            for column, num_dim in enumerate(num_dims)
            if (condition, num_dim) in present
        })  # fmt: skip
    first = frame.assign(_row=columns.conditions_apart_from(frame, [across, apart_from]))
    first = first.drop_duplicates("condition").set_index("condition").loc[conditions]
    values = sorted(first[across].unique(), key=lambda value: position(across, value))
    rows = list(dict.fromkeys(first["_row"]))
    return Grid(rows, [phrase(across, v, network=True) for v in values], {
        (rows.index(row), values.index(value)): {"condition": condition}
        for condition, row, value in zip(first.index, first["_row"], first[across], strict=True)
    })  # fmt: skip


def whole_depth(frame: pd.DataFrame) -> pd.DataFrame:
    """An annotated gradient-quality table in which a network's layers share one condition.

    Layers may have been measured in cells of their own; what such a cell calls "all" layers is its
    one layer again, and is left out.
    """
    if not is_network(frame) or not columns.varying(frame, ["layers"]):
        return frame
    frame = frame[~frame["layer"].isin(JOINED)]
    return frame.assign(condition=columns.conditions_apart_from(frame, ["layers"]))


def without_num_dim(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame without ``num_dim`` where the problems have none."""
    if "num_dim" in frame and not (frame["num_dim"].fillna(0) > 0).any():
        return frame.drop(columns="num_dim")
    return frame


def _first_varying(frame: pd.DataFrame, candidates: Sequence[str]) -> str | None:
    found = columns.varying(frame, list(candidates))
    return found[0] if found else None


def _tick(column: str, value: Any) -> str:
    """A value where the axis says what it is a value of."""
    if column == "width":
        return word(value)
    if column == "student":
        return str(value).partition(" ")[0]
    words = phrase(column, value, network=True)
    return words if words == "all layers" else words.replace("layer", "").strip()
