r"""Bayes by Backprop: every weight a Gaussian of its own, w = μ + softplus(ρ) ε.

(Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight Uncertainty in Neural Networks", ICML 2015,
arXiv 1505.05424.) ``weight`` is μ, ``rho`` is ρ. Three ways to draw the noise have the same mean
and variance of every pre-activation, and the same parameters, so that weights trained by one load
into another:

- ``weights``: one weight per forward pass (per group of samples), shared by the batch. What the
  paper does; the gradient's variance does not fall with the batch.
- ``local``: pre-activations are drawn, each from
  :math:`N(\sum_i x_i \mu_i, \sum_i x_i^2 \sigma_i^2)` (Kingma, Salimans and Welling, "Variational
  Dropout and the Local Reparameterization Trick", NeurIPS 2015, equation 6). Independent for every
  example; in a convolution also, which the weights themselves are not, for every position. Costs
  a second linear map.
- ``flipout``: one deviation of the weights, multiplied for every example by random signs of its
  inputs and outputs (Wen, Vicol, Ba, Tran and Grosse, "Flipout: Efficient Pseudo-Independent
  Weight Perturbations on Mini-Batches", ICLR 2018, arXiv 1803.04386, equations 3-4). Signs are per
  example and channel: positions of one example share a weight, as they should. Costs a second
  linear map.

The prior is N(0, ``prior_sigma``²), whose KL is exact, or the paper's mixture of two Gaussians
(equation 7), whose KL is estimated by ln q(w) − ln p(w) at the weights of the last forward pass
with gradient (a mean over the groups of samples; with flipout at the weight before its signs; with
``local``, which draws no weights, or before the first forward pass, at one weight drawn for the
purpose). The estimate is unbiased and can be negative.

Biases have no noise and no KL unless ``bias_noise``, which ``local`` refuses: drawn per
pre-activation, the noise of a convolution's one bias would differ at every position. With it the
layer has a parameter more, ``bias_rho``.

>>> layer = BayesByBackprop(prior_sigma=1.0).linear(3, 2)
>>> layer(torch.ones(4, 3)).shape, [name for name, _ in layer.named_parameters()]
(torch.Size([4, 2]), ['weight', 'bias', 'rho'])
>>> bool(layer.kl() > 0)
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.estimators.base import above_zero, finite, one_of, probability, true_or_false
from gradlab.evaluation.noise import compiled_problem
from gradlab.variational.base import Conv2dMap, Handover, LinearMap, StochasticLayer
from gradlab.variational.draws import random_signs, standard_normal
from gradlab.variational.kl import gaussian, gaussian_log_density, scale_mixture_log_density
from gradlab.variational.methods import REGISTRY

ESTIMATORS = ("weights", "local", "flipout")
PRIORS = ("gaussian", "mixture")
INITIAL_MEANS = ("torch", "normal")


@REGISTRY.register("bayes_by_backprop")
@dataclass(frozen=True)
class BayesByBackprop:
    """Gaussian weights, each with a mean and a standard deviation of its own.

    Args:
        estimator: "weights", "local" or "flipout", see the module's docstring.
        prior: "gaussian", or "mixture" of two Gaussians.
        prior_sigma: standard deviation of the Gaussian prior.
        pi: weight of the mixture's first Gaussian.
        sigma1: standard deviation of the mixture's first Gaussian.
        sigma2: and of its second.
        initial_mean: means start as torch's layer (or the converted network) has them, "torch", or
            from N(0, 0.1²), "normal".
        initial_rho: every ρ at the start; -5 is a standard deviation of 0.0067.
        bias_noise: biases are random like weights; not with "local".

    Raises:
        ValueError: an option out of range.
    """

    estimator: str = "weights"
    prior: str = "gaussian"
    prior_sigma: float = 0.1
    pi: float = 0.5
    sigma1: float = 1.0
    sigma2: float = 0.0025
    initial_mean: str = "torch"
    initial_rho: float = -5.0
    bias_noise: bool = False

    def __post_init__(self) -> None:
        one_of("estimator", self.estimator, ESTIMATORS)
        one_of("prior", self.prior, PRIORS)
        one_of("initial_mean", self.initial_mean, INITIAL_MEANS)
        true_or_false("bias_noise", self.bias_noise)
        for name in ("prior_sigma", "sigma1", "sigma2"):
            above_zero(name, getattr(self, name))
        probability("pi", self.pi)
        finite("initial_rho", self.initial_rho)
        if self.bias_noise and self.estimator == "local":
            raise ValueError(
                "bias_noise is true with estimator 'local', which has no one bias for all "
                "positions: use estimator 'weights' or 'flipout', or bias_noise = false."
            )

    def linear(self, *args: Any, **options: Any) -> BayesByBackpropLinear:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return BayesByBackpropLinear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> BayesByBackpropConv2d:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return BayesByBackpropConv2d(*args, method=self, **options)


class _BayesByBackprop(StochasticLayer):
    def __init__(
        self, *args: Any, method: BayesByBackprop | None = None, **torch_options: Any
    ) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or BayesByBackprop()
        self.start_from(self.weight)
        rho = self.method.initial_rho
        self.rho = nn.Parameter(torch.full_like(self.weight, rho))
        noisy_bias = self.method.bias_noise and self.bias is not None
        self.bias_rho = nn.Parameter(torch.full_like(self.bias, rho)) if noisy_bias else None
        self._divergence = Handover()
        # The noise of the last forward pass and not its weights: it belongs to no graph, and what
        # is computed from it later is right for the parameters of then.
        self._noise: list[Tensor] = []

    def start_from(self, weight: Tensor) -> None:
        """Keep the means of torch's layer, or draw new ones."""
        if self.method.initial_mean == "normal":
            nn.init.normal_(self.weight, std=0.1)

    def sigma(self) -> Tensor:
        """Standard deviation of every weight."""
        return F.softplus(self.rho)

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With a draw of weights, or of pre-activations."""
        if self.method.estimator == "local":
            return self.local_draw(x, self.weight, self._variance())
        noise = self._draw(self.samples)
        if self.method.prior == "mixture" and torch.is_grad_enabled():
            self._noise = noise
        about = self.method.estimator == "weights"
        drawn = self._drawn(noise, about)
        if about:
            return self._grouped(x, drawn[0], self.bias if self.bias_rho is None else drawn[1])
        mean = self.apply_weight(x, self.weight, self.bias)
        signs_in = random_signs(self.unit_shape(x), x)
        deviation = self._grouped(
            x * signs_in, drawn[0], None if self.bias_rho is None else drawn[1]
        )
        return mean + deviation * random_signs(self.unit_shape(mean), mean)

    def kl(self) -> Tensor:
        """Exact for the Gaussian prior, estimated for the mixture; without a deterministic bias."""
        if self.method.prior == "gaussian":
            on_the_way = self._divergence.take(self.weight, self.rho)
            if on_the_way is not None:
                return on_the_way
            prior_sigma = self.method.prior_sigma
            terms = [gaussian(m, F.softplus(rho), 0.0, prior_sigma) for m, rho in self._random()]
            return torch.stack([term.sum() for term in terms]).sum()
        terms = []
        mixture = self.method.pi, self.method.sigma1, self.method.sigma2
        noise = self._noise or self._draw(1)
        for (mean, rho), drawn in zip(self._random(), noise, strict=True):
            sigma = F.softplus(rho)
            w = mean + sigma * drawn.to(mean)
            log_ratio = gaussian_log_density(w, mean, sigma) - scale_mixture_log_density(
                w, *mixture
            )
            terms.append(log_ratio / len(drawn))
        return torch.stack([term.sum() for term in terms]).sum()

    def log_alpha(self) -> Tensor:
        """ln(σ²/μ²) of every weight: minus twice the log of the paper's signal-to-noise ratio."""
        return 2 * self.sigma().log() - torch.log(self.weight.square() + 1e-8)

    def _random(self) -> list[tuple[Tensor, Tensor]]:
        """Mean and ρ of whatever is random."""
        pairs: list[tuple[Tensor, Tensor]] = [(self.weight, self.rho)]
        return pairs if self.bias_rho is None else [*pairs, (self.bias, self.bias_rho)]

    def _draw(self, samples: int) -> list[Tensor]:
        return [standard_normal((samples, *mean.shape), mean) for mean, _ in self._random()]

    def _variance(self) -> Tensor:
        """Of every weight, and where it costs little the divergence on the way."""
        kernel = self._compiled()
        if kernel is None:
            return self.sigma().square()
        found: Tensor
        found, divergence = kernel.variance(self.weight, self.rho, self.method.prior_sigma)
        self._divergence.give(divergence, self.weight, self.rho)
        return found

    def _drawn(self, noise: list[Tensor], about: bool) -> list[Tensor]:
        """Of every random thing its draws, or with ``about`` false their deviations."""
        kernel = self._compiled() if len(noise[0]) == 1 else None
        if kernel is None:
            deviations = [
                F.softplus(rho) * drawn
                for (_, rho), drawn in zip(self._random(), noise, strict=True)
            ]
            if not about:
                return deviations
            means = [mean for mean, _ in self._random()]
            return [mean + each for mean, each in zip(means, deviations, strict=True)]
        make = kernel.sample if about else kernel.deviate
        pairs = [
            make(mean, rho, drawn[0], self.method.prior_sigma)
            for (mean, rho), drawn in zip(self._random(), noise, strict=True)
        ]
        total = torch.stack([divergence for _, divergence in pairs]).sum()
        self._divergence.give(total, self.weight, self.rho)
        return [drawn[None] for drawn, _ in pairs]

    def _compiled(self) -> Any:
        """Compiled loops, if they serve here and the divergence that they compute is wanted."""
        wanted = self.method.prior == "gaussian" and torch.is_grad_enabled()
        if not wanted or compiled_problem() is not None:
            return None
        from gradlab.variational import gaussian_kernel as kernel

        return kernel if kernel.serves(*(t for pair in self._random() for t in pair)) else None

    def _grouped(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """Weight g, and bias g where there is one for each, for group g."""
        if bias is None or bias.dim() == 1:
            return self.apply_weights(x, weights, bias)
        if len(bias) == 1:
            return self.apply_weights(x, weights, bias[0])
        out = self.apply_weights(x, weights, None)
        per_example = bias.repeat_interleave(len(x) // len(bias), 0)
        return out + per_example.reshape(self.unit_shape(out))


class BayesByBackpropLinear(_BayesByBackprop, LinearMap):
    """``torch.nn.Linear`` with Gaussian weights."""


class BayesByBackpropConv2d(_BayesByBackprop, Conv2dMap):
    """``torch.nn.Conv2d`` with Gaussian weights."""
