"""Draw docs/surrogates.png: every surrogate and activation, forward and derivative side by side.

python docs/plot_surrogates.py
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from gradlab.binary import activations, surrogates

# each with the options worth comparing; the first is drawn in the first colour
SURROGATES: dict[str, list[dict[str, Any]]] = {
    "identity": [{}],
    "hardtanh": [{"threshold": 1}, {"threshold": 0.5}, {"threshold": 0.2}],
    "relu": [{}],
    "steep": [{}],
    "swish_sign": [{"beta": 5}, {"beta": 2}],
    "polynomial": [{}],
    "ede": [{"progress": 0}, {"progress": 0.75}, {"progress": 1}],
    "reste": [{"o": 1}, {"o": 2}, {"o": 3}],
    "magnitude_aware": [{}],
}
ACTIVATIONS = ["ternary", "2bit", "decoupled_ternary"]
COLOURS = ["#0072B2", "#D55E00", "#009E73"]  # Okabe and Ito, safe for the colour-blind
BLACK = "#222222"

# one row: to magnitude_aware these are the weights of one output, whose scale is mean |x| = 1
X = torch.linspace(-2, 2, 2001).reshape(1, -1)


def _line(axes: Axes, function: Callable[[Tensor], Tensor], colour: str, **style: Any) -> None:
    axes.plot(X.flatten().tolist(), function(X).flatten().tolist(), color=colour, **style)


def _steps(axes: Axes, function: Callable[[Tensor], Tensor]) -> None:
    y = function(X).flatten().clone()
    y[:-1][y[1:] != y[:-1]] = float("nan")  # a gap: the network computes no value in between
    axes.plot(X.flatten().tolist(), y.tolist(), color=BLACK, linewidth=1.8)


def _surrogate(name: str, forward: Axes, derivative: Axes) -> None:
    variants = SURROGATES[name]
    for options, colour in zip(variants, COLOURS, strict=False):
        surrogate = surrogates.create(name, **options)
        label = ", ".join(f"{option} {value}" for option, value in options.items())
        _line(forward, surrogate.primitive, colour, linestyle="--", linewidth=1.2)
        _line(derivative, surrogate.derivative, colour, label=label, linewidth=1.6)
    _steps(forward, surrogates.create(name, **variants[0]).forward)
    forward.set_ylim(-2.1, 2.1)
    top = derivative.get_ylim()[1]
    derivative.set_ylim(top=max(1.4, 1.5 * top if len(variants) > 1 else top))
    if len(variants) > 1:
        derivative.legend(frameon=False, fontsize=7, loc="upper left", handlelength=1.2)


def _activation(name: str, forward: Axes, derivative: Axes) -> None:
    activation = activations.create(name)
    x, slope = X.flatten(), activation.derivative(X).flatten()
    primitive = torch.cumulative_trapezoid(slope, x)
    forward.plot(x[1:].tolist(), primitive.tolist(), "--", color=COLOURS[0], linewidth=1.2)
    _steps(forward, activation.forward)
    _line(derivative, activation.derivative, COLOURS[0], linewidth=1.6)
    forward.set_ylim(-0.25, 1.4)
    derivative.set_ylim(top=1.4)


def plot() -> Figure:
    """One pair of panels for each surrogate and each activation of more than two levels."""
    names = [*SURROGATES, *ACTIVATIONS]
    rows = math.ceil(len(names) / 3)
    size = (13, 2.3 * rows)
    figure, grid = plt.subplots(rows, 6, figsize=size, sharex=True, layout="constrained")
    panels = grid.reshape(-1, 2)
    for spare in panels[len(names) :].flat:
        spare.remove()
    for name, (forward, derivative) in zip(names, panels, strict=False):
        (_activation if name in ACTIVATIONS else _surrogate)(name, forward, derivative)
        forward.set_title(name, loc="left", fontsize=10, fontweight="bold")
        derivative.set_title("derivative", loc="left", fontsize=9, color="0.35")
        bottom, top = derivative.get_ylim()
        derivative.set_ylim(bottom=min(bottom, -0.05 * top))  # zero in sight, also for identity
        for axes in (forward, derivative):
            axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
            axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("x", fontsize=9)
    figure.suptitle(
        "Left of each pair: what the network computes (black) and the function whose slope the "
        "backward pass uses (dashed). Right: that slope.",
        fontsize=10,
    )
    return figure


if __name__ == "__main__":
    target = Path(__file__).with_name("surrogates.png")
    # no software version in the file, so that it changes only when a curve does
    plot().savefig(target, dpi=110, metadata={"Software": None})
    print(f"wrote {target}")
