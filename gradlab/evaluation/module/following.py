"""The differences of one layer's weights: moves followed through the rest of the network.

See :mod:`gradlab.evaluation.module.coordinates`, whose work this is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Node

from gradlab.evaluation import population as pop
from gradlab.evaluation.module.channelwise import MOST_LEVELS, channel_region, growth, select
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.executor import Executor
from gradlab.evaluation.module.footprint import line, peak_bytes
from gradlab.evaluation.module.graph import Environment, ModuleGraph, Schedule
from gradlab.evaluation.module.moves import Moves
from gradlab.evaluation.noise import compiled_problem
from gradlab.evaluation.population import Params

if TYPE_CHECKING:
    from gradlab.evaluation.module.walk import Walk

# Bytes in flight on a CPU: beyond some megabytes operations wait for memory.
_CPU_BYTES = 2**26
# Walking pays as long as no larger share of the inputs of convolutions changes.
_MOST_CHANGED = 0.375


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


@dataclass(frozen=True)
class _Block:
    """Some examples with what no move changes.

    Attributes:
        values: of the nodes that the moves and the rest of the network read.
        rows: images among them, channels last; of these the rest of the network gets its share.
        losses: ``(b,)``.
        targets: of the examples.
    """

    values: Environment
    rows: dict[Node, Tensor]
    losses: Tensor
    targets: Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, so that none of its own waits busily for work on a core of a walk's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Differences:
    """The differences of one parameter whose layer is known."""

    def __init__(
        self,
        evaluator: ModuleEvaluator,
        params: Params,
        name: str,
        moves: Moves,
    ) -> None:
        graph = evaluator.program.graph
        assert graph is not None
        self.graph: ModuleGraph = graph
        self.evaluator = evaluator
        self.program = evaluator.program
        self.moves = moves
        self.channel = moves.channel
        self.live = frozenset(graph.needed({graph.result}))
        self.state = self.program.state(params)
        self.stats = LayerStats("channel", 2 * params[name].numel() * len(evaluator.inputs))
        on_gpu = evaluator.inputs.device.type != "cpu"
        # on a CPU convolutions of few channels are up to twice as fast when channels come last
        self.by_rows = not on_gpu and self.channel == 1
        room = evaluator.memory_bytes if on_gpu else min(evaluator.memory_bytes, _CPU_BYTES)
        # a third each for what is kept of a block, the layer's changed channels, and the rest of
        # the network
        self.room = max(1, room // 3)

    def run(self) -> tuple[Tensor, LayerStats] | None:
        """Differences ``(O, K)`` and their cost; None where this module does not lend itself."""
        batch = len(self.evaluator.inputs)
        if not self._plan():
            return None
        ids = self.moves.ids
        jumps = torch.zeros(self.moves.count, dtype=torch.float64, device=ids.device)
        finite = True
        with one_thread() if self.walk is not None else nullcontext():
            for low, high in pop.chunks(batch, self.examples):
                finite &= self._block(low, high, jumps)
        total = self.moves.differences(jumps)
        if not finite:
            total.fill_(torch.nan)
        return total / batch, self.stats

    def _plan(self) -> bool:
        """Decide how far changes are followed, and how much is done at a time."""
        graph, node = self.graph, self.moves.node
        inputs, targets = self.evaluator.inputs, self.evaluator.targets
        batch = len(inputs)
        # two and three examples, repeated where there are fewer, tell what grows with their number
        index = torch.arange(3, device=inputs.device)
        values = self._values(inputs[index[:2] % batch], self.live)
        output = values[node]
        if not isinstance(output, Tensor) or len(output) != 2:
            return False
        self.region = channel_region(graph, node, self.channel, self.live, values)
        inside = {node, *self.region}
        self.exits = tuple(
            each
            for each in (node, *self.region)
            if each is graph.result or any(u in self.live and u not in inside for u in each.users)
        )
        self.suffix = graph.split(cut=frozenset(self.exits)).suffix
        region = Schedule.of(self.region, frozenset(self.exits))
        self.following = Executor(graph, region, self.state)
        self.finishing = Executor(graph, self.suffix, self.state)
        made = inside | set(self.suffix.nodes)
        # what the moves, and what the rest of the network reads from elsewhere
        self.around, self.beside = (
            tuple(n for n in graph.nodes if n not in made and any(u in part for u in n.users))
            for part in (set(self.region), set(self.suffix.nodes))
        )
        self.outside = tuple(dict.fromkeys((*self.around, *self.beside)))
        more = self._values(inputs[index % batch], frozenset(self.outside))
        self.kinds = {each: growth(values[each], more[each]) for each in self.outside}
        if any("unknown" in str(kind) for kind in self.kinds.values()):
            return False
        index = index[:2]
        these = targets[index % batch]
        few = _Block(values, self._rows(values), these, these)
        self.walk: Walk | None = None
        self.example = max(1, peak_bytes(lambda: self._losses_of(few, index)) // 2)
        follow = peak_bytes(lambda: self._follow(output, values, index))
        # of one example in one copy: the changed channels, and their comparison
        self.followed = max(1, (follow + self.moves.overhead * output.nbytes))
        fixed, prefix = line(
            [
                (count, peak_bytes(lambda: self._kept(inputs[:count])))  # noqa: B023 (called at once)
                for count in (min(2, batch), min(3, batch))
            ]
        )
        if self.by_rows:
            prefix += self._plan_walk(values)
        each = max(self.followed, self.example)
        fitting = min(self.room // each, (self.room - fixed) // max(1, prefix))
        self.examples = min(batch, max(1, fitting))
        return True

    def _plan_walk(self, values: Environment) -> int:
        """Walk through the rest of the network if it lends itself; bytes kept of an example."""
        if compiled_problem() is not None:
            return 0
        from gradlab.evaluation.module.walk import Walk  # compiles, which not every machine can

        alike = [node for node in self.beside if self.kinds[node] == "examples"]
        walk = Walk(self.graph, self.suffix, self.exits, alike, values, self.state)
        if not walk.pays():
            return 0
        self.walk = walk
        left = tuple(node for node in self.suffix.nodes if node not in set(walk.nodes))
        keep = frozenset({self.graph.result})
        self.ending = Executor(self.graph, Schedule.of(left, keep), self.state)
        self.read = {self.graph.result, *(each for node in left for each in node.all_input_nodes)}
        remembered = Schedule.of(self.suffix.nodes, keep.union(walk.remembered))
        self.settling = Executor(self.graph, remembered, self.state)
        self.followed += sum(values[node].nbytes for node in self.exits)
        return sum(values[node][0].nbytes for node in walk.remembered)

    def _values(self, inputs: Tensor, keep: frozenset[Node]) -> Environment:
        """Values of nodes ``keep`` on a block of inputs."""
        schedule = Schedule.of(self.graph.needed(set(keep)), keep)
        given = {self.graph.placeholder: self.program.cast(inputs)}
        return self.graph.run(schedule, given, self.state)

    def _kept(self, inputs: Tensor) -> tuple[Environment, dict[Node, Tensor]]:
        """What is kept of a block of examples: values, and images with their channels last."""
        keep = frozenset({*self.outside, *self.exits, self.moves.node, self.moves.input})
        values = self._values(inputs, keep)
        return values, self._rows(values)

    def _rows(self, values: Environment) -> dict[Node, Tensor]:
        return {
            node: values[node].permute(0, 2, 3, 1).contiguous()
            for node in (*self.exits, *self.beside)
            if self.by_rows and isinstance(values[node], Tensor) and values[node].dim() == 4
        }

    def _block(self, low: int, high: int, total: Tensor) -> bool:
        """Add the jumps of some examples to ``total``; whether their losses are numbers."""
        values, rows = self._kept(self.evaluator.inputs[low:high])
        targets = self.evaluator.targets[low:high]
        block = self._settled(_Block(values, rows, targets, targets))
        held = max(1, self.room // (self.followed * (high - low)))
        for first, last in pop.chunks(len(self.moves.ids), held):
            self._copies(range(first, last), block, total)
            if self.walk is not None and self.walk.share > _MOST_CHANGED:
                self.walk = None
                block = self._settled(block)
        return bool(block.losses.isfinite().all())

    def _settled(self, block: _Block) -> _Block:
        """A block with its losses when nothing moves."""
        index = torch.arange(len(block.targets), device=block.targets.device)
        if self.walk is not None:
            exits = {node: self._chosen(block, node, index) for node in self.exits}
            environment = self._environment(exits, block, index, self.beside)
            found = {**environment, **self.settling.run(environment)}
            if self.walk.remember(found):
                still = torch.full_like(index, -1)
                exits = {n: self._chosen(block, n, index) for n in self.exits if n in self.read}
                losses = self._walked((still, still, index), block, exits)
                return replace(block, losses=losses)
            self.walk = None
        return replace(block, losses=self._losses_of(block, index))

    def _copies(self, numbers: range, block: _Block, total: Tensor) -> None:
        """Add the jumps of some copies of the layer's output to ``total``."""
        values = block.values
        output = values[self.moves.node]
        batch, copies = len(output), len(numbers)
        moved = self.moves.outputs(numbers, values[self.moves.input], output)
        index = torch.arange(batch, device=output.device).repeat(copies)
        after = self._follow(moved, values, index)
        del moved
        changes, rows = {}, []
        for node in self.exits:
            before, now = self._flat(values[node]), self._flat(after[node])
            changes[node] = (now.reshape(copies, *before.shape) != before).flatten(0, 1)
            rows.append(changes[node].any(dim=2))
        ids = self.moves.ids[numbers.start : numbers.stop]
        wanted = (ids >= 0).repeat_interleave(batch, dim=0)
        copy_of, channels = (torch.stack(rows).any(dim=0) & wanted).nonzero(as_tuple=True)
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
        if self.walk is not None:
            self.walk.follow(after)
        parts = []
        most = max(1, self.room // self.example)
        rounds = -(-len(chosen) // most)
        for a, b in pop.chunks(len(chosen), -(-len(chosen) // rounds)):
            pairs = tuple(each[chosen[a:b]] for each in (copy_of, channels, examples))
            parts.append(self._jumps(pairs, block, after))
        jumps = torch.cat(parts)[inverse]
        total.index_add_(0, ids[copy_of // batch, channels], jumps)

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
        if len(torch.unique(now[:4096])) > MOST_LEVELS:
            return None
        levels = torch.unique(now)
        if len(levels) > MOST_LEVELS or bool(levels.isnan().any()):
            return None
        level = torch.searchsorted(levels, now)
        rows, size = changes[node].shape[1:]
        keys = ((examples * rows + channels) * size + place) * len(levels) + level
        # pairs that change several activations at a time stay apart from all others
        return torch.where(single, keys, -1 - torch.arange(len(keys), device=keys.device))

    def _flat(self, value: Tensor) -> Tensor:
        """``(b, O, places)``: the channel's dimension second, all others joined."""
        moved = value.movedim(self.channel, 1)
        return moved.reshape(*moved.shape[:2], -1)

    def _jumps(
        self, pairs: tuple[Tensor, ...], block: _Block, after: Mapping[Node, Tensor]
    ) -> Tensor:
        """Losses of changed pairs (copy, channel, example) minus those of before, float64."""
        copy_of, channels, examples = pairs
        number = torch.arange(len(examples), device=examples.device)
        exits = {}
        for node in self.exits:
            if self.walk is not None and node not in self.read:
                continue
            exits[node] = self._chosen(block, node, examples)
            now = after[node].movedim(self.channel, 1)
            exits[node].movedim(self.channel, 1)[number, channels] = now[copy_of, channels]
        if self.walk is None:
            losses = self._losses(exits, block, examples)
        else:
            losses = self._walked(pairs, block, exits)
        return losses - block.losses[examples]

    def _losses_of(self, block: _Block, index: Tensor) -> Tensor:
        """Losses of examples ``index`` of a block when nothing moves."""
        return self._losses({n: self._chosen(block, n, index) for n in self.exits}, block, index)

    def _chosen(self, block: _Block, node: Node, index: Tensor) -> Tensor:
        """A node's rows for the examples ``index`` of a block, copied."""
        if node in block.rows:
            return block.rows[node].index_select(0, index).permute(0, 3, 1, 2)
        found: Tensor = block.values[node][index]
        return found

    def _follow(self, moved: Tensor, values: Environment, index: Tensor) -> dict[Node, Tensor]:
        """Values at the exits when the layer's output is ``moved``, of examples ``index``."""
        environment = {node: select(values[node], self.kinds[node], index) for node in self.around}
        environment[self.moves.node] = moved
        found = self.following.run(environment)
        return {node: found.get(node, moved) for node in self.exits}

    def _environment(
        self, exits: Environment, block: _Block, index: Tensor, beside: Sequence[Node]
    ) -> Environment:
        """Exits, and nodes ``beside`` them, for the examples ``index`` of a block."""
        environment = {
            node: self._chosen(block, node, index)
            if node in block.rows and self.kinds[node] == "examples"
            else select(block.values[node], self.kinds[node], index)
            for node in beside
        }
        return {**environment, **exits}

    def _losses(self, exits: Environment, block: _Block, index: Tensor) -> Tensor:
        """Losses when the exits have these values for the examples ``index`` of a block."""
        environment = self._environment(exits, block, index, self.beside)
        found = {**exits, **self.finishing.run(environment)}
        return self.program.loss(found[self.graph.result], block.targets[index])

    def _walked(self, pairs: tuple[Tensor, ...], block: _Block, exits: Environment) -> Tensor:
        """The same of pairs (copy, channel, example), given the exits that are not walked from."""
        assert self.walk is not None
        copies, channels, index = pairs
        beside = [node for node in self.beside if node in self.read]
        environment = self._environment(exits, block, index, beside)
        environment.update(self.walk.run(copies, channels, index))
        found = {**environment, **self.ending.run(environment)}
        return self.program.loss(found[self.graph.result], block.targets[index])
