"""Which estimators follow the loss of one network, layer by layer.

Cosine of every estimate to two references, the central differences (CDG) along random coordinates
and the gradient of the smoothed loss, with 95 % bootstrap intervals over the layer's coordinates;
and how far the best step against it, of that layer alone, brings the loss of the batch down, as a
share of the best that any estimator achieves there. Layers are listed from input to output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting.layers import layer_name

from . import _style

TABLES = ("diagnosis",)
NEEDED = ("estimator", "layer", "reference", "cosine", "cosine_low", "cosine_high",
          "loss_decrease", "status")  # fmt: skip
TITLES = {"cdg": "central differences (CDG)", "smoothed": "smoothed gradient"}
MARKERS = "os^vDPX*<>hp8dH"


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = tables.get("diagnosis", pd.DataFrame())
    if frame.empty:
        raise ValueError("the diagnosis has no rows.")
    missing = [column for column in NEEDED if column not in frame]
    if missing:
        raise ValueError(f"the table 'diagnosis' has no column '{missing[0]}'.")
    looks = styles(list(dict.fromkeys(frame["estimator"].astype(str))))
    layers = list(dict.fromkeys(frame["layer"].astype(str)))
    references = [each for each in TITLES if (frame["reference"] == each).any()]
    lanes = {name: place for place, name in enumerate(looks)}
    band = len(looks) + 1.6
    drawn = frame.assign(
        y=[band * layers.index(str(layer)) + lanes[str(name)]
           for layer, name in zip(frame["layer"], frame["estimator"], strict=True)],
        mean=frame["cosine"], low=frame["cosine_low"], high=frame["cosine_high"],
    )  # fmt: skip
    best = drawn.groupby("layer")["loss_decrease"].transform("max")
    drawn["share_of_best"] = (drawn["loss_decrease"] / best.where(best > 0)).clip(lower=0)
    inches = min(0.115, 12 / (band * len(layers)))  # a lane's, in a figure of at most a foot
    with _style.theme():
        figure, axes = _style.panels(
            1, len(references) + 1, width=2.5, height=max(1.6, inches * band * len(layers) + 0.5),
            extra=_style.legend_width(looks) + 0.5, sharey=True,
        )  # fmt: skip
        *left, right = axes[0]
        for ax, reference in zip(left, references, strict=True):
            _cosines(ax, _style.pick(drawn, reference=reference), looks)
            _unknown(ax, _style.pick(drawn, reference=reference), band)
            ax.set_title(TITLES[reference], loc="left")
            ax.set_xlabel("cosine")
        _decreases(right, drawn.drop_duplicates(["estimator", "layer"]), looks)
        right.set_title("best step of the layer", loc="left")
        right.set_xlabel("loss decrease, share of best")
        centre = (len(looks) - 1) / 2
        axes[0, 0].set_yticks(
            [band * i + centre for i in range(len(layers))], [layer_name(each) for each in layers]
        )
        for ax in axes[0]:
            ax.set_ylim(band * (len(layers) - 1) + len(looks) + 0.3, -1.3)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="y", visible=False)
            for i in range(1, len(layers)):
                ax.axhline(band * i - 1.3, color=_style.RULE, linewidth=0.6, zorder=0)
        for name, look in looks.items():
            right.plot([], [], label=name, **{**look.line_kwargs, "linestyle": "none"})
        _style.side_legend(right, order=looks)
        _style.title(figure, "Which estimators follow the loss of this network")
        notes = ["Lines: 95 % bootstrap intervals over coordinates.", *_notes(drawn)]
        keep = [c for c in drawn.columns if c not in ("y", "cosine", "cosine_low", "cosine_high")]
        return _style.finish(figure, drawn[keep], notes)


def styles(labels: list[str]) -> dict[str, _style.Style]:
    """The style of every estimator by its label, each with a marker of its own.

    >>> styles(["STE hardtanh", "NES 500"])["STE hardtanh"].colour
    '#e2300c'
    """
    found: dict[str, _style.Style] = {}
    for label in labels:
        number = re.search(r"(\d[\d/]*)(?= pass|\b)", label)
        size = number[1].split("/")[-1] if number else None
        words = label.split()
        name = {"STE": "ste", "NES": "nes", "CDG": "cdg", "local": "nes_local"}.get(words[0], label)
        surrogate = words[1] if name == "ste" and len(words) > 1 else None
        look = _style.style(name, surrogate, size if name == "nes" else None, label,
                            size if name == "nes_local" else None)  # fmt: skip
        if label == "own backward":
            look = _style.Style(_style.FAINT, "s")
        taken = {(each.colour, each.marker) for each in found.values()}
        free = [each for each in MARKERS if each not in {m.marker for m in found.values()}]
        colours = {each.colour for each in found.values()}
        if look.colour in colours:
            spare = [each for each in _style.SPARE_COLOURS if each not in colours]
            look = replace(look, colour=spare[0]) if spare else look
        if (look.colour, look.marker) in taken or look.marker not in free:
            look = replace(look, marker=free[0] if free else look.marker)
        found[label] = look
    return found


def _cosines(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, _style.Style]) -> None:
    ax.axvline(0, color=_style.FAINT, linewidth=0.7, zorder=1)
    for name, look in looks.items():
        here = rows[rows["estimator"] == name]
        known = here["mean"].notna()
        noisy = here[~known & here["low"].notna()]
        ax.hlines(here["y"][known], here["low"][known], here["high"][known], color=look.colour,
                  linewidth=1.1, zorder=2)  # fmt: skip
        ax.hlines(noisy["y"], noisy["low"], noisy["high"], color=look.colour, linewidth=0.8,
                  linestyle=":", zorder=2)  # fmt: skip
        ax.plot(here["mean"], here["y"], zorder=3, **{**look.line_kwargs, "linestyle": "none"})
        zero = here[here["status"].astype(str).str.startswith("the estimate is zero")]
        ax.plot(np.zeros(len(zero)), zero["y"], zorder=3,
                **{**look.drawn(hollow=True), "linestyle": "none"})  # fmt: skip
    ax.set_xlim(min(-0.12, float(np.nanmin([0.0, *rows["low"]])) - 0.04), 1.04)


def _unknown(ax: Axes, rows: pd.DataFrame, band: float) -> None:
    """Words in the place of a layer whose reference is unknown."""
    unknown = rows["status"].astype(str).str.startswith(("unknown", "not measured"))
    for _, group in rows[unknown].groupby("layer"):
        top = float(group["y"].min())
        centre = band * np.floor(top / band) + (band - 2.6) / 2
        ax.text(0.5, centre, "unknown within\nthe budget", ha="center", va="center",
                fontsize=6.5, color=_style.FAINT, style="italic")  # fmt: skip


def _decreases(ax: Axes, rows: pd.DataFrame, looks: Mapping[str, _style.Style]) -> None:
    for name, look in looks.items():
        here = rows[rows["estimator"] == name]
        ax.hlines(here["y"], 0, here["share_of_best"], color=look.colour, linewidth=0.8,
                  alpha=0.5, zorder=1)  # fmt: skip
        ax.plot(here["share_of_best"], here["y"], zorder=3,
                **{**look.line_kwargs, "linestyle": "none"})  # fmt: skip
    ax.set_xlim(0, 1.06)


def _notes(drawn: pd.DataFrame) -> list[str]:
    status = drawn["status"].astype(str)
    found = []
    if status.str.startswith("noise").any():
        found.append("Dotted lines without a mark: the samples are too few, their halves disagree.")
    if status.str.startswith("the estimate is zero").any():
        found.append("Hollow marks: no gradient reaches the layer.")
    if "exact" in drawn and drawn["exact"].astype(bool).any():
        found.append("Behind the last sign backpropagation is exact.")
    if drawn["share_of_best"].notna().any():
        found.append("Steps are judged on the batch that they were estimated from.")
    return found
