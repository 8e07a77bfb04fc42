"""Published numbers, and gradlab's own targets, beside what a study measured.

A comparison passes where the published number lies in our 95 % interval over inits, widened by a
stated tolerance on either side: published values come from networks whose seeds are not known.
Where a study has not measured a row it says NOT RUN; with fewer than three inits there is no
interval and the tolerance alone decides. A run that was trained otherwise than the published one
(fewer epochs or images, another batch size) stands beside it as NOT COMPARABLE, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from gradlab.reporting import columns, runs, summaries
from gradlab.reporting.layers import layer_title
from gradlab.reporting.problems import phrase
from gradlab.reporting.wording import word

RULE = (
    "PASS: the published value lies in our 95 % CI over inits widened by 0.02 on either side, or, "
    "where a lower bound is given (≥), our mean reaches it. Published values come from networks "
    "whose seeds are not known."
)
BINARYDUO = "Kim et al., BinaryDuo, ICLR 2020 (32/32/32, one million examples, ε = 0.1)"
XNOR_RESNET = "XNOR-ResNet18 on CIFAR-10, the original experiments (200 epochs of 50,000 images)"
TRAINING_RULE = (
    "Training runs: PASS where the published value lies in our 95 % CI over inits widened by 0.01 "
    "on either side (without an interval: within 0.01 of our mean). NOT COMPARABLE: a run of that "
    "width and weight decay that was trained otherwise, as the remark says. Published are means of "
    "the last ten epochs of one run each."
)
NOISE_RULE = (
    "Training runs with noise: PASS where the published value lies in our 95 % CI over inits "
    "(without an interval: our mean) widened on either side by 0.01 for an accuracy on CIFAR-10, "
    "0.002 for one on MNIST, 0.01 for a sparsity and a tenth of a compression. NOT COMPARABLE: "
    "trained otherwise, as the remark says. Published are single runs."
)
CIFAR_FIRST = "Variational dropout on CIFAR-10, the first code (one run each)"
CIFAR_NEW = "Variational dropout on CIFAR-10, the new code (one run each)"
SPARSE_MNIST = "Sparse networks on MNIST"
BAYES_MNIST = "Bayes by Backprop on MNIST"
SPARSE_CIFAR = "Sparse networks on CIFAR-10"
NOISE_SOURCES = (CIFAR_FIRST, CIFAR_NEW, SPARSE_MNIST, BAYES_MNIST, SPARSE_CIFAR)
TARGET = "gradlab's target (num_dim 32, batch 160,000, σ = 0.1)"


@dataclass(frozen=True)
class Published:
    """One published number: where it comes from, which rows measure it, and its value."""

    source: str
    what: str
    rows: Mapping[str, Any]
    value: float
    at_least: bool = False
    tolerance: float = 0.02
    needs: Mapping[str, Any] = field(default_factory=dict)


def _binaryduo() -> list[Published]:
    printed = {
        "binary": (0.8934, 0.8968, 0.9629, 0.9046),
        "ternary": (0.9653, 0.9874, 0.9933, 0.9747),
        "2bit": (0.9752, 0.9755, 0.9847, 0.9747),
        "full": (1.0, 1.0, 1.0, 1.0),
    }
    layers = ["layers.0.weight", "layers.1.weight", "layers.2.weight", "hidden"]
    return [
        Published(
            BINARYDUO,
            f"cosine of STE to CDG, {phrase('activation', activation)}, "
            + ("all three" if layer == "hidden" else layer_title(layer)),
            {"family": "ste", "surrogate": "hardtanh", "activation": activation, "layer": layer},
            value,
            needs={"num_dim": 32, "reference": "cdg"},
        )
        for activation, values in printed.items()
        for layer, value in zip(layers, values, strict=True)
    ]


def _targets() -> list[Published]:
    goals: list[tuple[dict[str, Any], str, tuple[float, ...]]] = [
        ({"label": "local NES (2 passes)"}, "local NES, 2 noisy passes", (0.80, 0.90, 0.98, 0.995)),
        ({"label": "local NES (8 passes)"}, "local NES, 8 noisy passes", (0.93, 0.93, 0.93, 0.93)),
        ({"label": "matched STE"}, "matched STE, 1 pass", (0.98, 0.98)),
    ]  # fmt: skip
    return [
        Published(
            TARGET,
            f"cosine to the smoothed gradient, {words}, layer {i + 1}",
            {**rows, "activation": "binary", "layer": f"layers.{i}.weight"},
            value,
            at_least=True,
            tolerance=0.0,
            needs={"num_dim": 32, "sigma": 0.1, "reference": "smooth"},
        )
        for rows, words, values in goals
        for i, value in enumerate(values)
    ]


def compare(table: pd.DataFrame) -> pd.DataFrame:
    """Published numbers beside a gradient-quality table.

    Args:
        table: the stored ``gradient_quality`` table.

    Returns:
        ``source, what, published, ours, low, high, n, tolerance, verdict`` with the verdict PASS,
        FAIL or NOT RUN; without any row where nothing of a source was measured.
    """
    frame = columns.annotate(table)
    results: list[dict[str, Any]] = []
    # What else the study varied (the gain of the initial weights) is compared case by case. Before
    # the family is a column: it would pass for one more condition.
    frame["case"] = columns.conditions_apart_from(frame, ["activation"])
    frame["family"] = frame["method"].map(columns.methods(frame)["family"])
    for source in (_binaryduo(), _targets()):
        for case, group in frame.groupby("case", sort=True):
            rows = [_row(group, number) for number in source]
            if any(row["verdict"] != "NOT RUN" for row in rows):
                suffix = f" ({case!s})" if case else ""
                results += [{**row, "what": row["what"] + suffix} for row in rows]
    return pd.DataFrame(results)


def _row(frame: pd.DataFrame, number: Published) -> dict[str, Any]:
    chosen = frame
    for column, value in {**number.rows, **number.needs}.items():
        if column not in chosen:
            chosen = chosen.iloc[:0] if column != "activation" else chosen
        elif column == "reference":
            chosen = chosen[chosen[column].astype(str).str.startswith(value)]
        elif column == "sigma":
            chosen = chosen[chosen[column].isna() | (chosen[column] == value)]
        else:
            chosen = chosen[chosen[column] == value]
    return judged(number, chosen, "cosine")


def judged(number: Published, chosen: pd.DataFrame, measure: str) -> dict[str, Any]:
    """A published number beside the mean of ``measure`` over the chosen rows."""
    result: dict[str, Any] = {
        "source": number.source, "what": number.what,
        "published": number.value, "at_least": number.at_least, "tolerance": number.tolerance,
    }  # fmt: skip
    if chosen.empty or measure not in chosen or chosen[measure].isna().all():
        return result | {"verdict": "NOT RUN", "n": 0}
    summary = summaries.over_inits(chosen.assign(one=0), ["one"], measure).iloc[0]
    low, high = summary["low"], summary["high"]
    if pd.isna(low):
        low = high = summary["mean"]
    if number.at_least:
        passed = summary["mean"] >= number.value - number.tolerance
    else:
        passed = low - number.tolerance <= number.value <= high + number.tolerance
    return result | {
        "ours": summary["mean"], "low": summary["low"], "high": summary["high"],
        "n": int(summary["n"]), "verdict": "PASS" if passed else "FAIL",
    }  # fmt: skip


@dataclass(frozen=True)
class PublishedRun:
    """One published training run, with the means of its last ten epochs."""

    width: int
    weight_decay: float
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    batch_size: int = 256
    lr: float | None = 1e-3  # None: not told

    @property
    def values(self) -> dict[str, float]:
        """What was published of it, by column."""
        return {"val_accuracy": self.val_accuracy, "train_accuracy": self.train_accuracy,
                "train_loss": self.train_loss}  # fmt: skip


XNOR_RUNS = (
    PublishedRun(96, 0.0, 1.6725e-3, 0.9995, 0.9257),
    PublishedRun(192, 0.0, 0.04267, 0.9847, 0.9019),
    PublishedRun(192, 1e-4, 0.1164, 0.9599, 0.9042),
    PublishedRun(192, 5e-4, 0.6245, 0.7863, 0.6048),
    PublishedRun(192, 5e-5, 0.05670, 0.9810, 0.9152),
    PublishedRun(192, 1e-5, 0.02194, 0.9921, 0.9121),
    PublishedRun(192, 5e-6, 0.02111, 0.9929, 0.9178),
    PublishedRun(192, 3e-6, 0.02237, 0.9925, 0.9080),
    PublishedRun(192, 1e-6, 0.02861, 0.9904, 0.9069),
    PublishedRun(256, 0.0, 0.1364, 0.9520, 0.8583, batch_size=64, lr=None),
    PublishedRun(256, 1e-5, 0.4476, 0.8434, 0.7964, batch_size=64, lr=2e-3),
)
EPOCHS, EXAMPLES = 200, 50_000
PROTOCOL = {
    "estimator": "ste", "surrogate": "hardtanh(threshold=1.3)", "optimizer": "adam",
    "schedule": "cosine", "clip": 5.0,
}  # fmt: skip
QUANTITIES = {
    "val_accuracy": "validation accuracy", "train_accuracy": "train accuracy",
    "train_loss": "train loss",
}  # fmt: skip


def of_published_network(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the network and data set that the published runs trained."""
    network = {"dataset": "cifar10", "model": "xnor_resnet18", "block": "xnor", "weight": "binary",
               "activation": "binary", "scaling": "channel"}  # fmt: skip
    for column, value in network.items():
        if column in frame:
            # What a table leaves out is the model's default, which is the published network.
            frame = frame[frame[column].isna() | (frame[column] == value)]
    return frame if {"dataset", "model"} <= set(frame) else frame.iloc[:0]


def differences(row: Mapping[Any, Any], run: PublishedRun) -> str:
    """How a run of ours was trained otherwise than a published one; empty if it was not.

    >>> differences({"epochs": 20, "train_examples": 5000, "batch_size": 128}, XNOR_RUNS[0])
    '20 of 200 epochs, 5,000 of 50,000 images, batches of 128, not 256'
    """
    known = {key: value for key, value in row.items() if pd.notna(value)}
    found = [
        f"{known[key]:,.0f} of {least:,} {words}"
        for key, least, words in (
            ("epochs", EPOCHS, "epochs"),
            ("train_examples", EXAMPLES, "images"),
        )
        if key in known and known[key] < least
    ]
    asked = {"batch_size": run.batch_size, "learning_rate": run.lr, **PROTOCOL}
    found += [
        f"{phrase(key, known[key])}, not {word(value)}"
        for key, value in asked.items()
        if value is not None and key in known and known[key] != value
    ]
    return ", ".join(found)


def compare_training(table: pd.DataFrame) -> pd.DataFrame:
    """Published training runs beside a table of training results.

    Args:
        table: the stored ``training_result`` table.

    Returns:
        As :func:`compare`, with ``remark``; the verdict may also be NOT COMPARABLE. Without any
        row where the network was not trained on that data set at all.
    """
    frame = of_published_network(runs.annotated(table))
    results: list[dict[str, Any]] = []
    if frame.empty or "weight_decay" not in frame:
        return pd.DataFrame(results)
    own = ["width", "weight_decay", "batch_size", "learning_rate", "epochs", "train_examples"]
    frame = frame.assign(case=columns.conditions_apart_from(frame, own))
    if frame["method"].nunique() > 1:
        joined = frame["method"].where(frame["case"] == "", frame["case"] + ", " + frame["method"])
        frame["case"] = joined
    for run in XNOR_RUNS:
        here = frame[(frame["width"] == run.width) & (frame["weight_decay"] == run.weight_decay)]
        name = f"width {run.width}, weight decay {run.weight_decay:g}"
        for case in here["case"].unique() if len(here) else [""]:
            suffix = f" ({case})" if case else ""
            results += _training_rows(run, name + suffix, here[here["case"] == case])
    return pd.DataFrame(results)


def _training_rows(run: PublishedRun, name: str, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """One row per published quantity of one run."""
    remarks = [differences(row, run) for row in rows.to_dict("records")]
    comparable = [remark == "" for remark in remarks]
    chosen = rows[comparable] if any(comparable) else rows
    found = []
    for column, words in QUANTITIES.items():
        number = Published(XNOR_RESNET, f"{name}: {words}", {}, run.values[column],
                           tolerance=0.01)  # fmt: skip
        row = judged(number, chosen, column)
        if row["verdict"] != "NOT RUN" and not any(comparable):
            row |= {"verdict": "NOT COMPARABLE", "remark": remarks[0]}
        found.append({"remark": "", **row})
    return found


def sentences(comparison: pd.DataFrame) -> list[str]:
    """How many numbers of each source agree with ours, in a sentence each."""
    found = []
    for source, rows in comparison.groupby("source", sort=False) if len(comparison) else ():
        counts = rows["verdict"].value_counts()
        judged = int(counts.get("PASS", 0) + counts.get("FAIL", 0))
        said = [f"{counts.get('PASS', 0)} of {judged} numbers agree with {source}"] if judged else [
            f"None of our runs can be held against {source}"]  # fmt: skip
        if "NOT COMPARABLE" in counts:
            said.append(f"{counts['NOT COMPARABLE']} belong to runs that were trained otherwise")
        if "NOT RUN" in counts:
            said.append(f"{counts['NOT RUN']} were not run")
        found.append("; ".join(said) + ".")
    return found


def rules(comparison: pd.DataFrame) -> str:
    """How the verdicts of this comparison came about."""
    sources = set(comparison["source"]) if len(comparison) else set()
    said = {
        RULE: sources - {XNOR_RESNET, *NOISE_SOURCES},
        TRAINING_RULE: sources & {XNOR_RESNET},
        NOISE_RULE: sources & set(NOISE_SOURCES),
    }
    return " ".join(rule for rule, concerned in said.items() if concerned)


def digits(value: float) -> str:
    """Four digits behind the point, as the papers print them; one of large numbers.

    >>> digits(0.98765), digits(68.0)
    ('0.9877', '68.0')
    """
    return f"{value:.4f}" if abs(value) < 10 else f"{value:,.1f}"
