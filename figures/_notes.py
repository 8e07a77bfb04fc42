"""The words in and under figures: what bands and dots are, with n, and what a reader must know."""

from __future__ import annotations

import textwrap

import pandas as pd

from gradlab.reporting import columns, summaries
from gradlab.reporting.problems import NETWORK, is_network, phrase
from gradlab.reporting.wording import word


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
    if "num_dim" not in at_edge:  # a network's problems are too many to name
        at_edge = at_edge.assign(num_dim=0)
    named = at_edge.groupby("method", sort=False)["num_dim"].unique()
    parts = [f"{m} (num_dim {', '.join(map(str, sorted(d)))})" if max(d) > 0 else str(m)
             for m, d in named.items()]  # fmt: skip
    more = f" and {len(parts) - 6} more" if len(parts) > 6 else ""
    return (
        f"Best lr at the edge of the grid, so perhaps not the best: {', '.join(parts[:6])}{more}."
    )


def panel_title(condition: str, num_dim: int, width: int = 34) -> str:
    """``num_dim = 8, fresh student``, as far as there is something to say, in short lines."""
    parts = [f"num_dim = {num_dim}" if num_dim > 0 else "", condition]
    return "\n".join(textwrap.wrap(", ".join(part for part in parts if part), width))


def loss_unit(frame: pd.DataFrame) -> str:
    """`` (MSE)`` where the loss is one."""
    if is_network(frame):
        return " (cross-entropy)"
    named = "objective" in frame and (frame["objective"] == "test_function").any()
    return "" if named else " (MSE)"


def problem_note(frame: pd.DataFrame) -> str:
    """Of networks, what all rows of a table have in common: a figure says what it is about.

    A teacher-student network is said by num_dim, which stands along an axis.
    """
    if not is_network(frame):
        return ""
    said = [c for c in NETWORK if c not in ("step_layers", "weights", "student", "layers")]
    same = [c for c in said if c in frame and frame[c].nunique(dropna=False) == 1]
    same = [c for c in same if frame[c].notna().all()]
    words = [phrase(c, frame[c].iloc[0], network=True) for c in same]
    if not words:
        return ""
    if same[:2] == ["dataset", "model"]:
        words = [f"{words[1]} on {words[0]}", *words[2:]]
    for column in ("layers", "student"):  # not their default: what a network is by itself
        one = column in frame and frame[column].nunique() == 1
        if one and word(frame[column].iloc[0]) not in ("all", "–"):
            words.append(phrase(column, frame[column].iloc[0], network=True))
    training = frame.get("student_training", pd.Series([""])).iloc[0]
    trained = f" Training: {training}." if training else ""
    return f"{', '.join(words)}.{trained}"


def scale_note(words: str) -> str:
    """Which of several scales is shown."""
    return f"Of the scales that were measured, {words} is shown." if words else ""


def diverged_note(means: pd.DataFrame) -> str:
    """How many means leave inits out because they diverged."""
    count = int((means["missing"] > 0).sum())
    return (
        f"In {count} of {len(means)} means some inits diverged and are left out." if count else ""
    )


def reference_note(frame: pd.DataFrame) -> str:
    """What cosines are taken to, and how well it is known."""
    said = []
    for reference, rows in frame.groupby("reference", sort=False):
        name = columns.reference_name(str(reference))
        for width, symbol in (("reference_epsilon", "ε"), ("reference_sigma", "σ")):
            if width in rows and rows[width].nunique() == 1 and rows[width].notna().all():
                name += f" ({symbol} = {word(rows[width].iloc[0])})"
        known = ""
        if "reference_split_half_cosine" in rows:
            own = rows.groupby("layer")["reference_split_half_cosine"].mean().dropna()
            known = f", whose halves agree to {own.min():.2f} or better" if len(own) else ""
        said.append(name + known)
    return f"The reference is {'; '.join(said)}."


def run_note(frame: pd.DataFrame) -> str:
    """How long runs were trained, where this is the same for all."""
    known = [c for c in ("epochs", "train_examples") if c in frame and frame[c].notna().all()]
    said = [phrase(c, frame[c].iloc[0]) for c in known if frame[c].nunique() == 1]
    lost = "diverged" in frame and frame["diverged"].astype(str).str.lower().eq("true").any()
    words = f"Each run: {' of '.join(said)}." if said else ""
    return f"{words}{' Runs that diverged are left out.' if lost else ''}".strip()
