"""Losses as pure functions of a parameter dict.

>>> names()
['classifier', 'network', 'teacher_student', 'test_function']
>>> create("test_function", function="quadratic", num_dim=3).num_dim
3
"""

from __future__ import annotations

from typing import Any

from gradlab._registry import Registry
from gradlab.objectives.base import LayeredObjective, Objective
from gradlab.objectives.classification import Classification
from gradlab.objectives.classifier import Classifier
from gradlab.objectives.network import Network
from gradlab.objectives.teacher_student import TeacherStudent
from gradlab.objectives.test_functions import TestFunction

REGISTRY: Registry[Objective] = Registry("objective", group="gradlab.objectives")
REGISTRY.register("classifier")(Classifier)
REGISTRY.register("network")(Network)
REGISTRY.register("teacher_student")(TeacherStudent)
REGISTRY.register("test_function")(TestFunction)

LIST_OPTIONS = frozenset({("classifier", "layers"), ("network", "layers")})
"""Options whose value is a list; in a sweep they are not an axis."""

__all__ = [
    "LIST_OPTIONS",
    "REGISTRY",
    "Classification",
    "Classifier",
    "LayeredObjective",
    "Network",
    "Objective",
    "TeacherStudent",
    "TestFunction",
    "create",
    "defaults",
    "names",
]


def names() -> list[str]:
    """The registered objectives, sorted."""
    return REGISTRY.names()


def defaults(name: str) -> dict[str, Any]:
    """Every option of an objective that has a default, with that default."""
    return REGISTRY.defaults(name)


def create(name: str, **options: Any) -> Objective:
    """The objective called ``name``.

    Raises:
        ValueError: unknown name or option, missing option, or one out of range.
    """
    return REGISTRY.create(name, **options)
