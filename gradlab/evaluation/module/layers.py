r"""What one changed weight does to the output of its layer, without computing the layer again.

A change of :math:`W_{o,c,y,x}` of a convolution by :math:`\delta` adds :math:`\delta` times its
input, shifted by (y, x), channel c, to output channel o. That shifted input is the weight's
*column*. A linear layer's column is one input feature, a bias's is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from gradlab.evaluation.module.channelwise import is_elementwise
from gradlab.evaluation.module.graph import ModuleGraph, State


@dataclass(frozen=True)
class Patches:
    """How a convolution reads its input.

    Attributes:
        stride: vertical and horizontal.
        padding: what ``torch.nn.functional.pad`` takes, and its mode.
        dilation: vertical and horizontal.
        groups: of channels.
    """

    stride: tuple[int, int]
    padding: tuple[tuple[int, ...], str]
    dilation: tuple[int, int]
    groups: int

    def pad(self, inputs: Tensor) -> Tensor:
        """The padded input ``(b, C, H, W)``."""
        sides, mode = self.padding
        return F.pad(inputs, sides, mode=mode) if any(sides) else inputs

    def column(self, padded: Tensor, weight: torch.Size, output: torch.Size, index: int) -> Tensor:
        """Column ``index`` of filters shaped ``weight``: ``(b, 1, H', W')``, or O for 1 in groups.

        Args:
            padded: from :meth:`pad`.
            weight: ``(O, C / groups, kh, kw)``.
            output: the layer's output shape, ``(b, O, H', W')``.
            index: c kh kw + y kw + x.
        """
        rows, channels, height, width = weight
        channel, place = divmod(index, height * width)
        slices = [
            slice(at * dilation, at * dilation + (size - 1) * stride + 1, stride)
            for at, size, stride, dilation in zip(
                divmod(place, width), output[2:], self.stride, self.dilation, strict=True
            )
        ]
        shifted = padded[:, :, slices[0], slices[1]]
        if self.groups == 1:
            return shifted[:, channel : channel + 1]
        group = torch.arange(rows, device=padded.device) // (rows // self.groups)
        return shifted[:, group * channels + channel]


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution that reads one parameter, and nothing else does.

    Attributes:
        node: the layer.
        input: its input's node.
        weight: nodes from the parameter to the layer, each elementwise, such as sign(W); none
            where the layer is a module.
        is_bias: whether the parameter is the bias.
        patches: of a convolution.
    """

    node: Node
    input: Node
    weight: tuple[Node, ...] = ()
    is_bias: bool = False
    patches: Patches | None = None

    def columns(
        self, inputs: Tensor, weight: torch.Size, output: torch.Size
    ) -> Callable[[int], Tensor]:
        """A function of a column's number that returns it, to be broadcast to the output's shape.

        Args:
            inputs: the layer's input.
            weight: the parameter's shape.
            output: the layer's output shape.
        """
        if self.is_bias:
            return lambda index: inputs.new_ones((1,) * len(output))
        if self.patches is None:
            return lambda index: inputs[..., index : index + 1]
        patches, padded = self.patches, self.patches.pad(inputs)
        return lambda index: patches.column(padded, weight, output, index)

    @property
    def channel(self) -> int:
        """The dimension of the output that a row of the weight belongs to."""
        return -1 if self.patches is None else 1

    def steps(
        self, graph: ModuleGraph, parameter: Tensor, epsilon: float, state: State
    ) -> tuple[Tensor, Tensor]:
        """By how much the weight that multiplies changes, ``(O, K)`` for ±epsilon each."""
        flat = (len(parameter), -1)
        if len(self.weight) < 2:
            # as such: (w + eps) - w would be eps with a rounding error
            up = torch.full_like(parameter, epsilon).reshape(flat)
            return up, -up

        def multiplies(tensor: Tensor) -> Tensor:
            values: dict[Node, Any] = {self.weight[0]: tensor}
            for node in self.weight[1:]:
                values[node] = graph.evaluate(node, _with_constants(graph, node, values), state)
            found: Tensor = values[self.weight[-1]]
            return found.reshape(flat)

        now = multiplies(parameter)
        return multiplies(parameter + epsilon) - now, multiplies(parameter - epsilon) - now


def find_layer(graph: ModuleGraph, name: str, state: State) -> Layer | None:
    """The layer of parameter ``name``; None if it is not one of the kind that :class:`Layer` is."""
    readers = [node for node in graph.needed({graph.result}) if name in graph.reads(node)]
    if len(readers) != 1:
        return None
    reader = readers[0]
    module = graph.submodule(reader)
    if module is not None:
        local = [key for key, other in graph.local_names(reader).items() if other == name]
        plain = not (module._forward_hooks or module._forward_pre_hooks)
        if type(module) not in (nn.Linear, nn.Conv2d) or len(local) != 1 or not plain:
            return None
        arguments = module_arguments(module, reader)
        return _layer(reader, arguments, local[0] == "bias", ()) if arguments else None
    chain = [reader]
    values: dict[Node, Any] = {reader: state[name]}
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        arguments = layer_arguments(user)
        if arguments:
            roles = [role for role in ("input", "weight", "bias") if arguments[role] is chain[-1]]
            if roles not in (["weight"], ["bias"]):
                return None
            return _layer(user, arguments, roles == ["bias"], tuple(chain))
        tensors = [each for each in user.all_input_nodes if each is not chain[-1]]
        if any(_constant(each) is None for each in tensors):
            return None
        values = _with_constants(graph, user, values)
        if not is_elementwise(graph, user, values):
            return None
        values[user] = graph.evaluate(user, values, state)
        if not isinstance(values[user], Tensor) or values[user].shape != state[name].shape:
            return None
        chain.append(user)
    return None


def _constant(node: Node) -> Node | None:
    """A node that makes an object out of nothing, such as a surrogate of fixed options."""
    return node if node.op == "call_function" and not node.all_input_nodes else None


def _with_constants(graph: ModuleGraph, node: Node, values: Mapping[Node, Any]) -> dict[Node, Any]:
    made = {each: graph.evaluate(each, {}, {}) for each in node.all_input_nodes if _constant(each)}
    return {**made, **values}


def module_arguments(module: nn.Module, node: Node) -> dict[str, Any] | None:
    """The same of a node that calls a linear layer's or convolution's module."""
    if len(node.args) != 1 or not isinstance(node.args[0], Node):
        return None
    if isinstance(module, nn.Linear):
        return {"input": node.args[0]}
    assert isinstance(module, nn.Conv2d)
    padding = module._reversed_padding_repeated_twice
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return {
        "input": node.args[0],
        "stride": module.stride,
        "padding": (tuple(padding), mode),
        "dilation": module.dilation,
        "groups": module.groups,
    }


def layer_arguments(node: Node) -> dict[str, Any] | None:
    """What a call of a linear layer or convolution is given, by name; None for other nodes."""
    if node.op != "call_function":
        return None
    order: tuple[str, ...]
    if node.target is F.linear:
        order = ("input", "weight", "bias")
    elif node.target is torch.conv2d:
        order = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    else:
        return None
    found = {**dict.fromkeys(order), **dict(zip(order, node.args, strict=False)), **node.kwargs}
    if not isinstance(found["input"], Node):
        return None
    if node.target is F.linear:
        return found
    stride, padding, dilation = (
        _pair(found[key] or default)
        for key, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    if stride is None or padding is None or dilation is None:
        return None
    sides = ((padding[1], padding[1], padding[0], padding[0]), "constant")
    found.update(stride=stride, padding=sides, dilation=dilation, groups=found["groups"] or 1)
    return found if isinstance(found["groups"], int) else None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, list | tuple) and all(isinstance(each, int) for each in value):
        return (value[0], value[-1]) if len(value) in (1, 2) else None
    return None


def _layer(
    node: Node, arguments: Mapping[str, Any], is_bias: bool, chain: tuple[Node, ...]
) -> Layer:
    patches = None
    if "stride" in arguments:
        patches = Patches(*(arguments[key] for key in ("stride", "padding", "dilation", "groups")))
    return Layer(node, arguments["input"], chain, is_bias, patches)
