"""Findings of a gradient-quality study: direction, cost, bias and variance, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gradlab.reporting import columns, findings_cost, findings_depth, published, summaries
from gradlab.reporting.facets import whole_depth
from gradlab.reporting.findings import Finding
from gradlab.reporting.layers import (
    JOINED,
    layer_title,
    single_layers,
    spread,
    tick_names,
)
from gradlab.reporting.problems import ACTIVATIONS
from gradlab.reporting.wording import at_num_dim, cosine, listed, passes, sample

BY = ["reference", "condition", "num_dim", "method", "layer"]


def gradient_quality(table: pd.DataFrame) -> list[Finding]:
    """The findings, at the largest num_dim of the first condition and reference."""
    frame = whole_depth(columns.annotate(table))
    if "reference" not in frame:
        frame["reference"] = "reference"
    if frame["cosine"].isna().all():
        return [Finding("Nothing to compare", "No cosine to a reference could be measured.")]
    means = summaries.over_inits(frame, BY, "cosine")
    conditions = columns.conditions(frame)
    reference = frame["reference"].iloc[0]
    first = means.query("condition == @conditions[0] and reference == @reference")
    here = first[first["num_dim"] == first["num_dim"].max()]
    place = at_num_dim(list(here["num_dim"]))
    under = f" ({conditions[0]})" if len(conditions) > 1 else ""
    chosen = frame.query("condition == @conditions[0] and reference == @reference")
    chosen = chosen[chosen["num_dim"] == here["num_dim"].max()]
    return [
        *_reference(chosen, str(reference), place + under),
        *_layers(here, chosen, place + under),
        *_blind(here, chosen, place + under),
        *findings_depth.gradient_norms(frame),
        *_bits(frame),
        *_error(chosen, place + under),
        *findings_cost.write(frame),
        *_against_published(table),
    ]


def _reference(frame: pd.DataFrame, reference: str, place: str) -> list[Finding]:
    column = "reference_split_half_cosine"
    name = columns.reference_name(reference)
    if column not in frame or frame[column].isna().all():
        return [Finding("Reference", f"Cosines are to {name}, taken as exact{place}.")]
    own = frame[~frame["layer"].isin(JOINED)].groupby("layer")[column].mean()
    worst = own.idxmin()
    text = (f"Cosines are to {name}, whose two halves agree to {cosine(own.min())} or better in "
            f"every layer{place}.")  # fmt: skip
    if own.min() < 0.99:
        text = (f"Cosines are to {name}, whose two halves agree to only {cosine(own.min())} in "
                f"{layer_title(str(worst))}{place}: cosines there are understated, so "
                "give the reference more samples.")  # fmt: skip
    return [Finding("Reference", text)]


def _layers(here: pd.DataFrame, frame: pd.DataFrame, place: str) -> list[Finding]:
    """Every family's best member with its cosines from the first layer to the last."""
    every = single_layers(frame)
    # A deep network has more layers than a sentence holds.
    layers = spread(every, 5)
    names = tick_names(frame)
    wide = here.pivot(index="method", columns="layer", values="mean")
    known = columns.methods(frame)
    cost: dict[Any, float] = {}
    if "forward_passes" in frame:
        cost = frame.groupby("method")["forward_passes"].mean().to_dict()
    lines = []
    for method in known.index:
        if method not in wide.index or (known.loc[method, "family"] == "cdg"
                                        and wide.loc[method, layers].min() > 0.999):  # fmt: skip
            continue
        values = "/".join(cosine(wide.loc[method, layer]) for layer in layers)
        said = "pass" in method or method not in cost
        price = "" if said else f" ({passes(cost[method])})"
        lines.append((wide.loc[method, layers[0]], f"{method}{price} {values}"))
    if not lines:
        return []
    lines.sort(key=lambda line: -line[0])
    shown = [text for _, text in (lines if len(lines) <= 6 else [*lines[:4], *lines[-2:]])]
    n = int(here["n"].max())
    which = "best first layer first" if len(lines) <= 6 else "the best and the worst in the first"
    head = layer_title(layers[0])
    if len(layers) > 1:
        head = f"layers {names[layers[0]]} to {names[layers[-1]]}"
    if len(every) > len(layers):
        head = f"layers {listed(names[layer] for layer in layers)} of {len(every)}"
    text = f"Cosines in {head}{place}, {which}: {'; '.join(shown)} ({sample(n)})."
    found = [Finding("Direction", text)]
    uneven = wide.loc[wide[every].max(axis=1) > wide[every].min(axis=1), every]
    if len(layers) > 1 and len(uneven) > 1:
        first = int((uneven.idxmin(axis=1) == layers[0]).sum())
        text = f"The first layer is the worst one for {first} of {len(uneven)} estimators{place}."
        found.append(Finding("Depth", text))
    return found


def _blind(here: pd.DataFrame, frame: pd.DataFrame, place: str) -> list[Finding]:
    """Estimates whose first-layer direction cannot be told from a random one."""
    layers = single_layers(frame)
    if not layers:
        return []
    first = here[here["layer"] == layers[0]]
    n = sample(int(first["n"].max()))
    layer = f"In {layer_title(layers[0])}{place}"
    found = []
    for lead, rows, words in (
        ("Near zero", first[(first["low"] <= 0) & (first["high"] >= 0)],
         "the direction cannot be told from a random one for"),
        ("Wrong way", first[first["high"] < 0], "the direction points away from the reference for"),
    ):  # fmt: skip
        names = [f"{row['method']} ({_with_interval(row)})" for row in rows.to_dict("records")]
        if names:
            found.append(Finding(lead, f"{layer} {words} {listed(names)} ({n})."))
    return found


def _with_interval(row: Mapping[Any, Any]) -> str:
    ci = "" if pd.isna(row["low"]) else f" [{cosine(row['low'])}, {cosine(row['high'])}]"
    return cosine(row["mean"]) + ci


def _bits(frame: pd.DataFrame) -> list[Finding]:
    """How the mismatch shrinks with more activation bits."""
    if "activation" not in frame or frame["activation"].nunique() < 2:
        return []
    rows = frame[frame["num_dim"] == frame["num_dim"].max()]
    layer = _joined(rows)
    known = columns.methods(frame)
    chosen = [m for m in known.index if known.loc[m, "family"] in ("ste", "matched")][:1]
    method = (chosen or list(known.index))[0]
    rows = rows[(rows["layer"] == layer) & (rows["method"] == method)]
    rows = rows.assign(panel=columns.conditions_apart_from(rows, ["activation"]))
    parts, n = [], 0
    for panel, group in rows.groupby("panel", sort=True):
        table = summaries.over_inits(group, ["activation"], "cosine")
        found = {row["activation"]: row for row in table.to_dict("records")}
        names = [name for name in ACTIVATIONS if name in found]
        values = listed(f"{name} {_with_interval(found[name])}" for name in names)
        parts.append(f"{values} ({panel})" if panel else values)
        n = max(n, int(table["n"].max()))
    place = at_num_dim(list(rows["num_dim"]))
    text = f"Cosine of {method}, {layer_title(layer)}{place}: {'; '.join(parts)}"
    return [Finding("Activation bits", f"{text} ({sample(n)}).")]


def _joined(rows: pd.DataFrame) -> str:
    """The group of layers that says most: the hidden ones, since the output layer is easy."""
    present = [layer for layer in JOINED if (rows["layer"] == layer).any()]
    return present[0] if present else str(rows["layer"].iloc[0])


def _error(frame: pd.DataFrame, place: str) -> list[Finding]:
    """Whether an estimate errs by bias or by variance."""
    needed = ["relative_bias", "relative_variance"]
    if any(c not in frame or frame[c].isna().all() for c in needed):
        return []
    layer = _joined(frame)
    rows = frame[frame["layer"] == layer]
    table = rows.groupby("method")[needed].mean()
    table = table.loc[[m for m in columns.methods(frame).index if m in table.index]].dropna()
    larger = table["relative_bias"] ** 2 > table["relative_variance"]
    biased = [method for method in table.index if larger[method]]
    noisy = [m for m in table.index if m not in biased]
    parts = []
    if biased:
        parts.append(f"bias outweighs variance for {listed(biased)}")
    if noisy:
        parts.append(f"variance outweighs bias for {listed(noisy)}")
    return (
        [Finding("Error", f"In the {layer_title(layer)}{place}, {'; '.join(parts)}.")]
        if parts
        else []
    )


def _against_published(table: pd.DataFrame) -> list[Finding]:
    return [Finding("Published numbers", text)
            for text in published.sentences(published.compare(table))]  # fmt: skip
