"""The cost–quality plane: cosine of the hidden layers' gradient to the reference against passes.

Up and to the left is better. Every estimator is a curve along the sizes it was measured at, its
cost what it needs by definition: forward passes over the full batch, and twice the backward ones,
whatever an implementation saves. Related estimators share a row; the dashed staircase is the best
of all rows for the cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import summaries
from gradlab.reporting.facets import whole_depth
from gradlab.reporting.layers import JOINED, layer_title

from . import _notes, _plane, _style

TABLES = ("gradient_quality",)


def draw(
    tables: Mapping[str, pd.DataFrame], cost: str = _plane.PASSES
) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Args:
        tables: the study's.
        cost: what stands along the x-axis, ``_plane.PASSES`` or ``_plane.SECONDS``.

    Raises:
        ValueError: there is nothing to draw.
    """
    needed = ["layer", "cosine", "forward_passes", "backward_passes", "seconds"]
    frame = _style.table(tables, "gradient_quality", needed)
    if "reference" not in frame:
        frame["reference"] = "reference"
    joined = next((name for name in JOINED if (frame["layer"] == name).any()), None)
    if joined is None:
        frame, said = whole_depth(frame), "mean over layers"
    else:
        frame, said = frame[frame["layer"] == joined], layer_title(joined)
    if frame["cosine"].isna().all():
        raise ValueError("no cosine to a reference was measured.")
    notes = [_notes.problem_note(frame), f"Cosine: {said}.", _notes.nested_note(frame)]
    frame = _plane.curves(frame)
    means = summaries.over_inits(frame, ["reference", "condition", "num_dim", "size"], "cosine")
    plane = _plane.Plane(
        cost, "cosine to {reference}", "What a better direction costs", ("reference",),
        bounded=True,
    )  # fmt: skip
    return _plane.draw(frame, means, plane, notes)
