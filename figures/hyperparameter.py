"""Best loss decrease against an estimator's own scale: ε of CDG, σ of NES and local NES.

Each point is the estimator at its best lr for that scale. Students trained until the loss stopped
falling have rows of their own, with dotted lines and hollow markers: their decreases are smaller
by orders of magnitude. Estimators that have no scale are level lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries

from . import _notes, _style

TABLES = ("loss_decrease",)
NAMES = {"epsilon": "ε (half-width of the finite difference)", "sigma": "σ (of the Gaussian)"}
KEYS = ["condition", "num_dim", "curve"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    scales = [s for s in NAMES if s in frame and frame.groupby("estimator")[s].nunique().max() > 1]
    if not scales:
        raise ValueError("no estimator has more than one epsilon or sigma in this study.")
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    frame["curve"] = columns.name_curves(frame, scales)
    rows = [
        (condition, num_dim)
        for condition in columns.conditions(frame)
        for num_dim in sorted(frame["num_dim"].unique())
    ]
    looks = _style.styles(frame.assign(method=frame["curve"]))
    level = _level_lines(frame[frame[scales].isna().all(axis=1)])
    everything = []

    with _style.theme():
        figure, axes = _style.panels(
            len(rows), len(scales), width=3.1, height=2.1, sharex="col", sharey="row",
            foot=_style.legend_height(list(looks)),
        )  # fmt: skip
        for column, scale in enumerate(scales):
            means, inits = _summaries(frame[frame[scale].notna()], scale)
            everything.append(means.rename(columns={scale: "scale"}).assign(hyperparameter=scale))
            names = [name for name in looks if name in set(means["curve"])]
            for row, (condition, num_dim) in enumerate(rows):
                ax = axes[row, column]
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                hollow = "converged" in condition
                for name in names:
                    key = {"condition": condition, "num_dim": num_dim, "curve": name}
                    here, one = _style.pick(means, **key), _style.pick(inits, **key)
                    if len(here):
                        look = replace(looks[name], line=":") if hollow else looks[name]
                        _style.dots(ax, one[scale], one["loss_decrease"], look)
                        _style.curve(ax, here, scale, look, hollow=hollow)
                _draw_level(ax, _style.pick(level, condition=condition, num_dim=num_dim), looks)
                _style.log_axis(ax)
            axes[-1, column].set_xlabel(NAMES[scale])
            _style.legend_below(axes[-1, column], [*names, *level["curve"].unique()], looks)
        for row, (condition, num_dim) in enumerate(rows):
            name = _notes.panel_title(condition, num_dim)
            unit = _notes.loss_unit(frame)
            axes[row, 0].set_ylabel(f"{name}\nbest loss decrease{unit}".lstrip(), linespacing=1.5)
        _style.title(figure, "Best loss decrease of one step, by the estimator's own scale")
        drawn = pd.concat([*everything, level.assign(hyperparameter="none")])
        edge = drawn[drawn["edge"] != ""]
        notes = [
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
