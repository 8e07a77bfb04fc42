"""Findings of a gradient-variance study: what sampling weights or pre-activations costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from gradlab.reporting import columns, summaries
from gradlab.reporting.findings import Finding
from gradlab.reporting.wording import cosine, interval, listed, number, sample

BY = ["condition", "method"]
SUSPICIOUS = 4.0
"""A bias_z beyond this is called a bias: many layers and methods are tested at once."""
_SCALES = ("absolute", "relative", "multiplicative")
_NOISES = ("weights", "flipout", "examples", "preactivations")
_WORDS = {
    "weights": "on weights", "flipout": "with flipout", "preactivations": "on pre-activations",
    "examples": "on each example's weights",
}  # fmt: skip


def gradient_variance(table: pd.DataFrame) -> list[Finding]:
    """The findings, over all layers together.

    Args:
        table: the stored ``gradient_variance`` table.
    """
    frame = annotated(table)
    whole = frame[frame["layer"] == "all"]
    if whole["relative_variance"].isna().all():
        return [Finding("Nothing to compare", "No reference gradient rose above its own noise.")]
    return [*_places(whole), *_derivatives(whole), *_scales(whole), *_bias(frame), *_known(whole)]


def annotated(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its rows named, and the options that a table may lack."""
    frame = columns.annotate(table)
    for column, default in (("noise", "weights"), ("noise_scale", "absolute")):
        values = frame[column].astype(object) if column in frame else default
        frame[column] = pd.Series(values, index=frame.index).fillna(default)
    return frame


def ordered_methods(frame: pd.DataFrame) -> list[str]:
    """Methods in order: pathwise first; absolute noise first; weights before pre-activations."""
    known = frame.drop_duplicates("method")
    options = [c for c in ("sigma", "population", "passes") if c in known]

    def place(row: dict[Any, Any]) -> tuple[Any, ...]:
        sizes = [columns.as_float(row[c]) for c in options]
        return (
            row["estimator"], row["noise_scale"] != "absolute", sizes[:1],
            _index(_NOISES, row["noise"]), _index(_SCALES, row["noise_scale"]),
            [-1.0 if v != v else v for v in sizes], row["method"],
        )  # fmt: skip

    return [str(row["method"]) for row in sorted(known.to_dict("records"), key=place)]


def _index(order: Sequence[str], word: str) -> int:
    return order.index(word) if word in order else len(order)


def _values(rows: pd.DataFrame, column: str) -> pd.Series:
    """One number per init."""
    return summaries.replicate_means(rows, ["method"], [column]).set_index("init")[column]


def _ratio(one: pd.DataFrame, other: pd.DataFrame, column: str) -> str:
    """One mean over the other, paired by init, with its interval; empty if nothing is known."""
    a, b = _values(one, column), _values(other, column)
    found = summaries.ratio(a, b.reindex(a.index))
    if found["ratio"] != found["ratio"]:
        return ""
    return f"{number(found['ratio'])}{interval(found['low'], found['high'])}"


def _under(rows: pd.DataFrame, frame: pd.DataFrame) -> str:
    condition = rows["condition"].iloc[0]
    return f" ({condition})" if condition and frame["condition"].nunique() > 1 else ""


def _n(frame: pd.DataFrame) -> str:
    return sample(frame["init"].nunique() if "init" in frame else 1)


def _per_condition(frame: pd.DataFrame) -> list[pd.DataFrame]:
    return [frame[frame["condition"] == name] for name in columns.conditions(frame)]


def _places(frame: pd.DataFrame) -> list[Finding]:
    """Weights, flipout and pre-activations, at the same noise and the same derivative."""
    parts = []
    rows = frame[(frame["estimator"] == "pathwise") & (frame["noise_scale"] == "absolute")]
    for here in _per_condition(rows) if len(rows) else []:
        for _, same in here.groupby(["sigma", "passes"], sort=True):
            kinds = {str(name): part for name, part in same.groupby("noise")}
            if "preactivations" not in kinds or len(kinds) < 2:
                continue
            local = kinds.pop("preactivations")
            ratios = {name: _ratio(kinds[name], local, "relative_variance")
                      for name in _NOISES if name in kinds}  # fmt: skip
            said = [f"{text} times {_WORDS[name]}" for name, text in ratios.items() if text]
            sigma = f" at σ = {number(float(same['sigma'].iloc[0]))}"
            sigma = sigma if rows["sigma"].nunique() > 1 else ""
            parts.append(f"{listed(said)}{sigma}{_under(here, frame)}")
    if not parts:
        return []
    return [Finding("Where the noise is", (
        "Against noise on pre-activations the variance of one pathwise estimate is "
        f"{'; '.join(parts)}; all layers together, {_n(rows)}. A convolution's pre-activations, "
        "drawn at every position, are another smoothing."
    ))]  # fmt: skip


def _derivatives(frame: pd.DataFrame) -> list[Finding]:
    """The best pathwise estimate against the best score function, where both may spend the same."""
    parts = []
    rows = frame[frame["noise_scale"] == "absolute"]
    for here in _per_condition(rows) if len(rows) else []:
        for _, same in here.groupby("sigma", sort=True):
            best = {}
            for kind, part in same.groupby("estimator"):
                means = summaries.over_inits(part, ["method"], "relative_variance_per_pass")
                if means["mean"].notna().any():
                    name = means["method"].iloc[int(means["mean"].argmin())]
                    best[kind] = part[part["method"] == name]
            if len(best) < 2:
                continue
            one, other = best["score_function"], best["pathwise"]
            text = _ratio(one, other, "relative_variance_per_pass")
            if text:
                parts.append(f"{one['method'].iloc[0]} has {text} times the variance of "
                             f"{other['method'].iloc[0]}{_under(here, frame)}")  # fmt: skip
    if not parts:
        return []
    return [Finding("Pathwise or score function", (
        f"For as many passes, forward and backward, {'; '.join(parts)}; the best of each kind, all "
        f"layers together, {_n(rows)}."
    ))]  # fmt: skip


def _scales(frame: pd.DataFrame) -> list[Finding]:
    """Multiplicative noise against additive noise of the same distribution."""
    parts = []
    rows = frame[frame["noise_scale"] != "absolute"]
    for here in _per_condition(rows) if len(rows) else []:
        for noise in _NOISES:
            said = []
            for sigma in sorted(here["sigma"].unique()):
                same = here[(here["noise"] == noise) & (here["sigma"] == sigma)]
                one, other = (same[same["noise_scale"] == scale]
                              for scale in ("multiplicative", "relative"))  # fmt: skip
                text = _ratio(one, other, "gradient_variance")
                if text:
                    said.append(f"{text} at α = {sigma**2:.3g}")
            if said:
                parts.append(f"{listed(said)} {_WORDS[noise]}{_under(here, frame)}")
    if not parts:
        return []
    return [Finding("Additive or multiplicative", (
        "Where additive noise becomes multiplicative noise of the same distribution, the variance "
        f"of the gradient in θ is multiplied by {'; by '.join(parts)}; all layers together, "
        f"{_n(rows)}. Their expected gradients differ: only the second moves the noise with θ."
    ))]  # fmt: skip


def _bias(frame: pd.DataFrame) -> list[Finding]:
    """Whether what should be unbiased is."""
    known = frame.dropna(subset=["bias_z"])
    if known.empty:
        return []
    rows = known[known["bias_z"] > SUSPICIOUS]
    tests = f"{len(known)} tests, one for each layer and estimator"
    if rows.empty:
        largest = number(float(known["bias_z"].max()))
        return [Finding("No bias", f"None was found in {tests}: the largest z is {largest}.")]
    found = rows.sort_values("bias_z", ascending=False).drop_duplicates(BY)
    names = [f"{row['method']}{_under(found[found.index == i], frame)} "
             f"(z = {number(row['bias_z'])}, {number(100 * row['relative_bias'])} % of the "
             "gradient)" for i, row in found.iterrows()]  # fmt: skip
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return [Finding("Bias", (
        f"In {len(rows)} of {tests}, z is above {SUSPICIOUS:g}: {listed(names[:4])}{more}. These "
        "estimators are unbiased by construction, so doubt the reference or the implementation."
    ))]  # fmt: skip


def _known(frame: pd.DataFrame) -> list[Finding]:
    least = float(frame["reference_split_half_cosine"].min())
    if least != least:
        return []
    return [Finding("Reference", (
        f"The two halves of every reference gradient agree to {cosine(least)} or better, all "
        "layers together; its noise is taken out of variances and biases."
    ))]  # fmt: skip
