"""A part of a module's graph, ready to be run many times on the same parameters.

:meth:`gradlab.evaluation.module.graph.ModuleGraph.run` looks parameters up, swaps them into modules
and swaps them out again, node by node and run by run. For a few images that takes as long as the
arithmetic. Here all of it is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm

from gradlab.binary import binarize, straight_through
from gradlab.evaluation.module.graph import Environment, ModuleGraph, Schedule, State

# From values, and the parameters of this run, to a value.
Step = Callable[[Environment, State], Any]


class Executor:
    """A schedule with parameters and buffers in their places; it computes no derivatives.

    Args:
        graph: the graph.
        schedule: the nodes to evaluate.
        state: parameters and buffers by name.
        varying: names of parameters that every run brings along.

    >>> graph = ModuleGraph(nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU()))
    >>> schedule = Schedule.of(graph.nodes, frozenset({graph.result}))
    >>> executor = Executor(graph, schedule, {"0.weight": torch.ones(1, 2)})
    >>> executor.run({graph.placeholder: torch.tensor([[1.0, 2.0], [-3.0, 1.0]])})[graph.result]
    tensor([[3.],
            [0.]])
    """

    def __init__(
        self,
        graph: ModuleGraph,
        schedule: Schedule,
        state: State,
        varying: frozenset[str] = frozenset(),
    ) -> None:
        self._steps = [
            (node, _step(graph, node, state, varying), done)
            for node, done in zip(schedule.nodes, schedule.done, strict=True)
        ]

    def run(self, environment: Mapping[Node, Any], params: State | None = None) -> Environment:
        """Evaluate the nodes: as ``ModuleGraph.run``, without gradients.

        Args:
            environment: values of nodes from outside the schedule; not changed.
            params: the varying parameters.
        """
        values = dict(environment)
        with torch.no_grad():
            for node, step, done in self._steps:
                if node not in values:
                    values[node] = step(values, params or {})
                for each in done:
                    values.pop(each, None)
        return values


def _step(graph: ModuleGraph, node: Node, state: State, varying: frozenset[str]) -> Step:
    if graph.reads(node) & varying:
        return lambda values, params: graph.evaluate(node, values, {**state, **params})
    if node.op in ("get_attr", "placeholder"):
        return lambda values, _: graph.evaluate(node, values, state)
    function = _function(graph, node, state)
    if node.op == "call_method":
        method = str(node.target)
        function = lambda x, *args, **kwargs: getattr(x, method)(*args, **kwargs)  # noqa: E731 (short)
    if function is None or node.meta.get("clone"):
        return lambda values, _: graph.evaluate(node, values, state)
    if node.kwargs or any(not _is_plain(each) for each in node.args):

        def nested(values: Environment, _: State) -> Any:
            args, kwargs = map_arg((node.args, node.kwargs), lambda each: values[each])
            return function(*args, **kwargs)

        return nested
    places = tuple(node.args)
    return lambda values, _: function(
        *[values[each] if isinstance(each, Node) else each for each in places]
    )


def _is_plain(argument: Any) -> bool:
    """Whether an argument is a node or holds none."""
    return isinstance(argument, Node) or not isinstance(argument, list | tuple | dict | slice)


def _function(graph: ModuleGraph, node: Node, state: State) -> Callable[..., Any] | None:
    """What a node does with its arguments; None where the graph has to do it."""
    module = graph.submodule(node)
    if module is None:
        if node.target in (binarize, straight_through):
            return binarized
        return node.target if callable(node.target) else None
    own = {key: state[name] for key, name in graph.local_names(node).items()}
    if module._forward_hooks or module._forward_pre_hooks:
        return None
    if not own:
        return module
    weight, bias = own.get("weight"), own.get("bias")
    if type(module) is nn.Linear and weight is not None:
        return lambda x: F.linear(x, weight, bias)
    if type(module) is nn.Conv2d and weight is not None:
        convolution = module
        return lambda x: convolution._conv_forward(x, weight, bias)
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and not module.training:
        assert isinstance(module, _BatchNorm)
        mean, variance = own.get("running_mean"), own.get("running_var")
        if mean is not None and variance is not None:
            eps = module.eps
            return lambda x: F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
    return None


def binarized(x: Tensor, rule: Any) -> Tensor:
    """The value of ``binarize`` and ``straight_through``, without what derivatives need."""
    forward = getattr(rule, "forward", None)
    found: Tensor = binarize(x, rule) if forward is None else forward(x)
    return found
