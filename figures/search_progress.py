"""How far whole searches come within a budget of forward passes.

Left the lowest loss that was evaluated so far, right the loss at the mean of the search
distribution (of a descent, at its weights), both on the batch that is searched. Of a descent at
several learning rates the one that ends lowest is drawn. Every method starts at the same weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.searches import as_trajectories

from . import _notes, _style
from .trajectory import LABELS, on_common_grid

TABLES = ("search_run",)
FOLLOWED = {"best_loss": "lowest so far", "loss": "at the mean"}
BY = ["condition", "num_dim", "method", "x"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    needed = ["step", "loss", "best_loss", "forward_passes", "backward_passes"]
    frame = _style.table(tables, "search_run", needed)
    if frame[[*FOLLOWED]].isna().all().any():
        raise ValueError("no search has a finite loss.")
    frame["forward_passes"] += frame["backward_passes"].fillna(0)
    best = summaries.best_trajectories(as_trajectories(frame))
    chosen = best[["condition", "num_dim", "method", "lr"]].drop_duplicates()
    at_mean = as_trajectories(frame, "loss").merge(chosen)
    means = {
        loss: summaries.over_inits(on_common_grid(rows, "forward_passes"), BY, "loss")
        for loss, rows in (("best_loss", best), ("loss", at_mean))
    }
    looks = _style.styles(frame)
    rows = [
        (condition, num_dim)
        for condition in columns.conditions(frame)
        for num_dim in sorted(frame["num_dim"].unique())
        if len(_style.pick(frame, condition=condition, num_dim=num_dim))
    ]
    log = bool((frame["best_loss"].dropna() > 0).mean() > 0.9)

    with _style.theme():
        figure, axes = _style.panels(
            len(rows), len(FOLLOWED), width=3.2, height=2.2, extra=_style.legend_width(looks),
            sharex=True, sharey="row",
        )  # fmt: skip
        for i, (condition, num_dim) in enumerate(rows):
            for ax, loss in zip(axes[i], FOLLOWED, strict=True):
                for method, look in looks.items():
                    here = _style.pick(means[loss], condition=condition, num_dim=num_dim,
                                       method=method, missing=0)  # fmt: skip
                    if len(here):
                        _style.curve(ax, here, "x", look, label=method, markers=False)
                        ends = here.sort_values("x").iloc[[-1]]
                        ax.plot(ends["x"], ends["mean"], **{**look.line_kwargs, "zorder": 4})
                _style.log_axis(ax)
                if log:
                    _style.log_axis(ax, "y")
            title = _notes.panel_title(condition, num_dim)
            axes[i, 0].set_ylabel(f"{title}\nloss{_notes.loss_unit(frame)}".lstrip(),
                                  linespacing=1.5)  # fmt: skip
        for ax, words in zip(axes[0], FOLLOWED.values(), strict=True):
            ax.set_title(words, loc="left")
        for ax in axes[-1]:
            ax.set_xlabel(LABELS["forward_passes"])
        _style.legend_entries(axes[0, -1], looks, looks)
        _style.side_legend(axes[0, -1], order=looks)
        _style.title(figure, "Loss along whole searches")
        drawn = pd.concat(part.assign(followed=loss) for loss, part in means.items())
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn, seeds=False),
            "The marker is where the budget ends.",
            "Curves end where a run diverged." if (drawn["missing"] > 0).any() else "",
        ]
        return _style.finish(figure, drawn, notes)
