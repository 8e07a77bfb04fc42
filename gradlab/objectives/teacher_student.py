r"""The teacher-student regression: how far is a student from a teacher of the same shape?

Inputs are i.i.d. N(0, 1); targets are the outputs of a randomly drawn binarized teacher; the loss
is the mean squared error. Teacher, inputs and students use separate random streams, so that a
student never starts as its teacher.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.binary.activations import Activation
from gradlab.evaluation.mlp import MLPEvaluator
from gradlab.evaluation.population import Params, Population
from gradlab.models.mlp import BinarizedMLP, positive_integer
from gradlab.objectives.backpropagation import blocked_gradient, draws
from gradlab.objectives.base import check_device, check_params, check_seed

INPUT_PRECISIONS = ("float32", "bfloat16")
_TEACHER, _INPUTS, _STUDENT = 0, 1, 2


def _generator(seed: int, *stream: int) -> torch.Generator:
    state = np.random.SeedSequence(seed, spawn_key=stream).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


class TeacherStudent:
    r"""Mean squared error of a student to a teacher on one batch.

    Args:
        num_dim: width of the input and of every hidden layer.
        batch_size: number of examples.
        seed: fixes the teacher.
        batch: which batch; (seed, batch) fix the inputs.
        depth: number of hidden layers of teacher and student.
        activation: "binary", "ternary", "decoupled_ternary", "2bit" or "full".
        weight: "real" or "binary" (sign(w), without scale; the output layer stays real).
        gain: teacher and students start from U(±gain/√num_dim).
        device: where inputs, targets and new students live.
        input_precision: "float32", or "bfloat16" for inputs that bfloat16 represents, so that
            rounded populations multiply in bfloat16 without error.

    Attributes:
        inputs: ``(batch_size, num_dim)`` float32.
        targets: ``(batch_size, 1)`` float32.
        teacher: the teacher's parameters.
        model: the architecture.

    Raises:
        ValueError: a size, seed or name out of range.

    >>> objective = TeacherStudent(num_dim=4, batch_size=100, seed=0)
    >>> float(objective.loss(objective.teacher))
    0.0
    >>> sorted(objective.initial_params(seed=0))
    ['layers.0.weight', 'layers.1.weight', 'layers.2.weight', 'layers.3.weight']
    """

    def __init__(
        self,
        num_dim: int,
        batch_size: int,
        seed: int,
        batch: int = 0,
        depth: int = 3,
        activation: str = "binary",
        weight: str = "real",
        gain: float = 1.0,
        device: str = "cpu",
        input_precision: str = "float32",
    ) -> None:
        self.model = BinarizedMLP(num_dim, depth, activation, weight, gain)
        positive_integer("batch_size", batch_size)
        check_seed("seed", seed)
        check_seed("batch", batch)
        self.seed = seed
        self.device = check_device(device)
        teacher = self.model.initial_params(_generator(seed, _TEACHER))
        self.teacher = {name: tensor.to(device) for name, tensor in teacher.items()}
        inputs = torch.randn(batch_size, num_dim, generator=_generator(seed, _INPUTS, batch))
        if input_precision not in INPUT_PRECISIONS:
            raise ValueError(unknown("input_precision", input_precision, INPUT_PRECISIONS))
        self.inputs = inputs.to(getattr(torch, input_precision)).float().to(device)
        self._shapes = {name: tensor.shape for name, tensor in self.teacher.items()}
        self._evaluator = MLPEvaluator(
            self.model, self.inputs, self.inputs.new_zeros(batch_size, 1)
        )
        # The teacher runs through the same evaluator as its students: its own loss is exactly 0.
        self.targets = self._evaluator.outputs(self.teacher)
        self._evaluator = replace(self._evaluator, targets=self.targets)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Parameter names from input to output."""
        return self.model.layer_names

    @property
    def activation(self) -> Activation:
        """The activation between the layers."""
        return self.model.activation_function

    def initial_params(self, seed: int) -> Params:
        """A fresh student: U(±gain/√num_dim), from a stream that no teacher uses."""
        check_seed("seed", seed)
        student = self.model.initial_params(_generator(seed, _STUDENT))
        return {name: tensor.to(self.device) for name, tensor in student.items()}

    def loss(self, params: Params) -> Tensor:
        """Mean squared error, ``()`` float64; NaN if any weight is NaN."""
        check_params(params, self._shapes)
        return self.losses({name: tensor[None] for name, tensor in params.items()})[0]

    def losses(self, population: Population) -> Tensor:
        """Mean squared error of every member, ``(P,)`` float64, in bounded memory."""
        return self._evaluator.losses(population)

    def decreases(self, params: Params, population: Population) -> Tensor:
        """loss(params) - loss(member), ``(P,)``, per example in float64."""
        return self._evaluator.decreases(params, population)

    def expected_losses(self, mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
        """E(y - t)² = (E y - t)² + Var y per example: ``(B, 1)`` moments to ``(B,)``."""
        return ((mean - targets).square() + variance)[:, 0]

    def surrogate_gradient(
        self, params: Params, surrogate: Any, weight_surrogate: Any = None
    ) -> Params:
        """Backpropagation of the loss with surrogate derivatives.

        Args:
            params: one parameter dict.
            surrogate: derivative in place of the activation's, see
                :mod:`gradlab.binary.surrogates`.
            weight_surrogate: derivative of sign(w) for binary weights; hardtanh if left out.
        """
        check_params(params, self._shapes)
        size = len(self.inputs)
        # Blocks bound the memory of the stored activations and keep them in cache. A surrogate that
        # draws sees the batch whole: its scale may be the extremes of all pre-activations.
        whole = self.inputs.is_cuda or draws(surrogate, weight_surrogate)
        block = None if whole else max(1024, 2**18 // self.model.num_dim)
        dtype = next(iter(params.values())).dtype

        def loss(leaves: Params, start: int, stop: int) -> Tensor:
            inputs = self.inputs[start:stop].to(dtype)
            outputs = self.model.surrogate_forward(leaves, inputs, surrogate, weight_surrogate)
            return (outputs - self.targets[start:stop].to(dtype)).square().sum() / size

        return blocked_gradient(params, size, block, loss)

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Loss differences over ±epsilon of every weight, float64, by sparse flips."""
        check_params(params, self._shapes)
        return self._evaluator.coordinate_differences(params, epsilon)
