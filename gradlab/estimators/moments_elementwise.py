r"""Elementwise functions of a normal variable in a module's graph: means, second moments, slopes.

What the smoothing of a network needs of each function f at :math:`x \sim N(z, s^2)` is
:math:`E f`, :math:`E f^2` and the slope :math:`\partial E f/\partial z = E f'`. Signs, activations
of few levels and piecewise linear functions have them in closed form, with :math:`\Phi` and
:math:`\varphi` of z/s: for the rectifier :math:`E f = z\Phi + s\varphi`,
:math:`E f^2 = (z^2 + s^2)\Phi + zs\varphi` and :math:`E f' = \Phi`. Smooth ones are summed over
twenty Gauss-Hermite nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from gradlab.binary import activations, straight_through
from gradlab.evaluation import smoothing
from gradlab.evaluation.module.channelwise import is_elementwise
from gradlab.evaluation.module.graph import ModuleGraph
from gradlab.evaluation.module.noisy_layers import SIGN

SMOOTH = frozenset((
    "celu", "cos", "elu", "erf", "exp", "gelu", "hardsigmoid", "hardswish", "logsigmoid", "mish",
    "pow", "selu", "sigmoid", "silu", "sin", "softplus", "softsign", "square", "tanh",
))  # fmt: skip
PIECEWISE = frozenset(("abs", "clamp", "clip", "hardtanh", "leakyrelu", "relu", "relu6"))
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(20)


class Expectation(NamedTuple):
    """Of f(x), all shaped like x and differentiable.

    Attributes:
        first: its mean.
        second: its second moment.
        slope: derivative of the mean in that of x.
    """

    first: Tensor
    second: Tensor
    slope: Tensor


class Elementwise(NamedTuple):
    """A function in a graph.

    Attributes:
        expectation: of means and standard deviations of its input.
        jumps: it has levels, so that its own derivative says nothing.
        signs: its values are ±1.
    """

    expectation: Callable[[Tensor, Tensor], Expectation]
    jumps: bool = False
    signs: bool = False


def operation(graph: ModuleGraph, node: Node) -> str:
    """What a node does in one word, the same for a module, a function and a method.

    >>> graph = ModuleGraph(nn.Sequential(nn.AvgPool2d(2), nn.ReLU()))
    >>> [operation(graph, node) for node in graph.nodes[1:]]
    ['avgpool2d', 'relu']
    """
    module = graph.submodule(node)
    if module is not None:
        name = type(module).__name__
    elif node.op == "call_method":
        name = str(node.target)
    else:
        name = str(getattr(node.target, "__name__", node.target))
    return name.replace("_", "").lower()


def elementwise(
    graph: ModuleGraph, node: Node, source: Node, values: Mapping[Node, Any]
) -> Elementwise | None:
    """The function of a node that reads one random input, None if it is not one of these.

    Args:
        graph: the graph.
        node: the node.
        source: its random input.
        values: of its inputs; of ``source`` any tensor of its shape.
    """
    name = operation(graph, node)
    if name in PIECEWISE:
        return _piecewise(name, graph.submodule(node), node)
    if name in SMOOTH:
        return Elementwise(lambda mean, spread: _summed(graph, node, source, values, mean, spread))
    if node.op == "call_function" and node.target is straight_through:
        given = node.args[1]
        rule: Any = values[given] if isinstance(given, Node) else given
        if getattr(rule, "levels", None) is not None or isinstance(rule, activations.Full):
            return _of(rule)
    return _of(SIGN) if _is_sign(graph, node, source, values) else None


def _of(activation: activations.Activation) -> Elementwise:
    def expectation(mean: Tensor, spread: Tensor) -> Expectation:
        first, second = smoothing.moments(activation, mean, spread)
        return Expectation(first, second, smoothing.slope(activation, mean, spread))

    jumps = activation.levels is not None
    return Elementwise(expectation, jumps, activation.levels == (-1.0, 1.0))


def _is_sign(graph: ModuleGraph, node: Node, source: Node, values: Mapping[Node, Any]) -> bool:
    """Whether it is a sign, whatever its name: asked on random numbers of three sizes."""
    generator = torch.Generator().manual_seed(0)
    like = values[source]
    try:
        if not is_elementwise(graph, node, values):
            return False
        for scale in (1e-3, 1.0, 1e3):
            x = scale * torch.randn(like.shape, generator=generator).to(like)
            with torch.no_grad():
                found = graph.evaluate(node, {**values, source: x}, {})
            if not torch.equal(found, SIGN.forward(x)):
                return False
    except Exception:  # the function is the user's: it may raise anything
        return False
    return True


def _piecewise(name: str, module: nn.Module | None, node: Node) -> Elementwise | None:
    def option(place: int, key: str, default: float | None) -> Any:
        if module is not None:
            return getattr(module, key)
        return node.args[place] if len(node.args) > place else node.kwargs.get(key, default)

    if name == "relu":
        return Elementwise(lambda mean, spread: _leaky(mean, spread, 0.0))
    if name == "abs":
        return Elementwise(lambda mean, spread: _leaky(mean, spread, -1.0))
    if name == "leakyrelu":
        below = option(1, "negative_slope", 0.01)
        return Elementwise(lambda mean, spread: _leaky(mean, spread, below))
    low: Any
    high: Any
    if name == "relu6":
        low, high = 0.0, 6.0
    elif name == "hardtanh":
        low, high = option(1, "min_val", -1.0), option(2, "max_val", 1.0)
    else:
        low, high = option(1, "min", None), option(2, "max", None)
    if low == 0 and high is None:
        return Elementwise(lambda mean, spread: _leaky(mean, spread, 0.0))
    if any(isinstance(each, Node) or each is None for each in (low, high)) or low >= high:
        return None
    return Elementwise(lambda mean, spread: _clipped(mean, spread, low, high))


def _leaky(mean: Tensor, spread: Tensor, below: float) -> Expectation:
    """Of x above zero and ``below`` · x under it."""
    z = mean / spread
    positive = torch.special.ndtr(z)
    density = spread * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    squares = mean.square() + spread.square()
    first, second = mean * positive + density, squares * positive + mean * density
    return Expectation(
        below * mean + (1 - below) * first,
        below**2 * squares + (1 - below**2) * second,
        below + (1 - below) * positive,
    )


def _clipped(mean: Tensor, spread: Tensor, low: float, high: float) -> Expectation:
    width, full = high - low, activations.Full()
    inner, size = (mean - low) / width, spread / width
    first, second = smoothing.moments(full, inner, size)
    return Expectation(
        low + width * first,
        low**2 + 2 * low * width * first + width**2 * second,
        smoothing.slope(full, inner, size),
    )


def _summed(
    graph: ModuleGraph,
    node: Node,
    source: Node,
    values: Mapping[Node, Any],
    mean: Tensor,
    spread: Tensor,
) -> Expectation:
    """Of a smooth function, by its values at the Gauss-Hermite nodes."""
    first = second = slope = torch.zeros_like(mean)
    for place, weight in zip(_NODES.tolist(), (_WEIGHTS / _WEIGHTS.sum()).tolist(), strict=True):
        x = mean + place * spread
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        f = graph.evaluate(node, {**values, source: x}, {})
        (derivative,) = torch.autograd.grad(f.sum(), x, create_graph=True)
        first, second = first + weight * f, second + weight * f.square()
        slope = slope + weight * derivative
    return Expectation(first, second, slope)
