r"""Means and variances through the graph of any ``nn.Module``, weights being noisy.

Every noisy parameter is N(w, σ²), and every value that depends on one is taken as normal with a
mean and a variance. The rules, for inputs of means m and variances v and weights of means W and
variances V:

==============================  ====================================================================
linear layer, convolution       mean by the layer; variance ``layer(v, W²) + layer(m² + v, V)``, for
                                V = σ² the layer's sum of squares over each patch
scale and shift, BatchNorm in   the same with one weight for every channel
evaluation mode
elementwise functions           :mod:`gradlab.estimators.moments_elementwise`; of a parameter too:
                                sign(w) has the mean erf(w/(σ√2)), and the variance 1 - mean²
sum, mean, average pooling      variances add
maximum pooling                 two at a time, as independent: exactly of signs, otherwise by the
                                formulas of Clark (Operations Research 1961)
products with parameters        as independent
padding, shapes, concatenation  of means and of variances
==============================  ====================================================================

**Ignored** in the variance of a pre-activation: how its inputs depend on each other, be it by the
weights that positions share, by the branches of a residual block, or by the scale of a binary
filter; and everywhere that two layers may have the same parameter. **Kept**, to first order, in the
covariance of the outputs (:mod:`gradlab.estimators.moments_tape`): their slopes in every source of
noise (:mod:`gradlab.estimators.moments_sources`).
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from gradlab.estimators.moments_elementwise import (
    PIECEWISE,
    SMOOTH,
    Expectation,
    elementwise,
    operation,
)
from gradlab.estimators.moments_pooling import maximum, pooling_options, winners
from gradlab.estimators.moments_sources import apart
from gradlab.estimators.moments_tape import Map, Moments, Normals, Tape, drawn, moments_of, viewed
from gradlab.evaluation.module.graph import ModuleGraph, State
from gradlab.evaluation.module.layers import Patches, layer_arguments, module_arguments

_SHAPES = frozenset(("device", "dim", "dtype", "getattr", "ndim", "numel", "shape", "size"))
_SAME = frozenset(("clone", "contiguous", "detach", "dropout", "dropout2d", "identity"))
_MOVES = frozenset((
    "flatten", "getitem", "movedim", "permute", "pixelshuffle", "reshape", "squeeze", "transpose",
    "unflatten", "unsqueeze", "view",
))  # fmt: skip
_JOINS = frozenset(("cat", "concat", "pad", "stack", "sum", "zeropad2d"))
_MEANS = frozenset(("adaptiveavgpool2d", "avgpool2d", "mean"))
_MAXIMA = frozenset(("adaptivemaxpool2d", "maxpool2d"))
_SUMS = {"add": 1.0, "sub": -1.0}
_PRODUCTS = frozenset(("div", "mul", "truediv", "truedivide"))
_LINEAR = _SHAPES | _SAME | _MOVES | _JOINS | _MEANS | _MAXIMA | _SUMS.keys() | _PRODUCTS
_LINEAR |= {"neg", "negative"}


class Propagation:
    """One block of examples on its way through a module.

    Attributes:
        sampled: nonlinear functions that are sampled.
        layers: linear layers and convolutions on the way.
        unsampled_layers: those whose moments reach the outputs.

    Args:
        graph: the module's.
        state: its parameters and buffers.
        names: the noisy parameters.
        sigma: standard deviation of their noise.
        what: name of the estimator, for complaints.
        normals: draws for values behind which there are further nonlinear ones: these are then
            sampled, weights of its own for every example, with the derivative of their mean.
        shared: positions share the noise of the weights in the outputs' covariance; otherwise each
            has its own.
    """

    def __init__(
        self,
        graph: ModuleGraph,
        state: State,
        names: Iterable[str],
        sigma: float,
        what: str,
        *,
        normals: Normals | None = None,
        shared: bool = True,
    ) -> None:
        self.graph, self.state, self.names = graph, state, frozenset(names)
        self.sigma, self.what, self.tape = sigma, what, Tape(normals, shared)
        self.values: dict[Node, Any] = {}
        self._roots: dict[Node, Node | None] = {}
        self.layers = self.unsampled_layers = 0
        self._batch = frozenset(graph.split(cut=frozenset({graph.placeholder})).suffix.nodes)
        self._batch |= {graph.placeholder}
        self.sampled: frozenset[Node] = frozenset()
        if normals is not None:
            self.sampled = _sampled(graph, self.names, self._batch)
        self._drawn = frozenset(graph.needed(set(self.sampled)))

    def run(self, inputs: Tensor) -> Tensor | Moments:
        """The outputs; a tensor where no noise reaches them.

        Raises:
            ValueError: an operation that there is no rule for.
        """
        self.values[self.graph.placeholder] = inputs
        for node in self.graph.needed({self.graph.result}):
            if node not in self.values:
                self.values[node] = self._value(node)
        found: Tensor | Moments = self.values[self.graph.result]
        return found

    def _value(self, node: Node) -> Any:
        name = operation(self.graph, node)
        own = self.graph.reads(node) & self.names
        random = [n for n in node.all_input_nodes if isinstance(self.values[n], Moments)]
        if not own and not random:
            return self.graph.evaluate(node, self.values, self.state)
        if node.op == "get_attr":
            return self._parameter(next(iter(own)))
        module = self.graph.submodule(node)
        arguments = layer_arguments(node)
        if type(module) in (nn.Linear, nn.Conv2d):
            assert module is not None
            arguments = module_arguments(module, node)
        if arguments is not None:
            return self._layer(node, arguments)
        if isinstance(module, _BatchNorm):
            return self._normalized(node, module)
        if own:
            raise self._unknown(node)
        if name in _SHAPES and (name != "getattr" or node.args[1] in _SHAPES):
            return self._with(node, random, lambda x: x.mean)
        if name in _SAME:
            return self.values[random[0]]
        if name in _SUMS or name in _PRODUCTS:
            return self._arithmetic(node, name)
        if name in ("neg", "negative"):
            return self.tape.scaled(self.values[random[0]], moments_of(-1.0))
        if name in _MOVES or name in _JOINS or name in _MEANS:
            return self._moved(node, name, random)
        if name in _MAXIMA:
            return self._maximum(node, self.values[random[0]])
        if len(random) == 1:
            return self._function(node, random[0])
        raise self._unknown(node)

    def _unknown(self, node: Node) -> ValueError:
        return ValueError(
            f"{self.what} has no rule for {operation(self.graph, node)} (node {node.name}) of "
            "noisy values: it knows linear layers, 2-d convolutions, BatchNorm in evaluation mode, "
            "signs, quantized, piecewise linear and smooth elementwise activations, sums, scales, "
            "pooling and changes of shape; use nes_local."
        )

    def _with(self, node: Node, inputs: Iterable[Node], of: Callable[[Moments], Any]) -> Any:
        """A node's value with something else in place of its random inputs."""
        own = {each: of(self.values[each]) for each in inputs}
        return self.graph.evaluate(node, ChainMap(own, self.values), self.state)

    def _parameter(self, name: str) -> Moments:
        tensor = self.state[name]
        if name not in self.names:
            return moments_of(tensor)
        return Moments(tensor, tensor.new_tensor(self.sigma**2), of_batch=False)

    # ------------------------------------------------------------------- layers

    def _layer(self, node: Node, arguments: Mapping[str, Any]) -> Moments:
        if self.graph.submodule(node) is None:
            weight, bias = (
                moments_of(self.values[a] if isinstance(a, Node) else a)
                for a in (arguments["weight"], arguments["bias"])
            )
        else:
            names = self.graph.local_names(node)
            weight = self._parameter(names["weight"])
            bias = self._parameter(names["bias"]) if "bias" in names else moments_of(None)
        x, shape = moments_of(self.values[arguments["input"]], of_batch=True), weight.mean.shape
        if weight.of_batch or bias.of_batch or not x.of_batch:
            raise self._unknown(node)
        patches = None
        if "stride" in arguments:
            keys = ("stride", "padding", "dilation", "groups")
            patches = Patches(*(arguments[key] for key in keys))
        self.layers += 1
        self.unsampled_layers += node not in self._drawn
        z = self.tape.multiplied(x, weight, patches, node in self._drawn)
        if not bias.mean.dim():
            return z
        bias = bias if patches is None else viewed(bias, (shape[0], 1, 1))
        return self.tape.shifted(z, bias, sampled=node in self._drawn)

    def _normalized(self, node: Node, module: _BatchNorm) -> Moments:
        names = self.graph.local_names(node)
        if module.training or "running_mean" not in names:
            raise self._unknown(node)
        x = moments_of(self.values[node.all_input_nodes[0]], of_batch=True)
        shape = (-1, *[1] * (x.mean.dim() - 2))
        mean, variance = (
            moments_of(self.state[names[key]].reshape(shape))
            for key in ("running_mean", "running_var")
        )
        root = moments_of((variance.mean + module.eps).rsqrt())
        found = self.tape.scaled(self.tape.shifted(x, mean, -1.0), root)
        if "weight" not in names:
            return found
        weight, bias = (viewed(self._parameter(names[key]), shape) for key in ("weight", "bias"))
        sampled = node in self._drawn
        return self.tape.shifted(self.tape.scaled(found, weight, sampled), bias, sampled=sampled)

    # --------------------------------------------------------------- arithmetic

    def _arithmetic(self, node: Node, name: str) -> Moments:
        if len(node.args) != 2 or node.kwargs:
            raise self._unknown(node)
        roots = [self._root(a) if isinstance(a, Node) else None for a in node.args]
        if roots[0] is not None and roots[0] is roots[1]:
            # the mean of a sum is right all the same, unless it is there for its derivative alone
            between = self.graph.needed({node}, frozenset({roots[0]}))
            if name in _PRODUCTS or any(operation(self.graph, n) == "detach" for n in between):
                raise ValueError(
                    f"{self.what} takes both sides of {name} (node {node.name}) for independent, "
                    "and they are functions of one noisy value: write a sign with a derivative of "
                    "its own as one torch.autograd.Function, or use nes_local."
                )
        x, y = (
            moments_of(self.values[a], of_batch=a in self._batch)
            if isinstance(a, Node) else moments_of(a) for a in node.args
        )  # fmt: skip
        if name in _SUMS:
            return self.tape.shifted(x, y, _SUMS[name], node in self._drawn)
        dependent = x.of_batch and y.of_batch and not (x.known or y.known)
        if dependent or not (name == "mul" or y.known):
            raise self._unknown(node)
        y = y if name == "mul" else replace(y, mean=1 / y.mean)
        return self.tape.scaled(x, y, node in self._drawn)

    def _root(self, node: Node) -> Node | None:
        """What a noisy value is an elementwise function of; None where it is not noisy."""
        if not self._noisy(node):
            return None
        if node not in self._roots:
            self._roots[node] = self._traced_root(node)
        return self._roots[node]

    def _traced_root(self, node: Node) -> Node | None:
        name = operation(self.graph, node)
        elementwise = name in _SAME | _SUMS.keys() | _PRODUCTS | {"neg", "negative"}
        elementwise |= name not in _LINEAR and not self._is_layer(node)
        roots = [self._root(n) for n in node.all_input_nodes if self._noisy(n)]
        if elementwise and roots and all(root is roots[0] for root in roots):
            return roots[0]
        return self._named(node)

    def _noisy(self, node: Node) -> bool:
        value = self.values.get(node)
        return isinstance(value, Moments) and not value.known

    def _named(self, node: Node) -> Node:
        """Of several nodes that read one parameter the first."""
        if node.op != "get_attr":
            return node
        own = self.graph.reads(node)
        readers = (n for n in node.graph.nodes if n.op == "get_attr")
        first: Node = next(n for n in readers if self.graph.reads(n) == own)
        return first

    def _is_layer(self, node: Node) -> bool:
        layers = (nn.Linear, nn.Conv2d, _BatchNorm)
        return layer_arguments(node) is not None or isinstance(self.graph.submodule(node), layers)

    # ------------------------------------------------------------------- others

    def _moved(self, node: Node, name: str, random: list[Node]) -> Moments:
        """What is linear without a weight: sums, means, average pooling, other shapes."""
        if name == "pad" and (node.kwargs.get("value") or node.args[3:] not in ((), (None,), (0,))):
            raise self._unknown(node)
        # of summands that are not random the variance and the deviations are zero
        zeros = {
            n: torch.zeros_like(self.values[n]) for n in node.all_input_nodes
            if name in _JOINS and n not in random and isinstance(self.values[n], Tensor)
        }  # fmt: skip
        inputs: list[Moments] = [self.values[n] for n in random]

        def linear(own: Sequence[Tensor]) -> Tensor:
            given = ChainMap(dict(zip(random, own, strict=True)), zeros, self.values)
            found: Tensor = self.graph.evaluate(node, given, self.state)
            return found

        def alone(place: int) -> Map:
            def moved(deviation: Tensor) -> Tensor:
                empty = [torch.zeros_like(x.mean) for x in inputs]
                return linear([*empty[:place], deviation, *empty[place + 1 :]])

            return moved

        mean = self._with(node, random, lambda x: x.mean)
        variance = linear([x.variance.expand(x.mean.shape) for x in inputs])
        if name in _MEANS:
            variance = variance / self._window(node, name, inputs[0].mean, mean)
        if not all(x.of_batch for x in inputs):
            return Moments(mean, variance, of_batch=False)
        sample = None
        if any(x.sample is not None for x in inputs):
            sample = self._with(node, random, drawn)
        maps = [(x.place, alone(i)) for i, x in enumerate(inputs)]
        signs = inputs[0].signs and name in _MOVES
        return self.tape.record(mean, variance, maps, (), sample, signs)

    def _window(self, node: Node, name: str, inputs: Tensor, mean: Tensor) -> float:
        """How many values each mean is of."""
        if name == "avgpool2d":
            options = pooling_options(self.graph.submodule(node), node)
            unusual = options["ceil_mode"] or options["divisor_override"]
            if unusual or not options["count_include_pad"]:
                raise self._unknown(node)
            return float(math.prod(options["kernel_size"]))
        if name == "adaptiveavgpool2d" and any(
            size % out for size, out in zip(inputs.shape[-2:], mean.shape[-2:], strict=True)
        ):
            raise self._unknown(node)
        return inputs.numel() / mean.numel()

    def _maximum(self, node: Node, x: Moments) -> Moments:
        name = operation(self.graph, node)
        options = pooling_options(self.graph.submodule(node), node)
        if options["return_indices"]:
            raise self._unknown(node)
        if x.sample is not None:
            # the mean of whatever wins in the sample
            won = winners(x.sample, options)
            maps: list[tuple[int | None, Map]] = [(x.place, won)]
            variance = won(x.variance.expand(x.mean.shape))
            return self.tape.record(won(x.mean), variance, maps, (), won(x.sample), x.signs)
        if name != "maxpool2d" or any(options["padding"]) or options["ceil_mode"]:
            raise self._unknown(node)
        found = maximum(x.mean, x.variance.expand(x.mean.shape), options, signs=x.signs)
        sources = [apart(found.variance - found.inherited)]
        return self.tape.record(
            found.mean, found.variance, [(x.place, found.moved)], sources, signs=x.signs
        )

    def _function(self, node: Node, source: Node) -> Moments | Tensor:
        """An elementwise function of one random value."""
        x: Moments = self.values[source]
        given = ChainMap({source: x.mean.detach()}, self.values)
        function = elementwise(self.graph, node, source, given)
        if function is None:
            raise self._unknown(node)
        found = function.expectation(x.mean, x.spread)
        noisy = (x.variance > 0).expand(x.mean.shape)
        if not bool(noisy.all()):  # patches of zeros, say: what sign(0) is, the function says
            value = self._with(node, [source], lambda v: v.mean).detach()
            found = Expectation(
                torch.where(noisy, found.first, value),
                torch.where(noisy, found.second, value.square()),
                torch.where(noisy, found.slope, 0.0),
            )
        variance = found.second - found.first.square()
        if not x.of_batch:
            return Moments(found.first, variance, of_batch=False)
        if node in self.sampled:
            return self._collapsed(node, source, function.jumps, found)
        sample = None
        if node in self._drawn and x.sample is not None:
            sample = self._with(node, [source], drawn)
        return self.tape.record(
            found.first,
            variance,
            [(x.place, lambda t: t * found.slope)],
            [apart(variance - found.slope.square() * x.variance)],
            sample,
            function.signs,
        )

    def _collapsed(
        self, node: Node, source: Node, jumps: bool, found: Expectation
    ) -> Moments | Tensor:
        """A sample, with the derivative of its mean where its own says nothing."""
        sample: Tensor = self._with(node, [source], drawn)
        for each in self.graph.needed({node}):
            # what has been seen is known to whoever reads it from now on
            value = self.values.get(each)
            if isinstance(value, Moments) and value.of_batch and value.sample is not value.mean:
                self.values[each] = drawn(value)
        if not jumps:
            return sample
        mean = found.first + (sample - found.first).detach()
        # a variance of zero, with the derivative of the second moment: that of signs is a constant
        excess = found.second - mean.square()
        return Moments(mean, excess - excess.detach(), sample=mean, signs=False)


def _sampled(graph: ModuleGraph, names: frozenset[str], batch: frozenset[Node]) -> frozenset[Node]:
    """Nonlinear functions of noisy values to sample: those that others depend on.

    But for continuous ones that others follow with no noisy layer between: a sign of their sample
    would have no noise of its own to be smoothed by.
    """

    def is_layer(node: Node) -> bool:
        layers = (nn.Linear, nn.Conv2d)
        return layer_arguments(node) is not None or isinstance(graph.submodule(node), layers)

    varying = graph.split(names).suffix.nodes
    nonlinear = {
        node
        for node in varying
        if node in batch
        and operation(graph, node) not in _LINEAR
        and not is_layer(node)
        and not isinstance(graph.submodule(node), _BatchNorm)
    }
    earlier: set[Node] = set()
    followed: set[Node] = set()
    for node in nonlinear:
        earlier.update((nonlinear & set(graph.needed({node}))) - {node})
        # up to the layers before it
        above = graph.needed({node}, frozenset(filter(is_layer, varying)))
        followed.update((nonlinear & set(above)) - {node})
    continuous = {node for node in nonlinear if operation(graph, node) in SMOOTH | PIECEWISE}
    return frozenset(earlier - (continuous & followed))
