"""A forward function with a derivative that is not its own: gradlab's one autograd primitive."""

from __future__ import annotations

import functools
from collections.abc import Callable
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


class _ReverseMode(torch.autograd.Function):
    """Backpropagation alone: torch.compile traces no function that has a ``jvp``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rule: Rule) -> Tensor:
        return rule.forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Rule], output: Tensor) -> None:
        x, ctx.rule = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        gradient: Tensor = grad * ctx.rule.derivative(x)
        return gradient, None


class _StraightThrough(_ReverseMode):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Rule], output: Tensor) -> None:
        x, ctx.rule = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        result: Tensor = tangent * ctx.rule.derivative(x)
        return result


def straight_through(x: Tensor, rule: Rule) -> Tensor:
    """``rule.forward(x)``, differentiated as if its slope were ``rule.derivative(x)``.

    Works in both modes, composes with ``torch.func.grad``, ``vmap`` and ``jvp``, and compiles.

    >>> class Step:
    ...     def forward(self, x): return (x >= 0).to(x.dtype)
    ...     def derivative(self, x): return torch.full_like(x, 0.5)
    >>> x = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> y = straight_through(x, Step())
    >>> y.sum().backward()
    >>> y.tolist(), x.grad.tolist()
    ([0.0, 1.0], [0.5, 0.5])
    """
    function = _ReverseMode if torch.compiler.is_compiling() else _StraightThrough
    result: Tensor = function.apply(x, rule)  # type: ignore[no-untyped-call]
    return result


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rule: Rule) -> Tensor:
        ctx.rule = rule
        ctx.save_for_backward(x)
        value, _ = _compiled()
        return value(x, rule)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        _, slope = _compiled()
        return slope(grad, x, ctx.rule), None


@functools.cache
def _compiled() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """The forward and the backward pass of any rule, each compiled into one loop over memory."""
    # A float that differs between two calls is otherwise made a symbol, and powers of it come out
    # wrong (seen in torch 2.13 with the derivative of ReSTE): no number may change unseen here.
    torch._dynamo.config.specialize_float = True

    def value(x: Tensor, rule: Rule) -> Tensor:
        return rule.forward(x)

    def slope(grad: Tensor, x: Tensor, rule: Rule) -> Tensor:
        return grad * rule.derivative(x)

    return torch.compile(value, dynamic=True), torch.compile(slope, dynamic=True)


def fused_straight_through(x: Tensor, rule: Rule) -> Tensor:
    """:func:`straight_through` by two compiled loops, for eager training on a processor.

    A surrogate written with torch operations passes over memory a dozen times; a sign and its
    derivative are then dearer than the convolution between them. Compiling takes seconds, once per
    rule, and needs a C++ compiler. Only for backpropagation: no ``torch.func``, no tracing.

    Args:
        x: floating-point tensor of any shape.
        rule: its forward and derivative are elementwise and free of randomness.
    """
    result: Tensor = _Fused.apply(x, rule)  # type: ignore[no-untyped-call]
    return result
