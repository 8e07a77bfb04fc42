r"""Signs as people write them, so that a surrogate derivative can take the place of their own.

:func:`gradlab.objectives.surrogate_mode.surrogate_derivatives` knows ``torch.sign`` and every
``autograd.Function`` that is a sign. People also write

- a comparison: ``torch.where(x >= 0, 1.0, -1.0)``, ``(x > 0).float()``, ``2.0 * (x >= 0) - 1``,
  ``torch.heaviside(x, one)``: steps, half a sign plus a constant;
- a sign beside its own straight-through derivative: ``x + (torch.sign(x) - x).detach()``, where x
  may be clipped and the sign scaled. With sign alone replaced, every surrogate would give the
  derivative that is written there.

:func:`written_signs` makes both into signs with unchanged values. ``x * (x > 0).float()`` is a
rectifier, whose derivative is its own, and stays one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradlab.binary import sign
from gradlab.evaluation.module.program import Program
from gradlab.evaluation.population import Params
from gradlab.objectives.surrogate_mode import surrogate_derivatives

_ABOVE = {"gt": 1, "ge": 1, "lt": -1, "le": -1}
_CASTS = {"float", "double", "half", "bfloat16", "to", "type", "type_as", "int", "long"}
_SIGNS = {torch.sign, torch.sgn, Tensor.sign, Tensor.sgn}
# what a step times or plus a number is, as a multiple of its height
_HEIGHTS: dict[str, Callable[[Any], Any]] = {
    "mul": lambda other: other,
    "add": lambda _: 1,
    "sub": lambda _: 1,
    "rsub": lambda _: -1,
    "neg": lambda _: -1,
}


@dataclass(frozen=True)
class _Step:
    """A value that jumps by ``height`` where ``x`` exceeds ``threshold``."""

    value: Tensor  # kept, so that its id stays its own
    x: Tensor
    threshold: Any
    height: Any


@dataclass(frozen=True)
class _Residual:
    """A step minus something, or something minus a step."""

    value: Tensor
    step: _Step
    other: Tensor
    sign: int
    detached: bool


class _WrittenSigns(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, _Step] = {}
        self.residuals: dict[int, _Residual] = {}
        self.origins: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.where and sys._getframe(1).f_code is sign.__code__:
            # the last step of gradlab's own sign, which the surrogates' mode knows by its caller
            return self.through(func(*args, **kwargs), args[1], 0, 2)
        value = func(*args, **kwargs)
        if not args or not isinstance(value, Tensor):
            return value
        name = str(getattr(func, "__name__", ""))
        name = "rsub" if name == "__rsub__" else name
        if func in _SIGNS:
            return self.known(value, args[0], 0, 2)
        if name in _ABOVE and len(args) == 2 and isinstance(args[0], Tensor):
            return self.known(value, args[0], args[1], _ABOVE[name])
        if name == "where" and len(args) == 3:
            return self.chosen(value, *args)
        if name == "heaviside":
            return self.through(value, args[0], 0, 1)
        if name == "detach" or (name == "__get__" and _is_data(func)):
            return self.detached(value, args[0])
        if name in _CASTS and id(args[0]) in self.steps:
            step = self.steps[id(args[0])]
            return self.moved(value, step, step.height)
        if name in _HEIGHTS:
            return self.combined(name, value, args)
        return value

    def known(self, value: Tensor, x: Any, threshold: Any, height: Any) -> Tensor:
        """``value``, remembered as a step in x."""
        x = self.origins[id(x)][1] if id(x) in self.origins else x
        if isinstance(x, Tensor) and x.is_floating_point() and not _varies(threshold):
            self.steps[id(value)] = _Step(value, x, threshold, height)
        return value

    def chosen(self, value: Tensor, condition: Any, high: Any, low: Any) -> Tensor:
        """``torch.where`` of a comparison and two constants."""
        step = self.steps.get(id(condition))
        if step is None or value.dtype == torch.bool or _varies(high) or _varies(low):
            return value
        return self.moved(value, step, (high - low) * step.height)

    def combined(self, name: str, value: Tensor, args: tuple[Any, ...]) -> Tensor:
        """Arithmetic with steps and with what is left when something is subtracted from one."""
        first, other = args[0], args[1] if len(args) > 1 else None
        if name in ("add", "sub") and isinstance(other, Tensor):
            restored = self.restored(name, value, first, other)
            if restored is not None:
                return restored
        if id(first) not in self.steps and id(other) in self.steps and name == "mul":
            first, other = other, first
        step = self.steps.get(id(first))
        if name == "sub" and isinstance(other, Tensor) and isinstance(first, Tensor):
            sign_of = 1 if step is not None else -1
            step = step or self.steps.get(id(other))
            if step is not None:
                rest = other if sign_of == 1 else first
                self.residuals[id(value)] = _Residual(
                    value, step, rest, sign_of, not value.requires_grad
                )
            return value
        if step is None:
            return value
        if name == "mul" and other is step.x and value.is_floating_point():
            # a rectifier: here the step is a derivative
            return other * step.value.detach()
        if name == "mul" and isinstance(other, Tensor) and first.is_floating_point():
            # sign(x)·α has its derivative already; remembered for what may be subtracted from it
            scale = step.height * other.detach()
            self.steps[id(value)] = _Step(value, step.x, step.threshold, scale)
            return value
        if first.is_floating_point() or _varies(other):
            return value
        return self.moved(value, step, _HEIGHTS[name](other) * step.height)

    def moved(self, value: Tensor, step: _Step, height: Any) -> Tensor:
        """A value that steps where ``step`` does: with a derivative as soon as it can have one."""
        if not value.is_floating_point():
            self.steps[id(value)] = _Step(value, step.x, step.threshold, height)
            return value
        if step.value.is_floating_point():
            return value  # a cast of a sign, which is differentiable itself
        return self.through(value, step.x, step.threshold, height)

    def detached(self, value: Tensor, x: Tensor) -> Tensor:
        found = self.residuals.get(id(x))
        if found is not None:
            self.residuals[id(value)] = _Residual(
                value, found.step, found.other, found.sign, detached=True
            )
        step = self.steps.get(id(x))
        if step is not None:
            self.steps[id(value)] = _Step(value, step.x, step.threshold, step.height)
        elif x.requires_grad:
            self.origins[id(value)] = (value, x)
        return value

    def restored(self, name: str, value: Tensor, first: Any, second: Any) -> Tensor | None:
        """``y + (sign(x) - y).detach()`` or ``y - (y - sign(x)).detach()`` as the sign."""
        for rest, y in ((second, first), (first, second)):
            found = self.residuals.get(id(rest))
            if found is None or not found.detached or not isinstance(y, Tensor):
                continue
            wanted = 1 if name == "add" else -1
            same = found.other is y or torch.equal(found.other, y)
            if found.sign == wanted and same and (name == "add" or rest is second):
                step = found.step
                return self.through(value.detach(), step.x, step.threshold, step.height)
        return None

    def through(self, value: Tensor, x: Any, threshold: Any, height: Any) -> Tensor:
        """``value`` with the derivative of half of ``height`` times a sign."""
        if not torch.is_grad_enabled() or not (isinstance(x, Tensor) and x.requires_grad):
            return self.known(value, x, threshold, height)
        difference = x if isinstance(threshold, int | float) and threshold == 0 else x - threshold
        # whose mode the next one is: there sign has its surrogate derivative
        replaced = torch.sign(difference)
        change = (replaced - replaced.detach()) * (height / 2)
        result: Tensor = value.detach() + change.to(value.dtype)
        return self.known(result, x, threshold, height)


def _is_data(func: Any) -> bool:
    return getattr(func, "__self__", None) is Tensor.data


def _varies(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


@contextmanager
def written_signs() -> Iterator[None]:
    """Inside, comparisons and signs beside their own derivative act as signs; see the module.

    To be entered inside :func:`gradlab.objectives.surrogate_mode.surrogate_derivatives`.

    >>> from gradlab.binary import surrogates
    >>> x = torch.tensor([-0.5, 0.25], requires_grad=True)
    >>> with surrogate_derivatives(surrogates.create("polynomial")), written_signs():
    ...     y = torch.where(x >= 0, 1.0, -1.0)
    ...     z = x + (torch.sign(x) - x).detach()
    >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
    ([-1.0, 1.0], [1.0, 1.5])
    >>> z.tolist(), torch.autograd.grad(z.sum(), x)[0].tolist()
    ([-1.0, 1.0], [1.0, 1.5])
    """
    with _WrittenSigns():
        yield


@dataclass
class SignCount:
    """How many signs a forward pass takes of something that depends on a parameter.

    Attributes:
        activations: signs of what is computed.
        weights: signs of parameters themselves.
    """

    activations: int = 0
    weights: int = 0


@dataclass
class _Counting:
    """A surrogate that counts where it is asked for."""

    weights: bool
    count: SignCount = field(default_factory=SignCount)

    def draw(self, x: Tensor) -> Any:
        if self.weights:
            self.count.weights += 1
        else:
            self.count.activations += 1
        return _Half()


class _Half:
    """Half a sign: a whole one would itself be replaced."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 0.5, -0.5).to(x.dtype)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def count_signs(program: Program, inputs: Tensor, params: Params) -> SignCount:
    """Count the signs of one forward pass on a few examples.

    Args:
        program: the module.
        inputs: ``(B, ...)``.
        params: all parameters.
    """
    leaves = {name: w.detach().clone().requires_grad_() for name, w in params.items()}
    count = SignCount()
    rules = _Counting(False, count), _Counting(True, count)
    with torch.enable_grad(), surrogate_derivatives(*rules, leaves.values()), written_signs():
        program.whole(inputs, leaves)
    return count
