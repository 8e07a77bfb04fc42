"""Variance of gradient estimates of one smoothed loss, by where the noise is and how it is derived.

Left, the variance of one estimate over the squared length of the expected gradient; right, times
the passes that an estimate takes, forward and backward: the variance where all may spend the same.
One is as much noise as signal. Pathwise estimates differentiate through the noise, score functions
weight losses by it. Absolute noise is alike for all of them; additive and multiplicative noise with
σ in proportion to a weight are a comparison of their own.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.findings_variance import annotated, ordered_methods
from gradlab.reporting.layers import single_layers

from . import _notes, _style

TABLES = ("gradient_variance",)
MEASURED = {
    "relative_variance": "of one estimate",
    "relative_variance_per_pass": "times its passes",
}
LOOKS = {
    "first layer": _style.Style("#e2300c", "^"),
    "last layer": _style.Style("#1f5fc0", "s"),
    "all layers": _style.Style("#1a1a1a", "o"),
}
LANES = {"first layer": -0.24, "all layers": 0.0, "last layer": 0.24}
BY = ["condition", "method", "group"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    _style.table(tables, "gradient_variance", ["layer", *MEASURED])
    frame = grouped(annotated(tables["gradient_variance"]))
    if frame["relative_variance"].isna().all():
        raise ValueError("no reference gradient rose above its own noise.")
    methods, conditions = ordered_methods(frame), columns.conditions(frame)
    means = {value: summaries.over_inits(frame, BY, value) for value in MEASURED}
    inits = summaries.replicate_means(frame, BY, list(MEASURED))

    with _style.theme():
        figure, axes = _style.panels(
            len(conditions), len(MEASURED), width=2.4, height=0.55 + 0.19 * len(methods),
            sharex="col", sharey=True, extra=1.3 + 0.055 * max(map(len, methods)),
        )  # fmt: skip
        for row, condition in enumerate(conditions):
            for column, (value, words) in enumerate(MEASURED.items()):
                ax = axes[row, column]
                if row == 0:
                    ax.set_title(words, loc="left")
                panel(ax, _style.pick(means[value], condition=condition),
                      _style.pick(inits, condition=condition), value, methods)  # fmt: skip
                if row == len(conditions) - 1:
                    ax.set_xlabel("relative variance")
            if condition:
                _style.row_title(axes[row, 0], condition)
        for name, look in LOOKS.items():
            axes[0, -1].plot([], [], label=name, **{**look.line_kwargs, "linestyle": "none"})
        _style.side_legend(axes[0, -1])
        _style.title(figure, "What sampling costs: variance of the gradient of one smoothed loss")
        drawn = pd.concat([part.assign(quantity=value) for value, part in means.items()])
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn, drawn="Horizontal lines"),
            "Noise is absolute with σ = 0.1 where nothing is said. Local reparameterization (noise "
            "on pre-activations) and flipout take two linear maps, counted as two passes. "
            "Score functions on pre-activations differentiate the output layer.",
        ]
        return _style.finish(figure, drawn, notes)


def grouped(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of every network's first and last layer and of all, named by ``group``."""
    found = []
    for _, rows in frame.groupby("condition", sort=False):
        layers = single_layers(rows)
        names = {"all": "all layers"}
        if len(layers) > 1:
            names |= {layers[0]: "first layer", layers[-1]: "last layer"}
        found.append(rows.assign(group=rows["layer"].map(names)).dropna(subset="group"))
    return pd.concat(found)


def panel(
    ax: Axes, means: pd.DataFrame, inits: pd.DataFrame, value: str, methods: list[str]
) -> None:
    """A line for each method, with its layers one under the other."""
    for group, look in LOOKS.items():
        here = means[(means["group"] == group) & means["mean"].notna()]
        lane = {method: place + LANES[group] for place, method in enumerate(methods)}
        y = here["method"].map(lane)
        ax.hlines(y, here["low"], here["high"], color=look.colour, linewidth=1.2)
        ax.plot(here["mean"], y, zorder=3, **{**look.line_kwargs, "linestyle": "none"})
        single = inits[inits["group"] == group]
        if single["init"].nunique() > 1:
            _style.dots(ax, single[value], single["method"].map(lane), look)
    _style.log_axis(ax)
    ax.axvline(1, color=_style.FAINT, linewidth=0.7, zorder=1)
    ax.set_yticks(range(len(methods)), methods)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    for edge in range(1, len(methods)):
        ax.axhline(edge - 0.5, color=_style.RULE, linewidth=0.5, zorder=0)
