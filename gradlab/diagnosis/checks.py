"""What a network, a loss and a batch have to be, said in one sentence before any work starts."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gradlab._registry import unknown
from gradlab.diagnosis.objective import (
    BatchLoss,
    ModuleObjective,
    is_smooth,
    per_example_loss,
)
from gradlab.diagnosis.signs import count_signs
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.graph import one_line
from gradlab.evaluation.module.trial import check_arguments


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, random numbers may be drawn: torch's, numpy's and Python's go on as they were."""
    numbers, own = np.random.get_state(), random.getstate()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(own)


def chosen_layers(model: nn.Module, layers: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the parameters that are looked at, in the order of ``named_parameters()``.

    Args:
        model: the network.
        layers: names of parameters, or of modules, which stand for all their weights of two or more
            dimensions; if left out, all of those of the whole network.

    Raises:
        ValueError: an unknown name, or nothing to look at.

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> chosen_layers(model, None), chosen_layers(model, ["2", "1.bias"])
    (('0.weight', '2.weight'), ('1.bias', '2.weight'))
    """
    parameters = dict(model.named_parameters())
    floats = {name for name, w in parameters.items() if w.is_floating_point() and w.numel()}
    matrices = [name for name, w in parameters.items() if w.dim() > 1 and name in floats]
    if layers is None:
        if not matrices:
            raise ValueError(
                "the model has no weight of two or more dimensions: name its parameters in layers."
            )
        return tuple(matrices)
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"layers is {layers!r}: give a list of names, or leave it out for all.")
    modules = {name for name, _ in model.named_modules() if name}
    chosen: set[str] = set()
    for layer in layers:
        below = [name for name in matrices if name.startswith(f"{layer}.")]
        if layer in floats:
            chosen.add(layer)
        elif layer in modules and below:
            chosen.update(below)
        elif layer in modules:
            raise ValueError(
                f"the layer '{layer}' has no weight of two or more dimensions: name one of its "
                "parameters, or another layer."
            )
        else:
            raise ValueError(unknown("layer", str(layer), matrices))
    return tuple(name for name in parameters if name in chosen)


def _tensors(batch: Any) -> tuple[Tensor, Tensor]:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(each, Tensor) for each in batch):
        raise ValueError(
            "batch is no pair of tensors: give (inputs, targets), both with one row per example."
        )
    inputs, targets = batch
    return inputs.detach(), targets.detach()


def _check_modes(model: nn.Module) -> None:
    """Refuse layers that draw, or that normalize by the batch, by name."""
    for name, module in model.named_modules():
        kind, place = type(module).__name__, f" '{name}'" if name else ""
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(
                f"the {kind}{place} is active, so that losses do not compare: call model.eval() "
                "first."
            )
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"the {kind}{place} normalizes by the batch, which couples its examples: call "
                "model.eval() first (its statistics should be those of training)."
            )


def _tried(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs of a copy of the module on the whole batch."""
    try:
        private = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the model cannot be copied ({one_line(error)}): take tensors with a graph and "
            "whatever else copy.deepcopy refuses out of its attributes."
        ) from error
    try:
        with torch.no_grad():
            outputs = private(inputs.clone())
    except Exception as error:  # the forward pass is the user's: it may raise anything
        raise ValueError(
            f"the model fails on inputs of shape {tuple(inputs.shape)} ({one_line(error)}): give "
            "inputs (B, ...) that model(inputs) takes."
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(inputs):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"the model returns {shape} for {len(inputs)} examples: return one tensor with a row "
            "per example."
        )
    return outputs


def _check_loss(loss_fn: BatchLoss, outputs: Tensor, targets: Tensor) -> None:
    try:
        loss = loss_fn(outputs, targets)
    except Exception as error:  # the loss is the user's: it may raise anything
        raise ValueError(
            f"loss_fn fails on outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} "
            f"({one_line(error)}): give a loss_fn(outputs, targets) and targets that fit."
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn returns {found} instead of one number: take the mean over the examples."
        )
    if not torch.isfinite(loss).all():
        raise ValueError(
            f"the loss of the batch is {float(loss)}: give a network, inputs and targets whose "
            "loss is a finite number."
        )


def checked_objective(
    model: nn.Module,
    loss_fn: BatchLoss,
    batch: tuple[Tensor, Tensor],
    layers: Sequence[str] | None,
    memory_bytes: int = 2**28,
) -> ModuleObjective:
    """The loss as a function of the chosen layers; the module itself is only copied.

    Args:
        model: the network.
        loss_fn: of outputs and targets, a scalar.
        batch: inputs and targets.
        layers: as :func:`chosen_layers` takes them.
        memory_bytes: bound on what an evaluation holds at a time.

    Raises:
        ValueError: anything that cannot be diagnosed, in one sentence.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is {type(model).__name__}: give a torch.nn.Module.")
    if not callable(loss_fn):
        raise ValueError(
            f"loss_fn is {loss_fn!r}: give a function of outputs and targets that returns a scalar."
        )
    inputs, targets = _tensors(batch)
    check_arguments(model, inputs, targets, memory_bytes)
    names = chosen_layers(model, layers)
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f"parameter {name} has NaN or infinite entries: diagnose the network before it "
                "diverges."
            )
    _check_modes(model)
    outputs = _tried(model, inputs)
    _check_loss(loss_fn, outputs, targets)
    rows = per_example_loss(loss_fn, outputs, targets)

    def whole_batch(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss_fn(outputs, targets).reshape(()).expand(len(outputs))

    evaluator = ModuleEvaluator(model, inputs, targets, rows or whole_batch, memory_bytes)
    if rows is None:
        # what one example adds is not known: the batch is seen whole, as with batch statistics
        object.__setattr__(evaluator, "couples", True)
    size = len(inputs) if evaluator.couples else min(2, len(inputs))
    signs = count_signs(evaluator.program, inputs[:size], evaluator.params)
    if not signs.activations and not signs.weights:
        raise ValueError(
            "the model has no binary operation that depends on its parameters (torch.sign, "
            "torch.where or a comparison, an autograd.Function that is a sign, gradlab's layers): "
            "backpropagation is exact, and there is nothing to estimate."
        )
    return ModuleObjective(evaluator, evaluator.params, names, signs, is_smooth(loss_fn))
