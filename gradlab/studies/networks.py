"""Networks of real images in a cell: how they were trained, and how their columns are named."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from gradlab import data, models, objectives, training
from gradlab.evaluation.module.footprint import Footprint
from gradlab.objectives.network import MODEL_OPTIONS
from gradlab.studies.base import Cell, Row, derived_seed

# When in its training a network is measured, as a share of the epochs.
STATES = {"early": 0.1, "mid": 0.5, "converged": 1.0}

# Bytes per weight of all copies of a network, and what an evaluation of one batch may hold.
_COPIES = 24
_EVALUATION_BYTES = 2**28

# How a network is trained where the spec does not say.
TRAINING: dict[str, Any] = {"epochs": 20, "examples": None, "batch_size": 256, "lr": 1e-3}


def trained_weights(cell: Cell, scratch: Path) -> Path | None:
    """The weights and statistics of the cell's network; None for a fresh one.

    One run of straight-through training per (init, network, training) passes through all states:
    whoever needs one first trains as far as that, and who needs a later one goes on from there. A
    killed run goes on behind its last epoch; two workers take turns.
    """
    state = cell["student"]["state"]
    if state not in STATES:
        return None
    spec = training_spec(cell)
    epoch = max(1, round(STATES[state] * spec.loop.epochs))
    folder = scratch / f"network-{spec.digest()[:20]}"
    path = folder / f"weights-epoch-{epoch:04d}.safetensors"
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not path.exists():
                training.run(spec, folder, stop_after=epoch)
    return path


def training_spec(cell: Cell) -> training.TrainingSpec:
    """How the cell's network is trained: Adam, a cosine to 0, crops and flips, clipped at 5.

    Raises:
        ValueError: what does not make a training spec.
    """
    objective, student = cell["objective"], cell["student"]
    options = {key: objective[key] for key in MODEL_OPTIONS if objective.get(key) is not None}
    epochs = student["epochs"]
    return training.from_dict(
        {
            "name": "student",
            "seed": derived_seed(cell, 0, cell["init"]),
            "threads": cell["threads"],
            "data": {
                "name": objective["dataset"],
                "examples": student["examples"],
                "evaluation_examples": 200,  # nobody looks at it
            },
            "model": {"name": objective["model"], **options},
            "optimizer": {"name": "adam", "lr": float(student["lr"])},
            "schedule": {"name": "cosine"},
            "loop": {
                "epochs": epochs,
                "batch_size": student["batch_size"],
                "clip": 5.0,
                "device": objective["device"],
            },
            "checkpoint": {
                "keep": sorted({max(1, round(share * epochs)) for share in STATES.values()})
            },
        },
        source="student",
    )


def as_training_run(cell: Cell) -> dict[str, Any]:
    """The training of the cell's network as a cell of the study training_run, to be timed."""
    student = cell["student"]
    share = STATES[student["state"]]
    return {
        **cell,
        "study": "training_run",
        "objective": {
            **cell["objective"], "layers": None, "coordinates": None,
            "batch_size": student["batch_size"],
        },
        "estimator": {"name": "ste", "surrogate": "hardtanh", "weight_surrogate": None},
        "settings": {
            "epochs": max(1, round(share * student["epochs"])), "lr": student["lr"],
            "examples": student["examples"], "evaluation_examples": 200, "validation": 0.0,
            "crop": 4, "flip": True, "cutout": 0, "mixup": 0.0, "clip": 5.0, "ema": 0.0,
            "precision": "float32", "label_smoothing": 0.0, "optimizer": "adam",
            "weight_decay": 0.0, "schedule": "cosine", "warmup_epochs": 0.0,
        },
    }  # fmt: skip


def check_training(cell: Cell) -> None:
    """Refuse a network that cannot be trained as its student table says, in one sentence."""
    require_examples(cell["objective"]["dataset"], "student.examples", cell["student"]["examples"])
    not_trained = ("layers", "coordinates", "batch_size")
    objective = {k: v for k, v in cell["objective"].items() if k not in not_trained}
    state = {**cell["student"], "state": "converged"}
    _check_training(json.dumps([objective, state], sort_keys=True))


@lru_cache(maxsize=256)
def _check_training(text: str) -> None:
    # a sweep asks for every cell, and the answer is that of its network
    objective, student = json.loads(text)
    cell = {"seed": 0, "init": 0, "threads": 1, "objective": objective, "student": student}
    training.check(training_spec(cell))


def require_examples(dataset: str, key: str, examples: int | None, aside: float = 0.0) -> None:
    """Refuse more training images than a data set has.

    Args:
        dataset: its name.
        key: what the number is called in the spec.
        examples: how many are wanted; all if None.
        aside: the fraction that is set aside for validation.
    """
    available = round(dict(data.find(dataset).sizes)["train"] * (1 - aside))
    if examples is not None and examples > available:
        raise ValueError(
            f"{key} is {examples:,}, and {dataset} has {available:,} training images: give fewer, "
            "or leave it out for all."
        )


def _objective(cell: Cell) -> objectives.Network:
    """The cell's objective, of which only the options matter."""
    options = {key: value for key, value in cell["objective"].items() if key != "name"}
    made: Any = objectives.create(cell["objective"]["name"], **options)
    network: objectives.Network = made
    return network


def shapes_of(cell: Cell) -> dict[str, torch.Size]:
    """The shapes of the cell's parameters, by name, without computing anything."""
    network = _objective(cell)
    number = network.coordinates
    whole = {name: network.architecture.shapes[name] for name in network.layer_names}
    if number is None:
        return whole
    return {name: torch.Size([min(number, shape.numel())]) for name, shape in whole.items()}


def bytes_of(cell: Cell) -> int:
    """About what a worker holds beside its process: images, weights, and what runs on them.

    A step of training keeps what its whole batch makes on the way; an evaluation keeps within its
    bound, on the cell's batch and on the unseen one.
    """
    objective, student = cell["objective"], cell["student"]
    info = data.find(objective["dataset"])
    images = sum(size for _, size in info.sizes) * math.prod(info.image_shape)
    built = _objective(cell).architecture
    weights = sum(shape.numel() for shape in built.shapes.values())
    batch = student.get("batch_size", 0)
    if cell["study"] in ("training_run", "variational_run"):
        batch = objective["batch_size"] * cell["settings"].get("samples", 1)
    step = batch * _bytes_per_image(built.model, json.dumps(built.options, sort_keys=True))
    # once as they are, once in float32 and once in float64 for evaluation, or with Adam's moments
    return int(images + _COPIES * weights + max(step, 2 * _EVALUATION_BYTES))


@lru_cache(maxsize=256)
def _bytes_per_image(model: str, options: str) -> int:
    """Bytes that a forward pass makes of one image, counted without computing."""
    with torch.device("meta"):
        network = models.create(model, **json.loads(options))

    def made(images: int) -> int:
        with torch.device("meta"), Footprint() as footprint:
            network(torch.empty(images, *network.input_shape))
        total: int = footprint.total
        return total

    # what is made of the weights is made but once
    return (made(4) - made(2)) // 2


def depths_of(cell: Cell) -> dict[str, int]:
    """How many binarized layers stand before each of the cell's binarized layers."""
    return {name: index for index, name in enumerate(_objective(cell).architecture.layers)}


def columns_of(options: Row) -> Row:
    """A network's options as columns of a table.

    Its own surrogates get names of their own, for an estimator has a ``surrogate`` too; layers
    become words; options that were left out are no columns.

    >>> columns_of({"objective": "network", "width": 8, "surrogate": "ede", "layers": [0, -2],
    ...             "depth": None})
    {'objective': 'network', 'width': 8, 'network_surrogate': 'ede', 'layers': 'layers 0 and -2'}
    """
    found: Row = {}
    for key, value in options.items():
        if value is None:
            continue
        if key in ("surrogate", "weight_surrogate"):
            found[f"network_{key}"] = _words(value)
        elif key == "layers":
            found[key] = _layers(value)
        else:
            found[key] = value
    return found


def _words(surrogate: Any) -> str:
    if isinstance(surrogate, str):
        return surrogate
    options = ", ".join(f"{k}={v}" for k, v in sorted(surrogate.items()) if k != "name")
    return f"{surrogate['name']}({options})" if options else str(surrogate["name"])


def _layers(layers: Any) -> str:
    """Chosen layers in words.

    >>> _layers([0]), _layers([-1]), _layers([3, "stem"])
    ('first layer', 'last layer', 'layers 3 and stem')
    """
    given = list(layers) if isinstance(layers, list | tuple) else [layers]
    if given == [0]:
        return "first layer"
    if given == [-1]:
        return "last layer"
    if len(given) == 1:
        return f"layer {given[0]}"
    *most, last = (str(each) for each in given)
    return f"layers {', '.join(most)} and {last}"


def canonical_training(student: dict[str, Any]) -> dict[str, Any]:
    """A student table of a network with its defaults filled in.

    Raises:
        ValueError: a number that is none, or out of range.
    """
    full = student | {key: value for key, value in TRAINING.items() if key not in student}
    for key, least in (("epochs", 1), ("batch_size", 2), ("examples", 2)):
        value = full[key]
        if key == "examples" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"student.{key} is {value!r}: give a whole number from {least}.")
    lr = full["lr"]
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 0 < lr < float("inf"):
        raise ValueError(f"student.lr is {lr!r}: give a number above 0.")
    return full
