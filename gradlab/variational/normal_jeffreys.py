r"""Group normal-Jeffreys: a scale z for each unit, dropped where its noise outgrows it.

(Louizos, Ullrich and Welling, "Bayesian Compression for Deep Learning", NeurIPS 2017, arXiv
1705.08665, section 3.1: BC-GNJ.) Prior: p(z) ∝ 1/|z|, w | z ~ N(0, z²). Posterior (equation 6):

.. math:: q(z) = N(\mu_z, \mu_z^2 \alpha), \qquad q(w \mid z) = N(z \mu, z^2 \sigma^2)

with a z for each input feature of a linear layer and for each *output* channel of a convolution
(a filter: the paper groups filters in convolutions and input neurons in linear layers, and so does
its code). z is drawn for each example, and then pre-activations given z (local reparameterization):
linear layers get N((xz)μ, (xz)²σ²), convolutions z·N(x∗μ, x²∗σ²).

The KL is the log-uniform KL of z's log α = ln Var z − ln μ_z², by the fit of sparse variational
dropout, plus KL(N(μ, σ²) ‖ N(0, 1)) of every weight (equation 8). ``z_log_variance`` is learned,
not α itself, whose gradient in μ_z is noisy. Where log α exceeds ``threshold``, :meth:`mask` drops
the unit's weights; as μ_z comes no nearer to 0 than an optimizer's steps, lower the learning rate
towards the end. Biases stay out of both z and KL here, so that the layer without noise is torch's
layer at the weight μ_z μ; in the paper's code they are random, and multiplied by z in convolutions.
(That code's KL for convolutions reads the log variance as a log standard deviation; this one does
not.)

>>> layer = NormalJeffreys().linear(3, 2)
>>> layer(torch.ones(4, 3)).shape, layer.mask().all().item()
(torch.Size([4, 2]), True)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.estimators.base import above_zero, finite
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer
from gradlab.variational.kl import gaussian, log_uniform
from gradlab.variational.local import local_noise
from gradlab.variational.methods import REGISTRY


@REGISTRY.register("normal_jeffreys")
@dataclass(frozen=True)
class NormalJeffreys:
    """A normal-Jeffreys prior on groups of weights.

    Args:
        initial: log variance of every z and every weight at the start; means of z start at 1.
        threshold: units with log α of z above it are dropped.
        largest_variance: of a weight, or ``None``; :meth:`project` enforces it. The paper's code
            holds the first layers' at 0.04.

    Raises:
        ValueError: an option out of range.
    """

    initial: float = -9.0
    threshold: float = 3.0
    largest_variance: float | None = None

    def __post_init__(self) -> None:
        finite("initial", self.initial)
        finite("threshold", self.threshold)
        if self.largest_variance is not None:
            above_zero("largest_variance", self.largest_variance)

    def linear(self, *args: Any, **options: Any) -> NormalJeffreysLinear:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return NormalJeffreysLinear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> NormalJeffreysConv2d:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return NormalJeffreysConv2d(*args, method=self, **options)


class _NormalJeffreys(StochasticLayer):
    def __init__(
        self, *args: Any, method: NormalJeffreys | None = None, **torch_options: Any
    ) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or NormalJeffreys()
        start = self.method.initial
        self.weight_log_variance = nn.Parameter(torch.full_like(self.weight, start))
        self.z_mean = nn.Parameter(self.weight.new_ones(self._units()))
        self.z_log_variance = nn.Parameter(self.weight.new_full((self._units(),), start))

    def _units(self) -> int:
        """How many units have a z."""
        raise NotImplementedError

    def _over_weight(self, values: Tensor) -> Tensor:
        """A value for each unit, in a shape that multiplies the weight."""
        raise NotImplementedError

    def _draw_z(self, x: Tensor) -> Tensor:
        """A z for each example and unit of ``x``."""
        unit = (-1, *[1] * (self.weight.dim() - 2))
        noise = torch.randn(self.unit_shape(x), device=x.device, dtype=self.z_mean.dtype)
        sigma = torch.exp(self.z_log_variance / 2)
        return self.z_mean.reshape(unit) + sigma.reshape(unit) * noise

    def _variance(self) -> Tensor:
        return torch.exp(self.weight_log_variance)

    def mean_weight(self) -> Tensor:
        """μ_z μ."""
        return self.weight * self._over_weight(self.z_mean)

    def kl(self) -> Tensor:
        """Of z and of the weights given z."""
        sigma = torch.exp(self.weight_log_variance / 2)
        return log_uniform(self.log_alpha()).sum() + gaussian(self.weight, sigma, 0.0, 1.0).sum()

    def log_alpha(self) -> Tensor:
        """ln(Var z/μ_z²) of every unit."""
        return self.z_log_variance - torch.log(self.z_mean.square() + 1e-8)

    def mask(self) -> Tensor:
        """The weights of units whose log α is at most the threshold."""
        kept = self.log_alpha() <= self.method.threshold
        return self._over_weight(kept).expand_as(self.weight)

    def project(self) -> None:
        """Hold the variances of weights below ``largest_variance``."""
        if self.method.largest_variance is not None:
            with torch.no_grad():
                self.weight_log_variance.clamp_(max=math.log(self.method.largest_variance))


class NormalJeffreysLinear(_NormalJeffreys, LinearMap):
    """``torch.nn.Linear`` with a z for each input feature."""

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With z on the inputs, then pre-activations given z."""
        scaled = x * self._draw_z(x)
        mean = self.apply_weight(scaled, self.weight, self.bias)
        return local_noise(mean, self.apply_weight(scaled.square(), self._variance(), None))

    def _units(self) -> int:
        return self.in_features

    def _over_weight(self, values: Tensor) -> Tensor:
        return values


class NormalJeffreysConv2d(_NormalJeffreys, Conv2dMap):
    """``torch.nn.Conv2d`` with a z for each output channel."""

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With pre-activations, then z on them."""
        mean = self.apply_weight(x, self.weight, None)
        out = local_noise(mean, self.apply_weight(x.square(), self._variance(), None))
        out = out * self._draw_z(out)
        return out if self.bias is None else out + self.over_outputs(self.bias)

    def _units(self) -> int:
        return self.out_channels

    def _over_weight(self, values: Tensor) -> Tensor:
        return values[:, None, None, None]
