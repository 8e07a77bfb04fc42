"""Gradient estimators of binarized networks, one file each.

>>> names()
['cdg', 'nes', 'nes_local', 'sr_ste', 'ste']
>>> create("nes", population=100).label()
'NES 100'
>>> create("ness")
Traceback (most recent call last):
    ...
ValueError: unknown estimator 'ness': did you mean 'nes'? Valid: cdg, nes, nes_local, sr_ste, ste.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradlab._registry import Registry
from gradlab.estimators.base import Estimator, GradientEstimate, cosine
from gradlab.estimators.cdg import CDG
from gradlab.estimators.nes import NES
from gradlab.estimators.nes_local import NESLocal
from gradlab.estimators.sr_ste import SRSTE
from gradlab.estimators.ste import STE

REGISTRY: Registry[Estimator] = Registry("estimator", group="gradlab.estimators")
for _name, _factory in {
    "cdg": CDG,
    "nes": NES,
    "nes_local": NESLocal,
    "sr_ste": SRSTE,
    "ste": STE,
}.items():
    REGISTRY.register(_name)(_factory)

LIST_OPTIONS = frozenset({("nes", "population"), ("nes_local", "layers")})
"""Options whose value may itself be a list; in a sweep they are not an axis."""

__all__ = [
    "CDG",
    "LIST_OPTIONS",
    "NES",
    "REGISTRY",
    "SRSTE",
    "STE",
    "Estimator",
    "GradientEstimate",
    "NESLocal",
    "cosine",
    "create",
    "defaults",
    "label",
    "names",
]


def names() -> list[str]:
    """The registered estimators, sorted."""
    return REGISTRY.names()


def defaults(name: str) -> dict[str, Any]:
    """Every option of an estimator with its default."""
    return REGISTRY.defaults(name)


def create(name: str, **options: Any) -> Estimator:
    """The estimator called ``name``.

    Raises:
        ValueError: unknown name or option (the nearest valid one is suggested), or one out of
            range.
    """
    return REGISTRY.create(name, **options)


def label(name: str, options: Mapping[str, Any]) -> str:
    """The display name of an estimator with its options.

    >>> label("ste", {"surrogate": "matched"})
    'matched STE'
    """
    return create(name, **options).label()
