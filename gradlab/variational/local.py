r"""A linear map whose outputs are drawn: the local reparameterization trick as one operation.

.. math:: y_b = x_b W^\top + c + \sqrt{(x_b \odot x_b) V^\top} \odot \varepsilon_b

with V the variances of the weights (Kingma, Salimans and Welling 2015, arXiv 1506.02557, equation
6). Written with torch's operations, backpropagation walks through a dozen of them; here the
gradient is written out, from what the forward pass keeps anyway: x, x², the deviation and ε.

>>> x, weight = torch.ones(4, 3), torch.ones(2, 3)
>>> local_linear(x, weight, None, torch.zeros(2, 3)).unique()
tensor([3.])
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.variational.draws import standard_normal


def local_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """A draw from N(mean, variance), elementwise and independent; a variance of 0 is harmless."""
    return _drawn(mean, variance, standard_normal(mean.shape, mean))


def local_linear(x: Tensor, weight: Tensor, bias: Tensor | None, variance: Tensor) -> Tensor:
    """A draw of the outputs ``(…, out)`` of a linear map with independent Gaussian weights.

    Args:
        x: ``(…, in)``.
        weight: means, ``(out, in)``.
        bias: without noise, ``(out,)``, or None.
        variance: of the weights, ``(out, in)``.
    """
    if not _plain(x, weight, variance):
        return local_noise(F.linear(x, weight, bias), F.linear(x * x, variance))
    flat = x.reshape(-1, x.shape[-1])
    out: Tensor = _LocalLinear.apply(flat, weight, bias, variance)  # type: ignore[no-untyped-call]
    return out.reshape(*x.shape[:-1], len(weight))


def _plain(*tensors: Tensor) -> bool:
    """Whether nothing rewrites operations (a compiler, autocast, ``torch.func``), or differs."""
    first = tensors[0]
    return (
        all(t.dtype == first.dtype and t.device == first.device for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(first.device.type)
        and not torch._C._are_functorch_transforms_active()
    )


def _smallest(variance: Tensor) -> float:
    """What a variance is raised to: the square root's derivative is infinite at 0, and 0·∞ is NaN.

    Some algorithms for convolutions even return sums of squares that are a little negative.
    """
    return torch.finfo(variance.dtype).tiny


def _drawn(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    return mean + variance.clamp(min=_smallest(variance)).sqrt() * noise


class _LocalLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, variance: Tensor
    ) -> Tensor:
        squares = x * x
        out = F.linear(x, weight, bias)
        deviation = F.linear(squares, variance)
        smallest = _smallest(deviation)
        still = deviation < smallest
        deviation.clamp_(min=smallest).sqrt_()
        noise = standard_normal(out.shape, out)
        ctx.save_for_backward(x, weight, bias, variance, squares, deviation, noise, still)
        return out.addcmul_(deviation, noise)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        x, weight, bias, variance, squares, deviation, noise, still = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants second derivatives
            return _exact(grad, noise, x, weight, bias, variance)
        of_x, of_weight, of_bias, of_variance = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * 4
        if of_x or of_variance:
            by_variance = (grad * noise).div_(deviation).mul_(0.5).masked_fill_(still, 0.0)
            if of_variance:
                found[3] = by_variance.T @ squares
        if of_x:
            found[0] = (by_variance @ variance).mul_(x).mul_(2).addmm_(grad, weight)
        if of_weight:
            found[1] = grad.T @ x
        if of_bias:
            found[2] = grad.sum(0)
        return found[0], found[1], found[2], found[3]


def _exact(
    grad: Tensor, noise: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, variance: Tensor
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradient as a graph of torch's operations."""
    given = {"x": x, "weight": weight, "bias": bias, "variance": variance}
    wanted = {name: t for name, t in given.items() if t is not None and t.requires_grad}
    out = _drawn(F.linear(x, weight, bias), F.linear(x * x, variance), noise)
    grads = torch.autograd.grad(out, list(wanted.values()), grad, create_graph=True)
    found = dict(zip(wanted, grads, strict=True))
    return found.get("x"), found.get("weight"), found.get("bias"), found.get("variance")
