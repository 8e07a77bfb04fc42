"""What is removed while a network trains: sparsity of each layer, compression, and the error.

Above, the fraction of each layer's weights that is removed. In the middle, all weights over kept
ones, without biases. Below, the error by the mean weights, by those of them that are kept, and by
one draw of the noise. Methods that removed nothing are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from gradlab.reporting import columns, noise, runs, summaries

from . import _layout, _notes, _series, _style

TABLES = ("layer_sparsity", "training", "training_result")
ERRORS = {
    "val": ("mean weights", _style.Style("#1a1a1a", "o")),
    "pruned": ("pruned", _style.Style("#12946a", "P", "nes")),
    "sample": ("one draw", _style.Style("#e2300c", "^", "local")),
}
NAMES = {"sparsity": "sparsity", "compression": "compression", "error": "error (%)"}
MOST_LAYERS = 10
MOST = 16  # methods and conditions, four side by side


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    _style.table(tables, "layer_sparsity", ["epoch", "layer", "kept", "sparsity"])
    _style.table(tables, "training", ["epoch", "val_accuracy"])
    layers = noise.prunable(noise.layers(tables["layer_sparsity"]))
    if layers.empty:
        raise ValueError("no method of this study removed a weight: there is no sparsity to draw.")
    epochs = runs.annotated(tables["training"], tables.get("training_result"))
    panels = in_order(layers, columns.conditions(layers), list(columns.methods(layers).index))
    left_out = max(0, len(panels) - MOST)
    panels = panels[:MOST]
    several = layers["condition"].nunique() > 1
    numbers = layers.drop_duplicates("layer").sort_values("place", kind="stable")
    looks = _series.ordered([noise.layer_name(layer) for layer in numbers["layer"]][:MOST_LAYERS])
    layers["name"] = layers["layer"].map(noise.layer_name)
    measured = measure(layers, epochs)
    bands = _layout.bands(len(panels), len(NAMES), 4)

    with _style.theme():
        figure, axes = _style.panels(
            bands.height, bands.across, width=2.4, height=1.75, sharex=True, sharey="row",
            extra=_style.legend_width([*looks, "mean weights"]),
        )  # fmt: skip
        for problem, (condition, method) in enumerate(panels):
            rows = {quantity: _style.pick(measured[quantity], condition=condition, method=method)
                    for quantity in NAMES}  # fmt: skip
            places = [bands.place(problem, kind) for kind in range(len(NAMES))]
            for layer, look in looks.items():
                _line(axes[places[0]], _style.pick(rows["sparsity"], name=layer), look, layer)
            _line(axes[places[1]], rows["compression"], _style.Style(_style.INK, "o"), None)
            if rows["compression"]["mean"].isna().all():
                axes[places[1]].text(0.5, 0.5, "no weight is left", ha="center", color=_style.INK,
                                     transform=axes[places[1]].transAxes)  # fmt: skip
            for kind, (words, look) in ERRORS.items():
                _line(axes[places[2]], _style.pick(rows["error"], name=kind), look, words)
            names = [method, condition] if several else [method]
            axes[places[0]].set_title(_notes.panel_title(", ".join(names), 0, 30), loc="left")
            _axes(figure, [axes[place] for place in places], problem % bands.across == 0)
            if bands.lowest(problem, len(NAMES) - 1):
                axes[places[-1]].set_xlabel("epoch")
                axes[places[-1]].tick_params(labelbottom=True)
        _layout.blank(axes, bands.places)
        for kind in (0, 2):
            _style.side_legend(axes[kind, -1])
        _style.title(figure, "Sparsity, compression and error while training")
        drawn = pd.concat([rows.assign(quantity=name) for name, rows in measured.items()])
        hidden = len(numbers) - len(looks)
        notes = [
            _notes.problem_note(layers),
            _notes.interval_note(drawn, seeds=False),
            f"{hidden} more layers stand in the table." if hidden > 0 else "",
            f"{left_out} more configurations stand in the table." if left_out else "",
            _notes.run_note(layers),
        ]
        return _style.finish(figure, drawn, notes)


def in_order(
    frame: pd.DataFrame, conditions: list[str], methods: list[str]
) -> list[tuple[str, str]]:
    """The pairs of condition and method that a table has."""
    present = set(zip(frame["condition"], frame["method"], strict=True))
    return [(c, m) for c in conditions for m in methods if (c, m) in present]


def measure(layers: pd.DataFrame, epochs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Means over inits, by epoch, of sparsity, compression and error."""
    by = [*noise.BY, "epoch"]
    inits = [*by, "init"]
    whole = layers.groupby(inits, as_index=False)[["weights", "kept"]].sum()
    whole["compression"] = (whole["weights"] / whole["kept"]).where(whole["kept"] > 0)
    present = layers[noise.BY].drop_duplicates()
    rows = epochs.merge(present, on=noise.BY)
    errors = [
        summaries.over_inits(rows.assign(name=kind, error=1 - rows[f"{kind}_accuracy"]),
                             [*by, "name"], "error")
        for kind in ERRORS
        if f"{kind}_accuracy" in rows and len(rows)
    ]  # fmt: skip
    empty = pd.DataFrame(columns=[*by, "name", "mean", "low", "high", "n", "missing"])
    return {
        "sparsity": summaries.over_inits(layers, [*by, "place", "name"], "sparsity"),
        "compression": summaries.over_inits(whole, by, "compression"),
        "error": pd.concat(errors) if errors else empty,
    }


def _line(ax: Axes, rows: pd.DataFrame, look: _style.Style, label: str | None) -> None:
    rows = rows.dropna(subset="mean")
    _style.curve(ax, rows, "epoch", look, label=label, markers=len(rows) <= 12)


def _axes(figure: Figure, axes: list[Axes], first: bool) -> None:
    for ax, name in zip(axes, NAMES.values(), strict=True):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if first:
            ax.set_ylabel(name)
    sparsity, compression, error = axes
    sparsity.yaxis.set_major_formatter(PercentFormatter(1.0))
    sparsity.set_ylim(-0.03, 1.03)
    _style.log_axis(compression, "y")
    _style.log_axis(error, "y")
    error.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g}"))
