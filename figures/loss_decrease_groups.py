"""Loss decrease after one step at a single lr, against num_dim, in three comparisons.

The quick check of the original study: every estimator takes one step of the same length, on the
batch it was estimated from. The lr is the one at which most estimators are at their best.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries

from . import _notes, _style

TABLES = ("loss_decrease",)
BY = ["condition", "num_dim", "method"]


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
    frame = frame[frame["lr"] == chosen]
    means = summaries.over_inits(frame, BY, "loss_decrease")
    inits = summaries.replicate_means(frame, BY, ["loss_decrease"])
    looks, groups = _style.styles(frame), _style.groupings(frame)
    conditions = columns.conditions(frame)
    foot = max(_style.legend_height(m, _style.legend_columns(m)) for _, m in groups)

    with _style.theme():
        figure, axes = _style.panels(
            len(conditions),
            len(groups),
            width=2.9,
            height=2.5,
            sharey="row",
            foot=foot,
        )
        for row, condition in enumerate(conditions):
            for column, (name, members) in enumerate(groups):
                ax = axes[row, column]
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for method in members:
                    here = _style.pick(means, condition=condition, method=method)
                    one = _style.pick(inits, condition=condition, method=method)
                    if here.empty:
                        continue
                    here, one = (
                        _style.dodged(frame_, "num_dim", members, method) for frame_ in (here, one)
                    )
                    look = looks[method]
                    _style.dots(ax, one["num_dim"], one["loss_decrease"], look)
                    _style.curve(ax, here, "num_dim", look, label=method, interval="bars")
                _style.num_dim_axis(ax, frame["num_dim"].unique(), row == len(conditions) - 1)
                if row == 0:
                    ax.set_title(name, loc="left")
                if row == len(conditions) - 1:
                    _style.legend_below(ax, members, looks)
            axes[row, 0].set_ylabel(f"loss decrease{_notes.loss_unit(frame)}")
            if condition:
                _style.row_title(axes[row, 0], condition)
        _style.title(figure, f"Loss decrease after one step at lr = {chosen:.3g}")
        drawn = pd.concat([means, inits.rename(columns={"loss_decrease": "mean"})])
        notes = [
            _notes.interval_note(means, drawn="Vertical lines"),
            _notes.nested_note(frame),
            _notes.diverged_note(means),
            _notes.scale_note(scales),
        ]
        return _style.finish(figure, drawn.assign(lr=chosen), notes)
