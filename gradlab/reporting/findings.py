"""Findings: what a study's tables say, in sentences that carry their uncertainty.

Each kind of study has a function from its table to a list of findings. Comparisons are paired by
init; a difference is called resolved where the 95 % bootstrap interval of the paired difference
leaves zero out. Nothing is written that the table does not support: without CDG nothing is
compared with it, and with fewer than three inits sentences carry no interval and say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from gradlab.reporting import summaries


@dataclass(frozen=True)
class Finding:
    """One finding: a lead of two or three words, and its sentences."""

    lead: str
    text: str

    def __str__(self) -> str:
        return f"{self.lead}: {self.text}"


def write(tables: Mapping[str, pd.DataFrame]) -> list[Finding]:
    """The findings of a study.

    Args:
        tables: stored tables by name; those of no known kind are passed over.
    """
    from gradlab.reporting import (
        findings_decrease,
        findings_gradient,
        findings_slice,
        findings_training,
        findings_trajectory,
        findings_variance,
        findings_variational,
        noise,
        searches,
    )

    kinds: dict[str, Callable[[pd.DataFrame], list[Finding]]] = {
        "loss_decrease": findings_decrease.loss_decrease,
        "gradient_quality": findings_gradient.gradient_quality,
        "trajectory": findings_trajectory.trajectory,
        "search_run": lambda t: findings_trajectory.trajectory(searches.as_trajectories(t)),
        "training_result": findings_training.training_result,
        "loss_slice_slopes": findings_slice.slopes,
        "gradient_variance": findings_variance.gradient_variance,
    }
    found: list[Finding] = []
    for name, kind in kinds.items():
        if name in tables and not tables[name].empty:
            found += kind(tables[name])
    if "training_result" in tables and noise.is_noisy(tables["training_result"]):
        found += findings_variational.training_result(tables)
    return found


def caution(n: int) -> str:
    """How far an interval over ``n`` inits can be trusted."""
    if n < summaries.LEAST_INITS:
        return (f"With {n} init{'s' if n != 1 else ''} there is no interval: read every number as "
                "one observation.")  # fmt: skip
    if n <= 5:
        covered = 100 * (1 - 2 * 0.5**n)
        return (f"With {n} inits a 95 % bootstrap interval is hardly more than the range of the "
                f"inits, which covers the mean of a symmetric distribution about {covered:.0f} % "
                f"of the time: read \"resolved\" as \"all {n} inits agree\".")  # fmt: skip
    return "Intervals are 95 % bootstrap intervals over inits."
