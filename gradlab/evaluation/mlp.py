r"""A whole population of binarized MLPs on one batch, in bounded memory.

Members are taken a few at a time and examples in blocks, so that the activations of a block stay in
cache through all layers: the first layer is one matrix product ``(P n, n) @ (n, b)``, the others
batched products ``(P, n, n) @ (P, n, b)``. Outputs are float32 as the network's own; the squared
errors are summed in float64. The block sizes are a pure function of the shapes, so results do not
depend on free memory or on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.population import LinePopulation, Params, Population
from gradlab.models.mlp import BinarizedMLP

# Floats of hidden activations in flight: one megabyte, a core's second-level cache.
_CACHE_FLOATS = 2**18
# The same on a GPU: one gigabyte, and examples per block.
_GPU_FLOATS = 2**28
_GPU_EXAMPLES = 2**18
# Floats of members that are regenerated at a time: four megabytes.
_MEMBER_FLOATS = 2**20
# Beyond this size a pre-activation could overflow to infinity - infinity = NaN.
_LARGE = 1e15


def block_sizes(num_dim: int, batch_size: int, device: str = "cpu") -> tuple[int, int]:
    """Examples per block and members per group.

    On a GPU a block is as large as memory allows, since there every kernel has its launch to pay.

    >>> block_sizes(32, 160_000)
    (1024, 8)
    >>> block_sizes(32, 160_000, "cuda")
    (160000, 52)
    """
    if device == "cuda":
        examples = min(batch_size, _GPU_EXAMPLES)
        return examples, max(1, _GPU_FLOATS // (num_dim * examples))
    examples = min(batch_size, max(2**15 // num_dim, 512), 8192)
    return examples, max(8, _CACHE_FLOATS // (num_dim * examples))


def line_block_sizes(num_dim: int, batch_size: int, device: str = "cpu") -> tuple[int, int]:
    """The same for comparisons with one origin, which rides along in every group: large groups.

    >>> line_block_sizes(32, 160_000)
    (128, 63)
    """
    floats = _GPU_FLOATS if device == "cuda" else _CACHE_FLOATS
    return min(batch_size, max(128, floats // (64 * num_dim))), 63


@dataclass(frozen=True)
class MLPEvaluator:
    """Losses of many members of :class:`BinarizedMLP` on one batch (mean squared error).

    Args:
        model: the architecture.
        inputs: ``(B, num_dim)``.
        targets: ``(B, 1)``.
    """

    model: BinarizedMLP
    inputs: Tensor
    targets: Tensor
    _transposed: Tensor = field(init=False, repr=False, compare=False)
    _bounded: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_transposed", self.inputs.T.contiguous())
        object.__setattr__(self, "_bounded", _all_bounded(self.inputs))

    def outputs(self, params: Params) -> Tensor:
        """Network outputs of one parameter dict, ``(B, 1)``."""
        member = self.model.effective_weights({name: w[None] for name, w in params.items()})
        exact = self._is_exact(member)
        parts = [
            self._outputs(self._hidden(member, self._transposed[:, a:b], exact), member)
            for a, b in pop.chunks(len(self.inputs), block_sizes(*self._shape)[0])
        ]
        return torch.cat(parts, dim=1).T

    def losses(self, population: Population) -> Tensor:
        """Mean squared error of every member, ``(P,)`` float64."""
        total = torch.zeros(pop.size(population), dtype=torch.float64, device=self.inputs.device)
        examples, group = block_sizes(*self._shape)
        for (low, high), members in self._groups(population, group):
            exact = self._is_exact(members)
            for a, b in pop.chunks(len(self.inputs), examples):
                hidden = self._hidden(members, self._transposed[:, a:b], exact)
                outputs = self._outputs(hidden, members)
                error = outputs - self.targets[a:b, 0]
                total[low:high] += error.square_().sum(dim=1, dtype=torch.float64)
        return total / len(self.inputs)

    def decreases(self, params: Params, population: Population) -> Tensor:
        r"""Mean over examples of loss(params) - loss(member), ``(P,)`` float64.

        The output layer and the differences are computed in float64, per example, and on a
        :class:`LinePopulation` the first layer is :math:`Wx - \eta\,gx` without rounding
        :math:`W - \eta g`: a step of 1e-5 is signal, not rounding. A continuous activation has no
        thresholds for rounding to stop at: there the whole network runs in float64.
        """
        continuous = self.model.activation_function.thresholds is None
        if continuous and self.inputs.dtype != torch.float64:
            wide = MLPEvaluator(self.model, self.inputs.double(), self.targets.double())
            return wide.decreases(_double(params), _double_population(population))
        # The origin rides in the same batched product as the members, so that both are rounded
        # alike and a step of zero gives exactly zero.
        origin = {name: tensor[None] for name, tensor in params.items()}
        origin = self.model.effective_weights(origin)
        total = torch.zeros(pop.size(population), dtype=torch.float64, device=self.inputs.device)
        examples, group = line_block_sizes(*self._shape)
        for (low, high), members in self._groups(population, group):
            line = None
            if isinstance(population, LinePopulation):
                line = replace(population, steps=(0.0, *population.steps[low:high]))
            both = {name: torch.cat((origin[name], members[name])) for name in members}
            exact = self._is_exact(both)
            for a, b in pop.chunks(len(self.inputs), examples):
                # sign(W - eta g) is as exact as it gets
                moved = line if self.model.weight == "real" else None
                hidden = self._hidden(both, self._transposed[:, a:b], exact, moved)
                outputs = self._outputs64(hidden, both, line)
                error = outputs - self.targets[a:b, 0].double()
                # a^2 - b^2 = (a - b)(a + b) keeps the digits of a small difference.
                change = (outputs[0] - outputs[1:]) * (error[0] + error[1:])
                total[low:high] += change.sum(dim=1)
        return total / len(self.inputs)

    @property
    def _shape(self) -> tuple[int, int, str]:
        return self.model.num_dim, len(self.inputs), self.inputs.device.type

    def _is_exact(self, members: Params) -> bool:
        """Whether no pre-activation of these members can overflow or be NaN."""
        hidden = self.model.layer_names[:-1]
        return self._bounded and all(_all_bounded(members[name]) for name in hidden)

    def _groups(
        self, population: Population, group: int
    ) -> Iterator[tuple[tuple[int, int], Params]]:
        """Ranges of at most ``group`` members with their effective weights, one at a time."""
        one = pop.members(pop.part(population, 0, 1))
        held = max(group, _MEMBER_FLOATS // pop.num_coordinates(one))
        for start, stop in pop.chunks(pop.size(population), held):
            weights = self.model.effective_weights(pop.members(pop.part(population, start, stop)))
            for low, high in pop.chunks(stop - start, group):
                members = {name: tensor[low:high] for name, tensor in weights.items()}
                yield (start + low, start + high), members

    def _hidden(
        self,
        members: Params,
        inputs: Tensor,
        exact: bool,
        line: LinePopulation | None = None,
    ) -> Tensor:
        """Last hidden activations ``(P, n, b)`` of a group on a block of inputs ``(n, b)``."""
        names = self.model.layer_names[:-1]
        size, width = members[names[0]].shape[:2]
        if line is not None:
            steps = torch.tensor(line.steps, dtype=inputs.dtype, device=inputs.device)
            z = torch.addcmul(
                line.origin[names[0]] @ inputs,
                steps[:, None, None],
                (line.direction[names[0]] @ inputs)[None],
                value=-1,
            )
        else:
            z = (members[names[0]].reshape(size * width, -1) @ inputs).reshape(size, width, -1)
        z = self._activate(z, exact)
        for name in names[1:]:
            z = self._activate(torch.bmm(members[name], z), exact)
        return z

    def _activate(self, z: Tensor, exact: bool) -> Tensor:
        if exact and self.model.activation == "binary":
            # In place and three times faster than a select; it would turn NaN into -1, hence
            # ``exact``: no pre-activation of bounded weights and inputs can be NaN.
            return z.ge_(0).mul_(2).sub_(1)
        return self.model.activation_function.forward(z)

    def _outputs(self, hidden: Tensor, members: Params) -> Tensor:
        return torch.bmm(members[self.model.layer_names[-1]], hidden)[:, 0]

    def _outputs64(self, hidden: Tensor, members: Params, line: LinePopulation | None) -> Tensor:
        name = self.model.layer_names[-1]
        weight = members[name].double()
        if line is not None:
            origin, direction = {name: line.origin[name]}, {name: line.direction[name]}
            exact = replace(line, origin=_double(origin), direction=_double(direction))
            weight = exact.members()[name]
        return torch.bmm(weight, hidden.double())[:, 0]


def _double(params: Params) -> Params:
    return {name: tensor.double() for name, tensor in params.items()}


def _double_population(population: Population) -> Population:
    if isinstance(population, LinePopulation):
        origin, direction = _double(population.origin), _double(population.direction)
        return replace(population, origin=origin, direction=direction)
    if isinstance(population, dict):
        return _double(population)
    return replace(population, mean=_double(population.mean))


def _all_bounded(tensor: Tensor) -> bool:
    # NaN compares false, so one reduction finds NaN, infinity and numbers that could overflow.
    return bool(tensor.abs().amax() < _LARGE)
