r"""ReinMax: a second-order straight-through gradient for the signs of binary weights.

Straight-through estimators replace the difference :math:`f(b_i = +) - f(b_i = -)` in the gradient
of an expectation by a derivative at the drawn sign: a first-order approximation. ReinMax takes
Heun's trapezoidal rule instead, whose second end costs nothing, because the two ends are the two
signs and both are drawn with known probabilities (Liu, Dong, Liu, Yu and Gao, "Bridging discrete
and backpropagation: straight-through and beyond", NeurIPS 2023, arXiv 2304.08612, algorithm 2).
For one-hot D drawn from π = softmax(θ), and g the derivative at D, it is

.. math:: 2 J(\pi_1) g - \tfrac12 J(\pi) g, \qquad J(\pi) = \mathrm{diag}\,\pi - \pi\pi^T, \qquad
    \pi_1 = \tfrac12(\mathrm{softmax}(\theta/\tau) + D).

For a sign b with P(b = +1) = p and logit ℓ = θ₊ - θ₋, and g = ∂f/∂b, that is

.. math:: g\,[4\pi_1(1 - \pi_1) - p(1 - p)] \quad\text{in } \ell, \qquad
    \pi_1 = \tfrac12(s(\ell/\tau) + 1[b = +]),

which for τ = 1 is :math:`g\,P(-b)`, in μ :math:`g\,\varphi(a)/(\sigma\,\Phi(ba))`. Its expectation
has :math:`g(+) + g(-)` where the truth has :math:`f(+) - f(-)`: exact if f is quadratic along every
single sign, of third order otherwise. (The plain straight-through estimator has 2E g.)

What it asks of the objective: ``surrogate_gradient`` with a ``weight_surrogate``, that is one
backpropagation at the drawn signs. **Behind sign activations even that derivative is a
surrogate's** (option ``surrogate``), and with it goes the second order: biased, as any
straight-through estimator. Where activations are continuous the bias is that of the trapezoidal
rule. Real weights are drawn as well and get their gradient at the draw.

One forward and one backward pass per sample.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1, weight="binary")
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> ReinMax(samples=3).estimate(objective, params, generator=generator).backward_passes
3.0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.binary.layers import Choice, choose
from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero
from gradlab.estimators.bernoulli import SignDistribution, label_of, sampled_estimate
from gradlab.estimators.ste import other_surrogate
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class ReinMax(OneEstimate):
    """ReinMax for the signs of binary weights.

    Args:
        samples: number of draws that are averaged.
        sigma: standard deviation of the latent weights, which sets the probabilities.
        temperature: τ, at least 1; larger values trade bias for variance.
        surrogate: derivative of the activations, see :mod:`gradlab.binary.surrogates`.

    Raises:
        ValueError: an option out of range, an unknown surrogate, or, when estimating, no binary
            weights.
    """

    samples: int = 1
    sigma: float = 0.1
    temperature: float = 1.0
    surrogate: Choice = "hardtanh"

    def __post_init__(self) -> None:
        positive_integer("samples", self.samples)
        above_zero("sigma", self.sigma)
        if above_zero("temperature", self.temperature) < 1:
            raise ValueError(
                f"temperature is {self.temperature:g}: ReinMax takes a number of at least 1."
            )
        choose(self.surrogate)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""
        distribution = SignDistribution.of(objective, params, self.sigma, "reinmax")
        activation, weight = choose(self.surrogate), choose("identity")
        plus, minus = (distribution.log_probability(sign) for sign in (1, -1))
        tempered = torch.sigmoid((plus - minus) / self.temperature)

        def gradient_at(noise: Tensor) -> Tensor:
            drawn = distribution.drawn(noise)
            point = distribution.network_weights(drawn)
            found = objective.surrogate_gradient(point, activation, weight_surrogate=weight)
            if self.temperature == 1:
                own = torch.where(drawn >= 0, plus, minus)
                slope = torch.exp(distribution.log_density - own) / distribution.sigma
            else:
                shifted = (tempered + (drawn >= 0)) / 2
                slope = 4 * shifted * (1 - shifted) - torch.exp(plus + minus)
                slope = slope * distribution.logit_slope
            return pop.flatten(found).double() * torch.where(distribution.binary, slope, 1.0)

        return sampled_estimate(
            distribution,
            generator,
            self.samples,
            gradient_at,
            forward_passes=1.0,
            backward_passes=1.0,
        )

    def label(self) -> str:
        """``ReinMax 1``, the number of samples, with options that are not the default."""
        text = label_of("ReinMax", self.samples, self.sigma)
        text += "" if self.temperature == 1 else f" T={self.temperature:g}"
        return text + other_surrogate(self.surrogate)
