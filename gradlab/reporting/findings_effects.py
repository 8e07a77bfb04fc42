"""What a varied setting (fitness, update order, normalization) or scale (ε, σ) does to a step."""

from __future__ import annotations

import pandas as pd

from gradlab.reporting import columns, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.wording import at_num_dim, listed, percent, sample


def write(frame: pd.DataFrame) -> list[Finding]:
    """One finding per varied scale and per varied categorical choice, at the largest num_dim."""
    frame = frame[frame["num_dim"] == frame["num_dim"].max()]
    found: list[Finding] = []
    for scale in ("epsilon", "sigma"):
        if scale in frame and frame.groupby("estimator")[scale].nunique().max() > 1:
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
    symbol = columns.SYMBOLS[scale]
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
        if best in (min(gaps), max(gaps)):
            words += ", the edge of the grid,"
        if equal:
            words += f" (not resolved from {listed(equal)})"
        answers.setdefault((panel, words), []).append(curve)
    if not answers:
        return []
    parts = [f"{words} for {listed(named)}" + (f" ({panel})" if panel else "")
             for (panel, words), named in answers.items()]  # fmt: skip
    text = f"The {symbol} with the largest best decrease{at_num_dim(list(frame['num_dim']))} is "
    return [Finding(f"Choice of {symbol}", f"{text}{'; '.join(parts)} ({sample(_inits(frame))}).")]


def _choice(frame: pd.DataFrame, choice: str) -> list[Finding]:
    parts, last = [], at_num_dim(list(frame["num_dim"]))
    vectors = _vectors(frame, choice)
    for (panel, curve), wide in vectors.groupby(level=["panel", "curve"], sort=False):
        if len(wide) < 2:
            continue
        means = wide.mean(axis=1)
        names = [columns.text(key[2]) for key in wide.index]
        order = means.to_numpy().argsort()[::-1]
        top, bottom = order[0], order[-1]
        gap = summaries.difference(wide.iloc[top], wide.iloc[bottom])
        share = summaries.ratio(wide.iloc[bottom], wide.iloc[top])
        under = f" ({panel})" if panel else ""
        if gap["n"] >= summaries.LEAST_INITS and not summaries.resolved(gap):
            parts.append((gap["n"], f"{curve}{under}: no resolved difference between "
                          f"{listed(names)}"))  # fmt: skip
            continue
        equal = [names[i] for i in order[1:] if not summaries.resolved(
            summaries.difference(wide.iloc[top], wide.iloc[i]))
            and gap["n"] >= summaries.LEAST_INITS]  # fmt: skip
        words = f"{curve}{under}: {names[top]} goes furthest"
        words += f" (not resolved from {listed(equal)})" if equal else ""
        if share["ratio"] == share["ratio"]:
            words += f", {names[bottom]} reaches {percent(share)} of it"
        parts.append((gap["n"], words))
    if not parts:
        return []
    shown = [words for _, words in parts[:4]]
    if len(parts) > 4:
        shown.append(f"{len(parts) - 4} more stand in the tables")
    name = choice.replace("_", " ")
    text = f"{'; '.join(shown)} ({sample(parts[0][0])}, paired)."
    return [Finding(f"Effect of {name}", f"A{last[2:]}, {text}" if last else text)]


def _inits(frame: pd.DataFrame) -> int:
    return int(frame["init"].nunique()) if "init" in frame else 1
