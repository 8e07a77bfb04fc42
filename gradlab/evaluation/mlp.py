r"""A whole population of binarized MLPs on one batch, in bounded memory, as fast as is at hand.

:class:`MLPEvaluator` is what objectives hold. It chooses among

- compiled kernels on the CPU (:mod:`gradlab.evaluation.fused`): float32 batches and finite weights;
- Triton kernels on CUDA (:mod:`gradlab.evaluation.gpu`): Gaussian populations, whose noise they
  draw themselves;
- tensor operations (:mod:`gradlab.evaluation.mlp_tensors`): everything else, and every member with
  a weight that is NaN, infinite or beyond 1e15.

All give the same losses, summed over examples in float64. A pre-activation within float32 rounding
of a threshold is decided in float64, but not by the Triton kernels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.evaluation import coordinates, gpu, noise
from gradlab.evaluation import population as pop
from gradlab.evaluation.mlp_tensors import TensorMLPEvaluator, all_bounded
from gradlab.evaluation.population import (
    GaussianPopulation,
    LinePopulation,
    Params,
    Population,
)
from gradlab.models.mlp import BinarizedMLP

if TYPE_CHECKING:
    from gradlab.evaluation.fused import FusedMLPEvaluator

LOSSES = ("mse", "cross_entropy")


@dataclass(frozen=True)
class MLPEvaluator:
    """Losses of many members of :class:`BinarizedMLP` on one batch.

    Args:
        model: the architecture.
        inputs: ``(B, num_inputs)``.
        targets: ``(B, num_outputs)``, or labels ``(B,)`` int64 for cross-entropy.
        loss: "mse", the mean over examples and outputs, or "cross_entropy".

    Raises:
        ValueError: an unknown loss, or shapes that do not fit.

    >>> model = BinarizedMLP(num_dim=2, depth=1)
    >>> batch = torch.tensor([[0.5, -2.0], [0.0, 1.0]]), torch.tensor([[-2.0], [3.0]])
    >>> params = {"layers.0.weight": torch.eye(2), "layers.1.weight": torch.tensor([[1.0, 3.0]])}
    >>> evaluator = MLPEvaluator(model, *batch)
    >>> evaluator.losses({name: w[None] for name, w in params.items()})
    tensor([0.5000], dtype=torch.float64)
    """

    model: BinarizedMLP
    inputs: Tensor
    targets: Tensor
    loss: str = "mse"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(unknown("loss", self.loss, LOSSES))
        size, width = len(self.inputs), self.model.num_inputs or self.model.num_dim
        if self.inputs.dim() != 2 or self.inputs.shape[1] != width:
            raise ValueError(
                f"inputs have shape {tuple(self.inputs.shape)}: this network takes (B, {width})."
            )
        expected = (size, self.model.num_outputs) if self.loss == "mse" else (size,)
        if self.targets.shape != expected:
            raise ValueError(
                f"targets have shape {tuple(self.targets.shape)}: with the loss {self.loss} this "
                f"network takes {expected}."
            )
        if self.loss == "cross_entropy":
            low, high = int(self.targets.min()), int(self.targets.max())
            if self.targets.dtype != torch.int64 or low < 0 or high >= self.model.num_outputs:
                raise ValueError(
                    f"labels go from {low} to {high} ({self.targets.dtype}): give int64 labels "
                    f"from 0 to {self.model.num_outputs - 1}."
                )

    @property
    def path(self) -> str:
        """Which path evaluates this batch, in a line."""
        return _in_words(*self._choice)

    @functools.cached_property
    def _choice(self) -> tuple[str, str]:
        """compiled, triton or tensors, and for the last why."""
        if self.inputs.dtype != torch.float32:
            return "tensors", f"the batch is {str(self.inputs.dtype).removeprefix('torch.')}"
        if self.inputs.device.type != "cpu":
            return _choose(self.inputs.device)
        if not (all_bounded(self.inputs) and all_bounded(self.targets)):
            return "tensors", "the batch holds NaN, infinity or numbers beyond 1e15"
        if len(self.model.activation_function.thresholds or ()) > 3:
            return "tensors", f"the activation {self.model.activation} has more than four levels"
        return _choose(self.inputs.device)

    @functools.cached_property
    def _tensors(self) -> TensorMLPEvaluator:
        return TensorMLPEvaluator(self.model, self.inputs, self.targets, self.loss)

    @functools.cached_property
    def _fused(self) -> FusedMLPEvaluator:
        from gradlab.evaluation.fused import FusedMLPEvaluator

        return FusedMLPEvaluator(self.model, self.inputs, self.targets, self.loss)

    def outputs(self, params: Params) -> Tensor:
        """Network outputs of one parameter dict, ``(B, num_outputs)``."""
        self._check(params)
        if self._choice[0] == "compiled" and all(all_bounded(w) for w in params.values()):
            return self._fused.outputs(params)
        return self._tensors.outputs(params)

    def losses(self, population: Population) -> Tensor:
        """Loss of every member, ``(P,)`` float64; NaN where anything is NaN.

        Raises:
            ValueError: the population has other names or shapes than the network.
        """
        self._check_population(population)
        path = self._choice[0]
        # Other kinds, few in number, are evaluated where float64 decides what is near a threshold.
        if (
            path == "triton"
            and isinstance(population, GaussianPopulation)
            and gpu.unsupported(self.model, self.inputs, population) is None
        ):
            precision = "rounded" if population.rounded else "exact"
            return gpu.mlp_losses(
                self.model, self.inputs, self.targets, population,
                loss=self.loss, precision=precision,
            )  # fmt: skip
        if path != "compiled":
            return self._tensors.losses(population)
        losses, settled = self._fused.losses(population)
        for member in (settled < 0).nonzero()[:, 0].tolist():
            losses[member] = self._tensors.losses(pop.part(population, member, member + 1))[0]
        return losses

    def decreases(self, params: Params, population: Population) -> Tensor:
        r"""Mean over examples of loss(params) - loss(member), ``(P,)`` float64.

        As exact as float64: the output layer and the differences are computed in float64, per
        example, and of the hidden layers those pre-activations that lie within float32 rounding of
        a threshold, a few in a million; the weights on a line are taken as exact. So a step of 1e-5
        is signal, not rounding. A continuous activation has no thresholds for rounding to stop at:
        there the whole network runs in float64.
        """
        self._check(params)
        self._check_population(population)
        continuous = self.model.activation_function.thresholds is None
        finite = all(all_bounded(w) for w in params.values())
        if self._choice[0] != "compiled" or continuous or not finite:
            return self._tensors.decreases(params, population)
        decreases, settled = self._fused.decreases(params, population)
        for member in (settled < 0).nonzero()[:, 0].tolist():
            alone = pop.part(population, member, member + 1)
            decreases[member] = self._tensors.decreases(params, alone)[0]
        return decreases

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Loss differences over ±epsilon of every weight, float64, by sparse flips.

        See :mod:`gradlab.evaluation.coordinates`.
        """
        self._check(params)
        quantized = self.model.activation_function.thresholds is not None
        finite = all(all_bounded(w) for w in params.values())
        if self._choice[0] == "compiled" and quantized and finite:
            return self._fused.coordinate_differences(params, epsilon)
        return coordinates.mlp_differences(
            self.model, self.inputs, self.targets, params, epsilon, self.loss
        )

    def settled(self, population: Population) -> Tensor:
        """How many pre-activations of each member were decided in float64, ``(P,)`` int64.

        These are the ones within float32 rounding of a threshold: where another order of summation
        could give another sign. -1 for a member that is not finite.

        Raises:
            ValueError: this batch is not evaluated by compiled kernels, which alone count.
        """
        if self._choice[0] != "compiled":
            raise ValueError(f"this batch is evaluated by {self.path}, which does not count.")
        self._check_population(population)
        return self._fused.losses(population)[1]

    def _check_population(self, population: Population) -> None:
        if isinstance(population, GaussianPopulation):
            self._check(population.mean)
        elif isinstance(population, LinePopulation):
            self._check(population.origin)
            self._check(population.direction)
        else:
            self._check(population, members=next(iter(population.values())).shape[:1])

    def _check(self, params: Params, members: tuple[int, ...] = ()) -> None:
        """Refuse what does not fit the network: kernels would read beyond it."""
        expected = {name: (*members, *shape) for name, shape in self.model.shapes.items()}
        found = {name: tuple(tensor.shape) for name, tensor in params.items()}
        for name in (*expected, *found):
            if found.get(name) != expected.get(name):
                has, needs = (
                    "nothing" if each is None else f"shape {each}"
                    for each in (found.get(name), expected.get(name))
                )
                raise ValueError(
                    f"the parameters do not fit this network: {name} has {has} and needs {needs}."
                )


def describe_path(device: torch.device | str = "cpu") -> str:
    """Which path evaluates populations of binarized MLPs on a device, in a line.

    >>> describe_path("meta")
    'tensor operations: neither a processor nor CUDA, but meta'
    """
    return _in_words(*_choose(torch.device(device)))


def _choose(device: torch.device) -> tuple[str, str]:
    if device.type == "cpu":
        problem = noise.compiled_problem()
        return ("compiled", "") if problem is None else ("tensors", problem)
    if device.type == "cuda":
        problem = gpu.available(device)
        return ("triton", str(device)) if problem is None else ("tensors", problem)
    return "tensors", f"neither a processor nor CUDA, but {device}"


def _in_words(path: str, reason: str) -> str:
    if path == "compiled":
        from gradlab.evaluation import fused

        return fused.describe()
    return f"Triton kernels on {reason}" if path == "triton" else f"tensor operations: {reason}"
