"""Every operation that passes for elementwise or channelwise is held to it, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import binarize, sign, surrogates
from gradlab.evaluation.module import channelwise
from gradlab.evaluation.module.channelwise import is_channelwise, is_elementwise
from gradlab.evaluation.module.graph import ModuleGraph

ARGUMENTS: dict[str, list[Any]] = {
    "clamp": [-0.5, 0.5], "clamp_max": [0.5], "clamp_min": [0.5], "clip": [-0.5, 0.5],
    "heaviside": [torch.tensor(0.5).double()], "threshold": [0.1, 0.2], "_threshold": [0.1, 0.2],
    "pow": [2],
}  # fmt: skip
BINARY = {
    "add", "copysign", "div", "eq", "ge", "gt", "le", "logical_and", "logical_or", "lt", "maximum",
    "minimum", "mul", "ne", "sub", "true_divide", "truediv",
}  # fmt: skip


def commutes(function: Any, x: Tensor) -> bool:
    """Whether function of permuted entries is the permuted function.

    To the last bits: vectorized and scalar exponentials differ there.
    """
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))
    moved = function(x.flatten()[order].reshape(x.shape))
    expected = function(x).flatten()[order].reshape(x.shape)
    return torch.allclose(moved.double(), expected.double(), 1e-14, 1e-14, equal_nan=True)


def called(function: Any, name: str, x: Tensor) -> Tensor:
    if name in ("and_", "or_", "invert"):
        x = x > 0
    if name == "where":
        return function(x > 0, x, 2 * x)
    if name in ("and_", "or_"):
        return function(x, ~x)
    other = [2 * x] if name in BINARY else []
    found: Tensor = function(x, *other, *ARGUMENTS.get(name, []))
    return found


def test_elementwise_functions() -> None:
    # in one test: a function's name holds its address, which differs from process to process
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1)).double()
    for function in channelwise._FUNCTIONS:
        assert commutes(lambda x, f=function: called(f, f.__name__, x), x), function


@pytest.mark.parametrize("module", sorted(channelwise._MODULES, key=lambda module: module.__name__))
def test_elementwise_modules(module: type[nn.Module]) -> None:
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    made = module(0.1, 0.2) if module is nn.Threshold else module()
    assert commutes(made.eval(), x)


def found(module: nn.Module, x: Tensor) -> tuple[bool, bool]:
    """What is said of the last node of a module."""
    graph = ModuleGraph(module)
    values: dict[Any, Any] = {graph.placeholder: x}
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for node in graph.nodes[1:-1]:
        values[node] = graph.evaluate(node, values, state)
    return is_elementwise(graph, graph.result, values), is_channelwise(graph, graph.result)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, kind):
        return x - x.mean() if kind == "mean" else x.flip(1) if kind == "flip" else x.sign() * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class Body(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    ("body", "elementwise", "by_channel"),
    [
        (lambda x: torch.sign(x), True, False),
        (lambda x: sign(x), True, False),
        (lambda x: x.clamp(-1, 1), True, False),
        (lambda x: 1 - x, True, False),
        (lambda x: Own.apply(x, "sign"), True, False),
        (lambda x: Own.apply(x, "mean"), False, False),
        (lambda x: Own.apply(x, "flip"), False, False),
        (lambda x: binarize(x, surrogates.create("steep")), True, False),
        (lambda x: binarize(x, surrogates.create("magnitude_aware")), False, False),
        (lambda x: F.max_pool2d(x, 2), False, True),
        (lambda x: F.avg_pool2d(x, 2), False, True),
        (lambda x: F.softmax(x, 1), False, False),
        (lambda x: x.mean(1), False, False),
        (lambda x: x.flatten(1), False, False),
    ],
)
def test_what_a_node_does(body: Any, elementwise: bool, by_channel: bool) -> None:
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert found(Body(body), x) == (elementwise, by_channel)


@pytest.mark.parametrize(
    ("module", "by_channel"),
    [
        (nn.BatchNorm2d(3).eval(), True),
        (nn.BatchNorm2d(3).train(), False),
        (nn.BatchNorm2d(3, track_running_stats=False).eval(), False),
        (nn.PReLU(3), True),
        (nn.MaxPool2d(2), True),
        (nn.AdaptiveAvgPool2d(1), True),
        (nn.GroupNorm(1, 3), False),
        (nn.LayerNorm(4), False),
        (nn.Conv2d(3, 3, 1), False),
    ],
)
def test_what_a_module_does(module: nn.Module, by_channel: bool) -> None:
    x = torch.randn(2, 3, 4, 4)
    assert found(nn.Sequential(module), x) == (False, by_channel)
