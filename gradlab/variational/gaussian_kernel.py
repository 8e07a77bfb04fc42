r"""Weights of Bayes by Backprop, and their divergence, in one pass over the parameters.

For :math:`q = N(\mu, \sigma^2)`, :math:`\sigma = \mathrm{softplus}(\rho)`, and the prior
:math:`N(0, \sigma_p^2)` one compiled loop computes σ and

.. math:: \sum_i \ln\frac{\sigma_p}{\sigma_i} + \frac{\sigma_i^2 + \mu_i^2}{2\sigma_p^2} - \frac12,

and a second one the gradient of both (Blundell et al. 2015, arXiv 1505.05424, section 3.2, with the
closed form of the divergence). The logarithms are those of products of many σ.

>>> mean, rho = torch.tensor([0.5, 0.0]), torch.tensor([math.log(math.e - 1)] * 2)  # σ = 1
>>> noise = torch.tensor([2.0, -1.0])
>>> [t.tolist() for t in sample(mean, rho, noise, 1.0)]
[[2.5, -1.0], 0.125]
>>> variance(mean, rho, 1.0)[0].tolist()
[1.0, 1.0]
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.evaluation.compiled.noise import _bits, _float
from gradlab.variational.kernel_math import (
    FACTORS,
    LARGEST,
    Kept,
    arrays,
    compiled,
    exponential,
    f32,
    i32,
    serves,
)
from gradlab.variational.kl import gaussian

__all__ = ["deviate", "sample", "serves", "variance"]

# ln(1 + e) = 2 artanh(s), s = e/(2 + e) ≤ 1/3, whose series needs so many terms
_ARTANH = tuple(f32(2 / (2 * n + 1)) for n in range(8))


@compiled
def _softplus(rho: Any) -> Any:
    """Accurate for every ρ down to -87; what is smaller counts as -87."""
    size = abs(rho)
    e = exponential(-(LARGEST if size > LARGEST else size))
    s = e / (f32(2.0) + e)
    square = s * s
    series = _ARTANH[7]
    series = series * square + _ARTANH[6]
    series = series * square + _ARTANH[5]
    series = series * square + _ARTANH[4]
    series = series * square + _ARTANH[3]
    series = series * square + _ARTANH[2]
    series = series * square + _ARTANH[1]
    series = series * square + _ARTANH[0]
    return s * series + f32(0.5) * (size + rho)  # the absolute value lets NaN through


@compiled
def _deviations(mean: Any, rho: Any, sigma: Any, precision: Any) -> Any:
    """σ is written; the sum of ``(σ² + μ²)/σ_p² / 2 − ln σ`` returned."""
    total = 0.0
    for start in range(0, mean.size, FACTORS):
        part = slice(start, start + FACTORS)
        m, r, out = mean[part], rho[part], sigma[part]
        for i in range(len(m)):
            out[i] = _softplus(r[i])
        squares, factors, exponents = f32(0.0), f32(1.0), i32(0)
        for i in range(len(m)):
            bits = _bits(out[i])
            exponent = (bits >> i32(23)) - i32(127)
            exponents += exponent
            factors *= _float(i32(bits - (exponent << i32(23))))  # from 1 to 2; NaN comes through
            squares += out[i] * out[i] + m[i] * m[i]
        logarithms = math.log(factors) + float(exponents) * math.log(2.0)
        total += 0.5 * float(squares) * float(precision) - logarithms
    return total


@compiled
def _pull(
    by_out: Any, about: Any, factor: Any, mean: Any, rho: Any, sigma: Any, by_total: Any,
    precision: Any, of_mean: Any, of_rho: Any,
) -> Any:  # fmt: skip
    """The gradient, where ∂out/∂μ is ``about``, ∂out/∂σ ``factor``; written to the last two."""
    for start in range(0, mean.size, FACTORS):
        part = slice(start, start + FACTORS)
        m, r, s, g, f = mean[part], rho[part], sigma[part], by_out[part], factor[part]
        into_mean, into_rho = of_mean[part], of_rho[part]
        for i in range(len(m)):
            into_mean[i] = about * g[i] + by_total * precision * m[i]
        for i in range(len(m)):
            into_rho[i] = g[i] * f[i] + by_total * (s[i] * precision - f32(1.0) / s[i])
        for i in range(len(m)):
            size = abs(r[i])
            e = exponential(-(LARGEST if size > LARGEST else size))
            into_rho[i] *= (f32(1.0) if r[i] > 0 else e) / (f32(1.0) + e)


class _Weights(torch.autograd.Function):
    """(μ, ρ) to ``μ + σ ε`` or ``σ ε`` with ε given, or to σ² without, and to the divergence."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, rho: Tensor, noise: Tensor | None, prior_sigma: float, about: bool
    ) -> tuple[Tensor, Tensor]:
        sigma = torch.empty_like(rho)
        precision = f32(1 / prior_sigma**2)
        found = _deviations(*arrays(mean, rho, sigma), precision)
        total = mean.new_tensor(found + mean.numel() * (math.log(prior_sigma) - 0.5))
        ctx.about, ctx.prior_sigma = about, prior_sigma
        ctx.kept = Kept(mean, rho, noise, sigma)
        ctx.set_materialize_grads(False)
        if noise is None:
            return sigma.square(), total
        return (torch.addcmul(mean, sigma, noise) if about else sigma * noise), total

    @staticmethod
    def backward(
        ctx: Any, by_out: Tensor | None, by_total: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        mean, rho, noise, sigma = ctx.kept.tensors()
        if torch.is_grad_enabled():  # somebody wants second derivatives
            exact = _exact(mean, rho, noise, ctx.prior_sigma, ctx.about, by_out, by_total)
            return exact[0], exact[1], None, None, None
        if by_out is None and by_total is None:
            return None, None, None, None, None
        grad = torch.zeros_like(mean) if by_out is None else by_out.contiguous()
        scale = 0.0 if by_total is None else float(by_total)
        of_mean, of_rho = torch.empty_like(mean), torch.empty_like(rho)
        # ∂σ²/∂σ = 2σ
        factor = 2 * sigma if noise is None else noise.contiguous()
        _pull(
            *arrays(grad), f32(ctx.about), *arrays(factor, mean, rho, sigma), f32(scale),
            f32(1 / ctx.prior_sigma**2), *arrays(of_mean, of_rho),
        )  # fmt: skip
        return of_mean, of_rho, None, None, None


def _exact(
    mean: Tensor, rho: Tensor, noise: Tensor | None, prior_sigma: float, about: bool,
    *by: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradient as a graph of torch's operations."""
    sigma = F.softplus(rho)
    out = sigma.square() if noise is None else sigma * noise
    found = (out + mean if about else out), gaussian(mean, sigma, 0.0, prior_sigma).sum()
    pairs = [(each, grad) for each, grad in zip(found, by, strict=True) if grad is not None]
    return torch.autograd.grad(
        [each for each, _ in pairs], (mean, rho), [grad for _, grad in pairs], create_graph=True,
        allow_unused=True,
    )  # fmt: skip


def sample(mean: Tensor, rho: Tensor, noise: Tensor, prior_sigma: float) -> tuple[Tensor, Tensor]:
    """Weights μ + σ ε, and the divergence from the prior in nats, ``()``.

    Args:
        mean: μ, any shape; see :func:`serves`.
        rho: ρ, of the same shape.
        noise: ε, of the same shape.
        prior_sigma: standard deviation of the prior.
    """
    out, total = _Weights.apply(mean, rho, noise, prior_sigma, True)  # type: ignore[no-untyped-call]
    return out, total


def deviate(mean: Tensor, rho: Tensor, noise: Tensor, prior_sigma: float) -> tuple[Tensor, Tensor]:
    """Deviations σ ε, and the divergence; arguments are those of :func:`sample`."""
    out, total = _Weights.apply(mean, rho, noise, prior_sigma, False)  # type: ignore[no-untyped-call]
    return out, total


def variance(mean: Tensor, rho: Tensor, prior_sigma: float) -> tuple[Tensor, Tensor]:
    """Variances σ², and the divergence; arguments are those of :func:`sample`."""
    out, total = _Weights.apply(mean, rho, None, prior_sigma, False)  # type: ignore[no-untyped-call]
    return out, total
