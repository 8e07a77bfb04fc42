"""Which estimator to use on a network, in words, with the numbers that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlab.diagnosis.agreement import Agreement

if TYPE_CHECKING:
    import pandas as pd

KINDS = {"cdg": "the central differences (CDG)", "smoothed": "the smoothed gradient"}
SUBJECTS = {"cdg": ("Central differences", "are"), "smoothed": ("The smoothed gradient", "is")}
OWN = "own backward"
Agreements = Mapping[tuple[str, str, str], Agreement]


def recommend(table: pd.DataFrame, agreements: Agreements, settings: Mapping[str, Any]) -> str:
    """A paragraph for each of: what to use, what it costs, what is unknown.

    Args:
        table: one row per estimator, layer and reference.
        agreements: of those that could be compared, with their bootstrap samples; samples of
            different estimators are paired.
        settings: widths, and why estimators were left out.
    """
    hidden = table[~table["exact"].astype(bool)]
    judged = sorted(set(zip(hidden["layer"], hidden["reference"], strict=True)))
    known = [c for c in judged if any((name, *c) in agreements for name in table["estimator"])]
    parts = []
    if not len(hidden):
        parts.append(
            "No sign lies behind any of these layers: backpropagation is exact in all of them, and "
            "there is nothing to choose."
        )
    elif not known:
        parts.append(
            "No recommendation: in none of these layers did the budget suffice for a reference. "
            "Raise max_forward_passes and max_seconds, take a larger batch, or name fewer layers."
        )
    else:
        words, chosen = _ranked(hidden, agreements, known)
        parts += [*words, *_decreases(hidden, chosen)]
    parts += _unknown(table)
    parts += _failed(table, settings)
    exact = [str(each) for each in table.loc[table["exact"].astype(bool), "layer"].unique()]
    if exact and len(hidden):
        parts.append(
            f"Behind the last sign ({_some(exact)}) backpropagation is exact, whatever the "
            "surrogate: such layers have no say above."
        )
    parts.append(
        f"Widths: epsilon {settings['epsilon']:g} of the differences, sigma {settings['sigma']:g} "
        "of the smoothing; another width may have another answer. Judged on one batch of "
        f"{settings['examples']:,} examples."
    )
    return "\n\n".join(parts)


def _means(agreements: Agreements, cells: Sequence[tuple[str, str]], name: str) -> np.ndarray:
    """Mean cosine over layers and references, then those of the bootstrap samples.

    Where an estimator has no gradient it points nowhere: its cosine counts as zero.
    """
    rows = []
    for cell in cells:
        found = agreements.get((name, *cell))
        values = np.zeros(1) if found is None else np.r_[found.cosine, found.resampled]
        rows.append(np.nan_to_num(values))
    longest = max(map(len, rows))
    means: np.ndarray = np.mean(
        [np.resize(row, longest) if len(row) == 1 else row for row in rows], axis=0
    )
    return means


def _ranked(
    hidden: pd.DataFrame, agreements: Agreements, known: Sequence[tuple[str, str]]
) -> tuple[list[str], str]:
    """What to use and why; and its name, or nothing where none is known to point uphill."""
    estimated = hidden[hidden["forward_passes"].notna()]
    names = [n for n in dict.fromkeys(estimated["estimator"])
             if any((n, *cell) in agreements for cell in known)]  # fmt: skip
    means = {name: _means(agreements, known, name) for name in names}
    order = sorted(names, key=lambda name: -means[name][0])
    best, interval = order[0], np.percentile(means[order[0]], [2.5, 97.5])
    layers = len({layer for layer, _ in known})
    where = f"{layers} layer{'s' if layers > 1 else ''} in front of a sign"
    against = " and ".join(words for kind, words in KINDS.items() if kind in {k for _, k in known})
    if interval[0] <= 0:
        text = (
            f"None of these estimators is known to point uphill: the best, {best}, has a mean "
            f"cosine of {means[best][0]:.2f} ({interval[0]:.2f} to {interval[1]:.2f}) to {against} "
            f"over {where}."
        )
        return [text], ""
    ties = [name for name in order[1:] if _tied(means[best], means[name])]
    # what the network does already is kept unless something is known to be better
    keeps = best == OWN or OWN in ties
    first = OWN if keeps else best
    low, high = np.percentile(means[first], [2.5, 97.5])
    text = "Keep the network's own backward pass" if keeps else f"Use {best}"
    text += (
        f": over {where} its mean cosine to {against} is {means[first][0]:.2f} (95 % interval "
        f"{low:.2f} to {high:.2f}), for {_cost(estimated, first)}."
    )
    alike = [f"{n} ({means[n][0]:.2f})" for n in [best, *ties] if n != first]
    if alike:
        text += f" Not told apart from {'it' if first == best else 'the best'}: {_some(alike)}."
    behind = [name for name in order[1:] if name not in ties]
    if behind:
        shown = ", ".join(f"{name} {means[name][0]:.2f}" for name in behind[:4])
        text += f" Behind: {shown}{', …' if len(behind) > 4 else ''}."
    parts = [text]
    cheap = [name for name in order if _passes(estimated, name) <= 2]
    if _passes(estimated, first) > 2 and cheap:
        parts.append(
            f"Of those that cost a forward and a backward pass, {cheap[0]} agrees best: "
            f"{means[cheap[0]][0]:.2f}."
        )
    if OWN in means and not keeps:
        parts.append(
            f"The network's own backward pass has {means[OWN][0]:.2f}: {best} follows the loss "
            "more closely."
        )
    favourites = {kind: _favourite(agreements, [c for c in known if c[1] == kind], order)
                  for kind in KINDS if any(k == kind for _, k in known)}  # fmt: skip
    if len(set(favourites.values())) > 1:
        parts.append(
            "The references differ: "
            + " and ".join(f"{KINDS[kind]} prefer{'s' if kind == 'smoothed' else ''} {name}"
                           for kind, name in favourites.items())
            + ". The first see a few thresholds, the second a wider neighbourhood."
        )  # fmt: skip
    return parts, first


def _favourite(
    agreements: Agreements, cells: Sequence[tuple[str, str]], names: Sequence[str]
) -> str:
    return max(names, key=lambda name: _means(agreements, cells, name)[0])


def _tied(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether the interval of a paired difference holds zero."""
    size = max(len(first), len(second))
    difference = np.resize(first, size) - np.resize(second, size)
    return bool(np.percentile(difference, 2.5) <= 0)


def _decreases(hidden: pd.DataFrame, chosen: str) -> list[str]:
    rows = hidden.drop_duplicates(["estimator", "layer"]).dropna(subset=["loss_decrease"])
    estimated = hidden[hidden["forward_passes"].notna()]
    usable = estimated[~estimated["status"].astype(str).str.startswith("the estimate is")]
    untried = [str(each) for each in usable["layer"].unique() if each not in set(rows["layer"])]
    if rows.empty:
        return [] if not untried else [f"The budget did not suffice for steps in {_some(untried)}."]
    best = rows.loc[rows.groupby("layer", sort=False)["loss_decrease"].idxmax()]
    best = best[best["loss_decrease"] > 0]
    if best.empty:
        return ["No step of a single layer brought the loss of the batch down."]
    counts = best["estimator"].value_counts()
    first = best.sort_values("loss_decrease", ascending=False).iloc[0]
    words = ", ".join(f"{name} in {count}" for name, count in counts.items())
    text = (
        f"One step of one layer brings the batch's own loss down furthest with: {words} of "
        f"{rows['layer'].nunique()} (most by {first['estimator']} in {first['layer']}, by "
        f"{first['loss_decrease']:.3g} at a step of {first['best_lr']:.3g})."
    )
    falls = rows[rows["estimator"] == chosen].set_index("layer")["loss_decrease"]
    share = (falls / best.set_index("layer")["loss_decrease"]).dropna().clip(lower=0)
    if len(share):
        text += f" {chosen} achieves {share.mean():.0%} of that on average."
    if untried:
        text += f" The budget did not suffice for steps in {_some(untried)}."
    return [text]


def _unknown(table: pd.DataFrame) -> list[str]:
    """What no reference is known of, and which samples were too few."""
    import pandas as pd

    rows = table[table["status"].astype(str).str.startswith(("unknown", "not measured"))]
    parts = []
    starts = rows["status"].map(lambda status: str(status).partition(":")[0])
    for (reference, start), group in rows.groupby(["reference", starts], sort=False):
        layers = [str(layer) for layer in group["layer"].unique()]
        kind, verb = SUBJECTS[str(reference)]
        words = group["status"].unique()
        halves = group["reference_self_cosine"].dropna()
        if len(words) == 1:
            said = str(words[0])
        elif len(halves):
            passes = group["reference_forward_passes"].max()
            said = (
                f"{start}: after {passes:,.0f} forward passes its halves agree to cosines of "
                f"{halves.min():.2f} to {halves.max():.2f} (see the status of each)"
            )
        else:
            said = f"{start}: {str(words[0]).partition(': ')[2]} (and so on: see the status)"
        parts.append(f"{kind} of {_some(layers)} {verb} {said}.")
    status = table["status"].astype(str)
    heard = set(map(tuple, table.loc[status == "ok", ["estimator", "layer"]].to_numpy()))
    pairs = pd.Series(list(map(tuple, table[["estimator", "layer"]].to_numpy())), table.index)
    noisy = table[status.str.startswith("noise") & ~pairs.isin(heard)]
    for name, group in noisy.groupby("estimator", sort=False):
        layers = [str(layer) for layer in group["layer"].unique()]
        passes = group["forward_passes"].iloc[0]
        parts.append(
            f"{name} is noise in {_some(layers)}: its {passes:,.0f} forward passes do not suffice."
        )
    return parts


def _failed(table: pd.DataFrame, settings: Mapping[str, Any]) -> list[str]:
    rows = table[table["forward_passes"].isna()].drop_duplicates("estimator")
    parts = [f"{row['estimator']} was {row['status']}." for _, row in rows.iterrows()]
    parts = [part.replace("..", ".") for part in parts]
    zero = table[table["status"].astype(str).str.startswith("the estimate is zero")]
    for name, group in zero.groupby("estimator", sort=False):
        layers = [str(layer) for layer in group["layer"].unique()]
        parts.append(f"{name} gives no gradient at all in {_some(layers)}.")
    if settings.get("left_out"):
        parts.append(
            f"Left out, since it does not apply to this network: {_some(settings['left_out'])}."
        )
    return parts


def _passes(rows: pd.DataFrame, name: str) -> float:
    found = rows[rows["estimator"] == name].iloc[0]
    return float(found["forward_passes"] + found["backward_passes"])


def _cost(rows: pd.DataFrame, name: str) -> str:
    found = rows[rows["estimator"] == name].iloc[0]
    forward, backward = found["forward_passes"], found["backward_passes"]
    words = f"{forward:,.3g} forward pass{'' if forward == 1 else 'es'}"
    if backward:
        words += f" and {backward:.3g} backward"
    return f"{words} ({found['seconds']:.2g} s here)"


def _some(names: Sequence[str] | Mapping[str, str]) -> str:
    """Names in a row, at most six of them."""
    listed = list(names)
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
