"""Findings of steps and descents on networks: layer by layer, state by state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from gradlab.reporting import columns, findings_effects, summaries
from gradlab.reporting.facets import grid
from gradlab.reporting.findings import Finding
from gradlab.reporting.findings_decrease import Best, diverged, learning_rates
from gradlab.reporting.wording import begin, count, interval, listed, number, percent, sample

MOST = 6  # cases that a sentence names


@dataclass(frozen=True)
class Case:
    """One condition, what of it a panel's row says, and its methods, the best first."""

    name: str
    condition: str
    ranked: list[str]


def loss_decrease(frame: pd.DataFrame) -> list[Finding]:
    """The findings.

    Args:
        frame: an annotated loss-decrease table of networks.
    """
    plain, scale = columns.one_scale_each(frame)
    best = Best(plain)
    found = []
    if scale:
        found.append(Finding("Which scale", f"Unless a finding names a scale it is about {scale}."))
    cases, states = _by_state(best, "step")
    found += [*states, *_switch(best, cases, "step"), *_unseen(best, cases)]
    found += findings_effects.write(frame)
    found += learning_rates(best)
    found += diverged(frame)
    return found


def trajectory(frame: pd.DataFrame) -> list[Finding]:
    """Where descents on networks lead, and who still descends.

    They are judged on the held-out batch where there is one: a descent that sees new batches starts
    and ends on different ones.

    Args:
        frame: an annotated table of trajectories of networks.
    """
    falls = decreases(frame)
    if falls["loss_decrease"].isna().all():
        return [Finding("Nothing to compare", "Every trajectory diverged.")]
    found = []
    for budget, rows in falls.groupby("budget", sort=False):
        best = Best(rows)
        cases, states = _by_state(best, "descent")
        several = falls["budget"].nunique() > 1
        where = f" (budget of {str(budget).replace('_', ' ')})" if several else ""
        found += [Finding(finding.lead + where, finding.text)
                  for finding in [*states, *_switch(best, cases, "descent")]]  # fmt: skip
    if "loss_fresh" in frame and frame["loss_fresh"].notna().any():
        found.append(Finding("Judged", "Decreases are those of the loss on one held-out batch, "
                             "from the start to the end of a descent."))  # fmt: skip
    return found


def decreases(frame: pd.DataFrame) -> pd.DataFrame:
    """The last row of every run, with ``loss_decrease`` from its first one; NaN if it diverged."""
    judged = "loss_fresh" in frame and frame["loss_fresh"].notna().any()
    frame = frame if "budget" in frame else frame.assign(budget="steps")
    frame = frame if "lr" in frame else frame.assign(lr=1.0)
    run = ["condition", "num_dim", "method", "budget", "lr"]
    run += [c for c in columns.REPLICATES if c in frame]
    ordered = frame.sort_values("step", kind="stable")
    start, end = (ordered.drop_duplicates(run, keep=which).set_index(run)
                  for which in ("first", "last"))  # fmt: skip
    value = "loss_fresh" if judged else "loss"
    fall = start[value] - end[value].where(end["loss"].notna())
    return end.drop(columns=["loss_decrease"], errors="ignore").assign(
        loss_decrease=fall).reset_index()  # fmt: skip


def _by_state(best: Best, noun: str) -> tuple[list[Case], list[Finding]]:
    """All cases, and a finding for each state of training."""
    cases: list[Case] = []
    found = []
    for lead, named in _states(best.frame).items():
        here = [Case(name, condition, best.ranking(condition, 0))
                for name, condition in named if best.num_dims(condition)]  # fmt: skip
        if here:
            cases += here
            found.append(Finding(lead, _furthest(best, here, noun)))
    return cases, found


def _states(frame: pd.DataFrame) -> dict[str, list[tuple[str, str]]]:
    """For each state of training the cases in it: what they are called there, and their condition.

    Where all networks are in one state, the cases stand together.
    """
    if not columns.varying(frame, ["student"]):
        return {"Best estimator": [(name, name) for name in columns.conditions(frame)]}
    panels = grid(frame)
    return {
        begin(state): [
            (name, str(panels.panels[row, column]["condition"]))
            for row, name in enumerate(panels.rows)
            if (row, column) in panels.panels
        ]
        for column, state in enumerate(panels.columns)
    }


def _inits(best: Best, cases: Sequence[Case]) -> int:
    """The fewest inits behind a best mean."""
    counts = [best.vector(c.condition, 0, c.ranked[0]).notna().sum() for c in cases]
    return int(min(counts, default=0))


def _furthest(best: Best, cases: Sequence[Case], noun: str) -> str:
    """Who goes furthest in which case, by how much, and whether the lead is resolved."""
    parts = [_leader(best, case) for case in cases[:MOST]]
    text = (
        f"With every estimator at its best lr, the {noun} that brings the loss down furthest is "
        f"that of {'; '.join(parts)}"
    )
    if len(cases) > MOST:
        firsts = pd.Series([case.ranked[0] for case in cases]).value_counts()
        tally = listed(f"{method} {k} times" for method, k in firsts.items())
        text += f"; over all {len(cases)} cases the first is {tally}"
    return f"{text} ({sample(_inits(best, cases))})."


def _leader(best: Best, case: Case) -> str:
    """``CDG, 0.02 [0.01, 0.03] before 0.019 of matched STE (layer 7)``."""
    first = case.ranked[0]
    values = best.vector(case.condition, 0, first)
    low, high = summaries.mean_interval(values)
    words = f"{first}, {number(values.mean())}{interval(float(low), float(high))}"
    unsure = False
    if len(case.ranked) > 1:
        second = case.ranked[1]
        gap = best.gap(case.condition, 0, first, second)
        words += f" before {number(best.vector(case.condition, 0, second).mean())} of {second}"
        unsure = gap["n"] >= summaries.LEAST_INITS and not summaries.resolved(gap)
    said = ", ".join(filter(None, [case.name, "not resolved" if unsure else ""]))
    return f"{words} ({said})" if said else words


def _switch(best: Best, cases: Sequence[Case], noun: str) -> list[Finding]:
    """Whether sampling still brings the loss down where straight-through steps do not."""
    straight, sampled = best.of("ste", "matched", "rounding"), best.of("nes", "local")
    answers: dict[str, list[str]] = {"both": [], "sampled": [], "straight": [], "neither": []}
    n = []
    for case in cases:
        mine = [m for m in case.ranked if m in straight]
        theirs = [m for m in case.ranked if m in sampled]
        if not (mine and theirs):
            continue
        one, other = (best.vector(case.condition, 0, methods[0]) for methods in (mine, theirs))
        n.append(int(min(one.notna().sum(), other.notna().sum())))
        down = (_descends(one), _descends(other))
        key = {(True, True): "both", (False, True): "sampled",
               (True, False): "straight", (False, False): "neither"}[down]  # fmt: skip
        answers[key].append(_gains(case, {mine[0]: one, theirs[0]: other}))
    if not n:
        return []
    certain = min(n) >= summaries.LEAST_INITS
    how = "resolvably brings" if certain else "on the mean brings"
    total = len(n)
    text = (f"The best straight-through {noun} {how} the loss down in "
            f"{len(answers['both']) + len(answers['straight'])} of {count(total, 'case')}, the "
            f"best of NES in {len(answers['both']) + len(answers['sampled'])}.")  # fmt: skip
    stuck = len(answers["sampled"]) + len(answers["neither"])
    if stuck:
        text += f" Where straight-through does not, NES still does in {len(answers['sampled'])}"
        text += f" of {stuck}"
        text += f": {'; '.join(answers['sampled'][:MOST])}" if answers["sampled"] else ""
        text += "."
    if answers["straight"]:
        text += f" The reverse holds for {'; '.join(answers['straight'][:MOST])}."
    if answers["neither"]:
        text += f" Neither gains for {'; '.join(answers['neither'][:MOST])}."
    return [Finding("From straight-through to NES", f"{text} ({sample(min(n))})".replace(
        ". (", " (") + ".")]  # fmt: skip


def _descends(values: pd.Series) -> bool:
    """Whether the decrease is resolved; without an interval, whether its mean is above zero."""
    low, _ = summaries.mean_interval(values)
    return bool(low > 0) if float(low) == float(low) else bool(values.mean() > 0)


def _gains(case: Case, vectors: dict[str, pd.Series]) -> str:
    parts = []
    for method, values in vectors.items():
        low, high = summaries.mean_interval(values)
        parts.append(f"{method} {number(values.mean())}{interval(float(low), float(high))}")
    place = case.condition or "this network"
    return f"{place} ({', '.join(parts)})"


def _unseen(best: Best, cases: Sequence[Case]) -> list[Finding]:
    """What the best step of each case gains on a batch that it was not estimated from."""
    if "loss_decrease_fresh" not in best.wide:
        return []
    kept: list[tuple[float, str, str]] = []
    n = []
    for case in cases:
        first = case.ranked[0]
        seen = best.vector(case.condition, 0, first)
        unseen = best.vector(case.condition, 0, first, fresh=True)
        share = summaries.ratio(*unseen.align(seen))
        if share["ratio"] == share["ratio"]:
            n.append(int(share["n"]))
            where = ", ".join(filter(None, [first, case.condition]))
            kept.append((share["ratio"], percent(share), where))
    if not kept:
        return []
    (_, least, worst), (_, most, top) = min(kept), max(kept)
    words = f"between {least} ({worst}) and {most} ({top})" if least != most else least
    text = f"Judged on an unseen batch, the best step of every case keeps {words} of its decrease"
    return [Finding("Unseen batch", f"{text} ({sample(min(n))}, paired).")]
