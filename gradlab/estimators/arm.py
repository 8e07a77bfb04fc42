r"""ARM and DisARM: mirrored pairs of signs instead of a baseline.

One uniform number u per weight gives two sets of signs,
:math:`b_i = \mathrm{sign}(u_i - 1 + p_i)` and :math:`\tilde b_i = \mathrm{sign}(p_i - u_i)`, each
with P(+1) = p. Here :math:`u = \Phi(\varepsilon)` and :math:`p = \Phi(\mu/\sigma)`, so that the
pair is that of antithetic NES, the signs of :math:`\mu \pm \sigma\varepsilon`. With ℓ the logit
of p and :math:`s(x) = 1/(1 + e^{-x})`,

.. math:: \mathrm{ARM}_i = (f(b) - f(\tilde b))\,(u_i - \tfrac12), \qquad
    \mathrm{DisARM}_i = \tfrac12 (f(b) - f(\tilde b))\,\tfrac12(b_i - \tilde b_i)\,s(|\ell_i|)

estimate the gradient in ℓ (Yin and Zhou, "ARM: Augment-REINFORCE-Merge gradient for stochastic
binary networks", ICLR 2019; Dong, Mnih and Tucker, "DisARM: An antithetic gradient estimator for
binary latent variables", NeurIPS 2020), averaged over ``population``/2 pairs and multiplied by
:math:`\partial\ell/\partial\mu = \varphi(a)/(\sigma p(1 - p))`.

Both are unbiased for the gradient of the loss smoothed by N(μ, σ²). DisARM is the expectation of
ARM given the pair of signs, so that no coordinate's variance is above ARM's. Since
:math:`s(|\ell|) = \Phi(|a|)`, it is also the expectation of antithetic NES given the same signs:
``rao_blackwell_nes`` gives the same numbers. A weight whose signs agree in a pair, as most do where
:math:`|\mu| \gg \sigma`, gets exactly zero from DisARM, and from ARM
noise of the order of :math:`|\mu|/\sigma^2`.

Two forward passes per pair. Real weights of the network get the score of antithetic NES.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1, weight="binary")
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> DisARM(population=10).estimate(objective, params, generator=generator).forward_passes
10.0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero
from gradlab.estimators.bernoulli import check_population, label_of, score_estimate
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class ARM(OneEstimate):
    """Augment-REINFORCE-merge for the signs of binary weights.

    Args:
        population: number of evaluations, two per pair.
        sigma: standard deviation of the latent weights, which sets the probabilities.

    Raises:
        ValueError: an option out of range, or, when estimating, no binary weights.
    """

    population: int = 500
    sigma: float = 0.1

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        check_population(self.population, mirrored=True)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""
        name = type(self).__name__.lower()
        return score_estimate(
            objective,
            params,
            generator,
            estimator=name,
            score=name,
            population=self.population,
            sigma=self.sigma,
        )

    def label(self) -> str:
        """``ARM 500`` or ``DisARM 500``, with sigma where it is not 0.1."""
        return label_of(type(self).__name__, self.population, self.sigma)


class DisARM(ARM):
    """ARM with its uniform number averaged out given the pair of signs; options as there."""
