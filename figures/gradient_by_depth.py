"""Direction and size of the gradient from the input of a network to its output.

Above, the cosine of each estimate to the reference: one is the reference's own direction, zero a
random one. Below, the norm of each layer's gradient, with that of the reference itself as a broad
grey line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import whole_depth
from gradlab.reporting.findings_depth import norm_words
from gradlab.reporting.layers import JOINED

from . import _layout, _notes, _style

TABLES = ("gradient_quality",)
BY = ["reference", "condition", "method", "depth_index"]
GREY = "#9aa0a6"
MOST_BANDS = 8  # with more problems bands get longer
HIGHEST = 20.0  # inches of all panels


@dataclass(frozen=True)
class Measured:
    """One measurement by depth: its means with their intervals, and every init by itself."""

    value: str
    words: str
    means: pd.DataFrame
    inits: pd.DataFrame


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "gradient_quality", ["layer", "cosine", "depth_index"])
    frame = whole_depth(frame)
    frame = frame[frame["depth_index"].notna() & ~frame["layer"].isin(JOINED)]
    if frame["depth_index"].nunique() < 2:
        raise ValueError("a figure by depth needs two layers at least: this study has fewer.")
    if frame["cosine"].isna().all():
        raise ValueError("no cosine to a reference was measured.")
    frame = frame if "reference" in frame else frame.assign(reference="reference")
    kinds = [measured(frame, "cosine", f"cosine to {_reference(frame)}")]
    if "gradient_norm" in frame and frame["gradient_norm"].notna().any():
        kinds.append(measured(frame, "gradient_norm", "norm of the gradient"))
    own = reference_norms(frame)
    looks = _style.styles(frame)
    panels = [
        (reference, condition)
        for reference in frame["reference"].unique()
        for condition in columns.conditions(frame)
        if len(_style.pick(frame, reference=reference, condition=condition))
    ]
    bands = _layout.bands(len(panels), len(kinds), most=4 * -(-len(panels) // (4 * MOST_BANDS)))
    high = min(2.1, HIGHEST / bands.height)
    few = bool((kinds[0].means["n"] < summaries.LEAST_INITS).all())

    with _style.theme():
        figure, axes = _style.panels(
            bands.height, bands.across, width=2.5, height=high,
            extra=_style.legend_width([*looks, "the reference"]), sharex=True,
        )  # fmt: skip
        for problem, (reference, condition) in enumerate(panels):
            where = {"reference": reference, "condition": condition}
            for row, kind in enumerate(kinds):
                ax = axes[bands.place(problem, row)]
                _scale(ax, kind, kinds[0].means["mean"].min())
                if kind.value == "gradient_norm":
                    _reference_line(ax, _style.pick(own, **where))
                for method, look in looks.items():
                    here = _style.pick(kind.means, **where, method=method)
                    if len(here):
                        _style.curve(ax, here, "depth_index", look, label=method)
                        one = _style.pick(kind.inits, **where, method=method)
                        if few and one["init"].nunique() > 1:
                            _style.dots(ax, one["depth_index"], one[kind.value], look)
                ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
                if problem % bands.across == 0:
                    ax.set_ylabel(textwrap.fill(kind.words, int(12 * high)))
                if bands.lowest(problem, row):
                    ax.set_xlabel("layer, from input to output")
                    ax.tick_params(labelbottom=True)
            several = frame["reference"].nunique() > 1
            against = f"against {columns.reference_name(reference)}" if several else ""
            title = "\n".join(filter(None, [_notes.panel_title(condition, 0), against]))
            axes[bands.place(problem, 0)].set_title(title, loc="left")
        _layout.blank(axes, bands.places)
        _share(axes, bands, kinds)
        _style.legend_entries(axes[0, -1], looks, looks)
        if len(own):
            axes[0, -1].plot([], [], color=GREY, linewidth=3, alpha=0.45, label="the reference")
        _style.side_legend(axes[0, -1], order=looks)
        _style.title(figure, "The gradient, from input to output")
        drawn = pd.concat([kind.means.assign(quantity=kind.words) for kind in kinds])
        notes = [
            _notes.problem_note(frame),
            _notes.reference_note(frame),
            _notes.interval_note(kinds[0].means, seeds=few),
            f"Layer 0 is the first binarized one. {norm_words(frame)}",
            _notes.nested_note(frame),
        ]
        return _style.finish(figure, pd.concat([drawn, own]), notes)


def measured(frame: pd.DataFrame, value: str, words: str) -> Measured:
    """The means and single inits of one column."""
    inits = summaries.replicate_means(frame, BY, [value])
    return Measured(value, words, summaries.over_inits(frame, BY, value), inits)


def reference_norms(frame: pd.DataFrame) -> pd.DataFrame:
    """The norm of the reference in every layer, by condition."""
    if "reference_norm" not in frame or frame["reference_norm"].isna().all():
        return pd.DataFrame(columns=["reference", "condition", "depth_index", "mean"])
    by = ["reference", "condition", "depth_index"]
    found = summaries.over_inits(frame, by, "reference_norm")
    return found.assign(method="the reference", quantity="norm of the gradient")


def _reference_line(ax: Axes, rows: pd.DataFrame) -> None:
    if len(rows):
        rows = rows.sort_values("depth_index")
        ax.plot(rows["depth_index"], rows["mean"], color=GREY, linewidth=3, alpha=0.45, zorder=0)


def _scale(ax: Axes, kind: Measured, least: float) -> None:
    if kind.value == "cosine":
        ax.axhline(0, color=_style.FAINT, linewidth=0.7)
        ax.set_ylim(min(-0.05, least - 0.05), 1.05)
    else:
        ax.set_yscale("log")


def _share(axes: np.ndarray, bands: _layout.Bands, kinds: list[Measured]) -> None:
    """Norms span orders of magnitude: one logarithmic axis for all of them."""
    if len(kinds) < 2:
        return
    panels = [axes[bands.place(problem, 1)] for problem in range(bands.count)]
    limits = [ax.get_ylim() for ax in panels]
    for ax in panels:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        _style.log_axis(ax, "y")


def _reference(frame: pd.DataFrame) -> str:
    names = frame["reference"].unique()
    return columns.reference_name(names[0]) if len(names) == 1 else "the reference"
