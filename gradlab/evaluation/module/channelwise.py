"""What in a module's graph acts on every entry, channel or example by itself."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from gradlab.binary import binarize, sign, straight_through
from gradlab.evaluation.module.graph import Applied, ModuleGraph

MOST_LEVELS = 16
"""More values than this are no levels of an activation."""

_NAMES = (
    "abs", "add", "ceil", "celu", "clamp", "clamp_max", "clamp_min", "clip", "copysign", "cos",
    "div", "elu", "eq", "erf", "exp", "expm1", "floor", "ge", "gelu", "gt", "hardsigmoid",
    "hardswish", "hardtanh", "heaviside", "isnan", "le", "leaky_relu", "log", "log1p",
    "logical_and", "logical_not", "logical_or", "logsigmoid", "lt", "maximum", "minimum", "mish",
    "mul", "ne", "neg", "negative", "ones_like", "pow", "reciprocal", "relu", "relu6", "round",
    "rsqrt", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "softplus", "softsign", "sqrt",
    "square", "sub", "tanh", "threshold", "true_divide", "truediv", "trunc", "where", "zeros_like",
    "and_", "or_", "invert",
)  # fmt: skip
_FUNCTIONS = {
    getattr(room, name)
    for room in (torch, F, operator)
    for name in _NAMES
    if hasattr(room, name) and (room is not operator or name not in ("abs", "pow"))
} | {operator.abs, operator.pow, sign}
_METHODS = {
    *(name for name in _NAMES if hasattr(Tensor, name)),
    *("clone", "contiguous", "detach", "double", "float", "to", "type_as"),
}
_MODULES = (
    nn.CELU, nn.Dropout, nn.Dropout2d, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh,
    nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.Sigmoid,
    nn.SiLU, nn.Softplus, nn.Softsign, nn.Tanh, nn.Threshold,
)  # fmt: skip
# These treat the channels, dimension 1, apart, and the examples too.
_CHANNEL_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)
_CHANNEL_FUNCTIONS = {
    F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.avg_pool2d, F.max_pool2d, torch.max_pool2d,
}  # fmt: skip


def is_elementwise(graph: ModuleGraph, node: Node, values: Mapping[Node, Any]) -> bool:
    """Whether every entry of a node's value depends on that entry of its inputs alone.

    An ``autograd.Function`` and a binarization by an unknown rule are asked: a function that
    commutes with a permutation of all entries, of its input and of random numbers of three sizes,
    is taken for one that acts on each by itself.

    Args:
        graph: the graph.
        node: one of its nodes.
        values: the values of the node's inputs.
    """
    module = graph.submodule(node)
    if module is not None:
        return type(module) in _MODULES
    if node.op == "call_method":
        return node.target in _METHODS
    if node.op != "call_function":
        return False
    if isinstance(node.target, Applied) or node.target in (binarize, straight_through):
        return _commutes_with_permutations(graph, node, values)
    return node.target in _FUNCTIONS


def is_channelwise(graph: ModuleGraph, node: Node) -> bool:
    """Whether every channel (dimension 1) of every example is treated apart from the others."""
    module = graph.submodule(node)
    if isinstance(module, _BatchNorm):
        return not module.training and module.running_mean is not None
    if isinstance(module, nn.PReLU) or type(module) in _CHANNEL_MODULES:
        return True
    if node.op == "call_function" and node.target is F.batch_norm:
        return len(node.args) < 6 and not node.kwargs.get("training", False)
    return node.op == "call_function" and node.target in _CHANNEL_FUNCTIONS


def channel_region(
    graph: ModuleGraph,
    start: Node,
    channel: int,
    live: frozenset[Node],
    values: Mapping[Node, Any],
) -> tuple[Node, ...]:
    """Nodes behind a layer whose channels depend on the same channel of the layer alone.

    Args:
        graph: the graph.
        start: the layer.
        channel: the dimension of its channels, 1 or -1.
        live: the nodes that the result needs.
        values: of all live nodes, on a few examples.
    """
    shape = values[start].shape
    found: list[Node] = []
    inside, dependent = {start}, {start}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node not in live or not any(each in dependent for each in inputs):
            continue
        dependent.add(node)
        value = values[node]
        # whatever else it reads must not change with the layer
        if not isinstance(value, Tensor) or any(n in dependent - inside for n in inputs):
            continue
        if is_elementwise(graph, node, values):
            fits = value.shape == shape or (
                channel == 1 and value.shape[:2] == shape[:2] and value.dim() == 4
            )
        else:
            images = channel == 1 or len(shape) == 2
            fits = images and value.shape[:2] == shape[:2] and value.dim() == len(shape)
            fits = fits and is_channelwise(graph, node)
        if fits:
            found.append(node)
            inside.add(node)
    return tuple(found)


def _commutes_with_permutations(graph: ModuleGraph, node: Node, values: Mapping[Node, Any]) -> bool:
    tensors = [each for each in node.all_input_nodes if isinstance(values[each], Tensor)]
    if len(tensors) != 1:
        return False
    value = values[tensors[0]]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(value.numel(), generator=generator).to(value.device)
    noise = torch.randn(value.numel(), generator=generator).to(value)

    def apply(x: Tensor) -> Tensor:
        found: Tensor = graph.evaluate(node, {**values, tensors[0]: x.reshape(value.shape)}, {})
        return found.flatten()

    try:
        return all(
            torch.equal(apply(x[order]).nan_to_num(), apply(x)[order].nan_to_num())
            for x in (value.flatten(), noise / 100, noise, noise * 100)
        )
    except Exception:  # the function is the user's: it may raise anything
        return False


def growth(two: Any, three: Any) -> Any:
    """How a value depends on the number of examples, from its values on two and on three.

    Returns:
        "fixed", "examples" (a row each), "count" (their number), a tuple of these, or "unknown".

    >>> growth(torch.zeros(2, 5), torch.zeros(3, 5)), growth((2, 5), (3, 5)), growth(4, 6)
    ('examples', ('count', 'fixed'), 'unknown')
    """
    if isinstance(two, Tensor):
        if two.dim() and (len(two), len(three)) == (2, 3) and two.shape[1:] == three.shape[1:]:
            return "examples"
        return "fixed" if two.shape == three.shape else "unknown"
    if isinstance(two, tuple | list):
        return tuple(growth(a, b) for a, b in zip(two, three, strict=True))
    if isinstance(two, int) and not isinstance(two, bool):
        return "fixed" if two == three else "count" if (two, three) == (2, 3) else "unknown"
    return "unknown" if isinstance(two, float | complex) and two != three else "fixed"


def select(value: Any, kind: Any, index: Tensor) -> Any:
    """A value for the examples ``index``, given how it grows with their number.

    >>> select((2, 5), ("count", "fixed"), torch.tensor([0, 1, 1]))
    (3, 5)
    """
    if kind == "examples":
        return value[index]
    if kind == "count":
        return len(index)
    if isinstance(kind, tuple):
        made = [select(each, inner, index) for each, inner in zip(value, kind, strict=True)]
        return type(value)(made)
    return value
