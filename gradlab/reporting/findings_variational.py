"""Findings of training runs with noise: which method is best, and by which judge.

Judges are one draw of the noise, the mean weights, and the mean prediction of several draws, all of
the network of the last epoch. What one of them ranks and another does not is said pair by pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from gradlab.reporting import (
    columns,
    noise,
    published,
    published_ranking,
    published_variational,
    runs,
    summaries,
)
from gradlab.reporting.findings import Finding
from gradlab.reporting.wording import begin, count, interval, listed, number, sample

MOST = 4  # cases that a sentence names
SMALLEST = 1.01  # compression that is worth a word
JUDGED = {"sample": "one draw", "mean": "mean weights", "monte_carlo": "Monte Carlo"}
Wide = dict[str, pd.DataFrame]


def training_result(tables: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """Findings of the results, and of what is left of the layers where a table has that.

    Args:
        tables: stored tables by name, with ``training_result``.
    """
    table = tables["training_result"]
    frame = runs.annotated(table)
    frame = frame[frame[noise.final("mean")].notna()]
    sparsity = tables.get("layer_sparsity")
    compared = published_variational.compare(table, sparsity)
    said = [*published.sentences(compared),
            *published_ranking.sentences(published_ranking.ranking(table))]  # fmt: skip
    return [
        *_best(_true_labels(frame)),
        *_rankings(_true_labels(frame)),
        *_against_none(_true_labels(frame)),
        *_compression(_true_labels(frame)),
        *_dead(sparsity),
        *_shuffled(frame),
        *(Finding("Published numbers", text) for text in said),
    ]


def _true_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs that had something to learn."""
    if "random_labels" not in frame:
        return frame
    return frame[frame["random_labels"].astype(str).str.lower() != "true"]


def _wide(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """A row per method, a column per init."""
    means = summaries.replicate_means(frame, ["method"], [value])
    return means.pivot(index="method", columns="init", values=value)


def _cases(frame: pd.DataFrame) -> list[tuple[str, Wide]]:
    """For every condition, the accuracies by each judge; methods that some judge lacks are out."""
    found = []
    for condition in columns.conditions(frame) if len(frame) else []:
        rows = frame[frame["condition"] == condition]
        judges = {kind: _wide(rows, noise.final(kind)) for kind in noise.JUDGES}
        known = [m for m in judges["mean"].index
                 if all(w.loc[m].notna().any() for w in judges.values())]  # fmt: skip
        found.append((condition, {kind: wide.loc[known] for kind, wide in judges.items()}))
    return [(condition, judges) for condition, judges in found if len(judges["mean"])]


def _gap(wide: pd.DataFrame, one: str, other: str) -> dict[str, float]:
    return summaries.difference(wide.loc[one], wide.loc[other])


def _lead(gap: Mapping[str, float]) -> str:
    if gap["n"] < summaries.LEAST_INITS:
        return ""
    return ", resolved" if summaries.resolved(dict(gap)) else ", not resolved"


def _accuracy(mean: Any, low: Any, high: Any) -> str:
    return f"{100 * float(mean):.2f} %{interval(float(low), float(high), 100, 4)}"


def _value(wide: pd.DataFrame, method: str) -> str:
    return _accuracy(wide.loc[method].mean(), *summaries.mean_interval(wide.loc[method]))


def _best(frame: pd.DataFrame) -> list[Finding]:
    """The best method by each judge, and whether it leads the second."""
    found = []
    cases = _cases(frame)
    for condition, judges in cases:
        parts = []
        for kind, words in JUDGED.items():
            ranked = list(
                judges[kind].mean(axis=1).sort_values(ascending=False, kind="stable").index
            )
            text = f"by {words} {ranked[0]} with {_value(judges[kind], ranked[0])}"
            if len(ranked) > 1:
                gap = _gap(judges[kind], ranked[0], ranked[1])
                second = f"{ranked[1]} with {100 * judges[kind].loc[ranked[1]].mean():.2f} %"
                level = round(gap["difference"], published_ranking.DIGITS) == 0
                text += f" level with {second}" if level else f" before {second}{_lead(gap)}"
            parts.append(text)
        inits = int(judges["mean"].notna().sum(axis=1).min())
        aside = "validation" not in frame or (frame["validation"] != 0).any()
        judged = "" if aside else " Nothing was set aside to choose by: it is that of test images."
        lead = "Best method" + (f" ({condition})" if len(cases) > 1 else "")
        found.append(Finding(lead, f"The highest accuracy after the last epoch is, "
                             f"{'; '.join(parts)} ({sample(inits)}).{judged}"))  # fmt: skip
    return found


def _rankings(frame: pd.DataFrame) -> list[Finding]:
    """Whether one draw ranks the methods as the mean weights and several draws do."""
    found = []
    cases = _cases(frame)
    for condition, judges in cases:
        if len(judges["mean"]) < 3:
            continue
        parts = [_agreement(judges, kind) for kind in ("mean", "monte_carlo")]
        lead = "Ranking by judge" + (f" ({condition})" if len(cases) > 1 else "")
        found.append(Finding(lead, " ".join(parts)))
    return found


def _agreement(judges: Wide, kind: str) -> str:
    """``One draw and the mean weights agree in 8 of 10 pairs (…); otherwise: …``."""
    one, other = judges["sample"], judges[kind]
    digits = published_ranking.DIGITS
    first, second = (wide.mean(axis=1).round(digits) for wide in (one, other))
    methods = list(first.sort_values(ascending=False, kind="stable").index)
    pairs = list(itertools.combinations(methods, 2))
    flips = [(a, b) for a, b in pairs if (first[a] - first[b]) * (second[a] - second[b]) < 0]
    words = {"mean": "the mean weights", "monte_carlo": "Monte Carlo"}[kind]
    text = (
        f"One draw and {words} order {len(pairs) - len(flips)} of {count(len(pairs), 'pair')} of "
        f"methods alike"
    )
    if first.nunique() > 1 and second.nunique() > 1:
        rho, tau = (
            stats.spearmanr(first, second).statistic,
            stats.kendalltau(first, second).statistic,
        )
        text += f" (Spearman {number(rho, 2)}, Kendall {number(tau, 2)})"
    # the largest change first
    change = [(first[a] - first[b]) + (second[b] - second[a]) for a, b in flips]
    chosen = [flips[i] for i in np.argsort([-c for c in change], kind="stable")]
    said = []
    for a, b in chosen[:MOST]:
        sure = [summaries.resolved(_gap(wide, a, b)) for wide in (one, other)]
        mark = ", both resolved" if all(sure) else ""
        said.append(
            f"{a} before {b} by one draw ({_two(first, a, b)}) and behind it by {words} "
            f"({_two(second, a, b)}{mark})"
        )
    if len(flips) > MOST:
        said.append(f"and {len(flips) - MOST} more")
    return text + (f": {'; '.join(said)}." if said else ".")


def _two(means: pd.Series, a: str, b: str) -> str:
    return f"{100 * means[a]:.2f} % against {100 * means[b]:.2f} %"


def _against_none(frame: pd.DataFrame) -> list[Finding]:
    """Every method against the same network without noise, by each judge."""
    names = frame.loc[frame["estimator"] == "none", "method"].unique()
    if len(names) != 1:
        return []
    none, found = str(names[0]), []
    cases = _cases(frame)
    for condition, judges in cases:
        methods = [m for m in judges["mean"].index if m != none]
        if none not in judges["mean"].index or not methods:
            continue
        gaps = {m: {k: _gap(judges[k], m, none) for k in noise.JUDGES} for m in methods}
        counted = [_above_and_below([gaps[m][kind] for m in methods], JUDGED[kind])
                   for kind in noise.JUDGES]  # fmt: skip
        ranked = sorted(methods, key=lambda m: -gaps[m]["mean"]["difference"])
        parts = []
        for method in ranked[:MOST]:
            said = [f"{_points(gaps[method][kind])} by {JUDGED[kind]}" for kind in noise.JUDGES]
            parts.append(f"{method} {', '.join(said)}")
        lead = "Against no noise" + (f" ({condition})" if len(cases) > 1 else "")
        best = "the best by mean weights are" if len(methods) > MOST else "they are"
        found.append(Finding(lead, f"Of {count(len(methods), 'method')} {listed(counted)}. In "
                             f"percentage points {best}: {'; '.join(parts)}."))  # fmt: skip
    return found


def _above_and_below(gaps: list[dict[str, float]], judge: str) -> str:
    """``by one draw 2 are above the network without noise (1 resolved) and 3 below (3)``."""
    sides = []
    for sign in (1, -1):
        there = [g for g in gaps if sign * round(g["difference"], published_ranking.DIGITS) > 0]
        sides.append(f"{len(there)} ({sum(map(summaries.resolved, there))} resolved)")
    return f"by {judge} {sides[0]} are above the network without noise and {sides[1]} below"


def _points(gap: Mapping[str, float]) -> str:
    value = round(100 * gap["difference"], 2)
    sign = "−" if value < 0 else "+"
    return f"{sign}{abs(value):.2f}{interval(gap['low'], gap['high'], 100, 2)}"


def _compression(frame: pd.DataFrame) -> list[Finding]:
    """How far networks shrink, and at which error; the best trade-offs by name."""
    columns_needed = {"last_compression", noise.final("pruned")}
    if not columns_needed <= set(frame):
        return []
    rows = frame[frame["last_compression"].notna() & frame[noise.final("pruned")].notna()]
    if rows.empty:
        return []
    means = summaries.over_inits(rows, noise.BY, "last_compression")
    means = means.merge(
        summaries.over_inits(rows, noise.BY, noise.final("pruned"))[[*noise.BY, "mean"]],
        on=noise.BY, suffixes=("", "_accuracy"),
    )  # fmt: skip
    means = means[means["mean"] > SMALLEST].sort_values("mean", ascending=False, kind="stable")
    if means.empty:
        return []
    # no other configuration is both smaller and better
    best = [row for row in means.to_dict("records")
            if not ((means["mean"] > row["mean"])
                    & (means["mean_accuracy"] >= row["mean_accuracy"])).any()]  # fmt: skip
    said = [
        f"{noise.run_name(row, rows)} keeps one weight in {number(row['mean'])}"
        f"{interval(row['low'], row['high'])}, with "
        f"{100 * (1 - row['mean_accuracy']):.2f} % of errors"
        for row in best[:MOST]
    ]
    text = begin("; ".join(said)) + f" ({sample(int(means['n'].min()))}; pruned mean weights)."
    more = f"; {len(best) - MOST} more stand in the tables" if len(best) > MOST else ""
    if len(means) > len(said):
        text += (f" No other of {count(len(means), 'configuration')} that prune is smaller with as "
                 f"few errors{more}.")  # fmt: skip
    return [Finding("Compression", text)]


def _dead(sparsity: pd.DataFrame | None) -> list[Finding]:
    """Layers of which nothing is left."""
    if sparsity is None or sparsity.empty:
        return []
    last = noise.last_epoch(noise.layers(sparsity))
    dead = last[last["kept"] == 0]
    if dead.empty:
        return []
    said = []
    for keys, rows in dead.groupby([*noise.BY, "layer"], sort=False):
        row: dict[str, Any] = dict(zip([*noise.BY, "layer"], keys, strict=True))
        same = (last[noise.BY[0]] == row["condition"]) & (last["method"] == row["method"])
        total = int((same & (last["layer"] == row["layer"])).sum())
        said.append(f"{noise.run_name(row, last)}: {noise.layer_name(row['layer'])} in {len(rows)} "
                    f"of {count(total, 'run')}")  # fmt: skip
    shown = said if len(said) <= MOST else [*said[:MOST], f"and {len(said) - MOST} more"]
    return [Finding("Dead layers", "No weight is left after the last epoch, so that all images are "
                    f"classified alike, of {'; '.join(shown)}.")]  # fmt: skip


def _shuffled(frame: pd.DataFrame) -> list[Finding]:
    """What training on shuffled labels came to: who memorizes them, and who removes weights."""
    if "random_labels" not in frame:
        return []
    rows = frame[frame["random_labels"].astype(str).str.lower() == "true"]
    said = []
    for keys, group in rows.groupby(noise.BY, sort=False):
        row = dict(zip(noise.BY, keys, strict=True))
        mean = summaries.over_inits(group, noise.BY, "train_accuracy").iloc[0]
        text = (f"{noise.run_name(row, rows)} fits "
                f"{_accuracy(mean['mean'], mean['low'], mean['high'])} of them")  # fmt: skip
        if "last_compression" in group and group[noise.final("pruned")].notna().any():
            kept = group["last_compression"].mean()
            text += (f" and keeps one weight in {number(kept)}" if kept == kept else
                     " and keeps no weight")  # fmt: skip
        said.append(text)
    if not said:
        return []
    return [Finding("Shuffled labels", f"Of training labels without any rule "
                    f"{listed(said)}.")]  # fmt: skip
