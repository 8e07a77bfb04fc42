"""A pruned network made smaller, with the same predictions, bit for bit.

A unit (neuron or channel) vanishes when none of its outgoing weights is kept by a unit that is
itself left: all it does is multiplied by zero. A unit without incoming weights that has outgoing
ones stays: it passes the constant of its bias on, and to fold that into later biases would change
the rounding. Pixels that nothing looks at vanish as well.

>>> from gradlab.variational.l0 import L0
>>> layer = L0(groups="weights").linear(6, 3)
>>> with torch.no_grad():
...     _ = layer.log_odds[:, :4].fill_(-4.0)  # these gates are closed
>>> small = export(nn.Sequential(layer, nn.ReLU()))
>>> small.tensors["inputs"].tolist(), small.description["steps"][0]["blocks"]
([4, 5], [[3, 2]])
>>> masked, images = export(nn.Sequential(layer, nn.ReLU()), format="masked"), torch.rand(7, 6)
>>> torch.equal(small(images), masked(images))
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.fx
from torch import Tensor, nn

from gradlab._registry import unknown
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer, stochastic_layers
from gradlab.variational.compression import mask, masked_weight
from gradlab.variational.exported import VERSION, Exported

FORMATS = ("dense", "csr", "masked")

_Stored: TypeAlias = tuple[dict[str, Any], dict[str, Tensor]]  # description and tensors


def export(
    model: nn.Module,
    path: str | Path | None = None,
    format: str = "dense",
    *,
    threshold: float | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Exported:
    """The network without what is pruned, at its mean weight, as in ``eval()``.

    Layers must follow one another, as in (nested) ``nn.Sequential``: linear layers, convolutions,
    ReLU, Softplus, Tanh, MaxPool2d, AvgPool2d, Flatten, BatchNorm (with its running statistics),
    dropout (which does nothing) and a final LogSoftmax.

    Args:
        model: in float32, with layers that have a mask.
        path: where to write it; ``None`` for nowhere.
        format: "dense", "csr" or "masked", see :mod:`gradlab.variational.exported`.
        threshold: of log α, above which a weight is removed; ``None`` for each layer's own.
        facts: what else to know of the network, as JSON; the file keeps it.

    Returns:
        A module that predicts on the processor.

    Raises:
        ValueError: a layer or a structure that cannot be exported, nothing that is pruned, a
            threshold that nothing is pruned by, or a file that cannot be written.
    """
    if format not in FORMATS:
        raise ValueError(unknown("format", str(format), FORMATS))
    chain = _known_chain(model)
    entry, inputs = _entry(chain)
    steps = _steps(chain, entry, threshold)
    _check_pruned(steps)
    if threshold is not None:
        _check_threshold(model)
    stored, live = _stored_steps(steps, format)
    tensors = {
        f"{number}.{key}": tensor.contiguous()
        for number, (_, of_step) in enumerate(stored)
        for key, tensor in of_step.items()
    }
    if live is not None and not bool(live.all()):
        tensors["inputs"] = _short(live.nonzero().flatten(), len(live))
    description = {
        "version": VERSION,
        "format": format,
        "entry": entry,
        "inputs": inputs,
        "steps": [each for each, _ in stored],
    }
    if facts is not None:
        description["facts"] = dict(facts)
    found = Exported(description, tensors)
    if path is not None:
        found.save(path)
    return found


def _check_pruned(steps: list[_Step]) -> None:
    masked = [step for step in steps if isinstance(step, _Map) and step.masked]
    if not masked:
        raise ValueError("no layer of the model can be pruned: train it with a method that has a "
                         "mask, such as sparse.")  # fmt: skip
    if all(bool(step.kept.all()) for step in masked):
        raise ValueError("no weight of the model is pruned: train it for longer, or give a lower "
                         "threshold of log alpha.")  # fmt: skip


def _check_threshold(model: nn.Module) -> None:
    methods = [getattr(layer, "method", None) for layer in stochastic_layers(model).values()]
    if not any(hasattr(method, "threshold") for method in methods):
        kinds = ", ".join(sorted({type(method).__name__ for method in methods}))
        raise ValueError(f"no layer of the model is pruned by a threshold of log alpha (method "
                         f"{kinds}): leave the threshold out.")  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Map:
    """A linear layer or a convolution.

    Attributes:
        facts: what a description says of it besides its weights.
        weight: ``(outputs, columns of its group)``, 0 where it is removed.
        kept: likewise, boolean.
        masked: whether the layer can be pruned.
        bias: ``(outputs,)`` or ``None``.
        groups: of a convolution.
        positions: columns that an input unit stands for: one for each pixel of the kernel, or,
            after Flatten, of the channel.
    """

    facts: dict[str, Any]
    weight: Tensor
    kept: Tensor
    masked: bool
    bias: Tensor | None
    groups: int
    positions: int

    def inputs_of(self, rows: Tensor) -> Tensor:
        """The input units to which a kept weight of these rows belongs, boolean."""
        used = (self.kept & rows[:, None]).reshape(self.groups, -1, self.kept.shape[1]).any(1)
        return used.reshape(-1, self.positions).any(1)

    def stored(self, rows: Tensor, inputs: Tensor, sparse: bool) -> _Stored:
        """What is left with these outputs and input units."""
        columns = inputs.repeat_interleave(self.positions).reshape(self.groups, -1)
        parts = zip(rows.reshape(self.groups, -1), columns, strict=True)
        cut = [
            (weight[some][:, left], kept[some][:, left])
            for weight, kept, (some, left) in zip(
                self.weight.chunk(self.groups), self.kept.chunk(self.groups), parts, strict=True
            )
        ]
        tensors = {} if self.bias is None else {"bias": self.bias[rows]}
        if not sparse:
            tensors["weight"] = torch.cat([weight.flatten() for weight, _ in cut])
            return {**self.facts, "blocks": [list(weight.shape) for weight, _ in cut]}, tensors
        places, before = [], 0
        for _, kept in cut:
            places.append(kept.nonzero()[:, 1] + before)
            before += kept.shape[1]
        tensors["weight"] = torch.cat([weight[kept] for weight, kept in cut])
        tensors["columns"] = _short(torch.cat(places), before)
        tensors["lengths"] = _short(torch.cat([kept.sum(1) for _, kept in cut]), before + 1)
        return {**self.facts, "columns": before}, tensors


# A map, BatchNorm as a factor and a summand for each unit, or the description of anything else.
_Step: TypeAlias = _Map | tuple[Tensor, Tensor] | dict[str, Any]


def _stored_steps(steps: list[_Step], format: str) -> tuple[list[_Stored], Tensor | None]:
    """Every step with what is left of it, and which inputs are needed (``None``: any number)."""
    live: Tensor | None = None  # units after the step that is looked at; None for all
    found: list[_Stored] = []
    for step in reversed(steps):
        if isinstance(step, _Map):
            rows = torch.ones(len(step.weight), dtype=torch.bool) if live is None else live
            live = step.inputs_of(rows)
            if format == "masked":
                live = torch.ones_like(live)
            live[0] |= not bool(live.any())  # one with zero weights: there is no layer without any
            found.append(step.stored(rows, live, format == "csr"))
        elif isinstance(step, dict):
            found.append((step, {}))
        else:
            scale, shift = step
            # after Flatten a unit is a channel, and has a factor for each of its pixels
            positions = 1 if live is None else len(scale) // len(live)
            some = slice(None) if live is None else live.repeat_interleave(positions)
            found.append(({"kind": "affine"}, {"scale": scale[some], "shift": shift[some]}))
    return found[::-1], live


def _steps(chain: list[tuple[str, Any]], entry: str, threshold: float | None) -> list[_Step]:
    """What the modules of a chain do, one after the other."""
    shape, channels = entry, None
    steps: list[_Step] = []
    for name, module in chain:
        kind = _kind(name, module)
        if _TAKES.get(kind, shape) != shape:
            raise ValueError(f"layer {name} ({kind.__name__}) takes {_TAKES[kind]}, and gets "
                             f"{shape}: put nn.Flatten where it belongs.")  # fmt: skip
        if {"kind": "log_softmax"} in steps and kind not in _IDLE:
            raise ValueError(f"layer {name} ({kind.__name__}) comes after LogSoftmax, which mixes "
                             "all units: it has to be the last layer.")  # fmt: skip
        if kind is nn.Flatten:
            if shape == "maps":
                steps.append({"kind": "flatten"})
                channels = channels or 1  # where nothing tells how many, all are one unit
            shape = "features"
        elif kind is nn.Linear:
            positions = module.in_features // channels if channels else 1
            steps.append(_map(name, module, {"kind": "linear"}, positions, threshold))
            channels = None
        elif kind is nn.Conv2d:
            steps.append(_map(name, module, _window(module), prod(module.kernel_size), threshold))
            channels = module.out_channels
        elif kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            steps.append(_affine(name, module))
            channels = module.num_features if shape == "maps" else channels
        elif kind in _SIMPLE:
            steps.append(_SIMPLE[kind](module))
    return steps


def _map(
    name: str, layer: Any, facts: dict[str, Any], positions: int, threshold: float | None
) -> _Map:
    kept = mask(layer, threshold)
    stochastic = isinstance(layer, StochasticLayer)
    weight = masked_weight(layer, kept) if stochastic else layer.weight.detach()
    weight = _float32(name, weight).flatten(1)
    return _Map(
        facts,
        weight,
        torch.ones_like(weight, dtype=torch.bool) if kept is None else kept.cpu().flatten(1),
        kept is not None,
        None if layer.bias is None else _float32(name, layer.bias.detach()),
        getattr(layer, "groups", 1),
        positions,
    )


def _affine(name: str, norm: Any) -> tuple[Tensor, Tensor]:
    """The factors and summands of BatchNorm with its running statistics."""
    if norm.running_mean is None:
        raise ValueError(f"layer {name} ({type(norm).__name__}) has no running statistics: only "
                         "with them is its output that of one example.")  # fmt: skip
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach().double()
    return scale.float().cpu(), shift.float().cpu()


def _window(layer: Any) -> dict[str, Any]:
    return {
        "kind": "conv2d",
        "kernel": list(layer.kernel_size),
        "stride": list(layer.stride),
        "dilation": list(layer.dilation),
        "padding": list(layer._reversed_padding_repeated_twice),
        "padding_mode": layer.padding_mode,
    }


def _pool(name: str, *options: str) -> Callable[[Any], dict[str, Any]]:
    return lambda pool: {"kind": name} | {option: getattr(pool, option) for option in options}


_SIMPLE: dict[type, Callable[[Any], dict[str, Any]]] = {
    nn.ReLU: lambda _: {"kind": "relu"},
    nn.Tanh: lambda _: {"kind": "tanh"},
    nn.Softplus: lambda module: {
        "kind": "softplus",
        "beta": float(module.beta),
        "threshold": float(module.threshold),
    },
    nn.MaxPool2d: _pool("max_pool", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    nn.AvgPool2d: _pool(
        "avg_pool",
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    nn.LogSoftmax: lambda _: {"kind": "log_softmax"},
}
_IDLE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity)
_TAKES: dict[type, str] = {
    nn.Linear: "features",
    nn.BatchNorm1d: "features",
    nn.LogSoftmax: "features",
    nn.Conv2d: "maps",
    nn.BatchNorm2d: "maps",
    nn.MaxPool2d: "maps",
    nn.AvgPool2d: "maps",
}


def _kind(name: str, module: Any) -> type:
    """Which layer of torch a module is in ``eval()``; others are refused."""
    kind = type(module)
    if isinstance(module, StochasticLayer):
        # what a layer does without noise must be known, or it could not be done without torch
        usual = kind.forward is StochasticLayer.forward
        usual = usual and kind.mean_forward is StochasticLayer.mean_forward
        if usual and isinstance(module, LinearMap | Conv2dMap):
            return nn.Linear if isinstance(module, LinearMap) else nn.Conv2d
    elif kind in _SIMPLE or kind in _TAKES or kind in _IDLE or kind is nn.Flatten:
        mistake = _unusual(module)
        if mistake is None:
            return kind
        raise ValueError(f"layer {name} ({kind.__name__}) {mistake}.")
    valid = sorted({each.__name__ for each in (*_SIMPLE, *_TAKES, nn.Flatten)})
    raise ValueError(f"layer {name} ({kind.__name__}) cannot be exported: use {', '.join(valid)}, "
                     "dropout and noisy layers that are linear in eval().")  # fmt: skip


def _unusual(module: Any) -> str | None:
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) not in _FLATTENS:
        return "flattens other dimensions than 1 to -1: use nn.Flatten()"
    if isinstance(module, nn.LogSoftmax) and module.dim not in (1, -1):
        return "is not over classes: use nn.LogSoftmax(1)"
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return "returns indices: leave out return_indices"
    return None


_FLATTENS = ((1, -1), (1, 3))


def _float32(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32:
        raise ValueError(f"layer {name} is in {tensor.dtype}: export takes a model in float32, as "
                         "model.float() makes it.")  # fmt: skip
    return tensor.cpu()


def _short(indices: Tensor, bound: int) -> Tensor:
    return indices.to(torch.int16 if bound <= 2**15 else torch.int32)


def _entry(chain: list[tuple[str, Any]]) -> tuple[str, int | None]:
    """What the network takes, "features" or "maps", and how many of them, if a layer tells."""
    kinds = [(_kind(name, module), module) for name, module in chain]
    takes = (_TAKES.get(kind, "features") for kind, _ in kinds if kind in (*_TAKES, nn.Flatten))
    entry = next(takes, "features")
    for kind, module in kinds:
        if kind in (nn.Linear, nn.BatchNorm1d):
            size = module.in_features if kind is nn.Linear else module.num_features
            return entry, size if entry == "features" else None
        if kind in (nn.Conv2d, nn.BatchNorm2d):
            return entry, module.in_channels if kind is nn.Conv2d else module.num_features
    return entry, None


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, StochasticLayer) or super().is_leaf_module(m, module_qualified_name)


def _known_chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """:func:`_chain`, or what is easier to mend: the first layer that cannot be exported."""
    try:
        return _chain(model)
    except ValueError:
        for name, module in model.named_modules():
            if name and not list(module.children()) and not isinstance(module, nn.Sequential):
                _kind(name, module)
        raise


def _chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of a forward pass that goes through one after the other, by name."""
    try:
        graph = _Tracer().trace(nn.Sequential(model))
    except Exception as error:  # whatever the model's own code makes of a symbol
        raise ValueError(f"the model's forward pass cannot be followed ({error}): export its "
                         "nn.Sequential of layers.") from error  # fmt: skip
    first, *nodes = graph.nodes
    found: list[tuple[str, nn.Module]] = []
    for before, node in pairwise((first, *nodes)):
        if node.op == "output" and node.args == (before,):
            return found
        target = str(node.target)
        if node.op == "call_module" and node.args == (before,) and not node.kwargs:
            name = target.removeprefix("0.")
            found.append((name, model.get_submodule(name) if target != "0" else model))
        elif target == "flatten" and node.args == (before, 1) and not node.kwargs:
            found.append((node.name, nn.Flatten()))
        else:
            raise ValueError(f"the model does more than call one layer after the other (at "
                             f"{node.name}): only chains of layers can be exported.")  # fmt: skip
    return found
