r"""The divergence of a layer and its gradient in one pass over the weights, for processors.

Written with torch operations, the KL term of a layer whose parameters are θ and ln σ² passes over
memory two dozen times, and costs as much as its matrix products. Here one compiled loop computes

.. math:: \sum_i k_1 (1 - s(y_i)) + \tfrac12 \ln(1 + 1/\alpha_i), \quad y_i = k_2 + k_3 \ln\alpha_i,
          \quad \ln\alpha_i = \ln\sigma_i^2 - \ln(\theta_i^2 + 10^{-8}),

with s the logistic function, together with both derivatives, which backpropagation then only
scales, and the variances σ², which the forward pass needs: it has them from the same loop. With
k₁ = 0 it is the divergence under a prior that learns its width. The logarithms of 1 + 1/α are those
of products of many of them. Numba compiles it when it is first called, in seconds, and keeps the
result beside this file.

>>> weight, log_sigma2 = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0])
>>> float(divergence(weight, log_sigma2, ard))  # ½ ln 2 + ½ ln 1.01
0.351...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gradlab.variational.kernel_math import (
    FACTORS,
    LARGEST,
    Kept,
    arrays,
    clipped_exponential,
    compiled,
    exponential,
    f32,
    logarithm,
    serves,
)
from gradlab.variational.kl import _K1, _K2, _K3, ard, log_uniform

Fit: TypeAlias = Callable[[Tensor], Tensor]
# k₁, k₂ and k₃ of the divergences that the kernel computes.
FITS: dict[Fit, tuple[float, float, float]] = {log_uniform: (_K1, _K2, _K3), ard: (0.0, 0.0, 0.0)}

__all__ = ["FITS", "bound", "divergence", "serves", "spread"]


@compiled
def _spread(
    weight: Any, log_sigma2: Any, variance: Any, by_weight: Any, by_log_sigma2: Any,
    k1: Any, k2: Any, k3: Any,
) -> Any:  # fmt: skip
    """The sum; variances and derivatives of the sum are written to the three arrays."""
    total = 0.0
    for start in range(0, weight.size, FACTORS):
        part = slice(start, start + FACTORS)
        w, s, v = weight[part], log_sigma2[part], variance[part]
        of_w, of_s = by_weight[part], by_log_sigma2[part]
        factors, terms = f32(1.0), f32(0.0)
        # a loop of its own: compilers look at whether up to so many arrays overlap, then give up
        for i in range(len(w)):
            v[i] = clipped_exponential(s[i])
        for i in range(len(w)):
            square = w[i] * w[i] + f32(1e-8)
            log_alpha = s[i] - logarithm(square)
            sigma2 = v[i]
            y = k2 + k3 * log_alpha
            y = LARGEST if y > LARGEST else y
            y = -LARGEST if y < -LARGEST else y
            above = sigma2 > square
            smaller = square if above else sigma2
            z = smaller / (sigma2 if above else square)  # exp(−|ln α|)
            beyond, power = f32(1.0) + z, f32(1.0) + exponential(y)
            inverse = f32(1.0) / (beyond * power)  # one division for two
            rest = inverse * beyond
            # the absolute value lets NaN through, comparisons do not
            terms += k1 * rest + f32(0.25) * (abs(log_alpha) - log_alpha)
            factors *= beyond
            slope = k3 * k1 * rest * (rest - f32(1.0)) - f32(0.5) * inverse * power * (
                z if above else f32(1.0)
            )
            of_s[i] = slope
            of_w[i] = slope * f32(-2.0) * w[i] / square
        total += float(terms) + 0.5 * math.log(factors)
    return total


@compiled
def _bound(weight: Any, log_sigma2: Any, low: Any, high: Any) -> None:
    """Move ln σ² until ln α lies in [low, high]."""
    for i in range(len(weight)):
        centre = logarithm(weight[i] * weight[i] + f32(1e-8))
        value = log_sigma2[i]
        value = centre + low if value < centre + low else value
        log_sigma2[i] = centre + high if value > centre + high else value


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_sigma2: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
        variance, total, ctx.slopes = _with_slopes(weight, log_sigma2, fit)
        ctx.fit = fit
        ctx.kept = Kept(weight, log_sigma2, variance.detach())
        ctx.set_materialize_grads(False)
        return variance, total

    @staticmethod
    def backward(
        ctx: Any, by_variance: Tensor | None, by_total: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        weight, log_sigma2, variance = ctx.kept.tensors()
        if torch.is_grad_enabled():  # somebody wants second derivatives
            exact = _exact(weight, log_sigma2, ctx.fit, by_variance, by_total)
            return exact[0], exact[1], None
        if by_total is None:
            return None, None if by_variance is None else by_variance * variance, None
        # Slopes become gradients in place, for fresh memory costs more than what is written to it;
        # a graph that is kept and walked again computes them again.
        slopes = ctx.slopes or _with_slopes(weight, log_sigma2, ctx.fit)[2]
        ctx.slopes = None
        for slope in slopes:
            slope.mul_(by_total)
        if by_variance is not None:
            slopes[1].addcmul_(by_variance, variance)
        return *slopes, None


def _exact(weight: Tensor, log_sigma2: Tensor, fit: Fit, *by: Tensor | None) -> tuple[Tensor, ...]:
    """The gradient as a graph of torch's operations."""
    found = log_sigma2.exp(), fit(log_sigma2 - torch.log(weight.square() + 1e-8)).sum()
    pairs = [(each, grad) for each, grad in zip(found, by, strict=True) if grad is not None]
    return torch.autograd.grad(
        [each for each, _ in pairs], (weight, log_sigma2), [grad for _, grad in pairs],
        create_graph=True, allow_unused=True,
    )  # fmt: skip


def _with_slopes(
    weight: Tensor, log_sigma2: Tensor, fit: Fit
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    variance, slopes = (
        torch.empty_like(weight),
        (torch.empty_like(weight), torch.empty_like(weight)),
    )
    found = _spread(*arrays(weight, log_sigma2, variance, *slopes), *(f32(k) for k in FITS[fit]))
    return variance, weight.new_tensor(found), slopes


def spread(weight: Tensor, log_sigma2: Tensor, fit: Fit) -> tuple[Tensor, Tensor]:
    """σ² of every weight, and ``fit(log_alpha).sum()`` in nats, ``()``.

    Args:
        weight: θ, any shape; see :func:`serves`.
        log_sigma2: ln σ², of the same shape; beyond ±87 its σ² is that of ±87.
        fit: one of ``FITS``.
    """
    variance, total = _Spread.apply(weight, log_sigma2, fit)  # type: ignore[no-untyped-call]
    return variance, total


def divergence(weight: Tensor, log_sigma2: Tensor, fit: Fit) -> Tensor:
    """``fit(log_alpha).sum()`` in nats, ``()``; arguments are those of :func:`spread`."""
    return spread(weight, log_sigma2, fit)[1]


def bound(weight: Tensor, log_sigma2: Tensor, low: float, high: float) -> None:
    """Move ln σ², in place, until ln α lies in [low, high]; what is inside keeps its bits.

    Args:
        weight: θ, any shape; see :func:`serves`.
        log_sigma2: ln σ², of the same shape.
        low: smallest ln α.
        high: largest ln α.
    """
    _bound(*arrays(weight, log_sigma2), f32(low), f32(high))
    torch.autograd.graph.increment_version(log_sigma2)  # NumPy's writes are not counted
