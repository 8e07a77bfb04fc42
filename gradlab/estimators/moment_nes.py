r"""Moment NES: local NES with most of its noise integrated away, without a bias.

The smoothed loss is that of NES and of :mod:`nes_local <gradlab.estimators.nes_local>`: weights
N(μ, σ²), fresh noise for every example, so that a hidden unit is a sign with the mean
:math:`m = \operatorname{erf}(z/(s\sqrt2))`, :math:`s = \sigma\lVert h\rVert`, given those below.
As there, all layers but the last hidden one are sampled, and behind them the loss F has a closed
form. What differs is how the gradient of the sampled layers is made. Write
:math:`G_k(h_{k-1})` for E F given the signs below layer k.

**An approximation of** :math:`G_k` that is cheap and differentiable: means and variances are
propagated to the output (:mod:`gradlab.estimators.moments`, :mod:`moment_propagation
<gradlab.estimators.moment_propagation>`). Call it :math:`\hat G_k`, its slope in the layer's means
:math:`g_k`, and :math:`e_k = h_k - m_k`.

**Between layers: derivatives at the sample.** Layer k's gradient needs
:math:`\tfrac12[\hat G_{k+1}(h_i = +) - \hat G_{k+1}(h_i = -)]` for every unit i. The derivative
:math:`(g_{k+1} \odot \partial m_{k+1}/\partial z_{k+1})W_{k+1}` at the sample is close to it; for
one random unit of every ``flip_every``-th example the difference itself is computed, and what it
has more than the derivative is added, multiplied by the number of choices. This is unbiased for
:math:`\hat G`; the derivative alone is not, and with F's slope instead of :math:`\hat G`'s it would
be the matched STE.

**What** :math:`\hat G` **misses: scores.** The rest of layer k,

.. math:: R_k = \hat G_{k+1}(h_k) - \hat G_k - g_k \cdot e_k
    - \sum_o c_o \Big[(u_o \cdot e_k)^2 - \sum_i u_{oi}^2 e_{ki}^2\Big],
    \qquad u_o = \frac{\partial y_o}{\partial m_k},

(:math:`\hat G_{L+1} = F`, c the loss's curvature in y) is the reward of all earlier layers' scores
and of its own. The linear term and the products of *different* units' deviations have mean zero
given the layer below, so that they cost no bias, and the squared error is mostly such products.

Unbiased for any network and any σ, for the approximation enters as a control variate only; where it
is bad, the variance is large, and the split-half cosine says so. With fresh weights and 32 or 64
units in three hidden layers, the gradient of a batch of 160,000 has a cosine of .99 to the exact
one in every layer, for less than four passes; that of a batch of 256 is still mostly noise in the
first layers, where the biased :mod:`moment_propagation <gradlab.estimators.moment_propagation>` and
the matched STE are better (``benchmarks/moment_nes.py``).

Related: MuProp (Gu, Levine, Sutskever and Mnih 2016) expands around means without variances and
to first order; local expectation gradients (Titsias and Lázaro-Gredilla 2015) flip every unit;
Gaussian pre-activations as in fast dropout (Wang and Manning 2013). The combination was derived
here and is held to an enumeration of all signs by the tests.

It needs a layered objective with real weights and sign activations, no ``nn.Module``: others take
``nes_local``.
``forward_passes`` and ``backward_passes`` count multiplications, in units of those that a forward
pass takes, and of twice as many. The split-half cosine compares the two halves of the batch.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=8, batch_size=4096, seed=0)
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = MomentNES().estimate(objective, params, generator=generator)
>>> estimate.gradient["layers.0.weight"].shape
torch.Size([8, 8])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.estimators.base import (
    GradientEstimate,
    OneEstimate,
    above_zero,
    require_finite,
    split_half_diagnostics,
)
from gradlab.estimators.matched import (
    closed_form_losses,
    draw_noise,
    example_blocks,
    require_layered,
    require_signs,
    spread_of,
)
from gradlab.estimators.moments import Expected, Weight, expected_losses
from gradlab.evaluation import smoothing
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import LayeredObjective, Objective

# Noise that chooses units lies behind that of the layers.
_CHOICE = 1_000


@dataclass(frozen=True)
class MomentNES(OneEstimate):
    """Local NES with control variates from propagated moments.

    Args:
        sigma: standard deviation of every weight.
        passes: independent samples of all layers.
        draws: samples of the last sampled layer in each pass, for one of the layers before it; in
            mirrored pairs.
        flip_every: one example of so many has a unit flipped in each earlier layer.

    Raises:
        ValueError: an option out of range; an objective without layers, with binary weights, or
            with activations other than signs.
    """

    sigma: float = 0.1
    passes: int = 1
    draws: int = 2
    flip_every: int = 8

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        for name in ("passes", "draws", "flip_every"):
            positive_integer(name, getattr(self, name))

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The mean over passes."""
        layered = require_layered(objective, "moment_nes")
        require_signs(layered, "moment_nes")
        params = require_finite(params)
        key = draw_key(generator)
        size = len(layered.inputs)
        middle = size // 2
        halves = []
        for start, stop in ((0, middle), (middle, size)):
            total = {name: torch.zeros_like(w) for name, w in params.items()}
            for low, high in example_blocks(stop - start, layered.inputs):
                _Block(self, layered, params, key, (start + low, start + high)).add_to(total)
            halves.append(total)
        gradient = {name: (halves[0][name] + halves[1][name]) / size for name in params}
        diagnostics = {}
        if middle:
            diagnostics = split_half_diagnostics((halves[0], halves[1]), self.passes)
        forward, backward = self._cost([params[name].numel() for name in layered.layer_names])
        return GradientEstimate(
            gradient, forward_passes=forward, backward_passes=backward, diagnostics=diagnostics
        )

    def _cost(self, sizes: list[int]) -> tuple[float, float]:
        """Passes, from the number of weights of each layer: multiplications for one example."""
        sampled = max(len(sizes) - 2, 0)
        head = (self.draws if sampled else 1) * sum(sizes[-2:])
        # outputs forwards, gradients of the weights backwards
        forward = backward = float(sum(sizes[:-2]) + head)
        for layer in range(sampled):
            # means, variances, and the slope of the outputs
            expansion = 3 * sum(sizes[layer + 1 :])
            if layer or sampled == 1:
                forward, backward = forward + expansion, backward + expansion
            if layer < sampled - 1:
                backward += sizes[layer + 1]
                forward += 2 * 3 * sum(sizes[layer + 2 :]) / self.flip_every
        whole = sum(sizes) / self.passes
        return forward / whole, backward / (2 * whole)

    def label(self) -> str:
        """``moment NES (1 pass)``, with options that are not the default."""
        text = f"moment NES ({self.passes} pass{'es' if self.passes > 1 else ''})"
        text += "" if self.sigma == 0.1 else f" σ={self.sigma:g}"
        text += "" if self.draws == 2 else f" {self.draws} draw{'s' * (self.draws > 1)}"
        return text + ("" if self.flip_every == 8 else f" flip every {self.flip_every}")


@dataclass(frozen=True)
class _Layer:
    """A sampled layer: what it saw and what it drew.

    ``inputs`` is ``(B, n)``, ``pre_activation``, ``mean`` and ``slope`` of the mean in it are
    ``(B, m)``; ``samples`` and ``scores`` hold one ``(B, m)`` for each draw.
    """

    inputs: Tensor
    pre_activation: Tensor
    spread: Tensor
    mean: Tensor
    slope: Tensor
    samples: list[Tensor]
    scores: list[Tensor]


@dataclass(frozen=True)
class _Expansion:
    """Ĝ of a layer at its mean ``(B,)``, slopes ``(B, m)``, and the curvature's parts."""

    value: Tensor
    slope: Tensor
    output_slope: Tensor
    curvature: Tensor

    def remainder(self, value: Tensor, deviation: Tensor) -> Tensor:
        """What the expansion leaves of a loss ``(B,)`` at ``deviation`` from the mean."""
        steps = self.output_slope * deviation[:, None]
        products = steps.sum(2).square() - steps.square().sum(2)
        linear = (self.slope * deviation).sum(1)
        return value - self.value - linear - (self.curvature * products).sum(1)


class _Block:
    """Summed gradients of one block of examples."""

    def __init__(
        self,
        options: MomentNES,
        objective: LayeredObjective,
        params: Params,
        key: int,
        block: tuple[int, int],
    ) -> None:
        self.options, self.objective, self.key, self.block = options, objective, key, block
        self.names = objective.layer_names
        self.weights = [params[name] for name in self.names]
        dtype = self.weights[0].dtype
        self.inputs = objective.inputs[block[0] : block[1]].to(dtype)
        self.targets = objective.targets[block[0] : block[1]].to(dtype)
        self.sampled = max(len(self.names) - 2, 0)

    def add_to(self, total: Params) -> None:
        """Add this block's gradient, summed over examples and averaged over passes."""
        for index in range(self.options.passes):
            self._add_pass(index, total)

    def _add_pass(self, index: int, total: Params) -> None:
        layers: list[_Layer] = []
        hidden = [self.inputs]
        for layer in range(self.sampled):
            layers.append(self._sample(index, layer, hidden[0]))
            hidden = layers[-1].samples
        losses = []
        for drawn in hidden:
            leaves = [w.clone().requires_grad_() for w in self.weights[-2:]]
            value = self._losses(drawn, leaves)
            gradients = torch.autograd.grad(value.sum(), leaves)
            for name, gradient in zip(self.names[-2:], gradients, strict=True):
                total[name] += gradient / (len(hidden) * self.options.passes)
            losses.append(value.detach())
        later = torch.zeros_like(self.inputs[:, 0])  # remainders of the later layers
        expansion: _Expansion | None = None
        for layer in reversed(range(self.sampled)):
            here = layers[layer]
            if expansion is None:  # the last: the loss itself is behind it
                expansion = self._expand(layer, here.mean)
                slope, rewards = expansion.slope * here.slope, []
                for value, sample in zip(losses, here.samples, strict=True):
                    rewards.append(expansion.remainder(value, sample - here.mean))
                scored = [s * r[:, None] for s, r in zip(here.scores, rewards, strict=True)]
                pull = slope + sum(scored[1:], scored[0]) / len(scored)
                later = sum(rewards[1:], rewards[0]) / len(rewards)
            else:
                behind, value = layers[layer + 1], expansion.value
                steps = (expansion.slope * behind.slope) @ self.weights[layer + 1]
                steps = self._with_flips(index, layer, here, behind, steps)
                pull = steps * here.slope + here.scores[0] * later[:, None]
                if layer:  # the first one's own remainder is nobody's reward
                    expansion = self._expand(layer, here.mean)
                    later = later + expansion.remainder(value, here.samples[0] - here.mean)
            total[self.names[layer]] += pull.T @ here.inputs / self.options.passes

    def _sample(self, index: int, layer: int, hidden: Tensor) -> _Layer:
        """Signs of one layer and their scores."""
        activation = self.objective.activation
        z = hidden @ self.weights[layer].T
        spread = spread_of(activation, hidden, self.options.sigma, first=layer == 0)
        mean, _ = smoothing.moments(activation, z, spread)
        draws = self.options.draws if layer == self.sampled - 1 else 1
        samples, scores = [], []
        for draw in range(draws):
            # mirrored pairs: what is even in the noise cancels from the scores
            pair = index * self.options.draws + draw // 2
            noise = draw_noise(self.key, layer, pair, self.block, z.shape[1], z.device)
            noise = -noise if draw % 2 else noise
            samples.append(activation.forward(z + spread * noise))
            scores.append(smoothing.score(activation, z, spread, noise))
        slope = smoothing.slope(activation, z, spread)
        return _Layer(hidden, z, spread, mean, slope, samples, scores)

    def _losses(self, hidden: Tensor, weights: list[Tensor]) -> Tensor:
        """Expected losses behind the sampled layers."""
        return closed_form_losses(
            self.objective, hidden, (weights[0], weights[1]), self.targets,
            self.options.sigma, first=not self.sampled,
        )  # fmt: skip

    def _expand(self, layer: int, mean: Tensor) -> _Expansion:
        point = mean.detach().requires_grad_()
        found = self._expected(layer, point, self.targets)
        slope, curvature = torch.autograd.grad(found.losses.sum(), [point, found.variance])
        return _Expansion(found.losses.detach(), slope, found.output_slope.detach(), curvature)

    def _expected(self, layer: int, mean: Tensor, targets: Tensor) -> Expected:
        """Ĝ where a layer's signs have these means, ``(B, n)``."""
        weights = [Weight.of(w, self.options.sigma) for w in self.weights[layer + 1 :]]
        return expected_losses(self.objective, weights, mean, torch.ones_like(mean), targets)

    def _with_flips(
        self, index: int, layer: int, here: _Layer, behind: _Layer, steps: Tensor
    ) -> Tensor:
        """Derivatives in a layer's signs with the differences of random units in their place."""
        every, units = self.options.flip_every, steps.shape[1]
        start, stop = self.block
        # every example has the same chance, whatever the blocks
        drawn = draw_noise(self.key, _CHOICE + 2 * layer, index, (0, 1), 1, steps.device)
        offset = int(torch.special.ndtr(drawn.double()) * every) % every
        chosen = torch.arange(start, stop, device=steps.device)
        chosen = ((chosen + offset) % every == 0).nonzero()[:, 0]
        drawn = draw_noise(self.key, _CHOICE + 2 * layer + 1, index, self.block, 1, steps.device)
        unit = (torch.special.ndtr(drawn[chosen, 0].double()) * units).long().clamp_max(units - 1)
        column = self.weights[layer + 1].T[unit]
        sign = here.samples[0][chosen, unit][:, None]
        ends = []
        for end in (1, -1):
            z = behind.pre_activation[chosen] + (end - sign) * column
            spread = behind.spread[chosen]
            mean, _ = smoothing.moments(self.objective.activation, z, spread)
            ends.append(self._expected(layer + 1, mean, self.targets[chosen]).losses)
        difference = (ends[0] - ends[1]) / 2
        found = steps.clone()
        found[chosen, unit] += units * every * (difference - steps[chosen, unit])
        return found
