"""Small images with something to learn in them, and a spec that learns it in a second."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradlab import training
from gradlab.data import Dataset
from gradlab.training import Datasets, TrainingSpec

SHAPE = (1, 6, 6)
CLASSES = ("dark", "left", "right")


def images(number: int, seed: int, shape: tuple[int, int, int] = SHAPE) -> Dataset:
    """Noise, with a bright half or none by class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(CLASSES), (number,), generator=generator)
    noise = torch.randint(0, 100, (number, *shape), generator=generator)
    half = shape[2] // 2
    bright = torch.zeros(number, *shape, dtype=torch.int64)
    bright[labels == 1, ..., :half] = 90
    bright[labels == 2, ..., half:] = 90
    pixels = (noise + bright).to(torch.uint8)
    split = "train" if seed == 0 else "test"
    record = {"seed": seed, "size": number}
    mean, std = (0.3,) * shape[0], (0.25,) * shape[0]
    return Dataset("tiny", split, pixels, labels, CLASSES, mean, std, record)


def datasets(number: int = 96, test: bool = False, **options: Any) -> Datasets:
    """A training set, and images to evaluate on."""
    return Datasets(
        images(number, 0, **options),
        images(60, 1, **options),
        images(30, 2, **options) if test else None,
    )


TIMES = ("seconds", "images_per_second")

RAW: dict[str, Any] = {
    "name": "tiny",
    "threads": 1,
    "data": {"name": "mnist", "crop": 0, "flip": False},
    "model": {"name": "xnor_mlp", "width": 12, "depth": 1},
    "optimizer": {"name": "adam", "lr": 0.01},
    "loop": {"epochs": 3, "batch_size": 32, "device": "cpu"},
}


def spec(**changes: Any) -> TrainingSpec:
    """The tiny spec; tables are merged, ``None`` leaves a key out."""
    raw: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in RAW.items()}
    for key, value in changes.items():
        known = raw.get(key)
        merged = (
            {**known, **value} if isinstance(known, dict) and isinstance(value, dict) else value
        )
        raw[key] = merged
        if key == "model" and isinstance(value, dict) and "name" in value:
            raw[key] = value
    return training.from_dict({key: value for key, value in raw.items() if value is not None})


def weights(path: Any) -> dict[str, Tensor]:
    """The tensors of a weights file."""
    from safetensors.torch import load_file

    return load_file(path)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal to the last bit."""
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def log(folder: Path) -> list[dict[str, str]]:
    """The log without what a clock measured."""
    with (folder / "log.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]
