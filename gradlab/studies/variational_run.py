r"""A training run with noise as one cell: dropout, variational dropout, Bayes by Backprop.

The objective ``classifier`` says which network and images, and the methods of
:mod:`gradlab.variational` take the place of estimators: a sweep lists them as ``[[methods]]``.
Settings are those of a training spec (:mod:`gradlab.training.spec`), so that each can be an axis.

Tables: ``training`` has a row per epoch and ``training_result`` one per run, as those of the study
``training_run``, where ``val_*`` are of the mean weights. Beside them stand ``sample_*`` (one draw
of the noise), ``pruned_*`` (the mean weights that are kept) and ``compression``. Columns that begin
with ``last_`` are of the last epoch, the others means of the last ten; ``best_*`` are of the best
epoch, which is chosen by the evaluated images. ``final_mean_*``, ``final_sample_*``,
``final_monte_carlo_*`` (the mean prediction of several draws) and ``final_pruned_*`` judge the
predictions of one and the same network, that of the last epoch. ``layer_sparsity`` has a row per
layer and recorded epoch, ``log_alpha`` a histogram of each layer at the end, and ``kept_inputs``
the kept weights of every input pixel of a first linear layer.

A run that was killed goes on where it stood at the last tenth of its epochs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from gradlab import training, variational
from gradlab.objectives.classifier import named
from gradlab.studies import cells
from gradlab.studies.base import Cell, Row, Tables
from gradlab.studies.training_run import (
    PositiveInt,
    TrainingRunSettings,
    images_of,
    measured,
    optional_number,
    require_whole_network,
    steps_of,
)
from gradlab.training import setup

NOISY = (
    "train_nll", "kl", "kl_weight_now", "sample_loss", "sample_accuracy", "pruned_loss",
    "pruned_accuracy", "compression",
)  # fmt: skip
_LAST = ("val_accuracy", "val_loss", "sample_accuracy", "pruned_accuracy", "compression")
_BEST = ("val_accuracy", "sample_accuracy", "pruned_accuracy")
_MEANS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", *NOISY, "images_per_second",
)  # fmt: skip
_PREDICTION = (
    "accuracy", "negative_log_likelihood", "calibration_error", "predictive_entropy",
    "mutual_information",
)  # fmt: skip


class VariationalRunSettings(TrainingRunSettings):
    """Settings of the study, beside those of :class:`TrainingRunSettings`.

    Attributes:
        schedule: of the learning rate: a name, or a table with options.
        clip: largest norm of the gradient; 0 for none.
        crop: as there, but no augmentation by default.
        flip: likewise.
        convert: which layers get the noise: "all", "linear", "conv", or "auto", see
            :func:`gradlab.variational.convert`.
        kl_weight: schedule of the weight of the KL term: a name, or a table with options.
        samples: draws of the noise for each image of a step.
        evaluation_samples: of the Monte Carlo predictions.
        pretrain_epochs: train so many epochs without noise first.
        pixels: "standardized" by the data set's mean and standard deviation, "symmetric" (from -1
            to 1) or "unit" (from 0 to 1).
        random_labels: shuffle the training labels.
        record_every: epochs between two rows of ``layer_sparsity``; the last is always there.
    """

    epochs: PositiveInt = 100
    schedule: str | dict[str, Any] = "constant"
    clip: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.0
    crop: Annotated[int, pydantic.Field(ge=0)] = 0
    flip: bool = False
    convert: Literal["auto", "all", "linear", "conv"] = "auto"
    kl_weight: str | dict[str, Any] = "constant"
    samples: PositiveInt = 1
    evaluation_samples: PositiveInt = 10
    pretrain_epochs: Annotated[int, pydantic.Field(ge=0)] = 0
    pixels: Literal["standardized", "symmetric", "unit"] = "standardized"
    random_labels: bool = False
    record_every: PositiveInt = 10


class VariationalRun:
    """The study."""

    name = "variational_run"
    settings_model = VariationalRunSettings
    entries = variational.REGISTRY

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run, before anything is measured."""
        require_whole_network(cell, "classifier")
        setup.check(spec_of(cell))

    def forward_passes(self, cell: Cell) -> float:
        """Of all steps, three for each draw: backpropagation takes two more."""
        settings = cell["settings"]
        plain = float(settings["pretrain_epochs"]) / float(settings["epochs"])
        return 3.0 * steps_of(cell) * (float(settings["samples"]) + plain)

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """Train, and give the epochs, the result and what is left of each layer."""
        clock = time.perf_counter()
        key = cells.key_columns(cell, leave_out=("examples", "evaluation_examples", "record_every"))
        key["train_examples"], key["evaluation_examples"] = images_of(cell)
        folder = None
        try:
            start = _pretrained(cell, scratch)
            spec = spec_of(cell, None if start is None else str(start))
            folder = _folder(spec, scratch)
            result = training.run(spec, folder)
        except training.Diverged as diverged:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            rows = [{**key, **measured(row, NOISY)} for row in diverged.rows]
            outcome = {**key, "diverged": True, "epochs_done": len(rows) - 1,
                       "seconds": time.perf_counter() - clock}  # fmt: skip
            return {"training": rows, "training_result": [outcome]}
        epochs, final = result.epochs, result.final
        every, last = cell["settings"]["record_every"], len(epochs)
        model, _ = training.build(result.weights)
        outcome = {
            **key,
            **{name: optional_number(final.get(name)) for name in _MEANS},
            **{f"last_{name}": optional_number(epochs[-1].get(name)) for name in _LAST},
            **{f"best_{name}": _best(epochs, name) for name in _BEST},
            **_predictions(final),
            "epochs_done": last,
            "diverged": False,
        }
        layers = [row for row in result.layers if row["epoch"] % every == 0 or row["epoch"] == last]
        tables: Tables = {
            "training": [{**key, **measured(row, NOISY)} for row in epochs],
            "layer_sparsity": [{**key, **row} for row in layers],
            "log_alpha": [{**key, **row} for row in variational.log_alpha_histogram(model)],
            "kept_inputs": [{**key, **row} for row in variational.kept_inputs(model)],
        }
        shutil.rmtree(folder, ignore_errors=True)
        outcome["seconds"] = time.perf_counter() - clock
        return {"training_result": [outcome], **{k: rows for k, rows in tables.items() if rows}}


def _predictions(final: dict[str, Any]) -> Row:
    """The predictions at the end, by how they were made."""
    found: Row = {}
    for kind, numbers in (final.get("predictions") or {}).items():
        found |= {
            f"final_{kind}_{name}": optional_number(numbers.get(name)) for name in _PREDICTION
        }
    return found


def _best(epochs: list[Row], name: str) -> float | None:
    known = [row[name] for row in epochs if row.get(name) is not None]
    return max(known, default=None)


def _folder(spec: training.TrainingSpec, scratch: Path) -> Path:
    text = json.dumps(spec.identity(), sort_keys=True)
    return scratch / f"variational-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def _pretrained(cell: Cell, scratch: Path) -> Path | None:
    """The weights of the network trained without noise, if the cell asks for them.

    All methods on the same (init, network) share them; two workers take turns.
    """
    from filelock import FileLock

    epochs = cell["settings"]["pretrain_epochs"]
    if not epochs:
        return None
    raw = _raw(cell)
    raw["loop"] = {**raw["loop"], "epochs": epochs}
    raw["checkpoint"] = {"every": epochs}
    raw["schedule"] = {"name": "constant"}
    spec = training.from_dict(raw, source="settings.pretrain_epochs")
    folder = _folder(spec, scratch).with_name(f"pretrained-{spec.digest()[:20]}")
    scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        return training.run(spec, folder).weights


def spec_of(cell: Cell, start: str | None = None) -> training.TrainingSpec:
    """The training spec that a cell stands for.

    Args:
        cell: the cell.
        start: weights to start from.

    Raises:
        ValueError: settings that do not make one.
    """
    settings, method = cell["settings"], cell["estimator"]
    raw = _raw(cell)
    if start is not None:
        raw["init"] = {"weights": start}
    raw["variational"] = {
        "method": {key: value for key, value in method.items() if value is not None},
        "layers": settings["convert"],
        "kl_weight": named(settings["kl_weight"], "kl_weight"),
        "samples": settings["samples"],
        "evaluation_samples": settings["evaluation_samples"],
    }
    return training.from_dict(raw, source="settings")


def _raw(cell: Cell) -> dict[str, Any]:
    """The training spec of the network without noise."""
    objective, settings = cell["objective"], cell["settings"]
    images = ("validation", "crop", "flip", "cutout", "mixup", "examples", "evaluation_examples")
    optional = {"clip": settings["clip"] or None, "ema": settings["ema"] or None}
    schedule = named(settings["schedule"], "schedule")
    return {
        "name": "cell",
        "seed": cells.derived_seed(cell, 0, cell["init"], cell["batch"]),
        "threads": cell["threads"],
        "data": {
            "name": objective["dataset"],
            **{key: settings[key] for key in images},
            "pixels": settings["pixels"],
            "random_labels": settings["random_labels"],
        },
        "model": named(objective["model"]),
        "optimizer": {
            "name": settings["optimizer"],
            "lr": settings["lr"],
            **({"weight_decay": settings["weight_decay"]} if settings["weight_decay"] else {}),
        },
        "schedule": {"warmup_epochs": settings["warmup_epochs"], **schedule},
        "loop": {
            "epochs": settings["epochs"],
            "batch_size": objective["batch_size"],
            "precision": settings["precision"],
            "label_smoothing": settings["label_smoothing"],
            "device": objective["device"],
            **optional,
        },
        # the weights at the end are what a cell keeps
        "checkpoint": {"every": max(1, settings["epochs"] // 10)},
    }
