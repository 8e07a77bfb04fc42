"""Which pixels a network still sees: kept weights of every input of its first linear layer.

Channels are added up and inits averaged. A white pixel has no weight left, so that whatever it
shows changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from gradlab.reporting import columns, noise

from . import _layout, _notes, _style
from .sparsity import in_order

TABLES = ("kept_inputs",)


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    _style.table(tables, "kept_inputs", ["row", "column", "kept"])
    frame = noise.named(tables["kept_inputs"], noise.PIXELS)
    pixels = seen(frame)
    panels = in_order(pixels, columns.conditions(frame), list(columns.methods(frame).index))
    several = frame["condition"].nunique() > 1
    # a pixel of which one weight in a hundred is left should not look like one without any
    scale = PowerNorm(0.4, vmin=0, vmax=max(1.0, float(pixels["kept"].max())))
    bands = _layout.bands(len(panels), 1, 4)

    with _style.theme():
        figure, axes = _style.panels(bands.height, bands.across, width=2.1, height=2.2, extra=0.7)
        image = None
        for problem, (condition, method) in enumerate(panels):
            ax = axes[bands.place(problem, 0)]
            rows = _style.pick(pixels, condition=condition, method=method)
            grid = rows.pivot(index="row", columns="column", values="kept").to_numpy(float)
            image = ax.imshow(grid, cmap="Greys", norm=scale, interpolation="nearest")
            unseen = float((grid == 0).mean())
            names = [method, condition] if several else [method]
            title = _notes.panel_title(", ".join(names), 0, 26)
            ax.set_title(f"{title}\n{100 * unseen:.0f} % unseen", loc="left")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(visible=False)
            ax.spines[:].set_visible(True)
        _layout.blank(axes, bands.places)
        figure.colorbar(image, ax=axes, label="kept weights of a pixel", shrink=0.8, pad=0.02)
        _style.title(figure, "Which pixels are still seen")
        inits = frame["init"].nunique()
        notes = [
            _notes.problem_note(frame),
            f"Means of {inits} inits." if inits > 1 else "One init.",
            _notes.run_note(frame),
        ]
        return _style.finish(figure, pixels, notes)


def seen(frame: pd.DataFrame) -> pd.DataFrame:
    """Kept weights of every pixel, channels added up and runs of one configuration averaged."""
    replicates = [c for c in columns.REPLICATES if c in frame]
    by = [*noise.BY, "row", "column"]
    each = frame.groupby([*by, *replicates], dropna=False)["kept"].sum().astype(np.float64)
    return each.groupby(by).mean().reset_index()
