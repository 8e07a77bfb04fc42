"""Published training runs with noise beside ours: the comparison on CIFAR-10, MNIST, Bayes.

The original comparison on CIFAR-10 tested every noisy method by **one draw** of its noise, and the
network without noise as it is; so its numbers stand beside our ``sample_accuracy``. Its learned
methods are our ``mode = "faithful"``: one α for each output "on B", clamped in the forward pass.
Numbers of sparse networks stand beside the pruned network, those of Bayes by Backprop beside the
mean prediction of several draws. Published best epochs were chosen by the test images they are of.

Published: Molchanov, Ashukha and Vetrov 2017 (arXiv 1701.05369); Louizos, Ullrich and Welling 2017
(arXiv 1705.08665); Blundell et al. 2015 (arXiv 1505.05424); and the original experiments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradlab.reporting import noise, published, runs
from gradlab.reporting.problems import phrase
from gradlab.reporting.published import Published
from gradlab.reporting.wording import word

BEFORE = {"side": "input", "convert": "linear"}
AFTER = {"side": "output", "convert": "conv"}
ON_WEIGHTS, ON_OUTPUTS = {"noise": "weights"}, {"noise": "preactivations"}
CONV_NET = {"dataset": "cifar10", "model": "conv_net"}
SCALES = (1.0, 1.5, 2.0)
IMAGES = {"mnist": 60_000, "cifar10": 50_000}
DEFAULTS = {"hidden": "[300, 100]", "scale": 1.0}
"""Options that a model takes where a table has no value."""
COMPARISON = {
    "mode": "faithful", "pixels": "symmetric", "epochs": 100, "batch_size": 1_000,
    "optimizer": "adam", "learning_rate": 1e-3, "schedule": "constant",
    "kl_weight": "constant", "weight_decay": 0.0, "crop": 0, "flip": False,
    "clip": 0.0, "samples": 1, "pretrain_epochs": 0,
}  # fmt: skip
AUTHORS = {
    "mode": "correct", "noise": "preactivations", "parameterization": "log_sigma2", "epochs": 200,
    "batch_size": 100, "optimizer": "adam", "learning_rate": 1e-3, "schedule": "linear",
    "kl_weight": "linear", "weight_decay": 0.0, "pretrain_epochs": 0,
}  # fmt: skip
WORDS = {"epochs": "epochs", "train_examples": "images", "evaluation_examples": "evaluated images"}


@dataclass(frozen=True)
class Row:
    """One row of the comparison on CIFAR-10, with best and last test accuracy at each scale."""

    source: str
    name: str
    estimator: str
    place: Mapping[str, Any]
    values: tuple[tuple[float, float], ...]

    def rows(self, scale: float) -> dict[str, Any]:
        """Which of our runs are of this row."""
        return {**CONV_NET, "estimator": self.estimator, "scale": scale, **self.place}


def _rows(source: str, text: str) -> list[Row]:
    """Rows from lines of ``name | estimator | place | scale 1 | scale 1.5 | scale 2``."""
    places = {"before": BEFORE, "after": AFTER, "W": ON_WEIGHTS, "B": ON_OUTPUTS, "": {}}
    found = []
    for line in text.strip().splitlines():
        name, estimator, place, *cells = (part.strip() for part in line.split("|"))
        pairs = [tuple(round(float(part) / 100, 4) for part in cell.split("/")) for cell in cells]
        values = tuple((best, last) for best, last in pairs)
        found.append(Row(source, name, estimator, places[place], values))
    return found


ROWS = [
    *_rows(published.CIFAR_FIRST, """
Bernoulli before the FC|bernoulli|before|56.32/55.67|57.22/56.11|58.05/57.13
Bernoulli after the conv|bernoulli|after|56.23/54.96|56.55/56.21|58.21/57.63
GaussianS|gaussian_s||49.33/48.99|50.93/49.92|52.21/50.75
GaussianW|gaussian_w||56.57/56.35|58.34/57.52|58.52/57.60
NoDropout|none||58.53/57.09|58.49/55.51|59.61/56.87
VariationalA|variational_a||55.85/55.31|54.63/54.58|54.88/54.41
VariationalB|variational_b||56.45/56.45|57.98/56.59|58.30/56.93
VariationalSparse B on W|sparse|W|56.16/55.32|55.38/54.91|56.72/56.10
VariationalHierarchical B on W|hierarchical|W|55.41/55.41|56.62/56.20|55.85/54.97
VariationalHierarchical B on B|hierarchical|B|61.60/60.68|62.90/62.10|62.38/62.02
VariationalHierarchical A before the FC|hierarchical_a|before|60.80/59.96|60.73/59.95|60.01/60.01
VariationalHierarchical B on W, again|hierarchical|W|56.70/56.19|57.07/56.26|56.30/55.99
"""),
    *_rows(published.CIFAR_NEW, """
GaussianS before the FC|gaussian_s|before|49.53/48.64|51.69/50.53|51.05/50.22
GaussianS after the conv|gaussian_s|after|48.90/48.39|51.48/51.13|51.68/50.78
GaussianW|gaussian_w||53.86/53.63|56.51/55.75|57.39/57.02
VariationalA before the FC|variational_a|before|55.42/55.00|54.32/53.80|55.41/54.34
VariationalA after the conv|variational_a|after|58.34/57.57|55.94/55.12|55.03/53.80
VariationalB on B|variational_b|B|59.80/59.64|62.10/62.10|61.88/60.54
VariationalHierarchicalA before the FC|hierarchical_a|before|59.78/59.78|60.59/60.50|61.22/60.47
VariationalHierarchicalA after the conv|hierarchical_a|after|60.25/59.69|59.48/58.64|59.14/58.04
VariationalHierarchicalB on B|hierarchical|B|61.77/61.08|62.14/61.58|62.71/61.30
VariationalSparseA before the FC|sparse_a|before|59.97/59.40|60.25/60.01|59.88/59.47
VariationalSparseA after the conv|sparse_a|after|60.17/60.12|59.60/59.23|60.24/58.51
VariationalSparseB on B|sparse|B|62.38/61.34|62.56/62.29|63.28/62.38
"""),
]  # fmt: skip


@dataclass(frozen=True)
class Number:
    """One published number, what measures it here, and how it was trained."""

    published: Published
    measure: str
    protocol: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    layer: int | None = None


def _comparison() -> list[Number]:
    """The comparison on CIFAR-10."""
    return [
        Number(
            Published(row.source, f"{row.name}, scale {scale:g}: {words}", row.rows(scale), value,
                      tolerance=0.01),
            column, COMPARISON,
        )
        for row in ROWS
        for scale, pair in zip(SCALES, row.values, strict=True)
        for words, column, value in (
            ("best test accuracy", "best_sample_accuracy", pair[0]),
            ("last test accuracy", "last_sample_accuracy", pair[1]),
        )
    ]  # fmt: skip


def _network(
    name: str,
    rows: Mapping[str, Any],
    values: Mapping[str, float],
    sparsity: Sequence[float] = (),
    protocol: Mapping[str, Any] = AUTHORS,
    source: str = published.SPARSE_MNIST,
    remark: str = "",
) -> list[Number]:
    """The numbers of one published network."""
    words = {"pruned_error": "error", "error": "error", "sampled_error": "error",
             "pruned": "accuracy", "last_compression": "compression"}  # fmt: skip
    found = [
        Number(
            Published(source, f"{name}: {words[measure]}", rows, value,
                      tolerance=value / 10 if measure == "last_compression" else 0.002),
            measure, protocol, remark,
        )
        for measure, value in values.items()
    ]  # fmt: skip
    return found + [
        Number(
            Published(source, f"{name}: sparsity of layer {number}", rows, value, tolerance=0.01),
            "sparsity", protocol, remark, number - 1,
        )
        for number, value in enumerate(sparsity, start=1)
    ]  # fmt: skip


def _sparse() -> list[Number]:
    """Networks that were pruned, and dense ones beside them."""
    small = {"dataset": "mnist", "model": "fully_connected", "hidden": "[300, 100]"}
    caffe = {"dataset": "mnist", "model": "lenet5_caffe"}
    one = {"dataset": "mnist", "model": "fully_connected", "hidden": "[300]"}
    vgg = {"dataset": "cifar10", "model": "vgg"}
    sparse, dense = {"estimator": "sparse"}, {"estimator": "none"}
    groups = "gradlab has no group horseshoe."
    untold = "How the published network was trained is not told."
    return [
        *_network("LeNet-300-100, sparse VD, original experiments", {**small, **sparse},
                  {"pruned": 0.986, "last_compression": 32}, (0.970, 0.956, 0.612), {},
                  remark=untold),
        *_network("LeNet-300-100, sparse VD, paper", {**small, **sparse},
                  {"pruned_error": 0.0192, "last_compression": 68}, (0.989, 0.972, 0.620)),
        *_network("LeNet-300-100, dense, paper", {**small, **dense}, {"error": 0.0164},
                  protocol={}),
        *_network("LeNet-5-Caffe, sparse VD, paper", {**caffe, **sparse},
                  {"pruned_error": 0.0075, "last_compression": 280}, (0.67, 0.98, 0.998, 0.95)),
        *_network("LeNet-5-Caffe, dense, paper", {**caffe, **dense}, {"error": 0.008},
                  protocol={}),
        *_network("LeNet-5, BC-GNJ", {**caffe, "estimator": "normal_jeffreys"},
                  {"pruned_error": 0.010, "last_compression": 108}, protocol={}),
        *_network("LeNet-5, BC-GHS", {**caffe, "estimator": "group_horseshoe"},
                  {"pruned_error": 0.010, "last_compression": 156}, protocol={}, remark=groups),
        *_network("784-300-10, sparse VD, authors' notebook", {**one, **sparse},
                  {"pruned": 0.984, "last_compression": 35.6}, (0.974, 0.784), {}, remark=untold),
        *_network("VGG, sparse VD, paper", {**vgg, **sparse}, {"last_compression": 48},
                  protocol={}, source=published.SPARSE_CIFAR),
    ]  # fmt: skip


def _bayes() -> list[Number]:
    """Bayes by Backprop on MNIST."""
    bayes = {"dataset": "mnist", "model": "fully_connected", "estimator": "bayes_by_backprop"}
    wide = {**bayes, "hidden": "[1200, 1200]"}
    source = published.BAYES_MNIST
    suspect = ("Published 0.01315 to 0.01318, a mean of per-batch accuracies, of pixels divided by "
               "126.")  # fmt: skip
    loaded = ("Weights trained by one way to draw noise, judged by another: a study trains and "
              "judges by one.")  # fmt: skip
    own = {"epochs": 600, "batch_size": 128, "learning_rate": 1e-3}
    theirs = {"epochs": 600, "batch_size": 128, "bayes_by_backprop_estimator": "weights"}
    found = [
        *_network("1200-1200, original experiments", {**wide, "prior": "gaussian"},
                  {"sampled_error": 0.01315}, protocol=own, source=source, remark=suspect),
        *_network("1200-1200, weights loaded into local reparameterization",
                  {**wide, "estimator": "loaded"}, {"sampled_error": 0.01289}, source=source,
                  remark=loaded),
    ]  # fmt: skip
    for prior, errors in (("gaussian", (1.82, 1.99, 2.04)), ("mixture", (1.36, 1.34, 1.32))):
        for width, error in zip((400, 800, 1200), errors, strict=True):
            rows = {**bayes, "hidden": f"[{width}, {width}]", "prior": prior}
            found += _network(
                f"{width}-{width}, {prior} prior (Blundell et al.)",
                rows,
                {"sampled_error": error / 100},
                protocol=theirs,
                source=source,
            )
    return found


NUMBERS = [*_comparison(), *_sparse(), *_bayes()]


def compare(results: pd.DataFrame, sparsity: pd.DataFrame | None = None) -> pd.DataFrame:
    """Published runs with noise beside ours.

    Args:
        results: the stored ``training_result`` table.
        sparsity: the stored ``layer_sparsity`` table.

    Returns:
        As :func:`gradlab.reporting.published.compare_training`; of a source of which no run was
        trained there is no row.
    """
    frame = annotated(results)
    layers = None if sparsity is None or sparsity.empty else noise.layers(sparsity)
    if layers is not None:
        layers = _with_defaults(noise.last_epoch(layers))
    found = []
    for number in NUMBERS:
        table = frame if number.layer is None else layers
        if table is not None:
            found += _compared(number, table)
        else:
            found.append(published.judged(number.published, frame.iloc[:0], "") | {"remark": ""})
    comparison = pd.DataFrame(found)
    run = comparison.groupby("source")["verdict"].transform(lambda v: (v != "NOT RUN").any())
    return comparison[run].reset_index(drop=True)


def annotated(results: pd.DataFrame) -> pd.DataFrame:
    """Results with the errors that were published of such networks."""
    frame = _with_defaults(runs.annotated(results))
    mean, sampled = (frame.get(noise.final(kind)) for kind in ("mean", "monte_carlo"))
    if mean is None or sampled is None:
        return frame.iloc[:0]
    pruned = frame.get(noise.final("pruned"), mean).fillna(mean)
    return frame.assign(pruned=pruned, error=1 - mean, pruned_error=1 - pruned,
                        sampled_error=1 - sampled)  # fmt: skip


def _with_defaults(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy in which a model's default stands where the table has none."""
    frame = frame.copy()
    for option, value in DEFAULTS.items():
        if option not in frame:
            frame[option] = None
        frame[option] = frame[option].where(frame[option].notna(), value)
    if "estimator" in frame:
        frame["estimator"] = frame["estimator"].replace("ard", "hierarchical")
    if "convert" in frame and "side" in frame:  # noise on units belongs to layers of its own
        own = frame["side"].map({"input": "linear", "output": "conv"})
        frame["convert"] = frame["convert"].where(frame["convert"] != "auto", own.fillna("all"))
    return frame


def matching(frame: pd.DataFrame, rows: Mapping[str, Any]) -> pd.DataFrame:
    """The runs of ours that have these values."""
    for column, value in rows.items():
        frame = frame[frame[column] == value] if column in frame else frame.iloc[:0]
    return frame


def _compared(number: Number, frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A published number beside every configuration of ours that is nearest to it."""
    rows = matching(frame, number.published.rows)
    if number.layer is not None:
        rows = rows[rows["place"] == number.layer]
    found = []
    for remark, group in nearest(rows, number.protocol):
        row = published.judged(number.published, group, number.measure)
        if row["verdict"] != "NOT RUN" and remark:
            row["verdict"] = "NOT COMPARABLE"
        own = " ".join(part for part in (number.remark, remark) if part)
        found.append(row | {"remark": own, "config": _config(group)})
    if not found:
        empty = published.judged(number.published, rows, number.measure)
        return [empty | {"remark": number.remark}]
    several = len(found) > 1
    return [
        {**row, "what": f"{row['what']} ({config})" if several and config else row["what"]}
        for row in found
        for config in [row.pop("config")]
    ]


def _config(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    return ", ".join(part for part in (str(first["method"]), str(first["condition"])) if part)


def nearest(rows: pd.DataFrame, protocol: Mapping[str, Any]) -> list[tuple[str, pd.DataFrame]]:
    """Our configurations that were trained as the published run, or else the one nearest to it.

    Returns:
        For each how it was trained otherwise, in words, and its rows.
    """
    groups = []
    for _, group in rows.groupby(noise.BY, sort=False):
        said = differences(group.iloc[0].to_dict(), protocol)
        groups.append((said, group))
    same = [(", ".join(said), group) for said, group in groups if not said]
    if same or not groups:
        return same
    said, group = min(groups, key=lambda pair: len(pair[0]))
    return [(", ".join(said), group)]


def differences(row: Mapping[Any, Any], protocol: Mapping[str, Any]) -> list[str]:
    """How a run of ours was trained otherwise than a published one.

    Options that a method does not have are no difference; schedules are compared by their names.

    >>> row = {"dataset": "mnist", "train_examples": 6000, "epochs": 20, "schedule": "linear"}
    >>> differences(row, {"epochs": 200, "schedule": "linear", "mode": "faithful"})
    ['6,000 of 60,000 images', '20 of 200 epochs']
    """
    images = IMAGES.get(str(row.get("dataset")), 0)
    least = {"train_examples": images, "evaluation_examples": 10_000}
    if row.get("validation"):
        least = {}
    asked: dict[str, Any] = {**least, "random_labels": False, **protocol}
    found = []
    for column, value in asked.items():
        ours = row.get(column)
        if ours is None or pd.isna(ours) or _name(ours) == _name(value):
            continue
        if column in WORDS and float(ours) < value:
            found.append(f"{float(ours):,.0f} of {value:,} {WORDS[column]}")
        elif column == "random_labels":
            found.append(phrase(column, ours))
        elif column not in least:
            found.append(f"{phrase(column, ours)}, not {word(value)}")
    if row.get("validation"):
        found.append("judged by images set aside, not by the test set")
    return found


def _name(value: Any) -> Any:
    """A value as it is compared: of ``linear(hold=0.5)`` only the name."""
    return re.sub(r"\(.*", "", value) if isinstance(value, str) else float(value)


def points(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The published numbers of the runs in a table, for a figure.

    Args:
        frame: as :func:`annotated` gives it.
        measure: the column that they are held against.

    Returns:
        ``condition, method, published, what, remark``.
    """
    found = [
        {"condition": group["condition"].iloc[0], "method": group["method"].iloc[0],
         "published": number.published.value, "what": number.published.what, "remark": remark}
        for number in NUMBERS
        if number.measure == measure and number.layer is None
        for remark, group in nearest(matching(frame, number.published.rows), number.protocol)
    ]  # fmt: skip
    return pd.DataFrame(found, columns=["condition", "method", "published", "what", "remark"])
