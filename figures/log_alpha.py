"""Histograms of log α of every layer at the end: noise, relative to the weight, of each weight.

α is the variance of a weight's noise over its squared mean. Right of the dashed line weights are
removed; what lies beyond the axis is counted at its ends. Methods with one fixed α are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gradlab.reporting import columns, noise

from . import _layout, _notes, _series, _style
from .sparsity import in_order

TABLES = ("log_alpha",)
MOST_LAYERS = 10


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    _style.table(tables, "log_alpha", noise.LOG_ALPHA)
    frame = noise.named(tables["log_alpha"], noise.LOG_ALPHA)
    frame = learned(frame[frame["low"].notna()])
    shares = share(frame)
    if shares.empty:
        raise ValueError("no layer has learned a log alpha: there is no histogram to draw.")
    names = in_depth_order(shares)
    shown = names[:MOST_LAYERS]
    panels = in_order(shares, columns.conditions(frame), list(columns.methods(frame).index))
    several = frame["condition"].nunique() > 1
    looks = _series.ordered([noise.layer_name(layer) for layer in shown])
    bands = _layout.bands(len(panels), 1, 3)

    with _style.theme():
        figure, axes = _style.panels(
            bands.height, bands.across, width=2.8, height=2.0, sharex=True,
            extra=_style.legend_width([*looks, "threshold"]),
        )  # fmt: skip
        for problem, (condition, method) in enumerate(panels):
            ax = axes[bands.place(problem, 0)]
            rows = _style.pick(shares, condition=condition, method=method)
            for layer, look in zip(shown, looks.values(), strict=True):
                _histogram(ax, _style.pick(rows, layer=layer), look)
            own = _style.pick(frame, condition=condition, method=method)
            for value in thresholds(own):
                ax.axvline(value, color=_style.INK, linewidth=0.9, linestyle="--")
            names = [method, condition] if several else [method]
            ax.set_title(_notes.panel_title(", ".join(names), 0), loc="left")
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            ax.set_xlim(rows["low"].min(), rows["high"].max())
            if problem % bands.across == 0:
                ax.set_ylabel("share of a layer's log α")
            if bands.lowest(problem, 0):
                ax.set_xlabel("log α")
                ax.tick_params(labelbottom=True)
        _layout.blank(axes, bands.places)
        _legend(axes[0, -1], looks, len(thresholds(frame)) > 0)
        _style.title(figure, "How much noise the weights of each layer have")
        inits = frame["init"].nunique()
        hidden = len(names) - len(shown)
        notes = [
            _notes.problem_note(frame),
            f"Counts of {inits} inits are added up." if inits > 1 else "One init.",
            f"{hidden} more layers stand in the table." if hidden > 0 else "",
            _notes.run_note(frame),
        ]
        return _style.finish(figure, shares, notes)


def learned(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of methods that have more than one fixed α for a whole layer."""
    runs = [*noise.BY, *(c for c in columns.REPLICATES if c in frame), "layer"]
    values = frame.groupby(runs, dropna=False)["count"].transform("sum")
    most = values.groupby([frame[c] for c in noise.BY]).transform("max")
    return frame[most > 1]


def in_depth_order(frame: pd.DataFrame) -> list[str]:
    """The layers as they come; first those of the method that has the most of them."""
    found = [list(dict.fromkeys(rows["layer"])) for _, rows in frame.groupby(noise.BY, sort=False)]
    found.sort(key=len, reverse=True)
    return list(dict.fromkeys(layer for layers in found for layer in layers))


def share(frame: pd.DataFrame) -> pd.DataFrame:
    """``count`` of every bin over all inits, and its ``share`` of the layer."""
    by = [*noise.BY, "layer"]
    found = frame.groupby([*by, "low", "high"], as_index=False, sort=False)["count"].sum()
    total = found.groupby(by)["count"].transform("sum")
    found = found[total > 0]
    return found.assign(share=found["count"] / total[total > 0])


def thresholds(frame: pd.DataFrame) -> list[float]:
    """Those that the methods were given."""
    if "threshold" not in frame:
        return []
    return sorted(float(value) for value in frame["threshold"].dropna().unique())


def _histogram(ax: Axes, rows: pd.DataFrame, look: _style.Style) -> None:
    rows = rows.sort_values("low")
    if rows.empty:
        return
    edges = np.append(rows["low"].to_numpy(float), float(rows["high"].iloc[-1]))
    ax.stairs(rows["share"].to_numpy(float), edges, color=look.colour, linewidth=1.3)
    ax.stairs(rows["share"].to_numpy(float), edges, fill=True, color=look.colour, alpha=0.08)


def _legend(ax: Axes, looks: Mapping[str, _style.Style], threshold: bool) -> None:
    for name, look in looks.items():
        ax.plot([], [], color=look.colour, linewidth=1.3, label=name)
    if threshold:
        ax.plot([], [], color=_style.INK, linewidth=0.9, linestyle="--", label="threshold")
    _style.side_legend(ax)
