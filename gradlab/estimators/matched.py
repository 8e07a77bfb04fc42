"""The matched straight-through gradient: a sampled smoothing, backpropagated by its own density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.binary.activations import Activation
from gradlab.estimators.base import above_zero
from gradlab.evaluation import noise, smoothing
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.objectives.base import LayeredObjective

# Floats of one layer's noise in flight: a megabyte each, a handful at a time; on a GPU, where every
# block has its launches to pay, half a gigabyte.
_BLOCK_FLOATS = 2**18
_GPU_BLOCK_FLOATS = 2**27


@dataclass(frozen=True)
class MatchedSmoothing:
    """The width of the weight smoothing that a matched surrogate belongs to.

    Args:
        sigma: standard deviation of every weight.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)

    @classmethod
    def create(cls, **options: Any) -> MatchedSmoothing:
        """From options, refusing unknown ones with the nearest valid."""
        for option in options:
            if option != "sigma":
                raise ValueError(unknown("option of surrogate matched", option, ["sigma"]))
        return cls(**options)


def example_blocks(size: int, inputs: Tensor) -> Sequence[tuple[int, int]]:
    """Half-open ranges of examples that are pushed through the network together."""
    floats = _GPU_BLOCK_FLOATS if inputs.is_cuda else _BLOCK_FLOATS
    return pop.chunks(size, max(512, floats // inputs.shape[1]))


def require_layered(objective: Any, what: str) -> LayeredObjective:
    """Refuse objectives whose pre-activations are not Gaussian under Gaussian weights."""
    if not isinstance(objective, LayeredObjective):
        raise ValueError(
            f"{what} perturbs the pre-activations of a layered model, which "
            f"{type(objective).__name__} is not: use nes."
        )
    model = getattr(objective, "model", None)
    if getattr(model, "weight", "real") != "real":
        raise ValueError(
            f"{what} needs real weights (sign(w)·h is not Gaussian when w is): use nes, "
            'or weight = "real".'
        )
    return objective


def require_signs(objective: LayeredObjective, what: str) -> None:
    """Refuse activations other than the sign at zero: the estimator flips signs."""
    activation = objective.activation
    if activation.levels != (-1.0, 1.0) or activation.thresholds != (0.0,):
        raise ValueError(
            f"{what} flips signs, and the activations of this network are others: use nes_local, "
            'or activation = "binary".'
        )


def spread_of(activation: Activation, hidden: Tensor, sigma: float, first: bool) -> Tensor:
    """Sigma times the norm of each example's input, ``(B, 1)``; constant for ±1 inputs."""
    if not first and activation.levels == (-1.0, 1.0):
        # The norm of a sign vector is constant: differentiating it would add a term that the
        # smoothed loss does not have.
        norm = torch.full_like(hidden[:, :1], hidden.shape[1]).sqrt()
    else:
        norm = hidden.norm(dim=1, keepdim=True)
    # An all-zero input (possible behind a clip) has a deterministic pre-activation of zero.
    return sigma * norm.clamp_min(1e-12)


def draw_noise(
    key: int, layer: int, pair: int, examples: tuple[int, int], width: int, device: torch.device
) -> Tensor:
    """Standard normals of one layer, ``(B, width)``, by pair of passes and example."""
    start = pair << 32
    return noise.normal(
        key,
        (start + examples[0], start + examples[1]),
        (0, width),
        stream=noise.ACTIVATION_STREAM + layer,
        device=device,
    )


def closed_form_losses(
    objective: LayeredObjective,
    hidden: Tensor,
    weights: tuple[Tensor, Tensor],
    targets: Tensor,
    sigma: float,
    *,
    first: bool,
    output_perturbed: bool = True,
) -> Tensor:
    """Expected losses ``(B,)`` over the last hidden layer's and the output layer's noise.

    Exact for any loss that depends on the outputs through their mean and variance (squared error).

    Args:
        objective: gives the activation and the loss.
        hidden: input of the last hidden layer, ``(B, n)``.
        weights: of the last hidden layer and of the output layer.
        targets: ``(B, m)``.
        sigma: standard deviation of the weights.
        first: whether ``hidden`` is the network's own input.
        output_perturbed: whether the output weights are noisy too.
    """
    spread = spread_of(objective.activation, hidden, sigma, first)
    mean, second = smoothing.moments(objective.activation, hidden @ weights[0].T, spread)
    variance = (second - mean.square()) @ weights[1].square().T
    if output_perturbed:
        variance = variance + sigma**2 * second.sum(dim=1, keepdim=True)
    return objective.expected_losses(mean @ weights[1].T, variance, targets)


def matched_gradient(objective: Any, params: Params, sigma: float, key: int) -> Params:
    """Backpropagation through one noisy forward pass with the smoothing's own density.

    Args:
        objective: a layered objective with real weights.
        params: one parameter dict.
        sigma: standard deviation of every weight.
        key: 64-bit noise key.

    Returns:
        A gradient like ``params``.
    """
    objective = require_layered(objective, "the matched STE")
    activation = objective.activation
    names = objective.layer_names
    leaves = {name: w.detach().clone().requires_grad_() for name, w in params.items()}
    total = {name: torch.zeros_like(w) for name, w in params.items()}
    size, dtype = len(objective.inputs), next(iter(params.values())).dtype
    for a, b in example_blocks(size, objective.inputs):
        hidden = objective.inputs[a:b].to(dtype)
        for layer, name in enumerate(names[:-2]):
            mean = hidden @ leaves[name].T
            spread = spread_of(activation, hidden, sigma, first=layer == 0)
            expected, _ = smoothing.moments(activation, mean, spread)
            drawn = draw_noise(key, layer, 0, (a, b), mean.shape[1], mean.device)
            sample = activation.forward((mean + spread * drawn).detach())
            hidden = expected + (sample - expected).detach()
        losses = closed_form_losses(
            objective,
            hidden,
            (leaves[names[-2]], leaves[names[-1]]),
            objective.targets[a:b].to(dtype),
            sigma,
            first=len(names) == 2,
        )
        gradients = torch.autograd.grad(losses.sum() / size, list(leaves.values()))
        for name, gradient in zip(leaves, gradients, strict=True):
            total[name] += gradient
    return total
