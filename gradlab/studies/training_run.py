r"""A whole training run as one cell: how far a network gets, not where one step leads.

The objective ``network`` says which network and images (``layers`` and ``coordinates`` have no
meaning here), ``batch_size`` is that of its steps, and the estimator drives them: ``ste`` is
backpropagation with its surrogates in the network's layers, every other estimator fills in the
gradient itself (:mod:`gradlab.training.gradients`). Settings are those of a training spec
(:mod:`gradlab.training.spec`), so that each can be an axis: weight decay, say.

Two tables: ``training`` has a row per epoch, ``training_result`` one per run, whose loss and
accuracies are means of the last ten epochs, as the protocol has it. ``val`` is the test set, unless
``validation`` sets a part of the training images aside. A run that diverges ends there, with a row
that has no loss.

A run that was killed goes on behind its last epoch: it keeps its checkpoints in the study's scratch
folder until the cell is done.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch

from gradlab import data, training
from gradlab.data import Dataset
from gradlab.objectives.classifier import named
from gradlab.objectives.network import MODEL_OPTIONS
from gradlab.objectives.network_state import require_images
from gradlab.studies import cells, networks
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.clock import now
from gradlab.training import loop, setup

PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, pydantic.Field(ge=1)]
Fraction = Annotated[float, pydantic.Field(ge=0, lt=1)]


class TrainingRunSettings(Settings):
    """Settings of the study.

    Attributes:
        epochs: passes over the training images.
        optimizer: a class of torch.optim in lower case.
        lr: learning rate.
        weight_decay: the optimizer's own.
        schedule: of the learning rate: a name, or a table with options.
        warmup_epochs: of the schedule.
        clip: largest norm of the gradient; 0 for none.
        precision: "float32" or "bfloat16".
        crop: augmentation: pad by so many pixels and crop back.
        flip: mirror half of the images.
        cutout: side of a square that is cut out.
        mixup: α of mixup; 0 for none.
        label_smoothing: share of the target that is spread over all classes.
        ema: decay of the average of the weights; 0 for none.
        validation: fraction of the training images set aside; with 0 the test set is evaluated.
        examples: use so many training images only.
        evaluation_examples: evaluate so many images only.
    """

    epochs: PositiveInt = 200
    optimizer: str = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.0
    schedule: str | dict[str, Any] = "cosine"
    warmup_epochs: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.0
    clip: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 5.0
    precision: Literal["float32", "bfloat16"] = "float32"
    crop: Annotated[int, pydantic.Field(ge=0)] = 4
    flip: bool = True
    cutout: Annotated[int, pydantic.Field(ge=0)] = 0
    mixup: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] = 0.0
    label_smoothing: Fraction = 0.0
    ema: Fraction = 0.0
    validation: Fraction = 0.0
    examples: PositiveInt | None = None
    evaluation_examples: PositiveInt | None = None


def require_whole_network(cell: Cell, objective: str) -> None:
    """Refuse a cell whose run would not train a fresh network on images that are here.

    Args:
        cell: of a study that trains.
        objective: the name of the only objective that the study takes.

    Raises:
        ValueError: one sentence that says which, and what to write instead.
    """
    study, given, settings = cell["study"], cell["objective"], cell["settings"]
    if given["name"] != objective:
        raise ValueError(f"{study} trains networks on images, and the objective is "
                         f'{given["name"]}: use name = "{objective}".')  # fmt: skip
    for option in ("layers", "coordinates", "weights"):
        if given.get(option) is not None:
            raise ValueError(f"{study} trains the whole network from the start: leave out "
                             f"objective.{option}.")  # fmt: skip
    if cell["student"]["state"] != "fresh":
        raise ValueError(f"{study} starts from a fresh network: leave out [student].")
    examples, aside = settings["examples"], settings["validation"]
    networks.require_examples(given["dataset"], "settings.examples", examples, aside)
    require_images(given["dataset"])


class TrainingRun:
    """The study."""

    name = "training_run"
    settings_model = TrainingRunSettings

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run, before anything is measured."""
        require_whole_network(cell, "network")
        if len(cells.populations_of(cell)) > 1:
            raise ValueError(
                "a training run follows one gradient: give nes one population instead of a nested "
                "list."
            )
        if _surrogate(cell) == "matched":
            raise ValueError(
                "training_run trains with surrogates that layers can have, and matched is none: "
                "choose another, e.g. hardtanh."
            )
        for option in ("surrogate", "weight_surrogate"):
            given = cell["objective"].get(option) is not None
            if given and cell["estimator"]["name"] == "ste":
                raise ValueError(
                    f"ste trains with its own surrogates: leave out objective.{option}, and give "
                    f"it to the estimator."
                )
        setup.check(spec_of(cell))

    def forward_passes(self, cell: Cell) -> float:
        """Of all steps, three for each: backpropagation takes two more."""
        work = 3.0 if cell["estimator"]["name"] == "ste" else 1 + cells.nominal_passes(cell)
        return steps_of(cell) * work

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """Train, and give the epochs and the result."""
        spec = spec_of(cell)
        text = json.dumps(spec.identity(), sort_keys=True)
        folder = scratch / f"training-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
        key = cells.key_columns(cell, leave_out=("examples", "evaluation_examples"))
        key["train_examples"], key["evaluation_examples"] = images_of(cell)
        clock = time.perf_counter()
        try:
            result = training.run(spec, folder)
            epochs, final = result.epochs, result.final
        except training.Diverged as diverged:
            epochs, final = diverged.rows, {}
        seconds = time.perf_counter() - clock
        shutil.rmtree(folder, ignore_errors=True)
        rows: list[Row] = [{**key, **measured(row)} for row in epochs]
        best = (final.get("best") or {}).get("val_accuracy") or {}
        outcome: Row = {
            **key,
            **{name: optional_number(final.get(name)) for name in _RESULTS},
            "best_val_accuracy": optional_number(best.get("val_accuracy")),
            "epochs_done": sum(not row["diverged"] for row in epochs),
            "diverged": any(row["diverged"] for row in epochs),
            "seconds": seconds,
        }
        return {"training": rows, "training_result": [outcome]}


_RESULTS = (
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "ema_loss", "ema_accuracy",
    "test_loss", "test_accuracy", "flip_ratio", "images_per_second",
)  # fmt: skip
_EPOCH = (
    "epoch", "step", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "ema_loss",
    "ema_accuracy", "flip_ratio", "gradient_norm", "images_per_second", "seconds",
)  # fmt: skip


def measured(row: Mapping[str, Any], more: tuple[str, ...] = ()) -> Row:
    """An epoch's row as it is stored, with further columns that it may have."""
    present = [name for name in more if name in row]
    found: Row = {name: optional_number(row.get(name)) for name in (*_EPOCH, *present)}
    return {**found, "epoch": row["epoch"], "step": row["step"], "diverged": row["diverged"]}


def optional_number(value: Any) -> float | None:
    """A measurement as it is stored: None where there is none."""
    return None if value is None else number(value)


def _surrogate(cell: Cell) -> str | None:
    choice = cell["estimator"].get("surrogate")
    return choice.get("name") if isinstance(choice, Mapping) else choice


def images_of(cell: Cell) -> tuple[int, int]:
    """Images that are trained on, and those evaluated after every epoch."""
    sizes, settings = dict(data.find(cell["objective"]["dataset"]).sizes), cell["settings"]
    kept = round(sizes["train"] * (1 - settings["validation"]))
    evaluated = sizes["train"] - kept if settings["validation"] else sizes["test"]
    return settings["examples"] or kept, settings["evaluation_examples"] or evaluated


def steps_of(cell: Cell) -> int:
    """How many steps the run takes."""
    images, _ = images_of(cell)
    return int(cell["settings"]["epochs"] * max(1, images // cell["objective"]["batch_size"]))


def spec_of(cell: Cell) -> training.TrainingSpec:
    """The training spec that a cell stands for.

    Raises:
        ValueError: settings that do not make one.
    """
    objective, settings, estimator = cell["objective"], cell["settings"], cell["estimator"]
    model = {"name": objective["model"]}
    model |= {key: objective[key] for key in MODEL_OPTIONS if objective.get(key) is not None}
    options = {key: value for key, value in estimator.items() if value is not None}
    backpropagation = estimator["name"] == "ste"
    if backpropagation:
        model |= {key: value for key, value in options.items() if key != "name"}
    optional = {"clip": settings["clip"] or None, "ema": settings["ema"] or None}
    images = {key: settings[key] for key in ("examples", "evaluation_examples")}
    raw = {
        "name": "cell",
        "seed": cells.derived_seed(cell, 0, cell["init"], cell["batch"]),
        "threads": cell["threads"],
        "data": {
            "name": objective["dataset"],
            **{key: settings[key] for key in ("validation", "crop", "flip", "cutout", "mixup")},
            **images,
        },
        "model": model,
        "estimator": None if backpropagation else options,
        "optimizer": {
            "name": settings["optimizer"],
            "lr": settings["lr"],
            "weight_decay": settings["weight_decay"],
        },
        "schedule": {
            "warmup_epochs": settings["warmup_epochs"],
            **named(settings["schedule"], "schedule"),
        },
        "loop": {
            "epochs": settings["epochs"],
            "batch_size": objective["batch_size"],
            "precision": settings["precision"],
            "label_smoothing": settings["label_smoothing"],
            "device": objective["device"],
            **optional,
        },
    }
    return training.from_dict(raw, source="settings")


def seconds_of_step(spec: training.TrainingSpec) -> float:
    """Seconds of one training step, measured now on images of noise."""
    info = data.find(spec.data.name)
    batch = spec.loop.batch_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, *info.image_shape), generator=generator)
    classes = tuple(str(each) for each in range(info.num_classes))
    device = setup.resolve_device(spec.loop.device)
    labels = torch.randint(0, info.num_classes, (batch,), generator=generator)
    noise = Dataset(
        info.name, "train", pixels.to(torch.uint8).to(device), labels.to(device), classes,
        info.mean, info.std, {},
    )  # fmt: skip
    whole = spec.data.model_copy(update={"examples": None, "evaluation_examples": None})
    # three steps, each an epoch
    loop_of_three = spec.loop.model_copy(update={"epochs": max(3, spec.loop.epochs)})
    spec = spec.model_copy(update={"data": whole, "loop": loop_of_three})
    prepared, state = setup.prepare(spec, training.Datasets(noise, noise))
    gradients = prepared.gradients(prepared.phase(1)[0], state.model, lambda _: None)
    tally = loop.empty_tally(state.model, prepared)
    (pair,) = prepared.batches.epoch(1)
    taken = []
    for _ in range(3):
        clock = now()
        loop.take_step(state, prepared, gradients, pair, [], (tally, 0))
        taken.append(now() - clock)
    return min(taken)
