r"""The images of a network, pair by pair, in one compiled loop.

A pair of a move and an example goes through the rest of the network alone, so that all it needs
stays in a core's cache and no core waits for another. Behind a sign most activations are what they
were before the weight moved. A convolution is linear, so its output is that of before plus a few
filter taps,

.. math:: z' = z + \sum_{c, y, x} (a'_{c,y,x} - a_{c,y,x})\, W_{:,c} \text{ around } (y, x)

over the activations that differ: with one in a hundred of them, a tenth of the work.

A :class:`Walk` takes what it knows of a schedule: convolutions, BatchNorm in evaluation mode, sign,
ReLU, sums, averages of pixels, joined channels, padding. What else there is, and what is behind it,
is left to :class:`gradlab.evaluation.module.executor.Executor`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from gradlab.binary import binarize, sign, straight_through
from gradlab.evaluation.module import walk_kernel as kernel
from gradlab.evaluation.module.channelwise import MOST_LEVELS
from gradlab.evaluation.module.executor import binarized
from gradlab.evaluation.module.graph import Environment, ModuleGraph, Schedule, State
from gradlab.evaluation.module.layers import layer_arguments, module_arguments
from gradlab.evaluation.population import chunks

# Of a node, once it has a place: its instructions, each from the code on.
Instructions = Callable[[int, Sequence[int]], list[list[int]]]


@dataclass(frozen=True)
class _Operation:
    """A node that can be walked.

    Attributes:
        inputs: images.
        write: given the places of the result and of the inputs, the instructions.
        remembered: of a convolution, its input and itself: it reads what they were before.
        work: of a convolution, multiplications.
    """

    inputs: tuple[Node, ...]
    write: Instructions
    remembered: tuple[Node, ...] = ()
    work: int = 0


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
        self._graph, self._values, self._state = graph, values, state
        self.threads = torch.get_num_threads()
        self._suffix = set(schedule.nodes)
        self._numbers: list[Tensor] = []
        self._tables: list[Tensor] = []
        self._exits = [node for node in exits if self._is_image(node)]
        reached = {*self._exits, *(node for node in beside if self._is_image(node))}
        operations: dict[Node, _Operation] = {}
        for node in schedule.nodes:
            if self._is_image(node):
                found = self._operation(node)
                if found is not None and reached.issuperset(found.inputs):
                    operations[node] = found
                    reached.add(node)
        self.nodes = tuple(operations)
        self.outputs = [
            node
            for node in operations
            if node is graph.result
            or any(user in self._suffix and user not in operations for user in node.users)
        ]
        self._work = [0, 0]  # of few levels, and of other inputs
        for operation in operations.values():
            if operation.remembered:
                levels = len(torch.unique(values[operation.remembered[0]]))
                self._work[levels > MOST_LEVELS] += operation.work
        self._changed = self._looked = 0
        self._write(operations)

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

    def _write(self, operations: Mapping[Node, _Operation]) -> None:
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
            program += operation.write(to, [where[each] for each in operation.inputs])
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
        empty = self._values[self._graph.result].new_empty(0)
        self._weights = torch.cat([empty, *self._numbers])
        self._reached = torch.cat([torch.empty(0, dtype=torch.int64), *self._tables])

    def _is_image(self, node: Node) -> bool:
        value = self._values.get(node)
        return (
            isinstance(value, Tensor)
            and value.dim() == 4
            and value.dtype == self._values[self._graph.result].dtype
            and value.dtype in (torch.float32, torch.float64)
            and value.device.type == "cpu"
        )

    def _length(self, node: Node) -> int:
        return int(self._values[node][0].numel())

    def _keep(self, kept: list[Tensor], numbers: Tensor) -> int:
        """Where these numbers will be found."""
        start = sum(len(each) for each in kept)
        kept.append(numbers.detach().flatten())
        return start

    def _operation(self, node: Node) -> _Operation | None:
        """How a node is walked; None if it cannot be."""
        module, target = self._graph.submodule(node), node.target
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            return None
        if not node.all_input_nodes or not self._is_image(node.all_input_nodes[0]):
            return None
        if type(module) is nn.Conv2d or target is torch.conv2d:
            return self._convolution(node)
        if type(module) is nn.BatchNorm2d:
            return self._batch_norm(module, node)
        if type(module) is nn.Identity:
            return self._copied(node)
        if type(module) is nn.ReLU or target in (F.relu, torch.relu):
            return self._elementwise(node, kernel.RELU)
        if target is sign or (target in (binarize, straight_through) and self._is_sign(node)):
            return self._elementwise(node, kernel.SIGN)
        if target in (operator.add, torch.add) and len(node.args) == 2 and not node.kwargs:
            return self._sum(node)
        if target is torch.cat:
            return self._joined(node)
        if target is F.avg_pool2d or type(module) is nn.AvgPool2d:
            return self._average(node, module)
        return self._padded(node) if target is F.pad else None

    def _elementwise(self, node: Node, code: int) -> _Operation | None:
        length = self._length(node)
        (x,) = node.all_input_nodes[:1]
        return _Operation((x,), lambda to, at: [[code, to, at[0], length]])

    def _copied(self, node: Node) -> _Operation:
        length, channels = self._length(node), self._values[node].shape[1]
        return _Operation(
            (node.all_input_nodes[0],),
            lambda to, at: [[kernel.JOIN, to, at[0], length, channels, channels, 0, length]],
        )

    def _is_sign(self, node: Node) -> bool:
        """Whether a binarization's rule is sign, forward."""
        if len(node.args) != 2 or node.kwargs or not isinstance(node.args[1], Node):
            return False
        some = torch.tensor([-2.0, -1.0, -0.3, -0.0, 0.0, 0.3, 1.0, 2.0, torch.nan])
        found = binarized(some, self._values[node.args[1]])
        return torch.equal(found[:-1], sign(some[:-1])) and bool(found[-1].isnan())

    def _batch_norm(self, module: nn.BatchNorm2d, node: Node) -> _Operation | None:
        own = {key: self._state[name] for key, name in self._graph.local_names(node).items()}
        if module.training or "running_mean" not in own or "running_var" not in own:
            return None
        scale = (own["running_var"] + module.eps).rsqrt() * own.get("weight", 1.0)
        shift = own.get("bias", 0.0) - own["running_mean"] * scale
        at = self._keep(self._numbers, torch.cat((scale, shift)))
        length, channels = self._length(node), len(scale)
        return _Operation(
            (node.all_input_nodes[0],),
            lambda to, source: [[kernel.AFFINE, to, source[0], length, channels, at]],
        )

    def _sum(self, node: Node) -> _Operation | None:
        x, y = node.args
        if not (isinstance(x, Node) and isinstance(y, Node)):
            return None
        if not (self._is_image(x) and self._is_image(y)):
            return None
        if self._values[x].shape != self._values[y].shape:
            return None
        length = self._length(node)
        return _Operation((x, y), lambda to, at: [[kernel.ADD, to, at[0], length, at[1]]])

    def _joined(self, node: Node) -> _Operation | None:
        parts = tuple(node.all_input_nodes)
        dimension = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
        if dimension != 1 or len(node.args) + len(node.kwargs) != 2:
            return None
        if not isinstance(node.args[0], list | tuple):
            return None
        order = [each for each in node.args[0] if isinstance(each, Node) and self._is_image(each)]
        if len(order) != len(node.args[0]):
            return None
        length, channels = self._length(node), self._values[node].shape[1]

        def write(to: int, at: Sequence[int]) -> list[list[int]]:
            found, start = [], 0
            for each in order:
                own = self._values[each].shape[1]
                source = at[parts.index(each)]
                sizes = [length, own, channels, start, self._length(each)]
                found.append([kernel.JOIN, to, source, *sizes])
                start += own
            return found

        return _Operation(parts, write)

    def _average(self, node: Node, module: nn.Module | None) -> _Operation | None:
        if isinstance(module, nn.AvgPool2d):
            size = _pair(module.kernel_size)
            plain = _pair(module.stride) == size and _pair(module.padding) == (0, 0)
            if not plain or module.ceil_mode or module.divisor_override is not None:
                return None
        elif len(node.args) == 2 and not node.kwargs:
            size = _pair(node.args[1])
        else:
            return None
        if size is None:
            return None
        return self._resized(node, kernel.AVERAGE, size)

    def _padded(self, node: Node) -> _Operation | None:
        sides = node.args[1] if len(node.args) == 2 else None
        plain = node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value")
        if not plain or not isinstance(sides, tuple | list) or len(sides) != 4:
            return None
        if not all(isinstance(each, int) for each in sides):
            return None
        return self._resized(node, kernel.PAD, (sides[2], sides[0]))

    def _resized(self, node: Node, code: int, options: tuple[Any, Any]) -> _Operation | None:
        x = node.all_input_nodes[0]
        if not self._is_image(x):
            return None
        (channels, *before), (_, *after) = (self._values[each].shape[1:] for each in (x, node))
        length = self._length(node)
        sizes = [*before, channels, *after, *options]
        return _Operation((x,), lambda to, at: [[code, to, at[0], length, *sizes]])

    def _convolution(self, node: Node) -> _Operation | None:
        module = self._graph.submodule(node)
        if module is None:
            found = layer_arguments(node)
            source = None if found is None else found["weight"]
            if not isinstance(source, Node) or source in self._suffix:
                return None
            weight = self._values[source]
        else:
            name = self._graph.local_names(node).get("weight")
            if type(module) is not nn.Conv2d or name is None:
                return None
            found, weight = module_arguments(module, node), self._state[name]
        if found is None or "stride" not in found:
            return None
        x = found["input"]
        if found["groups"] != 1 or found["padding"][1] != "constant" or not self._is_image(x):
            return None
        left, _, top, _ = found["padding"][0]
        before, after = self._values[x].shape[1:], self._values[node].shape[1:]
        tables = [
            _reached(before[axis], after[axis], weight.shape[1 + axis], start, stride, dilation)
            for axis, start, stride, dilation in zip(
                (1, 2), (top, left), found["stride"], found["dilation"], strict=True
            )
        ]
        taps = self._keep(self._numbers, weight.permute(1, 2, 3, 0))
        reached = self._keep(self._tables, torch.tensor(weight.shape[2:]))
        for table in tables:
            self._keep(self._tables, table)
        length = self._length(node)

        def write(to: int, at: Sequence[int]) -> list[list[int]]:
            shapes = [*before[1:], before[0], *after[1:], after[0]]
            kept = [self._places[x], self._places[node]]
            return [[kernel.CONVOLVE, to, at[0], length, *kept, *shapes, taps, reached]]

        work = length * weight[0].numel()
        return _Operation((x,), write, (x, node), work)


def _rows(images: Tensor) -> Tensor:
    """``(b, C, H, W)`` as ``(b, H, W, C)``."""
    return images.permute(0, 2, 3, 1).contiguous()


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and len(value) == 2:
        return value[0], value[1]
    return None


def _reached(before: int, after: int, taps: int, start: int, stride: int, dilation: int) -> Tensor:
    """``(before, taps)``: the place of the output that a place of the input reaches; -1 for none.

    >>> _reached(3, 3, 3, 1, 1, 1).tolist()
    [[1, 0, -1], [2, 1, 0], [-1, 2, 1]]
    """
    at = torch.arange(before)[:, None] + start - torch.arange(taps) * dilation
    place = at.div(stride, rounding_mode="floor")
    return torch.where((at % stride == 0) & (place >= 0) & (place < after), place, -1)
