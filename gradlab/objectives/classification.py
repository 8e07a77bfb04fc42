r"""The cross-entropy of a classifier on one batch, for any ``nn.Module`` and the built-in MLP.

Populations of a module are evaluated by :class:`gradlab.evaluation.module.ModuleEvaluator`, those
of a :class:`gradlab.models.BinarizedMLP` by its own kernels.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab._registry import unknown
from gradlab.binary import sign
from gradlab.evaluation import coordinates
from gradlab.evaluation.mlp import MLPEvaluator
from gradlab.evaluation.module.coordinates import module_differences
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.noisy import NoisyPasses
from gradlab.evaluation.module.program import LossFunction, cross_entropy
from gradlab.evaluation.population import Params, Population
from gradlab.models.mlp import BinarizedMLP
from gradlab.objectives.backpropagation import (
    affordable_examples,
    blocked_gradient,
    draws,
    module_gradient,
)
from gradlab.objectives.base import check_params, check_seed

_STUDENT = 2  # the stream that TeacherStudent's students come from, too


class _Network(Protocol):
    """What a classifier's kind of network has to provide."""

    @property
    def evaluator(self) -> ModuleEvaluator | MLPEvaluator:
        """What evaluates populations."""

    def initial_params(self, seed: int) -> Params:
        """A starting point."""

    def surrogate_gradient(self, params: Params, surrogate: Any, weight_surrogate: Any) -> Params:
        """Backpropagation."""

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Central differences."""

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str
    ) -> NoisyPasses:
        """Forward passes with noise of every example's own."""

    def on(self, inputs: Tensor, labels: Tensor, buffers: Mapping[str, Tensor] | None) -> _Network:
        """The same network on another batch."""


class Classification:
    r"""Mean loss of a classifier on one batch.

    The module is copied: it is left as it is, mode, gradients and buffers included, and later
    changes to it are not seen. BatchNorm in evaluation mode uses the statistics that the module has
    now; in training mode it normalizes by this batch.

    Args:
        model: an ``nn.Module`` that takes ``(B, ...)`` and returns logits ``(B, K)``, or a
            :class:`gradlab.models.BinarizedMLP`.
        inputs: ``(B, ...)``, on the module's device; NaN makes the loss NaN, unless operations of
            the module swallow it, as torch.sign does.
        labels: ``(B,)`` integers from 0 to K - 1.
        loss: "cross_entropy", or for an ``nn.Module`` a function of logits and labels that returns
            one number per example.
        memory_bytes: bound on what an evaluation of a module holds at a time.

    Attributes:
        model: as given.
        inputs: as given.
        targets: the labels, int64.

    Raises:
        ValueError: labels that are no integers, not one per example or out of range, a module
            without parameters, one that fails on the inputs or draws random numbers.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    >>> objective = Classification(model, torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    >>> params = objective.initial_params(seed=0)
    >>> list(params)
    ['0.weight', '0.bias', '2.weight', '2.bias']
    >>> float(objective.loss(params)) > 0
    True
    """

    def __init__(
        self,
        model: nn.Module | BinarizedMLP,
        inputs: Tensor,
        labels: Tensor,
        loss: str | LossFunction = "cross_entropy",
        memory_bytes: int = 2**28,
    ) -> None:
        if not callable(loss) and loss != "cross_entropy":
            raise ValueError(unknown("loss", str(loss), ("cross_entropy",)))
        _check_batch(inputs, labels)
        self.model = model
        self.inputs = inputs
        self.targets = labels.long()
        self._network: _Network
        if isinstance(model, BinarizedMLP):
            if callable(loss):
                raise ValueError(
                    "loss is a function, and a BinarizedMLP takes cross_entropy: leave it out."
                )
            self._network = _MLP(model, inputs, self.targets)
        elif isinstance(model, nn.Module):
            self._network = _Module(model, inputs, self.targets, loss, memory_bytes)
        else:
            raise ValueError(
                f"model is {type(model).__name__}: give a torch.nn.Module or a BinarizedMLP."
            )
        self._shapes = {name: w.shape for name, w in self.initial_params(0).items()}

    @property
    def labels(self) -> Tensor:
        """The classes of the examples, ``(B,)`` int64."""
        return self.targets

    @property
    def evaluator(self) -> ModuleEvaluator | MLPEvaluator:
        """What evaluates populations; its ``path`` says how."""
        return self._network.evaluator

    def on(
        self, inputs: Tensor, labels: Tensor, buffers: Mapping[str, Tensor] | None = None
    ) -> Classification:
        """The same classifier on another batch, at next to no cost: what training needs.

        The module is neither copied nor traced again
        (:meth:`gradlab.evaluation.module.ModuleEvaluator.on`).

        Args:
            inputs: examples of the same shape, type and device as before.
            labels: ``(B,)`` integers.
            buffers: new values of a module's buffers, such as the statistics of BatchNorm; those
                left out stay what they are.

        Raises:
            ValueError: labels or inputs that do not fit the network, or unknown buffers.

        >>> model = nn.Linear(4, 3)
        >>> objective = Classification(model, torch.zeros(5, 4), torch.tensor([0, 1, 2, 0, 1]))
        >>> other = objective.on(torch.ones(2, 4), torch.tensor([2, 0]))
        >>> params = objective.initial_params(seed=0)
        >>> bool(other.loss(params) == objective.loss(params))
        False
        """
        _check_batch(inputs, labels)
        moved = copy.copy(self)
        moved.inputs, moved.targets = inputs, labels.long()
        moved._network = self._network.on(inputs, moved.targets, buffers)
        return moved

    def initial_params(self, seed: int) -> Params:
        """A fresh starting point, which the seed alone decides.

        Of a module: whatever its layers' ``reset_parameters`` draws; parameters of layers without
        one are those that the module has.
        """
        check_seed("seed", seed)
        return self._network.initial_params(seed)

    def loss(self, params: Params) -> Tensor:
        """Mean loss over the batch, ``()`` float64; NaN if anything is NaN."""
        check_params(params, self._shapes)
        return self.losses({name: tensor[None] for name, tensor in params.items()})[0]

    def losses(self, population: Population) -> Tensor:
        """Mean loss of every member, ``(P,)`` float64, in bounded memory."""
        return self.evaluator.losses(population)

    def decreases(self, params: Params, population: Population) -> Tensor:
        """loss(params) - loss(member), ``(P,)`` float64, differences taken per example."""
        return self.evaluator.decreases(params, population)

    def surrogate_gradient(
        self, params: Params, surrogate: Any, weight_surrogate: Any = None
    ) -> Params:
        """Backpropagation of the loss with a surrogate derivative for every sign.

        A module computes what it always does; only the derivative of its signs is replaced (see
        :func:`gradlab.objectives.surrogate_mode.surrogate_derivatives` for what counts as one). So
        a surrogate that scales, such as magnitude_aware, has its derivative but not its forward.

        Args:
            params: one parameter dict.
            surrogate: the derivative, see :mod:`gradlab.binary.surrogates`.
            weight_surrogate: derivative of the sign of a weight, if that is to be another.
        """
        check_params(params, self._shapes)
        return self._network.surrogate_gradient(params, surrogate, weight_surrogate)

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Loss differences over ±epsilon of every weight, float64, re-evaluating what changes."""
        check_params(params, self._shapes)
        return self._network.coordinate_differences(params, epsilon)

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str = "weights"
    ) -> NoisyPasses:
        """Forward passes in which every example has noise of its own on the weights.

        Args:
            params: one parameter dict.
            names: which of them are noisy.
            sigma: standard deviation of the noise.
            noise: "weights", or "positions", see :mod:`gradlab.evaluation.module.noisy`.

        Raises:
            ValueError: a module that couples the examples of a batch, as BatchNorm in training mode
                does, or parameters that the noise cannot be put on.
        """
        check_params(params, self._shapes)
        return self._network.noisy_passes(params, names, sigma, noise)


class _Module:
    """An ``nn.Module``."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        loss: str | LossFunction,
        memory_bytes: int,
    ) -> None:
        function = loss if callable(loss) else cross_entropy
        self.classes = 0
        low, high = int(labels.min()), int(labels.max())

        def checked(outputs: Tensor, targets: Tensor) -> Tensor:
            if outputs.dim() < 2:
                raise ValueError(
                    f"the module returns a tensor {tuple(outputs.shape)}: return logits (B, K)."
                )
            _check_range(low, high, outputs.shape[1])
            self.classes = outputs.shape[1]
            return function(outputs, targets)

        self.evaluator = ModuleEvaluator(model, inputs, labels, checked, memory_bytes)
        self.smooth_loss = function is cross_entropy

    def on(self, inputs: Tensor, labels: Tensor, buffers: Mapping[str, Tensor] | None) -> _Module:
        _check_range(int(labels.min()), int(labels.max()), self.classes)
        moved = copy.copy(self)
        moved.evaluator = self.evaluator.on(inputs, labels, buffers)
        return moved

    def initial_params(self, seed: int) -> Params:
        module = copy.deepcopy(self.evaluator.program.module)
        device = next(module.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(_stream(seed))
            for part in module.modules():
                reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
                if callable(reset):
                    reset()
        return {name: parameter.detach() for name, parameter in module.named_parameters()}

    def surrogate_gradient(self, params: Params, surrogate: Any, weight_surrogate: Any) -> Params:
        evaluator = self.evaluator
        whole = evaluator.couples or draws(surrogate, weight_surrogate)
        block = len(evaluator.inputs) if whole else affordable_examples(evaluator, params)
        return module_gradient(evaluator, params, surrogate, weight_surrogate, block)

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        return module_differences(self.evaluator, params, epsilon)

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str
    ) -> NoisyPasses:
        return NoisyPasses(
            self.evaluator, params, names, sigma=sigma, noise=noise, smooth_loss=self.smooth_loss
        )


class _MLP:
    """The built-in network, by its own kernels."""

    def __init__(self, model: BinarizedMLP, inputs: Tensor, labels: Tensor) -> None:
        _check_range(int(labels.min()), int(labels.max()), model.num_outputs)
        self.model = model
        self.evaluator = MLPEvaluator(model, inputs, labels, loss="cross_entropy")

    def on(self, inputs: Tensor, labels: Tensor, buffers: Mapping[str, Tensor] | None) -> _MLP:
        if buffers:
            raise ValueError("a BinarizedMLP has no buffers: leave them out.")
        return _MLP(self.model, inputs, labels)

    @functools.cached_property
    def as_module(self) -> ModuleEvaluator:
        inputs, targets = self.evaluator.inputs, self.evaluator.targets
        return ModuleEvaluator(_AsModule(self.model).to(inputs), inputs, targets)

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str
    ) -> NoisyPasses:
        return NoisyPasses(self.as_module, params, names, sigma=sigma, noise=noise)

    def initial_params(self, seed: int) -> Params:
        params = self.model.initial_params(torch.Generator().manual_seed(_stream(seed)))
        return {name: w.to(self.evaluator.inputs.device) for name, w in params.items()}

    def surrogate_gradient(self, params: Params, surrogate: Any, weight_surrogate: Any) -> Params:
        inputs, targets = self.evaluator.inputs, self.evaluator.targets
        size = len(inputs)

        def loss(leaves: Params, start: int, stop: int) -> Tensor:
            outputs = self.model.surrogate_forward(
                leaves, inputs[start:stop], surrogate, weight_surrogate
            )
            return F.cross_entropy(outputs.double(), targets[start:stop], reduction="sum") / size

        whole = draws(surrogate, weight_surrogate)
        block = size if whole else max(1024, 2**18 // self.model.num_dim)
        return blocked_gradient(params, size, block, loss)

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        inputs, targets = self.evaluator.inputs, self.evaluator.targets
        return coordinates.mlp_differences(
            self.model, inputs, targets, params, epsilon, loss="cross_entropy"
        )


class _Layer(nn.Module):
    """One layer of the built-in network."""

    def __init__(self, shape: tuple[int, int], binary: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        self.binary = binary

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, sign(self.weight) if self.binary else self.weight)


class _AsModule(nn.Module):
    """The built-in network's forward pass, in the operations that modules use."""

    def __init__(self, model: BinarizedMLP) -> None:
        super().__init__()
        self.activation = model.activation_function
        binary = model.weight == "binary"
        *hidden, output = model.shapes.values()
        self.layers = nn.ModuleList(
            [*(_Layer(shape, binary) for shape in hidden), _Layer(output, False)]
        )

    def forward(self, x: Tensor) -> Tensor:
        *hidden, output = self.layers
        for layer in hidden:
            x = self.activation.forward(layer(x))
        outputs: Tensor = output(x)
        return outputs


def _stream(seed: int) -> int:
    """A seed of its own: user code that calls manual_seed(seed) draws something else."""
    state = np.random.SeedSequence(seed, spawn_key=(_STUDENT,)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _check_batch(inputs: object, labels: object) -> None:
    if not isinstance(inputs, Tensor) or not isinstance(labels, Tensor):
        raise ValueError("inputs and labels are not both tensors: convert them first.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels are {labels.dtype}: give integers from 0 to classes - 1.")
    if labels.dim() != 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}: give one per example, (B,).")
    if inputs.dim() == 0 or len(inputs) != len(labels):
        found = len(inputs) if inputs.dim() else "no"
        raise ValueError(f"there are {found} inputs and {len(labels)} labels: give equally many.")
    if not len(labels):
        raise ValueError("there are no examples: give at least one.")


def _check_range(low: int, high: int, classes: int) -> None:
    if low < 0 or high >= classes:
        raise ValueError(
            f"labels go from {low} to {high}, and the network has {classes} outputs: give labels "
            f"from 0 to {classes - 1}."
        )
