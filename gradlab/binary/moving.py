r"""Surrogates that move while a network is trained, with the fraction of training as a tensor.

:class:`gradlab.binary.surrogates.EDE` and :class:`gradlab.binary.surrogates.ReSTE` take a number,
and a new one each time a training run gets on. Compiled code would have to be compiled anew for
every number. These two read the same formulas with a tensor instead. Forward is sign(x).

>>> from gradlab.binary import surrogates
>>> x = torch.linspace(-2, 2, 9)
>>> half = torch.tensor(0.5)
>>> fixed = surrogates.create("reste", o=2.0).derivative(x)
>>> torch.allclose(MovingReSTE(half).derivative(x), fixed)
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.binary.sign import sign
from gradlab.binary.straight_through import Rule
from gradlab.binary.surrogates import where


@dataclass(frozen=True, eq=False)
class MovingEDE:
    """EDE of IR-Net (Qin et al. 2020, arXiv 1909.10788) at a fraction of training.

    Args:
        progress: ``()``, in [0, 1].
    """

    progress: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        t = (10 ** (-3 + 4 * self.progress)).to(x.dtype)
        k = (1 / t).clamp(min=1)
        return k * t * torch.cosh(t * x).reciprocal().square()


@dataclass(frozen=True, eq=False)
class MovingReSTE:
    """ReSTE (Wu et al. 2023, arXiv 2308.06689) at a fraction of training: o from 1 to 3.

    Args:
        progress: ``()``, in [0, 1].
    """

    progress: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        o = (1 + 2 * self.progress).to(x.dtype)
        size = x.abs()
        power = size.clamp(0.1, 1.5) ** ((1 - o) / o) / o
        centre = (0.1 ** (1 / o) / 0.1).expand_as(power)
        return where(size <= 1.5, torch.where(size <= 0.1, centre, power), x)


MOVING: Mapping[str, Callable[[Tensor], Rule]] = {"ede": MovingEDE, "reste": MovingReSTE}
"""By the name of the surrogate that they are at any fixed moment."""
