"""Published numbers, and gradlab's own targets, beside what a study measured.

A comparison passes where the published number lies in our 95 % interval over inits, widened by a
stated tolerance on either side: published values come from networks whose seeds are not known.
Where a study has not measured a row it says NOT RUN; with fewer than three inits there is no
interval and the tolerance alone decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradlab.reporting import columns, summaries

RULE = (
    "PASS: the published value lies in our 95 % CI over inits widened by 0.02 on either side, or, "
    "where a lower bound is given (≥), our mean reaches it. Published values come from networks "
    "whose seeds are not known."
)
BINARYDUO = "Kim et al., BinaryDuo, ICLR 2020 (32/32/32, one million examples, ε = 0.1)"
TARGET = "gradlab's target (num_dim 32, batch 160,000, σ = 0.1)"


@dataclass(frozen=True)
class Published:
    """One published number: where it comes from, which rows measure it, and its value."""

    source: str
    what: str
    rows: Mapping[str, Any]
    value: float
    at_least: bool = False
    tolerance: float = 0.02
    needs: Mapping[str, Any] = field(default_factory=dict)


def _binaryduo() -> list[Published]:
    printed = {
        "binary": (0.8934, 0.8968, 0.9629, 0.9046),
        "ternary": (0.9653, 0.9874, 0.9933, 0.9747),
        "2bit": (0.9752, 0.9755, 0.9847, 0.9747),
        "full": (1.0, 1.0, 1.0, 1.0),
    }
    layers = ["layers.0.weight", "layers.1.weight", "layers.2.weight", "hidden"]
    return [
        Published(
            BINARYDUO,
            f"cosine of STE to CDG, {columns.phrase('activation', activation)}, "
            + ("all three" if layer == "hidden" else columns.layer_title(layer)),
            {"family": "ste", "surrogate": "hardtanh", "activation": activation, "layer": layer},
            value,
            needs={"num_dim": 32, "reference": "cdg"},
        )
        for activation, values in printed.items()
        for layer, value in zip(layers, values, strict=True)
    ]


def _targets() -> list[Published]:
    goals: list[tuple[dict[str, Any], str, tuple[float, ...]]] = [
        ({"label": "local NES (2 passes)"}, "local NES, 2 noisy passes", (0.80, 0.90, 0.98, 0.995)),
        ({"label": "local NES (8 passes)"}, "local NES, 8 noisy passes", (0.93, 0.93, 0.93, 0.93)),
        ({"label": "matched STE"}, "matched STE, 1 pass", (0.98, 0.98)),
    ]  # fmt: skip
    return [
        Published(
            TARGET,
            f"cosine to the smoothed gradient, {words}, layer {i + 1}",
            {**rows, "activation": "binary", "layer": f"layers.{i}.weight"},
            value,
            at_least=True,
            tolerance=0.0,
            needs={"num_dim": 32, "sigma": 0.1, "reference": "smooth"},
        )
        for rows, words, values in goals
        for i, value in enumerate(values)
    ]


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Published numbers beside a gradient-quality table.

    Args:
        table: the stored ``gradient_quality`` table.

    Returns:
        ``source, what, published, ours, low, high, n, tolerance, verdict`` with the verdict PASS,
        FAIL or NOT RUN; without any row where nothing of a source was measured.
    """
    frame = columns.annotate(table)
    results: list[dict[str, Any]] = []
    # What else the study varied (the gain of the initial weights) is compared case by case. Before
    # the family is a column: it would pass for one more condition.
    frame["case"] = columns.conditions_apart_from(frame, ["activation"])
    frame["family"] = frame["method"].map(columns.methods(frame)["family"])
    for source in (_binaryduo(), _targets()):
        for case, group in frame.groupby("case", sort=True):
            rows = [_row(group, number) for number in source]
            if any(row["verdict"] != "NOT RUN" for row in rows):
                suffix = f" ({case!s})" if case else ""
                results += [{**row, "what": row["what"] + suffix} for row in rows]
    return pd.DataFrame(results)


def _row(frame: pd.DataFrame, number: Published) -> dict[str, Any]:
    chosen = frame
    for column, value in {**number.rows, **number.needs}.items():
        if column not in chosen:
            chosen = chosen.iloc[:0] if column != "activation" else chosen
        elif column == "reference":
            chosen = chosen[chosen[column].astype(str).str.startswith(value)]
        elif column == "sigma":
            chosen = chosen[chosen[column].isna() | (chosen[column] == value)]
        else:
            chosen = chosen[chosen[column] == value]
    result: dict[str, Any] = {
        "source": number.source, "what": number.what,
        "published": number.value, "at_least": number.at_least, "tolerance": number.tolerance,
    }  # fmt: skip
    if chosen.empty or chosen["cosine"].isna().all():
        return result | {"verdict": "NOT RUN", "n": 0}
    summary = summaries.over_inits(chosen.assign(one=0), ["one"], "cosine").iloc[0]
    low, high = summary["low"], summary["high"]
    if pd.isna(low):
        low = high = summary["mean"]
    if number.at_least:
        passed = summary["mean"] >= number.value - number.tolerance
    else:
        passed = low - number.tolerance <= number.value <= high + number.tolerance
    return result | {
        "ours": summary["mean"], "low": summary["low"], "high": summary["high"],
        "n": int(summary["n"]), "verdict": "PASS" if passed else "FAIL",
    }  # fmt: skip


def digits(value: float) -> str:
    """Four digits, as the papers print them."""
    return f"{value:.4f}"
