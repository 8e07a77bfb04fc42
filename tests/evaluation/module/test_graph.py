"""Traced modules: the same values, in-place operations undone, cuts in the right places."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlab.binary
from gradlab.binary import activations, binarize, sign, surrogates
from gradlab.evaluation.module.graph import ModuleGraph, Untraceable, one_line


class Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 3

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def run(module: nn.Module, inputs: Tensor, names: frozenset[str] = frozenset()) -> Tensor:
    """The result by prefix and suffix."""
    graph = ModuleGraph(module)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    split = graph.split(names)
    values = graph.run(split.prefix, {graph.placeholder: inputs}, state)
    found: Tensor = graph.run(split.suffix, values, state)[graph.result]
    return found


class Body(nn.Module):
    """A forward pass given as a function of self and x."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("shift", torch.ones(3))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def relu_twice(self: Body, x: Tensor) -> Tensor:
    y = self.one(x)
    z = self.relu(y)
    return y + z  # y has changed


def add_in_place(self: Body, x: Tensor) -> Tensor:
    y = self.one(x)
    before = y * 1
    y.add_(self.two(x)).mul_(2)
    y = operator.iadd(y, before)
    y += self.shift
    return torch.relu_(y) - before


def functions(self: Body, x: Tensor) -> Tensor:
    y = nn.functional.relu(self.one(x), inplace=True)
    y = Function.apply(y) + sign(y) * binarize(y - 1, surrogates.create("hardtanh"))
    y = y + gradlab.binary.sign(self.two(y))
    return activations.create("binary").forward(y) + activations.create("ternary").apply(y)


BODIES = [relu_twice, add_in_place, functions]
NAMES = ["one.weight", "one.bias", "two.weight", "two.bias"]


@pytest.mark.parametrize("names", [[], NAMES, *[[name] for name in NAMES]])
@pytest.mark.parametrize("body", BODIES)
def test_values_are_the_modules(body: Any, names: list[str]) -> None:
    inputs = torch.randn(5, 3)
    with torch.no_grad():
        expected = Body(body)(inputs.clone())
        assert torch.equal(run(Body(body), inputs, frozenset(names)), expected)


@pytest.mark.parametrize("body", BODIES)
def test_what_is_kept_is_not_changed(body: Any) -> None:
    graph = ModuleGraph(Body(body))
    state = {**dict(graph.module.named_parameters()), **dict(graph.module.named_buffers())}
    inputs = torch.randn(5, 3)
    given = inputs.clone()
    split = graph.split(frozenset({"two.weight"}))
    with torch.no_grad():
        values = graph.run(split.prefix, {graph.placeholder: inputs}, state)
        kept = {n: v.clone() for n, v in values.items() if isinstance(v, Tensor)}
        first = graph.run(split.suffix, values, state)[graph.result]
        second = graph.run(split.suffix, values, state)[graph.result]
    assert torch.equal(first, second)
    assert torch.equal(inputs, given)
    for node, value in kept.items():
        assert torch.equal(value, values[node])


def test_prefix_and_suffix_share_nothing_and_forget_what_is_done() -> None:
    graph = ModuleGraph(nn.Sequential(*[nn.Linear(3, 3) for _ in range(4)]))
    state = dict(graph.module.named_parameters())
    split = graph.split(frozenset({"2.bias"}))
    assert [node.name for node in split.prefix.nodes] == ["input_1", "_0", "_1"]
    assert [node.name for node in split.suffix.nodes] == ["_2", "_3"]
    values = graph.run(split.prefix, {graph.placeholder: torch.ones(1, 3)}, state)
    assert list(values) == list(split.frontier)
    nothing = graph.split(frozenset())
    assert not nothing.suffix.nodes
    assert nothing.frontier == (graph.result,)
    behind = graph.split(cut=frozenset({graph.nodes[2]}))
    assert [node.name for node in behind.suffix.nodes] == ["_2", "_3"]
    assert behind.frontier == ()


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: self.one(x) if x.sum() > 0 else x,
        lambda self, x: (self.one(x), x),
        lambda self, x: torch.add(x, 1, out=self.one(x)),
        lambda self, x: torch.stack([self.one(row) for row in x]),
    ],
)
def test_what_is_no_graph_says_why(body: Any) -> None:
    with pytest.raises(Untraceable) as error:
        ModuleGraph(Body(body))
    assert str(error.value)
    assert "\n" not in str(error.value)


def test_hooks_and_variadic_modules_are_not_traced() -> None:
    module = nn.Linear(3, 3)
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(Untraceable, match="hooks"):
        ModuleGraph(module)

    class Variadic(nn.Linear):
        def forward(self, *args: Tensor) -> Tensor:
            return super().forward(*args)

    with pytest.raises(Untraceable, match=r"\*args"):
        ModuleGraph(Variadic(3, 3))


def test_one_line_of_any_error() -> None:
    assert one_line(ValueError("first\nsecond")) == "first"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 500))) == 160
