"""Which problem and which methods each panel shows, and what stands along its x-axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gradlab.reporting import columns
from gradlab.reporting.facets import Axis, grid
from gradlab.reporting.problems import is_network

from . import _style

ONE_PANEL = 9  # as many methods can be told apart side by side


@dataclass(frozen=True)
class Comparison:
    """Rows and columns of panels.

    Attributes:
        rows: the title of each row.
        columns: the title of each column.
        members: the methods that each column shows.
        conditions: for (row, column), the condition that its panel shows.
    """

    rows: list[str]
    columns: list[str]
    members: list[list[str]]
    conditions: dict[tuple[int, int], str]

    @property
    def alike(self) -> bool:
        """Whether all columns show the same methods, so that one legend serves them."""
        return len(self.columns) > 1 and all(m == self.members[0] for m in self.members)


def comparison(frame: pd.DataFrame, axis: Axis) -> Comparison:
    """A column for each comparison of methods, or else one for each student of a network.

    Args:
        frame: an annotated table whose conditions leave out what stands along the x-axis.
        axis: the x-axis.
    """
    groups = _style.groupings(frame)
    panels = grid(frame, axis.column)
    methods = list(columns.methods(frame).index)
    if is_network(frame) and len(panels.columns) > 1 and len(methods) <= ONE_PANEL:
        conditions = {place: str(keys["condition"]) for place, keys in panels.panels.items()}
        return Comparison(panels.rows, panels.columns, [methods] * len(panels.columns), conditions)
    rows = columns.conditions(frame)
    return Comparison(
        rows,
        [title for title, _ in groups],
        [members for _, members in groups],
        {(r, c): condition for r, condition in enumerate(rows) for c in range(len(groups))},
    )


def foot(compared: Comparison) -> float:
    """Inches that the legends under the columns take."""
    if compared.alike:
        return 0.0
    heights = [_style.legend_height(m, _style.legend_columns(m)) for m in compared.members]
    return max(heights)


def extra(compared: Comparison) -> float:
    """Inches that a legend beside the panels takes."""
    return _style.legend_width(compared.members[0]) if compared.alike else 0.0


def legends(axes: np.ndarray, compared: Comparison, looks: Mapping[str, _style.Style]) -> None:
    """One legend under each column, or one beside them all where they show the same methods."""
    if compared.alike:
        _style.legend_entries(axes[0, -1], compared.members[0], looks)
        _style.side_legend(axes[0, -1], order=compared.members[0])
        return
    for column, members in enumerate(compared.members):
        _style.legend_below(axes[-1, column], members, looks)


def blank(axes: np.ndarray, present: Mapping[tuple[int, int], object]) -> None:
    """Take away the panels that have no data."""
    for place in np.ndindex(axes.shape):
        if place not in present:
            axes[place].set_axis_off()


def placed(rows: pd.DataFrame, axis: Axis, members: Sequence[str], method: str) -> pd.DataFrame:
    """``rows`` with ``place``, where they stand along the axis, beside those of other methods.

    Words stand at powers of two: evenly spaced on the axis that num_dim has.
    """
    where = axis.values
    spots = rows[axis.column] if axis.label.startswith("num_dim") else rows[axis.column].map(
        {value: 2.0**i for i, value in enumerate(where)})  # fmt: skip
    return _style.dodged(rows.assign(place=spots), "place", members, method)


def problem_axis(ax: Axes, axis: Axis, label: bool = True) -> None:
    """The axis itself, with one tick for each value."""
    if axis.label.startswith("num_dim"):
        _style.num_dim_axis(ax, axis.values, label)
        return
    spots = [2.0**i for i in range(len(axis.values))]
    ax.set_xscale("log", base=2)
    ax.set_xlim(spots[0] / 2**0.6, spots[-1] * 2**0.6)
    ax.xaxis.set_major_locator(FixedLocator(spots if axis.label else []))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda spot, _: str(axis.values[round(np.log2(spot))]))
    )
    ax.xaxis.set_minor_locator(NullLocator())
    if label and axis.label:
        ax.set_xlabel(axis.label)


@dataclass(frozen=True)
class Bands:
    """Panels in bands: each problem has a panel for every kind of measurement, one over the other.

    Attributes:
        count: number of problems.
        kinds: number of kinds.
        across: number of problems side by side.
    """

    count: int
    kinds: int
    across: int

    @property
    def height(self) -> int:
        """Rows of panels."""
        return -(-self.count // self.across) * self.kinds

    def place(self, problem: int, kind: int) -> tuple[int, int]:
        """Where the panel of a problem and a kind stands."""
        return problem // self.across * self.kinds + kind, problem % self.across

    def lowest(self, problem: int, kind: int) -> bool:
        """Whether no panel stands under this one."""
        return kind == self.kinds - 1 and problem + self.across >= self.count

    @property
    def places(self) -> dict[tuple[int, int], int]:
        """The places that are taken, and by which problem."""
        return {self.place(p, k): p for p in range(self.count) for k in range(self.kinds)}


def bands(count: int, kinds: int, most: int = 4) -> Bands:
    """Bands of at most ``most`` problems, of nearly equal length."""
    rows = -(-count // most)
    return Bands(count, kinds, -(-count // rows))
