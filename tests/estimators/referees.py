"""Exact smoothed losses of tiny networks, by enumeration in float64.

The expectations share no code with the estimators: they use an activation's thresholds and levels,
which tests/binary pins down, and nothing else. Gradients are autograd's, of the enumerated sum.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.binary import activations
from gradlab.estimators import Estimator, GradientEstimate
from gradlab.evaluation import Params, Population
from gradlab.evaluation import population as pop
from gradlab.models import BinarizedMLP

ROOT_2 = math.sqrt(2.0)
# Nodes of Gauss-Legendre quadrature for the clip to [0, 1], which has a continuum of levels.
NODES = 40


def distribution(z: Tensor) -> Tensor:
    """Φ(z) with its digits in the lower tail."""
    return 0.5 * torch.special.erfc(-z / ROOT_2)


def density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)


@dataclass
class Layers:
    """The least that sampled estimators ask of an objective, in float64 and without any care."""

    model: BinarizedMLP
    inputs: Tensor
    targets: Tensor

    @property
    def layer_names(self) -> tuple[str, ...]:
        return self.model.layer_names

    @property
    def activation(self) -> activations.Activation:
        return self.model.activation_function

    def losses(self, population: Population) -> Tensor:
        members = self.model.effective_weights(pop.members(population))
        hidden = self.inputs.double()[None]
        for name in self.layer_names[:-1]:
            hidden = self.activation.forward(hidden @ members[name].double().mT)
        outputs = hidden @ members[self.layer_names[-1]].double().mT
        return ((outputs - self.targets) ** 2).mean(dim=(1, 2))

    def expected_losses(self, mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
        return ((mean - targets) ** 2 + variance)[:, 0]

    def repeated(self, copies: int) -> Layers:
        """Every example ``copies`` times: the same loss, with more noise to average over."""
        return Layers(self.model, self.inputs.repeat(copies, 1), self.targets.repeat(copies, 1))


def problem(
    num_dim: int,
    depth: int,
    activation: str = "binary",
    weight: str = "real",
    examples: int = 5,
    seed: int = 0,
) -> tuple[Layers, Params]:
    """A few random examples with random targets, and float32 weights of order one."""
    model = BinarizedMLP(num_dim, depth, activation, weight)
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(examples, num_dim, generator=generator)
    targets = torch.randn(examples, 1, generator=generator)
    params = {
        name: torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.initial_params(generator).items()
    }
    return Layers(model, inputs, targets), params


def repeated_estimates(
    estimator: Estimator, objective: Any, params: Params, seeds: int
) -> list[GradientEstimate]:
    """Independent estimates of the same gradient, one per seed."""
    return [
        estimator.estimate(objective, params, generator=torch.Generator().manual_seed(seed))
        for seed in range(seeds)
    ]


def levels_and_probabilities(
    activation: activations.Activation, mean: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Values (K,) that an activation takes at N(mean, spread²), and how often (..., K)."""
    if activation.thresholds is None:
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        nodes, weights = torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)
        values = torch.cat((torch.zeros(1), nodes, torch.ones(1)))
        below, above = distribution(-mean / spread), distribution((mean - 1) / spread)
        inside = weights * density((nodes - mean[..., None]) / spread[..., None])
        inside = inside / spread[..., None]
        return values.double(), torch.cat((below[..., None], inside, above[..., None]), -1)
    assert activation.levels is not None
    reached = [distribution((mean - t) / spread) for t in activation.thresholds]
    reached = [torch.ones_like(mean), *reached, torch.zeros_like(mean)]
    steps = [high - low for high, low in itertools.pairwise(reached)]
    return torch.tensor(activation.levels).double(), torch.stack(steps, dim=-1)


def clip_moments(mean: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """E clip(z, 0, 1) and E clip(z, 0, 1)², as differences of rectified Gaussians."""

    def first(m: Tensor) -> Tensor:
        return m * distribution(m / spread) + spread * density(m / spread)

    def second(m: Tensor) -> Tensor:
        return (m**2 + spread**2) * distribution(m / spread) + m * spread * density(m / spread)

    return first(mean) - first(mean - 1), second(mean) - second(mean - 1) - 2 * first(mean - 1)


def smoothed_loss(
    objective: Layers, params: Mapping[str, Tensor], sigmas: Mapping[str, Tensor]
) -> Tensor:
    """E of the mean squared error over W ~ N(params, sigmas²), for real weights.

    One example's neurons are independent given the layer before, so its expectation is a sum over
    the level patterns of each layer in turn. A tensor of zeros in ``sigmas`` leaves a layer exact.
    """
    activation = objective.activation
    names = objective.layer_names
    hidden = objective.inputs.double()[:, None]  # (examples, states, neurons)
    chance = torch.ones(len(hidden), 1, dtype=torch.float64)
    for name in names[:-1]:
        weight, sigma = params[name], sigmas[name]
        mean = hidden @ weight.T
        if not sigma.any():
            hidden = activation.forward(mean)
            continue
        # A state of zeros, behind a clip, has pre-activations of exactly zero.
        spread = (hidden**2 @ sigma.T**2).clamp_min(1e-24).sqrt()
        if activation.thresholds is None and name == names[-2]:
            return _clipped_head(objective, params, sigmas, chance, clip_moments(mean, spread))
        values, each = levels_and_probabilities(activation, mean, spread)
        zero = (hidden == 0).all(dim=-1)[..., None, None]
        at_zero = torch.zeros_like(each)
        at_zero[..., int((values <= float(activation.forward(torch.zeros(1)))).sum()) - 1] = 1
        each = torch.where(zero, at_zero, each)
        patterns = torch.tensor(list(itertools.product(range(len(values)), repeat=len(weight))))
        joint = torch.ones(*mean.shape[:2], len(patterns), dtype=torch.float64)
        for neuron in range(len(weight)):
            joint = joint * each[:, :, neuron][..., patterns[:, neuron]]
        chance = (chance[..., None] * joint).sum(dim=1)
        hidden = values[patterns].expand(len(chance), -1, -1)
    output, sigma = params[names[-1]], sigmas[names[-1]]
    error = (hidden @ output.T)[..., 0] - objective.targets.double()
    variance = (hidden**2 @ sigma.T**2)[..., 0]
    return (chance * (error**2 + variance)).sum(dim=1).mean()


def _clipped_head(
    objective: Layers,
    params: Mapping[str, Tensor],
    sigmas: Mapping[str, Tensor],
    chance: Tensor,
    moments: tuple[Tensor, Tensor],
) -> Tensor:
    name = objective.layer_names[-1]
    output, sigma = params[name], sigmas[name]
    mean, second = moments
    error = (mean @ output.T)[..., 0] - objective.targets.double()
    variance = (second - mean**2) @ output.T**2 + second @ sigma.T**2
    return (chance * (error**2 + variance[..., 0])).sum(dim=1).mean()


def smoothed_loss_of_signs(
    objective: Layers, params: Mapping[str, Tensor], sigmas: Mapping[str, Tensor]
) -> Tensor:
    """The same for binary weights: a sum over all sign patterns of the hidden weights.

    P(w = +1) = Φ(μ/σ); the real output layer's noise adds its variance.
    """
    names = objective.layer_names
    mean = torch.cat([params[name].flatten() for name in names[:-1]])
    sigma = torch.cat([sigmas[name].flatten() for name in names[:-1]])
    total = torch.zeros((), dtype=torch.float64)
    for pattern in itertools.product((-1.0, 1.0), repeat=len(mean)):
        signs = torch.tensor(pattern, dtype=torch.float64)
        chance = distribution(signs * mean / sigma).prod()
        total = total + chance * loss_of_signs(objective, params, sigmas, signs)
    return total


def loss_of_signs(
    objective: Layers,
    params: Mapping[str, Tensor],
    sigmas: Mapping[str, Tensor],
    signs: Tensor,
) -> Tensor:
    """Mean squared error with fixed hidden signs (flat), in expectation over the output layer."""
    names = objective.layer_names
    hidden, start = objective.inputs.double(), 0
    for name in names[:-1]:
        size = params[name].numel()
        weight = signs[start : start + size].reshape(params[name].shape)
        hidden, start = objective.activation.forward(hidden @ weight.T), start + size
    error = hidden @ params[names[-1]].T - objective.targets.double()
    return (error**2 + hidden**2 @ sigmas[names[-1]].T ** 2).mean()


Smoothed = Callable[[Layers, Mapping[str, Tensor], Mapping[str, Tensor]], Tensor]


def exact_gradients(
    smoothed: Smoothed,
    objective: Layers,
    params: Mapping[str, Tensor],
    sigma: float,
    layers: tuple[str, ...] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of a smoothed loss in the mean and in the width of each coordinate, float64.

    Args:
        smoothed: :func:`smoothed_loss` or :func:`smoothed_loss_of_signs`.
        objective: the network and its examples.
        params: the mean.
        sigma: the width, for the layers named in ``layers`` (all if left out); zero for others.
    """
    noisy = set(params if layers is None else layers)
    mean = {name: w.double().clone().requires_grad_() for name, w in params.items()}
    width = {
        name: torch.full_like(w, sigma if name in noisy else 0.0).requires_grad_()
        for name, w in mean.items()
    }
    leaves = [*mean.values(), *width.values()]
    gradients = torch.autograd.grad(smoothed(objective, mean, width), leaves, allow_unused=True)
    filled = [
        torch.zeros_like(w) if g is None else g for w, g in zip(leaves, gradients, strict=True)
    ]
    return dict(zip(mean, filled[: len(mean)], strict=True)), dict(
        zip(mean, filled[len(mean) :], strict=True)
    )


def flat(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in gradient.values()])


def z_scores(estimates: list[Mapping[str, Tensor]], exact: Mapping[str, Tensor]) -> Tensor:
    """How many standard errors the mean of independent estimates is from the truth, (d,).

    Rounding of 2e-6 of the gradient's norm counts as part of the error, so that a coordinate
    without variance is judged too.
    """
    samples, truth = torch.stack([flat(estimate) for estimate in estimates]), flat(exact)
    error = samples.std(dim=0) / math.sqrt(len(samples))
    return (samples.mean(dim=0) - truth) / (error**2 + (2e-6 * truth.norm()) ** 2).sqrt()


def relative_standard_error(
    estimates: list[Mapping[str, Tensor]], exact: Mapping[str, Tensor]
) -> float:
    """Norm of the standard errors over the norm of the truth: how small a bias would show."""
    samples = torch.stack([flat(estimate) for estimate in estimates])
    return float(samples.std(dim=0).norm() / math.sqrt(len(samples)) / flat(exact).norm())
