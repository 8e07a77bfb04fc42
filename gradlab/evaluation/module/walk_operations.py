"""Which instructions of :mod:`gradlab.evaluation.module.walk_kernel` a node becomes.

Known are convolutions, BatchNorm in evaluation mode, sign, ReLU, sums, averages of pixels, joined
channels and padding.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from gradlab.binary import binarize, sign, straight_through
from gradlab.evaluation.module import walk_kernel as kernel
from gradlab.evaluation.module.executor import binarized
from gradlab.evaluation.module.graph import ModuleGraph, State
from gradlab.evaluation.module.layers import layer_arguments, module_arguments

# Of a node, once its result and what it reads have places: its instructions, each from the code on.
Instructions = Callable[[int, Sequence[int]], list[list[int]]]


@dataclass(frozen=True)
class Operation:
    """A node that can be walked.

    Attributes:
        inputs: images.
        write: given the place of the result, and those of the inputs and of what is remembered, the
            instructions.
        remembered: of a convolution, its input and itself: it reads what they were before.
        work: of a convolution, multiplications.
    """

    inputs: tuple[Node, ...]
    write: Instructions
    remembered: tuple[Node, ...] = ()
    work: int = 0


@dataclass(frozen=True, eq=False)
class Operations:
    """Finds out how nodes are walked.

    Attributes:
        graph: the module.
        suffix: what depends on the changed channels.
        values: of all nodes, on a few examples.
        state: parameters and buffers by name.
        numbers: weights, flat, whose places instructions name.
        tables: likewise, of places that convolutions reach.
    """

    graph: ModuleGraph
    suffix: Collection[Node]
    values: Mapping[Node, Any]
    state: State
    numbers: list[Tensor] = field(default_factory=list)
    tables: list[Tensor] = field(default_factory=list)

    def is_image(self, node: Node) -> bool:
        """Whether its value is images ``(b, C, H, W)`` that the kernel can compute with."""
        value = self.values.get(node)
        return (
            isinstance(value, Tensor)
            and value.dim() == 4
            and value.dtype == self.values[self.graph.result].dtype
            and value.dtype in (torch.float32, torch.float64)
            and value.device.type == "cpu"
        )

    def length(self, node: Node) -> int:
        """Of one image, flat."""
        return int(self.values[node][0].numel())

    def of(self, node: Node) -> Operation | None:
        """How a node is walked; None if it cannot be."""
        module, target = self.graph.submodule(node), node.target
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            return None
        if not node.all_input_nodes or not self.is_image(node.all_input_nodes[0]):
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

    def _elementwise(self, node: Node, code: int) -> Operation | None:
        length = self.length(node)
        (x,) = node.all_input_nodes[:1]
        return Operation((x,), lambda to, at: [[code, to, at[0], length]])

    def _copied(self, node: Node) -> Operation:
        length, channels = self.length(node), self.values[node].shape[1]
        return Operation(
            (node.all_input_nodes[0],),
            lambda to, at: [[kernel.JOIN, to, at[0], length, channels, channels, 0, length]],
        )

    def _is_sign(self, node: Node) -> bool:
        """Whether a binarization's rule is sign, forward."""
        if len(node.args) != 2 or node.kwargs or not isinstance(node.args[1], Node):
            return False
        some = torch.tensor([-2.0, -1.0, -0.3, -0.0, 0.0, 0.3, 1.0, 2.0, torch.nan])
        found = binarized(some, self.values[node.args[1]])
        return torch.equal(found[:-1], sign(some[:-1])) and bool(found[-1].isnan())

    def _batch_norm(self, module: nn.BatchNorm2d, node: Node) -> Operation | None:
        own = {key: self.state[name] for key, name in self.graph.local_names(node).items()}
        if module.training or "running_mean" not in own or "running_var" not in own:
            return None
        scale = (own["running_var"] + module.eps).rsqrt() * own.get("weight", 1.0)
        shift = own.get("bias", 0.0) - own["running_mean"] * scale
        at = _keep(self.numbers, torch.cat((scale, shift)))
        length, channels = self.length(node), len(scale)
        return Operation(
            (node.all_input_nodes[0],),
            lambda to, source: [[kernel.AFFINE, to, source[0], length, channels, at]],
        )

    def _sum(self, node: Node) -> Operation | None:
        x, y = node.args
        if not (isinstance(x, Node) and isinstance(y, Node)):
            return None
        if not (self.is_image(x) and self.is_image(y)):
            return None
        if self.values[x].shape != self.values[y].shape:
            return None
        length = self.length(node)
        return Operation((x, y), lambda to, at: [[kernel.ADD, to, at[0], length, at[1]]])

    def _joined(self, node: Node) -> Operation | None:
        parts = tuple(node.all_input_nodes)
        dimension = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim")
        if dimension != 1 or len(node.args) + len(node.kwargs) != 2:
            return None
        if not isinstance(node.args[0], list | tuple):
            return None
        order = [each for each in node.args[0] if isinstance(each, Node) and self.is_image(each)]
        if len(order) != len(node.args[0]):
            return None
        length, channels = self.length(node), self.values[node].shape[1]

        def write(to: int, at: Sequence[int]) -> list[list[int]]:
            found, start = [], 0
            for each in order:
                own = self.values[each].shape[1]
                source = at[parts.index(each)]
                sizes = [length, own, channels, start, self.length(each)]
                found.append([kernel.JOIN, to, source, *sizes])
                start += own
            return found

        return Operation(parts, write)

    def _average(self, node: Node, module: nn.Module | None) -> Operation | None:
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

    def _padded(self, node: Node) -> Operation | None:
        sides = node.args[1] if len(node.args) == 2 else None
        plain = node.kwargs.get("mode", "constant") == "constant" and not node.kwargs.get("value")
        if not plain or not isinstance(sides, tuple | list) or len(sides) != 4:
            return None
        if not all(isinstance(each, int) for each in sides):
            return None
        return self._resized(node, kernel.PAD, (sides[2], sides[0]))

    def _resized(self, node: Node, code: int, options: tuple[Any, Any]) -> Operation | None:
        x = node.all_input_nodes[0]
        if not self.is_image(x):
            return None
        (channels, *before), (_, *after) = (self.values[each].shape[1:] for each in (x, node))
        length = self.length(node)
        sizes = [*before, channels, *after, *options]
        return Operation((x,), lambda to, at: [[code, to, at[0], length, *sizes]])

    def _convolution(self, node: Node) -> Operation | None:
        module = self.graph.submodule(node)
        if module is None:
            found = layer_arguments(node)
            source = None if found is None else found["weight"]
            if not isinstance(source, Node) or source in self.suffix:
                return None
            weight = self.values[source]
        else:
            name = self.graph.local_names(node).get("weight")
            if type(module) is not nn.Conv2d or name is None:
                return None
            found, weight = module_arguments(module, node), self.state[name]
        if found is None or "stride" not in found:
            return None
        x = found["input"]
        if found["groups"] != 1 or found["padding"][1] != "constant" or not self.is_image(x):
            return None
        left, _, top, _ = found["padding"][0]
        before, after = self.values[x].shape[1:], self.values[node].shape[1:]
        tables = [
            _reached(before[axis], after[axis], weight.shape[1 + axis], start, stride, dilation)
            for axis, start, stride, dilation in zip(
                (1, 2), (top, left), found["stride"], found["dilation"], strict=True
            )
        ]
        taps = _keep(self.numbers, weight.permute(1, 2, 3, 0))
        reached = _keep(self.tables, torch.tensor(weight.shape[2:]))
        for table in tables:
            _keep(self.tables, table)
        length = self.length(node)

        def write(to: int, at: Sequence[int]) -> list[list[int]]:
            shapes = [*before[1:], before[0], *after[1:], after[0]]
            return [[kernel.CONVOLVE, to, at[0], length, *at[1:], *shapes, taps, reached]]

        work = length * weight[0].numel()
        return Operation((x,), write, (x, node), work)


def _keep(kept: list[Tensor], numbers: Tensor) -> int:
    """Where these numbers will be found."""
    start = sum(len(each) for each in kept)
    kept.append(numbers.detach().flatten())
    return start


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
