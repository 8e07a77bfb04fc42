"""Findings about depth: where in a network its gradient is large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gradlab.reporting import columns, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.layers import JOINED
from gradlab.reporting.wording import cosine, count, interval, number, sample

MOST = 6  # conditions that a finding names


def gradient_norms(frame: pd.DataFrame) -> list[Finding]:
    """How the norm of the gradient changes from the input to the output.

    Args:
        frame: an annotated gradient-quality table with ``depth_index``; without it, or with fewer
            than two layers, there is nothing to say.
    """
    measured = norms(frame)
    if measured.empty:
        return []
    found = []
    for of, rows in measured.groupby("of", sort=False):
        chosen = [c for c in columns.conditions(frame) if c in set(rows["condition"])]
        compared = {c: _ends(rows[rows["condition"] == c]) for c in chosen}
        compared = {c: ends for c, ends in compared.items() if ends["n"]}
        if not compared:
            continue
        parts = [f"{_words(ends)} ({c})" if c else _words(ends) for c, ends in compared.items()]
        shown = [*parts[:MOST], f"{len(parts) - MOST} more cases stand in the tables"]
        text = f"The norm of {of} is {'; '.join(parts if len(parts) <= MOST else shown)}"
        n = int(min(ends["n"] for ends in compared.values()))
        text += f" ({sample(n)}, paired). {_against_original(list(compared.values()), n)}"
        text += f" {norm_words(frame)}"
        found.append(Finding("Gradient by depth", text))
    return found


def norm_words(frame: pd.DataFrame) -> str:
    """What a norm is taken over: layers compare only where they have equally many weights."""
    few = frame["coordinates"] if "coordinates" in frame else pd.Series(dtype=float)
    if few.nunique() == 1 and few.notna().all():
        return f"Norms are over {int(few.iloc[0])} weights of each layer."
    return "Norms are of whole layers, which differ in their number of weights."


def norms(frame: pd.DataFrame) -> pd.DataFrame:
    """The gradient norms that say most: of the reference, or else of one estimator.

    Returns:
        ``of`` (whose gradient, in words), ``condition``, ``depth_index``, ``init`` and ``norm``,
        repeats averaged.
    """
    empty = pd.DataFrame(columns=["of", "condition", "depth_index", "init", "norm"])
    if "depth_index" not in frame:
        return empty
    rows = frame[frame["depth_index"].notna() & ~frame["layer"].isin(JOINED)]
    if rows["depth_index"].nunique() < 2:
        return empty
    if "reference_norm" in rows and rows["reference_norm"].notna().any():
        measure = "reference_norm"
        rows = rows.assign(of=rows["reference"].map(columns.reference_name))
    elif "gradient_norm" in rows and rows["gradient_norm"].notna().any():
        measure = "gradient_norm"
        method = columns.methods(rows).index[0]
        rows = rows[rows["method"] == method].assign(of=method)
    else:
        return empty
    means = summaries.replicate_means(rows, ["of", "condition", "depth_index"], [measure])
    return means.rename(columns={measure: "norm"}).dropna(subset="norm")


def _ends(rows: pd.DataFrame) -> dict[str, Any]:
    """The norm in the first layer against that in the last, paired by init, and their course."""
    wide = rows.pivot(index="init", columns="depth_index", values="norm").sort_index(axis=1)
    means = wide.mean()
    first, last = summaries.paired(wide.iloc[:, 0], wide.iloc[:, -1])
    larger = len(first) > 0 and first.mean() >= last.mean()
    ratio = summaries.ratio(first, last) if larger else summaries.ratio(last, first)
    trend = np.nan
    known = means.dropna()
    if len(known) > 2 and known.nunique() > 1:  # Spearman's, of ranks
        ranks = pd.Series(np.arange(float(len(known))), index=known.index)
        trend = float(known.rank().corr(ranks))
    peak = int(wide.columns[int(np.nanargmax(means.to_numpy()))])
    return {**ratio, "larger": larger, "peak": peak, "trend": trend,
            "layer": int(wide.columns[0 if larger else -1]),
            "other": int(wide.columns[-1 if larger else 0])}  # fmt: skip


def _words(ends: Mapping[str, Any]) -> str:
    words = f"larger in layer {ends['layer']} than in layer {ends['other']}, where it vanishes"
    if np.isfinite(ends["ratio"]):
        unsure = ends["low"] <= 1
        words = (f"{number(ends['ratio'])} times{interval(ends['low'], ends['high'])} as large in "
                 f"layer {ends['layer']} as in layer {ends['other']}")  # fmt: skip
        words += ", which is not resolved" if unsure else ""
    if np.isfinite(ends["trend"]):
        words += (f", at its largest in layer {ends['peak']}, rank correlation with depth "
                  f"{cosine(ends['trend'])}")  # fmt: skip
    return words


def _against_original(compared: Sequence[Mapping[str, Any]], n: int) -> str:
    """What these data say to the original's observation."""
    enough = n >= summaries.LEAST_INITS
    agree = [e for e in compared if e["larger"] and (not enough or e["low"] > 1)]
    said = "The original experiments found it larger near the input; here it is"
    said += " resolvably so" if enough else ", without an interval, so"
    return f"{said} in {len(agree)} of {count(len(compared), 'case')}."
