"""What a varied setting (fitness, update order, normalization) or scale (ε, σ) does to a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pandas as pd

from gradlab.reporting import columns, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.wording import at_num_dim, listed, percent, sample, word

MOST = 4  # cases that a sentence names


def write(frame: pd.DataFrame) -> list[Finding]:
    """One finding per varied scale and per varied categorical choice, at the largest num_dim."""
    frame = frame[frame["num_dim"] == frame["num_dim"].max()]
    found: list[Finding] = []
    for scale in columns.varied_scales(frame):
        found += _scale(frame[frame[scale].notna()], scale)
    for choice in columns.categorical_choices(frame):
        found += _choice(frame[frame[choice].notna()], choice)
    return found


def _vectors(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Decrease at the best lr, by panel, curve and value of ``axis``; one column per init."""
    frame = frame.assign(
        curve=columns.name_curves(frame, [axis]),
        panel=columns.conditions_apart_from(frame, [axis]),
    )
    keys = ["panel", "curve", axis]
    rows = summaries.at_best_lr(frame, keys)
    means = summaries.replicate_means(rows, keys, ["loss_decrease"])
    return means.pivot(index=keys, columns="init", values="loss_decrease")


def _scale(frame: pd.DataFrame, scale: str) -> list[Finding]:
    symbol = columns.SYMBOLS.get(scale, scale)
    # Curves with one and the same answer share a clause.
    answers: dict[tuple[str, str], list[str]] = {}
    panels = columns.conditions(frame)
    wide = _vectors(frame, scale)
    curves = list(dict.fromkeys(columns.name_curves(frame, [scale])))
    keys = sorted(
        {(key[0], key[1]) for key in wide.index},
        key=lambda key: (panels.index(key[0]) if key[0] in panels else 0, curves.index(key[1])),
    )
    for panel, curve in keys:
        rows = wide.loc[panel].loc[curve]
        if len(rows) < 2:
            continue
        means = rows.mean(axis=1)
        best = float(means.idxmax())
        gaps = {float(v): summaries.difference(rows.loc[best], rows.loc[v]) for v in rows.index}
        known = {v: gap for v, gap in gaps.items() if gap["n"] >= summaries.LEAST_INITS}
        equal = [f"{v:g}" for v, gap in known.items() if v != best and not summaries.resolved(gap)]
        words = f"{best:g}"
        if len(gaps) > 2 and best in (min(gaps), max(gaps)):
            words += ", the edge of the grid,"
        if equal:
            words += f" (not resolved from {listed(equal)})"
        answers.setdefault((panel, words), []).append(curve)
    if not answers:
        return []
    parts = [f"{words} for {listed(named)}" + (f" ({panel})" if panel else "")
             for (panel, words), named in answers.items()]  # fmt: skip
    if len(parts) > MOST:
        parts = _tally(answers)
    text = f"The {symbol} with the largest best decrease{at_num_dim(list(frame['num_dim']))} is "
    return [Finding(f"Choice of {symbol}", f"{text}{'; '.join(parts)} ({sample(_inits(frame))}).")]


def _tally(answers: Mapping[tuple[str, str], list[str]]) -> list[str]:
    """In how many of many cases each answer is given, the curves one after the other."""
    counts = Counter((curve, words.partition(" (")[0])
                     for (_, words), named in answers.items() for curve in named)  # fmt: skip
    totals = Counter(curve for named in answers.values() for curve in named)
    return [f"{words} for {curve} in {k} of {totals[curve]} cases"
            for (curve, words), k in counts.most_common()]  # fmt: skip


def _choice(frame: pd.DataFrame, choice: str) -> list[Finding]:
    # Curves with one and the same answer share a clause.
    answers: dict[str, list[str]] = {}
    n = 0.0
    vectors = _vectors(frame, choice)
    for (panel, curve), wide in vectors.groupby(level=["panel", "curve"], sort=False):
        if len(wide) < 2:
            continue
        names = [word(key[2]) for key in wide.index]
        order = wide.mean(axis=1).to_numpy().argsort()[::-1]
        rows = [wide.iloc[i] for i in order]
        gaps = [summaries.difference(rows[0], row) for row in rows[1:]]
        ranked = [names[i] for i in order]
        n = max(n, gaps[-1]["n"])
        unsure = [name for name, gap in zip(ranked[1:], gaps, strict=True)
                  if gap["n"] >= summaries.LEAST_INITS and not summaries.resolved(gap)]  # fmt: skip
        name = f"{curve} ({panel})" if panel else str(curve)
        if len(unsure) == len(gaps):
            words = f"no difference between {listed(names)} is resolved"
        else:
            words = f"{ranked[0]} goes furthest"
            words += f" (not resolved from {listed(unsure)})" if unsure else ""
            share = summaries.ratio(rows[-1], rows[0])
            if share["ratio"] == share["ratio"]:
                words += f", {ranked[-1]} reaches {percent(share)} of it"
        answers.setdefault(words, []).append(name)
    if not answers:
        return []
    parts = [f"{words} for {listed(named)}" for words, named in answers.items()]
    if len(parts) > MOST:
        parts = [*parts[:MOST], f"{len(parts) - MOST} more cases stand in the tables"]
    last = at_num_dim(list(frame["num_dim"])).strip()
    text = f"{last[:1].upper()}{last[1:]}{', ' if last else ''}{'; '.join(parts)}"
    return [Finding(f"Effect of {choice.replace('_', ' ')}", f"{text} ({sample(n)}, paired).")]


def _inits(frame: pd.DataFrame) -> int:
    return int(frame["init"].nunique()) if "init" in frame else 1
