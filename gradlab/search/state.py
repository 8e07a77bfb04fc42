"""The state of a search: tensors and whole numbers, so that it can be stored without pickle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradlab.estimators.base import require_finite
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params

_NUMBERS = ("key", "generation", "drawn", "evaluations", "failed")
_BEST, _EXTRA = "best/", "extra/"


@dataclass(frozen=True)
class SearchState:
    """Everything that the next generation depends on.

    Attributes:
        mean: the search distribution's mean, ``(d,)`` float64, flat in the order of ``best``.
        spread: its width in float64, as the method keeps it: a standard deviation, one for each
            coordinate, or a matrix.
        best: the best parameters evaluated so far; their names, shapes and dtypes are those of
            the objective. Until something was evaluated, the starting point.
        best_loss: their loss, () float64; infinite until something was evaluated.
        key: 64-bit key of all noise.
        generation: generations told so far.
        drawn: members of the noise stream used up.
        evaluations: losses computed so far, counted in forward passes.
        failed: how many of them were NaN or infinite.
        extra: what a method remembers beyond that.

    >>> start = begin({"w": torch.zeros(3)}, torch.Generator().manual_seed(0), torch.ones(3))
    >>> restored = SearchState.restore(start.tensors(), start.numbers())
    >>> restored.key == start.key, torch.equal(restored.mean, start.mean)
    (True, True)
    """

    mean: Tensor
    spread: Tensor
    best: Params
    best_loss: Tensor
    key: int
    generation: int = 0
    drawn: int = 0
    evaluations: int = 0
    failed: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)

    def params(self) -> Params:
        """The mean as the objective's parameters."""
        return as_params(self.mean, self.best)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for instance for a safetensors file."""
        return {
            "mean": self.mean,
            "spread": self.spread,
            "best_loss": self.best_loss,
            **{_BEST + name: tensor for name, tensor in self.best.items()},
            **{_EXTRA + name: tensor for name, tensor in self.extra.items()},
        }

    def numbers(self) -> dict[str, int]:
        """All whole numbers by name, and the place of each tensor in the flat mean."""
        order = {_BEST + name: place for place, name in enumerate(self.best)}
        return {name: getattr(self, name) for name in _NUMBERS} | order

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> SearchState:
        """The state that :meth:`tensors` and :meth:`numbers` came from.

        Raises:
            ValueError: one of them is missing.
        """
        names = sorted((key for key in numbers if key.startswith(_BEST)), key=numbers.__getitem__)
        needed = {"mean", "spread", "best_loss", *names}
        missing = sorted(needed - set(tensors)) + sorted(set(_NUMBERS) - set(numbers))
        if missing or not names:
            raise ValueError(
                f"this is no stored state of a search (missing: {', '.join(missing) or _BEST}): "
                "give what tensors() and numbers() returned."
            )
        # libraries of linear algebra round by where in memory a tensor lies: copies lie as ours do
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        return cls(
            mean=tensors["mean"],
            spread=tensors["spread"],
            best={name.removeprefix(_BEST): tensors[name] for name in names},
            best_loss=tensors["best_loss"],
            extra={
                name.removeprefix(_EXTRA): tensor
                for name, tensor in tensors.items()
                if name.startswith(_EXTRA)
            },
            **{name: int(numbers[name]) for name in _NUMBERS},
        )


def begin(params: Params, generator: torch.Generator, spread: Tensor) -> SearchState:
    """The state before the first generation; takes one key from the generator.

    Raises:
        ValueError: a parameter is not finite, or no floating-point number.
    """
    params = require_finite(params)
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"parameter {name} is of type {tensor.dtype}: search needs floating-point numbers."
            )
    mean = pop.flatten(params).double()
    return SearchState(
        mean=mean,
        spread=spread.to(mean),
        best={k: v.clone(memory_format=torch.contiguous_format) for k, v in params.items()},
        best_loss=torch.full((), math.inf, dtype=torch.float64, device=mean.device),
        key=draw_key(generator),
    )


def consider(state: SearchState, params: Params, loss: Tensor) -> SearchState:
    """The state after one more evaluation: ``params`` are its best if their loss is lower."""
    loss = loss.detach().double()
    state = replace(state, evaluations=state.evaluations + 1)
    if not bool(loss < state.best_loss):
        return state
    return replace(state, best={k: v.detach().clone() for k, v in params.items()}, best_loss=loss)


def as_params(flat: Tensor, like: Params) -> Params:
    """Flat float64 rows ``(..., d)`` with the names, shapes and dtypes of ``like``."""
    parts = pop.unflatten(flat, like)
    return {name: tensor.to(like[name].dtype) for name, tensor in parts.items()}
