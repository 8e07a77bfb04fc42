"""Synthetic tables with the columns and shapes of real studies, and with a known truth."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradlab.sweep.cells import hash_of
from gradlab.sweep.store import FILE, Store

Method = dict[str, Any]

CDG: Method = {"estimator": "cdg", "label": "CDG", "epsilon": 0.1, "quality": 1.0}
STES: list[Method] = [
    {"estimator": "ste", "label": f"STE {name}", "surrogate": name, "quality": quality}
    for name, quality in [
        ("hardtanh", 0.9),
        ("steep", 0.86),
        ("swish_sign", 0.92),
        ("polynomial", 0.89),
    ]
]
NES: list[Method] = [
    {"estimator": "nes", "label": f"NES {p:,}", "population": p, "sigma": 0.1, "quality": quality}
    for p, quality in [(500, 0.25), (5_000, 0.6), (50_000, 0.85)]
]
LOCAL: list[Method] = [
    {
        "estimator": "nes_local",
        "label": f"local NES ({p} passes)",
        "passes": p,
        "sigma": 0.1,
        "quality": quality,
    }
    for p, quality in [(2, 0.88), (8, 0.95)]
]
MATCHED: Method = {
    "estimator": "ste", "label": "matched STE", "surrogate": "matched", "quality": 0.97,
}  # fmt: skip
SEARCHES: list[Method] = [
    {"estimator": "snes", "label": "SNES", "quality": 0.6},
    *({"estimator": "descent", "label": "STE hardtanh descent", "surrogate": "hardtanh",
       "lr": lr, "quality": quality} for lr, quality in [(0.01, 0.5), (0.1, 0.9)]),
]  # fmt: skip
METHODS = [CDG, *STES, MATCHED, *LOCAL, *NES]
PASSES = {"ste": 1.0, "cdg": 2.0 * 3_104}
OPTIONS = ("surrogate", "epsilon", "population", "sigma", "passes", "fitness", "noise")


def _keys(method: Method, num_dim: int, init: int, batch: int) -> dict[str, Any]:
    return {
        "study": "loss_decrease", "num_dim": num_dim, "depth": 3, "activation": "binary",
        "weight": "real", "batch_size": 16_384, "student": "fresh", "init": init, "batch": batch,
        "estimator": method["estimator"], "label": method["label"],
        **{option: method.get(option) for option in OPTIONS}, "normalize": "tensor",
    }  # fmt: skip


def forward_passes(method: Method) -> float:
    """The estimator's definitional cost."""
    return float(
        PASSES.get(method["estimator"], method.get("population") or method.get("passes") or 1)
    )


def loss_decrease(
    methods: Sequence[Method] = METHODS,
    num_dims: Sequence[int] = (2, 4, 8, 16, 32),
    inits: int = 3,
    batches: int = 3,
    lrs: Sequence[float] = tuple(np.logspace(-5, 0, 16)),
    noise: float = 0.03,
    seed: int = 0,
    **columns: Any,
) -> pd.DataFrame:
    """A step of length lr on a parabola: quality · height · (2u − u²), u = lr / best lr.

    Without noise every method's best decrease is exactly its quality times CDG's, at equal lr.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for num_dim, init in itertools.product(num_dims, range(inits)):
        height = (
            0.1 * (1 + 0.3 * np.log2(num_dim)) * np.exp(noise * 10 * rng.normal() / num_dim**0.5)
        )
        for method, batch in itertools.product(methods, range(batches)):
            quality = method["quality"] * np.exp(noise * rng.normal())
            for lr in lrs:
                u = lr / 0.1
                fall = quality * height * (2 * u - u * u)
                rows.append(
                    _keys(method, num_dim, init, batch)
                    | {
                        "lr": lr, "loss_before": 1.0, "loss_after": 1.0 - fall,
                        "loss_decrease": fall,
                        "loss_decrease_fresh": 0.98 * fall,
                        "forward_passes": forward_passes(method),
                        "backward_passes": 1.0 if method["estimator"] == "ste" else 0.0,
                        "seconds": 0.002 * forward_passes(method), "device": "cpu",
                    }
                    | columns
                )  # fmt: skip
    return pd.DataFrame(rows)


def gradient_quality(
    methods: Sequence[Method] = METHODS,
    num_dims: Sequence[int] = (32,),
    inits: int = 3,
    repeats: int = 2,
    depth: int = 3,
    noise: float = 0.02,
    seed: int = 0,
    **columns: Any,
) -> pd.DataFrame:
    """Cosines that rise with the layer and with the number of samples."""
    rng = np.random.default_rng(seed)
    names = [f"layers.{i}.weight" for i in range(depth + 1)] + ["hidden", "all"]
    rows = []
    for num_dim, init, method in itertools.product(num_dims, range(inits), methods):
        for repeat, (position, layer) in itertools.product(range(repeats), enumerate(names)):
            depth_bonus = 1.0 if layer in ("hidden", "all") else (position + 1) / (depth + 1)
            cosine = method["quality"] ** (1 / depth_bonus**1.5) - abs(noise * rng.normal())
            rows.append(
                _keys(method, num_dim, init, 0)
                | {
                    "study": "gradient_quality", "repeat": repeat, "layer": layer, "cosine": cosine,
                    "norm_ratio": method["quality"], "sign_agreement": 0.5 + cosine / 2,
                    "split_half_cosine": cosine**2, "relative_bias": 1 - cosine,
                    "relative_variance": 1 / forward_passes(method), "reference": "cdg",
                    "reference_split_half_cosine": 0.995, "forward_passes": forward_passes(method),
                    "backward_passes": 1.0 if method["estimator"] == "ste" else 0.0,
                    "seconds": 0.002 * forward_passes(method), "device": "cpu",
                }
                | columns
            )  # fmt: skip
    return pd.DataFrame(rows)


def search_run(
    methods: Sequence[Method] = SEARCHES, inits: int = 3, steps: int = 10, **columns: Any
) -> pd.DataFrame:
    """Searches whose best loss falls geometrically, and whose mean is a little worse."""
    rows = []
    for init, method, step in itertools.product(range(inits), methods, range(steps + 1)):
        best = (1 + 0.1 * init) * math.exp(-0.2 * method["quality"] * step)
        descent = method["estimator"] == "descent"
        rows.append(
            _keys(method, 8, init, 0)
            | {
                "study": "search_run", "step": step, "budget": 20, "lr": method.get("lr"),
                "learning_rate": 1.0, "loss": 1.2 * best, "best_loss": best,
                "best_loss_fresh": 1.1 * best, "forward_passes": step * (1.0 if descent else 2.0),
                "backward_passes": float(step) if descent else 0.0, "seconds": 0.01 * step,
                "width_mean": None if descent else 0.1, "device": "cpu",
            }
            | columns
        )  # fmt: skip
    return pd.DataFrame(rows)


def trajectory(
    methods: Sequence[Method] = (CDG, STES[0], *LOCAL, NES[0]),
    num_dims: Sequence[int] = (8, 32),
    inits: int = 3,
    steps: int = 40,
    budgets: Sequence[str] = ("forward_passes", "seconds"),
    seed: int = 0,
    **columns: Any,
) -> pd.DataFrame:
    """Losses that decay geometrically, faster for a better estimator."""
    rng = np.random.default_rng(seed)
    rows = []
    for num_dim, init, method, budget in itertools.product(
        num_dims, range(inits), methods, budgets
    ):
        start = 1.0 + 0.1 * rng.normal()
        speed = 0.06 * method["quality"] * np.exp(0.05 * rng.normal())
        tempo = 0.002 * forward_passes(method) * np.exp(0.1 * rng.normal())
        for step in range(steps + 1):
            loss = start * (0.02 + 0.98 * np.exp(-speed * step))
            rows.append(
                _keys(method, num_dim, init, 0)
                | {
                    "study": "trajectory", "step": step, "budget": budget,
                    "forward_passes": step * forward_passes(method),
                    "backward_passes": float(step) if method["estimator"] == "ste" else 0.0,
                    "seconds": step * tempo, "loss": loss, "loss_fresh": 1.03 * loss,
                    "device": "cpu",
                }
                | columns
            )  # fmt: skip
    return pd.DataFrame(rows)


SPEC: dict[str, Any] = {
    "name": "quickstart", "title": "How far does one step bring the loss down?",
    "description": "Every estimator takes one step.\n\nWhich one points downhill?",
    "study": "loss_decrease", "seed": 0, "threads": 1, "inits": 3, "batches": 3, "figures": None,
    "student": {}, "objective": {"name": "teacher_student", "num_dim": [2, 8]},
    "settings": {"lr": [0.01, 0.1], "normalize": "tensor"},
    "estimators": [{"name": "cdg"}, {"name": "ste", "surrogate": "hardtanh"}],
}  # fmt: skip
PROVENANCE = {
    "gradlab": "0.1.0", "code": "0123456789ab", "commit": None, "torch": "2.13.0", "python": "3.11",
    "machine": "Linux x86_64, a processor, 2 cores", "started": "2026-01-02T03:04:05+00:00",
    "seconds": 1.5, "warnings": [],
}  # fmt: skip
TRACEBACK = (
    'Traceback (most recent call last):\n  File "cdg.py", line 1, in estimate\n'
    "ValueError: <b>bold</b> & broken\n"
)


def store(
    folder: Path,
    tables: dict[str, pd.DataFrame],
    failed: int = 0,
    missing: int = 0,
    **spec: Any,
) -> Path:
    """A study's folder whose store holds these tables, one cell per problem, label, init, batch.

    The first cells are left out: ``missing`` of them were never run, ``failed`` more failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = ["num_dim", "width", "weight_decay", "label", "init", "batch"]
    cells: dict[tuple[Any, ...], dict[str, pd.DataFrame]] = {}
    for name, frame in tables.items():
        present = [key for key in keys if key in frame]
        for values, rows in frame.groupby(present, sort=False):
            key = tuple(dict(zip(present, values, strict=True)).get(k, 0) for k in keys)
            cells.setdefault(key, {})[name] = rows
    configs = {
        hash_of(config): (config, found)
        for key, found in cells.items()
        for config in [
            {
                "schema": 1, "study": "loss_decrease", "seed": 0, "threads": 1,
                "objective": {"name": "teacher_student", "num_dim": int(key[0]), "width": key[1]},
                "settings": {"weight_decay": key[2]}, "estimator": {"name": str(key[3])},
                "init": int(key[4]), "batch": int(key[5]),
            }
        ]
    }  # fmt: skip
    with Store(folder / FILE, writable=True) as made:
        made.select(
            [(key, config) for key, (config, _) in configs.items()],
            spec={**SPEC, **spec},
            environment={"machine": PROVENANCE["machine"], "python": "3.11", "packages": {}},
        )
        for number, (key, (config, found)) in enumerate(configs.items()):
            if number < missing:
                continue
            if number < missing + failed:
                made.save_failure(key, config, TRACEBACK, PROVENANCE)
                continue
            rows = {name: _records(frame) for name, frame in found.items()}
            made.save(key, config, rows, PROVENANCE)
    return folder


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    plain = frame.astype(object).where(frame.notna(), None)
    return [
        {
            key: value.item() if isinstance(value, np.generic) else value
            for key, value in row.items()
        }
        for row in plain.to_dict("records")
    ]
