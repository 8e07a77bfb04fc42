"""Synthetic tables of training runs with noise, with the columns of real ones and a known truth."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Method = dict[str, Any]

NONE: Method = {"estimator": "none", "label": "no noise", "mean": 0.984, "gap": 0.0}
DROPOUT: Method = {
    "estimator": "gaussian_s", "label": "Gaussian S", "p": 0.5, "side": "input", "mean": 0.987,
    "gap": 0.02,
}  # fmt: skip
SPARSE: Method = {
    "estimator": "sparse", "label": "sparse VD", "noise": "preactivations",
    "parameterization": "log_sigma2", "mode": "correct", "threshold": 3.0, "mean": 0.985,
    "gap": 0.005, "sparsity": (0.97, 0.93, 0.6),
}  # fmt: skip
ARD: Method = {
    **SPARSE, "estimator": "hierarchical", "label": "hierarchical VD", "mean": 0.982, "gap": 0.001,
    "sparsity": (0.9, 0.8, 0.3),
}  # fmt: skip
BAYES: Method = {
    "estimator": "bayes_by_backprop", "label": "Bayes by Backprop", "prior": "gaussian",
    "bayes_by_backprop_estimator": "weights", "mean": 0.986, "gap": 0.003,
}  # fmt: skip
METHODS = [NONE, DROPOUT, SPARSE, ARD, BAYES]
OWN = ("mean", "gap", "sparsity")
SIZES = (235_200, 30_000, 1_000)
LAYERS = ("layers.0", "layers.1", "layers.2")
KEY = {
    "study": "variational_run", "objective": "classifier", "dataset": "mnist",
    "model": "fully_connected", "hidden": json.dumps([300, 100]), "layers": None, "weights": None,
    "batch_size": 100, "student": "fresh", "batch": 0,
}  # fmt: skip
SETTINGS = {
    "epochs": 20, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0,
    "schedule": "linear(hold=0.5)", "warmup_epochs": 0.0, "clip": 0.0, "precision": "float32",
    "crop": 0, "flip": False, "validation": 0.0, "convert": "all",
    "kl_weight": "linear(start=5, length=15)", "samples": 1, "evaluation_samples": 10,
    "pretrain_epochs": 0, "random_labels": False, "train_examples": 60_000,
    "evaluation_examples": 10_000, "device": "cpu",
}  # fmt: skip


def _keys(methods: Sequence[Method], inits: int, changes: Mapping[str, Any]) -> list[Any]:
    """Every run's key columns, its method, and a generator of its noise."""
    given = {k: json.dumps(v) if isinstance(v, list) else v for k, v in changes.items()}
    names = sorted({option for method in methods for option in method} - {"estimator", *OWN})
    # tables have every option of every method as a column
    return [
        (KEY | {"init": init, "estimator": method["estimator"]}
         | {name: method.get(name) for name in names} | SETTINGS | given,
         method, np.random.default_rng([init, number]))
        for (number, method), init in itertools.product(enumerate(methods), range(inits))
    ]  # fmt: skip


def _compression(method: Method) -> float:
    kept = sum((1 - s) * n for s, n in zip(method["sparsity"], SIZES, strict=True))
    return sum(SIZES) / kept


def results(
    methods: Sequence[Method] = METHODS, inits: int = 3, noise: float = 0.0005, **changes: Any
) -> pd.DataFrame:
    """One row per run: a method's ``mean`` accuracy, ``gap`` less by one draw."""
    rows = []
    for key, method, rng in _keys(methods, inits, changes):
        mean = method["mean"] + noise * rng.normal()
        found = {"mean": mean, "sample": mean - method["gap"],
                 "monte_carlo": mean - method["gap"] / 10}  # fmt: skip
        row = key | {
            "train_loss": 3 * (1 - mean), "train_accuracy": mean + 0.01, "train_nll": 1 - mean,
            "kl": 1000.0, "kl_weight_now": 1.0, "val_loss": 2 * (1 - mean), "val_accuracy": mean,
            "sample_accuracy": found["sample"], "last_val_accuracy": mean,
            "last_sample_accuracy": found["sample"], "best_val_accuracy": mean + 0.002,
            "best_sample_accuracy": found["sample"] + 0.002, "epochs_done": 20, "diverged": False,
            "seconds": 60.0, "images_per_second": 1e5,
        }  # fmt: skip
        if "sparsity" in method:
            found["pruned"] = mean - 0.001
            row |= {
                "pruned_accuracy": mean - 0.001,
                "last_pruned_accuracy": mean - 0.001,
                "compression": _compression(method),
                "last_compression": _compression(method),
            }
        for kind, accuracy in found.items():
            row |= {f"final_{kind}_accuracy": accuracy,
                    f"final_{kind}_negative_log_likelihood": 3 * (1 - accuracy),
                    f"final_{kind}_calibration_error": 0.01,
                    f"final_{kind}_predictive_entropy": 0.1,
                    f"final_{kind}_mutual_information": 0.01}  # fmt: skip
        rows.append(row)
    return pd.DataFrame(rows)


def _grown(epoch: int, epochs: int) -> float:
    return 1 - np.exp(-4 * epoch / epochs)


def training(
    methods: Sequence[Method] = METHODS, inits: int = 3, epochs: int = 12, **changes: Any
) -> pd.DataFrame:
    """One row per epoch; the KL term is a tenth of the objective."""
    rows = []
    for key, method, rng in _keys(methods, inits, changes):
        for epoch in range(1, epochs + 1):
            mean = method["mean"] - 0.1 * np.exp(-epoch / 3) + 0.0005 * rng.normal()
            row = key | {
                "epoch": epoch, "step": 600 * epoch, "lr": 1e-3 * (1 - epoch / epochs),
                "train_loss": 3 * (1 - mean) + 0.1, "train_accuracy": mean + 0.005,
                "train_nll": 3 * (1 - mean), "kl": 1000.0, "kl_weight_now": 1.0,
                "val_loss": 4 * (1 - mean), "val_accuracy": mean,
                "sample_loss": 5 * (1 - mean), "sample_accuracy": mean - method["gap"],
                "ema_loss": None, "ema_accuracy": None, "flip_ratio": None, "seconds": 1.0,
                "diverged": False,
            }  # fmt: skip
            if "sparsity" in method:
                grown = _grown(epoch, epochs)
                part = {**method, "sparsity": [s * grown for s in method["sparsity"]]}
                row |= {"pruned_accuracy": mean - 0.002, "pruned_loss": 4.5 * (1 - mean),
                        "compression": _compression(part)}  # fmt: skip
            rows.append(row)
    return pd.DataFrame(rows)


def layer_sparsity(
    methods: Sequence[Method] = METHODS,
    inits: int = 3,
    epochs: int = 12,
    layers: Sequence[str] = LAYERS,
    sizes: Sequence[int] = SIZES,
    **changes: Any,
) -> pd.DataFrame:
    """A row per layer and recorded epoch; nothing is pruned by methods that do not prune."""
    rows = []
    for key, method, _ in _keys(methods, inits, changes):
        for epoch in [e for e in range(1, epochs + 1) if e % 3 == 0 or e == epochs]:
            grown = 1.0 if epoch == epochs else _grown(epoch, epochs)
            for layer, size, s in zip(layers, sizes, method.get("sparsity", (0, 0, 0)),
                                      strict=True):  # fmt: skip
                kept = round(size * (1 - s * grown))
                rows.append(key | {"epoch": epoch, "layer": layer, "weights": size, "kept": kept,
                                   "sparsity": 1 - kept / size})  # fmt: skip
    return pd.DataFrame(rows)


def log_alpha(
    methods: Sequence[Method] = (SPARSE, ARD), inits: int = 3, **changes: Any
) -> pd.DataFrame:
    """Two humps, one on either side of the threshold: weights that are kept and removed."""
    edges = np.linspace(-10, 10, 41)
    rows = []
    for key, method, _ in _keys(methods, inits, changes):
        for layer, size, s in zip(LAYERS, SIZES, method["sparsity"], strict=True):
            values = np.concatenate([np.full(round(20 * s), 6.0), np.full(round(20 * (1 - s)), -4)])
            counts, _ = np.histogram(values, edges)
            for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
                rows.append(key | {"layer": layer, "low": low, "high": high,
                                   "count": int(count) * size // 20})  # fmt: skip
    return pd.DataFrame(rows)


def kept_inputs(
    methods: Sequence[Method] = (SPARSE, ARD), inits: int = 2, side: int = 28, channels: int = 1,
    **changes: Any,
) -> pd.DataFrame:  # fmt: skip
    """Only pixels in the middle are seen; the more, the less sparse the layer is."""
    rows = []
    for key, method, _ in _keys(methods, inits, changes):
        most = 300 * (1 - method["sparsity"][0])
        for channel, row, column in itertools.product(range(channels), range(side), range(side)):
            away = np.hypot(row - side / 2, column - side / 2) / (side / 2)
            kept = round(max(0.0, 1 - away) * most)
            rows.append(key | {"channel": channel, "row": row, "column": column, "kept": kept})
    return pd.DataFrame(rows)
