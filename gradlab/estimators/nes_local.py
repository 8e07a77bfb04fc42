r"""Local NES: evolution strategies in activation space, with fresh noise for every example.

Weight-space NES perturbs the weights once for the whole batch, so a batch of B examples gives one
number. But under W ~ N(μ, σ²) the pre-activation of one example with input h is exactly
:math:`N(\mu h, \sigma^2\lVert h\rVert^2)`, the loss is a mean of per-example losses, and each of
these has the same expectation whether or not examples share their noise. Drawing fresh noise per
example and neuron therefore estimates the same smoothed gradient without bias,

.. math:: \frac{\partial J}{\partial \mu_{i}} = \frac1B \sum_b
    E\left[(\ell_b - c_b)\,\frac{\xi_{b,i}}{\sigma\lVert h_b\rVert}\,h_b\right],

with B times more independent samples: the local reparameterization trick (Kingma, Salimans and
Welling 2015, section 2.3) applied to a score function. Three things reduce its variance further,
none adds bias:

- the score is conditioned on what the network sees: :math:`E[\xi \mid \text{level}]` in place of
  ξ (Rao-Blackwell, :func:`gradlab.evaluation.smoothing.score`);
- the last hidden layer is not sampled: the loss is replaced by its closed-form expectation over
  that layer's and the output layer's noise, and these two get its own, pathwise gradient;
- the baseline :math:`c_b` is each example's loss on a noise-free pass (one more forward pass), or
  with ``baseline="mean_field"`` the first-order expansion of the loss around the layer's mean
  activation m, :math:`F(m) + g\cdot(s - m)`, where F propagates means through the later layers and
  g is its gradient. The expansion's own contribution, g times the derivative of m, is added back
  exactly (MuProp: Gu, Levine, Sutskever and Mnih 2016). That added part is the matched STE: it
  becomes a control variate, and the score function corrects its bias. It pays in wide layers,
  where one sign matters little; at num_dim 4 a noise-free baseline is better.

``forward_passes`` counts the noisy passes and the baseline's, ``backward_passes`` the pathwise
parts, both in units of the whole network. The split-half cosine compares the two halves of the
batch, so unlike that of weight-space NES it counts the batch's own sampling noise as disagreement.

Of any ``nn.Module`` (:class:`gradlab.objectives.Classification`) all parameters may be noisy,
convolutions, binary weights and scales of normalization included, each example with weights of its
own: :mod:`gradlab.evaluation.module.noisy` says how, and which scores are conditioned. Of closed
forms only the derivative of the output layer is left, no baseline is expanded, and a noise-free
baseline that would cancel from mirrored passes costs nothing. ``noise="weights"`` estimates the
same smoothed gradient as NES in weight space, without bias. ``noise="positions"`` gives every
position of a convolution noise of its own. That is **another smoothing**, since positions share
their weights, and not always cheaper: thin convolutions have more positions than weights to draw
noise for. For fully connected layers the two are the same. Examples must not interact (no
train-mode BatchNorm).

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=8, batch_size=4096, seed=0)
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = NESLocal(passes=2).estimate(objective, params, generator=generator)
>>> estimate.forward_passes
3.0
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.estimators import nes_local_module
from gradlab.estimators.base import (
    GradientEstimate,
    OneEstimate,
    above_zero,
    one_of,
    require_finite,
    split_half_diagnostics,
    true_or_false,
)
from gradlab.estimators.matched import (
    closed_form_losses,
    draw_noise,
    example_blocks,
    require_layered,
    spread_of,
)
from gradlab.evaluation import gpu, smoothing
from gradlab.evaluation.module.noisy import NOISE
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import LayeredObjective, NoisyObjective, Objective
from gradlab.objectives.teacher_student import TeacherStudent

BASELINES = ("none", "noise_free", "mean_field")


@dataclass(frozen=True)
class NESLocal(OneEstimate):
    """Score-function gradient with per-example noise on the pre-activations.

    Args:
        sigma: standard deviation of every perturbed weight.
        passes: noisy forward passes.
        antithetic: passes 2k and 2k + 1 use noise of opposite sign.
        layers: names of the perturbed layers (all if left out); the gradient of the others is zero.
        condition_last: take the last hidden layer in closed form where it is perturbed and has one
            (not in an ``nn.Module``).
        baseline: what is subtracted from each example's loss: "none", "noise_free" or "mean_field"
            (not for an ``nn.Module``).
        noise: "weights", or "positions" for independent noise in every position of a convolution,
            which is another smoothing; the same where there are no convolutions.

    Raises:
        ValueError: an option out of range; an objective without layers, a built-in network with
            binary weights, a module whose examples interact or that positions cannot be found in.
    """

    sigma: float = 0.1
    passes: int = 2
    antithetic: bool = True
    layers: tuple[str, ...] | list[str] | None = None
    condition_last: bool = True
    baseline: str = "noise_free"
    noise: str = "weights"

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        positive_integer("passes", self.passes)
        true_or_false("antithetic", self.antithetic)
        true_or_false("condition_last", self.condition_last)
        one_of("baseline", self.baseline, BASELINES)
        one_of("noise", self.noise, NOISE)
        if self.layers is not None and not (isinstance(self.layers, list | tuple) and self.layers):
            raise ValueError(
                f"layers is {self.layers!r}: give a list of layer names, or leave it out for all."
            )

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The mean over ``passes`` noisy passes."""
        if isinstance(objective, NoisyObjective) and not isinstance(objective, LayeredObjective):
            return nes_local_module.estimate(
                objective, params, draw_key(generator), sigma=self.sigma, passes=self.passes,
                antithetic=self.antithetic, layers=self.layers, baseline=self.baseline,
                noise=self.noise,
            )  # fmt: skip
        layered = require_layered(objective, "nes_local")
        params = require_finite(params)
        perturbed = set(layered.layer_names if self.layers is None else self.layers)
        for name in perturbed:
            if name not in layered.layer_names:
                raise ValueError(unknown("layer", name, layered.layer_names))
        key = draw_key(generator)
        size = len(layered.inputs)
        middle = size // 2
        halves = []
        # Examples are independent, so the two halves of the batch are two independent estimates.
        fused = self._fused(objective, params, perturbed)
        for start, stop in ((0, middle), (middle, size)):
            if fused is not None and start < stop:
                halves.append(fused(key, start, stop))
                continue
            total = {name: torch.zeros_like(w) for name, w in params.items()}
            for low, high in example_blocks(stop - start, layered.inputs):
                block = (start + low, start + high)
                _Block(self, layered, params, perturbed, key, block).add_to(total)
            halves.append(total)
        gradient = {name: (halves[0][name] + halves[1][name]) / size for name in params}
        diagnostics = {}
        if middle:
            chosen = [{n: half[n] for n in half if n in perturbed} for half in halves]
            diagnostics = split_half_diagnostics((chosen[0], chosen[1]), self.passes)
        forward, backward = self._cost(layered, perturbed)
        return GradientEstimate(
            gradient,
            forward_passes=forward,
            backward_passes=backward,
            diagnostics=diagnostics,
        )

    def _fused(
        self, objective: object, params: Params, perturbed: set[str]
    ) -> Callable[[int, int, int], Params] | None:
        """One GPU kernel for the sums over a range of examples, where it can compute them."""
        if not (isinstance(objective, TeacherStudent) and objective.inputs.is_cuda):
            return None
        whole = perturbed == set(objective.layer_names) and self.condition_last
        fits = whole and self.baseline != "mean_field"
        if not fits or gpu.available(objective.inputs.device) is not None:
            return None
        if gpu.local_nes_unsupported(objective.model, objective.inputs, params) is not None:
            return None

        def total(key: int, start: int, stop: int) -> Params:
            found = gpu.local_nes_gradient(
                objective.model, objective.inputs[start:stop], objective.targets[start:stop],
                params, key=key, sigma=float(self.sigma), passes=self.passes,
                antithetic=self.antithetic, baseline=self.baseline, first_example=start,
            )  # fmt: skip
            return {name: found[name].to(w.dtype) for name, w in params.items()}

        return total

    def _cost(self, objective: LayeredObjective, perturbed: set[str]) -> tuple[float, float]:
        """Forward and backward passes, a part of the network as its share of the layers."""
        names = objective.layer_names
        head = 2 if self.condition_last and names[-2] in perturbed else 1
        pathwise = any(name in perturbed for name in names[-head:])
        forward, backward = float(self.passes), self.passes * head / len(names) * pathwise
        if self.baseline == "noise_free":
            forward += 1
        if self.baseline == "mean_field":
            # Behind the first layer once; behind a later one anew for every noisy pass.
            for layer, name in enumerate(names[: len(names) - head]):
                if name in perturbed:
                    share = (len(names) - layer - 1) / len(names)
                    forward += share * (1 if layer == 0 else self.passes)
                    backward += share * (1 if layer == 0 else self.passes)
        return forward, backward

    def label(self) -> str:
        """``local NES (2 passes)``, with options that are not the default."""
        text = f"local NES ({self.passes} pass{'es' if self.passes > 1 else ''})"
        text += "" if self.sigma == 0.1 else f" σ={self.sigma:g}"
        text += "" if self.antithetic else " not antithetic"
        text += "" if self.condition_last else " unconditioned"
        text += {"none": " no baseline", "noise_free": "", "mean_field": " + matched STE"}[
            self.baseline
        ]
        text += "" if self.noise == "weights" else " by position"
        return text + ("" if self.layers is None else f" on {', '.join(self.layers)}")


@dataclass(frozen=True)
class _Expansion:
    """The loss to first order around a layer's mean activation, ``(B,)`` and ``(B, n)``."""

    value: Tensor
    slope: Tensor
    mean: Tensor
    gradient: Tensor


@dataclass
class _Score:
    """What one sampled layer contributes: its score, input, sample, and the loss's expansion."""

    name: str
    score: Tensor
    inputs: Tensor
    sample: Tensor
    expansion: _Expansion | None = None


class _Block:
    """Summed gradients of one block of examples."""

    def __init__(
        self,
        options: NESLocal,
        objective: LayeredObjective,
        params: Params,
        perturbed: set[str],
        key: int,
        block: tuple[int, int],
    ) -> None:
        self.options = options
        self.objective = objective
        self.params = params
        self.perturbed = perturbed
        self.key = key
        self.block = block
        dtype = next(iter(params.values())).dtype
        self.inputs = objective.inputs[block[0] : block[1]].to(dtype)
        self.targets = objective.targets[block[0] : block[1]].to(dtype)
        names = objective.layer_names
        self.conditioned = options.condition_last and names[-2] in perturbed
        self.sampled = names[:-2] if self.conditioned else names[:-1]
        self.head = names[-2:] if self.conditioned else names[-1:]

    def add_to(self, total: Params) -> None:
        """Add this block's gradient, summed over examples and averaged over passes."""
        passes = self.options.passes
        baseline: Tensor | float = 0.0
        if self.options.baseline == "noise_free":
            hidden = self.inputs
            for name in self.sampled:
                hidden = self.objective.activation.forward(hidden @ self.params[name].T)
            baseline = self._head_losses(hidden, self.params)
        first_expansion: _Expansion | None = None
        for index in range(passes):
            hidden = self.inputs
            scores: list[_Score] = []
            for layer, name in enumerate(self.sampled):
                hidden = self._layer(index, layer, name, hidden, scores)
                if self.options.baseline == "mean_field" and name in self.perturbed:
                    # The first layer's expansion does not depend on the noise: taken once.
                    expansion = first_expansion if layer == 0 else None
                    expansion = expansion or self._expand(layer, name, scores[-1])
                    scores[-1].expansion = expansion
                    first_expansion = expansion if layer == 0 else first_expansion
            trained = [name for name in self.head if name in self.perturbed]
            leaves = {name: self.params[name].detach().clone() for name in self.head}
            for name in trained:
                leaves[name].requires_grad_()
            losses = self._head_losses(hidden, leaves)
            if trained:
                gradients = torch.autograd.grad(losses.sum(), [leaves[name] for name in trained])
                for name, gradient in zip(trained, gradients, strict=True):
                    total[name] += gradient / passes
            residual = losses.detach() - baseline
            for score in reversed(scores):
                reward = residual
                if score.expansion is not None:
                    linear = (score.expansion.slope * (score.sample - score.expansion.mean)).sum(1)
                    reward = residual - score.expansion.value - linear
                    # A later layer's linear term has mean zero given this layer's sample: leaving
                    # it out of the earlier layers' rewards costs no bias and saves variance.
                    residual = residual - linear
                    total[score.name] += score.expansion.gradient / passes
                total[score.name] += (score.score * (reward / passes)[:, None]).T @ score.inputs

    def _layer(
        self, index: int, layer: int, name: str, hidden: Tensor, scores: list[_Score]
    ) -> Tensor:
        activation = self.objective.activation
        mean = hidden @ self.params[name].T
        if name not in self.perturbed:
            return activation.forward(mean)
        spread = spread_of(activation, hidden, self.options.sigma, first=layer == 0)
        pair = index // 2 if self.options.antithetic else index
        drawn = draw_noise(self.key, layer, pair, self.block, mean.shape[1], mean.device)
        if self.options.antithetic and index % 2:
            drawn = -drawn
        sample = activation.forward(mean + spread * drawn)
        weight = smoothing.score(activation, mean, spread, drawn)
        scores.append(_Score(name, weight, hidden, sample))
        return sample

    def _expand(self, layer: int, name: str, score: _Score) -> _Expansion:
        """The loss around a layer's mean activation, means propagated through the later layers."""
        activation, sigma = self.objective.activation, self.options.sigma
        weight = self.params[name].detach().clone().requires_grad_()
        spread = spread_of(activation, score.inputs, sigma, first=layer == 0)
        mean, _ = smoothing.moments(activation, score.inputs @ weight.T, spread)
        point = mean.detach().requires_grad_()
        hidden = point
        for later in self.sampled[layer + 1 :]:
            z = hidden @ self.params[later].T
            if later in self.perturbed:
                spread = spread_of(activation, hidden, sigma, first=False)
                hidden, _ = smoothing.moments(activation, z, spread)
            else:
                hidden = activation.forward(z)
        value = self._head_losses(hidden, self.params)
        if value.requires_grad:
            (slope,) = torch.autograd.grad(value.sum(), point)
        else:
            # An unperturbed quantized layer in between: the expansion is a constant.
            slope = torch.zeros_like(mean)
        (gradient,) = torch.autograd.grad((slope * mean).sum(), weight)
        return _Expansion(value.detach(), slope, mean.detach(), gradient)

    def _head_losses(self, hidden: Tensor, weights: Params) -> Tensor:
        """Per-example losses behind the sampled layers, in expectation over the rest's noise."""
        names = self.objective.layer_names
        noisy_output = names[-1] in self.perturbed
        if self.conditioned:
            return closed_form_losses(
                self.objective,
                hidden,
                (weights[names[-2]], weights[names[-1]]),
                self.targets,
                self.options.sigma,
                first=len(names) == 2,
                output_perturbed=noisy_output,
            )
        outputs = hidden @ weights[names[-1]].T
        variance = torch.zeros_like(outputs)
        if noisy_output:
            variance = variance + self.options.sigma**2 * hidden.square().sum(1, keepdim=True)
        return self.objective.expected_losses(outputs, variance, self.targets)
