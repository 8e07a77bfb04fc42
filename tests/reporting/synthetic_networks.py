"""Synthetic tables of studies on networks, with the columns of real ones and a known truth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tests.reporting import synthetic
from tests.reporting.synthetic import CDG, LOCAL, MATCHED, NES, STES, Method

METHODS = [CDG, STES[0], STES[2], MATCHED, LOCAL[0], *NES[:2]]
LAYERS = ("first layer", "layer 7", "layer -2")
STUDENTS = (
    "fresh",
    *(f"{state} (6 epochs, 10000 images)" for state in ("early", "mid", "converged")),
)
SIZE = {"fresh": 1.0, "early": 0.5, "mid": 0.2, "converged": 0.02}
LRS = (0.001, 0.01, 0.03, 0.1, 0.3)


def thresholds(values: Sequence[float] = (0.25, 0.5, 1.0, 1.3, 2.0)) -> list[Method]:
    """The clipped STE, best at 1."""
    return [
        {"estimator": "ste", "label": "STE hardtanh" + option, "surrogate": "hardtanh" + option,
         "quality": 0.9 - 0.3 * abs(np.log(value))}
        for value in values
        for option in ["" if value == 1 else f"(threshold={value:g})"]
    ]  # fmt: skip


def problem(width: int, layers: str, student: str, **more: Any) -> dict[str, Any]:
    """The problem columns of a network."""
    return {
        "objective": "network", "dataset": "cifar10", "model": "xnor_resnet18", "width": width,
        "depth": None, "block": None, "weight": "real", "scaling": None, "activation": "binary",
        "layers": layers, "coordinates": None, "batch_size": 256, "student": student, **more,
    }  # fmt: skip


def loss_decrease(
    methods: Sequence[Method] = METHODS,
    widths: Sequence[int] = (8,),
    layers: Sequence[str] = LAYERS,
    students: Sequence[str] = STUDENTS,
    inits: int = 3,
    lrs: Sequence[float] = LRS,
    noise: float = 0.03,
    sizes: Mapping[str, float] = SIZE,
) -> pd.DataFrame:
    """Decreases that shrink with training: a method gains its quality times CDG's."""
    parts = []
    for seed, (width, layer, student) in enumerate(itertools.product(widths, layers, students)):
        rows = synthetic.loss_decrease(methods, [1], inits, 1, lrs, noise, seed)
        size = 0.1 * width * sizes[student.split()[0]] / (1 + LAYERS.index(layer))
        for column in ("loss_decrease", "loss_decrease_fresh"):
            rows[column] *= size
        rows = rows.drop(columns=["num_dim", "depth", "activation", "weight", "student"])
        parts.append(rows.assign(**problem(width, layer, student)))
    return pd.concat(parts, ignore_index=True)


def gradient_quality(
    methods: Sequence[Method] = METHODS,
    students: Sequence[str] = ("fresh", "converged"),
    depth: int = 19,
    inits: int = 3,
    slope: float = -0.15,
    noise: float = 0.02,
    seed: int = 0,
    **columns: Any,
) -> pd.DataFrame:
    """Norms that fall by exp(slope) from layer to layer, cosines that rise towards the output."""
    rng = np.random.default_rng(seed)
    rows = []
    for student, init, method in itertools.product(students, range(inits), methods):
        for index in [*range(depth), None]:
            place = depth - 1 if index is None else index
            cell, half = place // 2, ("first", "second")[place % 2]
            layer = "all" if index is None else f"cells.{cell}.{half}.convolution.weight"
            norm = 0.01 * np.exp(slope * place) * np.exp(0.1 * rng.normal())
            cosine = method["quality"] ** (1.5 - place / depth) - abs(noise * rng.normal())
            rows.append({
                "study": "gradient_quality", **problem(8, "all", student), "init": init, "batch": 0,
                "estimator": method["estimator"], "label": method["label"],
                **{option: method.get(option) for option in synthetic.OPTIONS}, "repeat": 0,
                "layer": layer, "depth_index": index, "cosine": cosine,
                "norm_ratio": method["quality"], "gradient_norm": norm * method["quality"],
                "reference_norm": 0.01 * np.exp(slope * place), "sign_agreement": 0.7,
                "reference": "cdg", "reference_epsilon": 0.1,
                "reference_split_half_cosine": None,
                "forward_passes": synthetic.forward_passes(method), "backward_passes": 0.0,
                "seconds": 1.0, "device": "cpu",
            } | columns)  # fmt: skip
    return pd.DataFrame(rows)


def trajectory(
    methods: Sequence[Method],
    layers: Sequence[str] = LAYERS,
    students: Sequence[str] = ("fresh",),
    inits: int = 3,
    steps: int = 5,
    **options: Any,
) -> pd.DataFrame:
    """Descents of a network, see :func:`synthetic.trajectory`."""
    parts = []
    for seed, (layer, student) in enumerate(itertools.product(layers, students)):
        rows = synthetic.trajectory(methods, [1], inits, steps, seed=seed, **options)
        rows = rows.drop(columns=["num_dim", "depth", "activation", "weight", "student"])
        parts.append(rows.assign(**problem(8, layer, student)))
    return pd.concat(parts, ignore_index=True)


DECAYS = (0.0, 1e-6, 3e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4)


def _run(width: int, decay: float, init: int, **settings: Any) -> dict[str, Any]:
    key = problem(width, "all", "fresh", weight="binary") | {"layers": None}
    return {
        "study": "training_run", **key, "init": init, "batch": 0, "estimator": "ste",
        "label": "STE hardtanh(threshold=1.3)", "surrogate": "hardtanh(threshold=1.3)",
        "epochs": 20, "optimizer": "adam", "lr": 1e-3, "weight_decay": decay, "schedule": "cosine",
        "clip": 5.0, "ema": 0.0, "validation": 0.0, "train_examples": 5000, "device": "cpu",
        **settings,
    }  # fmt: skip


def accuracy(width: int, decay: float) -> float:
    """Wide networks do better, and 1e-5 is the best weight decay."""
    away = abs(np.log10(max(decay, 1e-7) / 1e-5))
    return float(0.95 - 0.6 / width**0.5 - 0.02 * away)


def training_result(
    widths: Sequence[int] = (8, 16, 192),
    decays: Sequence[float] = DECAYS,
    inits: int = 3,
    noise: float = 0.003,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """One row per run."""
    rng = np.random.default_rng(seed)
    rows = []
    for width, decay, init in itertools.product(widths, decays, range(inits)):
        value = accuracy(width, decay) + noise * rng.normal()
        rows.append(_run(width, decay, init, **settings) | {
            "train_loss": 3 * (1 - value), "train_accuracy": value + 0.03, "val_loss": 1 - value,
            "val_accuracy": value, "ema_loss": None, "ema_accuracy": None,
            "best_val_accuracy": value + 0.01, "epochs_done": 20, "diverged": False,
            "seconds": 100.0,
        })  # fmt: skip
    return pd.DataFrame(rows)


def training(
    widths: Sequence[int] = (8, 16),
    decays: Sequence[float] = (0.0, 1e-5, 1e-4),
    inits: int = 3,
    epochs: int = 20,
    seed: int = 0,
    **settings: Any,
) -> pd.DataFrame:
    """One row per epoch: accuracies that approach those of :func:`training_result`."""
    rng = np.random.default_rng(seed)
    rows = []
    for width, decay, init in itertools.product(widths, decays, range(inits)):
        for epoch in range(1, epochs + 1):
            value = accuracy(width, decay) * (1 - 0.8 * np.exp(-epoch / 5)) + 0.01 * rng.normal()
            rows.append(_run(width, decay, init, **settings) | {
                "epoch": epoch, "step": 20 * epoch, "lr": 1e-3 * (1 - epoch / epochs),
                "train_loss": 3 * (1 - value) - 0.1, "train_accuracy": value + 0.03,
                "val_loss": 3 * (1 - value), "val_accuracy": value, "ema_loss": None,
                "ema_accuracy": None, "images_per_second": 1e3, "seconds": 5.0, "diverged": False,
            })  # fmt: skip
    return pd.DataFrame(rows)


def loss_slice(
    methods: Sequence[Method] = (STES[0], MATCHED, LOCAL[0], NES[1]),
    students: Sequence[str] = ("fresh", "converged"),
    layers: Sequence[str] = LAYERS,
    inits: int = 2,
    coordinates: int = 2,
    seed: int = 0,
) -> dict[str, pd.DataFrame]:
    """A staircase along a line of slope .1 (.01 when converged), and slopes near it."""
    rng = np.random.default_rng(seed)
    curves, slopes = [], []
    names = {"first layer": "cells.0.first.convolution.weight",
             "layer 7": "cells.3.first.convolution.weight",
             "layer -2": "cells.7.first.convolution.weight"}  # fmt: skip
    offsets = np.linspace(-0.5, 0.5, 101)
    for student, layer, init, coordinate in itertools.product(
        students, layers, range(inits), range(coordinates)
    ):
        true = 0.1 if student == "fresh" else 0.01
        flips = np.sort(rng.uniform(-0.5, 0.5, 40))
        steps = true * (1 / 40 + 0.02 * rng.normal(size=40))
        stairs = (steps * (offsets[:, None] > flips)).sum(axis=1)
        for method in methods:
            key = {
                "study": "loss_slice", **problem(8, layer, student), "coordinates": coordinates,
                "init": init, "batch": 0, "estimator": method["estimator"],
                "label": method["label"],
                **{option: method.get(option) for option in synthetic.OPTIONS}, "reach": 0.5,
                "fresh": True, "device": "cpu", "layer": names[layer], "coordinate": coordinate,
            }  # fmt: skip
            curves += [key | {"offset": x, "loss": 2.3 + value, "loss_fresh": 2.3 + 0.9 * value}
                       for x, value in zip(offsets, stairs, strict=True)]  # fmt: skip
            slope = true * method["quality"] * (1 + 0.5 * rng.normal())
            slopes.append(key | {"slope": slope, "chord_slope": stairs[-1] - stairs[0],
                                 "loss": 2.3, "forward_passes": 1.0, "backward_passes": 1.0,
                                 "seconds": 1.0})  # fmt: skip
    return {"loss_slice": pd.DataFrame(curves), "loss_slice_slopes": pd.DataFrame(slopes)}
