"""Backpropagation through any module with a chosen derivative in place of sign's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradlab.binary import sign, straight_through
from gradlab.evaluation.module.graph import intercepted_functions

_SIGNS = {torch.sign, torch.sgn, Tensor.sign, Tensor.sgn}
_SIGNS_IN_PLACE = {Tensor.sign_, Tensor.sgn_}


@dataclass(frozen=True)
class _Kept:
    """A value already known, with the derivative of a rule."""

    value: Tensor
    rule: Any

    def forward(self, x: Tensor) -> Tensor:
        return self.value

    def derivative(self, x: Tensor) -> Tensor:
        found: Tensor = self.rule.derivative(x)
        return found


class _SurrogateMode(TorchFunctionMode):
    def __init__(self, surrogate: Any, weight_surrogate: Any, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.weight_surrogate = weight_surrogate
        self.weights = {id(weight) for weight in weights}
        self._replacing = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SIGNS:
            x = args[0] if args else kwargs["input"]
            return self.replaced(x, func(*args, **kwargs))
        if func in _SIGNS_IN_PLACE:
            x = args[0].clone()
            return args[0].copy_(self.replaced(x, torch.sign(x)))
        if func is torch.where and sys._getframe(1).f_code is sign.__code__:
            # the last step of gradlab's own sign, which is no function of torch's
            return self.replaced(args[1], func(*args, **kwargs))
        return func(*args, **kwargs)

    def replaced(self, x: Tensor, value: Tensor) -> Tensor:
        """``value`` as a function of x whose derivative is the surrogate's."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        rule = self.surrogate
        if id(x) in self.weights and self.weight_surrogate is not None:
            rule = self.weight_surrogate
        elif getattr(rule, "weights_only", False):
            raise ValueError(
                f"the surrogate {type(rule).__name__} is for weights, not for activations: choose "
                "another, e.g. hardtanh."
            )
        # what stands in for a sign may itself look like one
        self._replacing = True
        try:
            drawn = rule.draw(x) if hasattr(rule, "draw") else _Kept(value.detach(), rule)
            return straight_through(x, drawn)
        finally:
            self._replacing = False

    def applied(self, cls: Any, apply: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """An ``autograd.Function``: the surrogate's derivative if it is a sign, else its own."""
        value = apply(*args, **kwargs)
        if self._replacing or not torch.is_grad_enabled():
            return value
        places = [i for i, arg in enumerate(args) if isinstance(arg, Tensor)]
        if len(places) != 1 or not isinstance(value, Tensor):
            return value
        x = args[places[0]].detach()
        with torch.no_grad():
            mirrored = [*args]
            mirrored[places[0]] = -x
            if not (_is_sign(value, x) and _is_sign(apply(*mirrored, **kwargs), -x)):
                return value
        return self.replaced(args[places[0]], value)


def _is_sign(value: Tensor, x: Tensor) -> bool:
    """Whether ``value`` is sign(x), whatever it is where x is 0 or NaN."""
    if value.shape != x.shape or not value.is_floating_point():
        return False
    return bool(((value == torch.sign(x)) | (x == 0) | x.isnan()).all())


@contextmanager
def surrogate_derivatives(
    surrogate: Any, weight_surrogate: Any = None, weights: Iterable[Tensor] = ()
) -> Iterator[None]:
    """Inside, every sign has the surrogate's derivative; its value stays what it is.

    Signs are ``torch.sign``, ``torch.sgn``, their methods, gradlab's ``sign`` and ``binarize``, and
    any ``torch.autograd.Function`` of one tensor that turns out to be a sign on that tensor and on
    its negative, whatever its own backward pass. A stochastic surrogate replaces the value, too, by
    one of its draws, which is what it is for.

    Args:
        surrogate: see :mod:`gradlab.binary.surrogates`.
        weight_surrogate: for the sign of a tensor in ``weights``; ``surrogate`` if left out.
        weights: tensors, recognized by identity.

    Raises:
        ValueError: the surrogate is for weights only and meets an activation.

    >>> from gradlab.binary import surrogates
    >>> x = torch.tensor([-0.5, 0.25], requires_grad=True)
    >>> with surrogate_derivatives(surrogates.create("polynomial")):
    ...     y = torch.sign(x)
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([-1.0, 1.0], [1.0, 1.5])
    """
    mode = _SurrogateMode(surrogate, weight_surrogate, weights)
    with mode, intercepted_functions(mode.applied):
        yield
