r"""Surrogate derivatives of sign: what the backward pass pretends the slope of sign to be.

Each surrogate keeps three things side by side:

- ``forward(x)``: what the network computes. It is sign(x) for all of them but
  :class:`MagnitudeAware`, which scales it.
- ``derivative(x)``: g(x), by which the backward pass multiplies the incoming gradient.
- ``primitive(x)``: a smooth stand-in for sign whose true derivative is g. The network never
  computes it; it is there to be plotted, and for the tests, which differentiate it.

NaN gives NaN in all three. At kinks g takes the value of the closed interval, so that
hardtanh's derivative is 1 at x = ±1, as in the papers.

>>> names()
['ede', 'hardtanh', 'identity', 'magnitude_aware', 'polynomial', 'relu', 'reste', 'steep',
 'swish_sign']
>>> x = torch.tensor([-2.0, -0.25, 0.0, 0.75], requires_grad=True)
>>> y = binarize(x, create("polynomial"))
>>> y.sum().backward()
>>> y.tolist(), x.grad.tolist()
([-1.0, -1.0, 1.0, 1.0], [0.0, 1.5, 2.0, 0.5])

A surrogate of your own is any object with ``forward`` and ``derivative``; decorated with
``@REGISTRY.register("cosine")``, or offered by an installed package through the entry-point group
``gradlab.surrogates``, it can be named in every sweep:

>>> @dataclass(frozen=True)
... class Cosine:
...     "g(x) = π/2·cos(πx/2) where |x| ≤ 1, else 0."
...     def forward(self, x):
...         return sign(x)
...     def derivative(self, x):
...         return where(x.abs() <= 1, torch.pi / 2 * torch.cos(torch.pi / 2 * x), x)
>>> torch.func.grad(lambda x: binarize(x, Cosine()))(torch.tensor(0.0))
tensor(1.5708)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradlab._registry import Registry
from gradlab.binary.sign import sign
from gradlab.binary.straight_through import Rule, straight_through


class Surrogate(Rule, Protocol):
    """What :func:`create` returns: a rule with the function it is the derivative of."""

    def primitive(self, x: Tensor) -> Tensor:
        """A function whose derivative is ``derivative``."""


class StochasticSurrogate(Protocol):
    """A surrogate whose forward pass is random: each draw is a rule with its noise fixed."""

    def draw(self, x: Tensor) -> Rule:
        """One draw for an input like x; its forward and derivative share the noise."""


REGISTRY: Registry[Surrogate] = Registry("surrogate", group="gradlab.surrogates")


def names() -> list[str]:
    """The registered surrogates, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> Surrogate:
    """The surrogate called ``name``.

    Raises:
        ValueError: unknown name or option (the nearest valid one is suggested), or an option out
            of range.

    >>> create("hardtanh", threshold=0.5)
    Hardtanh(threshold=0.5)
    >>> create("hardtan")
    Traceback (most recent call last):
    ValueError: unknown surrogate 'hardtan': did you mean 'hardtanh'? Valid: ede, ...
    """
    return REGISTRY.create(name, **options)


def defaults(name: str) -> dict[str, Any]:
    """Every option of the surrogate ``name`` with its default.

    >>> defaults("swish_sign")
    {'beta': 5.0}
    """
    return REGISTRY.defaults(name)


def binarize(x: Tensor, surrogate: Rule | StochasticSurrogate) -> Tensor:
    """``surrogate.forward(x)`` with ``surrogate.derivative(x)`` as its derivative.

    A stochastic surrogate (see :mod:`gradlab.binary.stochastic_rounding`) is drawn afresh at each
    call.

    Args:
        x: floating-point tensor of any shape, dtype and device.
        surrogate: an object with ``forward`` and ``derivative``, e.g. from :func:`create`, or one
            with ``draw``.

    >>> torch.func.grad(lambda w: binarize(w, create("steep")))(torch.tensor(0.3))
    tensor(2.)
    """
    if isinstance(surrogate, Rule):
        return straight_through(x, surrogate)
    return straight_through(x, surrogate.draw(x))


def where(inside: Tensor, value: Tensor | float, x: Tensor) -> Tensor:
    """``value`` where ``inside``, 0 elsewhere, NaN where x is NaN: a piecewise derivative."""
    zero = torch.zeros((), dtype=x.dtype, device=x.device)
    if not isinstance(value, Tensor):
        value = zero + value
    # a comparison with NaN is False, and 0 would hide it
    return torch.where(inside, value, torch.where(x.isnan(), x, zero))


def positive(name: str, value: float) -> None:
    """Refuse an option that is not a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, not {value!r}.")


def between(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option outside [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}.")


@REGISTRY.register("identity")
@dataclass(frozen=True)
class Identity:
    """The straight-through estimator in its first form (Bengio et al. 2013, arXiv 1308.3432).

    forward: sign(x)
    derivative: g(x) = 1
    primitive: x
    """

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return where(~x.isnan(), 1.0, x)

    def primitive(self, x: Tensor) -> Tensor:
        return x.clone()


@REGISTRY.register("hardtanh")
@dataclass(frozen=True)
class Hardtanh:
    """The clipped straight-through estimator (Hubara et al. 2016, arXiv 1602.02830, eq. 4).

    forward: sign(x)
    derivative: g(x) = 1 where |x| ≤ c, else 0
    primitive: clip(x, −c, c)

    Args:
        threshold: c; the paper's is 1, and .5, .2, .1 are its narrower variants. The height stays
            1 whatever c, so the area under g is 2c.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        positive("threshold", self.threshold)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return where(x.abs() <= self.threshold, 1.0, x)

    def primitive(self, x: Tensor) -> Tensor:
        return x.clamp(-self.threshold, self.threshold)


@REGISTRY.register("relu")
@dataclass(frozen=True)
class Relu:
    """The derivative of the rectifier (Yin et al., ICLR 2019, arXiv 1903.05662).

    forward: sign(x)
    derivative: g(x) = 1 where x > 0, else 0
    primitive: max(x, 0)
    """

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return where(x > 0, 1.0, x)

    def primitive(self, x: Tensor) -> Tensor:
        return x.clamp(min=0)


@REGISTRY.register("steep")
@dataclass(frozen=True)
class Steep:
    """A narrower and taller box, of the same area as hardtanh.

    forward: sign(x)
    derivative: g(x) = 2 where |x| ≤ 1/2, else 0
    primitive: clip(2x, −1, 1)

    BinaryDuo (Kim et al. 2020, arXiv 2002.06517) names a steep surrogate in a figure without
    writing it down; this form, which keeps the area 2 of sign's jump, is an inference.
    """

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return where(x.abs() <= 0.5, 2.0, x)

    def primitive(self, x: Tensor) -> Tensor:
        return (2 * x).clamp(-1, 1)


@REGISTRY.register("swish_sign")
@dataclass(frozen=True)
class SwishSign:
    """SwishSign of BNN+ (Darabi et al. 2018, arXiv 1812.11800); s is the sigmoid.

    forward: sign(x)
    derivative: g(x) = β(2 − βx·tanh(βx/2)) / (1 + cosh βx)
    primitive: 2 s(βx)·(1 + βx(1 − s(βx))) − 1

    g is smooth, has area 2, and is slightly negative beyond |βx| ≈ 2.4, where the primitive
    overshoots ±1.

    Args:
        beta: β, the steepness; g(0) = β.
    """

    beta: float = 5.0

    def __post_init__(self) -> None:
        positive("beta", self.beta)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        # beyond 100 the derivative is 0 in every dtype; unclamped, x = inf would give 0·inf = NaN
        u = (self.beta * x).clamp(-100, 100)
        # 1/(1 + cosh u) = 2 s(u) s(−u), which cannot overflow
        return 2 * self.beta * u.sigmoid() * (-u).sigmoid() * (2 - u * torch.tanh(u / 2))

    def primitive(self, x: Tensor) -> Tensor:
        u = self.beta * x
        return 2 * u.sigmoid() * (1 + u * (-u).sigmoid()) - 1


@REGISTRY.register("polynomial")
@dataclass(frozen=True)
class Polynomial:
    """ApproxSign of Bi-Real Net (Liu et al. 2018, arXiv 1808.00278).

    forward: sign(x)
    derivative: g(x) = 2 − 2|x| where |x| ≤ 1, else 0
    primitive: 2x + x² on [−1, 0), 2x − x² on [0, 1], ±1 beyond
    """

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return where(x.abs() <= 1, 2 - 2 * x.abs(), x)

    def primitive(self, x: Tensor) -> Tensor:
        inner = x.clamp(-1, 1)
        return 2 * inner - inner * inner.abs()


@REGISTRY.register("ede")
@dataclass(frozen=True)
class EDE:
    """Error decay estimator of IR-Net (Qin et al. 2020, arXiv 1909.10788).

    forward: sign(x)
    derivative: g(x) = k·t·(1 − tanh²(t·x))
    primitive: k·tanh(t·x)
    with t = 10^(−3 + 4·progress), from Tmin = 1e-3 to Tmax = 10, and k = max(1/t, 1).

    It starts as the identity (g = 1 everywhere) and ends as a peak of height 10 and area 2.

    Args:
        progress: the fraction of training done, in [0, 1].
    """

    progress: float = 1.0

    def __post_init__(self) -> None:
        between("progress", self.progress, 0, 1)

    @property
    def t(self) -> float:
        """The inverse width."""
        return float(10 ** (-3 + 4 * self.progress))

    @property
    def k(self) -> float:
        """The height of the primitive."""
        return max(1 / self.t, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        # 1 − tanh² = 1/cosh²: no cancellation in the tails, and an overflow of cosh gives 0
        return self.k * self.t * torch.cosh(self.t * x).reciprocal().square()

    def primitive(self, x: Tensor) -> Tensor:
        return self.k * torch.tanh(self.t * x)


@REGISTRY.register("reste")
@dataclass(frozen=True)
class ReSTE:
    """Rectified straight-through estimator (Wu et al., ICCV 2023, arXiv 2308.06689).

    forward: sign(x)
    derivative: g(x) = (1/o)·|x|^((1 − o)/o) where .1 < |x| ≤ 1.5
                       .1^(1/o) / .1         where |x| ≤ .1
                       0                     where |x| > 1.5
    primitive: sign(x)·|x|^(1/o), made linear on |x| ≤ .1, where its slope would be infinite, and
    constant beyond 1.5.

    o = 1 is a hardtanh of threshold 1.5; as o grows the primitive approaches sign.

    Args:
        o: the power, in [1, 3]; the paper raises it from 1 to 3 during training.
    """

    o: float = 3.0

    def __post_init__(self) -> None:
        between("o", self.o, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        size = x.abs()
        # clamped so that the branch not taken holds no infinity
        power = size.clamp(0.1, 1.5) ** ((1 - self.o) / self.o) / self.o
        centre = torch.full_like(power, 0.1 ** (1 / self.o) / 0.1)
        return where(size <= 1.5, torch.where(size <= 0.1, centre, power), x)

    def primitive(self, x: Tensor) -> Tensor:
        size = x.abs()
        outer = torch.copysign(size.clamp(0.1, 1.5) ** (1 / self.o), x)
        return torch.where(size <= 0.1, x * (0.1 ** (1 / self.o) / 0.1), outer)


@REGISTRY.register("magnitude_aware")
@dataclass(frozen=True)
class MagnitudeAware:
    """Magnitude-aware sign for weights (Bi-Real Net, Liu et al. 2018, arXiv 1808.00278).

    forward: α·sign(w)
    derivative: g(w) = α where |w| ≤ 1, else 0
    primitive: α·clip(w, −1, 1) with α held fixed

    α = mean |w| over all but the first dimension, one per output; no gradient flows through it.
    For weights only: an activation has no output dimension to average over.

    Raises:
        ValueError: the tensor has fewer than two dimensions.

    >>> MagnitudeAware().forward(torch.tensor([[1.0, -3.0], [0.5, 0.5]]))
    tensor([[ 2.0000, -2.0000],
            [ 0.5000,  0.5000]])
    """

    weights_only = True

    def scale(self, w: Tensor) -> Tensor:
        """α, of shape (outputs, 1, …), detached."""
        if w.ndim < 2:
            raise ValueError(
                "magnitude_aware needs a weight of at least two dimensions, outputs first, "
                f"not the shape {tuple(w.shape)}: choose another surrogate for vectors."
            )
        return w.detach().abs().mean(dim=tuple(range(1, w.ndim)), keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x) * sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.scale(x) * where(x.abs() <= 1, 1.0, x)

    def primitive(self, x: Tensor) -> Tensor:
        return self.scale(x) * x.clamp(-1, 1)
