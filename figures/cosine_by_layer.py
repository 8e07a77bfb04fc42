"""Cosine of each estimate to the reference gradient, layer by layer.

One is the reference's own direction, zero is a random one. The first layers are the hard ones:
their signal passes through every later sign. A faint grey line, where the study measured it, is
the reference's agreement with itself (the cosine of its two halves): nothing can be judged finer.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import whole_depth
from gradlab.reporting.layers import JOINED, depths, layer_order, tick_names

from . import _notes, _style

TABLES = ("gradient_quality",)
BY = ["reference", "condition", "num_dim", "method", "layer"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = whole_depth(_style.table(tables, "gradient_quality", ["layer", "cosine"]))
    if "reference" not in frame:
        frame["reference"] = "reference"
    if frame["cosine"].isna().all():
        raise ValueError("no cosine to a reference was measured.")
    means = summaries.over_inits(frame, BY, "cosine")
    inits = summaries.replicate_means(frame, BY, ["cosine"])
    layers = layer_order(frame)
    place = _places(layers)
    means["x"], inits["x"] = means["layer"].map(place), inits["layer"].map(place)
    looks = _style.styles(frame)
    cells = [
        (reference, condition, num_dim)
        for reference in frame["reference"].unique()
        for condition in columns.conditions(frame)
        for num_dim in sorted(frame["num_dim"].unique())
        if len(_style.pick(means, reference=reference, condition=condition, num_dim=num_dim))
    ]
    width = min(4, len(cells))
    if "activation" in frame and frame["activation"].nunique() > 1:
        # More bits from left to right, whatever else varies from row to row.
        width = frame["activation"].nunique()
        panel = columns.conditions_apart_from(frame, ["activation"])
        row = dict(zip(frame["condition"], pd.factorize(panel)[0], strict=True))
        cells.sort(key=lambda cell: (cell[0], cell[2], row[cell[1]]))
    height = -(-len(cells) // width)

    with _style.theme():
        figure, axes = _style.panels(
            height,
            width,
            width=2.5,
            height=2.5,
            extra=_style.legend_width(looks),
            sharey=True,
            sharex=True,
        )
        for ax, (reference, condition, num_dim) in zip(axes.flat, cells, strict=False):
            where = {"reference": reference, "condition": condition, "num_dim": num_dim}
            here, inits_here = _style.pick(means, **where), _style.pick(inits, **where)
            ax.axhline(0, color=_style.FAINT, linewidth=0.7)
            _self_agreement(ax, _style.pick(frame, **where), place)
            for method, look in looks.items():
                rows = here[here["method"] == method]
                dots = inits_here[inits_here["method"] == method]
                if len(rows):
                    _style.dots(ax, dots["x"], dots["cosine"], look)
                    single = ~rows["layer"].isin(JOINED)
                    if single.any():
                        _style.curve(ax, rows[single], "x", look, label=method)
                    for _, group in rows[~single].groupby("layer"):
                        _style.curve(ax, group, "x", look)
            name = _notes.panel_title(condition, num_dim)
            ax.set_title(name, loc="left")
            _layer_ticks(ax, place, tick_names(frame))
            ax.set_ylim(min(-0.05, means["mean"].min() - 0.05), 1.04)
        for ax in axes.flat[len(cells) :]:
            ax.set_axis_off()
        for row in axes:
            row[0].set_ylabel(f"cosine to {_reference(cells)}")
        for ax in axes[-1]:
            ax.set_xlabel(
                "binarized layer, from input to output" if depths(frame) else "layer (weights)"
            )
        last = axes[0, -1]
        _style.legend_entries(last, looks, looks)
        _style.side_legend(last)
        _style.title(figure, "Agreement with the reference gradient, by layer")
        drawn = pd.concat([means, inits.rename(columns={"cosine": "mean"})]).drop(columns="x")
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(means),
            _notes.nested_note(frame),
        ]
        return _style.finish(figure, drawn, notes)


def _step(single: list[str]) -> int:
    """Of how many layers one gets a label."""
    return -(-len(single) // 10) or 1


def _places(layers: list[str]) -> dict[str, int]:
    """Where each layer stands; groups of layers apart from a deep network's last ones."""
    single = [layer for layer in layers if layer not in JOINED]
    groups = [layer for layer in layers if layer in JOINED]
    apart = {layer: len(single) - 1 + _step(single) * i for i, layer in enumerate(groups, start=1)}
    return {layer: i for i, layer in enumerate(single)} | apart


def _layer_ticks(ax: Axes, place: Mapping[str, int], names: Mapping[str, str]) -> None:
    """One tick per layer, or of a deep network as many as can be read."""
    single = [layer for layer in place if layer not in JOINED]
    step = _step(single)
    shown = [*single[::step], *(layer for layer in place if layer in JOINED)]
    ax.set_xticks([place[layer] for layer in shown], [names[layer] for layer in shown])


def _reference(cells: list[tuple[str, str, int]]) -> str:
    names = {reference for reference, _, _ in cells}
    return columns.reference_name(names.pop()) if len(names) == 1 else "the reference"


def _self_agreement(ax: object, frame: pd.DataFrame, place: Mapping[str, int]) -> None:
    if "reference_split_half_cosine" not in frame:
        return
    own = frame.groupby("layer")["reference_split_half_cosine"].mean().dropna()
    own = own[~own.index.isin(JOINED)]
    if len(own):
        own = own.rename(index=place).sort_index()
        ax.plot(own.index, own, color="#9aa0a6", linewidth=3, alpha=0.45, zorder=0)
