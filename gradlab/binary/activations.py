r"""Activations of few levels, from binary to full precision, with their surrogate derivatives.

An activation of levels L₀ < … < Lₙ and thresholds t₁ < … < tₙ takes level Lₖ where
tₖ ≤ x < tₖ₊₁ (with t₀ = −∞ and tₙ₊₁ = ∞); NaN stays NaN. ``levels`` and ``thresholds`` hold them
as tuples, so ``thresholds[k - 1]`` is the left edge of ``levels[k]``; both are None for ``full``.

========================  ================================  ==================================
name                      forward                           derivative
========================  ================================  ==================================
binary                    sign(x)                           any surrogate, by default hardtanh
ternary, 2bit, kbit       round(n·clip(x, 0, 1))/n          1 where 0 ≤ x ≤ 1, else 0
decoupled_ternary         ½(1[x ≥ ¼] + 1[x ≥ ¾])            each half its own
full                      clip(x, 0, 1)                     1 where 0 ≤ x ≤ 1, else 0
========================  ================================  ==================================

>>> names()
['2bit', 'binary', 'decoupled_ternary', 'full', 'kbit', 'ternary']
>>> ternary = create("ternary")
>>> ternary.levels, ternary.thresholds
((0.0, 0.5, 1.0), (0.25, 0.75))
>>> ternary.forward(torch.tensor([-1.0, 0.25, 0.7, 2.0]))
tensor([0.0000, 0.5000, 0.5000, 1.0000])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradlab._registry import Registry
from gradlab.binary.sign import sign
from gradlab.binary.straight_through import Rule, straight_through
from gradlab.binary.surrogates import Hardtanh, StochasticSurrogate, binarize, where

AnySurrogate = Rule | StochasticSurrogate


class Activation(Protocol):
    """One activation; see the module's docstring for ``levels`` and ``thresholds``."""

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The output values, ascending, or None if they are a continuum."""

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """Where the output jumps, ascending: one fewer than levels."""

    def forward(self, x: Tensor) -> Tensor:
        """The value; same shape, dtype and device as x."""

    def derivative(self, x: Tensor, surrogate: Rule | None = None) -> Tensor:
        """What the backward pass multiplies by."""

    def apply(self, x: Tensor, surrogate: AnySurrogate | None = None) -> Tensor:
        """``forward(x)``, differentiable with ``derivative(x, surrogate)``.

        Raises:
            ValueError: this activation cannot use that surrogate (see :meth:`check`).
        """

    def check(self, surrogate: AnySurrogate | None) -> None:
        """Raise a ValueError, in one sentence, if ``surrogate`` cannot serve this activation."""


REGISTRY: Registry[Activation] = Registry("activation", group="gradlab.activations")


def names() -> list[str]:
    """The registered activations, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> Activation:
    """The activation called ``name``; only ``kbit`` has an option, ``bits``.

    Raises:
        ValueError: unknown name or option, or an option out of range.

    >>> create("kbit", bits=2) == create("2bit")
    True
    """
    return REGISTRY.create(name, **options)


def _refuse_weight_surrogate(surrogate: AnySurrogate | None) -> None:
    if getattr(surrogate, "weights_only", False):
        raise ValueError(
            f"the surrogate {type(surrogate).__name__} is for weights, not for activations: "
            "choose another, e.g. hardtanh."
        )


def _refuse_all_but_clip(surrogate: AnySurrogate | None) -> None:
    if surrogate is not None and surrogate != Hardtanh():
        raise ValueError(
            "an activation of more than two levels has one derivative, its clip 1[0 ≤ x ≤ 1]: "
            f"use the surrogate hardtanh with threshold 1, not {surrogate}."
        )


def _clip_derivative(x: Tensor) -> Tensor:
    return where((x >= 0) & (x <= 1), 1.0, x)


@REGISTRY.register("binary")
@dataclass(frozen=True)
class Binary:
    """sign(x) ∈ {−1, +1}, with any surrogate derivative (by default hardtanh)."""

    levels = (-1.0, 1.0)
    thresholds = (0.0,)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor, surrogate: Rule | None = None) -> Tensor:
        self.check(surrogate)
        return (surrogate or Hardtanh()).derivative(x)

    def apply(self, x: Tensor, surrogate: AnySurrogate | None = None) -> Tensor:
        self.check(surrogate)
        return binarize(x, surrogate or Hardtanh())

    def check(self, surrogate: AnySurrogate | None) -> None:
        _refuse_weight_surrogate(surrogate)


@dataclass(frozen=True)
class Staircase:
    """A uniform quantizer of [0, 1] (DoReFa-Net, Zhou et al. 2016, arXiv 1606.06160).

    forward: round(n·clip(x, 0, 1))/n, halves rounded up
    derivative: 1 where 0 ≤ x ≤ 1, else 0

    The levels are k/n and the thresholds (k − ½)/n. The forward pass counts the thresholds
    reached instead of calling ``torch.round``, which rounds halves to even and would take a level
    on either side of its threshold depending on k.

    Args:
        steps: n, the number of steps between 0 and 1: 2 is ternary, 2ᵏ − 1 is k bits.
    """

    steps: int

    @property
    def levels(self) -> tuple[float, ...]:
        return tuple(k / self.steps for k in range(self.steps + 1))

    @property
    def thresholds(self) -> tuple[float, ...]:
        return tuple((k - 0.5) / self.steps for k in range(1, self.steps + 1))

    def forward(self, x: Tensor) -> Tensor:
        count = torch.zeros_like(x)
        for threshold in self.thresholds:
            count = count + (x >= threshold)
        return torch.where(x.isnan(), x, count / self.steps)

    def derivative(self, x: Tensor, surrogate: Rule | None = None) -> Tensor:
        self.check(surrogate)
        return _clip_derivative(x)

    def apply(self, x: Tensor, surrogate: AnySurrogate | None = None) -> Tensor:
        self.check(surrogate)
        return straight_through(x, self)

    def check(self, surrogate: AnySurrogate | None) -> None:
        _refuse_all_but_clip(surrogate)


@REGISTRY.register("kbit")
def kbit(bits: int) -> Staircase:
    """The coupled activation of 2ᵏ levels in [0, 1]; ``bits`` is k, from 1 to 8.

    >>> kbit(1).levels, kbit(1).thresholds
    ((0.0, 1.0), (0.5,))
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits must be a whole number from 1 to 8, not {bits!r}.")
    return Staircase(2**bits - 1)


@REGISTRY.register("2bit")
def two_bit() -> Staircase:
    """Four levels, 0, ⅓, ⅔ and 1."""
    return kbit(2)


@REGISTRY.register("ternary")
def ternary() -> Staircase:
    """Three levels, 0, ½ and 1, with thresholds ¼ and ¾: the coupled ternary of BinaryDuo."""
    return Staircase(2)


@REGISTRY.register("decoupled_ternary")
@dataclass(frozen=True)
class DecoupledTernary:
    """Two binary halves in place of one ternary activation.

    BinaryDuo (Kim et al. 2020, arXiv 2002.06517):

    forward: ½(b₁ + b₂), b₁ = 1[x ≥ ¼], b₂ = 1[x ≥ ¾]
    derivative: ½(g(2(x − ¼)) + g(2(x − ¾))), g a surrogate derivative of sign

    The forward pass is that of ``ternary``. Since b = ½(sign(2(x − t)) + 1), each half has its own
    derivative g(2(x − t)), centred on its own threshold; with hardtanh that is 1 where
    |x − t| ≤ ½. BinaryDuo gives each half its own weights: :meth:`halves` returns them apart.
    """

    levels = (0.0, 0.5, 1.0)
    thresholds = (0.25, 0.75)

    def forward(self, x: Tensor) -> Tensor:
        return Staircase(2).forward(x)

    def derivative(self, x: Tensor, surrogate: Rule | None = None) -> Tensor:
        self.check(surrogate)
        rule = surrogate or Hardtanh()
        low, high = (rule.derivative(2 * (x - threshold)) for threshold in self.thresholds)
        return (low + high) / 2

    def apply(self, x: Tensor, surrogate: AnySurrogate | None = None) -> Tensor:
        low, high = self.halves(x, surrogate)
        return (low + high) / 2

    def halves(self, x: Tensor, surrogate: AnySurrogate | None = None) -> tuple[Tensor, Tensor]:
        """b₁ and b₂, each in {0, 1} and differentiable with its own derivative."""
        self.check(surrogate)
        rule = surrogate or Hardtanh()
        low, high = ((binarize(2 * (x - t), rule) + 1) / 2 for t in self.thresholds)
        return low, high

    def check(self, surrogate: AnySurrogate | None) -> None:
        _refuse_weight_surrogate(surrogate)


@REGISTRY.register("full")
@dataclass(frozen=True)
class Full:
    """clip(x, 0, 1), not quantized: the reference whose derivative is its own."""

    levels = None
    thresholds = None

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    def derivative(self, x: Tensor, surrogate: Rule | None = None) -> Tensor:
        self.check(surrogate)
        return _clip_derivative(x)

    def apply(self, x: Tensor, surrogate: AnySurrogate | None = None) -> Tensor:
        self.check(surrogate)
        return straight_through(x, self)

    def check(self, surrogate: AnySurrogate | None) -> None:
        _refuse_all_but_clip(surrogate)
