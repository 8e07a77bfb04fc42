"""Findings of a cost–quality study: what a direction costs, by whom, and what hides it.

All are of the cosine of the whole gradient to one reference, and compare inits in pairs.

- *At what cost*: the fewest passes at which an evolution strategy has a higher cosine than each
  straight-through estimator. Passes are forward ones; a backward pass counts as two of them.
- *Surrogates*: how far the straight-through estimators lie apart.
- *Evolution strategies on trained students*: a weak cosine of an unbiased estimate is noise or a
  gradient that is not there. What tells them apart is the length of the estimate, for noise adds to
  it, and whether an estimator with less noise finds the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradlab.reporting import columns, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.wording import at_num_dim, begin, cosine, listed, number, sample

BACKWARD = 2.0
LITTLE = 0.05  # a difference of cosines
WEAK, STRONG = 0.5, 0.9  # cosines
LONGER = 1.5  # times
SAMPLED = {"nes": "NES in weights", "local": "local NES"}
_BY = ["condition", "num_dim", "method"]


@dataclass(frozen=True)
class _Place:
    """One condition at one num_dim.

    Attributes:
        condition: its name.
        num_dim: 0 for objectives without one.
        rows: of the table.
        known: :func:`gradlab.reporting.columns.methods`, with ``cost``.
        cosines: of each method, by init.
    """

    condition: str
    num_dim: int
    rows: pd.DataFrame
    known: pd.DataFrame
    cosines: pd.DataFrame

    @property
    def opening(self) -> str:
        """In words, before a colon."""
        return begin(f"{self.condition}{at_num_dim([self.num_dim])}".strip())

    @property
    def reference_norm(self) -> float:
        """Mean length of the reference; NaN in tables that do not have it."""
        if "reference_norm" not in self.rows:
            return float("nan")
        return float(self.rows["reference_norm"].mean())

    def members(self, family: str) -> list[str]:
        """Methods of a family that have a number, cheapest first."""
        measured = self.known[self.known.index.isin(self.cosines.index)]
        found = measured[measured["family"] == family].sort_values("cost", kind="stable")
        return [str(method) for method in found.index]

    def gap(self, one: str, other: str) -> dict[str, float]:
        """Difference of the cosines of two methods, paired by init."""
        return summaries.difference(self.cosines.loc[one], self.cosines.loc[other])

    def mean(self, method: str) -> str:
        """The mean cosine with its interval, in words."""
        values = self.cosines.loc[method].to_numpy()
        low, high = summaries.mean_interval(values)
        ci = "" if np.isnan(low) else f" [{cosine(float(low))}, {cosine(float(high))}]"
        return cosine(float(np.nanmean(values))) + ci


def write(frame: pd.DataFrame) -> list[Finding]:
    """The findings, at the largest num_dim of every condition, for an annotated table.

    Tables without a joined gradient, or with one kind of estimator alone, have none.
    """
    frame = frame[(frame["layer"] == "all") & frame["cosine"].notna()]
    if frame.empty or frame["reference"].nunique() > 1:
        return []
    places = list(_places(frame))
    reference = columns.reference_name(frame["reference"].iloc[0])
    return [
        *(finding for place in places for finding in _overtaken(place, reference)),
        *(finding for place in places for finding in _surrogates(place, reference)),
        *(finding for place in places for finding in _hidden(place, places, reference)),
    ]


def _places(frame: pd.DataFrame) -> Iterator[_Place]:
    for condition in columns.conditions(frame):
        rows = frame[frame["condition"] == condition]
        rows = rows[rows["num_dim"] == rows["num_dim"].max()]
        known = columns.methods(rows)
        spent = rows["forward_passes"] + BACKWARD * rows["backward_passes"].fillna(0)
        known["cost"] = spent.groupby(rows["method"]).mean()
        means = summaries.replicate_means(rows, _BY, ["cosine"])
        cosines = means.pivot(index="method", columns="init", values="cosine").dropna(how="all")
        yield _Place(condition, int(rows["num_dim"].iloc[0]), rows, known, cosines)


def _overtaken(place: _Place, reference: str) -> list[Finding]:
    """From what cost on evolution strategies beat each straight-through estimator."""
    straight = [*place.members("ste"), *place.members("matched")]
    clauses = []
    for family, name in SAMPLED.items():
        members = place.members(family)
        if not members or not straight:
            continue
        reached: dict[str, list[str]] = {}
        behind, open_ = [], []
        for other in straight:
            gaps = {m: place.gap(m, other) for m in members}
            ahead = [m for m in members if gaps[m]["low"] > 0]
            if ahead:
                reached.setdefault(_passes(place, ahead[0]), []).append(other)
            elif all(gap["high"] < 0 for gap in gaps.values()):
                behind.append(other)
            else:
                open_.append(other)
        parts = [f"overtakes {listed(others)} at {cost}" for cost, others in reached.items()]
        most = _passes(place, members[-1])
        if behind:
            parts.append(f"stays behind {listed(behind)} up to {most}")
        if open_:
            parts.append(f"is not told apart from {listed(open_)} by {most}")
        clauses.append(f"{name} {', '.join(parts)}")
    inits = int(place.cosines.notna().any().to_numpy().sum())
    if not clauses or inits < summaries.LEAST_INITS:
        return []
    n = sample(inits)
    text = f"{place.opening}, by the cosine to {reference}: {'; '.join(clauses)} ({n})."
    return [Finding("At what cost", text)]


def _passes(place: _Place, method: str) -> str:
    cost = columns.as_float(place.known.loc[method, "cost"])
    return f"{cost:,.0f} passes" if cost >= 100 else f"{cost:.3g} passes"


def _surrogates(place: _Place, reference: str) -> list[Finding]:
    """How far straight-through estimators lie apart."""
    members = place.members("ste")
    if len(members) < 2:
        return []
    means = place.cosines.loc[members].mean(axis=1)
    best, worst = str(means.idxmax()), str(means.idxmin())
    gap = place.gap(best, worst)
    width = cosine(gap["difference"])
    if np.isfinite(gap["low"]):
        width += f" [{cosine(gap['low'])}, {cosine(gap['high'])}]"
    if not summaries.resolved(gap):
        verdict = "not resolved"
    else:
        verdict = "resolved, and little" if gap["high"] < LITTLE else "resolved"
        if len(members) > 2:
            verdict += " (the two were chosen by the same inits)"
    text = (f"{place.opening}: of {len(members)} surrogates {best} is nearest to {reference} "
            f"({place.mean(best)}) and {worst} furthest ({place.mean(worst)}), a difference of "
            f"{width}, {verdict}")  # fmt: skip
    away = [m for m in members if summaries.mean_interval(place.cosines.loc[m])[1] < 0]
    if away:
        names = "all of them" if len(away) == len(members) else listed(away)
        text += f"; {names} point{'s' * (len(away) == 1)} away from it"
    return [Finding("Surrogates", f"{text} ({sample(gap['n'])}).")]


def _hidden(place: _Place, places: list[_Place], reference: str) -> list[Finding]:
    """Where the largest population of an evolution strategy is far from the gradient, and why."""
    members = place.members("nes")
    if not members or np.nanmean(place.cosines.loc[members[-1]]) > WEAK:
        return []
    largest = members[-1]
    lengths = place.rows.groupby("method")["norm_ratio"].mean()
    text = (f"{place.opening}: {largest} has a cosine of {place.mean(largest)} to {reference} and "
            f"{number(lengths[largest], 2)} times its length")  # fmt: skip
    quiet = place.members("local")[-1:]
    if quiet and np.nanmean(place.cosines.loc[quiet[0]]) > STRONG:
        text += (f". The gradient is there: {quiet[0]} has {place.mean(quiet[0])} for "
                 f"{_passes(place, quiet[0])}")  # fmt: skip
    longest = max(places, key=lambda other: other.reference_norm)
    factor = longest.reference_norm / place.reference_norm
    if factor > LONGER and largest in longest.cosines.index:
        text += (f". It is {number(factor, 2)} times shorter than that of the "
                 f"{longest.condition}, where {largest} has {longest.mean(largest)}")  # fmt: skip
    n = sample(float(place.cosines.loc[largest].notna().to_numpy().sum()))
    return [Finding("Noise or no gradient", f"{text} ({n}).")]
