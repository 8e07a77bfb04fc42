r"""The NES-CDG identity as an estimator: coordinate differences averaged over drawn signs.

For binary weights the gradient of the loss smoothed by N(μ, σ²) is a weighted average of
coordinate flips,

.. math:: \frac{\partial J}{\partial\mu_i} = \frac{\varphi(a_i)}{\sigma}\,
    E_{b_{-i}}[f(b_i = +) - f(b_i = -)], \qquad a = \mu/\sigma,

and with latent weights :math:`b\,\varepsilon/2` within ε of zero,
:math:`f(b_i = +) - f(b_i = -)` is what the coordinate discrete gradient
(:mod:`gradlab.estimators.cdg`) measures, times 2ε. So NES is CDG, smoothed over the signs of the
other weights: this estimator draws all signs ``samples`` times and asks the objective for its
coordinate differences there. The identity follows from
:math:`J = p_i E f(b_i = +) + (1 - p_i) E f(b_i = -)` with :math:`p = \Phi(a)`; the tests hold it to
an enumeration.

Unbiased, with the variance that the other weights' signs leave, and for binary weights the same
numbers as :mod:`gradlab.estimators.local_expectation`. What differs is the way: a
:class:`gradlab.objectives.TeacherStudent` finds all differences by sparse flips, with about as many
evaluations as there are neurons. The cost that is reported stays the definition's, two forward
passes per weight and sample. Real weights are drawn from their Gaussian, too, and differenced over
±σ/10 there: exact where the loss is quadratic in them, elsewhere the gradient of a loss smoothed by
a third of a percent of σ² more.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1, weight="binary")
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> NESCDG(samples=3).estimate(objective, params, generator=generator).forward_passes
120.0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero
from gradlab.estimators.bernoulli import SignDistribution, label_of, sampled_estimate
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class NESCDG(OneEstimate):
    """Coordinate differences at sampled signs, weighted by the density of a sign change.

    Args:
        samples: number of draws of all signs.
        sigma: standard deviation of the latent weights, which sets the probabilities.

    Raises:
        ValueError: an option out of range, or, when estimating, no binary weights or layers whose
            scale depends on the size of latent weights.
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
        distribution = SignDistribution.of(objective, params, self.sigma, "nes_cdg", free=True)
        epsilon = distribution.sigma / 10
        slope = torch.exp(distribution.log_density) / distribution.sigma
        slope = torch.where(distribution.binary, slope, 1 / (2 * epsilon))

        def gradient_at(noise: Tensor) -> Tensor:
            point = distribution.network_weights(distribution.drawn(noise), size=epsilon / 2)
            return slope * pop.flatten(objective.coordinate_differences(point, epsilon))

        passes = 2.0 * len(slope)
        return sampled_estimate(
            distribution, generator, self.samples, gradient_at, forward_passes=passes
        )

    def label(self) -> str:
        """``NES-CDG 1``, the number of samples, with sigma where it is not 0.1."""
        return label_of("NES-CDG", self.samples, self.sigma)
