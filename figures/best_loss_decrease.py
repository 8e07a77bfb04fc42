"""The best loss decrease of one step against num_dim, each estimator at its own best lr.

The upper row is in units of the loss; the lower row divides by CDG's decrease on the same inits,
so what an init has in common cancels and the intervals are narrower. Small networks suffer more
from binarization and differ more from init to init: the dots show it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gradlab.reporting import columns, summaries

from . import _notes, _style

TABLES = ("loss_decrease",)
BY = ["condition", "num_dim", "method"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    frame, scales = columns.one_scale_each(frame)
    best = summaries.best_lr(frame, BY)
    rows = frame.merge(best, on=[*BY, "lr"])
    absolute = summaries.over_inits(rows, BY, "loss_decrease")
    inits = summaries.replicate_means(rows, BY, ["loss_decrease"])
    relative, relative_inits = against_cdg(inits, columns.methods(frame))
    looks, groups = _style.styles(frame), _style.groupings(frame)
    conditions = columns.conditions(frame)
    kinds = [(f"loss decrease{_notes.loss_unit(frame)}", absolute, inits)]
    if len(relative):
        kinds.append(("share of CDG's decrease", relative, relative_inits))
    lines = [
        (condition, *kind)
        for condition in conditions
        for kind in kinds
        if (kind[1]["condition"] == condition).any()
    ]
    foot = max(_style.legend_height(m, _style.legend_columns(m)) for _, m in groups)

    cut = ""

    with _style.theme():
        figure, axes = _style.panels(
            len(lines),
            len(groups),
            width=2.9,
            height=2.1,
            sharey="row",
            sharex=True,
            foot=foot,
        )
        for row, (condition, unit, means, singles) in enumerate(lines):
            for column, (name, members) in enumerate(groups):
                ax = axes[row, column]
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for method in members:
                    here = _style.pick(means, condition=condition, method=method)
                    one = _style.pick(singles, condition=condition, method=method)
                    if here.empty:
                        continue
                    one = one[one["num_dim"].isin(here["num_dim"])]
                    here, one = (
                        _style.dodged(frame_, "num_dim", members, method) for frame_ in (here, one)
                    )
                    look = looks[method]
                    _style.dots(ax, one["num_dim"], one["loss_decrease"], look)
                    _style.curve(ax, here, "num_dim", look, label=method, interval="bars")
                _style.num_dim_axis(ax, frame["num_dim"].unique(), row == len(lines) - 1)
                if row == 0:
                    ax.set_title(name, loc="left")
                if row == len(lines) - 1:
                    _style.legend_below(ax, members, looks)
                if means is relative:
                    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes[row, 0].set_ylabel(unit)
            if means is relative:
                cut = _cut(axes[row, 0]) or cut
            if condition and means is absolute:
                _style.row_title(axes[row, 0], condition)
        _style.title(figure, "Best loss decrease of one step, each estimator at its best lr")
        parts = [
            frame_.rename(columns={"loss_decrease": "mean"}).assign(quantity=unit)
            for unit, means, singles in kinds
            for frame_ in (means, singles)
        ]
        drawn = pd.concat(parts).merge(best, on=BY, how="left").rename(columns={"lr": "best_lr"})
        notes = [
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


def against_cdg(inits: pd.DataFrame, known: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every method's decrease over CDG's: the ratio of means with its CI, and each init's ratio."""
    cdg = columns.reference_method(known)
    if cdg is None:
        return pd.DataFrame(), pd.DataFrame()
    base = inits[inits["method"] == cdg].drop(columns="method")
    keys = ["condition", "num_dim", "init"]
    both = inits.merge(base, on=keys, suffixes=("", "_cdg"))
    summary = []
    for key, group in both.groupby(BY, sort=False):
        result = summaries.ratio(group["loss_decrease"], group["loss_decrease_cdg"])
        summary.append(dict(zip(BY, key, strict=True)) | {"mean": result.pop("ratio")} | result)
    positive = both["loss_decrease_cdg"].where(both["loss_decrease_cdg"] > 0, np.nan)
    singles = both.assign(loss_decrease=both["loss_decrease"] / positive)
    return pd.DataFrame(summary).dropna(subset="mean"), singles[[*BY, "init", "loss_decrease"]]
