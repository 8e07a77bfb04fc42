r"""The user's loss as a function of the chosen layers, everything else held fixed.

A loss of a batch is a mean over its examples, or a sum, as far as it can be told apart: evaluated
on one example at a time it must give the same number. Then populations, central differences and
noise of every example's own go example by example. A loss that is neither (weighted by class,
contrastive) is evaluated on the whole batch at a time: slower, and without local NES.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import surrogates
from gradlab.diagnosis.signs import SignCount, written_signs
from gradlab.evaluation.module.coordinates import module_differences
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.noisy import NoisyPasses
from gradlab.evaluation.population import LinePopulation, Params, Population
from gradlab.objectives.backpropagation import affordable_examples, blocked_gradient, draws
from gradlab.objectives.base import check_params
from gradlab.objectives.surrogate_mode import surrogate_derivatives

BatchLoss = Callable[[Tensor, Tensor], Tensor]

# Of these the mean derivative on noisy passes is that of the smoothed loss. Another loss may jump.
_SMOOTH = (
    nn.CrossEntropyLoss, nn.NLLLoss, nn.MSELoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.KLDivLoss,
    nn.GaussianNLLLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.SmoothL1Loss, nn.HuberLoss,
)  # fmt: skip
_SMOOTH_FUNCTIONS = (
    F.cross_entropy, F.nll_loss, F.mse_loss, F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits, F.kl_div, F.smooth_l1_loss, F.huber_loss,
)  # fmt: skip


def is_smooth(loss_fn: object) -> bool:
    """Whether a loss is known to be differentiable in the outputs."""
    return isinstance(loss_fn, _SMOOTH) or loss_fn in _SMOOTH_FUNCTIONS


def per_example_loss(loss_fn: BatchLoss, outputs: Tensor, targets: Tensor) -> BatchLoss | None:
    """The loss of every example ``(B,)`` whose mean is the loss of the batch.

    Args:
        loss_fn: of outputs and targets, a scalar.
        outputs: ``(B, ...)``, of the batch.
        targets: ``(B, ...)``.

    Returns:
        None where the loss is no mean or sum over examples.

    >>> loss = per_example_loss(nn.CrossEntropyLoss(), torch.randn(5, 3), torch.arange(5) % 3)
    >>> loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    tensor([1.0986, 1.0986])
    >>> weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    >>> per_example_loss(weighted, torch.randn(5, 3), torch.arange(5) % 3) is None
    True
    """

    def one_by_one(outputs: Tensor, targets: Tensor) -> Tensor:
        def one(output: Tensor, target: Tensor) -> Tensor:
            return loss_fn(output[None], target[None]).reshape(())

        found: Tensor = torch.func.vmap(one)(outputs, targets)
        return found

    candidates: list[BatchLoss] = [one_by_one]
    if isinstance(loss_fn, nn.Module) and getattr(loss_fn, "reduction", "") in ("mean", "sum"):
        unreduced = copy.copy(loss_fn)
        unreduced.reduction = "none"  # type: ignore[assignment]  # a string, not a submodule
        mean = loss_fn.reduction == "mean"

        def rows(outputs: Tensor, targets: Tensor) -> Tensor:
            found: Tensor = unreduced(outputs, targets)
            if found.dim() < 2:
                return found
            return found.flatten(1).mean(1) if mean else found.flatten(1).sum(1)

        candidates.append(rows)
    # other outputs of the same size, so that no coincidence passes
    probes = [(outputs, targets), (1.5 * outputs.flip(0), targets)]
    size = len(outputs)
    for candidate in candidates:
        try:
            means = [_close(candidate(*p).double().mean(), loss_fn(*p)) for p in probes]
            sums = [_close(candidate(*p).double().sum(), loss_fn(*p)) for p in probes]
        except Exception:  # vmap may meet anything in a user's loss
            continue
        if all(means):
            return candidate
        if all(sums):
            return functools.partial(_scaled, candidate, size)
    return None


def _scaled(loss: BatchLoss, size: int, outputs: Tensor, targets: Tensor) -> Tensor:
    return size * loss(outputs, targets)


def _close(first: Tensor, second: Tensor) -> bool:
    return bool(torch.isclose(first.double(), second.double(), rtol=1e-5, atol=1e-8))


@dataclass(frozen=True)
class ModuleObjective:
    """A loss on one batch as a function of chosen layers; what estimators may ask of.

    Attributes:
        evaluator: the module on its batch.
        whole: all parameters.
        names: the chosen ones, from input to output.
        signs: what the forward pass takes the sign of.
        smooth_loss: the loss is differentiable in the outputs.
    """

    evaluator: ModuleEvaluator
    whole: Params
    names: tuple[str, ...]
    signs: SignCount
    smooth_loss: bool

    @property
    def params(self) -> Params:
        """The chosen layers as they are."""
        return {name: self.whole[name] for name in self.names}

    @functools.cached_property
    def _base(self) -> Params:
        return {name: w for name, w in self.whole.items() if name not in self.names}

    @functools.cached_property
    def _block(self) -> int:
        if self.evaluator.couples:
            return len(self.evaluator.inputs)
        return affordable_examples(self.evaluator, self.whole)

    def only(self, names: Sequence[str]) -> ModuleObjective:
        """The same loss as a function of these layers alone."""
        return replace(self, names=tuple(names))

    def initial_params(self, seed: int) -> Params:
        """The layers as they are: a diagnosis is of the network at hand, whatever the seed."""
        return {name: w.clone() for name, w in self.params.items()}

    def loss(self, params: Params) -> Tensor:
        """Loss of the batch, ``()`` float64."""
        self._check(params)
        return self.losses({name: w[None] for name, w in params.items()})[0]

    def losses(self, population: Population) -> Tensor:
        """Loss of every member, ``(P,)`` float64."""
        return self.evaluator.losses(population, self.whole)

    def decreases(self, params: Params, population: Population) -> Tensor:
        """loss(params) - loss(member), ``(P,)`` float64, differences taken per example."""
        return self.evaluator.decreases({**self.whole, **params}, population)

    def best_step(
        self, gradient: Params, steps: Mapping[str, tuple[float, ...]]
    ) -> dict[str, tuple[float, float]]:
        """Of every layer alone the best step length against its normalized gradient.

        Args:
            gradient: of the chosen layers.
            steps: step lengths of each.

        Returns:
            Step length and decrease of the loss; NaN where the gradient is zero.
        """
        found = {}
        for name, direction in gradient.items():
            norm = float(direction.double().norm())
            if not 0 < norm < float("inf"):
                found[name] = (float("nan"), float("nan"))
                continue
            line = LinePopulation({name: self.whole[name]}, {name: direction / norm}, steps[name])
            falls = self.decreases(self.params, line)
            best = int(falls.nan_to_num(-float("inf")).argmax())
            found[name] = (steps[name][best], float(falls[best]))
        return found

    def surrogate_gradient(
        self, params: Params, surrogate: Any, weight_surrogate: Any = None
    ) -> Params:
        """Backpropagation with a surrogate derivative for every sign.

        Args:
            params: the chosen layers.
            surrogate: derivative of the activations; of weights, where they alone have signs.
            weight_surrogate: derivative of the sign of a weight; hardtanh if left out, so that a
                threshold of the activations is no threshold of the weights.
        """
        if weight_surrogate is None:
            weights_alone = self.signs.weights and not self.signs.activations
            weight_surrogate = surrogate if weights_alone else surrogates.create("hardtanh")
        whole = draws(surrogate, weight_surrogate)
        return self._backward(params, (surrogate, weight_surrogate), whole)

    def own_gradient(self, params: Params) -> Params:
        """Backpropagation as the module does it itself."""
        return self._backward(params, None, False)

    def _backward(self, params: Params, rules: tuple[Any, Any] | None, whole: bool) -> Params:
        self._check(params)
        program, size = self.evaluator.program, len(self.evaluator.inputs)

        def loss(leaves: Params, start: int, stop: int) -> Tensor:
            inputs, targets = (t[start:stop] for t in (self.evaluator.inputs,
                                                       self.evaluator.targets))  # fmt: skip
            state = {**self._base, **leaves}
            if rules is None:
                return program.loss(program.whole(inputs, state), targets).sum() / size
            # the parameters that are held still have signs of weights too
            weights = list(state.values())
            with surrogate_derivatives(rules[0], rules[1], weights), written_signs():
                outputs = program.whole(inputs, state)
            return program.loss(outputs, targets).sum() / size

        return blocked_gradient(params, size, size if whole else self._block, loss)

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Loss differences over ±epsilon of every weight, float64."""
        self._check(params)
        return module_differences(self.evaluator, {**self.whole, **params}, epsilon, list(params))

    def some_differences(self, name: str, epsilon: float, coordinates: Tensor) -> Tensor:
        """Loss differences over ±epsilon of some flat coordinates ``(n,)`` of a layer, float64."""
        found = module_differences(
            self.evaluator, self.whole, epsilon, [name], coordinates={name: coordinates}
        )
        return found[name]

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str = "weights"
    ) -> NoisyPasses:
        """Forward passes in which every example has noise of its own on the weights.

        Raises:
            ValueError: the loss or the module couples the examples of a batch.
        """
        self._check(params)
        return NoisyPasses(
            self.evaluator, params, names, sigma=sigma, noise=noise, base=self._base,
            smooth_loss=self.smooth_loss,
        )  # fmt: skip

    def _check(self, params: Params) -> None:
        check_params(params, {name: self.whole[name].shape for name in self.names})
