"""What an estimator may ask of a loss: pure functions of a parameter dict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from gradlab.binary.activations import Activation
from gradlab.evaluation import population as pop
from gradlab.evaluation.module.noisy import NoisyPasses
from gradlab.evaluation.population import Params, Population


class Objective(Protocol):
    """A loss as a pure function of parameters: the contract between networks and estimators."""

    def initial_params(self, seed: int) -> Params:
        """A fresh starting point."""

    def loss(self, params: Params) -> Tensor:
        """Mean loss over the batch, ``()`` float64; NaN if anything is NaN."""

    def losses(self, population: Population) -> Tensor:
        """Loss of every member, ``(P,)`` float64, in bounded memory."""

    def decreases(self, params: Params, population: Population) -> Tensor:
        """loss(params) - loss(member), ``(P,)`` float64, differences taken per example."""

    def surrogate_gradient(self, params: Params, surrogate: Any, **options: Any) -> Params:
        """Backpropagation with a surrogate derivative in place of the activation's own."""

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """loss(w + epsilon e_i) - loss(w - epsilon e_i) of every coordinate, float64."""


@runtime_checkable
class LayeredObjective(Protocol):
    """A mean of per-example losses of a layered model, for activation-space estimators.

    ``inputs`` is ``(B, n)``, ``targets`` ``(B, m)``; layers are applied in the order of
    ``layer_names``, each a matrix ``(out, in)``, with ``activation`` between them.
    """

    inputs: Tensor
    targets: Tensor

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Parameter names from input to output."""

    @property
    def activation(self) -> Activation:
        """The activation between the layers."""

    def expected_losses(self, mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
        """Expected per-example losses ``(B,)`` when outputs ``(B, m)`` have these moments."""


@runtime_checkable
class NoisyObjective(Protocol):
    """A mean of per-example losses of any network, every example with noise of its own."""

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str
    ) -> NoisyPasses:
        """Forward passes at ``params`` in which the parameters ``names`` are noisy."""


def check_device(device: str) -> str:
    """Refuse a device that torch does not know or that this machine does not have.

    >>> check_device("gpu")
    Traceback (most recent call last):
    ValueError: device is 'gpu': give cpu, or cuda where there is a GPU.
    """
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}: give cpu, or cuda where there is a GPU.")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, and torch sees no GPU here: give cpu.")
    return device


def check_seed(name: str, value: object) -> None:
    """Refuse anything but a whole number of at least zero, in one sentence."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 0.")


def check_params(params: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a parameter dict with other names or shapes than the objective's, in one sentence."""
    missing = sorted(set(shapes) - set(params))
    extra = sorted(set(params) - set(shapes))
    if missing or extra:
        raise ValueError(
            f"the parameters do not fit this objective (missing: {', '.join(missing) or 'none'}; "
            f"unknown: {', '.join(extra) or 'none'}): start from objective.initial_params(seed)."
        )
    for name, shape in shapes.items():
        if params[name].shape != shape:
            raise ValueError(
                f"parameter {name} has shape {tuple(params[name].shape)}, not {tuple(shape)}: "
                "start from objective.initial_params(seed)."
            )


def differences_by_population(
    objective: Objective, params: Params, epsilon: float, chunk: int
) -> Params:
    """Central differences of any objective, ``chunk`` coordinates at a time.

    Returns:
        A dict like ``params``, float64.
    """
    flat = pop.flatten(params)
    size = len(flat)
    out = torch.empty(size, dtype=torch.float64, device=flat.device)
    for low, high in pop.chunks(size, chunk):
        steps = torch.zeros(high - low, size, dtype=flat.dtype, device=flat.device)
        steps[torch.arange(high - low), torch.arange(low, high)] = epsilon
        both = torch.cat((flat + steps, flat - steps))
        losses = objective.losses(pop.unflatten(both, params))
        out[low:high] = losses[: high - low] - losses[high - low :]
    return pop.unflatten(out, params)
