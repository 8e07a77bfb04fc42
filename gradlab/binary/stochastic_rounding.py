r"""Stochastic signs: binarization that rounds up or down by chance, and can be averaged.

Both draw one uniform number u per entry and give +1 where u < p(x), −1 elsewhere; they differ in
p and in the derivative. A draw is a pair of forward and derivative that share their noise, so a
stochastic surrogate is a factory of draws: ``draw(x)`` returns one, and
:func:`gradlab.binary.binarize` calls it at each pass. Everything random comes from the given
``torch.Generator``, which must live on the device of x.

>>> generator = torch.Generator().manual_seed(0)
>>> stochastic_sign(torch.tensor([-1.0, 0.0, 0.0, 0.0, 1.0]), generator=generator)
tensor([-1., -1.,  1.,  1.,  1.])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.binary.straight_through import Rule
from gradlab.binary.surrogates import Hardtanh, binarize, positive


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    # Drawn in float32 where the generator lives, so that every dtype and device sees the same bits;
    # half-precision uniforms would have too few values to compare with a probability.
    drawn = torch.rand(x.shape, generator=generator, dtype=torch.float32, device=generator.device)
    return drawn.to(x.device, torch.promote_types(x.dtype, torch.float32))


def _plus_where(uniform: Tensor, probability: Tensor, x: Tensor) -> Tensor:
    one = torch.ones((), dtype=x.dtype, device=x.device)
    drawn = torch.where(uniform < probability, one, -one)
    return torch.where(probability.isnan(), probability.to(x.dtype), drawn)


@dataclass(frozen=True)
class StochasticSign:
    """The stochastic binarization of Hubara et al. (2016, arXiv 1602.02830, eq. 2).

    forward: +1 with probability clip((x + 1)/2, 0, 1), else −1
    derivative: that of ``surrogate``, by default hardtanh

    On [−1, 1] its mean is x itself, so there hardtanh is the exact derivative of the mean.
    x = 0 is a fair coin; |x| ≥ 1 is deterministic; NaN stays NaN.

    Args:
        generator: the source of the noise, on the device of x.
        surrogate: the derivative.
    """

    generator: torch.Generator
    surrogate: Rule = Hardtanh()  # noqa: RUF009 (frozen, so safe to share)

    def draw(self, x: Tensor) -> Rule:
        return _SignDraw(_uniform(x, self.generator), self.surrogate)


@dataclass(frozen=True)
class _SignDraw:
    uniform: Tensor
    surrogate: Rule

    def forward(self, x: Tensor) -> Tensor:
        return _plus_where(self.uniform, ((x.to(self.uniform.dtype) + 1) / 2).clamp(0, 1), x)

    def derivative(self, x: Tensor) -> Tensor:
        return self.surrogate.derivative(x)


@dataclass(frozen=True)
class StochasticRounding:
    """Stochastic rounding relative to the extremes of the tensor (sr-STE).

    forward: sign(s − ½)
    derivative: ds/dx, the scales held fixed

    with x⁺ divided by max x and x⁻ by |min x| to A ∈ [−1, 1], p = (A + 1)/2, and s a relaxed
    Bernoulli variable (Maddison et al. 2017; Jang et al. 2017) of temperature τ,
    s = sigmoid((logit p + logit(1 − u))/τ). Since s > ½ exactly where u < p, the forward pass is
    an exact Bernoulli(p) draw at every τ; the temperature shapes the derivative alone, which
    concentrates where u is near p as τ → 0.

    Average the gradients of one to ten draws, and evaluate the loss with plain sign.

    The scales are those of the whole tensor. Where no entry is negative only the positive scale
    is used, and the other way round; a zero entry, and so an all-zero tensor, is a fair coin with
    derivative 0 if there is no scale at all. A NaN or an infinity anywhere leaves no scale: every
    entry is NaN rather than quietly wrong.

    Args:
        generator: the source of the noise, on the device of x.
        temperature: τ, above 0.
    """

    generator: torch.Generator
    temperature: float = 1.0

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)

    def draw(self, x: Tensor) -> Rule:
        return _RoundingDraw(_uniform(x, self.generator), self.temperature)


@dataclass(frozen=True)
class _RoundingDraw:
    uniform: Tensor
    temperature: float

    def forward(self, x: Tensor) -> Tensor:
        return _plus_where(self.uniform, rounding_probability(x.to(self.uniform.dtype)), x)

    def derivative(self, x: Tensor) -> Tensor:
        wide = x.to(self.uniform.dtype)
        scale = _scale(wide)
        # the extremes have p of exactly 0 or 1, where the logit is infinite: keep off by one ulp
        tiny = torch.finfo(wide.dtype).eps
        p = rounding_probability(wide).clamp(tiny, 1 - tiny)
        s = relaxed_bernoulli(p, self.uniform, self.temperature)
        slope = s * (1 - s) / (self.temperature * p * (1 - p)) / (2 * scale)
        return torch.where(scale == 0, torch.zeros_like(slope), slope).to(x.dtype)


def _scale(x: Tensor) -> Tensor:
    """What each entry is divided by: max x where x ≥ 0, |min x| where x < 0; NaN if undefined."""
    if x.numel() == 0:
        return torch.ones_like(x)
    high, low = x.max().clamp(min=0), (-x.min()).clamp(min=0)
    # an entry that is exactly 0 in a tensor without positives sits on the negative branch's end
    high = torch.where(high == 0, low, high)
    scale = torch.where(x < 0, low, high)
    finite = high.isfinite() & low.isfinite()
    return torch.where(finite, scale, torch.full_like(scale, float("nan")))


def rounding_probability(x: Tensor) -> Tensor:
    """P(+1) of :class:`StochasticRounding`, entry by entry.

    >>> rounding_probability(torch.tensor([-4.0, -1.0, 0.0, 1.0, 2.0]))
    tensor([0.0000, 0.3750, 0.5000, 0.7500, 1.0000])
    """
    scale = _scale(x)
    scaled = torch.where(scale == 0, torch.zeros_like(x), x / scale)
    return (scaled + 1) / 2


def relaxed_bernoulli(probability: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """The variable sigmoid((logit p + logit(1 − u))/τ) in [0, 1]; as τ → 0 it becomes 1[u < p]."""
    return ((probability.logit() + (-uniform.log() + (-uniform).log1p())) / temperature).sigmoid()


def stochastic_sign(
    x: Tensor, *, generator: torch.Generator, surrogate: Rule | None = None
) -> Tensor:
    """One differentiable draw of :class:`StochasticSign`."""
    return binarize(x, StochasticSign(generator, surrogate or Hardtanh()))


def stochastic_rounding(
    x: Tensor, *, generator: torch.Generator, temperature: float = 1.0
) -> Tensor:
    """One differentiable draw of :class:`StochasticRounding`."""
    return binarize(x, StochasticRounding(generator, temperature))
