r"""Local expectation gradients: every weight's own expectation exact, the others' by one sample.

The gradient in the mean of one binary weight is an expectation over all the others,

.. math:: \frac{\partial J}{\partial\mu_i} = E_{b_{-i}} \sum_{b_i = \pm 1}
    \frac{\partial P(b_i)}{\partial\mu_i}\,f(b_i, b_{-i})
    = \frac{\varphi(a_i)}{\sigma}\,E_{b_{-i}}[f(b_i = +) - f(b_i = -)], \qquad a = \mu/\sigma,

so one draw of all signs serves every coordinate: the network is evaluated there and with each sign
flipped (Titsias and Lázaro-Gredilla, "Local expectation gradients for black box variational
inference", NIPS 2015). Unbiased for the gradient of the loss smoothed by N(μ, σ²); the variance is
only what the other weights leave. A real weight's own expectation is Gaussian and taken by the
two-node Gauss-Hermite rule,
:math:`[f(w_i = \mu_i + \sigma) - f(w_i = \mu_i - \sigma)]/2\sigma` with the other weights drawn:
exact where the loss is quadratic in it (the output layer under a squared error), a small bias
elsewhere.

The cost is what one pays for it: a sample takes 1 + d forward passes for d binary weights, and two
for each real weight. For the same number of passes DisARM draws (1 + d)/2 pairs; which one is
better depends on how the loss couples the weights. :mod:`gradlab.estimators.nes_cdg` computes the
same numbers for binary weights from an objective's coordinate differences.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1, weight="binary")
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> LocalExpectation().estimate(objective, params, generator=generator).forward_passes
25.0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero
from gradlab.estimators.bernoulli import (
    MEMBER_FLOATS,
    SignDistribution,
    label_of,
    sampled_estimate,
)
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class LocalExpectation(OneEstimate):
    """Exact expectations over one coordinate at a time, at sampled signs of the others.

    Args:
        samples: number of draws of all signs.
        sigma: standard deviation of the latent weights, which sets the probabilities.

    Raises:
        ValueError: an option out of range, or, when estimating, no binary weights.
    """

    samples: int = 1
    sigma: float = 0.1

    def __post_init__(self) -> None:
        positive_integer("samples", self.samples)
        above_zero("sigma", self.sigma)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""
        distribution = SignDistribution.of(objective, params, self.sigma, "local_expectation")
        binary, sigma = distribution.binary, distribution.sigma
        size, flips = len(binary), int(binary.sum())
        evaluations = torch.cat((torch.arange(size), (~binary.cpu()).nonzero()[:, 0]))

        def gradient_at(noise: Tensor) -> Tensor:
            drawn = distribution.drawn(noise)
            point = distribution.network_weights(drawn)
            flat = pop.flatten(point)
            # a flip of a binary weight, or the upper node of a real one; then the lower nodes
            upper = torch.where(binary, -flat, distribution.flat + sigma)
            lower = distribution.flat - sigma
            falls = torch.empty(len(evaluations), dtype=torch.float64, device=flat.device)
            for low, high in pop.chunks(len(evaluations), MEMBER_FLOATS // size):
                which = evaluations[low:high].to(flat.device)
                rows = torch.arange(high - low, device=flat.device)
                second = torch.arange(low, high, device=flat.device) >= size
                members = flat.repeat(high - low, 1)
                members[rows, which] = torch.where(second, lower[which], upper[which])
                population = pop.unflatten(members, params)
                falls[low:high] = objective.decreases(point, population)
            gradient = falls[:size] * torch.where(flat >= 0, 1.0, -1.0)
            gradient *= torch.exp(distribution.log_density) / sigma
            gradient[~binary] = (falls[size:] - falls[:size][~binary]) / (2 * sigma)
            return gradient

        return sampled_estimate(
            distribution,
            generator,
            self.samples,
            gradient_at,
            forward_passes=1.0 + flips + 2.0 * (size - flips),
        )

    def label(self) -> str:
        """``local expectation 1``, the number of samples, with sigma where it is not 0.1."""
        return label_of("local expectation", self.samples, self.sigma)
