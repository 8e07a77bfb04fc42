"""A study's tables as files: every row as it was stored, and the summaries a paper would print."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from gradlab.reporting import (
    columns,
    findings_trajectory,
    findings_variance,
    noise,
    published,
    published_ranking,
    published_variational,
    runs,
    searches,
    summaries,
)
from gradlab.reporting.facets import whole_depth, without_num_dim
from gradlab.reporting.layers import layer_order
from gradlab.reporting.stored import StoredStudy, load


def export(study_folder: str | Path, spec: Any = None) -> list[Path]:
    """Write ``tables/<name>.csv`` and ``.parquet``, and ``tables/summary_<name>.csv``.

    Args:
        study_folder: the folder with the store.
        spec: the study's spec; it is read from the store by default.

    Returns:
        The files written.

    Raises:
        StoreError: there is no store, or a file cannot be written.
    """
    from gradlab.sweep.export import export as export_rows

    return [*export_rows(study_folder), *write_summaries(load(study_folder, spec))]


def write_summaries(study: StoredStudy) -> list[Path]:
    """Write the summaries of a study beside its tables."""
    written = []
    for name, frame in summarize(study.tables).items():
        path = study.folder / "tables" / f"summary_{name}.csv"
        write_bytes(path, frame.to_csv(index=False).encode())
        written.append(path)
    return written


def summarize(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The summary of every table of a known kind, and the published numbers where some apply."""
    kinds: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
        "loss_decrease": loss_decrease,
        "gradient_quality": gradient_quality,
        "trajectory": trajectory,
        "search_run": lambda table: trajectory(searches.as_trajectories(table)),
        "training_result": training_result,
        "layer_sparsity": layer_sparsity,
        "gradient_variance": gradient_variance,
    }
    found = {
        name: kind(tables[name])
        for name, kind in kinds.items()
        if name in tables and not tables[name].empty
    }
    comparisons = [
        compare(tables[name])
        for name, compare in (
            ("gradient_quality", published.compare),
            ("training_result", published.compare_training),
        )
        if name in found
    ]
    results = tables.get("training_result")
    if results is not None and noise.is_noisy(results):
        sparsity = tables.get("layer_sparsity")
        comparisons.append(published_variational.compare(results, sparsity))
        found["published_ranking"] = published_ranking.ranking(results)
    present = [comparison for comparison in comparisons if not comparison.empty]
    if present:
        found["published"] = pd.concat(present, ignore_index=True)
    return {name: without_num_dim(frame) for name, frame in found.items() if not frame.empty}


def loss_decrease(table: pd.DataFrame) -> pd.DataFrame:
    """Each method at its best lr, see :func:`gradlab.reporting.summaries.best_table`."""
    frame = columns.annotate(table)
    return _sorted(summaries.best_table(frame), frame)


def gradient_quality(table: pd.DataFrame) -> pd.DataFrame:
    """Per layer the cosine with its interval, and the means of the other measurements."""
    frame = whole_depth(columns.annotate(table))
    by = [c for c in ("reference", "condition", "num_dim", "method", "layer") if c in frame]
    summary = summaries.over_inits(frame, by, "cosine").rename(columns={"mean": "cosine"})
    more = ["depth_index", "gradient_norm", "reference_norm", "norm_ratio", "sign_agreement",
            "split_half_cosine", "relative_bias", "relative_variance", "forward_passes",
            "backward_passes", "seconds"]  # fmt: skip
    more = [c for c in more if c in frame and frame[c].notna().any()]
    means = frame.groupby(by, as_index=False, dropna=False)[more].mean()
    if "depth_index" in means:
        means["depth_index"] = means["depth_index"].astype("Int64")
    return _sorted(summary.drop(columns="missing").merge(means, on=by), frame)


def trajectory(table: pd.DataFrame) -> pd.DataFrame:
    """The final loss of every method under every budget, and what it spent."""
    ends = findings_trajectory.final_losses(table)
    by = ["budget", "condition", "num_dim", "method"]
    summary = summaries.over_inits(ends, by, "loss").rename(columns={"mean": "final_loss"})
    spent = ["step", "forward_passes", "seconds", "loss_fresh"]
    spent = [c for c in spent if c in ends and ends[c].notna().any()]
    means = ends.groupby(by, as_index=False)[spent].mean()
    means = means.rename(columns={"loss_fresh": "final_loss_fresh", "step": "steps"})
    return _sorted(summary.rename(columns={"missing": "diverged"}).merge(means, on=by), ends)


def training_result(table: pd.DataFrame) -> pd.DataFrame:
    """Every configuration of a training study: its accuracies and losses over inits.

    With noise also each kind of prediction at the end, and the compression there.
    """
    frame = runs.annotated(table)
    by = ["condition", "method"]
    summary = frame[by].drop_duplicates()
    n = summaries.over_inits(frame, by, "val_accuracy")[[*by, "n", "missing"]]
    finals = [noise.final(kind) for kind in noise.kinds(frame)]
    values = ("val_accuracy", "train_accuracy", "train_loss", "val_loss", *finals,
              "last_compression")  # fmt: skip
    for value in values:
        if value in frame and frame[value].notna().any():
            found = summaries.over_inits(frame, by, value).drop(columns=["n", "missing"])
            names = {"mean": value, "low": f"{value}_low", "high": f"{value}_high"}
            summary = summary.merge(found.rename(columns=names), on=by)
    more = ["test_accuracy", "best_val_accuracy", "ema_accuracy", "last_sample_accuracy",
            "best_sample_accuracy", "train_nll", "kl"]  # fmt: skip
    more += [noise.final(kind, measure) for measure in columns.PREDICTED[1:]
             for kind in noise.kinds(frame, measure)]  # fmt: skip
    more += ["epochs", "seconds"]
    more = [c for c in more if c in frame and frame[c].notna().any()]
    means = frame.groupby(by, as_index=False)[more].mean()
    summary = summary.merge(means, on=by).merge(n.rename(columns={"missing": "diverged"}), on=by)
    return _sorted(summary, frame)


def layer_sparsity(table: pd.DataFrame) -> pd.DataFrame:
    """What is left of every layer after the last epoch, over inits; only of methods that prune."""
    frame = noise.layers(table)
    last = noise.last_epoch(frame)
    kept = noise.prunable(last)
    if kept.empty:
        return kept
    by = [*noise.BY, "place", "layer"]
    summary = summaries.over_inits(kept, by, "sparsity").rename(columns={"mean": "sparsity"})
    means = kept.groupby(by, as_index=False)[["weights", "kept"]].mean()
    summary = summary.drop(columns="missing").merge(means, on=by)
    return _sorted(summary.sort_values("place", kind="stable"), frame, with_layers=False)


def gradient_variance(table: pd.DataFrame) -> pd.DataFrame:
    """Variance and bias of every estimator, layer by layer, over inits.

    ``largest_bias_z`` is the largest in magnitude of any init: what a test of the bias looks at.
    """
    frame = findings_variance.annotated(table)
    by = [*findings_variance.BY, "layer"]
    summary = frame[by].drop_duplicates()
    for value in ("relative_variance", "relative_variance_per_pass"):
        found = summaries.over_inits(frame, by, value).rename(
            columns={"mean": value, "low": f"{value}_low", "high": f"{value}_high"}
        )
        summary = summary.merge(found.drop(columns=["n", "missing"]), on=by)
    more = ["signal_to_noise", "cosine", "relative_bias", "forward_passes", "backward_passes",
            "seconds"]  # fmt: skip
    rows = frame.groupby(by)
    summary = summary.merge(rows[[c for c in more if c in frame]].mean().reset_index(), on=by)
    largest = rows["bias_z"].agg(
        lambda z: z.iloc[int(z.abs().argmax())] if z.notna().any() else math.nan
    )
    for name, column in (("largest_bias_z", largest), ("n", rows["init"].nunique())):
        summary = summary.merge(column.rename(name).reset_index(), on=by)
    ordered = {name: place for place, name in enumerate(findings_variance.ordered_methods(frame))}
    conditions = columns.conditions(frame)
    return summary.sort_values(
        ["condition", "method"], kind="stable", ignore_index=True,
        key=lambda c: c.map(ordered) if c.name == "method" else c.map(conditions.index),
    )  # fmt: skip


def _sorted(summary: pd.DataFrame, frame: pd.DataFrame, with_layers: bool = True) -> pd.DataFrame:
    """Conditions, num_dims, methods and layers in the order in which figures list them."""
    orders: dict[str, list[Any]] = {
        "condition": columns.conditions(frame),
        "method": list(columns.methods(frame).index),
    }
    if "layer" in summary and with_layers:
        orders["layer"] = layer_order(frame)
    keys = [c for c in ("budget", "reference", "condition", "num_dim", "method", "layer")
            if c in summary and (with_layers or c != "layer")]  # fmt: skip

    def rank(column: pd.Series) -> pd.Series:
        order = orders.get(str(column.name))
        return column.map({v: i for i, v in enumerate(order)}) if order else column

    return summary.sort_values(keys, key=rank, kind="stable").reset_index(drop=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    from gradlab.sweep.store import StoreError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"{path} cannot be written ({reason}): free some space or change the "
                         "permissions of its folder.") from None  # fmt: skip
