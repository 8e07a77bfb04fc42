"""Which parameters of a module can have their noise behind a layer, and what sees only signs.

A parameter itself has to be what multiplies, which is told by the identity of tensors while the
module runs on two and on three examples; it has to be used once, and every example has to have its
own row. Weights that something is done to first, or that two layers share, are none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from gradlab.evaluation.module.channelwise import growth, is_elementwise
from gradlab.evaluation.module.graph import ModuleGraph, State
from gradlab.evaluation.module.layers import find_layer
from gradlab.evaluation.module.noisy_layers import SIGN, Call, NoisyLayer
from gradlab.evaluation.module.program import Program
from gradlab.evaluation.population import Params

# What tells nothing about a parameter's values.
_METADATA = {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_floating_point,
    Tensor.is_contiguous, Tensor.element_size,
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad")
    ),
}  # fmt: skip


@dataclass(frozen=True)
class _Seen:
    """A call of a layer in a recorded pass: names and shapes."""

    weight: str | None
    bias: str | None
    call: Call
    output: Tensor


class _Recorder(TorchFunctionMode):
    """Counts what reads each parameter, and keeps the calls of layers."""

    def __init__(self, state: State, names: Iterable[str]) -> None:
        super().__init__()
        self.names = {id(state[name]): name for name in names}
        self.uses: Counter[str] = Counter()
        self.seen: list[_Seen] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _METADATA:
            return result
        leaves = tree_leaves((args, kwargs))
        self.uses.update(self.names[id(leaf)] for leaf in leaves if id(leaf) in self.names)
        call = Call.of(func, args, kwargs)
        if call is not None:
            weight, bias = self.names.get(id(call.weight)), self.names.get(id(call.bias))
            self.seen.append(_Seen(weight, bias, call, result))
        return result


def find_noisy_layers(
    program: Program, params: Params, names: Sequence[str], inputs: Tensor, *, joint: bool
) -> tuple[list[NoisyLayer], int]:
    """Layers whose own parameters multiply their input, once, with a row for every example.

    Args:
        program: the module.
        params: all parameters.
        names: which of them are noisy.
        inputs: examples to try it on.
        joint: noise is that of the weights: then convolutions with many positions are no help,
            and left out. Otherwise every position has noise of its own.

    Returns:
        The layers, and how many linear layers and convolutions there are in all.
    """
    state = program.state(params)
    index = torch.arange(3, device=inputs.device) % len(inputs)
    recorders, outputs = [], []
    for count in (2, 3):
        with torch.no_grad(), _Recorder(state, names) as recorder:
            outputs.append(program.whole(inputs[index[:count]], params))
        recorders.append(recorder)
    found: list[NoisyLayer] = []
    uses, calls = recorders[0].uses, len(recorders[0].seen)
    if calls != len(recorders[1].seen):
        return found, calls
    for two, three in zip(recorders[0].seen, recorders[1].seen, strict=True):
        weight = two.weight if two.weight is not None and uses[two.weight] == 1 else None
        bias = two.bias if two.bias is not None and uses[two.bias] == 1 else None
        rows = growth(two.call.inputs, three.call.inputs), growth(two.output, three.output)
        if (weight is None and bias is None) or rows != ("examples", "examples"):
            continue
        convolution = two.call.convolution
        places = two.output.shape[1:-1] if convolution is None else two.output.shape[2:]
        positions, shape = math.prod(places), two.call.weight.shape
        if joint and positions > 1:
            groups = 1 if convolution is None else convolution[3]
            if weight is None or groups > 1 or 2 * positions > math.prod(shape[1:]):
                continue
        layer = NoisyLayer(weight, bias, shape, convolution, positions, joint and positions > 1)
        if not layer.joint:
            last = two.output is outputs[0]
            seen = _only_sign_seen(program, state, layer, two.output)
            layer = replace(layer, conditioned=seen, is_output=last)
        found.append(layer)
    return found, calls


def _only_sign_seen(program: Program, state: State, layer: NoisyLayer, output: Tensor) -> bool:
    """Whether a sign, and nothing else, comes directly behind a layer."""
    graph = program.graph
    found = None if graph is None else find_layer(graph, layer.name, state)
    if graph is None or found is None:
        return False
    return _only_by_sign(graph, found.node, output)


def seen_by_sign(program: Program, name: str, state: State) -> bool:
    """Whether the network sees nothing of a parameter but its sign.

    Args:
        program: the module; one without a graph is not understood.
        name: the parameter.
        state: all parameters and buffers.
    """
    graph = program.graph
    if graph is None:
        return False
    readers = [node for node in graph.needed({graph.result}) if name in graph.reads(node)]
    return (
        len(readers) == 1
        and readers[0].op == "get_attr"
        and _only_by_sign(graph, readers[0], state[name])
    )


def _only_by_sign(graph: ModuleGraph, node: Node, like: Tensor) -> bool:
    """Whether nothing but a sign reads a node, whose values are shaped ``like`` this.

    Asked on random numbers of three sizes, since a sign may have any name.
    """
    users = [user for user in graph.needed({graph.result}) if node in user.all_input_nodes]
    if node is graph.result or len(users) != 1:
        return False
    others = [each for each in users[0].all_input_nodes if each is not node]
    # objects made out of nothing, such as a surrogate of fixed options
    if any(each.op != "call_function" or each.all_input_nodes for each in others):
        return False
    generator = torch.Generator().manual_seed(0)
    try:
        values: dict[Node, Any] = {each: graph.evaluate(each, {}, {}) for each in others}
        if not is_elementwise(graph, users[0], values | {node: like}):
            return False
        for scale in (1e-3, 1.0, 1e3):
            x = scale * torch.randn(like.shape, generator=generator).to(like)
            if not torch.equal(graph.evaluate(users[0], values | {node: x}, {}), SIGN.forward(x)):
                return False
    except Exception:  # the function is the user's: it may raise anything
        return False
    return True
