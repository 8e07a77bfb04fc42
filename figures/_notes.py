"""The words in and under figures: what bands and dots are, with n, and what a reader must know."""

from __future__ import annotations

import textwrap

import pandas as pd

from gradlab.reporting import columns, summaries


def interval_note(summary: pd.DataFrame, drawn: str = "Bands", seeds: bool = True) -> str:
    """What the bands and dots are, with n."""
    n = sorted(int(v) for v in summary["n"].unique() if v > 0)
    if not n:
        return ""
    number = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
    each = " Dots: one init each, its batches averaged." if seeds else ""
    if n[-1] < summaries.LEAST_INITS:
        return f"No intervals: {number}, and fewer than 3 inits carry none.{each}"
    return f"{drawn}: 95 % bootstrap CI over inits, {number}.{each}"


def nested_note(frame: pd.DataFrame) -> str:
    """NES sizes of one cell are prefixes of one sample: say so."""
    known = columns.methods(frame)
    sizes = known.loc[known["family"] == "nes", "population"].nunique()
    words = "NES sizes are nested (prefixes of one sample stream), so their curves are correlated."
    return words if sizes > 1 else ""


def edge_note(best: pd.DataFrame) -> str:
    """Name the curves whose best lr is the end of the grid."""
    at_edge = best[best["edge"] != ""]
    if at_edge.empty:
        return ""
    named = at_edge.groupby("method", sort=False)["num_dim"].unique()
    parts = [f"{m} (num_dim {', '.join(map(str, sorted(d)))})" if max(d) > 0 else str(m)
             for m, d in named.items()]  # fmt: skip
    more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
    return (
        f"Best lr at the edge of the grid, so perhaps not the best: {', '.join(parts[:6])}{more}."
    )


def panel_title(condition: str, num_dim: int) -> str:
    """``num_dim = 8, fresh student``, as far as there is something to say, in short lines."""
    parts = [f"num_dim = {num_dim}" if num_dim > 0 else "", condition]
    return "\n".join(textwrap.wrap(", ".join(part for part in parts if part), 34))


def loss_unit(frame: pd.DataFrame) -> str:
    """`` (MSE)`` where the loss is one."""
    named = "objective" in frame and (frame["objective"] == "test_function").any()
    return "" if named else " (MSE)"


def scale_note(words: str) -> str:
    """Which of several scales is shown."""
    return f"Of the scales that were measured, {words} is shown." if words else ""


def diverged_note(means: pd.DataFrame) -> str:
    """How many means leave inits out because they diverged."""
    count = int((means["missing"] > 0).sum())
    return (
        f"In {count} of {len(means)} means some inits diverged and are left out." if count else ""
    )
