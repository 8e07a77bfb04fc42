"""Best loss decrease against an estimator's own scale: ε of CDG, σ of NES, the threshold of a clip.

Each point is the estimator at its best lr for that scale; the threshold is where hardtanh, as a
surrogate derivative, cuts off (1 unless it is said otherwise). Students trained until the loss
stopped falling have panels of their own, with dotted lines and hollow markers: their decreases are
smaller by orders of magnitude. Estimators that have no scale are level lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import grid

from . import _layout, _notes, _style

TABLES = ("loss_decrease",)
NAMES = {
    "epsilon": "ε (half-width of the finite difference)",
    "sigma": "σ (of the Gaussian)",
    "threshold": "clip threshold of the STE",
}
KEYS = ["condition", "num_dim", "curve"]


@dataclass(frozen=True)
class Plan:
    """The panels: a title for each row and column, and for (row, column) the scale and its rows."""

    rows: list[str]
    columns: list[str]
    panels: dict[tuple[int, int], tuple[str, dict[str, Any]]]


def plan(frame: pd.DataFrame, scales: list[str]) -> Plan:
    """A column for each scale; with one scale, what :func:`gradlab.reporting.facets.grid` says."""
    across = grid(frame)
    if len(scales) == 1 and len(across.columns) > 1:
        panels = {place: (scales[0], keys) for place, keys in across.panels.items()}
        return Plan(across.rows, across.columns, panels)
    present = frame.drop_duplicates(["condition", "num_dim"])
    order = columns.conditions(frame)
    keys = [{"condition": row["condition"], "num_dim": row["num_dim"]}
            for row in present.to_dict("records")]  # fmt: skip
    keys.sort(key=lambda key: (order.index(key["condition"]), key["num_dim"]))
    return Plan(
        [_notes.panel_title(key["condition"], key["num_dim"], 60) for key in keys],
        [""] * len(scales),
        {(i, j): (scale, key) for i, key in enumerate(keys) for j, scale in enumerate(scales)},
    )


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    scales = [scale for scale in NAMES if scale in columns.varied_scales(frame)]
    if not scales:
        raise ValueError("no estimator has more than one epsilon, sigma or threshold in this "
                         "study.")  # fmt: skip
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    frame["curve"] = columns.name_curves(frame, scales)
    planned = plan(frame, scales)
    looks = _style.styles(frame.assign(method=frame["curve"]))
    level = _level_lines(frame[frame[scales].isna().all(axis=1)])
    measured = {scale: _summaries(frame[frame[scale].notna()], scale) for scale in scales}
    of = {scale: [n for n in looks if n in set(measured[scale][0]["curve"])] for scale in scales}
    shown = [name for name in looks if name in set(level["curve"]).union(*of.values())]
    many = len(scales) < len(planned.columns)  # one scale in all columns, one legend for them

    with _style.theme():
        figure, axes = _style.panels(
            len(planned.rows), len(planned.columns), width=2.6 if many else 3.1,
            height=2.1 if len(planned.rows) < 5 else 1.55, sharex=True if many else "col",
            sharey=False if many else "row", foot=0 if many else _style.legend_height(shown),
            extra=_style.legend_width(shown) if many else 0,
        )  # fmt: skip
        for (row, column), (scale, keys) in planned.panels.items():
            ax = axes[row, column]
            ax.axhline(0, color=_style.FAINT, linewidth=0.7)
            hollow = "converged" in str(keys["condition"])
            means, inits = measured[scale]
            for name in of[scale]:
                here = _style.pick(means, **keys, curve=name)
                one = _style.pick(inits, **keys, curve=name)
                if len(here):
                    look = replace(looks[name], line=":") if hollow else looks[name]
                    _style.dots(ax, one[scale], one["loss_decrease"], look)
                    _style.curve(ax, here, scale, look, hollow=hollow)
            _draw_level(ax, _style.pick(level, **keys), looks)
            _style.scale_axis(ax, scale, means[scale])
        _layout.blank(axes, planned.panels)
        for column, name in enumerate(planned.columns):
            axes[0, column].set_title(name, loc="left")
            axes[-1, column].set_xlabel(NAMES[scales[0 if many else column]])
            if not many:
                names = [*of[scales[column]], *level["curve"].unique()]
                _style.legend_below(axes[-1, column], names, looks)
        for row, name in enumerate(planned.rows):
            axes[row, 0].set_ylabel(
                f"best loss decrease\n{_notes.loss_unit(frame).strip()}".strip()
            )
            if name:
                _style.row_title(axes[row, 0], textwrap.fill(name, 24) if many else name)
        if many:
            _style.legend_entries(axes[0, -1], shown, looks)
            _style.side_legend(axes[0, -1])
        _style.title(figure, "Best loss decrease of one step, by the estimator's own scale")
        drawn = pd.concat([
            *(means.rename(columns={scale: "scale"}).assign(hyperparameter=scale)
              for scale, (means, _) in measured.items()),
            level.assign(hyperparameter="none"),
        ])  # fmt: skip
        edge = drawn[drawn["edge"] != ""]
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn),
            f"{len(edge)} of {len(drawn)} best lrs lie at the edge of the grid."
            if len(edge)
            else "",
            _notes.nested_note(frame),
        ]
        return _style.finish(figure, drawn, notes)


def _summaries(frame: pd.DataFrame, scale: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means with their best lr, and single inits, for every value of the scale."""
    # The condition names a student that has been trained; a scale is no condition.
    by = [*KEYS, scale]
    best = summaries.at_best_lr(frame, by)
    lrs = best[[*by, "lr", "edge"]].drop_duplicates().rename(columns={"lr": "best_lr"})
    means = summaries.over_inits(best, by, "loss_decrease").merge(lrs, on=by)
    return means, summaries.replicate_means(best, by, ["loss_decrease"])


def _level_lines(frame: pd.DataFrame) -> pd.DataFrame:
    """The best decrease of estimators without a scale."""
    if frame.empty:
        return pd.DataFrame(columns=[*KEYS, "mean", "low", "high", "n", "missing", "edge"])
    best = summaries.at_best_lr(frame, KEYS)
    lrs = best[[*KEYS, "lr", "edge"]].drop_duplicates().rename(columns={"lr": "best_lr"})
    return summaries.over_inits(best, KEYS, "loss_decrease").merge(lrs, on=KEYS)


def _draw_level(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, _style.Style]) -> None:
    for row in rows.to_dict("records"):
        colour = looks[row["curve"]].colour
        ax.axhline(row["mean"], color=colour, linewidth=1.1, alpha=0.8, zorder=1.5)
