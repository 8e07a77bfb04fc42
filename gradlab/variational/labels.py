"""What methods are called in figures and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {
    "none": "no noise",
    "bernoulli": "Bernoulli dropout",
    "gaussian_s": "Gaussian S",
    "gaussian_w": "Gaussian W",
    "variational_a": "variational A",
    "variational_b": "variational B",
    "sparse": "sparse VD",
    "sparse_a": "sparse VD A",
    "hierarchical": "hierarchical VD",
    "hierarchical_a": "hierarchical VD A",
    "ard": "ARD",
    "bayes_by_backprop": "Bayes by Backprop",
    "concrete": "concrete dropout",
    "l0": "L0",
    "normal_jeffreys": "normal-Jeffreys",
    "bernoulli_weights": "LR-net",
    "bayes_binn": "BayesBiNN",
}


def label(name: str, options: Mapping[str, Any] | None = None) -> str:
    """The display name of a method, whatever its options: tables name those that differ.

    >>> label("sparse"), label("somebody_elses")
    ('sparse VD', 'somebody elses')
    """
    return LABELS.get(name, name.replace("_", " "))
