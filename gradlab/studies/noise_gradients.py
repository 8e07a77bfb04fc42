r"""Gradients of a loss smoothed by Gaussian noise on the weights, by where the noise is drawn.

For :math:`J(\mu) = E\,L(\mu + \sigma\varepsilon)` there are two ways to a gradient, and several
places to draw the noise:

- :class:`Pathwise` differentiates the noisy loss through the noise
  (:math:`\nabla_\mu L(\mu + \sigma\varepsilon)`), as Bayes by Backprop and variational dropout do,
  with the layers of :mod:`gradlab.variational`;
- :class:`ScoreFunction` needs losses only (:math:`L\,\varepsilon/\sigma`): the evolution strategies
  ``nes`` and ``nes_local``, whose output layer alone is differentiated.

Noise of one weight for the whole batch, of weights for every example, or of pre-activations has the
same expectation in linear layers, since the loss is a mean over examples. In a **convolution**
pre-activations are drawn independently at every position, which the weights are not: the same
marginal distributions, but another smoothing with another gradient.

>>> Pathwise().label(), ScoreFunction(noise="preactivations", passes=8).label()
('pathwise on weights', 'score on pre-activations, 8 passes')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradlab import estimators, variational
from gradlab._registry import Registry
from gradlab.estimators import GradientEstimate
from gradlab.estimators.base import above_zero, one_of, require_finite
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer

PATHWISE_NOISES = ("weights", "preactivations", "flipout")
SCORE_NOISES = ("weights", "examples", "preactivations")
NOISE_SCALES = ("absolute", "relative", "multiplicative")
_PLACES = {
    "weights": "on weights", "preactivations": "on pre-activations", "flipout": "with flipout",
    "examples": "on each example's weights",
}  # fmt: skip
_OF_BAYES = {"weights": "weights", "preactivations": "local", "flipout": "flipout"}

Draw = Callable[[torch.Generator], GradientEstimate]
"""One estimate from a generator's random numbers."""


class Source(Protocol):
    """A way to estimate the gradient of the smoothed loss."""

    @property
    def noise(self) -> str:
        """Where it is drawn."""

    @property
    def noise_scale(self) -> str:
        """What ``sigma`` is in units of."""

    @property
    def sigma(self) -> float:
        """Standard deviation of the noise."""

    def prepare(self, objective: Any, params: Params) -> Draw:
        """What every estimate on this objective has in common, made once."""

    def estimate(
        self, objective: Any, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""

    def estimates(
        self, objective: Any, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """The same in a list, as estimators with nested populations have it."""

    def label(self) -> str:
        """A short display name."""


REGISTRY: Registry[Source] = Registry("gradient source")


class _Prepared:
    """What follows from ``prepare``."""

    def prepare(self, objective: Any, params: Params) -> Draw:
        """Overridden."""
        raise NotImplementedError

    def estimate(
        self, objective: Any, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""
        return self.prepare(objective, params)(generator)

    def estimates(
        self, objective: Any, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """The same in a list."""
        return [self.estimate(objective, params, generator=generator)]


@REGISTRY.register("pathwise")
@dataclass(frozen=True)
class Pathwise(_Prepared):
    r"""Backpropagation through the noise.

    ``forward_passes`` and ``backward_passes`` count maps of the whole network on the whole batch:
    one each with noise on weights; two each on pre-activations (mean and variance) and with flipout
    (mean and deviation), the second without activations in between.

    Args:
        noise: "weights", drawn once for the batch (Blundell et al. 2015); "flipout", the same with
            random signs for every example (Wen et al. 2018); "preactivations", the local
            reparameterization trick (Kingma et al. 2015).
        noise_scale: "absolute", σ is ``sigma`` for every weight; "relative", σ is ``sigma``·\|θ\|
            and is held fixed when the gradient in θ is taken; "multiplicative", the weight is
            θ(1 + ``sigma``·ε), so that the gradient in θ meets the noise too. The last two have the
            same distribution of weights, with α = ``sigma``²: their comparison is the claim of
            Molchanov, Ashukha and Vetrov 2017, section 4.1.
        sigma: see there.
        passes: noisy passes that are averaged.

    Raises:
        ValueError: an option out of range, or flipout with multiplicative noise.
    """

    noise: str = "weights"
    noise_scale: str = "absolute"
    sigma: float = 0.1
    passes: int = 1

    def __post_init__(self) -> None:
        one_of("noise", self.noise, PATHWISE_NOISES)
        one_of("noise_scale", self.noise_scale, NOISE_SCALES)
        above_zero("sigma", self.sigma)
        positive_integer("passes", self.passes)
        if self.noise == "flipout" and self.noise_scale == "multiplicative":
            raise ValueError(
                'noise = "flipout" adds its deviation to the weights, and noise_scale is '
                '"multiplicative": use noise_scale = "relative", or noise = "weights".'
            )

    def prepare(self, objective: Any, params: Params) -> Draw:
        """See :class:`Source`; ``params`` are weights of linear layers and convolutions.

        Raises:
            ValueError: another kind of layer.
        """
        evaluator: ModuleEvaluator = objective.evaluator
        params = require_finite(params)
        device = evaluator.inputs.device
        # layers begin with random weights, and draw from torch's own generator
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            model = self._noisy(evaluator.model, params)
        weights = [model.get_parameter(name).requires_grad_() for name in params]
        maps = float(self.passes * (1 if self.noise == "weights" else 2))

        def draw(generator: torch.Generator) -> GradientEstimate:
            total = [torch.zeros_like(weight) for weight in weights]
            with torch.random.fork_rng(devices):
                torch.manual_seed(draw_key(generator))
                for _ in range(self.passes):
                    for sum_, one in zip(total, _gradient(evaluator, model, weights), strict=True):
                        sum_ += one / self.passes
            gradient = dict(zip(params, total, strict=True))
            return GradientEstimate(gradient, forward_passes=maps, backward_passes=maps)

        return draw

    def _noisy(self, model: nn.Module, params: Params) -> nn.Module:
        """A copy of the network with these weights and noise in these layers."""
        layers = [name.removesuffix(".weight") for name in params]
        method: variational.Method
        if self.noise_scale == "multiplicative":
            alpha = self.sigma**2
            method = variational.create("gaussian_w", p=alpha / (1 + alpha), noise=self.noise)
        else:
            method = variational.create("bayes_by_backprop", estimator=_OF_BAYES[self.noise])
        noisy = variational.to_variational(model, method, layers=layers).eval()
        noisy.requires_grad_(False)
        with torch.no_grad():
            for name, layer in zip(params, layers, strict=True):
                noisy.get_parameter(name).copy_(params[name])
                if self.noise_scale == "multiplicative":
                    continue
                sigma = torch.full_like(params[name], self.sigma, dtype=torch.float64)
                if self.noise_scale == "relative":
                    sigma *= params[name].abs()
                noisy.get_parameter(f"{layer}.rho").copy_(inverse_softplus(sigma))
        return noisy

    def label(self) -> str:
        """``pathwise on weights``, with options that are not the default."""
        text = f"pathwise {_PLACES[self.noise]}"
        if self.noise_scale == "absolute":
            text += "" if self.sigma == 0.1 else f", σ = {self.sigma:g}"
        else:
            kind = "multiplicative" if self.noise_scale == "multiplicative" else "additive"
            text += f", {kind} σ = {self.sigma:g}|θ|"
        return text + ("" if self.passes == 1 else f", {self.passes} passes")


@REGISTRY.register("score_function")
@dataclass(frozen=True)
class ScoreFunction(_Prepared):
    """Natural evolution strategies: losses weighted by their noise, mirrored and centred.

    Args:
        noise: "weights", drawn once for the batch (the estimator ``nes``); "examples", weights of
            every example's own, and "preactivations" (``nes_local`` with the noise of weights and
            of positions). In linear layers the last two are the same. ``nes_local`` differentiates
            the output layer.
        population: members, for noise "weights".
        passes: noisy passes, for the other two.
        sigma: standard deviation of every weight.

    Raises:
        ValueError: an option out of range.
    """

    noise: str = "weights"
    population: int = 100
    passes: int = 2
    sigma: float = 0.1

    def __post_init__(self) -> None:
        one_of("noise", self.noise, SCORE_NOISES)
        positive_integer("population", self.population)
        _ = self.estimator  # whose options are checked there

    @property
    def noise_scale(self) -> str:
        """Always of the weights themselves."""
        return "absolute"

    @property
    def estimator(self) -> estimators.Estimator:
        """The estimator of :mod:`gradlab.estimators` that does it."""
        if self.noise == "weights":
            return estimators.create("nes", population=self.population, sigma=self.sigma)
        noise = "weights" if self.noise == "examples" else "positions"
        return estimators.create("nes_local", passes=self.passes, sigma=self.sigma, noise=noise)

    def prepare(self, objective: Any, params: Params) -> Draw:
        """See :class:`Source`."""
        estimator = self.estimator
        return lambda generator: estimator.estimate(objective, params, generator=generator)

    def label(self) -> str:
        """``score on weights, P = 100``, with options that are not the default."""
        on_weights = self.noise == "weights"
        size = f"P = {self.population}" if on_weights else f"{self.passes} passes"
        text = f"score {_PLACES[self.noise]}, {size}"
        return text + ("" if self.sigma == 0.1 else f", σ = {self.sigma:g}")


def label(name: str, options: Mapping[str, Any]) -> str:
    """The display name of a source.

    >>> label("pathwise", {"noise": "flipout", "sigma": 0.3})
    'pathwise with flipout, σ = 0.3'
    """
    return REGISTRY.create(name, **options).label()


def reference_of(source: Source, params: Params) -> Pathwise:
    """The source with the same expected gradient whose mean over many passes converges fastest.

    Local reparameterization, or in networks with convolutions, where this is another smoothing,
    flipout for whatever draws weights.

    Args:
        source: whose expectation is wanted.
        params: the noisy weights.

    >>> linear, convolution = {"w": torch.ones(2, 3)}, {"w": torch.ones(2, 3, 5, 5)}
    >>> reference_of(Pathwise(), linear).noise, reference_of(Pathwise(), convolution).noise
    ('preactivations', 'flipout')
    """
    noise, scale = "preactivations", source.noise_scale
    convolutions = any(weight.dim() > 2 for weight in params.values())
    if convolutions and source.noise != "preactivations":
        noise = "weights" if scale == "multiplicative" else "flipout"
    return Pathwise(noise=noise, noise_scale=scale, sigma=source.sigma)


def inverse_softplus(value: Tensor) -> Tensor:
    """ρ with softplus(ρ) = value, elementwise; -∞ for 0.

    >>> inverse_softplus(torch.nn.functional.softplus(torch.tensor([-3.0, 40.0]))).round(decimals=4)
    tensor([-3., 40.])
    """
    return value + torch.log(-torch.expm1(-value))


def _gradient(
    evaluator: ModuleEvaluator, model: nn.Module, weights: list[Tensor]
) -> tuple[Tensor, ...]:
    """Of the mean loss of one noisy pass."""
    with torch.enable_grad(), variational.sampling(model):
        outputs = model(evaluator.inputs)
        loss = evaluator.program.loss(outputs, evaluator.targets).mean()
        return torch.autograd.grad(loss, weights)
