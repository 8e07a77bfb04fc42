"""A copy of a module, ready to give per-example losses of many members at once.

The copy is private: whatever a forward pass does to attributes or buffers, the user's module never
sees it, and every pass starts from the buffers as they were.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.evaluation.module.convolution import PopulationOperations
from gradlab.evaluation.module.executor import Executor
from gradlab.evaluation.module.graph import (
    Environment,
    ModuleGraph,
    Split,
    Untraceable,
    forward_of,
    intercepted_functions,
    one_line,
)
from gradlab.evaluation.population import Params

LossFunction = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Per-example cross-entropy ``(B,)`` in float64 of logits ``(B, K, ...)``.

    >>> round(float(cross_entropy(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))), 6)
    0.693147
    """
    losses = F.cross_entropy(outputs.double(), targets, reduction="none")
    return losses.flatten(1).mean(1) if losses.dim() > 1 else losses


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Per-example mean squared error ``(B,)`` in float64 over the outputs of each example.

    Raises:
        ValueError: the shapes differ.

    >>> mean_squared_error(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])).tolist()
    [5.0]
    """
    if outputs.shape != targets.shape:
        raise ValueError(
            f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}: mse "
            "needs equal shapes."
        )
    squares = (outputs.double() - targets.double()).square()
    return squares.flatten(1).mean(1) if squares.dim() > 1 else squares


@dataclass(frozen=True)
class Prepared:
    """A block of examples with all that the varying parameters do not change.

    Attributes:
        inputs: the block.
        targets: its targets.
        base: parameters that members do not bring along.
        split: where the graph is cut; None where the whole forward pass runs for every member.
        values: values at the cut.
    """

    inputs: Tensor
    targets: Tensor
    base: Params
    split: Split | None
    values: Environment


class Program:
    """A module's copy, its graph if it has one, and the loss.

    Args:
        model: the user's module.
        loss: per-example loss of outputs and targets.
        wide: compute in float64.

    Attributes:
        graph: the traced forward pass, or None.
        untraced: why there is none, in one line.

    Raises:
        ValueError: the module cannot be copied.
    """

    def __init__(self, model: nn.Module, loss: LossFunction, wide: bool = False) -> None:
        self.module = _private_copy(model)
        self.wide = wide
        self.loss = loss
        if wide:
            self.module.double()
        self.params = {name: p.detach() for name, p in self.module.named_parameters()}
        self.buffers = {name: b.detach() for name, b in self.module.named_buffers()}
        self.graph: ModuleGraph | None = None
        self.untraced = ""
        try:
            # tracing runs forward, which may change attributes: of yet another copy, whose own
            # weights nobody reads
            self.graph = ModuleGraph(_private_copy(self.module))
            for name, parameter in self.graph.module.named_parameters():
                parameter.data = self.params[name]
        except Untraceable as reason:
            self.untraced = str(reason)

    def with_buffers(self, buffers: Mapping[str, Tensor]) -> Program:
        """The same program, sharing module and graph, with other values of some buffers.

        Raises:
            ValueError: a buffer that the module does not have, or of another shape.
        """
        for name, buffer in buffers.items():
            own = self.buffers.get(name)
            if own is None or own.shape != buffer.shape:
                shape = "no such buffer" if own is None else f"one of shape {tuple(own.shape)}"
                raise ValueError(
                    f"the buffer {name} has shape {tuple(buffer.shape)}, and the module has "
                    f"{shape}: give buffers of model.named_buffers()."
                )
        program = copy.copy(self)
        new = {name: self.cast(buffer.detach().clone()) for name, buffer in buffers.items()}
        program.buffers = {**self.buffers, **new}
        return program

    def forget_graph(self, reason: str) -> None:
        """Run the whole forward pass from now on."""
        self.graph, self.untraced = None, reason

    def cast(self, tensor: Tensor) -> Tensor:
        """A tensor in the program's precision: floats become float64 in a wide program."""
        return tensor.double() if self.wide and tensor.is_floating_point() else tensor

    def forward(self, inputs: Tensor, params: Params) -> Tensor:
        """The module's outputs, by the graph where there is one."""
        with torch.no_grad():
            if self.graph is None:
                return self.whole(inputs, params)
            values = {self.graph.placeholder: self.cast(inputs)}
            schedule = self.graph.split(frozenset()).prefix
            values = self.graph.run(schedule, values, self.state(params))
            outputs: Tensor = values[self.graph.result]
            return outputs

    def whole(self, inputs: Tensor, params: Params) -> Tensor:
        """The module's outputs by its own forward."""
        # a clone, because a forward pass may work on its inputs in place
        inputs = self.cast(inputs).clone()
        state = self.state(params)
        outputs: Tensor = torch.func.functional_call(self.module, state, (inputs,))
        return outputs

    def itemsize(self, name: str) -> int:
        """Bytes of one entry of a parameter."""
        return self.params[name].element_size()

    def prepare(
        self, inputs: Tensor, targets: Tensor, names: frozenset[str], base: Params
    ) -> Prepared:
        """Compute once what does not depend on the varying parameters ``names``."""
        split = None if self.graph is None else self.graph.split(names)
        inputs, base = self.cast(inputs), {name: self.cast(w) for name, w in base.items()}
        values: Environment = {}
        if self.graph is not None and split is not None:
            values = {self.graph.placeholder: inputs}
            with torch.no_grad():
                values = self.graph.run(split.prefix, values, self.state(base))
            values = {node: values[node] for node in split.frontier}
        return Prepared(inputs, targets, base, split, values)

    def losses(self, block: Prepared, members: Params, batched: bool = True) -> Tensor:
        """Per-example losses of several members.

        Args:
            block: the examples.
            members: varying parameters, ``(P, ...)`` each.
            batched: all members in one pass, by vmap; otherwise one after the other.

        Returns:
            ``(P, b)`` float64.
        """
        members = {name: self.cast(w) for name, w in members.items()}
        if not batched and self.graph is not None and block.split is not None and self._settled():
            return self._one_by_one(self.graph, block, block.split, members)

        def one(member: Params) -> Tensor:
            return self._member_losses(block, member)

        with torch.no_grad(), PopulationOperations(), self._functions(block.split):
            if batched:
                with quiet_vmap():
                    return torch.func.vmap(one)(members)
            size = len(next(iter(members.values())))
            each = [one({name: w[index] for name, w in members.items()}) for index in range(size)]
            return torch.stack(each)

    def _settled(self) -> bool:
        """Whether a forward pass leaves all buffers as they are, so that passes may share them."""
        return not any(
            module.training and any(True for _ in module.buffers(recurse=False))
            for module in self.module.modules()
        )

    def _one_by_one(
        self, graph: ModuleGraph, block: Prepared, split: Split, members: Params
    ) -> Tensor:
        """Losses of one member after the other, by what they have in common made ready once."""
        base = self.state(block.base)
        executor = Executor(graph, split.suffix, base, varying=frozenset(members))
        values = block.values
        if not self.wide and block.inputs.device.type == "cpu":
            # convolutions of few channels are up to twice as fast when channels come last
            values = {node: _channels_last(value) for node, value in values.items()}
        rows = []
        for index in range(len(next(iter(members.values())))):
            member = {name: w[index] for name, w in members.items()}
            found = {**values, **executor.run(values, member)}
            rows.append(self.loss(found[graph.result], block.targets))
        return torch.stack(rows)

    def _functions(self, split: Split | None) -> AbstractContextManager[None]:
        # nodes of a graph look after themselves
        return intercepted_functions(forward_of, outermost=True) if split is None else nullcontext()

    def _member_losses(self, block: Prepared, member: Params) -> Tensor:
        params = {**block.base, **member}
        if self.graph is None or block.split is None:
            outputs = self.whole(block.inputs, params)
        else:
            values = self.graph.run(block.split.suffix, block.values, self.state(params))
            outputs = values[self.graph.result]
        return self.loss(outputs, block.targets)

    def state(self, params: Params) -> dict[str, Tensor]:
        """Parameters and fresh copies of the buffers, by name, in the program's precision."""
        cast = {name: self.cast(tensor) for name, tensor in params.items()}
        return {**cast, **{name: buffer.clone() for name, buffer in self.buffers.items()}}


def _channels_last(value: Any) -> Any:
    images = isinstance(value, Tensor) and value.dim() == 4 and value.dtype == torch.float32
    return value.contiguous(memory_format=torch.channels_last) if images else value


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Without the warning of its own rule for pooling; a missing rule is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "An output with one or more elements was resized")
        warnings.filterwarnings("error", "There is a performance drop because we have not yet")
        yield


def _private_copy(model: nn.Module) -> nn.Module:
    try:
        module = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"the module cannot be copied ({one_line(error)}): take tensors with a graph and "
            "whatever else copy.deepcopy refuses out of its attributes."
        ) from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return module


def names_of(population: Any) -> Mapping[str, Tensor]:
    """One tensor per varying parameter, with a leading dimension only in a plain dict."""
    if isinstance(population, dict):
        return population
    found: Mapping[str, Tensor] = getattr(population, "mean", None) or population.origin
    return found
