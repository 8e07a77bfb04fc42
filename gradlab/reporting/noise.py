"""Training runs with noise as tables: how they predict, and what is left of their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gradlab.reporting import columns, runs
from gradlab.reporting.columns import PREDICTIONS

BY = ["condition", "method"]
LAYER = ("epoch", "position", "layer", "weights", "kept", "sparsity")
LOG_ALPHA = ("layer", "low", "high", "count")
PIXELS = ("channel", "row", "column", "kept")
JUDGES = ("sample", "mean", "monte_carlo")
"""How any network with noise can be judged: by one draw, the mean weights, several draws."""


def final(kind: str, measure: str = "accuracy") -> str:
    """The column of a measure of the predictions at the end.

    >>> final("monte_carlo"), final("mean", "calibration_error")
    ('final_monte_carlo_accuracy', 'final_mean_calibration_error')
    """
    return f"final_{kind}_{measure}"


def is_noisy(table: pd.DataFrame) -> bool:
    """Whether a table of results is of runs with noise, and some run came to its end.

    >>> is_noisy(pd.DataFrame({"final_mean_accuracy": [0.9, None]}))
    True
    """
    column = final("mean")
    return column in table and bool(table[column].notna().any())


def kinds(frame: pd.DataFrame, measure: str = "accuracy") -> list[str]:
    """The kinds of prediction that this table has numbers of."""
    found = [kind for kind in PREDICTIONS if final(kind, measure) in frame]
    return [kind for kind in found if frame[final(kind, measure)].notna().any()]


def named(table: pd.DataFrame, measured: Sequence[str]) -> pd.DataFrame:
    """A table of layers, bins or pixels with ``condition``, ``method`` and ``init``.

    What is measured is not looked at when rows are named: ``weights`` is a number of weights here,
    and elsewhere the file that a network starts from.

    >>> rows = pd.DataFrame({"estimator": ["sparse"] * 2, "layer": ["1", "2"], "weights": [8, 4]})
    >>> named(rows, LAYER)[["method", "layer", "weights"]].to_numpy().tolist()
    [['sparse', '1', 8], ['sparse', '2', 4]]
    """
    table = table.reset_index(drop=True)
    own = [column for column in measured if column in table]
    frame = runs.annotated(table.drop(columns=own))
    return frame.drop(columns=own, errors="ignore").join(table[own])


def layers(table: pd.DataFrame) -> pd.DataFrame:
    """A table of layers with its runs named and ``place``, the layer's number from the input."""
    frame = named(table, LAYER)
    numbers = ["epoch", "weights", "kept", "sparsity"]
    frame[numbers] = frame[numbers].apply(pd.to_numeric).astype(float)
    frame["layer"] = frame["layer"].astype(str)
    if "position" in frame:
        frame = frame.sort_values("position", kind="stable")
    run = [*BY, *(c for c in columns.REPLICATES if c in frame), "epoch"]
    return frame.assign(place=frame.groupby(run, dropna=False).cumcount())


def last_epoch(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of every run's last epoch."""
    run = [*BY, *(c for c in columns.REPLICATES if c in frame)]
    last = frame.groupby(run, dropna=False)["epoch"].transform("max")
    return frame[frame["epoch"] == last]


def prunable(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table of :func:`layers` whose method removed weights in some run."""
    most = frame.groupby(BY)["sparsity"].transform("max")
    return frame[most > 0]


def layer_name(layer: str) -> str:
    """A layer as titles have it; those of a plain list count from 1.

    >>> layer_name("classifier.0"), layer_name("layers.2")
    ('classifier.0', 'layer 3')
    """
    number = layer.removeprefix("layers.")
    return f"layer {int(number) + 1}" if number.isdigit() else layer


def run_name(row: Mapping[Any, Any], frame: pd.DataFrame) -> str:
    """A method, with its condition where the table has several.

    >>> rows = pd.DataFrame({"condition": ["scale 1", "scale 2"], "method": ["L0", "L0"]})
    >>> run_name(rows.iloc[0], rows)
    'L0 (scale 1)'
    """
    several = frame["condition"].nunique() > 1 and row["condition"]
    return f"{row['method']} ({row['condition']})" if several else str(row["method"])
