"""Backpropagation of a mean loss in blocks of examples, so that its memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.footprint import Footprint
from gradlab.evaluation.population import Params
from gradlab.objectives.surrogate_mode import surrogate_derivatives


def blocked_gradient(
    params: Params, size: int, block: int | None, loss: Callable[[Params, int, int], Tensor]
) -> Params:
    """The gradient of a sum over ``size`` examples, ``block`` of them at a time.

    Args:
        params: where, copied.
        size: number of examples.
        block: how many are backpropagated at a time, None for all of them.
        loss: of leaves like ``params``, ``start`` and ``stop``, what these examples add to the sum.

    Returns:
        A dict like ``params``; zero where the sum does not depend on a parameter.

    >>> x = torch.tensor([1.0, 2.0, 3.0])
    >>> blocked_gradient({"w": torch.tensor(2.0), "unused": torch.tensor(1.0)}, size=3, block=2,
    ...                  loss=lambda leaves, start, stop: (leaves["w"] * x[start:stop]).sum())
    {'w': tensor(6.), 'unused': tensor(0.)}
    """
    leaves = {name: w.detach().clone().requires_grad_() for name, w in params.items()}
    total = {name: torch.zeros_like(w) for name, w in params.items()}
    for start, stop in [(0, size)] if block is None else pop.chunks(size, block):
        with torch.enable_grad():
            part = loss(leaves, start, stop)
        if not part.requires_grad:
            continue
        gradients = torch.autograd.grad(part, list(leaves.values()), allow_unused=True)
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient
    return total


def module_gradient(
    evaluator: ModuleEvaluator,
    params: Params,
    surrogate: Any,
    weight_surrogate: Any,
    block: int,
    held: Mapping[str, Tensor] | None = None,
) -> Params:
    """The gradient of a module's mean loss with a surrogate derivative for every sign.

    Args:
        evaluator: the module on its batch.
        params: where.
        surrogate: derivative of the activations.
        weight_surrogate: derivative of the sign of a parameter, ``None`` for ``surrogate``.
        block: number of examples at a time.
        held: the module's other parameters, where ``params`` are not all.
    """
    program, size = evaluator.program, len(evaluator.inputs)

    def loss(leaves: Params, start: int, stop: int) -> Tensor:
        with surrogate_derivatives(surrogate, weight_surrogate, leaves.values()):
            outputs = program.whole(evaluator.inputs[start:stop], {**(held or {}), **leaves})
            return program.loss(outputs, evaluator.targets[start:stop]).sum() / size

    return blocked_gradient(params, size, block, loss)


def affordable_examples(evaluator: ModuleEvaluator, params: Params) -> int:
    """Number of examples that the evaluator's memory holds the backward pass of, at least one."""
    few = min(2, len(evaluator.inputs))
    with Footprint() as footprint, torch.no_grad():
        evaluator.program.whole(evaluator.inputs[:few], params)
    # what the backward pass keeps, and as much again for the gradients on their way
    kept: int = max(1, footprint.total)
    return max(1, evaluator.memory_bytes * few // (2 * kept))


def draws(*surrogates: object) -> bool:
    """Whether a surrogate draws from its input and so has to see the batch whole.

    Its scale may be the extremes of all pre-activations of the batch.
    """
    return any(hasattr(surrogate, "draw") for surrogate in surrogates)
