"""Loss decrease after one step at a single lr, problem by problem.

The quick check of the original study: every estimator takes one step of the same length, on the
batch it was estimated from. The lr is the one at which most estimators are at their best.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import along

from . import _layout, _notes, _style

TABLES = ("loss_decrease",)


def draw(
    tables: Mapping[str, pd.DataFrame], lr: float | None = None
) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Args:
        tables: the stored tables by name.
        lr: which lr to show; the nearest one of the grid is taken. By default the lr at which
            most estimators are best.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    frame, scales = columns.one_scale_each(frame)
    grid = np.sort(frame["lr"].unique())
    wanted = summaries.common_lr(frame) if lr is None else lr
    chosen = float(grid[np.argmin(np.abs(np.log(grid / wanted)))])
    frame, axis = along(frame[frame["lr"] == chosen])
    by = ["condition", axis.column, "method"]
    means = summaries.over_inits(frame, by, "loss_decrease")
    inits = summaries.replicate_means(frame, by, ["loss_decrease"])
    looks, compared = _style.styles(frame), _layout.comparison(frame, axis)

    with _style.theme():
        figure, axes = _style.panels(
            len(compared.rows),
            len(compared.columns),
            width=2.9,
            height=2.5,
            sharey=False if compared.alike else "row",
            foot=_layout.foot(compared),
            extra=_layout.extra(compared),
        )
        for (row, column), condition in compared.conditions.items():
            ax = axes[row, column]
            members = compared.members[column]
            ax.axhline(0, color=_style.FAINT, linewidth=0.7)
            for method in members:
                here = _style.pick(means, condition=condition, method=method)
                one = _style.pick(inits, condition=condition, method=method)
                if here.empty:
                    continue
                here, one = (
                    _layout.placed(frame_, axis, members, method) for frame_ in (here, one)
                )
                look = looks[method]
                _style.dots(ax, one["place"], one["loss_decrease"], look)
                _style.curve(ax, here, "place", look, label=method, interval="bars")
            _layout.problem_axis(ax, axis, row == len(compared.rows) - 1)
        for ax, name in zip(axes[0], compared.columns, strict=True):
            ax.set_title(name, loc="left")
        for row, name in enumerate(compared.rows):
            axes[row, 0].set_ylabel(f"loss decrease{_notes.loss_unit(frame)}")
            if name:
                _style.row_title(axes[row, 0], name)
        _layout.blank(axes, compared.conditions)
        _layout.legends(axes, compared, looks)
        _style.title(figure, f"Loss decrease after one step at lr = {chosen:.3g}")
        drawn = pd.concat([means, inits.rename(columns={"loss_decrease": "mean"})])
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(means, drawn="Vertical lines"),
            _notes.nested_note(frame),
            _notes.diverged_note(means),
            _notes.scale_note(scales),
        ]
        return _style.finish(figure, drawn.assign(lr=chosen), notes)
