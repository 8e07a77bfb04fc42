r"""Noisy forward passes of any module: every example has noise of its own on the weights.

The loss is a mean of per-example losses, and each of these has the same expectation over
:math:`W \sim N(\mu, \sigma^2)` whether or not examples share their noise. So with weights
:math:`\mu + \sigma\varepsilon_b` of its own for each example b

.. math:: \frac{\partial J}{\partial\mu} =
    \frac1B\sum_b E\left[(\ell_b - c_b)\,\frac{\varepsilon_b}{\sigma}\right],

which is B independent samples from one pass where noise that the batch shares would give one.

How the noise is drawn:

- behind the layer (:mod:`gradlab.evaluation.module.noisy_layers`) where a parameter itself
  multiplies the input of a linear layer, or of a convolution with at most half as many positions as
  weights per filter: the same smoothing, less variance;
- on the weights otherwise, by ``torch.func.vmap`` over examples: convolutions with many positions,
  weights that something is done to first, such as their sign, biases and scales of normalization;
- with ``noise="positions"`` behind all layers, independent in every position. For linear layers
  that see one row per example this is the same again. **For convolutions it is another smoothing**:
  positions share their weights, so no distribution of weights has this noise.

Where the network sees only the sign of a noisy weight, or of a pre-activation, the score is
conditioned on that sign (Rao-Blackwell). Scores that are not are odd in the noise, so that a
baseline :math:`c_b`, the example's loss on a noise-free pass, cancels from mirrored passes; it is
then not computed. The output layer of a smooth loss needs no score: its gradient is the mean of the
loss's own derivative on the noisy passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradlab._registry import unknown
from gradlab.evaluation import noise as counter_based
from gradlab.evaluation import population as pop
from gradlab.evaluation import smoothing
from gradlab.evaluation.module.channelwise import growth
from gradlab.evaluation.module.convolution import PopulationOperations
from gradlab.evaluation.module.each_example import each_example
from gradlab.evaluation.module.evaluator import LOSSES, ModuleEvaluator
from gradlab.evaluation.module.footprint import Footprint, line
from gradlab.evaluation.module.graph import forward_of, intercepted_functions, one_line
from gradlab.evaluation.module.noisy_layers import SIGN, NoisyCalls, NoisyLayer, Traces
from gradlab.evaluation.module.noisy_search import find_noisy_layers, seen_by_sign
from gradlab.evaluation.module.program import Prepared
from gradlab.evaluation.population import Params

NOISE = ("weights", "positions")
# Bytes in flight on a CPU. On one core, of a binarized ResNet of width 8 on 256 images: 16 MB take
# up to 1.6 times as long, 256 MB are hardly faster.
_CPU_BYTES = 2**26

Known: TypeAlias = dict[str, tuple[Tensor, Tensor, tuple[Tensor, ...]]]
# Values of nodes; without a graph the inputs, under None.
Environment: TypeAlias = dict[Any, Any]


@dataclass(frozen=True)
class _Plan:
    """How a module's noisy passes are made, which depends on shapes and not on parameters.

    Attributes:
        layers: what has its noise behind it.
        calls: linear layers and convolutions in all.
        weights: parameters that are themselves noisy.
        conditioned: those of which the network sees only the sign.
        kinds: how what the noise does not change grows with the number of examples, by node; None
            where the whole forward pass runs.
        problem: why the examples cannot share a pass in one line, if they cannot.
        examples: how many are passed through the network at a time.
    """

    layers: tuple[NoisyLayer, ...]
    calls: int
    weights: tuple[str, ...]
    conditioned: frozenset[str]
    kinds: Environment | None = None
    problem: str = ""
    examples: int = 1


# Made once for all batches and points of training: a module's copy is never changed.
_PLANS: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], _Plan]] = WeakKeyDictionary()


class NoisyPasses:
    """A module at one point, ready for passes in which chosen parameters are noisy.

    Args:
        evaluator: the module and its batch.
        params: the point; what it leaves out is in ``base``.
        names: which parameters are noisy; all of ``params`` if left out.
        sigma: standard deviation of their noise.
        noise: "weights", or "positions" for independent noise behind every layer.
        base: the other parameters.
        smooth_loss: the loss is differentiable in the outputs; if left out, the built-in ones are.

    Attributes:
        names: the noisy parameters, in the module's order.
        smooth_loss: whether the loss is taken as differentiable.

    Raises:
        ValueError: an unknown name, parameters that do not fit, a module that couples the examples
            of a batch, or ``noise="positions"`` where a parameter is not that of a layer.

    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    >>> evaluator = ModuleEvaluator(model, torch.eye(2), torch.zeros(2, 1), loss="mse")
    >>> passes = NoisyPasses(evaluator, {"0.weight": torch.ones(1, 2)}, sigma=0.1)
    >>> gradient = passes.gradient(key=5, passes=2000)["0.weight"] / 2
    >>> [round(each, 1) for each in gradient[0].tolist()]  # of (w₁² + w₂²)/2
    [1.0, 1.0]
    """

    def __init__(
        self,
        evaluator: ModuleEvaluator,
        params: Params,
        names: Sequence[str] | None = None,
        *,
        sigma: float = 0.1,
        noise: str = "weights",
        base: Params | None = None,
        smooth_loss: bool | None = None,
    ) -> None:
        if noise not in NOISE:
            raise ValueError(unknown("noise", noise, NOISE))
        point = {**(base or {}), **params}
        evaluator.check_params(point)
        chosen = set(params if names is None else names)
        for name in sorted(chosen - set(point)):
            raise ValueError(unknown("layer", name, tuple(params)))
        if evaluator.couples:
            raise ValueError(
                "the module couples the examples of a batch (as BatchNorm in training mode does), "
                "and local noise is drawn for each example: call model.eval(), or use nes."
            )
        self.evaluator = evaluator
        self.program = evaluator.program
        self.sigma = float(sigma)
        self.params = {name: tensor.detach() for name, tensor in point.items()}
        self.names = tuple(name for name in self.program.params if name in chosen)
        self._streams = {name: index for index, name in enumerate(self.program.params)}
        if smooth_loss is None:
            smooth_loss = evaluator.loss in (*LOSSES, *LOSSES.values())
        self._plan = self._planned(noise)
        self.smooth_loss = smooth_loss
        outputs = [layer.name for layer in self._plan.layers if layer.is_output]
        self._pathwise = outputs[0] if outputs and smooth_loss else None

    @property
    def path(self) -> str:
        """Where every parameter's noise is, in one line."""
        plan = self._plan
        behind = [name for layer in plan.layers for name in layer.names]
        parts = [f"behind the layer: {', '.join(behind)}"] if behind else []
        if plan.weights:
            how = f"one example at a time ({plan.problem})" if plan.problem else "examples batched"
            parts.append(f"on the weights, {how}: {', '.join(plan.weights)}")
        return "; ".join(parts)

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.evaluator.inputs)

    def baseline_matters(self, passes: int, antithetic: bool) -> bool:
        """Whether a noise-free baseline changes the estimate; it costs one more pass."""
        plan = self._plan
        conditioned = plan.conditioned or any(layer.conditioned for layer in plan.layers)
        return bool(conditioned) or not antithetic or passes % 2 == 1

    @property
    def pathwise(self) -> float:
        """The share of the network, by its layers, that is differentiated on every pass."""
        return 0.0 if self._pathwise is None else 1 / self._plan.calls

    def gradient(
        self,
        key: int,
        passes: int,
        *,
        antithetic: bool = True,
        baseline: bool = True,
        examples: tuple[int, int] | None = None,
    ) -> Params:
        """The mean over passes of the examples' summed estimates.

        Args:
            key: 64-bit noise key.
            passes: noisy forward passes.
            antithetic: passes 2k and 2k + 1 use noise of opposite sign.
            baseline: subtract each example's loss on a noise-free pass, where that matters.
            examples: half-open range; all if left out.

        Returns:
            A dict of the noisy parameters, float64; divided by the number of examples it estimates
            the gradient of their mean loss. NaN where a loss is.
        """
        total = {
            name: torch.zeros_like(self.params[name], dtype=torch.float64) for name in self.names
        }
        baseline = baseline and self.baseline_matters(passes, antithetic)
        start, stop = (0, self.size) if examples is None else examples
        with torch.no_grad():
            for low, high in pop.chunks(stop - start, self._plan.examples):
                block = (start + low, start + high)
                self._block(total, block, key, passes, antithetic, baseline)
        return total

    def _block(
        self,
        total: Params,
        examples: tuple[int, int],
        key: int,
        passes: int,
        antithetic: bool,
        baseline: bool,
    ) -> None:
        """Add the estimates of a block of examples."""
        block = self._prepare(*self._examples(*examples))
        reference: Tensor | float = 0.0
        if baseline:
            outputs = self._outputs(self._values(block), block, self.params)
            reference = self.program.loss(outputs, block.targets)
        known: Known = {}
        drawn: Params = {}
        for index in range(passes):
            if antithetic and index % 2:
                drawn = {name: -each for name, each in drawn.items()}
            else:
                drawn = self._draw(examples, key, index // 2 if antithetic else index)
            outputs, traces = self._pass(block, drawn, known)
            losses, slope = self._losses(outputs, block.targets)
            rewards = (losses - reference) / passes
            for layer in self._plan.layers:
                if layer.name not in traces:
                    continue  # it was not reached, changed nothing, and its estimate is zero
                operand, score = traces[layer.name]
                factors = rewards
                if slope is not None and layer.name == self._pathwise:
                    score, factors = slope, torch.full_like(rewards, 1 / passes)
                for name, gradient in layer.gradient(operand, score, factors).items():
                    total[name] += gradient
            for name in self._plan.weights:
                score = self._weight_score(name, drawn[name])
                gradient = rewards.to(score.dtype) @ score.flatten(1)
                total[name] += gradient.reshape(total[name].shape)

    def _losses(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        """Losses of a block, and their derivatives in the outputs if these are wanted."""
        if self._pathwise is None:
            return self.program.loss(outputs, targets), None
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            losses = self.program.loss(leaf, targets)
            (slope,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach(), slope

    def _weight_score(self, name: str, drawn: Tensor) -> Tensor:
        if name not in self._plan.conditioned:
            return drawn / self.sigma
        spread = torch.full((), self.sigma, dtype=drawn.dtype, device=drawn.device)
        return smoothing.score(SIGN, self.params[name].expand_as(drawn), spread, drawn)

    def _draw(self, examples: tuple[int, int], key: int, pair: int) -> Params:
        """Standard normals of every example, by layer ``(b, numbers)`` or weight ``(b, ...)``."""
        start = pair << 32
        rows = (start + examples[0], start + examples[1])

        def normals(name: str, numbers: int) -> Tensor:
            stream = counter_based.ACTIVATION_STREAM + self._streams[name]
            device = self.evaluator.inputs.device
            drawn = counter_based.normal(key, rows, (0, numbers), stream=stream, device=device)
            return drawn.to(self.params[name].dtype)

        found = {layer.name: normals(layer.name, layer.numbers) for layer in self._plan.layers}
        for name in self._plan.weights:
            shape = self.params[name].shape
            found[name] = normals(name, shape.numel()).reshape(-1, *shape)
        return found

    def _examples(self, low: int, high: int) -> tuple[Tensor, Tensor]:
        return self.evaluator.inputs[low:high], self.evaluator.targets[low:high]

    def _prepare(self, inputs: Tensor, targets: Tensor) -> Prepared:
        """A block, with all that the noise does not change."""
        others = {name: w for name, w in self.params.items() if name not in self.names}
        return self.program.prepare(inputs, targets, frozenset(self.names), others)

    def _values(self, block: Prepared) -> Environment:
        return {None: block.inputs} if block.split is None else block.values

    def _outputs(self, values: Environment, block: Prepared, params: Params) -> Tensor:
        graph = self.program.graph
        if graph is None or block.split is None:
            return self.program.whole(values[None], params)
        state = self.program.state(params)
        outputs: Tensor = graph.run(block.split.suffix, values, state)[graph.result]
        return outputs

    def _noisy(
        self, values: Environment, block: Prepared, params: Params, drawn: Params, known: Known
    ) -> tuple[Tensor, Traces]:
        with NoisyCalls(self._plan.layers, self.params, drawn, self.sigma, known) as mode:
            outputs = self._outputs(values, block, params)
        return outputs, mode.traces

    def _pass(self, block: Prepared, drawn: Params, known: Known) -> tuple[Tensor, Traces]:
        """Outputs of a block, and what the gradients of the layers need."""
        if self._plan.weights:
            return self._apart(block, drawn)
        return self._noisy(self._values(block), block, self.params, drawn, known)

    def _apart(self, block: Prepared, drawn: Params) -> tuple[Tensor, Traces]:
        """Every example with weights of its own."""
        plan, kinds = self._plan, self._plan.kinds
        if kinds is None:
            block, kinds = replace(block, split=None), {None: "examples"}

        def one(values: Environment, drawn: Params) -> tuple[Tensor, Traces]:
            weights = {name: self.params[name] + self.sigma * drawn[name] for name in plan.weights}
            behind = {layer.name: drawn[layer.name][None] for layer in plan.layers}
            return self._noisy(values, block, {**self.params, **weights}, behind, {})

        # nodes of a graph look after themselves
        functions = intercepted_functions(forward_of, outermost=True)
        with PopulationOperations(), functions if block.split is None else nullcontext():
            found: tuple[Tensor, Traces] = each_example(
                one, self._values(block), kinds, drawn, batched=not plan.problem
            )
        return found

    def _planned(self, noise: str) -> _Plan:
        """How passes are made: found out once for a module, names and number of examples."""
        evaluator, program = self.evaluator, self.program
        inputs, targets = evaluator.inputs, evaluator.targets
        key = (
            self.names,
            noise,
            self.size,
            inputs.shape[1:],
            inputs.device,
            evaluator.memory_bytes,
        )
        plans = _PLANS.setdefault(program.module, {})
        if key in plans:
            return plans[key]
        layers, calls = find_noisy_layers(
            program, self.params, self.names, inputs, joint=noise == "weights"
        )
        behind = {name for layer in layers for name in layer.names}
        weights = tuple(name for name in self.names if name not in behind)
        if noise == "positions" and weights:
            raise ValueError(
                f"parameter {weights[0]} is not itself the weight or bias of one linear layer or "
                '2-d convolution, as noise = "positions" needs it: use noise = "weights", or leave '
                "it out of layers."
            )
        state = program.state(self.params)
        signs = frozenset(name for name in weights if seen_by_sign(program, name, state))
        self._pathwise = None
        self._plan = _Plan(tuple(layers), calls, weights, signs)
        with torch.no_grad():
            if weights:
                index = torch.arange(3, device=inputs.device) % self.size
                two, three = (
                    self._prepare(inputs[index[:count]], targets[index[:count]]) for count in (2, 3)
                )
                kinds = {node: growth(two.values[node], three.values[node]) for node in two.values}
                if two.split is not None and "unknown" not in str(kinds.values()):
                    self._plan = replace(self._plan, kinds=kinds)
                try:
                    self._apart(two, self._draw((0, 2), 0, 0))
                except Exception as error:  # vmap may meet anything in a user's module
                    self._plan = replace(self._plan, problem=one_line(error))
            plans[key] = replace(self._plan, examples=self._fitting())
        return plans[key]

    def _fitting(self) -> int:
        """How many examples fit into the memory, from what a few of them hold."""
        batch, memory = self.size, self.evaluator.memory_bytes
        if self.evaluator.inputs.device.type == "cpu":
            memory = min(memory, _CPU_BYTES)
        # what compiled code draws is not seen
        drawn = sum(layer.numbers for layer in self._plan.layers)
        drawn = 4 * (drawn + sum(self.params[name].numel() for name in self._plan.weights))

        def held(count: int) -> tuple[int, int]:
            total = {name: torch.zeros_like(self.params[name]).double() for name in self.names}
            with Footprint() as footprint:
                self._block(total, (0, count), 0, 2, True, True)
            return count, footprint.peak + count * drawn

        few = min(2, batch)
        seen = [held(few)]
        if batch > 2:
            more = min(max(few * memory // (4 * max(1, seen[0][1])), 3), 16, batch)
            seen = [held(count) for count in (max(few, more // 2), more)]
        fixed, each = line(seen)
        return min(batch, max(1, (memory - fixed) // max(1, each)))
