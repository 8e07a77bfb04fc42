"""Training runs as tables: which rows are one run."""

from __future__ import annotations

import pandas as pd

from gradlab.reporting import columns


def annotated(table: pd.DataFrame, results: pd.DataFrame | None = None) -> pd.DataFrame:
    """A table of epochs or of results with ``condition``, ``method`` and ``init``.

    In a table of results the lr is a setting, and is called ``learning_rate``; in one of epochs it
    is what the schedule made of it. Every run starts from a fresh network, which goes unsaid.

    Args:
        table: the stored table.
        results: beside a table of epochs, that of the results: it knows the runs' learning rates.

    >>> rows = pd.DataFrame({"weight_decay": [0.0, 1e-5], "lr": 0.1, "val_accuracy": [0.8, 0.9]})
    >>> annotated(rows)[["condition", "learning_rate", "init"]].to_numpy().tolist()
    [['weight decay 0', 0.1, 0], ['weight decay 1e-05', 0.1, 0]]
    """
    frame = table.drop(columns=["student"], errors="ignore")
    if "epoch" not in frame:
        frame = frame.rename(columns={"lr": "learning_rate"})
    elif results is not None and "cell" in frame and {"cell", "lr"} <= set(results):
        known = results.drop_duplicates("cell").set_index("cell")["lr"]
        frame = frame.assign(learning_rate=frame["cell"].map(known))
    frame = columns.annotate(frame)
    return frame if "init" in frame else frame.assign(init=0)
