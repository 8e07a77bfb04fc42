"""A synthetic gradient-variance table with the columns of a real one and a known truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Method = dict[str, Any]

# relative variance of one estimate, all layers together, and its passes
METHODS: list[Method] = [
    {"estimator": "pathwise", "label": "pathwise on weights", "noise": "weights",
     "noise_scale": "absolute", "sigma": 0.1, "passes": 1, "variance": 8.0, "cost": 2},
    {"estimator": "pathwise", "label": "pathwise with flipout", "noise": "flipout",
     "noise_scale": "absolute", "sigma": 0.1, "passes": 1, "variance": 4.0, "cost": 4},
    {"estimator": "pathwise", "label": "pathwise on pre-activations", "noise": "preactivations",
     "noise_scale": "absolute", "sigma": 0.1, "passes": 1, "variance": 1.0, "cost": 4},
    {"estimator": "pathwise", "label": "pathwise on weights, additive σ = 2|θ|",
     "noise": "weights", "noise_scale": "relative", "sigma": 2.0, "passes": 1, "variance": 2.0,
     "cost": 2},
    {"estimator": "pathwise", "label": "pathwise on weights, multiplicative σ = 2|θ|",
     "noise": "weights", "noise_scale": "multiplicative", "sigma": 2.0, "passes": 1,
     "variance": 5.0, "cost": 2},
    {"estimator": "score_function", "label": "score on weights, P = 100", "noise": "weights",
     "population": 100, "sigma": 0.1, "variance": 600.0, "cost": 100},
]  # fmt: skip
LAYERS = {"features.0.weight": 0.5, "classifier.0.weight": 2.0, "all": 1.0}
OPTIONS = ("noise", "noise_scale", "sigma", "passes", "population")


def gradient_variance(
    methods: Sequence[Method] = METHODS,
    inits: int = 3,
    students: Sequence[str] = ("fresh", "trained (2 epochs)"),
    bias_z: float = 0.5,
) -> pd.DataFrame:
    """Every init has its own scale, which ratios of methods do not see; training doubles all."""
    rows = []
    for init in range(inits):
        scale = float(np.random.default_rng(init).uniform(0.5, 2.0))
        for number, student in enumerate(students):
            for method in methods:
                for depth, (layer, share) in enumerate(LAYERS.items()):
                    variance = method["variance"] * share * scale * (1 + number)
                    rows.append({
                        "study": "gradient_variance", "objective": "classifier",
                        "dataset": "mnist", "model": "lenet5_caffe",
                        "hidden": json.dumps([500]), "layers": None, "batch_size": 100,
                        "weights": None, "student": student, "init": init, "batch": 0,
                        "estimator": method["estimator"], "label": method["label"],
                        **{option: method.get(option) for option in OPTIONS},
                        "device": "cpu", "layer": layer,
                        "depth_index": None if layer == "all" else depth,
                        "relative_variance": variance,
                        "relative_variance_per_pass": variance * method["cost"],
                        "signal_to_noise": variance**-0.5, "cosine": (1 + variance) ** -0.5,
                        "relative_bias": 0.25, "bias_z": bias_z if layer == "all" else -bias_z,
                        "gradient_variance": variance, "reference_norm": 1.0,
                        "reference_split_half_cosine": 0.998,
                        "reference": "pathwise on pre-activations",
                        "forward_passes": method["cost"] / 2,
                        "backward_passes": method["cost"] / 2, "seconds": 0.01,
                    })  # fmt: skip
    return pd.DataFrame(rows)
