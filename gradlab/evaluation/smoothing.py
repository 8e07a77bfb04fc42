r"""Activations of a Gaussian pre-activation: moments, samples and scores.

For weights W ~ N(μ, σ²) and one input h, a neuron's pre-activation is exactly
:math:`z \sim N(\mu h, s^2)` with :math:`s = \sigma\lVert h\rVert` (the local reparameterization of
Kingma, Salimans and Welling 2015, used here on the input side of a sign). Everything a smoothed
quantized layer needs follows from its thresholds :math:`\tau_k` and levels :math:`v_k`, with
:math:`a_k = (\tau_k - \mu h)/s`:

- the mean :math:`E\,a(z) = v_0 + \sum_k (v_k - v_{k-1})\,\Phi(-a_k)`, for the sign
  :math:`\operatorname{erf}(\mu h / (s\sqrt 2))`;
- the score given the level, :math:`E[\xi \mid k] = (\varphi(a_k) - \varphi(a_{k+1})) /
  (\Phi(a_{k+1}) - \Phi(a_k))`: the Rao-Blackwell form of the Gaussian score :math:`\xi`, since the
  network sees the level alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradlab.binary.activations import Activation

_ROOT_2 = math.sqrt(2.0)
_ROOT_2_PI = math.sqrt(2.0 * math.pi)


def _density(a: Tensor) -> Tensor:
    return torch.exp(-0.5 * a.square()) / _ROOT_2_PI


def _upper_tail(a: Tensor) -> Tensor:
    # erfc keeps its digits where 1 - Phi would cancel.
    tail: Tensor = 0.5 * torch.special.erfc(a / _ROOT_2)
    return tail


def moments(activation: Activation, mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """First and second moment of the activation of z ~ N(mean, spread²), differentiable.

    Args:
        activation: with levels and thresholds, or the clip to [0, 1] where it has none.
        mean: any shape.
        spread: broadcastable, above zero.

    >>> from gradlab.binary import activations
    >>> first, second = moments(activations.create("binary"), torch.zeros(1), torch.ones(1))
    >>> float(first), float(second)
    (0.0, 1.0)
    """
    if activation.levels is None or activation.thresholds is None:
        return _clip_moments(mean, spread)
    if activation.levels == (-1.0, 1.0):
        first = torch.erf((mean - activation.thresholds[0]) / (spread * _ROOT_2))
        return first, torch.ones_like(first)
    first = torch.full_like(mean, activation.levels[0])
    second = torch.full_like(mean, activation.levels[0] ** 2)
    steps = zip(activation.levels[:-1], activation.levels[1:], activation.thresholds, strict=True)
    for low, high, threshold in steps:
        reached = _upper_tail((threshold - mean) / spread)
        first = first + (high - low) * reached
        second = second + (high**2 - low**2) * reached
    return first, second


def _clip_moments(mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    low, high = -mean / spread, (1 - mean) / spread
    inside = _upper_tail(low) - _upper_tail(high)
    above = _upper_tail(high)
    d_low, d_high = _density(low), _density(high)
    first = mean * inside + spread * (d_low - d_high) + above
    second = (
        (mean.square() + spread.square()) * inside
        + 2 * mean * spread * (d_low - d_high)
        + spread.square() * (low * d_low - high * d_high)
        + above
    )
    return first, second


def slope(activation: Activation, mean: Tensor, spread: Tensor) -> Tensor:
    """Derivative of the first moment in ``mean``, differentiable itself; arguments as there.

    >>> from gradlab.binary import activations
    >>> found = slope(activations.create("binary"), torch.zeros(1), torch.ones(1))
    >>> round(float(found), 6) == round(math.sqrt(2 / math.pi), 6)
    True
    """
    if activation.levels is None or activation.thresholds is None:
        return _upper_tail(-mean / spread) - _upper_tail((1 - mean) / spread)
    found = torch.zeros_like(mean)
    steps = zip(activation.levels[:-1], activation.levels[1:], activation.thresholds, strict=True)
    for low, high, threshold in steps:
        found = found + (high - low) * _density((threshold - mean) / spread)
    return found / spread


def score(activation: Activation, mean: Tensor, spread: Tensor, noise: Tensor) -> Tensor:
    r""":math:`E[\xi \mid a(z)] / s` at z = mean + spread·noise: the score of the mean.

    Args:
        activation: the activation whose output the network sees.
        mean: pre-activation means.
        spread: their standard deviations, broadcastable.
        noise: :math:`\xi`, shaped like ``mean``.
    """
    if activation.levels == (-1.0, 1.0) and activation.thresholds == (0.0,):
        a = mean / spread
        sign = activation.forward(mean + spread * noise)
        # A sign against the mean needs noise beyond |a|, and noise ends before 6: neither tail
        # underflows. The clamp only keeps noise from elsewhere from dividing zero by zero.
        tail = _upper_tail(-sign * a).clamp_min(torch.finfo(a.dtype).tiny)
        return sign * _density(a) / tail / spread
    z = mean + spread * noise
    thresholds = activation.thresholds if activation.thresholds is not None else (0.0, 1.0)
    given = noise.clone()
    edges = (-math.inf, *thresholds, math.inf)
    for k in range(len(edges) - 1):
        if activation.thresholds is None and k == 1:
            continue  # inside the clip the network sees z itself
        here = (z >= edges[k]) & (z < edges[k + 1])
        low, high = (edges[k] - mean) / spread, (edges[k + 1] - mean) / spread
        # Work in the upper tail, where differences of erfc keep their digits.
        mirror = low + high < 0
        left, right = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
        mass = _upper_tail(left) - _upper_tail(right)
        shift = torch.where(mirror, -1.0, 1.0) * (_density(left) - _density(right))
        # Where the mass underflows xi itself stands in: also unbiased, since the choice does not
        # depend on xi.
        usable = mass > 1e-30
        given = torch.where(here & usable, shift / mass.clamp_min(1e-30), given)
    return given / spread
