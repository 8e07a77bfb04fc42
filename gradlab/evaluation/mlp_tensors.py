r"""A population of binarized MLPs by tensor operations: any device, any floating-point type.

The path for GPUs without Triton, for float64, and for members with NaN or infinite weights; also
what the compiled paths are compared with. Members are taken a few at a time and examples in blocks,
so that the activations of a block stay in cache through all layers: the first layer is one matrix
product ``(P n, n) @ (n, b)``, the others batched products ``(P, n, n) @ (P, n, b)``. What lies
within float32 rounding of a threshold is decided in float64, and losses are summed in float64. The
block sizes are a pure function of the shapes, so results do not depend on free memory or on the
number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

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
LARGE = 1e15


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
class TensorMLPEvaluator:
    """Losses of many members of :class:`BinarizedMLP` on one batch.

    Args:
        model: the architecture.
        inputs: ``(B, num_inputs)``.
        targets: ``(B, num_outputs)``, or labels ``(B,)`` int64 for cross-entropy.
        loss: "mse" or "cross_entropy".
    """

    model: BinarizedMLP
    inputs: Tensor
    targets: Tensor
    loss: str = "mse"
    _transposed: Tensor = field(init=False, repr=False, compare=False)
    _bounded: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_transposed", self.inputs.T.contiguous())
        object.__setattr__(self, "_bounded", all_bounded(self.inputs))

    def outputs(self, params: Params) -> Tensor:
        """Network outputs of one parameter dict, ``(B, num_outputs)``."""
        member = self.model.effective_weights({name: w[None] for name, w in params.items()})
        exact = self.is_exact(member)
        settle = _Settler(self.model, member, None) if exact and self._rounds else None
        parts = [
            self._outputs(
                self._hidden(member, self._transposed[:, a:b], exact, settle=settle), member
            )
            for a, b in pop.chunks(len(self.inputs), block_sizes(*self._shape)[0])
        ]
        return torch.cat(parts, dim=2)[0].T

    def losses(self, population: Population) -> Tensor:
        """Loss of every member, ``(P,)`` float64."""
        total = torch.zeros(pop.size(population), dtype=torch.float64, device=self.inputs.device)
        examples, group = block_sizes(*self._shape)
        for (low, high), members in self._groups(population, group):
            exact = self.is_exact(members)
            settle = _Settler(self.model, members, None) if exact and self._rounds else None
            for a, b in pop.chunks(len(self.inputs), examples):
                block = self._transposed[:, a:b]
                hidden = self._hidden(members, block, exact, settle=settle)
                outputs = self._outputs(hidden, members)
                total[low:high] += self._example_losses(outputs, a, b).sum(dim=1)
        return total / len(self.inputs)

    def _example_losses(self, outputs: Tensor, start: int, stop: int) -> Tensor:
        """``(P, m, b)`` to ``(P, b)`` float64."""
        targets = self.targets[start:stop]
        if self.loss == "mse":
            # the difference in the network's own type: a student equal to its teacher has loss zero
            return (outputs - targets.T).double().square().mean(dim=1)
        labels = targets.expand(len(outputs), -1)
        return cross_entropy(outputs.double(), labels, reduction="none")

    def decreases(self, params: Params, population: Population) -> Tensor:
        r"""Mean over examples of loss(params) - loss(member), ``(P,)`` float64.

        As exact as float64, at the price of float32: the output layer and the differences are
        computed in float64, per example, and of the hidden layers those pre-activations that lie
        within float32 rounding of a threshold, a few in a million. So a step of 1e-5 is signal, not
        rounding. A continuous activation has no thresholds for rounding to stop at: there the whole
        network runs in float64.
        """
        continuous = self.model.activation_function.thresholds is None
        if continuous and self.inputs.dtype != torch.float64:
            targets = self.targets.double() if self.loss == "mse" else self.targets
            wide = TensorMLPEvaluator(self.model, self.inputs.double(), targets, self.loss)
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
            exact = self.is_exact(both)
            if not exact and high - low > 1:
                # One member that overflows must not cost the others their exactness.
                for member in range(low, high):
                    alone = pop.part(population, member, member + 1)
                    total[member] = self.decreases(params, alone)[0] * len(self.inputs)
                continue
            # sign(W - eta g) is as exact as it gets
            moved = line if self.model.weight == "real" else None
            settle = _Settler(self.model, both, moved) if exact else None
            for a, b in pop.chunks(len(self.inputs), examples):
                hidden = self._hidden(both, self._transposed[:, a:b], exact, moved, settle)
                outputs = self._outputs64(hidden, both, line)
                if self.loss == "mse":
                    error = outputs - self.targets[a:b].T.double()
                    # a^2 - b^2 = (a - b)(a + b) keeps the digits of a small difference.
                    change = (outputs[0] - outputs[1:]) * (error[0] + error[1:])
                    total[low:high] += change.mean(dim=1).sum(dim=1)
                else:
                    each = self._example_losses(outputs, a, b)
                    total[low:high] += (each[0] - each[1:]).sum(dim=1)
        return total / len(self.inputs)

    @property
    def _shape(self) -> tuple[int, int, str]:
        return self.model.num_dim, len(self.inputs), self.inputs.device.type

    @property
    def _rounds(self) -> bool:
        """Whether pre-activations within rounding of a threshold have to be decided in float64."""
        return self.inputs.dtype != torch.float64 and bool(
            self.model.activation_function.thresholds
        )

    def is_exact(self, members: Params) -> bool:
        """Whether no pre-activation of these members can overflow or be NaN."""
        hidden = self.model.layer_names[:-1]
        return self._bounded and all(all_bounded(members[name]) for name in hidden)

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
        settle: _Settler | None = None,
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
        hidden = inputs
        for index, name in enumerate(names):
            if index:
                z = torch.bmm(members[name], hidden)
            if settle is not None:
                settle(name, z, hidden)
            hidden = self._activate(z, exact)
        return hidden

    def _activate(self, z: Tensor, exact: bool) -> Tensor:
        if exact and self.model.activation == "binary":
            # In place and three times faster than a select; it would turn NaN into -1, hence
            # ``exact``: no pre-activation of bounded weights and inputs can be NaN.
            return z.ge_(0).mul_(2).sub_(1)
        return self.model.activation_function.forward(z)

    def _outputs(self, hidden: Tensor, members: Params) -> Tensor:
        return torch.bmm(members[self.model.layer_names[-1]], hidden)

    def _outputs64(self, hidden: Tensor, members: Params, line: LinePopulation | None) -> Tensor:
        name = self.model.layer_names[-1]
        weight = members[name].double()
        if line is not None:
            origin, direction = {name: line.origin[name]}, {name: line.direction[name]}
            exact = replace(line, origin=_double(origin), direction=_double(direction))
            weight = exact.members()[name]
        return torch.bmm(weight, hidden.double())


class _Settler:
    """Decides in float64 the pre-activations that float32 leaves within rounding of a threshold.

    A float32 sum of n products errs by at most about n 2^-24 times the norms of its row and its
    input (Cauchy-Schwarz); the weights of a line add their own rounding.

    Args:
        model: the architecture.
        members: effective weights of a group, ``(P, rows, n)`` each.
        line: the line whose members they are, where their exact weights differ from the rounded.
    """

    def __init__(self, model: BinarizedMLP, members: Params, line: LinePopulation | None) -> None:
        self.members = members
        self.line = line
        self.thresholds = model.activation_function.thresholds or ()
        self.distance: Tensor | None = None
        self.largest = max(abs(level) for level in model.activation_function.levels or (1.0,))
        self.reach = {}
        for name in model.layer_names[:-1]:
            roundings = (model.shapes[name][1] + 4) * 2.0**-24
            norm = members[name].norm(dim=-1).amax()
            if line is not None:
                longest = max(abs(step) for step in line.steps)
                norm = line.origin[name].norm(dim=-1).amax()
                norm = norm + longest * line.direction[name].norm(dim=-1).amax()
            self.reach[name] = norm * roundings
        if model.weight == "binary" and model.activation == "binary":
            # sums of ±1 are exact, and zero is common
            for name in model.layer_names[1:-1]:
                self.reach[name] = torch.full_like(self.reach[name], -1.0)

    def __call__(self, name: str, z: Tensor, hidden: Tensor) -> None:
        """Mend z ``(P, n, b)`` in place; ``hidden`` is the input, ``(P, n, b)`` or ``(n, b)``."""
        # The norm of hidden activations is bounded by their largest level; only inputs need theirs.
        norm = hidden.norm(dim=0) if hidden.dim() == 2 else self.largest * hidden.shape[1] ** 0.5
        reach = self.reach[name] * norm
        for threshold in self.thresholds:
            member, row, example = self._near(z, threshold, reach)
            if not len(member):
                continue
            inputs = hidden[:, example].T if hidden.dim() == 2 else hidden[member, :, example]
            exact = (self._rows(name, member, row) * inputs.double()).sum(dim=1)
            edge = torch.tensor(threshold, dtype=z.dtype, device=z.device)
            below = torch.nextafter(edge, torch.full_like(edge, -math.inf))
            # The number next to zero is denormal, which some settings flush to zero.
            below = below.clamp_max(-torch.finfo(z.dtype).tiny) if threshold == 0 else below
            z[member, row, example] = torch.where(exact >= threshold, edge, below)

    def _near(self, z: Tensor, threshold: float, reach: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the pre-activations within reach: (member, row, example)."""
        if self.distance is None or self.distance.shape != z.shape:
            self.distance = torch.empty_like(z)
        distance = torch.abs(z if threshold == 0 else z - threshold, out=self.distance)
        # Rows first, by their smallest distance: five times faster than asking every entry.
        member, row = (distance.amin(dim=-1) <= reach.amax()).nonzero(as_tuple=True)
        found, example = (distance[member, row] <= reach).nonzero(as_tuple=True)
        return member[found], row[found], example

    def _rows(self, name: str, member: Tensor, row: Tensor) -> Tensor:
        if self.line is None:
            return self.members[name][member, row].double()
        steps = torch.tensor(self.line.steps, dtype=torch.float64, device=member.device)
        direction = self.line.direction[name][row].double()
        return self.line.origin[name][row].double() - steps[member, None] * direction


def _double(params: Params) -> Params:
    return {name: tensor.double() for name, tensor in params.items()}


def _double_population(population: Population) -> Population:
    if isinstance(population, LinePopulation):
        origin, direction = _double(population.origin), _double(population.direction)
        return replace(population, origin=origin, direction=direction)
    if isinstance(population, dict):
        return _double(population)
    return replace(population, mean=_double(population.mean))


def all_bounded(tensor: Tensor) -> bool:
    """Whether no sum of products of these numbers can overflow or be NaN."""
    # NaN compares false, so one reduction finds NaN, infinity and numbers that could overflow.
    return bool(tensor.abs().amax() < LARGE)
