r"""A linear map whose outputs are drawn: the local reparameterization trick as one operation.

.. math:: y_b = x_b W^\top + c + \sqrt{(x_b \odot x_b) V^\top} \odot \varepsilon_b

with V the variances of the weights (Kingma, Salimans and Welling 2015, arXiv 1506.02557, equation
6). Written with torch's operations, backpropagation walks through a dozen of them; here the
gradient is written out, from x, x² and the derivative of the draw by its variance.

>>> x, weight = torch.ones(4, 3), torch.ones(2, 3)
>>> local_linear(x, weight, None, torch.zeros(2, 3)).unique()
tensor([3.])
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.evaluation.noise import compiled_problem
from gradlab.variational.draws import dense, standard_normal, standard_normal_like


def local_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """A draw from N(mean, variance), elementwise and independent; a variance of 0 is harmless.

    Both are to be of one shape. The draws lie in memory in the order of ``mean``, so that another
    memory format has other draws.
    """
    if not _plain(mean, variance):
        return _drawn(mean, variance, standard_normal(mean.shape, mean))
    out: Tensor = _LocalNoise.apply(mean, variance)  # type: ignore[no-untyped-call]
    return out


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


def draw(mean: Tensor, variance: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A draw and its derivative by the variance, ε/(2√v), 0 where there is none.

    Args:
        mean: any shape.
        variance: of the same shape.
        noise: standard normal, of the same shape; **may be overwritten**.

    >>> mean, variance = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])
    >>> [t.tolist() for t in draw(mean, variance, torch.tensor([0.5, 1.0]))]
    [[2.0, 2.0], [0.125, 0.0]]
    """
    if _compiled(mean, variance, noise):
        from gradlab.variational import draw_kernel

        return draw_kernel.draw(mean, variance, noise), noise
    smallest = _smallest(variance)
    deviation = variance.clamp(min=smallest).sqrt()
    slope = (noise / deviation).mul_(0.5).masked_fill_(variance < smallest, 0.0)
    return mean + deviation * noise, slope


def _compiled(*tensors: Tensor) -> bool:
    """Whether compiled loops take these: float32 on a processor, all in one order, not traced."""
    first = tensors[0]
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors)
        and all(t.shape == first.shape and t.stride() == first.stride() for t in tensors)
        and dense(first)
        and not torch.compiler.is_compiling()
        and compiled_problem() is None
    )


def _noise_of(slope: Tensor, variance: Tensor) -> Tensor:
    """The noise that a draw's derivative was made of; 0 where the variance is none."""
    return 2 * slope * variance.clamp(min=_smallest(variance)).sqrt()


class _LocalNoise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> Tensor:
        out, slope = draw(mean, variance, standard_normal_like(mean))
        ctx.save_for_backward(variance, slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        variance, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants second derivatives
            noise = _noise_of(slope, variance.detach())
            slope = 0.5 * noise * variance.clamp(min=_smallest(variance)).rsqrt()
        of_mean, of_variance = ctx.needs_input_grad
        return grad if of_mean else None, grad * slope if of_variance else None


class _LocalLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, variance: Tensor
    ) -> Tensor:
        squares = x * x
        mean = F.linear(x, weight, bias)
        out, slope = draw(mean, F.linear(squares, variance), standard_normal_like(mean))
        ctx.save_for_backward(x, weight, bias, variance, squares, slope)
        return out

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        x, weight, bias, variance, squares, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants second derivatives
            noise = _noise_of(slope, F.linear(squares, variance).detach())
            return _exact(grad, noise, x, weight, bias, variance)
        of_x, of_weight, of_bias, of_variance = ctx.needs_input_grad
        found: list[Tensor | None] = [None] * 4
        if of_x or of_variance:
            by_variance = grad * slope
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
