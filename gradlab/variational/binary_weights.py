r"""Binary weights as distributions: every weight is +1 or −1, with a probability that is learned.

Two methods. ``weight`` is the natural parameter in both, and only its sign is needed in the end; a
layer has no scale, so that something should normalize its outputs (BatchNorm, in both papers).

**Bernoulli weights** (LR-nets; Shayer, Levi and Fetaya, "Learning Discrete Weights Using the Local
Reparameterization Trick", ICLR 2018, arXiv 1710.07739). P(w = +1) = sigmoid(θ), with mean
m = 2 sigmoid(θ) − 1 and variance 1 − m². A pre-activation sums many independent weights, hence is
nearly Gaussian, and is drawn from the Gaussian of its exact mean and variance,

.. math:: N\big(\sum_i x_i m_i,\; \sum_i x_i^2 (1 - m_i^2)\big),

which is the local reparameterization of Gaussian weights with σ² = 1 − m², and differentiable in
θ. Independent for every example and, in a convolution, for every position, which weights that are
drawn once would not be. With ``noise="weights"`` weights of ±1 are drawn instead (one for each
group of samples) and the gradient passes straight through to the mean: dw/dθ is taken to be dm/dθ,
which is exact only where the loss is linear in the weight.

**BayesBiNN** (Meng, Bachmann and Khan, "Training Binary Neural Networks using the Bayesian Learning
Rule", ICML 2020, arXiv 2002.10778, equation 8). m = tanh(λ), and the drawn weight is relaxed to

.. math:: w = \tanh\big((\lambda + \delta)/\tau\big),\quad \delta = \tfrac12 \ln\tfrac{u}{1 - u},
          \quad u \sim U(0, 1),

which at the authors' τ = 10⁻¹⁰ is ±1 to the last bit. Its derivative (1 − w²)/τ would then be zero;
they use (1 − w² + 10⁻¹⁰)/τ, which for w = ±1 and τ = 10⁻¹⁰ is 1: the straight-through estimator. So
does the backward pass here. :class:`gradlab.variational.optimizers.BayesBiNN` does the rest of
their step, and any other optimizer descends along this gradient.

>>> layer = BernoulliWeights().linear(3, 2)
>>> layer(torch.ones(4, 3)).shape, sorted(set(layer.mean_weight().flatten().abs().tolist()))
(torch.Size([4, 2]), [1.0])
>>> BayesBiNNWeights().linear(3, 2).weight.abs().unique()
tensor([10.], grad_fn=<Unique2Backward0>)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlab.binary.sign import sign
from gradlab.binary.straight_through import straight_through
from gradlab.estimators.base import above_zero, finite, one_of, probability
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer
from gradlab.variational.kl import bernoulli
from gradlab.variational.methods import REGISTRY

NOISES = ("preactivations", "weights")
PREDICTIONS = ("sign", "mean")
# of the authors' code of BayesBiNN: what keeps its derivatives from being 0, and from 1/0
GUARD = 1e-10
# below the variance of any pre-activation that is not zero; the slope of a root is infinite there
_SMALLEST_VARIANCE = 1e-8
# probabilities at the start, as LR-nets clip them
_LOW, _HIGH = 0.05, 0.95


@REGISTRY.register("bernoulli_weights")
@dataclass(frozen=True)
class BernoulliWeights:
    """LR-nets: weights of ±1, with the noise on pre-activations.

    Args:
        noise: "preactivations" (local reparameterization), or "weights" (drawn weights of ±1 and a
            straight-through gradient of their mean).
        prediction: weights without noise are the "sign" of θ, or the "mean".
        prior: probability of +1 in the prior.

    Raises:
        ValueError: an option out of range.
    """

    noise: str = "preactivations"
    prediction: str = "sign"
    prior: float = 0.5

    def __post_init__(self) -> None:
        one_of("noise", self.noise, NOISES)
        one_of("prediction", self.prediction, PREDICTIONS)
        probability("prior", self.prior)

    def linear(self, *args: Any, **options: Any) -> BernoulliLinear:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return BernoulliLinear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> BernoulliConv2d:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return BernoulliConv2d(*args, method=self, **options)


@REGISTRY.register("bayes_binn")
@dataclass(frozen=True)
class BayesBiNNWeights:
    """BayesBiNN: relaxed weights of ±1.

    Args:
        temperature: τ; the authors' 1e-10 draws ±1, a larger one something between.
        initial: size of λ at the start.
        prediction: weights without noise are the "sign" of λ, or the "mean" tanh λ.
        prior: natural parameter λ₀ of the prior; 0 is a fair coin.

    Raises:
        ValueError: an option out of range.
    """

    temperature: float = 1e-10
    initial: float = 10.0
    prediction: str = "sign"
    prior: float = 0.0

    def __post_init__(self) -> None:
        above_zero("temperature", self.temperature)
        above_zero("initial", self.initial)
        one_of("prediction", self.prediction, PREDICTIONS)
        finite("prior", self.prior)

    def linear(self, *args: Any, **options: Any) -> BayesBiNNLinear:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return BayesBiNNLinear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> BayesBiNNConv2d:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return BayesBiNNConv2d(*args, method=self, **options)


class _Bernoulli(StochasticLayer):
    """``weight`` is θ."""

    natural = True

    def __init__(
        self, *args: Any, method: BernoulliWeights | None = None, **torch_options: Any
    ) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or BernoulliWeights()
        self.start_from(self.weight)

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        """Take the probabilities from a plain weight, as LR-nets do from a trained network.

        P(w = +1) is ½(1 + w/s), where s is the layer's standard deviation, clipped to [.05, .95].
        """
        spread = weight.std(correction=0).clamp(min=torch.finfo(weight.dtype).tiny)
        self.weight.copy_(((1 + weight / spread) / 2).clamp(_LOW, _HIGH).logit())

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With a draw of pre-activations, or of weights."""
        if self.method.noise == "weights":
            return self.apply_weights(x, self._draw(), self.bias)
        mean, variance = self.moments(x)
        return mean + (variance + _SMALLEST_VARIANCE).sqrt() * torch.randn_like(mean)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean and variance of every output, each shaped like the output."""
        # 4 sigmoid(θ) sigmoid(−θ) is 1 − m² without its cancellation
        variance = 4 * torch.sigmoid(self.weight) * torch.sigmoid(-self.weight)
        return (
            self.apply_weight(x, self._mean(), self.bias),
            self.apply_weight(x.square(), variance, None),
        )

    def mean_weight(self) -> Tensor:
        """±1, or the mean: what ``prediction`` says."""
        return sign(self.weight) if self.method.prediction == "sign" else self._mean()

    def kl(self) -> Tensor:
        """Between coins, summed over the layer."""
        prior = math.log(self.method.prior / (1 - self.method.prior))
        return bernoulli(self.weight, prior).sum()

    def _mean(self) -> Tensor:
        return torch.tanh(self.weight / 2)  # 2 sigmoid(θ) − 1

    def _draw(self) -> Tensor:
        positive = _chances(self) < torch.sigmoid(self.weight.detach())
        drawn = torch.where(positive, 1.0, -1.0).to(self.weight.dtype)
        mean = self._mean()
        return drawn + (mean - mean.detach())


class _BayesBiNN(StochasticLayer):
    """``weight`` is λ."""

    natural = True

    def __init__(
        self, *args: Any, method: BayesBiNNWeights | None = None, **torch_options: Any
    ) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or BayesBiNNWeights()
        self.start_from(self.weight)

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        """λ of the size ``initial``, with the signs of a plain weight."""
        self.weight.copy_(self.method.initial * sign(weight))

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With a relaxed draw of weights, one for each group of samples."""
        latent = self.weight + _chances(self).logit() / 2
        weights = straight_through(latent, Relaxed(self.method.temperature))
        return self.apply_weights(x, weights, self.bias)

    def mean_weight(self) -> Tensor:
        """±1, or the mean: what ``prediction`` says."""
        return sign(self.weight) if self.method.prediction == "sign" else torch.tanh(self.weight)

    def kl(self) -> Tensor:
        """Between coins, summed over the layer."""
        return bernoulli(2 * self.weight, 2 * self.method.prior).sum()


@dataclass(frozen=True)
class Relaxed:
    """The tanh of x/τ, with the derivative that BayesBiNN's authors give it.

    forward: w = tanh(x/τ)
    derivative: (1 − w² + 10⁻¹⁰)/τ
    """

    temperature: float

    def forward(self, x: Tensor) -> Tensor:
        """The relaxed weight."""
        return torch.tanh(x / self.temperature)

    def derivative(self, x: Tensor) -> Tensor:
        """Never zero: see the module's docstring."""
        w = self.forward(x)
        return (1 - w * w + GUARD) / self.temperature


class BernoulliLinear(_Bernoulli, LinearMap):
    """``torch.nn.Linear`` with Bernoulli weights."""


class BernoulliConv2d(_Bernoulli, Conv2dMap):
    """``torch.nn.Conv2d`` with Bernoulli weights."""


class BayesBiNNLinear(_BayesBiNN, LinearMap):
    """``torch.nn.Linear`` with relaxed binary weights."""


class BayesBiNNConv2d(_BayesBiNN, Conv2dMap):
    """``torch.nn.Conv2d`` with relaxed binary weights."""


def _chances(layer: StochasticLayer) -> Tensor:
    """U(0, 1) for every weight of each group of samples."""
    return torch.rand(
        layer.samples, *layer.weight.shape, device=layer.weight.device, dtype=layer.weight.dtype
    )
