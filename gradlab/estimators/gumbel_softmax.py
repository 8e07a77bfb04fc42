r"""Gumbel-softmax: binary weights relaxed to smooth ones that can be backpropagated through.

A sign with P(+1) = p and logit ℓ is sign(ℓ + L), L logistic noise, and becomes smooth at a
temperature τ:

.. math:: s = \tanh\frac{\ell + L}{2\tau}, \qquad
    \frac{\partial s}{\partial\mu} = \frac{1 - s^2}{2\tau}\,\frac{\varphi(a)}{\sigma p(1 - p)},
    \qquad a = \mu/\sigma, \; p = \Phi(a)

(the binary concrete distribution, stretched to ±1: Maddison, Mnih and Teh, "The concrete
distribution", ICLR 2017, appendix B; Jang, Gu and Poole, "Categorical reparameterization with
Gumbel-softmax", ICLR 2017). The network is evaluated and differentiated at s. That is the exact
gradient of *another* loss, smoothed over relaxed weights; its bias against the gradient of E f(b)
goes to zero with τ where f is smooth, while the variance grows without bound. With
``straight_through`` the network is evaluated at the signs and s gives the derivative alone: biased
at any temperature.

What it asks of the objective: ``surrogate_gradient`` with a ``weight_surrogate`` that passes
weights through, that is a network that can be evaluated at weights between the signs. **Behind sign
activations the derivative is that of a surrogate** (option ``surrogate``), whose bias no
temperature removes. Layers that scale by the size of their latent weights have none of its own to
give to a relaxed weight; they take ``straight_through``. Real weights are drawn from N(μ, σ²) and
get their gradient at the draw.

One forward and one backward pass per sample.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1, weight="binary")
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> GumbelSoftmax(samples=3).estimate(objective, params, generator=generator).backward_passes
3.0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.binary.layers import Choice, choose
from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, true_or_false
from gradlab.estimators.bernoulli import SignDistribution, label_of, sampled_estimate
from gradlab.estimators.ste import other_surrogate
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective

# A relaxed weight stays off the sign itself, by which a module's signs are recognized.
_LARGEST = 1 - 2.0**-20


class _Passed:
    """In place of sign(W): W itself."""

    def draw(self, x: Tensor) -> _Passed:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()

    def derivative(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


@dataclass(frozen=True)
class GumbelSoftmax(OneEstimate):
    """Backpropagation through relaxed binary weights.

    Args:
        samples: number of draws that are averaged.
        sigma: standard deviation of the latent weights, which sets the probabilities.
        temperature: τ of the relaxation, above 0.
        straight_through: evaluate the network at the signs, not at the relaxed weights.
        surrogate: derivative of the activations, see :mod:`gradlab.binary.surrogates`.

    Raises:
        ValueError: an option out of range, an unknown surrogate, or, when estimating, no binary
            weights, or, without ``straight_through``, layers that scale by their latent weights.
    """

    samples: int = 1
    sigma: float = 0.1
    temperature: float = 0.5
    straight_through: bool = False
    surrogate: Choice = "hardtanh"

    def __post_init__(self) -> None:
        positive_integer("samples", self.samples)
        above_zero("sigma", self.sigma)
        above_zero("temperature", self.temperature)
        true_or_false("straight_through", self.straight_through)
        choose(self.surrogate)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""
        distribution = SignDistribution.of(
            objective, params, self.sigma, "gumbel_softmax", free=not self.straight_through
        )
        activation = choose(self.surrogate)
        weight = choose("identity") if self.straight_through else _Passed()
        logit = distribution.log_probability(1) - distribution.log_probability(-1)
        binary, flat = distribution.binary, distribution.flat

        def gradient_at(noise: Tensor) -> Tensor:
            wide = noise.double()
            # logit of the uniform number Φ(ε)
            logistic = torch.special.log_ndtr(wide) - torch.special.log_ndtr(-wide)
            x = (logit + logistic) / self.temperature
            drawn = distribution.drawn(noise)
            if self.straight_through:
                point = distribution.network_weights(drawn)
            else:
                relaxed = torch.tanh(x / 2).clamp(-_LARGEST, _LARGEST)
                point = pop.unflatten(torch.where(binary, relaxed.to(flat.dtype), drawn), params)
            found = objective.surrogate_gradient(point, activation, weight_surrogate=weight)
            slope = 2 * torch.sigmoid(x) * torch.sigmoid(-x) / self.temperature
            slope = slope * distribution.logit_slope
            return pop.flatten(found).double() * torch.where(binary, slope, 1.0)

        return sampled_estimate(
            distribution,
            generator,
            self.samples,
            gradient_at,
            forward_passes=1.0,
            backward_passes=1.0,
        )

    def label(self) -> str:
        """``Gumbel-softmax 1``, the number of samples, with options that are not the default."""
        text = label_of("Gumbel-softmax", self.samples, self.sigma)
        text += "" if self.temperature == 0.5 else f" T={self.temperature:g}"
        text += " straight-through" if self.straight_through else ""
        return text + other_surrogate(self.surrogate)
