r"""Exact central differences along every weight of chosen layers of any module.

Changing one weight of a linear layer or convolution moves one channel of its output, by a known
amount (:mod:`gradlab.evaluation.module.layers`), so neither the layers before it nor the layer
itself are computed again. The change is followed through what comes next as long as that treats
channels apart: elementwise operations, BatchNorm in evaluation mode, pooling, sign. If everything
that the rest of the network sees is then what it was before, as it is for most examples behind a
sign when ε is small, the example's loss has not changed, and nothing else is computed for it. Only
changed pairs of a coordinate and an example go through the rest of the network, as one batch of
examples. Where the changed activations take few values, pairs that change the same single
activation to the same value share one evaluation: behind a linear layer all weights of a neuron do.

Parameters of other kinds, shared ones, modules that cannot be traced or that couple examples are
evaluated as populations (:class:`gradlab.evaluation.module.ModuleEvaluator`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from gradlab.evaluation import population as pop
from gradlab.evaluation.module.channelwise import growth, is_channelwise, is_elementwise, select
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.footprint import peak_bytes
from gradlab.evaluation.module.graph import Environment, ModuleGraph, Schedule
from gradlab.evaluation.module.layers import Layer, find_layer
from gradlab.evaluation.population import Params

# Bytes in flight on a CPU: beyond some megabytes operations wait for memory.
_CPU_BYTES = 2**24
# More values than this are no levels.
_MOST_LEVELS = 16


@dataclass
class LayerStats:
    """How much work one parameter took.

    Attributes:
        method: "channel" where changes were followed, "population" where not.
        pairs: coordinates times two steps times examples.
        changed: pairs in which the rest of the network sees a change.
        evaluated: suffix evaluations of one example; pairs for "population".
    """

    method: str
    pairs: int = 0
    changed: int = 0
    evaluated: int = 0

    @property
    def skipped(self) -> int:
        """Pairs whose loss is known without an evaluation."""
        return self.pairs - self.evaluated


@dataclass
class DifferenceStats:
    """Filled by :func:`module_differences`: the work of each parameter."""

    layers: dict[str, LayerStats] = field(default_factory=dict)


def module_differences(
    evaluator: ModuleEvaluator,
    params: Params,
    epsilon: float,
    names: Sequence[str] | None = None,
    stats: DifferenceStats | None = None,
) -> Params:
    r""":math:`L(w + \varepsilon e_i) - L(w - \varepsilon e_i)` of every coordinate.

    Args:
        evaluator: the module and its batch.
        params: all parameters; must be finite.
        epsilon: the half-width, above zero.
        names: which parameters; all if left out.
        stats: filled with the number of examples evaluated and skipped.

    Returns:
        A dict like ``params`` of the chosen names, float64; NaN where the loss is.

    Raises:
        ValueError: an unknown name, or parameters that do not fit the module.

    >>> from torch import nn
    >>> evaluator = ModuleEvaluator(
    ...     nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1), loss="mse"
    ... )
    >>> differences = module_differences(evaluator, {"weight": torch.ones(1, 2)}, 0.5)
    >>> differences["weight"].tolist()  # of (w · x)², which is 4 ε (w · x) x
    [[6.0, 12.0]]
    """
    chosen = list(params) if names is None else list(names)
    unknown = sorted(set(chosen) - set(params))
    if unknown:
        raise ValueError(
            f"the module has no parameters {', '.join(unknown)}: choose among {', '.join(params)}."
        )
    evaluator.check_params(params)
    params = {name: tensor.detach() for name, tensor in params.items()}
    graph = evaluator.program.graph
    out = {}
    for name in chosen:
        done = None
        if graph is not None and not evaluator.couples:
            with torch.no_grad():
                found = find_layer(graph, name, evaluator.program.state(params))
                if found is not None:
                    done = _Differences(evaluator, params, name, found, epsilon).run()
        if done is None:
            done = _by_population(evaluator, params, name, epsilon)
        out[name] = done[0].reshape(params[name].shape)
        if stats is not None:
            stats.layers[name] = done[1]
    return out


def _by_population(
    evaluator: ModuleEvaluator, params: Params, name: str, epsilon: float
) -> tuple[Tensor, LayerStats]:
    flat = params[name].flatten()
    out = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
    base = {other: tensor for other, tensor in params.items() if other != name}
    for low, high in pop.chunks(len(flat), min(256, 2**22 // len(flat))):
        index = torch.arange(low, high, device=flat.device)
        steps = flat.new_zeros(2, high - low, len(flat))
        steps[0, index - low, index] = epsilon
        steps[1, index - low, index] = -epsilon
        members = (flat + steps).reshape(-1, *params[name].shape)
        losses = evaluator.losses({name: members}, base)
        out[low:high] = losses[: high - low] - losses[high - low :]
    pairs = 2 * len(flat) * len(evaluator.inputs)
    return out, LayerStats("population", pairs, pairs, pairs)


class _Differences:
    """The differences of one parameter whose layer is known."""

    def __init__(
        self,
        evaluator: ModuleEvaluator,
        params: Params,
        name: str,
        layer: Layer,
        epsilon: float,
    ) -> None:
        graph = evaluator.program.graph
        assert graph is not None
        self.graph: ModuleGraph = graph
        self.evaluator = evaluator
        self.program = evaluator.program
        self.layer = layer
        self.shape = params[name].shape
        self.live = frozenset(graph.needed({graph.result}))
        self.state = self.program.state(params)
        self.up, self.down = layer.steps(
            graph, self.program.cast(params[name]), epsilon, self.state
        )
        self.stats = LayerStats("channel", 2 * params[name].numel() * len(evaluator.inputs))
        on_gpu = evaluator.inputs.device.type != "cpu"
        room = evaluator.memory_bytes if on_gpu else min(evaluator.memory_bytes, _CPU_BYTES)
        # a third each for what is kept of a block, the layer's changed channels, and the rest of
        # the network
        self.room = max(1, room // 3)

    def run(self) -> tuple[Tensor, LayerStats] | None:
        """Differences ``(O, K)`` and their cost; None where this module does not lend itself."""
        batch = len(self.evaluator.inputs)
        if not self._plan():
            return None
        total = torch.zeros(self.up.shape, dtype=torch.float64, device=self.up.device)
        finite = True
        for low, high in pop.chunks(batch, self.examples):
            finite &= self._block(low, high, total)
        if not finite:
            total.fill_(torch.nan)
        return total / batch, self.stats

    def _plan(self) -> bool:
        """Decide how far changes are followed, and how much is done at a time."""
        graph, node = self.graph, self.layer.node
        inputs, targets = self.evaluator.inputs, self.evaluator.targets
        batch = len(inputs)
        # two and three examples, repeated where there are fewer, tell what grows with their number
        index = torch.arange(3, device=inputs.device)
        values = self._values(inputs[index[:2] % batch], self.live)
        output = values[node]
        if not isinstance(output, Tensor) or len(output) != 2:
            return False
        self.region = self._region(values)
        inside = {node, *self.region}
        self.exits = tuple(
            each
            for each in (node, *self.region)
            if each is graph.result or any(u in self.live and u not in inside for u in each.users)
        )
        self.suffix = graph.split(cut=frozenset(self.exits)).suffix
        self.schedule = Schedule.of(self.region, frozenset(self.exits))
        used = {
            each
            for part in (self.region, self.suffix.nodes)
            for user in part
            for each in user.all_input_nodes
        }
        made = inside | set(self.suffix.nodes)
        self.outside = tuple(each for each in graph.nodes if each in used and each not in made)
        more = self._values(inputs[index % batch], frozenset(self.outside))
        self.kinds = {each: growth(values[each], more[each]) for each in self.outside}
        if any("unknown" in str(kind) for kind in self.kinds.values()):
            return False
        exits, index = {each: values[each] for each in self.exits}, index[:2]
        these = targets[index % batch]
        self.example = max(1, peak_bytes(lambda: self._losses(exits, values, index, these)) // 2)
        follow = peak_bytes(lambda: self._follow(output, values, index)) + output.nbytes
        # of one example, raised and lowered: the changed channels, and their comparison
        self.followed = max(1, 2 * follow)
        keep = frozenset({*self.outside, *self.exits, node, self.layer.input})
        prefix = peak_bytes(lambda: self._values(inputs[index % batch], keep)) // 2
        fitting = self.room // max(self.followed, prefix, self.example)
        self.examples = min(batch, max(1, fitting))
        return True

    def _region(self, values: Environment) -> tuple[Node, ...]:
        """Nodes behind the layer whose channels depend on the same channel of the layer alone."""
        graph, layer = self.graph, self.layer
        shape = values[layer.node].shape
        found: list[Node] = []
        inside, dependent = {layer.node}, {layer.node}
        for node in graph.nodes:
            inputs = node.all_input_nodes
            if node not in self.live or not any(each in dependent for each in inputs):
                continue
            dependent.add(node)
            value = values[node]
            # whatever else it reads must not change with the layer
            if not isinstance(value, Tensor) or any(n in dependent - inside for n in inputs):
                continue
            if is_elementwise(graph, node, values):
                fits = value.shape == shape or (
                    layer.channel == 1 and value.shape[:2] == shape[:2] and value.dim() == 4
                )
            else:
                images = layer.channel == 1 or len(shape) == 2
                fits = images and value.shape[:2] == shape[:2] and value.dim() == len(shape)
                fits = fits and is_channelwise(graph, node)
            if fits:
                found.append(node)
                inside.add(node)
        return tuple(found)

    def _values(self, inputs: Tensor, keep: frozenset[Node]) -> Environment:
        """Values of nodes ``keep`` on a block of inputs."""
        schedule = Schedule.of(self.graph.needed(set(keep)), keep)
        given = {self.graph.placeholder: self.program.cast(inputs)}
        return self.graph.run(schedule, given, self.state)

    def _block(self, low: int, high: int, total: Tensor) -> bool:
        """Add the differences of some examples to ``total``; whether their losses are numbers."""
        keep = {*self.outside, *self.exits, self.layer.node, self.layer.input}
        values = self._values(self.evaluator.inputs[low:high], frozenset(keep))
        targets = self.evaluator.targets[low:high]
        output = values[self.layer.node]
        index = torch.arange(high - low, device=output.device)
        exits = {each: values[each] for each in self.exits}
        losses = self._losses(exits, values, index, targets)
        columns = self.layer.columns(values[self.layer.input], self.shape, output.shape)
        held = max(1, self.room // (self.followed * len(index)))
        for first, last in pop.chunks(total.shape[1], held):
            self._columns(range(first, last), columns, values, losses, targets, total)
        return bool(losses.isfinite().all())

    def _columns(
        self,
        numbers: range,
        columns: Any,
        values: Environment,
        losses: Tensor,
        targets: Tensor,
        total: Tensor,
    ) -> None:
        """Add the differences of some columns, all channels at a time, to ``total``."""
        output = values[self.layer.node]
        batch, channel = len(output), self.layer.channel
        shape = [1] * output.dim()
        shape[channel] = -1
        moved = torch.stack(
            [
                output + step[:, number].reshape(shape).to(output.dtype) * columns(number)
                for number in numbers
                for step in (self.up, self.down)
            ]
        ).flatten(0, 1)
        copies = len(moved) // batch
        index = torch.arange(batch, device=output.device).repeat(copies)
        after = self._follow(moved, values, index)
        del moved
        changes, rows = {}, []
        for node in self.exits:
            before, now = self._flat(values[node]), self._flat(after[node])
            changes[node] = (now.reshape(copies, *before.shape) != before).flatten(0, 1)
            rows.append(changes[node].any(dim=2))
        copy_of, channels = torch.stack(rows).any(dim=0).nonzero(as_tuple=True)
        if not len(copy_of):
            return
        self.stats.changed += len(copy_of)
        examples = copy_of % batch
        keys = self._keys(changes, after, copy_of, channels, examples)
        chosen = torch.arange(len(copy_of), device=copy_of.device)
        inverse = chosen
        if keys is not None:
            _, inverse = torch.unique(keys, return_inverse=True)
            chosen = chosen.new_zeros(int(inverse.max()) + 1).scatter_(0, inverse, chosen)
        self.stats.evaluated += len(chosen)
        parts = []
        for a, b in pop.chunks(len(chosen), self.room // self.example):
            pairs = tuple(each[chosen[a:b]] for each in (copy_of, channels, examples))
            parts.append(self._jumps(pairs, values, after, losses, targets))
        jumps = torch.cat(parts)[inverse]
        copy = copy_of // batch
        signs = 1.0 - 2.0 * (copy % 2).double()
        places = channels * total.shape[1] + numbers.start + copy // 2
        total.view(-1).index_add_(0, places, signs * jumps)

    def _keys(
        self,
        changes: Mapping[Node, Tensor],
        after: Mapping[Node, Tensor],
        copy_of: Tensor,
        channels: Tensor,
        examples: Tensor,
    ) -> Tensor | None:
        """Equal numbers for pairs that are the same change; None if there is little to share."""
        if len(self.exits) > 1:
            return None
        (node,) = self.exits
        different = changes[node][copy_of, channels]
        single = different.sum(dim=1) == 1
        if int(single.sum()) < len(single) // 8:
            return None
        place = different.to(torch.uint8).argmax(dim=1)
        now = self._flat(after[node])[copy_of, channels, place]
        if len(torch.unique(now[:4096])) > _MOST_LEVELS:
            return None
        levels = torch.unique(now)
        if len(levels) > _MOST_LEVELS or bool(levels.isnan().any()):
            return None
        level = torch.searchsorted(levels, now)
        rows, size = changes[node].shape[1:]
        keys = ((examples * rows + channels) * size + place) * len(levels) + level
        # pairs that change several activations at a time stay apart from all others
        return torch.where(single, keys, -1 - torch.arange(len(keys), device=keys.device))

    def _flat(self, value: Tensor) -> Tensor:
        """``(b, O, places)``: the channel's dimension second, all others joined."""
        moved = value.movedim(self.layer.channel, 1)
        return moved.reshape(*moved.shape[:2], -1)

    def _jumps(
        self,
        pairs: tuple[Tensor, ...],
        values: Environment,
        after: Mapping[Node, Tensor],
        losses: Tensor,
        targets: Tensor,
    ) -> Tensor:
        """Losses of changed pairs (copy, channel, example) minus those of before, float64."""
        copy_of, channels, examples = pairs
        number = torch.arange(len(examples), device=examples.device)
        exits = {}
        for node in self.exits:
            changed = values[node].movedim(self.layer.channel, 1)[examples]
            now = after[node].movedim(self.layer.channel, 1)
            changed[number, channels] = now[copy_of, channels]
            exits[node] = changed.movedim(1, self.layer.channel)
        return self._losses(exits, values, examples, targets[examples]) - losses[examples]

    def _follow(self, moved: Tensor, values: Environment, index: Tensor) -> dict[Node, Tensor]:
        """Values at the exits when the layer's output is ``moved``, of examples ``index``."""
        environment = self._outside_values(self.region, values, index)
        environment[self.layer.node] = moved
        found = self.graph.run(self.schedule, environment, self.state)
        return {node: found.get(node, moved) for node in self.exits}

    def _losses(
        self, exits: Environment, values: Environment, index: Tensor, targets: Tensor
    ) -> Tensor:
        """Losses when the exits have these values for the examples ``index`` of a block."""
        environment = self._outside_values(self.suffix.nodes, values, index)
        environment.update(exits)
        found = {**exits, **self.graph.run(self.suffix, environment, self.state)}
        return self.program.loss(found[self.graph.result], targets)

    def _outside_values(
        self, nodes: Sequence[Node], values: Environment, index: Tensor
    ) -> Environment:
        used = {each for node in nodes for each in node.all_input_nodes}
        return {
            node: select(values[node], self.kinds[node], index)
            for node in self.outside
            if node in used
        }
