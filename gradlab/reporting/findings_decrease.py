"""Findings of a loss-decrease study: who goes furthest, and how much of CDG's decrease is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from gradlab.reporting import columns, findings_effects, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.problems import is_network
from gradlab.reporting.wording import (
    at_num_dim,
    begin,
    interval,
    listed,
    lr,
    number,
    passes,
    percent,
    sample,
)

BY = ["condition", "num_dim", "method"]


class Best:
    """Every method at its best lr: one vector over inits per condition, num_dim and method."""

    def __init__(self, frame: pd.DataFrame) -> None:
        """Args: frame: an annotated loss-decrease table."""
        self.frame = frame
        self.known = columns.methods(frame)
        self.lrs = summaries.best_lr(frame, BY)
        rows = frame.merge(self.lrs, on=[*BY, "lr"])
        values = ["loss_decrease"]
        if "loss_decrease_fresh" in rows and rows["loss_decrease_fresh"].notna().any():
            values.append("loss_decrease_fresh")
        self.means = summaries.replicate_means(rows, BY, values)
        self.wide = {v: self.means.pivot(index=BY, columns="init", values=v) for v in values}
        self.cdg = columns.reference_method(self.known)

    def vector(self, condition: str, num_dim: int, method: str, fresh: bool = False) -> pd.Series:
        """The decrease of every init; empty where it was not measured."""
        wide = self.wide["loss_decrease_fresh" if fresh else "loss_decrease"]
        key: Any = (condition, num_dim, method)
        return wide.loc[key] if key in wide.index else pd.Series(dtype=float)

    def num_dims(self, condition: str) -> list[int]:
        """The num_dims measured under this condition."""
        means = self.means[self.means["condition"] == condition]
        return sorted(means["num_dim"].unique())

    def compared(self, condition: str) -> list[int]:
        """The num_dims at which CDG was measured too."""
        return [d for d in self.num_dims(condition)
                if self.cdg and self.vector(condition, d, self.cdg).notna().any()]  # fmt: skip

    def ranking(self, condition: str, num_dim: int) -> list[str]:
        """Methods by mean decrease, best first."""
        key: Any = (condition, num_dim)
        wide: Any = self.wide["loss_decrease"].loc[key]
        return list(wide.mean(axis=1).sort_values(ascending=False, kind="stable").index)

    def share(self, condition: str, num_dim: int, method: str) -> dict[str, float]:
        """The decrease as a share of CDG's, paired by init."""
        base = self.vector(condition, num_dim, str(self.cdg))
        one = self.vector(condition, num_dim, method)
        return summaries.ratio(*one.align(base))

    def gap(self, condition: str, num_dim: int, one: str, other: str) -> dict[str, float]:
        """The paired difference of two methods."""
        a, b = self.vector(condition, num_dim, one), self.vector(condition, num_dim, other)
        return summaries.difference(*a.align(b))

    def of(self, *families: str) -> list[str]:
        """The methods of these families, in listing order."""
        return list(self.known.index[self.known["family"].isin(families)])


def loss_decrease(table: pd.DataFrame) -> list[Finding]:
    """Findings of a loss-decrease study."""
    frame = columns.annotate(table)
    if frame["loss_decrease"].isna().all():
        return [Finding("Nothing to compare", "Every run diverged.")]
    if is_network(frame):
        from gradlab.reporting import findings_network

        return findings_network.loss_decrease(frame)
    plain, scale = columns.one_scale_each(frame)
    best = Best(plain)
    conditions = columns.conditions(plain)
    first = conditions[0]
    found = winners(best, first)
    for write_shares in (straight_through, nes, local):
        found += write_shares(best, first)
    found += unresolved(best, first)
    found += no_descent(best)
    # Settings that the study compares have findings of their own.
    if not columns.categorical_choices(frame):
        for condition in conditions[1:4]:
            found += elsewhere(best, condition)
    found += findings_effects.write(frame)
    found += learning_rates(best)
    found += unseen_batch(best, first)
    found += diverged(frame)
    if scale:
        found.insert(
            0, Finding("Which scale", f"Unless a finding names a scale it is about {scale}.")
        )
    if len(conditions) > 1:
        found.insert(
            0,
            Finding(
                "Which condition",
                f"Unless a finding says otherwise it is about this case: {first}.",
            ),
        )
    return found


def _under(condition: str, best: Best) -> str:
    several = best.frame["condition"].nunique() > 1
    return f" ({condition})" if several and condition else ""


def winners(best: Best, condition: str) -> list[Finding]:
    """Who brings the loss down furthest at each num_dim, and whether the lead is resolved."""
    num_dims = best.num_dims(condition)
    led: dict[str, list[int]] = {}
    certain: list[int] = []
    for num_dim in num_dims:
        ranked = best.ranking(condition, num_dim)
        led.setdefault(ranked[0], []).append(num_dim)
        lead = best.gap(condition, num_dim, *ranked[:2]) if len(ranked) > 1 else None
        if lead and summaries.resolved(lead):
            certain.append(num_dim)
    parts = [f"{method}{at_num_dim(dims)}" for method, dims in led.items()]
    last = num_dims[-1]
    top = best.ranking(condition, last)[0]
    values = best.vector(condition, last, top)
    low, high = summaries.mean_interval(values)
    n = int(values.notna().sum())
    text = (f"At its best lr, the largest one-step loss decrease{_under(condition, best)} is that "
            f"of {'; '.join(parts)}. {begin(top)} gains {number(values.mean())}"
            f"{interval(float(low), float(high))}{at_num_dim([last])} ({sample(n)}).")  # fmt: skip
    if n >= summaries.LEAST_INITS and len(best.ranking(condition, last)) > 1:
        if len(certain) == len(num_dims):
            everywhere = " everywhere" if len(num_dims) > 1 else ""
            text += f" Its lead over the runner-up is resolved{everywhere}."
        elif certain:
            text += f" The lead over the runner-up is resolved{at_num_dim(certain)} only."
        else:
            text += " The lead over the runner-up is not resolved by these data."
    return [Finding("Best estimator", text)]


def _shares(best: Best, condition: str, num_dim: int, methods: list[str]) -> list[str]:
    """``94 % [91, 97] with name`` for each method, the best first; at most six."""
    found = [(method, best.share(condition, num_dim, method)) for method in methods]
    known = [(m, s) for m, s in found if s["ratio"] == s["ratio"]]
    known.sort(key=lambda pair: -pair[1]["ratio"])
    if len(known) > 6:
        known = [*known[:4], *known[-2:]]
    return [f"{percent(share)} with {method}" for method, share in known]


def _n(best: Best, condition: str, num_dim: int) -> int:
    return int(best.vector(condition, num_dim, str(best.cdg)).notna().sum())


def _kept(best: Best, condition: str, methods: list[str], opening: str) -> str:
    """Shares of CDG's decrease at the largest num_dim, and their range at the smallest."""
    num_dims = best.compared(condition)
    if not num_dims:
        return ""
    last, first = num_dims[-1], num_dims[0]
    shares = _shares(best, condition, last, methods)
    if not shares:
        return ""
    text = (f"{opening.format(at_num_dim([last]))} {listed(shares)}; "
            f"{sample(_n(best, condition, last))}, paired.")  # fmt: skip
    small = _shares(best, condition, first, methods)
    if first != last and len(small) == 1:
        text += f" At num_dim {first}: {small[0]}."
    elif first != last and small:
        text += f" At num_dim {first} they range from {small[-1]} to {small[0]}."
    return text


def straight_through(best: Best, condition: str) -> list[Finding]:
    """How much of CDG's decrease each surrogate keeps, at the largest and smallest num_dim."""
    opening = "Of CDG's best loss decrease{}, straight-through steps reach"
    text = _kept(best, condition, best.of("ste", "rounding"), opening)
    return [Finding("Straight-through", text)] if text else []


def nes(best: Best, condition: str) -> list[Finding]:
    """How NES approaches CDG with its population."""
    methods = best.of("nes")
    text = _kept(best, condition, methods, "Of CDG's best decrease{}, weight-space NES reaches")
    if text and best.known.loc[methods, "population"].nunique() > 1:
        text += " Its sizes are nested prefixes of one sample, so their errors are correlated."
    return [Finding("NES", text)] if text else []


def local(best: Best, condition: str) -> list[Finding]:
    """Local NES and the matched STE, and the NES population they are worth."""
    methods = best.of("local", "matched")
    opening = ("Of CDG's best decrease{}, noise on the pre-activations instead of the weights "
               "reaches")  # fmt: skip
    text = _kept(best, condition, methods, opening)
    if not text:
        return []
    last = best.compared(condition)[-1]
    present, rivals = (
        [m for m in family if best.vector(condition, last, m).notna().any()]
        for family in (best.of("local") or methods, best.of("nes"))
    )
    if present and rivals and "forward_passes" in best.frame:
        cost = best.frame.groupby("method")["forward_passes"].mean()
        cheapest = min(present, key=lambda m: cost[m])
        beaten = [m for m in rivals if cost[m] > cost[cheapest]
                  and best.gap(condition, last, cheapest, m)["low"] > 0]  # fmt: skip
        if beaten:
            most = max(beaten, key=lambda m: cost[m])
            text += (f" With {passes(cost[cheapest])}, {cheapest} goes further than {most} with "
                     f"{cost[most]:,.0f}.")  # fmt: skip
    return [Finding("Local noise", text)]


def elsewhere(best: Best, condition: str) -> list[Finding]:
    """Under a further condition: who leads, and everybody's share of CDG's decrease."""
    text = winners(best, condition)[0].text
    others = [method for method in best.known.index if method != best.cdg]
    num_dims = best.compared(condition)
    shares = _shares(best, condition, num_dims[-1], others) if num_dims else []
    if shares:
        n = _n(best, condition, num_dims[-1])
        which = "the largest and smallest shares" if len(others) > 6 else "the shares"
        text += (f" Of CDG's best decrease{at_num_dim(num_dims[-1:])}, {which} are "
                 f"{listed(shares)} ({sample(n)}, paired).")  # fmt: skip
    return [Finding(begin(condition), text)]


def unresolved(best: Best, condition: str) -> list[Finding]:
    """Who cannot be told from CDG by these data."""
    equal: dict[str, list[int]] = {}
    n = 0
    for num_dim in best.compared(condition):
        for method in best.ranking(condition, num_dim):
            if method == best.cdg:
                continue
            gap = best.gap(condition, num_dim, method, str(best.cdg))
            n = max(n, int(gap["n"]))
            if gap["n"] >= summaries.LEAST_INITS and not summaries.resolved(gap):
                equal.setdefault(method, []).append(num_dim)
    if n < summaries.LEAST_INITS:
        return []
    if not equal:
        text = f"Every estimator's difference from CDG is resolved ({sample(n)})."
        return [Finding("Resolved", text)]
    ordered = [m for m in best.known.index if m in equal]
    names = [f"{method}{at_num_dim(equal[method])}" for method in ordered]
    return [Finding("Not resolved", "The paired difference from CDG includes zero for "
                    f"{'; '.join(names)} ({sample(n)}).")]  # fmt: skip


def no_descent(best: Best) -> list[Finding]:
    """Who does not resolvably bring the loss down at any lr, at the largest num_dim."""
    parts, n = [], 0
    for condition in columns.conditions(best.frame):
        last = best.num_dims(condition)[-1]
        flat = []
        for method in best.known.index:
            values = best.vector(condition, last, method)
            low, _ = summaries.mean_interval(values) if len(values) else (np.nan, np.nan)
            if low <= 0:
                flat.append(method)
                n = max(n, int(values.notna().sum()))
        if flat:
            parts.append(f"{listed(flat)}{at_num_dim([last])}{_under(condition, best)}")
    if not parts:
        return []
    return [Finding("No descent", "At no lr is a decrease of the loss resolved for "
                    f"{'; '.join(parts)} ({sample(n)}).")]  # fmt: skip


def learning_rates(best: Best) -> list[Finding]:
    """Where the best lrs lie, and whether the grid was wide enough."""
    lrs = best.lrs["lr"]
    if best.frame["lr"].nunique() < 2:
        return [Finding("Learning rate", f"Only lr = {lr(lrs.iloc[0])} was taken, so no "
                        "estimator is shown at its best.")]  # fmt: skip
    low, high = lrs.min(), lrs.max()
    text = f"The best lr lies between {lr(low)} and {lr(high)}" if low < high else (
        f"The best lr is {lr(low)} for every estimator")  # fmt: skip
    grid = best.frame["lr"]
    text += f", on a grid of {grid.nunique()} from {lr(grid.min())} to {lr(grid.max())}."
    edge = best.lrs[best.lrs["edge"] != ""]
    if len(edge):
        named = [f"{method}{at_num_dim(list(rows['num_dim']))}"
                 for method, rows in edge.groupby("method", sort=False)]  # fmt: skip
        shown = [*named[:5], f"{len(named) - 5} more"] if len(named) > 6 else named
        text += f" It is at the edge of the grid for {listed(shown)}: widen the grid there."
    return [Finding("Learning rate", text)]


def unseen_batch(best: Best, condition: str) -> list[Finding]:
    """What the same steps gain on a batch they were not estimated from."""
    if "loss_decrease_fresh" not in best.wide:
        return []
    last = best.num_dims(condition)[-1]
    kept = []
    for method in best.ranking(condition, last):
        seen = best.vector(condition, last, method)
        unseen = best.vector(condition, last, method, fresh=True)
        share = summaries.ratio(*unseen.align(seen))
        if share["ratio"] == share["ratio"]:
            kept.append((share["ratio"], method, share))
    if not kept:
        return []
    kept.sort(key=lambda item: item[0])
    (_, worst, least), (_, top, most) = kept[0], kept[-1]
    text = f"Judged on an unseen batch{at_num_dim([last])}, the same steps keep "
    if len(kept) > 1 and percent(least) != percent(most):
        text += f"between {percent(least)} ({worst}) and {percent(most)} ({top})"
    else:
        text += percent(least)
    text += f" of their decrease ({sample(least['n'])}, paired)."
    return [Finding("Unseen batch", text)]


def diverged(frame: pd.DataFrame) -> list[Finding]:
    """Runs without a finite loss."""
    lost = frame[frame["loss_decrease"].isna()]
    if lost.empty:
        return []
    text = (f"{len(lost):,} of {len(frame):,} steps gave no finite loss, the smallest at "
            f"lr = {lr(lost['lr'].min())}; such an lr is never called best.")  # fmt: skip
    return [Finding("Diverged", text)]
