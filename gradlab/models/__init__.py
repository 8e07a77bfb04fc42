"""Network architectures, as pure functions of a parameter dict.

>>> create("mlp", num_dim=4, depth=2).layer_names
('layers.0.weight', 'layers.1.weight', 'layers.2.weight')
"""

from __future__ import annotations

from typing import Any

from gradlab._registry import Registry
from gradlab.models.mlp import BinarizedMLP

REGISTRY: Registry[BinarizedMLP] = Registry("model", group="gradlab.models")
REGISTRY.register("mlp")(BinarizedMLP)

__all__ = ["REGISTRY", "BinarizedMLP", "create", "names"]


def names() -> list[str]:
    """The registered models, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> BinarizedMLP:
    """The model called ``name``.

    Raises:
        ValueError: unknown name or option, or an option out of range.
    """
    return REGISTRY.create(name, **options)
