"""Findings of a loss-slice study: whether estimators know which way is down along a line."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from gradlab.reporting import columns
from gradlab.reporting.findings import Finding
from gradlab.reporting.problems import phrase
from gradlab.reporting.wording import count, listed, sample


def slopes(table: pd.DataFrame) -> list[Finding]:
    """How often each estimator's slope has the sign of the chord over the whole slice.

    Args:
        table: the stored ``loss_slice_slopes`` table.
    """
    frame = columns.annotate(table)
    if "chord_slope" not in frame:
        return []
    known = frame.dropna(subset=["slope", "chord_slope"])
    known = known[known["chord_slope"] != 0]  # a flat slice has no way down
    if known.empty:
        return []
    ways = known["along"].unique() if "along" in known else ["coordinate"]
    lead = {("coordinate",): "Slope along one weight", ("ste",): "Slope along an STE gradient"}.get(
        tuple(ways), "Slope along a line"
    )
    found = []
    students = list(known["student"].unique()) if "student" in known else [None]
    several = len(students) > 1
    for student in students:
        rows = known if student is None else known[known["student"] == student]
        agree = np.sign(rows["slope"]) == np.sign(rows["chord_slope"])
        shares = agree.groupby(rows["method"]).agg(["sum", "count"])
        parts = [_share(str(method), shares.loc[method])
                 for method in columns.methods(frame).index if method in shares.index]  # fmt: skip
        inits = rows["init"].nunique() if "init" in rows else 1
        where = f" ({phrase('student', student, network=True)})" if several else ""
        found.append(Finding(lead, (
            f"The slope has the sign of the loss difference between the ends of the slice{where} "
            f"for {listed(parts)}; {sample(inits)}, and the slices of one network are not "
            "independent."
        )))  # fmt: skip
    return found


def _share(method: str, row: Mapping[str, float]) -> str:
    return f"{method} in {int(row['sum'])} of {count(row['count'], 'slice')}"
