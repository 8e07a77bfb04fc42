"""Findings of a trajectory study: where each budget ends."""

from __future__ import annotations

import pandas as pd

from gradlab.reporting import columns, findings_network, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.problems import is_network
from gradlab.reporting.wording import at_num_dim, begin, interval, number, sample

BUDGETS = {
    "forward_passes": "budget of passes",
    "seconds": "budget of seconds",
    "steps": "budget of steps",
}


def final_losses(table: pd.DataFrame) -> pd.DataFrame:
    """The last row of each run (at the best lr where several were taken), annotated.

    A run that diverged ends without a loss.
    """
    frame = summaries.best_trajectories(columns.annotate(table))
    if "budget" not in frame:
        frame["budget"] = "steps"
    run = ["condition", "num_dim", "method", "budget"]
    run += [c for c in columns.REPLICATES if c in frame]
    return frame.sort_values("step").drop_duplicates(run, keep="last")


def trajectory(table: pd.DataFrame) -> list[Finding]:
    """The lowest final loss under each budget, for every condition and num_dim."""
    annotated = columns.annotate(table)
    if is_network(annotated):
        return findings_network.trajectory(annotated)
    ends = final_losses(table)
    if ends["loss"].isna().all():
        return [Finding("Nothing to compare", "Every trajectory diverged.")]
    found = []
    several = ends["condition"].nunique() > 1
    for budget, words in BUDGETS.items():
        rows = ends[ends["budget"] == budget]
        for condition in columns.conditions(rows):
            text = _winners(rows[rows["condition"] == condition])
            if text:
                under = f" ({condition})" if several else ""
                text = f"Within the {words}{under} the lowest final loss is {text}"
                found.append(Finding(words.capitalize(), text))
    return found + _unseen(ends)


def _winners(rows: pd.DataFrame) -> str:
    """Who ends lowest at each num_dim, with the numbers of the largest one."""
    led: dict[str, list[int]] = {}
    detail = ""
    for num_dim in sorted(rows["num_dim"].unique()):
        here = rows[rows["num_dim"] == num_dim]
        means = summaries.replicate_means(here, ["method"], ["loss"])
        wide = means.pivot(index="method", columns="init", values="loss")
        wide = wide[wide.notna().all(axis=1)]
        if wide.empty:
            continue
        ranked = list(wide.mean(axis=1).sort_values(kind="stable").index)
        led.setdefault(ranked[0], []).append(num_dim)
        best = wide.loc[ranked[0]]
        low, high = summaries.mean_interval(best)
        spent = _spent(here)
        ci = interval(float(low), float(high))
        place = at_num_dim([num_dim]).strip().capitalize()
        ended = f"{number(best.mean())}{ci}{spent[ranked[0]]}"
        detail = " " + begin(f"{place}{', ' if place else ''}{ranked[0]} ends at {ended}")
        detail += f" ({sample(best.notna().sum())})"
        if len(ranked) > 1:
            second = wide.loc[ranked[1]]
            gap = summaries.difference(second, best)
            unsure = gap["n"] >= summaries.LEAST_INITS and not summaries.resolved(gap)
            detail += f", {ranked[1]} at {number(second.mean())}{spent[ranked[1]]}"
            detail += ", a difference that is not resolved" if unsure else ""
    parts = [f"that of {method}{at_num_dim(dims)}" for method, dims in led.items()]
    return f"{'; '.join(parts)}.{detail}." if parts else ""


def _spent(ends: pd.DataFrame) -> dict[str, str]:
    """What each method had spent when it ended: a limit of steps may end it before its budget."""
    cost = ends.get("forward_passes", pd.Series(dtype=float)).copy()
    if "backward_passes" in ends:
        cost = cost + ends["backward_passes"].fillna(0)
    means = cost.groupby(ends["method"]).mean()
    found = {method: f" after {means[method]:,.0f} passes" for method in means.dropna().index}
    return {method: found.get(method, "") for method in ends["method"].unique()}


def _unseen(ends: pd.DataFrame) -> list[Finding]:
    if "loss_fresh" not in ends or ends["loss_fresh"].isna().all():
        return []
    means = summaries.replicate_means(ends, ["method"], ["loss", "loss_fresh"]).dropna()
    if means.empty:
        return []
    sums = means.groupby("method")[["loss", "loss_fresh"]].mean()
    ratio = (sums["loss_fresh"] / sums["loss"]).sort_values()
    low, high = number(ratio.iloc[0]), number(ratio.iloc[-1])
    text = f"On an unseen batch the final loss is {low} "
    text += f"to {high} " if high != low else ""
    text += "times that on the training batch"
    text += f" (most for {ratio.index[-1]})." if high != low else "."
    return [Finding("Unseen batch", text)]
