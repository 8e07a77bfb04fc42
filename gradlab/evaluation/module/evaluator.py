r"""A whole population of any ``nn.Module`` on one batch, in bounded memory.

Members are evaluated some at a time by ``torch.func.vmap``, examples in blocks. Where a population
varies only some of the parameters, whatever the others determine is computed once per block
(:mod:`gradlab.evaluation.module.graph`). Block sizes are a pure function of the shapes and of
``memory_bytes``: what one member and one example hold is counted once, with the module itself on
two or three examples.

Outputs have the module's own precision, losses are float64. Comparisons with one origin
(:meth:`ModuleEvaluator.decreases`) run in float64 throughout, so that a step of 1e-5 is signal and
not rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gradlab._registry import unknown
from gradlab.evaluation import population as pop
from gradlab.evaluation.module.footprint import Chunks, Needs, chunk_sizes
from gradlab.evaluation.module.program import (
    LossFunction,
    Prepared,
    Program,
    cross_entropy,
    mean_squared_error,
    names_of,
)
from gradlab.evaluation.module.trial import (
    check_arguments,
    couples_examples,
    measure,
    try_out,
    works,
)
from gradlab.evaluation.population import GaussianPopulation, LinePopulation, Params, Population

LOSSES: dict[str, LossFunction] = {"cross_entropy": cross_entropy, "mse": mean_squared_error}


@dataclass(frozen=True, eq=False)
class ModuleEvaluator:
    """Losses of many members of any module on one batch.

    Parameters are those of ``model.named_parameters()``. Buffers, such as the statistics of
    BatchNorm, are the module's own as they are now and never change. The module is copied; whatever
    happens to it later, here and there, happens apart.

    A module that couples examples (BatchNorm in training mode, which normalizes by the batch) sees
    its batch whole: then ``memory_bytes`` is held only as far as one member on all examples allows.

    Args:
        model: the network; its forward takes one tensor and returns one, a row per example.
        inputs: ``(B, ...)``.
        targets: ``(B,)`` classes for cross-entropy, ``(B, ...)`` like the outputs for mse.
        loss: "cross_entropy", "mse" (mean over an example's outputs), or a function of outputs and
            targets that returns ``(B,)``.
        memory_bytes: bound on what an evaluation holds at a time, beside inputs and parameters.

    Raises:
        ValueError: no parameters, unequal numbers of examples, an unknown loss or one of the wrong
            shape, a forward pass that fails or draws random numbers.

    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> evaluator = ModuleEvaluator(model, torch.eye(2), torch.zeros(2, 1), loss="mse")
    >>> evaluator.losses({"0.weight": torch.tensor([[[1.0, 1.0]], [[2.0, 0.0]]])}).tolist()
    [1.0, 2.0]
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: str | LossFunction = "cross_entropy"
    memory_bytes: int = 2**28
    couples: bool = field(init=False, repr=False)
    _program: Program = field(init=False, repr=False)
    _wide: Program = field(init=False, repr=False)
    _needs: dict[tuple[bool, frozenset[str]], Needs] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        check_arguments(self.model, self.inputs, self.targets, self.memory_bytes)
        function = self.loss
        if not callable(function):
            if function not in LOSSES:
                raise ValueError(unknown("loss", str(function), LOSSES))
            function = LOSSES[function]
        function = _per_example(function)
        program = Program(self.model, function)
        object.__setattr__(self, "_program", program)
        few = try_out(program, self.inputs, self.targets)
        wide = Program(self.model, function, wide=True)
        if wide.graph is not None and program.graph is None:
            wide.forget_graph(program.untraced)
        if not works(wide, self.inputs[:few], self.targets[:few]):
            wide = program
        object.__setattr__(self, "_wide", wide)
        object.__setattr__(self, "couples", couples_examples(wide, self.inputs))

    @property
    def params(self) -> Params:
        """The module's own parameters, copied."""
        return {name: tensor.clone() for name, tensor in self._program.params.items()}

    @property
    def path(self) -> str:
        """How members are evaluated when all parameters vary, in one line."""
        untraced = self._program.untraced
        needs = self._needed(self._program, frozenset(self._program.params))
        first = f"whole forward pass ({untraced})" if untraced else "traced graph, prefixes cached"
        return first + (
            ", members batched" if needs.batchable else f", one member at a time ({needs.reason})"
        )

    @property
    def program(self) -> Program:
        """The module's copy in its own precision."""
        return self._program

    def on(
        self, inputs: Tensor, targets: Tensor, buffers: Mapping[str, Tensor] | None = None
    ) -> ModuleEvaluator:
        """The same module on another batch, without copying or tracing it again.

        Both evaluators share the module's copy, its graph and what was measured of it, so this
        costs next to nothing: for training, whose batch changes at every step. The module's
        parameters stay those it was made with, and matter only where none are given.

        Args:
            inputs: examples of the same shape, type and device as before, any number of them.
            targets: one per example.
            buffers: new values of some or all buffers, such as the statistics of BatchNorm in
                evaluation mode; copied. The others stay what they are.

        Raises:
            ValueError: examples of another shape, type or device, unequal numbers of examples, or
                buffers that the module does not have.

        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> first = ModuleEvaluator(model, torch.eye(2), torch.zeros(2, 1), loss="mse")
        >>> second = first.on(2 * torch.eye(2), torch.zeros(2, 1))
        >>> second.losses({"0.weight": torch.tensor([[[1.0, 1.0]]])}).tolist()
        [4.0]
        """
        check_arguments(self.model, inputs, targets, self.memory_bytes)
        for name, old, new in (("inputs", self.inputs, inputs), ("targets", self.targets, targets)):
            before, now = ((*t.shape[1:], t.dtype, t.device) for t in (old, new))
            if before != now:
                raise ValueError(
                    f"the new {name} are {now} each, and the evaluator was made for {before}: make "
                    "another evaluator for them."
                )
        moved = copy.copy(self)
        program = self._program.with_buffers(buffers or {})
        wide = program if self._wide is self._program else self._wide.with_buffers(buffers or {})
        needs = self._needs if len(inputs) == len(self.inputs) else {}
        for key, value in {"inputs": inputs, "targets": targets, "_program": program,
                           "_wide": wide, "_needs": needs}.items():  # fmt: skip
            object.__setattr__(moved, key, value)
        return moved

    def outputs(self, params: Params) -> Tensor:
        """Outputs of one parameter dict, ``(B, ...)``, in the module's precision."""
        self.check_params(params)
        params = {name: tensor.detach() for name, tensor in params.items()}
        needs = self._needed(self._program, frozenset(self._program.params))
        examples = self._chunks(replace(needs, batchable=False)).examples
        blocks = pop.chunks(len(self.inputs), examples)
        return torch.cat([self._program.forward(self.inputs[a:b], params) for a, b in blocks])

    def losses(self, population: Population, base: Params | None = None) -> Tensor:
        """Mean loss of every member.

        Args:
            population: members that bring along all parameters or some of them.
            base: the parameters that members leave out.

        Returns:
            ``(P,)`` float64; NaN where a member's outputs are.

        Raises:
            ValueError: parameters of an unknown name or another shape, or missing ones.
        """
        base = self._base(population, base)
        total = self.inputs.new_zeros(pop.size(population), dtype=torch.float64)
        for (low, high), losses in self._blocks(self._program, population, base):
            total[low:high] += losses.sum(dim=1)
        return total / len(self.inputs)

    def decreases(self, params: Params, population: Population) -> Tensor:
        """Mean over examples of loss(params) - loss(member), in float64.

        The whole network runs in float64, with the origin beside the members in the same pass; a
        module that cannot do that (one that asks for float32 itself) runs in its own precision.

        Args:
            params: the origin, all parameters.
            population: members that bring along all parameters or some; the origin has the others.

        Returns:
            ``(P,)`` float64.

        Raises:
            ValueError: parameters of an unknown name or another shape, or missing ones.
        """
        self.check_params(params)
        base = self._base(population, params)
        total = self.inputs.new_zeros(pop.size(population), dtype=torch.float64)
        wide = _in_double(population) if self._wide.wide else population
        origin = {name: params[name].detach() for name in names_of(population)}
        for (low, high), losses in self._blocks(self._wide, wide, base, origin):
            total[low:high] += (losses[0] - losses[1:]).sum(dim=1)
        return total / len(self.inputs)

    def check_params(self, params: Params) -> None:
        """Refuse a parameter dict with other names or shapes than the module's."""
        self._check_names(params, everything=True)

    def chunks(self, population: Population) -> Chunks:
        """How much :meth:`losses` evaluates at a time."""
        return self._chunks(self._needed(self._program, frozenset(names_of(population))))

    def _blocks(
        self, program: Program, population: Population, base: Params, origin: Params | None = None
    ) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Ranges of members with their losses ``(p, b)`` on one block of examples after another.

        With an origin the losses are ``(p + 1, b)``, the first row the origin's.
        """
        names = frozenset(names_of(population))
        chunks = self._chunks(self._needed(program, names))
        riders = 0 if origin is None else 1
        groups = pop.chunks(pop.size(population), max(1, chunks.members - riders))
        blocks = pop.chunks(len(self.inputs), chunks.examples)

        def members(low: int, high: int) -> Params:
            found = pop.members(pop.part(population, low, high))
            if origin is None:
                return {name: w.detach() for name, w in found.items()}
            first = {name: program.cast(origin[name])[None] for name in found}
            return {name: torch.cat((first[name], program.cast(w))) for name, w in found.items()}

        def losses(prepared: Prepared, made: Params) -> Tensor:
            return program.losses(prepared, made, chunks.batched)

        if names == frozenset(program.params):
            # nothing of a block is worth keeping: make members once
            for group in groups:
                made = members(*group)
                for a, b in blocks:
                    part = program.prepare(self.inputs[a:b], self.targets[a:b], names, base)
                    yield group, losses(part, made)
                del made, part
        else:
            for a, b in blocks:
                part = program.prepare(self.inputs[a:b], self.targets[a:b], names, base)
                for group in groups:
                    yield group, losses(part, members(*group))
                del part  # before the next one is made

    def _chunks(self, needs: Needs) -> Chunks:
        device, batch = self.inputs.device.type, len(self.inputs)
        return chunk_sizes(needs, batch, self.memory_bytes, device, whole_batch=self.couples)

    def _needed(self, program: Program, names: frozenset[str]) -> Needs:
        """What members of these parameters need, measured when first asked for."""
        key = (program.wide, names)
        if key not in self._needs:
            self._needs[key] = measure(
                program, names, self.inputs, self.targets, self.memory_bytes, self.couples
            )
        return self._needs[key]

    def _base(self, population: Population, base: Params | None) -> Params:
        """The parameters that the members leave out, checked."""
        varying = names_of(population)
        self._check_names(varying, everything=False, members=isinstance(population, dict))
        missing = sorted(set(self._program.params) - set(varying) - set(base or {}))
        if missing:
            raise ValueError(
                f"the members have no {', '.join(missing)}: give all parameters, or the others as "
                "base."
            )
        others = {name: w.detach() for name, w in (base or {}).items() if name not in varying}
        self._check_names(others, everything=False)
        return others

    def _check_names(
        self, params: Mapping[str, Tensor], everything: bool, members: bool = False
    ) -> None:
        own = self._program.params
        extra = sorted(set(params) - set(own))
        missing = sorted(set(own) - set(params)) if everything else []
        if extra or missing or (members and not params):
            raise ValueError(
                f"the parameters do not fit the module (missing: {', '.join(missing) or 'none'}; "
                f"unknown: {', '.join(extra) or 'none'}): use the names of named_parameters()."
            )
        for name, tensor in params.items():
            shape = tensor.shape[1:] if members else tensor.shape
            if shape != own[name].shape:
                raise ValueError(
                    f"parameter {name} has shape {tuple(shape)}, not {tuple(own[name].shape)}: "
                    "use the shapes of model.named_parameters()."
                )


def _per_example(function: LossFunction) -> LossFunction:
    """The loss of float64 outputs in float64; a function that refuses them gets its own dtype."""
    if function in LOSSES.values():
        return function

    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            found = function(outputs.double(), targets)
        except (RuntimeError, TypeError):
            found = function(outputs, targets)
        return found.double()

    return losses


def _in_double(population: Population) -> Population:
    def double(params: Params) -> Params:
        return {name: tensor.detach().double() for name, tensor in params.items()}

    if isinstance(population, LinePopulation):
        return replace(
            population, origin=double(population.origin), direction=double(population.direction)
        )
    if isinstance(population, GaussianPopulation):
        return replace(population, mean=double(population.mean))
    return population  # cast a few members at a time
