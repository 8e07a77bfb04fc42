"""Error of pruned networks against their compression, with published ones beside them.

Each network is judged with the mean weights that are kept after the last epoch; compression is all
weights over kept ones, without biases. Better is lower and further right.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from gradlab.reporting import columns, noise, published_variational, runs, summaries

from . import _layout, _notes, _style

TABLES = ("training_result",)
NEEDED = [noise.final("pruned"), "last_compression"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    _style.table(tables, "training_result", NEEDED)
    everything = runs.annotated(tables["training_result"])
    everything["error"] = 1 - everything[noise.final("pruned")]
    frame = everything[everything[NEEDED].notna().all(axis=1)]
    if frame.empty:
        raise ValueError("no network was pruned: there is no compression to draw.")
    panels = [c for c in columns.conditions(everything) if (frame["condition"] == c).any()]
    bands = _layout.bands(len(panels), 1, 3)
    means = summaries.over_inits(frame, noise.BY, "error")
    sizes = summaries.over_inits(frame, noise.BY, "last_compression")
    means = means.assign(compression=sizes["mean"], compression_low=sizes["low"],
                         compression_high=sizes["high"])  # fmt: skip
    inits = summaries.replicate_means(frame, noise.BY, ["error", "last_compression"])
    dense = everything[everything["estimator"] == "none"]
    dense = dense.assign(error=1 - dense[noise.final("mean")])
    flat = summaries.over_inits(dense, noise.BY, "error").dropna(subset="mean")
    theirs = published_points(tables["training_result"])
    everyone = pd.concat([means["compression"], theirs["compression"]])
    wide = everyone.max() > 5 * everyone.min()
    looks = {m: look for m, look in _style.styles(everything).items()
             if m in set(frame["method"])}  # fmt: skip

    with _style.theme():
        figure, axes = _style.panels(
            bands.height, bands.across, width=3.0, height=2.6,
            extra=_style.legend_width([*looks, *theirs["name"], "without noise, whole"]),
        )  # fmt: skip
        for problem, condition in enumerate(panels):
            ax = axes[bands.place(problem, 0)]
            ax.set_title(_notes.panel_title(condition, 0), loc="left")
            for method, look in looks.items():
                here = _style.pick(means, condition=condition, method=method)
                one = _style.pick(inits, condition=condition, method=method)
                _style.dots(ax, one["last_compression"], one["error"], look)
                _cross(ax, here, look)
                ax.plot(here["compression"], here["mean"], zorder=3,
                        **{**look.line_kwargs, "linestyle": "none"})  # fmt: skip
            for row in _style.pick(flat, condition=condition).to_dict("records"):
                ax.axhline(row["mean"], color=_style.INK, linewidth=0.9, linestyle="--")
            points = _style.pick(theirs, condition=condition)
            for place, row in enumerate(points.to_dict("records")):
                ax.plot(row["compression"], row["published"], "Dsv^"[place % 4], color=_style.FAINT,
                        markersize=6.5, markerfacecolor="none", markeredgewidth=1.2,
                        linestyle="none", zorder=4, label=row["name"])  # fmt: skip
            if wide:
                _style.log_axis(ax, "x")
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g}"))
            if bands.lowest(problem, 0):
                ax.set_xlabel("compression")
            if problem % bands.across == 0:
                ax.set_ylabel("error (%)")
        _layout.blank(axes, bands.places)
        _legend(axes[0, -1], looks, theirs, len(flat) > 0)
        _style.title(figure, "Error of pruned networks against compression")
        drawn = pd.concat([means, flat.assign(compression=1.0), theirs])
        notes = [
            _notes.problem_note(everything),
            _notes.interval_note(means, drawn="Lines"),
            "Hollow: published networks, trained by schedules of their own." if len(theirs) else "",
            _notes.run_note(everything),
        ]
        return _style.finish(figure, drawn, notes)


def published_points(results: pd.DataFrame) -> pd.DataFrame:
    """Published pruned networks of those that were trained here, one per condition."""
    frame = published_variational.annotated(results)
    found = published_variational.points(frame, "last_compression")
    errors = pd.concat([
        published_variational.points(frame, "pruned_error"),
        published_variational.points(frame, "pruned").assign(
            published=lambda rows: 1 - rows["published"]),
    ])  # fmt: skip
    for part in (found, errors):
        part["name"] = [what.rpartition(":")[0] for what in part["what"]]
    found = found.rename(columns={"published": "compression"})
    joined = found.drop(columns=["what", "remark"]).merge(
        errors[["condition", "name", "published"]], on=["condition", "name"]
    )
    return joined.drop_duplicates(["condition", "name"])


def _cross(ax: Axes, rows: pd.DataFrame, look: _style.Style) -> None:
    """Intervals of both."""
    ax.vlines(rows["compression"], rows["low"], rows["high"], color=look.colour, linewidth=1.1)
    ax.hlines(rows["mean"], rows["compression_low"], rows["compression_high"], color=look.colour,
              linewidth=1.1)  # fmt: skip


def _legend(ax: Axes, looks: Mapping[str, _style.Style], theirs: pd.DataFrame, dense: bool) -> None:
    for method, look in looks.items():
        ax.plot([], [], label=method, **{**look.line_kwargs, "linestyle": "none"})
    if dense:
        ax.plot([], [], color=_style.INK, linewidth=0.9, linestyle="--",
                label="without noise, whole")  # fmt: skip
    _, have = ax.get_legend_handles_labels()
    first = theirs.drop_duplicates("name")
    for place, name in enumerate(first["name"]):
        if name not in have:
            ax.plot([], [], "Dsv^"[place % 4], color=_style.FAINT, markersize=6.5, label=name,
                    markerfacecolor="none", markeredgewidth=1.2, linestyle="none")  # fmt: skip
    _style.side_legend(ax, order=[*looks, "without noise, whole"])
