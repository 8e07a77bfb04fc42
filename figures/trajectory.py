"""Loss along the descent, at equal forward passes and at equal seconds.

A single step is myopic: what counts is where a budget ends. Every estimator runs until the same
number of passes, or the same number of seconds, is spent; a curve shows the last loss reached
within the budget so far, averaged over inits. Where a study ran under another budget, the same
runs are drawn against seconds too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import grid
from gradlab.reporting.problems import is_network

from . import _layout, _notes, _style

TABLES = ("trajectory",)
BUDGETS = ("forward_passes", "seconds", "steps")
LABELS = {"forward_passes": "passes, forward + backward", "seconds": "seconds", "steps": "steps"}
POINTS = 80
FEW_ROWS = 4


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "trajectory", ["step", "loss"])
    if frame["loss"].isna().all():
        raise ValueError("no trajectory has a finite loss.")
    judged = "loss"
    if is_network(frame) and "loss_fresh" in frame and frame["loss_fresh"].notna().any():
        # New batches all along: between two of them the loss differs by more than a late descent.
        judged = "loss on a held-out batch"
        frame["loss"] = frame["loss_fresh"].where(frame["loss"].notna())
    frame = summaries.best_trajectories(frame)
    if "backward_passes" in frame:  # the study's budget counts them in
        frame["forward_passes"] += frame["backward_passes"].fillna(0)
    present = {"steps", *frame.columns}
    budgets = [b for b in BUDGETS if b in present and len(rows_for(frame, b))]
    planned = plan(frame, budgets)
    looks = _style.styles(frame)
    # Where a network is late in its training, a descent may well lead upwards.
    starts = frame[(frame["step"] == 0) & is_network(frame)]
    log = bool((frame["loss"].dropna() > 0).mean() > 0.9)
    means = {
        budget: summaries.over_inits(
            on_common_grid(rows_for(frame, budget), budget),
            ["condition", "num_dim", "method", "x"],
            "loss",
        )
        for budget in dict.fromkeys(budget for budget, _ in planned.panels.values())
    }

    with _style.theme():
        figure, axes = _style.panels(
            len(planned.rows),
            len(planned.columns),
            width=3.2 if len(planned.columns) <= 3 else 2.6,
            height=2.2,
            extra=_style.legend_width(looks),
            sharey="row" if planned.by_budget else False,
            sharex="col",
        )
        for (row, column), (budget, keys) in planned.panels.items():
            ax = axes[row, column]
            start = _style.pick(starts, **keys)["loss"]
            if len(start):
                ax.axhline(start.mean(), color=_style.FAINT, linewidth=0.8, linestyle=":")
            for method, look in looks.items():
                here = _style.pick(means[budget], **keys, method=method, missing=0)
                if len(here):
                    _style.curve(ax, here, "x", look, label=method, markers=False)
                    ends = here.sort_values("x").iloc[[-1]]
                    ax.plot(ends["x"], ends["mean"], **{**look.line_kwargs, "zorder": 4})
            _style.log_axis(ax)
            if log:
                _style.log_axis(ax, "y")
            if row == len(planned.rows) - 1:
                ax.set_xlabel(LABELS[budget])
        for ax, name in zip(axes[0], planned.columns, strict=True):
            ax.set_title(name, loc="left")
        for ax, name in zip(axes[:, 0], planned.rows, strict=True):
            unit = f"{judged}{_notes.loss_unit(frame)}"
            if len(unit) > 24:  # of a held-out batch: two lines
                unit = f"{judged}\n{_notes.loss_unit(frame).strip()}"
            ax.set_ylabel(f"{name}\n{unit}".lstrip(), linespacing=1.5)
        _layout.blank(axes, planned.panels)
        _style.legend_entries(axes[0, -1], looks, looks)
        _style.side_legend(axes[0, -1], order=looks)
        _style.title(figure, "Loss along the descent")
        drawn = pd.concat(part.assign(budget=budget) for budget, part in means.items())
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn, seeds=False),
            "The marker is where the budget ends.",
            "Dotted: the loss at the start." if len(starts) else "",
            "Curves end where a run diverged." if (drawn["missing"] > 0).any() else "",
        ]
        return _style.finish(figure, drawn, notes)


@dataclass(frozen=True)
class Plan:
    """A title for each row and column, and for (row, column) the budget and the rows it shows."""

    rows: list[str]
    columns: list[str]
    panels: dict[tuple[int, int], tuple[str, dict[str, Any]]]
    by_budget: bool = True


def plan(frame: pd.DataFrame, budgets: list[str]) -> Plan:
    """A column for each budget; of many networks, their states side by side under the first one."""
    across = grid(frame)
    if is_network(frame) and len(across.panels) > FEW_ROWS and len(across.columns) > 1:
        panels = {place: (budgets[0], keys) for place, keys in across.panels.items()}
        return Plan(across.rows, across.columns, panels, by_budget=False)
    keys = [
        {"condition": condition, "num_dim": num_dim}
        for condition in columns.conditions(frame)
        for num_dim in sorted(frame["num_dim"].unique())
        if len(_style.pick(frame, condition=condition, num_dim=num_dim))
    ]
    return Plan(
        [_notes.panel_title(key["condition"], key["num_dim"]) for key in keys],
        [heading(frame, budget) for budget in budgets],
        {(i, j): (budget, key) for i, key in enumerate(keys) for j, budget in enumerate(budgets)},
    )


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
