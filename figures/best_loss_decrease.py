"""The best loss decrease of one step, problem by problem, each estimator at its own best lr.

The upper row is in units of the loss; the lower row divides by CDG's decrease on the same inits,
so what an init has in common cancels and the intervals are narrower. The dots show how much inits
differ; small networks suffer more from binarization and differ more.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import along

from . import _layout, _notes, _style

TABLES = ("loss_decrease",)


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    frame, scales = columns.one_scale_each(frame)
    frame, axis = along(frame)
    by = ["condition", axis.column, "method"]
    best = summaries.best_lr(frame, by)
    rows = frame.merge(best, on=[*by, "lr"])
    absolute = summaries.over_inits(rows, by, "loss_decrease")
    inits = summaries.replicate_means(rows, by, ["loss_decrease"])
    relative, relative_inits = against_cdg(inits, columns.methods(frame), axis.column)
    looks, compared = _style.styles(frame), _layout.comparison(frame, axis)
    kinds = [(f"loss decrease{_notes.loss_unit(frame)}", absolute, inits)]
    if len(relative):
        kinds.append(("share of CDG's decrease", relative, relative_inits))
    lines = []
    for row in range(len(compared.rows)):
        shown = {name for place, name in compared.conditions.items() if place[0] == row}
        lines += [(row, *kind) for kind in kinds if kind[1]["condition"].isin(shown).any()]
    cut = ""

    with _style.theme():
        figure, axes = _style.panels(
            len(lines),
            len(compared.columns),
            width=2.9,
            height=2.1,
            sharey=False if compared.alike else "row",
            sharex=True,
            foot=_layout.foot(compared),
            extra=_layout.extra(compared),
        )
        drawn_in = {}
        for row, (which, unit, means, singles) in enumerate(lines):
            for column, members in enumerate(compared.members):
                ax = axes[row, column]
                condition = compared.conditions.get((which, column))
                if not (means["condition"] == condition).any():
                    continue
                drawn_in[row, column] = condition
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for method in members:
                    here = _style.pick(means, condition=condition, method=method)
                    one = _style.pick(singles, condition=condition, method=method)
                    if here.empty:
                        continue
                    one = one[one[axis.column].isin(here[axis.column])]
                    here, one = (
                        _layout.placed(frame_, axis, members, method) for frame_ in (here, one)
                    )
                    look = looks[method]
                    _style.dots(ax, one["place"], one["loss_decrease"], look)
                    _style.curve(ax, here, "place", look, label=method, interval="bars")
                _layout.problem_axis(ax, axis, row == len(lines) - 1)
                if means is relative:
                    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes[row, 0].set_ylabel(unit)
            if means is relative:
                cut = " ".join({_cut(ax) for ax in axes[row]} - {""}) or cut
            if row == 0:
                for ax, name in zip(axes[0], compared.columns, strict=True):
                    ax.set_title(name, loc="left")
            if compared.rows[which] and means is absolute:
                _style.row_title(axes[row, 0], compared.rows[which])
        _layout.blank(axes, drawn_in)
        _layout.legends(axes, compared, looks)
        _style.title(figure, "Best loss decrease of one step, each estimator at its best lr")
        parts = [
            frame_.rename(columns={"loss_decrease": "mean"}).assign(quantity=unit)
            for unit, means, singles in kinds
            for frame_ in (means, singles)
        ]
        drawn = pd.concat(parts).merge(best, on=by, how="left").rename(columns={"lr": "best_lr"})
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(absolute, drawn="Vertical lines"),
            "The lr is chosen on the mean over the same inits and batches.",
            "Shares are ratios of means, paired by init." if len(relative) else "",
            cut,
            _notes.scale_note(scales),
            _notes.edge_note(best),
            _notes.nested_note(frame),
        ]
        return _style.finish(figure, drawn, notes)


def _cut(ax: Axes) -> str:
    """Keep single wild ratios from squeezing the axis; say so where it happens."""
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.5), min(high, 1.8))
    return "Shares beyond the axis are not shown." if low < -0.5 or high > 1.8 else ""


def against_cdg(
    inits: pd.DataFrame, known: pd.DataFrame, along: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every method's decrease over CDG's: the ratio of means with its CI, and each init's ratio."""
    by = ["condition", along, "method"]
    cdg = columns.reference_method(known)
    if cdg is None:
        return pd.DataFrame(), pd.DataFrame()
    base = inits[inits["method"] == cdg].drop(columns="method")
    keys = ["condition", along, "init"]
    both = inits.merge(base, on=keys, suffixes=("", "_cdg"))
    summary = []
    for key, group in both.groupby(by, sort=False):
        result = summaries.ratio(group["loss_decrease"], group["loss_decrease_cdg"])
        summary.append(dict(zip(by, key, strict=True)) | {"mean": result.pop("ratio")} | result)
    positive = both["loss_decrease_cdg"].where(both["loss_decrease_cdg"] > 0, np.nan)
    singles = both.assign(loss_decrease=both["loss_decrease"] / positive)
    return pd.DataFrame(summary).dropna(subset="mean"), singles[[*by, "init", "loss_decrease"]]
