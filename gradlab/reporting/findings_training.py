"""Findings of training runs: the best accuracy, and the best weight decay of every width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from gradlab.reporting import columns, noise, published, runs, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.problems import position
from gradlab.reporting.wording import count, interval, listed, sample

BY = ["condition", "method"]
MOST = 6  # cases that a sentence names


def training_result(table: pd.DataFrame) -> list[Finding]:
    """Findings of the results of training runs."""
    frame = runs.annotated(table)
    if frame["val_accuracy"].isna().all():
        return [Finding("Nothing to compare", "Every training run diverged.")]
    if noise.is_noisy(table):  # its findings are those of findings_variational
        return _diverged(frame)
    return [
        *_best(frame),
        *_weight_decay(frame),
        *_diverged(frame),
        *(Finding("Published numbers", text)
          for text in published.sentences(published.compare_training(table))),
    ]  # fmt: skip


def accuracy(value: float, low: float = float("nan"), high: float = float("nan")) -> str:
    """An accuracy in percent.

    >>> accuracy(0.91234), accuracy(0.91234, 0.9, 0.92)
    ('91.23 %', '91.23 % [90.0, 92.0]')
    """
    return f"{100 * value:.2f} %{interval(low, high, scale=100)}"


def _name(row: Mapping[Any, Any], frame: pd.DataFrame) -> str:
    """A configuration in words: its condition, and its estimator where there are several."""
    several = frame["method"].nunique() > 1
    parts = [str(row["condition"]), str(row["method"]) if several else ""]
    return ", ".join(part for part in parts if part)


def _best(frame: pd.DataFrame) -> list[Finding]:
    """The configuration with the highest mean accuracy, and whether its lead is resolved."""
    means = summaries.over_inits(frame, BY, "val_accuracy").dropna(subset="mean")
    ranked = means.sort_values("mean", ascending=False, kind="stable").to_dict("records")
    first = ranked[0]
    value = accuracy(first["mean"], first["low"], first["high"])
    text = f"The highest validation accuracy is {value}"
    name = _name(first, frame)
    text += f", that of {name}" if name else ""
    text += f" ({sample(first['n'])}; the mean of the last epochs of a run, not its best one)."
    if "validation" in frame and (frame["validation"] == 0).all():
        text += " It is measured on the test set: nothing was set aside to choose by."
    if len(ranked) > 1:
        wide = _wide(frame, "val_accuracy")
        one, other = (wide.loc[(row["condition"], row["method"])] for row in ranked[:2])
        gap = summaries.difference(one, other)
        second = f"{_name(ranked[1], frame)} with {accuracy(ranked[1]['mean'])}"
        text += f" Second is {second}"
        if gap["n"] >= summaries.LEAST_INITS:
            unsure = "" if summaries.resolved(gap) else "not "
            text += f"; the lead is {unsure}resolved"
        text += "."
    return [Finding("Best accuracy", text)]


def _wide(frame: pd.DataFrame, value: str, by: list[str] | None = None) -> pd.DataFrame:
    means = summaries.replicate_means(frame, by or BY, [value])
    return means.pivot(index=by or BY, columns="init", values=value)


def _weight_decay(frame: pd.DataFrame) -> list[Finding]:
    """The best weight decay of every width."""
    if "weight_decay" not in frame or frame["weight_decay"].nunique() < 2:
        return []
    frame = frame.assign(case=columns.conditions_apart_from(frame, ["weight_decay"]))
    if frame["method"].nunique() > 1:
        joined = frame["case"] + ", " + frame["method"]
        frame["case"] = joined.where(frame["case"] != "", frame["method"])
    wide = _wide(frame, "val_accuracy", ["case", "weight_decay"])
    order = frame.drop_duplicates("case")
    if "width" in order:
        order = order.sort_values("width", kind="stable", key=lambda w: w.map(_size))
    parts, n = [], []
    for case in order["case"]:
        rows = wide.loc[case].dropna(how="all")
        if len(rows) < 2:
            continue
        text, inits = _best_decay(rows)
        n.append(inits)
        parts.append(f"{text} ({case})" if case else text)
    if not parts:
        return []
    shown = [*parts[:MOST], f"{len(parts) - MOST} more cases stand in the tables"]
    text = "; ".join(parts if len(parts) <= MOST else shown)
    return [Finding("Weight decay", f"The weight decay with the highest validation accuracy is "
                    f"{text} ({sample(min(n))}, paired).")]  # fmt: skip


def _size(width: Any) -> float:
    return position("width", width)[0]


def _best_decay(rows: pd.DataFrame) -> tuple[str, int]:
    """``1e-05 with 91.2 %, not resolved from 0`` and the number of inits."""
    means = rows.mean(axis=1)
    values = rows.index.to_numpy(float)
    best = float(values[int(means.to_numpy().argmax())])
    low, high = summaries.mean_interval(rows.loc[best])
    gaps = {float(v): summaries.difference(rows.loc[best], rows.loc[v])
            for v in values if v != best}  # fmt: skip
    unsure = [f"{v:g}" for v, gap in gaps.items()
              if gap["n"] >= summaries.LEAST_INITS and not summaries.resolved(gap)]  # fmt: skip
    words = f"{best:g} with {accuracy(means.max(), float(low), float(high))}"
    if best in (values.min(), values.max()) and len(rows) > 2:
        words += ", an end of the grid"
    words += f", not resolved from {listed(unsure)}" if unsure else ""
    return words, int(np.isfinite(rows.loc[best].to_numpy(float)).sum())


def _diverged(frame: pd.DataFrame) -> list[Finding]:
    lost = frame["val_accuracy"].isna()
    if not lost.any():
        return []
    return [Finding("Diverged", f"{int(lost.sum())} of {count(len(frame), 'run')} diverged; no "
                    "mean contains them.")]  # fmt: skip
