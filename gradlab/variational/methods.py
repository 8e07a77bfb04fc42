"""The registry of methods: what kind of noise a network gets.

A method is a small frozen dataclass of options that makes layers: ``linear(in, out, …)`` and
``conv2d(in, out, kernel, …)`` take everything that ``torch.nn.Linear`` and ``torch.nn.Conv2d``
take. :func:`gradlab.variational.to_variational` uses them to convert a whole network.
"""

from __future__ import annotations

from typing import Any, Protocol

from gradlab._registry import Registry
from gradlab.variational.base import StochasticLayer


class Method(Protocol):
    """A kind of noise, with its options."""

    def linear(self, *args: Any, **options: Any) -> StochasticLayer:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""

    def conv2d(self, *args: Any, **options: Any) -> StochasticLayer:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""


REGISTRY: Registry[Method] = Registry("variational method", group="gradlab.variational")
