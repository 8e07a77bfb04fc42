"""Accuracy of networks with noise, judged by mean weights, one draw, Monte Carlo and when pruned.

All judges see the network of the last epoch: its mean weights, one draw of the noise for each
image, the mean prediction of several draws, and the mean weights that are kept. Hollow diamonds are
published accuracies of the last epoch, which were judged by one draw.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from gradlab.reporting import columns, noise, published_variational, runs, summaries

from . import _layout, _notes, _style

TABLES = ("training_result",)
LOOKS = {
    "mean": _style.Style("#1a1a1a", "o"),
    "monte_carlo": _style.Style("#1f5fc0", "s"),
    "sample": _style.Style("#e2300c", "^"),
    "pruned": _style.Style("#12946a", "P"),
}
MOST = 3  # panels side by side


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    _style.table(tables, "training_result", [noise.final("mean")])
    frame = runs.annotated(tables["training_result"])
    if frame[noise.final("mean")].isna().all():
        raise ValueError("every training run diverged: there is no accuracy to draw.")
    kinds = [kind for kind in LOOKS if kind in noise.kinds(frame)]
    methods = list(columns.methods(frame).index)
    panels = columns.conditions(frame)
    bands = _layout.bands(len(panels), 1, MOST)
    measured = {kind: summaries.over_inits(frame, noise.BY, noise.final(kind)) for kind in kinds}
    inits = summaries.replicate_means(frame, noise.BY, [noise.final(kind) for kind in kinds])
    theirs = published_points(tables["training_result"])
    lane = dict(zip(kinds, _lanes(len(kinds)), strict=True))
    labels = ["\n".join(textwrap.wrap(method, 30)) for method in methods]

    with _style.theme():
        figure, axes = _style.panels(
            bands.height, bands.across, width=2.5, height=0.5 + 0.34 * len(methods), sharey=True,
            extra=1.6 + 0.055 * max(map(len, labels)),
        )  # fmt: skip
        for problem, condition in enumerate(panels):
            ax = axes[bands.place(problem, 0)]
            ax.set_title(_notes.panel_title(condition, 0), loc="left")
            trained = set(_style.pick(frame, condition=condition)["method"])
            present = [method for method in methods if method in trained]
            for kind, look in LOOKS.items():
                if kind in kinds:
                    where = {m: methods.index(m) + lane[kind] for m in present}
                    _lane(ax, _style.pick(measured[kind], condition=condition),
                          _style.pick(inits, condition=condition), where, kind, look)  # fmt: skip
            points = _style.pick(theirs, condition=condition)
            shift = lane.get("sample", 0.0)
            ax.plot(points["published"], [methods.index(m) + shift for m in points["method"]], "D",
                    color=LOOKS["sample"].colour, markersize=6.0, markerfacecolor="none",
                    markeredgewidth=1.1, linestyle="none", zorder=4)  # fmt: skip
            _axes(ax, labels)
            if bands.lowest(problem, 0):
                ax.set_xlabel("accuracy (%)")
        _layout.blank(axes, bands.places)
        _legend(axes[0, -1], kinds, len(theirs) > 0)
        _style.title(figure, "Accuracy after the last epoch, by method and judge")
        drawn = pd.concat([
            *(means.assign(judge=kind) for kind, means in measured.items()),
            theirs.assign(judge="published (one draw)"),
        ])  # fmt: skip
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn.dropna(subset="n"), drawn="Horizontal lines"),
            comparable_note(theirs),
            _notes.run_note(frame),
        ]
        return _style.finish(figure, drawn, notes)


def published_points(results: pd.DataFrame) -> pd.DataFrame:
    """The published accuracies of the methods that were trained here."""
    frame = published_variational.annotated(results)
    return published_variational.points(frame, "last_sample_accuracy")


def comparable_note(theirs: pd.DataFrame) -> str:
    """What the hollow marks are, and how our runs differ from those."""
    if theirs.empty:
        return ""
    remarks = [remark for remark in theirs["remark"].unique() if remark]
    said = "Hollow: published accuracies of one draw after the last epoch, one run each"
    if remarks:
        more = f" and {len(remarks) - 2} more differences" if len(remarks) > 2 else ""
        said += f". Ours were trained otherwise: {'; '.join(remarks[:2])}{more}"
    return said + "."


def _lanes(count: int) -> np.ndarray:
    return np.linspace(-0.27, 0.27, count) if count > 1 else np.zeros(1)


def _lane(
    ax: Axes, means: pd.DataFrame, inits: pd.DataFrame, where: Mapping[str, float], kind: str,
    look: _style.Style,
) -> None:  # fmt: skip
    """One judge's dots: every init small, the mean over them large."""
    means = means[means["method"].isin(list(where)) & means["mean"].notna()]
    inits = inits[inits["method"].isin(list(where))]
    y = means["method"].map(where)
    _style.dots(ax, inits[noise.final(kind)], inits["method"].map(where), look)
    ax.hlines(y, means["low"], means["high"], color=look.colour, linewidth=1.2)
    ax.plot(means["mean"], y, zorder=3, **{**look.line_kwargs, "linestyle": "none"})


def _axes(ax: Axes, labels: Sequence[str]) -> None:
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    for edge in range(1, len(labels)):
        ax.axhline(edge - 0.5, color=_style.RULE, linewidth=0.5, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.5g}"))
    ax.tick_params(axis="y", length=0)


def _legend(ax: Axes, kinds: Sequence[str], published: bool) -> None:
    for kind in kinds:
        ax.plot([], [], label=columns.PREDICTIONS[kind],
                **{**LOOKS[kind].line_kwargs, "linestyle": "none"})  # fmt: skip
    if published:
        ax.plot([], [], "D", color=LOOKS["sample"].colour, markersize=6.0, linestyle="none",
                markerfacecolor="none", markeredgewidth=1.1, label="published")  # fmt: skip
    _style.side_legend(ax)
