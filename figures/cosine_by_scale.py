"""Cosine of the hidden layers' gradient against an estimator's own scale: ε, σ or a clip's width.

The threshold is where hardtanh, as a surrogate derivative, cuts off (1 unless said otherwise).
A thick line is all hidden layers together, thin ones are single layers, paler towards the input.
Estimators that have no scale, such as an STE without a clip, are level lines.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.layers import single_layers

from . import _notes, _style
from .hyperparameter import NAMES

TABLES = ("gradient_quality",)
BY = ["reference", "condition", "num_dim", "curve", "layer"]


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw, or more than one scale.
    """
    frame = _style.table(tables, "gradient_quality", ["layer", "cosine"])
    scales = [scale for scale in NAMES if scale in columns.varied_scales(frame)]
    if len(scales) != 1:
        raise ValueError(
            f"this figure shows one scale, and this study varies {len(scales)} of epsilon, sigma "
            "and threshold."
        )
    scale = scales[0]
    frame["curve"] = columns.name_curves(frame, scales)
    if "reference" not in frame:
        frame["reference"] = "reference"
    layers = [*single_layers(frame)[:-1], "hidden"]
    frame = frame[frame["layer"].isin(layers)]
    if frame["cosine"].isna().all():
        raise ValueError("no cosine to a reference was measured.")
    means = summaries.over_inits(frame[frame[scale].notna()], [*BY, scale], "cosine")
    level = summaries.over_inits(frame[frame[scale].isna()], BY, "cosine")
    looks = _style.styles(frame.assign(method=frame["curve"]))
    # dashed, as their level lines are
    looks |= {curve: replace(looks[curve], line="nes") for curve in level["curve"].unique()}
    references, sizes = list(frame["reference"].unique()), sorted(frame["num_dim"].unique())
    rows = [(r, c) for r in references for c in columns.conditions(frame)]

    with _style.theme():
        figure, axes = _style.panels(
            len(rows), len(sizes), width=2.7, height=2.2, sharex=True, sharey=True,
            extra=_style.legend_width(looks),
        )  # fmt: skip
        for i, (reference, condition) in enumerate(rows):
            for ax, size in zip(axes[i], sizes, strict=True):
                panel = {"reference": reference, "condition": condition, "num_dim": size}
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for curve, look in looks.items():
                    for place, layer in enumerate(layers):
                        joined = layer == "hidden"
                        faded = {"alpha": 1.0 if joined else 0.25 + 0.5 * place / len(layers)}
                        here = _style.pick(means, **panel, curve=curve, layer=layer)
                        flat = _style.pick(level, **panel, curve=curve, layer=layer)
                        if joined and len(here):
                            _style.curve(ax, here, scale, replace(look, width=2.0), label=curve)
                        elif len(here):
                            ax.plot(here[scale], here["mean"], color=look.colour, linewidth=0.9,
                                    zorder=1.5, **faded)  # fmt: skip
                        for height in flat["mean"]:
                            ax.axhline(height, color=look.colour, linestyle=_style.DASHED,
                                       linewidth=1.6 if joined else 0.9, zorder=1.4,
                                       **faded)  # fmt: skip
                _style.scale_axis(ax, scale, means[scale])
        for ax, size in zip(axes[0], sizes, strict=True):
            ax.set_title(f"num_dim = {size}" if size > 0 else "", loc="left")
        for ax in axes[-1]:
            ax.set_xlabel(NAMES[scale])
        for ax, (reference, condition) in zip(axes[:, 0], rows, strict=True):
            to = f"cosine to\n{columns.reference_name(reference)}"
            ax.set_ylabel(f"{textwrap.fill(condition, 26)}\n{to}".lstrip(), linespacing=1.4)
        _style.legend_entries(axes[0, -1], looks, looks)
        _style.side_legend(axes[0, -1], order=looks)
        _style.title(figure, "Agreement with the reference, by the estimator's own scale")
        drawn = pd.concat([means.rename(columns={scale: "scale"}), level])
        notes = [
            _notes.interval_note(drawn, seeds=False),
            "Thick: all hidden layers; thin: single ones, paler towards the input.",
            _notes.reference_note(frame),
            "Dashed: without a scale." if len(level) else "",
        ]
        return _style.finish(figure, drawn.assign(hyperparameter=scale), notes)
