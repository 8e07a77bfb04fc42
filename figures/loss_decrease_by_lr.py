"""Loss decrease against lr, problem by problem.

One gradient estimate per init and batch is stepped at every lr, normalized as the study says. The
best lr of each curve, on the mean over inits and batches, is circled. Steps far too long make the
loss rise by many times what a good step gains; the axis is cut there, and small triangles at its
lower border mark the means below it. Crosses at the border mark lrs at which a run diverged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import grid
from gradlab.reporting.problems import is_network

from . import _layout, _notes, _style

TABLES = ("loss_decrease",)
BY = ["condition", "num_dim", "method"]
CUT = -0.45  # the axis ends here, in units of the highest curve


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    frame, scales = columns.one_scale_each(frame)
    if frame["lr"].nunique() < 2:
        raise ValueError("a figure against lr needs at least two lrs: this study has one.")
    means = summaries.over_inits(frame, [*BY, "lr"], "loss_decrease")
    best = summaries.best_lr(frame, BY)
    means = means.merge(best.assign(best=True), on=[*BY, "lr"], how="left")
    means["best"] = means["best"].eq(True)
    inits = summaries.replicate_means(frame, [*BY, "lr"], ["loss_decrease"])
    looks, groups = _style.styles(frame), _style.groupings(frame)
    panels = grid(frame)
    if is_network(frame) and len(looks) <= _layout.ONE_PANEL and len(panels.rows) > 1:
        groups = [("", list(looks))]  # every comparison anew for every layer would be too much
    rows = [(i, *group) for i in range(len(panels.rows)) for group in groups]
    height = max(1.85, 0.35 + max(_style.legend_height(members) for _, members in groups))
    few = bool((means["n"] < summaries.LEAST_INITS).all())
    highest = tops(means)
    share, cut = highest.max() <= 2 * highest.min(), False

    with _style.theme():
        figure, axes = _style.panels(
            len(rows),
            len(panels.columns),
            width=1.95,
            height=height,
            extra=_style.legend_width(looks),
            sharex=True,
            sharey=bool(share),
        )
        for row, (which, name, members) in enumerate(rows):
            for column in range(len(panels.columns)):
                ax = axes[row, column]
                if (which, column) not in panels.panels:
                    ax.set_axis_off()
                    continue
                place = {"num_dim": 0, **panels.panels[which, column]}
                top = highest.max() if share else highest[place["condition"], place["num_dim"]]
                ax.set_ylim(CUT * top, 1.12 * top)
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for method in members:
                    key = {**place, "method": method}
                    one = _style.pick(inits, **key) if few else None
                    here = _style.pick(means, **key)
                    cut |= _curve(ax, here, one, looks[method], method, CUT * top)
                _style.log_axis(ax)
                if frame["lr"].max() > 30 * frame["lr"].min():
                    ax.xaxis.set_major_locator(LogLocator(numticks=5))
                if row == 0:
                    ax.set_title(panels.columns[column], loc="left")
                if row == len(rows) - 1:
                    ax.set_xlabel("lr")
            axes[row, 0].set_ylabel(
                f"{name}\nloss decrease{_notes.loss_unit(frame)}".lstrip(), linespacing=1.6
            )
            _style.legend_entries(axes[row, -1], members, looks)
            _style.side_legend(axes[row, -1], panels.rows[which] or None)
        _style.title(figure, "Loss decrease after one step, against lr")
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(means, seeds=few),
            "Circled: the best lr of each curve.",
            "Triangles at the lower border: means below the cut axis." if cut else "",
            "Crosses at the border: a run diverged." if (means["missing"] > 0).any() else "",
            _notes.edge_note(best),
            _notes.scale_note(scales),
            _notes.nested_note(frame),
        ]
        return _style.finish(figure, means, notes)


def tops(means: pd.DataFrame) -> pd.Series:
    """The highest mean of every condition and num_dim.

    Conditions of one size share it (all layers against hidden ones), so that they compare at a
    glance; those of another size (converged students) keep their own.
    """
    own = means.groupby(["condition", "num_dim"])["mean"].max().clip(lower=1e-12)
    by_num_dim = own.groupby("num_dim").transform("max")
    return by_num_dim if (by_num_dim <= 3 * own).all() else own


def _curve(
    ax: Axes,
    rows: pd.DataFrame,
    inits: pd.DataFrame | None,
    look: _style.Style,
    method: str,
    bottom: float,
) -> bool:
    """One method in one panel, with what does not fit marked at the lower border.

    Returns:
        Whether a mean lies below it.
    """
    clean = rows[rows["missing"] == 0]
    if len(clean):
        _style.curve(ax, clean, "lr", look, label=method, markers=False)
    if inits is not None:
        _style.dots(ax, inits["lr"], inits["loss_decrease"], look)
    for _, point in clean[clean["best"]].iterrows():
        ax.plot(point["lr"], point["mean"], marker="o", markersize=6.5, markerfacecolor="none",
                markeredgewidth=0.9, color=look.colour, linestyle="none", zorder=5)  # fmt: skip
    # Marks in axes height: what lies below the cut, and where somebody diverged.
    border = {"transform": ax.get_xaxis_transform(), "linestyle": "none", "color": look.colour,
              "zorder": 6, "markersize": 4}  # fmt: skip
    below, lost = clean[clean["mean"] < bottom], rows[rows["missing"] > 0]
    if len(below):
        ax.plot(below["lr"], np.full(len(below), 0.03), marker=11, markeredgewidth=0, **border)
    if len(lost):
        ax.plot(lost["lr"], np.full(len(lost), 0.03), marker="x", **border)
    return len(below) > 0
