"""The cost–quality plane: cosine to the reference gradient against forward passes, per layer.

Up and to the left is better. Cost is what the method needs by definition, in passes over the full
batch (CDG: two per coordinate), not what an implementation saves. A straight-through estimate
costs one forward and one backward pass and stands at one. Sizes of one estimator are joined.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import whole_depth
from gradlab.reporting.layers import JOINED, depths, layer_order, layer_title, spread, tick_names

from . import _notes, _style

TABLES = ("gradient_quality",)
BY = ["reference", "condition", "num_dim", "method", "layer"]
MOST_LAYERS = 6


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "gradient_quality", ["layer", "cosine", "forward_passes"])
    frame = whole_depth(frame)
    if "reference" not in frame:
        frame["reference"] = "reference"
    if frame["cosine"].isna().all():
        raise ValueError("no cosine to a reference was measured.")
    cost = frame.groupby(BY, as_index=False)["forward_passes"].mean()
    means = summaries.over_inits(frame, BY, "cosine").merge(cost, on=BY)
    inits = summaries.replicate_means(frame, BY, ["cosine"]).merge(cost, on=BY)
    # Estimates of one price stand side by side, not on top of each other.
    price = means.drop_duplicates("method").set_index("method")["forward_passes"]
    shift = _shifts(price)
    every = layer_order(frame)
    layers = spread(every, MOST_LAYERS)
    numbers = {layer: f"layer {tick_names(frame)[layer]}" for layer in depths(frame)}
    looks, known = _style.styles(frame), columns.methods(frame)
    rows = [(r, c, d) for r in frame["reference"].unique() for c in columns.conditions(frame)
            for d in sorted(frame["num_dim"].unique())
            if len(_style.pick(means, reference=r, condition=c, num_dim=d))]  # fmt: skip

    with _style.theme():
        figure, axes = _style.panels(
            len(rows),
            len(layers),
            width=2.0,
            height=2.1,
            extra=_style.legend_width(looks),
            sharex=True,
            sharey=True,
        )
        for row, (reference, condition, num_dim) in enumerate(rows):
            for column, layer in enumerate(layers):
                ax = axes[row, column]
                where = {"reference": reference, "condition": condition, "num_dim": num_dim,
                         "layer": layer}  # fmt: skip
                here, single = _style.pick(means, **where), _style.pick(inits, **where)
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                _joined(ax, here, known)
                for method, look in looks.items():
                    one = here[here["method"] == method]
                    dots = single[single["method"] == method]
                    if len(one):
                        one, dots = (
                            part.assign(forward_passes=part["forward_passes"] * shift[method])
                            for part in (one, dots)
                        )
                        _style.dots(ax, dots["forward_passes"], dots["cosine"], look)
                        _style.curve(ax, one, "forward_passes", look, label=method)
                _style.log_axis(ax)
                ax.set_ylim(min(-0.05, means["mean"].min() - 0.05), 1.05)
                if row == 0:
                    ax.set_title(numbers.get(layer, layer_title(layer)), loc="left")
                if row == len(rows) - 1:
                    ax.set_xlabel("forward passes")
            name = _notes.panel_title(condition, num_dim)
            axes[row, 0].set_ylabel(f"{name}\ncosine to {columns.reference_name(reference)}")
        _style.legend_entries(axes[0, -1], looks, looks)
        _style.side_legend(axes[0, -1])
        _style.title(figure, "What a better direction costs")
        drawn = pd.concat([means, inits.rename(columns={"cosine": "mean"})])
        notes = [
            _notes.problem_note(frame),
            layers_note(layers, every),
            _notes.interval_note(means, drawn="Vertical lines"),
            "STE: 1 forward and 1 backward pass."
            if known["family"].isin(["ste", "matched"]).any()
            else "",
            _notes.nested_note(frame),
        ]
        return _style.finish(figure, drawn, notes)


def layers_note(shown: list[str], every: list[str]) -> str:
    """That a deep network has more layers than are shown."""
    some, whole = (len([name for name in names if name not in JOINED]) for names in (shown, every))
    return f"{some} of {whole} layers, evenly spaced." if some < whole else ""


def _shifts(price: pd.Series) -> dict[str, float]:
    """A factor near one for each method, different for those of one price."""
    factors = {}
    for _, same in price.groupby(price):
        spread = np.linspace(-1, 1, len(same)) if len(same) > 1 else np.zeros(1)
        width = min(0.15, 0.04 * len(same))
        factors |= dict(zip(same.index, 10 ** (width * spread), strict=True))
    return factors


def _joined(ax: object, here: pd.DataFrame, known: pd.DataFrame) -> None:
    """A thin line through the sizes of one estimator."""
    for family in ("nes", "local"):
        members = here[here["method"].isin(known.index[known["family"] == family])]
        members = members.sort_values("forward_passes")
        if members["forward_passes"].is_unique and len(members) > 1:
            ax.plot(
                members["forward_passes"], members["mean"], color="#b4b9bf", linewidth=1, zorder=1
            )
