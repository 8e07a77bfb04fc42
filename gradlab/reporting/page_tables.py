"""The tables of the report: which columns, in what words, with what to sort them by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradlab.reporting import noise, published
from gradlab.reporting.columns import PREDICTIONS
from gradlab.reporting.layers import JOINED, depths, layer_order, layer_title, spread, tick_names
from gradlab.reporting.wording import cosine, interval, lr, number, word

MOST_LAYERS = 8
TRAINED = {
    "val_accuracy": "validation accuracy", "train_accuracy": "train accuracy",
    "train_loss": "train loss", "val_loss": "validation loss",
    "test_accuracy": "test accuracy", "best_val_accuracy": "best epoch",
    "ema_accuracy": "averaged weights", "epochs": "epochs", "seconds": "seconds",
}  # fmt: skip


FINALS = {noise.final(kind): words for kind, words in PREDICTIONS.items()}
NOISY = {
    **FINALS, "last_compression": "compression",
    noise.final("mean", "negative_log_likelihood"): "NLL, mean weights",
    noise.final("monte_carlo", "negative_log_likelihood"): "NLL, Monte Carlo",
    noise.final("mean", "calibration_error"): "calibration error, mean weights",
    noise.final("monte_carlo", "calibration_error"): "calibration error, Monte Carlo",
    "train_accuracy": "train accuracy", "epochs": "epochs", "seconds": "seconds",
}  # fmt: skip
"""The columns of networks with noise, judged after their last epoch."""


@dataclass(frozen=True)
class Entry:
    """One entry of a table: what is read, what it is sorted by, and how it looks."""

    text: str
    sort: float | str
    style: str = ""


@dataclass(frozen=True)
class Grid:
    """A table as the page shows it.

    Attributes:
        title: its heading.
        note: a sentence under it.
        header: (name, is it a number) of each column.
        rows: the entries.
        keys: how many columns stand before the estimator's name.
    """

    title: str
    note: str = ""
    header: list[tuple[str, bool]] = field(default_factory=list)
    rows: list[list[Entry]] = field(default_factory=list)
    keys: int = 0

    @property
    def breaks(self) -> set[int]:
        """The rows before which something other than the estimator changes."""
        names = [[entry.text for entry in row[: self.keys]] for row in self.rows]
        return {i for i in range(1, len(names)) if names[i] != names[i - 1]}


def grids(summary: Mapping[str, pd.DataFrame]) -> list[Grid]:
    """One table per summary."""
    makers: dict[str, Callable[[pd.DataFrame], list[Grid]]] = {
        "loss_decrease": _loss_decrease,
        "gradient_quality": _gradient_quality,
        "trajectory": _trajectory,
        "search_run": _trajectory,
        "training_result": _training_result,
        "layer_sparsity": _layer_sparsity,
        "gradient_variance": _gradient_variance,
        "published_ranking": _ranking,
    }
    present = [(make, summary[name]) for name, make in makers.items() if name in summary]
    # A table of networks has no num_dim: the same code takes none for a single one.
    return [
        grid
        for make, frame in present
        for grid in make(frame if "num_dim" in frame else frame.assign(num_dim=0))
    ]


def _num(value: float, show: Callable[[float], str] = number, style: str = "") -> Entry:
    known = math.isfinite(float(value))
    return Entry(show(value) if known else "–", float(value) if known else -math.inf, style)


def _ci(mean: float, low: float, high: float, show: Callable[[float], str] = number,
        style: str = "") -> Entry:  # fmt: skip
    entry = _num(mean, show, style)
    if math.isnan(low):
        return entry
    ci = interval(low, high) if show is number else f" [{show(low)}, {show(high)}]"
    return Entry(entry.text + ci, entry.sort, style)


def _keys(frame: pd.DataFrame, compared: str = "estimator") -> list[tuple[str, str, bool]]:
    """The key columns worth showing: (column, heading, is it a number)."""
    found = [("method", compared, False)]
    if frame["num_dim"].max() > 0:
        found.insert(0, ("num_dim", "num_dim", True))
    if frame["condition"].nunique() > 1:
        found.insert(0, ("condition", "condition", False))
    if "reference" in frame and frame["reference"].nunique() > 1:
        found.insert(0, ("reference", "reference", False))
    return found


def _word(value: Any) -> Entry:
    return Entry(str(value), str(value))


def _key_entries(row: Mapping[Any, Any], keys: list[tuple[str, str, bool]]) -> list[Entry]:
    return [
        _num(float(row[column]), word) if numeric else _word(row[column])
        for column, _, numeric in keys
    ]


def _loss_decrease(frame: pd.DataFrame) -> list[Grid]:
    keys = _keys(frame)
    top = frame.groupby(["condition", "num_dim"])["loss_decrease"].transform("max")
    header = [(heading, numeric) for _, heading, numeric in keys]
    header += [("best lr", True), ("loss decrease", True)]
    header += [("on an unseen batch", True)] if "fresh" in frame else []
    header += [("passes", True)] if "forward_passes" in frame else []
    header += [("seconds", True)] if "seconds" in frame else []
    header += [("n", True)]
    rows = []
    for row, most in zip(frame.to_dict("records"), top, strict=True):
        first = "best" if row["loss_decrease"] == most else ""
        edge, warning = ("edge", " ⚠") if row["edge"] else ("", "")
        entries = _key_entries(row, keys)
        entries.append(Entry(lr(row["best_lr"]) + warning, float(row["best_lr"]), edge))
        entries.append(_ci(row["loss_decrease"], row["low"], row["high"], style=first))
        if "fresh" in frame:
            entries.append(_ci(row["fresh"], row["fresh_low"], row["fresh_high"]))
        entries += [_passes(row)] if "forward_passes" in frame else []
        entries += [_num(row["seconds"])] if "seconds" in frame else []
        rows.append([*entries, _num(row["n"], word)])
    unit = _unit(frame)
    note = (
        f"Mean over inits of the loss decrease{unit} of one step, at the lr that is best on the "
        f"mean, with its 95 % bootstrap CI; bold: the largest of its {_case(frame)}. Passes over "
        "the batch are forward, + backward; seconds are per estimate on the machine below."
    )
    if (frame["edge"] != "").any():
        note += " ⚠ the best lr is the end of the grid, so a better one may lie beyond."
    return [Grid("Best loss decrease", note, header, rows, len(keys) - 1)]


def _unit(frame: pd.DataFrame) -> str:
    """`` (MSE)`` of a teacher-student study; a network's losses are cross-entropies."""
    return " (MSE)" if frame["num_dim"].max() > 0 else ""


def _case(frame: pd.DataFrame) -> str:
    return "num_dim" if frame["num_dim"].max() > 0 else "condition"


def _passes(row: Mapping[Any, Any]) -> Entry:
    forward = _num(row["forward_passes"], _cost)
    backward = row.get("backward_passes", 0)
    more = f" + {_cost(backward)}" if backward and backward == backward else ""
    return Entry(forward.text + more, forward.sort)


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _gradient_quality(frame: pd.DataFrame) -> list[Grid]:
    """One row per method, its cosine in every layer side by side."""
    keys = _keys(frame)
    names = [column for column, _, _ in keys]
    every = layer_order(frame)
    # A deep network has more layers than a page has room for.
    layers, ticks = spread(every, MOST_LAYERS), tick_names(frame)
    more = [c for c in ("relative_bias", "relative_variance", "split_half_cosine") if c in frame]
    header = [(heading, numeric) for _, heading, numeric in keys]
    header += [(f"layer {ticks[layer]}" if layer in depths(frame) else layer_title(layer), True)
               for layer in layers]  # fmt: skip
    header += [(c.replace("_", " "), True) for c in more]
    header += [("passes", True)] if "forward_passes" in frame else []
    header += [("seconds", True)] if "seconds" in frame else []
    header += [("n", True)]
    rows = []
    for _, group in frame.groupby(names, sort=False, dropna=False):
        by_layer = {row["layer"]: row for row in group.to_dict("records")}
        one = next(iter(by_layer.values()))
        entries = _key_entries(one, keys)
        for layer in layers:
            cell: Mapping[Any, Any] = by_layer.get(
                layer, dict.fromkeys(("cosine", "low", "high"), math.nan)
            )
            entries.append(_ci(cell["cosine"], cell["low"], cell["high"], cosine))
        whole = by_layer.get("all", group[more].mean().to_dict())
        entries += [_num(whole[c]) for c in more]
        entries += [_passes(one)] if "forward_passes" in frame else []
        entries += [_num(group["seconds"].mean())] if "seconds" in frame else []
        rows.append([*entries, _num(group["n"].max(), word)])
    note = "Mean cosine to the reference over inits with its 95 % bootstrap CI."
    if more:
        note += " Bias, variance and split-half cosine are over all layers."
    singles = [layer for layer in every if layer not in JOINED]
    if len(layers) < len(every):
        note += f" {len(set(layers) & set(singles))} of {len(singles)} layers; all of them stand in"
        note += " the tables below."
    return [Grid("Cosine to the reference, layer by layer", note, header, rows, len(keys) - 1)]


def _trajectory(frame: pd.DataFrame) -> list[Grid]:
    keys = _keys(frame)
    spent = [c for c in ("steps", "forward_passes", "seconds") if c in frame]
    header = [("budget", False), *[(heading, numeric) for _, heading, numeric in keys]]
    header += [("final loss", True)]
    header += [("on an unseen batch", True)] if "final_loss_fresh" in frame else []
    header += [(c.replace("_", " "), True) for c in spent] + [("diverged", True), ("n", True)]
    least = frame.groupby(["budget", "condition", "num_dim"])["final_loss"].transform("min")
    rows = []
    for row, lowest in zip(frame.to_dict("records"), least, strict=True):
        first = "best" if row["final_loss"] == lowest else ""
        entries = [_word(str(row["budget"]).replace("_", " ")), *_key_entries(row, keys)]
        entries.append(_ci(row["final_loss"], row["low"], row["high"], style=first))
        if "final_loss_fresh" in frame:
            entries.append(_num(row["final_loss_fresh"]))
        entries += [_num(row[c], _cost if c != "seconds" else number) for c in spent]
        rows.append([*entries, _num(row["diverged"], word), _num(row["n"], word)])
    unit = _unit(frame)
    note = (
        f"Loss{unit} where the budget ends: mean over inits with its 95 % bootstrap CI; bold: the "
        f"lowest of its budget and {_case(frame)}."
    )
    return [Grid("Where each budget ends", note, header, rows, len(keys))]


def _training_result(frame: pd.DataFrame) -> list[Grid]:
    """One row per configuration that was trained."""
    noisy = noise.is_noisy(frame)
    keys = _keys(frame, "method" if noisy else "estimator")
    shown = [(c, heading) for c, heading in (NOISY if noisy else TRAINED).items() if c in frame]
    header = [(heading, numeric) for _, heading, numeric in keys]
    header += [(heading, True) for _, heading in shown] + [("diverged", True), ("n", True)]
    ranked = [*FINALS] if noisy else ["val_accuracy"]
    top = {column: frame[column].max() for column in ranked if column in frame}
    rows = []
    for row in frame.to_dict("records"):
        entries = _key_entries(row, keys)
        for column, _ in shown:
            show = _share if column.endswith("accuracy") else number
            best = "best" if row[column] == top.get(column) else ""
            low, high = row.get(f"{column}_low", math.nan), row.get(f"{column}_high", math.nan)
            entries.append(_ci(row[column], low, high, show, best))
        rows.append([*entries, _num(row["diverged"], word), _num(row["n"], word)])
    note = (
        "Accuracies in percent and losses: means of the last ten epochs, then over inits with "
        "their 95 % bootstrap CI. The best epoch is picked by its luck on the evaluated images; "
        "bold: the highest mean."
    )
    if noisy:
        note = (
            "The network of the last epoch, judged in different ways: accuracies in percent by its "
            "mean weights, by one draw of the noise for each image, by the mean prediction of "
            "several, and by the mean weights that are kept; means over inits with their 95 % "
            "bootstrap CI; bold: the highest of its column. Compression is all weights over kept "
            "ones, without biases; NLL is the negative log-likelihood in nats."
        )
    return [Grid("Trained networks", note, header, rows, len(keys) - 1)]


def _layer_sparsity(frame: pd.DataFrame) -> list[Grid]:
    """One row per method that prunes, its layers side by side; a table for each kind of network."""
    keys = _keys(frame, "method")
    names = [column for column, _, _ in keys]
    networks: dict[tuple[str, ...], list[pd.DataFrame]] = {}
    for _, group in frame.groupby(names, sort=False):
        networks.setdefault(tuple(group["layer"]), []).append(group)
    note = (
        "Removed weights in percent after the last epoch: mean over inits with its 95 % bootstrap "
        "CI. Methods that removed nothing anywhere are left out."
    )
    found = []
    for layers, groups in networks.items():
        chosen = spread(layers, MOST_LAYERS)
        header = [(heading, numeric) for _, heading, numeric in keys]
        header += [(_layer_heading(group_layer, groups[0]), True) for group_layer in chosen]
        header += [("n", True)]
        rows = []
        for group in groups:
            by_layer = {row["layer"]: row for row in group.to_dict("records")}
            one = next(iter(by_layer.values()))
            cells = [_ci(by_layer[layer]["sparsity"], by_layer[layer]["low"],
                         by_layer[layer]["high"], _share) for layer in chosen]  # fmt: skip
            rows.append([*_key_entries(one, keys), *cells, _num(one["n"], word)])
        some = f" {len(chosen)} of {len(layers)} layers." if len(chosen) < len(layers) else ""
        found.append(Grid("Sparsity of each layer", note + some, header, rows, len(keys) - 1))
    return found


def _layer_heading(layer: str, group: pd.DataFrame) -> str:
    """A layer's name with its number of weights."""
    weights = group.loc[group["layer"] == layer, "weights"].iloc[0]
    return f"{noise.layer_name(layer)} ({weights:,.0f})"


def _gradient_variance(frame: pd.DataFrame) -> list[Grid]:
    """One row per estimator: all layers together, and the first and the last alone."""
    keys = _keys(frame)
    singles = [layer for layer in frame["layer"].unique() if layer not in JOINED]
    shown = ["all", singles[0], singles[-1]] if len(singles) > 1 else ["all"]
    header = [(heading, numeric) for _, heading, numeric in keys]
    header += [(f"{'all layers' if layer == 'all' else layer_title(layer)}", True)
               for layer in shown]  # fmt: skip
    header += [("times its passes", True), ("largest z of a bias", True), ("forward", True),
               ("backward", True), ("n", True)]  # fmt: skip
    rows = []
    for _, group in frame.groupby([column for column, _, _ in keys], sort=False):
        of = {row["layer"]: row for row in group.to_dict("records")}
        whole = of["all"]
        cells = [
            _ci(of[layer]["relative_variance"], of[layer]["relative_variance_low"],
                of[layer]["relative_variance_high"]) if layer in of else _word("–")
            for layer in shown
        ]  # fmt: skip
        z = group["largest_bias_z"]
        rows.append([
            *_key_entries(whole, keys), *cells,
            _ci(*(whole[f"relative_variance_per_pass{part}"] for part in ("", "_low", "_high"))),
            _num(z.iloc[int(z.abs().argmax())] if z.notna().any() else math.nan),
            _num(whole["forward_passes"], word), _num(whole["backward_passes"], word),
            _num(whole["n"], word),
        ])  # fmt: skip
    note = (
        "Variance of one estimate over the squared length of the expected gradient: mean over "
        "inits with its 95 % bootstrap CI; then, for all layers, times the passes that it takes. "
        "The last z is the largest of any layer and init."
    )
    return [Grid("Variance of the gradient", note, header, rows, len(keys) - 1)]


def _ranking(frame: pd.DataFrame) -> list[Grid]:
    """The places of published rows, judged by noise and without it: a table for each source."""
    found = []
    for source, rows_of in frame.groupby("source", sort=False):
        header = [("scale", True), ("row", False), ("ours", False), ("published", True)]
        header += [(PREDICTIONS[kind], True) for kind in noise.JUDGES]
        header += [("n", True), ("does its place survive?", False)]
        rows = []
        for row in rows_of.to_dict("records"):
            places = [
                Entry(f"{_share(row[value])} ({word(row[rank])})", -float(row[rank]))
                for value, rank in [("published", "published_rank"),
                                    *((f"{k}_accuracy", f"{k}_rank") for k in noise.JUDGES)]
            ]  # fmt: skip
            rows.append([_num(row["scale"], word), _word(row["row"]), _word(row["ours"]), *places,
                         _num(row["n"], word), _word(row["statement"])])  # fmt: skip
        note = (
            "Test accuracy after the last epoch in percent, and in brackets the place among the "
            "rows that were trained here. Published was judged by one draw of the noise. Order "
            "alone is compared: differences that no interval resolves count like others."
        )
        remarks = [remark for remark in rows_of["remark"].unique() if remark]
        if remarks:
            note += f" Ours were trained otherwise: {'; '.join(remarks)}."
        found.append(Grid(f"Does the ranking survive? {source}", note, header, rows, 1))
    return found


def _share(value: float) -> str:
    return f"{100 * value:.2f}"


def published_grids(comparison: pd.DataFrame) -> list[Grid]:
    """Published numbers beside ours, one table per source."""
    found = []
    for source, group in comparison.groupby("source", sort=False) if len(comparison) else ():
        header = [("number", False), ("published", True), ("ours", True), ("n", True),
                  ("verdict", False)]  # fmt: skip
        remarks = "remark" in group and group["remark"].fillna("").ne("").any()
        header += [("remark", False)] if remarks else []
        rows = []
        for row in group.to_dict("records"):
            sign, verdict = "≥ " if row["at_least"] else "", str(row["verdict"])
            ours = Entry("–", -math.inf)
            if verdict != "NOT RUN":
                ours = _ci(row["ours"], row["low"], row["high"], published.digits)
            rows.append([
                _word(row["what"]),
                Entry(sign + published.digits(row["published"]), float(row["published"])),
                ours, _num(row["n"], word),
                Entry(verdict, verdict, verdict.lower().replace(" ", "-")),
                *([_word(row["remark"])] if remarks else []),
            ])  # fmt: skip
        found.append(Grid(str(source), published.rules(group), header, rows))
    return found
