"""A forward function with a derivative that is not its own: gradlab's one autograd primitive."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Rule(Protocol):
    """What the forward pass computes, and what the backward pass multiplies by, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """The value; same shape, dtype and device as x."""

    def derivative(self, x: Tensor) -> Tensor:
        """The multiplier of the incoming gradient; same shape, dtype and device as x."""


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rule: Rule) -> Tensor:
        return rule.forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Rule], output: Tensor) -> None:
        x, ctx.rule = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        gradient: Tensor = grad * ctx.rule.derivative(x)
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = tangent * ctx.rule.derivative(x)
        return result


def straight_through(x: Tensor, rule: Rule) -> Tensor:
    """``rule.forward(x)``, differentiated as if its slope were ``rule.derivative(x)``.

    Works in both modes and composes with ``torch.func.grad``, ``vmap`` and ``jvp``.

    >>> class Step:
    ...     def forward(self, x): return (x >= 0).to(x.dtype)
    ...     def derivative(self, x): return torch.full_like(x, 0.5)
    >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> y = straight_through(x, Step())
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 1.0], [0.5, 0.5])
    """
    result: Tensor = _StraightThrough.apply(x, rule)  # type: ignore[no-untyped-call]
    return result
