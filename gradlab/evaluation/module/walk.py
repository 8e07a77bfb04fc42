r"""The images of a network, pair by pair, in one compiled loop.

A pair of a move and an example goes through the rest of the network alone, so that all it needs
stays in a core's cache and no core waits for another. Behind a sign most activations are what they
were before the weight moved. A convolution is linear, so its output is that of before plus a few
filter taps,

.. math:: z' = z + \sum_{c, y, x} (a'_{c,y,x} - a_{c,y,x})\, W_{:,c} \text{ around } (y, x)

over the activations that differ: with one in a hundred of them, a tenth of the work.

Of a schedule a :class:`Walk` takes what :mod:`gradlab.evaluation.module.walk_operations` knows. All
else, and what is behind it, is left to :class:`gradlab.evaluation.module.executor.Executor`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from gradlab.evaluation.module import walk_kernel as kernel
from gradlab.evaluation.module.channelwise import MOST_LEVELS
from gradlab.evaluation.module.graph import Environment, ModuleGraph, Schedule, State
from gradlab.evaluation.module.walk_operations import Operation, Operations
from gradlab.evaluation.population import chunks


class Walk:
    """The part of a schedule that is walked.

    Args:
        graph: the module.
        schedule: what depends on the changed channels.
        exits: nodes with one changed channel.
        beside: nodes with a row per example that the schedule also reads.
        values: of all nodes, on a few examples.
        state: parameters and buffers by name.

    Attributes:
        nodes: what is walked.
        outputs: those of them that others need.
        share: of the inputs of convolutions, how many have changed so far.
        threads: over which pairs are spread.
    """

    def __init__(
        self,
        graph: ModuleGraph,
        schedule: Schedule,
        exits: Sequence[Node],
        beside: Sequence[Node],
        values: Mapping[Node, Any],
        state: State,
    ) -> None:
        self._values = values
        self.threads = torch.get_num_threads()
        suffix = set(schedule.nodes)
        known = Operations(graph, suffix, values, state)
        self._length = known.length
        self._exits = [node for node in exits if known.is_image(node)]
        reached = {*self._exits, *(node for node in beside if known.is_image(node))}
        operations: dict[Node, Operation] = {}
        for node in schedule.nodes:
            if known.is_image(node):
                found = known.of(node)
                if found is not None and reached.issuperset(found.inputs):
                    operations[node] = found
                    reached.add(node)
        self.nodes = tuple(operations)
        self.outputs = [
            node
            for node in operations
            if node is graph.result
            or any(user in suffix and user not in operations for user in node.users)
        ]
        self._work = [0, 0]  # of few levels, and of other inputs
        for operation in operations.values():
            if operation.remembered:
                levels = len(torch.unique(values[operation.remembered[0]]))
                self._work[levels > MOST_LEVELS] += operation.work
        self._changed = self._looked = 0
        self._write(operations)
        empty = values[graph.result].new_empty(0)
        self._weights = torch.cat([empty, *known.numbers])
        self._reached = torch.cat([torch.empty(0, dtype=torch.int64), *known.tables])

    @property
    def share(self) -> float:
        """Of the inputs of convolutions, how many have changed so far."""
        return self._changed / max(1, self._looked)

    def pays(self) -> bool:
        """Whether nearly all convolutions have inputs of few levels, which may stay as they are."""
        few, many = self._work
        return few > 8 * many

    @property
    def remembered(self) -> tuple[Node, ...]:
        """What :meth:`remember` wants."""
        return tuple(self._places)

    def remember(self, values: Mapping[Node, Tensor]) -> bool:
        """Keep what a block of examples had before anything moved; whether all is finite."""
        rows = [_rows(values[node]).flatten(1) for node in self._places]
        self._before = torch.cat(rows, dim=1)
        self._after, self._from = self._before.new_empty(0), np.zeros(len(self._exits), np.int64)
        # differences of infinities would be NaN
        return bool(self._before.isfinite().all())

    def follow(self, after: Mapping[Node, Tensor]) -> None:
        """Take the values of exits in all copies, ``(copies b, O, H, W)``."""
        flat = [after[node].flatten() for node in self._exits]
        self._from = np.cumsum([0, *(len(each) for each in flat)])[:-1]
        self._after = torch.cat(flat)

    def run(self, copies: Tensor, channels: Tensor, examples: Tensor) -> Environment:
        """Values of the outputs for pairs of a copy's channel, or of none (-1), and an example."""
        pairs = torch.stack((copies, channels, examples)).numpy()
        size = len(examples)
        outputs = self._before.new_empty(size, self._stored)
        before = self._before.numpy()
        fixed = (self._program, self._weights.numpy(), self._reached.numpy(), self._size,
                 before, before.view(f"i{before.itemsize}"), self._after.numpy(),
                 self._from)  # fmt: skip

        def part(ends: tuple[int, int]) -> tuple[int, int]:
            low, high = ends
            own = np.ascontiguousarray(pairs[:, low:high])
            counts: tuple[int, int] = kernel.walk(*fixed, own, outputs[low:high].numpy())
            return counts

        parts = chunks(size, -(-size // self.threads))
        if len(parts) > 1:
            with ThreadPoolExecutor(self.threads) as pool:
                counts = list(pool.map(part, parts))
        else:
            counts = [part(each) for each in parts]
        self._changed += sum(changed for changed, _ in counts)
        self._looked += sum(looked for _, looked in counts)
        found = {}
        for node, start in zip(self.outputs, self._starts, strict=True):
            number, height, width = self._values[node].shape[1:]
            image = outputs[:, start : start + self._length(node)]
            found[node] = image.reshape(size, height, width, number).permute(0, 3, 1, 2)
        return found

    def _write(self, operations: Mapping[Node, Operation]) -> None:
        """Give every value a place, and write the program."""
        last: dict[Node, int] = {}
        for index, operation in enumerate(operations.values()):
            last.update(dict.fromkeys(operation.inputs, index))
        self._places: dict[Node, int] = {}
        kept = 0
        loaded = [node for node in last if node not in operations]
        for node in dict.fromkeys(
            (*loaded, *(each for found in operations.values() for each in found.remembered))
        ):
            self._places[node] = kept
            kept += self._length(node)
        program: list[list[int]] = []
        self._size = 0
        free: dict[int, list[int]] = {}
        where: dict[Node, int] = {}

        def place(node: Node) -> int:
            length = self._length(node)
            spare = free.setdefault(length, [])
            if not spare:
                spare.append(self._size)
                self._size += length
            where[node] = spare.pop()
            return where[node]

        stored = 0
        self._starts = []
        for index, (node, operation) in enumerate(operations.items()):
            for each in operation.inputs:
                if each not in where:
                    number = self._exits.index(each) if each in self._exits else -1
                    channels = self._values[each].shape[1]
                    length = self._length(each)
                    load = [kernel.LOAD, place(each), self._places[each], length, number, channels]
                    program.append(load)
            to = place(node)
            at = [where[each] for each in operation.inputs]
            at += [self._places[each] for each in operation.remembered]
            program += operation.write(to, at)
            if node in self.outputs:
                program.append([kernel.STORE, stored, to, self._length(node)])
                self._starts.append(stored)
                stored += self._length(node)
            for each in dict.fromkeys((*operation.inputs, node)):
                if last.get(each, index) == index:
                    free[self._length(each)].append(where[each])
        self._stored = stored
        self._program = np.zeros((len(program), kernel.WIDTH), np.int64)
        for row, instruction in enumerate(program):
            self._program[row, : len(instruction)] = instruction


def _rows(images: Tensor) -> Tensor:
    """``(b, C, H, W)`` as ``(b, H, W, C)``."""
    return images.permute(0, 2, 3, 1).contiguous()
