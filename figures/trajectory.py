"""Loss along the descent, at equal forward passes and at equal seconds.

A single step is myopic: what counts is where a budget ends. Every estimator runs until the same
number of passes, or the same number of seconds, is spent; a curve shows the last loss reached
within the budget so far, averaged over inits. Where a study ran under another budget, the same
runs are drawn against seconds too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries

from . import _notes, _style

TABLES = ("trajectory",)
BUDGETS = ("forward_passes", "seconds", "steps")
LABELS = {"forward_passes": "passes, forward + backward", "seconds": "seconds", "steps": "steps"}
POINTS = 80


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "trajectory", ["step", "loss"])
    if frame["loss"].isna().all():
        raise ValueError("no trajectory has a finite loss.")
    frame = summaries.best_trajectories(frame)
    if "backward_passes" in frame:  # the study's budget counts them in
        frame["forward_passes"] += frame["backward_passes"].fillna(0)
    present = {"steps", *frame.columns}
    axes_shown = [b for b in BUDGETS if b in present and len(rows_for(frame, b))]
    conditions, num_dims = columns.conditions(frame), sorted(frame["num_dim"].unique())
    looks = _style.styles(frame)
    rows = [(c, d) for c in conditions for d in num_dims
            if len(_style.pick(frame, condition=c, num_dim=d))]  # fmt: skip
    everything = []
    log = bool((frame["loss"].dropna() > 0).mean() > 0.9)

    with _style.theme():
        figure, axes = _style.panels(
            len(rows),
            len(axes_shown),
            width=3.2,
            height=2.2,
            extra=_style.legend_width(looks),
            sharey="row",
            sharex="col",
        )
        for column, budget in enumerate(axes_shown):
            resampled = on_common_grid(rows_for(frame, budget), budget)
            summary = summaries.over_inits(
                resampled, ["condition", "num_dim", "method", "x"], "loss"
            )
            everything.append(summary.assign(budget=budget))
            for row, (condition, num_dim) in enumerate(rows):
                ax = axes[row, column]
                for method, look in looks.items():
                    here = _style.pick(
                        summary, condition=condition, num_dim=num_dim, method=method, missing=0
                    )
                    if len(here):
                        _style.curve(ax, here, "x", look, label=method, markers=False)
                        ends = here.sort_values("x").iloc[[-1]]
                        ax.plot(ends["x"], ends["mean"], **{**look.line_kwargs, "zorder": 4})
                _style.log_axis(ax)
                if log:
                    _style.log_axis(ax, "y")
                if row == 0:
                    ax.set_title(heading(frame, budget), loc="left")
                if row == len(rows) - 1:
                    ax.set_xlabel(LABELS[budget])
        for row, (condition, num_dim) in enumerate(rows):
            name = _notes.panel_title(condition, num_dim)
            axes[row, 0].set_ylabel(
                f"{name}\nloss{_notes.loss_unit(frame)}".lstrip(), linespacing=1.5
            )
        _style.legend_entries(axes[0, -1], looks, looks)
        _style.side_legend(axes[0, -1])
        _style.title(figure, "Loss along the descent")
        drawn = pd.concat(everything)
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn, seeds=False),
            "The marker is where the budget ends.",
            "Curves end where a run diverged." if (drawn["missing"] > 0).any() else "",
        ]
        return _style.finish(figure, drawn, notes)


def heading(frame: pd.DataFrame, budget: str) -> str:
    """What ends the runs of a column."""
    name = budget.replace("forward_", "")
    own = "budget" in frame and (frame["budget"] == budget).any()
    return f"budget of {name}" if own else f"the same runs by {name}"


def rows_for(frame: pd.DataFrame, budget: str) -> pd.DataFrame:
    """The runs made under this budget; where there are none, those made under another."""
    if "budget" not in frame or frame["budget"].isna().all():
        return frame
    own = frame[frame["budget"] == budget]
    if len(own) or budget == "steps":
        return own
    other = next(b for b in BUDGETS if (frame["budget"] == b).any())
    return frame[frame["budget"] == other]


def on_common_grid(frame: pd.DataFrame, budget: str) -> pd.DataFrame:
    """Each run's last loss at the points of a grid that its estimator's runs share."""
    x = "step" if budget == "steps" else budget
    keys = ["condition", "num_dim", "method"]
    replicates = [c for c in columns.REPLICATES if c in frame]
    parts = []
    for key, runs in frame.groupby(keys, sort=False):
        spent = runs.loc[runs["step"] > 0, x]
        spent = spent[spent > 0]
        if spent.empty:
            continue
        grid = np.geomspace(spent.min(), spent.max(), POINTS)
        exact = np.unique(spent)
        # Costs counted in passes or steps are the same for every init: draw them as they are.
        grid = exact if len(exact) <= POINTS else grid
        for replicate, run in runs.groupby(replicates, dropna=False, sort=False):
            run = run.sort_values(x)
            index = np.searchsorted(run[x].to_numpy(), grid * (1 + 1e-9), side="right") - 1
            loss = run["loss"].to_numpy(float)[np.maximum(index, 0)]
            names = zip([*keys, *replicates], [*key, *replicate], strict=True)
            parts.append(pd.DataFrame({"x": grid, "loss": loss}).assign(**dict(names)))
    return pd.concat(parts)
