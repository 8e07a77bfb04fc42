"""Whole searches as trajectories: the same questions are asked of where a budget ends."""

from __future__ import annotations

import pandas as pd


def as_trajectories(table: pd.DataFrame, loss: str = "best_loss") -> pd.DataFrame:
    """A table of ``search_run`` with the columns of a trajectory.

    Args:
        table: as stored, or annotated.
        loss: what is followed: "best_loss", the lowest so far, or "loss", that at the mean.

    Returns:
        A copy with ``loss`` and, of the best, ``loss_fresh``; of several lr of a descent the best
        is chosen as of a trajectory, so what has none is given 0.

    >>> rows = pd.DataFrame({"best_loss": [0.5], "loss": [0.7], "best_loss_fresh": [0.6]})
    >>> as_trajectories(rows)[["loss", "loss_fresh", "lr"]].values.tolist()
    [[0.5, 0.6, 0.0]]
    """
    best = loss == "best_loss"
    frame = table.assign(loss=table[loss], budget="forward_passes")
    frame["loss_fresh"] = table["best_loss_fresh"] if best and "best_loss_fresh" in table else None
    frame["lr"] = table["lr"].astype(float).fillna(0.0) if "lr" in table else 0.0
    return frame
