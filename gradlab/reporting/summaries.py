"""Means, intervals and paired comparisons over inits: the statistics behind figures and findings.

The independent unit is the init (one teacher with one student). Batches and repeats of an init
share its parameters, so they are averaged first, and only inits are resampled. Intervals are
percentile bootstrap intervals (Efron & Tibshirani 1993, chapter 13) of the mean over inits; for
up to five inits all n^n resamples are enumerated, so they carry no Monte Carlo error. With fewer
than three inits there is no interval. With three, 95 % of the resamples span exactly the range of
the three values; such a range covers the mean of a symmetric distribution three times in four, so
read it as "all inits agree", not as 95 %.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 9_999
LEAST_INITS = 3
ENUMERATED_INITS = 5
_BLOCK = 4_000_000  # resampled means held at once: 32 MB

Array = NDArray[np.float64]


@lru_cache(maxsize=64)
def resampling_weights(n: int, seed: int = 0) -> Array:
    """How often each of ``n`` units is drawn in each resample, divided by ``n``.

    Returns:
        ``(R, n)``; every row sums to one. All n^n resamples for n ≤ 5, else 9,999 seeded ones.

    >>> resampling_weights(2).tolist()
    [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.0, 1.0]]
    """
    if n <= ENUMERATED_INITS:
        draws = np.array(list(itertools.product(range(n), repeat=n))).reshape(-1, n)
    else:
        draws = np.random.default_rng([seed, n]).integers(0, n, size=(RESAMPLES, n))
    counts = (draws[:, :, None] == np.arange(n)).sum(axis=1)
    weights: Array = counts / n
    weights.setflags(write=False)
    return weights


def percentile_interval(resampled: Array, level: float = LEVEL) -> tuple[Array, Array]:
    """The central ``level`` of sorted resamples along the last axis, symmetric in its ranks."""
    ordered = np.sort(resampled, axis=-1)
    below = int(np.floor((1 - level) / 2 * ordered.shape[-1]))
    return ordered[..., below], ordered[..., -1 - below]


def mean_interval(values: ArrayLike, level: float = LEVEL, seed: int = 0) -> tuple[Array, Array]:
    """Bootstrap interval of the mean over the last axis, NaN marking absent inits.

    Args:
        values: ``(..., n)``, one number per init.
        level: the share of resamples inside.
        seed: seeds the resamples where there are too many to enumerate.

    Returns:
        ``low, high``, both ``(...)``; NaN where fewer than three inits are present.

    >>> low, high = mean_interval([1.0, 2.0, 6.0])
    >>> float(low), float(high)
    (1.0, 6.0)
    """
    matrix = np.asarray(values, dtype=float)
    rows = matrix.reshape(-1, matrix.shape[-1])
    low, high = np.full((2, len(rows)), np.nan)
    present = np.isfinite(rows)
    counts = present.sum(axis=1)
    # Finite values first, so that rows of one count form a rectangle.
    packed = np.take_along_axis(rows, np.argsort(~present, axis=1, kind="stable"), axis=1)
    for n in np.unique(counts[counts >= LEAST_INITS]):
        weights = resampling_weights(int(n), seed)
        where = np.flatnonzero(counts == n)
        for part in np.array_split(where, max(1, len(where) * len(weights) // _BLOCK)):
            means = packed[part, :n] @ weights.T
            low[part], high[part] = percentile_interval(means, level)
    return low.reshape(matrix.shape[:-1]), high.reshape(matrix.shape[:-1])


def replicate_means(frame: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """One row per group and init: the mean over its batches and repeats.

    A missing measurement (a diverged run) makes the mean of its init missing: leaving it out would
    flatter whoever diverges.
    """
    if "init" not in frame:
        frame = frame.assign(init=0)
    groups = frame.groupby([*by, "init"], dropna=False, sort=True)[list(values)]
    return groups.mean().where(groups.count().eq(groups.size(), axis=0)).reset_index()


def over_inits(
    frame: pd.DataFrame, by: Sequence[str], value: str, *, level: float = LEVEL, seed: int = 0
) -> pd.DataFrame:
    """Mean over inits with its bootstrap interval, for each group.

    Args:
        frame: tidy rows with ``init`` (and perhaps ``batch``, ``repeat``), ``by`` and ``value``.
        by: the columns that name a group.
        value: the measurement.
        level: the share of resamples inside the interval.
        seed: seeds the resamples.

    Returns:
        ``by``, then ``mean, low, high, n`` (inits measured), ``missing`` (inits that diverged).
        The mean is over the measured inits; low and high are NaN for n < 3.
    """
    by = list(by)
    means = replicate_means(frame, by, [value])
    keys = means[by].drop_duplicates().reset_index(drop=True)
    group = means.merge(keys.assign(_group=keys.index), on=by)["_group"].to_numpy()
    place = means.groupby(group).cumcount().to_numpy()
    size = int(place.max()) + 1 if len(place) else 1
    matrix = np.full((len(keys), size), np.nan)
    measured = means[value].to_numpy(dtype=float)
    matrix[group, place] = measured
    low, high = mean_interval(matrix, level, seed)
    n = np.isfinite(matrix).sum(axis=1)
    total = np.where(np.isfinite(matrix), matrix, 0.0).sum(axis=1)
    mean = np.divide(total, n, out=np.full(len(keys), np.nan), where=n > 0)
    missing = np.bincount(group[~np.isfinite(measured)], minlength=len(keys))
    return keys.assign(mean=mean, low=low, high=high, n=n, missing=missing)


def best_lr(frame: pd.DataFrame, by: Sequence[str], value: str = "loss_decrease") -> pd.DataFrame:
    """The lr with the largest mean of ``value`` over inits and batches, for each group.

    An lr at which any run of the group diverged is not eligible.

    Returns:
        ``by``, then ``lr`` and ``edge``: "lowest" or "highest" where the best lr is the end of a
        grid of at least two lrs (the true best may lie outside), else "".
    """
    by = list(by)
    means = over_inits(frame, [*by, "lr"], value)
    grid = means.groupby(by, dropna=False)["lr"].agg(["min", "max"])
    eligible = means[means["mean"].notna() & (means["missing"] == 0)]
    # The first of the largest: among equals the smallest lr.
    best = eligible.sort_values([*by, "lr"]).sort_values("mean", ascending=False, kind="stable")
    best = best.drop_duplicates(by).sort_values(by)
    best = best[[*by, "lr"]].merge(grid.reset_index(), on=by)
    several = best["min"] < best["max"]
    lowest, highest = several & (best["lr"] == best["min"]), several & (best["lr"] == best["max"])
    edge = np.select([lowest, highest], ["lowest", "highest"], default="")
    return best.drop(columns=["min", "max"]).assign(edge=edge).reset_index(drop=True)


def at_best_lr(
    frame: pd.DataFrame, by: Sequence[str], value: str = "loss_decrease"
) -> pd.DataFrame:
    """The rows of ``frame`` taken at the best lr of their group, with the column ``edge``.

    The same rows choose the lr and are judged at it, so among many lrs the best one is flattered
    a little; ``loss_decrease_fresh`` at the same lr is free of that.
    """
    return frame.merge(best_lr(frame, by, value), on=[*by, "lr"])


def paired(one: ArrayLike, other: ArrayLike) -> tuple[Array, Array]:
    """The values of the inits that both have, as two vectors."""
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    both = np.isfinite(a) & np.isfinite(b)
    return a[both], b[both]


def ratio(
    one: ArrayLike, other: ArrayLike, level: float = LEVEL, seed: int = 0
) -> dict[str, float]:
    """Mean of ``one`` over mean of ``other``, paired by init, with its bootstrap interval.

    Both means are taken over the same resampled inits, so what an init has in common cancels.

    Returns:
        ``ratio, low, high, n``; all NaN where the denominator is not positive in every resample.

    >>> ratio([0.9, 1.8, 2.7], [1.0, 2.0, 3.0])["ratio"]
    0.9
    """
    a, b = paired(one, other)
    result = {"ratio": np.nan, "low": np.nan, "high": np.nan, "n": float(len(a))}
    if len(a) == 0 or b.mean() <= 0:
        return result
    weights = resampling_weights(len(a), seed)
    denominators = weights @ b
    if len(a) >= LEAST_INITS and denominators.min() <= 0:
        return result
    result["ratio"] = float(a.mean() / b.mean())
    if len(a) >= LEAST_INITS:
        low, high = percentile_interval((weights @ a) / denominators, level)
        result["low"], result["high"] = float(low), float(high)
    return result


def difference(
    one: ArrayLike, other: ArrayLike, level: float = LEVEL, seed: int = 0
) -> dict[str, float]:
    """Mean of ``one − other`` over paired inits with its bootstrap interval.

    Returns:
        ``difference, low, high, n`` and ``agree``: in how many inits the sign is the mean's.

    >>> difference([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    {'difference': 2.0, 'low': 1.0, 'high': 3.0, 'n': 3.0, 'agree': 3.0}
    """
    a, b = paired(one, other)
    gaps = a - b
    if len(gaps) == 0:
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "n": 0.0, "agree": 0.0}
    low, high = mean_interval(gaps, level, seed)
    agree = float((np.sign(gaps) == np.sign(gaps.mean())).sum())
    numbers = {"difference": gaps.mean(), "low": low, "high": high, "n": len(gaps), "agree": agree}
    return {key: float(value) for key, value in numbers.items()}


def resolved(comparison: dict[str, float]) -> bool:
    """Whether the interval of a :func:`difference` exists and leaves zero out."""
    return bool(comparison["low"] > 0 or comparison["high"] < 0)


def common_lr(frame: pd.DataFrame, by: Sequence[str] = ("condition", "num_dim", "method")) -> float:
    """The lr that is best for the most groups; among equals the one nearest their middle.

    Raises:
        ValueError: no lr has a finite loss decrease.
    """
    best = best_lr(frame, by)["lr"].to_numpy(dtype=float)
    if len(best) == 0:
        raise ValueError("no run has a finite loss decrease, so no lr can be chosen.")
    values, counts = np.unique(best, return_counts=True)
    most = values[counts == counts.max()]
    middle = np.median(np.log(np.maximum(best, 1e-300)))
    return float(most[np.argmin(np.abs(np.log(np.maximum(most, 1e-300)) - middle))])


def best_trajectories(frame: pd.DataFrame) -> pd.DataFrame:
    """Of trajectories taken at several lrs, those at the lr with the lowest mean final loss.

    The choice is made per condition, num_dim, method and budget; an lr at which any run diverged
    is taken only where all of them diverge.
    """
    if "lr" not in frame or frame["lr"].nunique() < 2:
        return frame
    by = [c for c in ("condition", "num_dim", "method", "budget") if c in frame]
    replicates = [c for c in ("init", "batch", "repeat") if c in frame]
    ends = frame.sort_values("step").drop_duplicates([*by, "lr", *replicates], keep="last")
    final = over_inits(ends, [*by, "lr"], "loss")
    final["mean"] = final["mean"].where(final["missing"] == 0, np.inf)
    best = final.sort_values(["mean", "lr"]).drop_duplicates(by)
    return frame.merge(best[[*by, "lr"]], on=[*by, "lr"])


def best_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The summary everybody asks for: each method at its best lr, per condition and num_dim.

    Args:
        frame: an annotated loss-decrease table (:func:`gradlab.reporting.columns.annotate`).

    Returns:
        ``condition, num_dim, method, best_lr, edge, loss_decrease, low, high, fresh, fresh_low,
        fresh_high, n, forward_passes, backward_passes, seconds``.
    """
    by = ["condition", "num_dim", "method"]
    rows = at_best_lr(frame, by)
    summary = over_inits(rows, by, "loss_decrease").rename(columns={"mean": "loss_decrease"})
    summary = summary.drop(columns="missing")
    if "loss_decrease_fresh" in rows:
        fresh = over_inits(rows, by, "loss_decrease_fresh").drop(columns=["n", "missing"])
        names = {"mean": "fresh", "low": "fresh_low", "high": "fresh_high"}
        summary = summary.merge(fresh.rename(columns=names), on=by, how="left")
    costs = [c for c in ("forward_passes", "backward_passes", "seconds") if c in rows]
    means = rows.groupby(by, as_index=False)[costs].mean() if costs else rows[by].drop_duplicates()
    chosen = rows[[*by, "lr", "edge"]].drop_duplicates(by).rename(columns={"lr": "best_lr"})
    summary = chosen.merge(summary, on=by).merge(means, on=by)
    last = ["n", *costs]
    return summary[[c for c in summary.columns if c not in last] + last]
