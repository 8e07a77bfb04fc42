"""What a step further down costs: the best loss decrease of one step against passes.

Every estimator at its best learning rate, a curve along the sizes it was measured at; where CDG was
measured, as a share of what it achieves. Cost is what an estimate needs by definition: forward
passes over the full batch, and twice the backward ones. Related estimators share a row; the dashed
staircase is the best of all rows for the cost.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries

from . import _notes, _plane, _style
from .best_loss_decrease import against_cdg

TABLES = ("loss_decrease",)


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    needed = ["lr", "loss_decrease", "forward_passes", "backward_passes", "seconds"]
    frame = _style.table(tables, "loss_decrease", needed)
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    frame, scale = columns.one_scale_each(frame)
    value = "loss_decrease_fresh" if "loss_decrease_fresh" in frame else "loss_decrease"
    by = ["condition", "num_dim", "method"]
    best = summaries.at_best_lr(frame, by)
    inits = summaries.replicate_means(best, by, [value]).rename(columns={value: "loss_decrease"})
    means, _ = against_cdg(inits, columns.methods(frame), "num_dim")
    quality = "share of CDG's decrease"
    if means.empty:
        quality = f"loss decrease{_notes.loss_unit(frame)}"
        means = summaries.over_inits(inits, by, "loss_decrease")
    notes = [
        _notes.problem_note(frame),
        "One step at the best lr" + (", judged on an unseen batch." if "fresh" in value else "."),
        "Shares are ratios of means, paired by init." if quality.startswith("share") else "",
        _notes.scale_note(scale),
        _notes.edge_note(best.drop_duplicates(by)),
        _notes.nested_note(frame),
    ]
    plane = _plane.Plane(_plane.PASSES, quality, "What a step further down costs")
    means = means.rename(columns={"method": "size"})
    return _plane.draw(_plane.curves(best), means, plane, notes)
