r"""Expected losses of a layered network by its moments: means and variances, layer by layer.

Behind a layer of noisy activations every pre-activation is a sum of many of them, nearly normal. So
from the mean and the second moment of one layer follow those of the next,

.. math:: z_j = \sum_i W_{ji} m_i, \qquad s_j^2 = \sum_i W_{ji}^2 v_i + V_{ji} E h_i^2, \qquad
    m'_j = E\,a(N(z_j, s_j^2)),

with v the variances of the units, W and V means and variances of the weights, and a the activation.
Real weights have V = σ²; the sign of a weight N(μ, σ²) has the mean
:math:`\operatorname{erf}(\mu/(\sigma\sqrt2))` and V = 1 - W². Of how units depend on each
other, only what the output y sees is kept: its variance is, to first order, a sum over all units of
the variance that is their own, not inherited from the layer below, times
:math:`(\partial y/\partial m)^2`. The loss of a network that sees every mean and variance exactly
(one hidden layer of real weights) is exact; otherwise the error falls with the width.

Propagated moments are those of fast dropout (Wang and Manning, ICML 2013), of probabilistic
networks (Shekhovtsov and Flach, "Feed-forward propagation in probabilistic neural networks with
categorical and max layers", ICLR 2019) and of deterministic variational inference (Wu et al., ICLR
2019, with all covariances). The first-order variance of the output follows from the law of total
variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradlab.binary.activations import Activation
from gradlab.evaluation import smoothing
from gradlab.objectives.base import LayeredObjective


class Weight(NamedTuple):
    """A layer's weights: their means, and variances or the variance of all, ``(out, in)`` each."""

    mean: Tensor
    variance: Tensor | float

    @classmethod
    def of(cls, weight: Tensor, sigma: float, *, binary: bool = False) -> Weight:
        """Of weights N(``weight``, sigma²), or of their signs."""
        if not binary:
            return cls(weight, sigma**2)
        mean = torch.erf(weight / (sigma * math.sqrt(2)))
        return cls(mean, 1 - mean.square())

    def noise(self, second: Tensor) -> Tensor:
        """Variance that the weights add to pre-activations, ``(B, out)`` or ``(B, 1)``."""
        if isinstance(self.variance, Tensor):
            return second @ self.variance.T
        return self.variance * second.sum(1, keepdim=True)


class Expected(NamedTuple):
    """What moments say of a batch's losses, all differentiable.

    Attributes:
        losses: ``(B,)``.
        output_slope: derivative of the outputs in the given means, ``(B, outputs, n)``.
        variance: of the outputs, ``(B, outputs)``.
    """

    losses: Tensor
    output_slope: Tensor
    variance: Tensor


def expected_losses(
    objective: LayeredObjective,
    weights: Sequence[Weight],
    mean: Tensor,
    second: Tensor,
    targets: Tensor,
) -> Expected:
    """Losses where the inputs of ``weights[0]`` are independent, with these moments.

    Args:
        objective: gives the activation and the loss.
        weights: of the layers behind, the last one that of the outputs.
        mean: of the units, ``(B, n)``.
        second: their second moment, ``(B, n)``.
        targets: ``(B, outputs)``.

    >>> from gradlab.objectives import TeacherStudent
    >>> objective = TeacherStudent(2, 3, seed=0, depth=1)
    >>> signs = torch.tensor([[1.0, -1.0]]).expand(3, 2)
    >>> weights = [Weight.of(torch.tensor([[0.5, 0.25]]), 0.1)]
    >>> found = expected_losses(objective, weights, signs, signs**2, objective.targets)
    >>> torch.allclose(found.losses, (0.25 - objective.targets[:, 0]) ** 2 + 2 * 0.1**2)
    True
    """
    variance = second - mean.square()
    own, slopes = [variance], []
    for weight in weights[:-1]:
        inherited = variance @ weight.mean.square().T
        mean, second, slope = through(objective.activation, weight, mean, second, inherited)
        slopes.append(slope)
        variance = second - mean.square()
        own.append(variance - slope.square() * inherited)
    last = weights[-1]
    step = last.mean.expand(len(mean), *last.mean.shape)
    total = own[-1] @ last.mean.square().T + last.noise(second)
    for weight, slope, share in zip(
        reversed(weights[:-1]), reversed(slopes), reversed(own[:-1]), strict=True
    ):
        step = (step * slope[:, None]) @ weight.mean
        total = total + (step.square() * share[:, None]).sum(2)
    return Expected(objective.expected_losses(mean @ last.mean.T, total, targets), step, total)


def through(
    activation: Activation,
    weight: Weight,
    mean: Tensor,
    second: Tensor,
    inherited: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """First and second moment behind one layer, ``(B, out)``, and the slope of the first.

    Args:
        activation: of the layer.
        weight: of the layer.
        mean: of its inputs, ``(B, in)``.
        second: their second moment.
        inherited: variance of the pre-activations that the inputs' own gives them.
    """
    z = mean @ weight.mean.T
    # all inputs can be zero, behind a clip
    spread = (inherited + weight.noise(second)).clamp_min(1e-24).sqrt()
    first, second = smoothing.moments(activation, z, spread)
    return first, second, smoothing.slope(activation, z, spread)
