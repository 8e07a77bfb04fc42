r"""The divergence of a layer and its gradient in one pass over the weights, for processors.

Written with torch operations, the KL term of a layer whose parameters are θ and ln σ² passes over
memory two dozen times, and costs as much as its matrix products. Here one compiled loop computes

.. math:: \sum_i k_1 (1 - s(y_i)) + \tfrac12 \ln(1 + 1/\alpha_i), \quad y_i = k_2 + k_3 \ln\alpha_i,
          \quad \ln\alpha_i = \ln\sigma_i^2 - \ln(\theta_i^2 + 10^{-8}),

with s the logistic function, together with both derivatives, which backpropagation then only
scales. With k₁ = 0 it is the divergence under a prior that learns its width. Logarithm and
exponential are polynomials, good to a few units in the last place of float32; the logarithms of
1 + 1/α are those of products of many of them. Numba compiles it when it is first called, in
seconds, and keeps the result beside this file.

>>> weight, log_sigma2 = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0])
>>> float(divergence(weight, log_sigma2, ard))  # ½ ln 2 + ½ ln 1.01
0.351...
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gradlab._kernels import kernel_function
from gradlab.evaluation.compiled.noise import _bits, _float
from gradlab.evaluation.noise import LN2_HIGH, LN2_LOW, LOG, SQRT_HALF_BITS
from gradlab.variational.kl import _K1, _K2, _K3, ard, log_uniform

f32, i32 = np.float32, np.int32
# Sums may be reordered, which vectors need, and products fused into sums. NaN and ∞ stay.
_compiled = kernel_function(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

Fit: TypeAlias = Callable[[Tensor], Tensor]
# k₁, k₂ and k₃ of the divergences that the kernel computes. They are arguments of it: Numba's cache
# would not notice a change in another file.
FITS: dict[Fit, tuple[float, float, float]] = {log_uniform: (_K1, _K2, _K3), ard: (0.0, 0.0, 0.0)}

# Weights whose factors 1 + exp(−|ln α|) ≤ 2 are multiplied before one logarithm is taken.
_FACTORS = 96
_EXP2 = tuple(f32(math.log(2) ** n / math.factorial(n)) for n in range(7))
_LARGEST = f32(80.0)


@_compiled
def _exp(x: Any) -> Any:
    """Of |x| ≤ 80."""
    scaled = x * f32(1 / math.log(2))
    whole = i32(scaled + f32(256.5)) - i32(256)
    rest = scaled - f32(whole)
    series = _EXP2[6]
    series = series * rest + _EXP2[5]
    series = series * rest + _EXP2[4]
    series = series * rest + _EXP2[3]
    series = series * rest + _EXP2[2]
    series = series * rest + _EXP2[1]
    series = series * rest + _EXP2[0]
    return _float(i32(_bits(series) + (whole << i32(23))))


@_compiled
def _log(x: Any) -> Any:
    """Of normal positive numbers, ∞ and NaN."""
    bits = _bits(x)
    exponent = i32(i32(bits - i32(SQRT_HALF_BITS)) >> i32(23))
    rest = _float(i32(bits - (exponent << i32(23)))) - f32(1.0)
    series = f32(LOG[7])
    series = series * rest + f32(LOG[6])
    series = series * rest + f32(LOG[5])
    series = series * rest + f32(LOG[4])
    series = series * rest + f32(LOG[3])
    series = series * rest + f32(LOG[2])
    series = series * rest + f32(LOG[1])
    series = series * rest + f32(LOG[0])
    scale, square = f32(exponent), rest * rest
    tail = square * rest * series + scale * f32(LN2_LOW)
    found = scale * f32(LN2_HIGH) + (rest + (tail - f32(0.5) * square))
    return found if x < f32(np.inf) else x  # NaN too


@_compiled
def _divergence(
    weight: Any, log_sigma2: Any, by_weight: Any, by_log_sigma2: Any, k1: Any, k2: Any, k3: Any
) -> Any:
    """The sum; derivatives are written to the second two arrays."""
    total = 0.0
    for start in range(0, weight.size, _FACTORS):
        part = slice(start, start + _FACTORS)
        w, s = weight[part], log_sigma2[part]
        of_w, of_s = by_weight[part], by_log_sigma2[part]
        factors, terms = f32(1.0), f32(0.0)
        for i in range(len(w)):
            square = w[i] * w[i] + f32(1e-8)
            log_alpha = s[i] - _log(square)
            size = abs(log_alpha)
            z = _exp(-(_LARGEST if size > _LARGEST else size))
            y = k2 + k3 * log_alpha
            y = _LARGEST if y > _LARGEST else y
            y = -_LARGEST if y < -_LARGEST else y
            rest = f32(1.0) / (f32(1.0) + _exp(y))
            # the absolute value lets NaN through, comparisons do not
            terms += k1 * rest + f32(0.25) * (size - log_alpha)
            factors *= f32(1.0) + z
            small = (z if log_alpha > 0 else f32(1.0)) / (f32(1.0) + z)
            slope = k3 * k1 * rest * (rest - f32(1.0)) - f32(0.5) * small
            of_s[i] = slope
            of_w[i] = slope * f32(-2.0) * w[i] / square
        total += float(terms) + 0.5 * math.log(factors)
    return total


@_compiled
def _bound(weight: Any, log_sigma2: Any, low: Any, high: Any) -> None:
    """Move ln σ² until ln α lies in [low, high]."""
    for i in range(len(weight)):
        centre = _log(weight[i] * weight[i] + f32(1e-8))
        value = log_sigma2[i]
        value = centre + low if value < centre + low else value
        log_sigma2[i] = centre + high if value > centre + high else value


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, log_sigma2: Tensor, fit: Fit) -> Tensor:
        total, ctx.slopes = _with_slopes(weight, log_sigma2, fit)
        ctx.fit = fit
        ctx.save_for_backward(weight, log_sigma2)
        return weight.new_tensor(total)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, log_sigma2 = saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants second derivatives
            log_alpha = log_sigma2 - torch.log(weight.square() + 1e-8)
            total = ctx.fit(log_alpha).sum()
            exact = torch.autograd.grad(total, saved, create_graph=True)
            return grad * exact[0], grad * exact[1], None
        # Slopes become gradients in place, for fresh memory costs more than what is written to it;
        # a graph that is kept and walked again computes them again.
        slopes = ctx.slopes or _with_slopes(weight, log_sigma2, ctx.fit)[1]
        ctx.slopes = None
        return slopes[0].mul_(grad), slopes[1].mul_(grad), None


def _with_slopes(
    weight: Tensor, log_sigma2: Tensor, fit: Fit
) -> tuple[float, tuple[Tensor, Tensor]]:
    slopes = torch.empty_like(weight), torch.empty_like(log_sigma2)
    total = _divergence(*_arrays(weight, log_sigma2, *slopes), *(f32(k) for k in FITS[fit]))
    return float(total), slopes


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().reshape(-1).numpy() for tensor in tensors]


def serves(weight: Tensor, log_sigma2: Tensor) -> bool:
    """Whether the functions here take these: float32 on a processor, in one piece, not traced."""
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous()
            for t in (weight, log_sigma2))
        and not torch.compiler.is_compiling()
    )  # fmt: skip


def divergence(weight: Tensor, log_sigma2: Tensor, fit: Fit) -> Tensor:
    """``fit(log_alpha).sum()`` in nats, ``()``.

    Args:
        weight: θ, any shape; see :func:`serves`.
        log_sigma2: ln σ², of the same shape.
        fit: one of ``FITS``.
    """
    total: Tensor = _Divergence.apply(weight, log_sigma2, fit)  # type: ignore[no-untyped-call]
    return total


def bound(weight: Tensor, log_sigma2: Tensor, low: float, high: float) -> None:
    """Move ln σ², in place, until ln α lies in [low, high]; what is inside keeps its bits.

    Args:
        weight: θ, any shape; see :func:`serves`.
        log_sigma2: ln σ², of the same shape.
        low: smallest ln α.
        high: largest ln α.
    """
    _bound(*_arrays(weight, log_sigma2), f32(low), f32(high))
