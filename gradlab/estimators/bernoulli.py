r"""What estimators for binary weights share: the distribution of signs, and scores in its mean.

A binary weight multiplies by :math:`b = \mathrm{sign}(w)`. If :math:`w \sim N(\mu, \sigma^2)`, b is
a Bernoulli variable, +1 with probability :math:`p = \Phi(a)`, :math:`a = \mu/\sigma`, and the
smoothed loss :math:`J(\mu) = E f(b)` has the exact gradient

.. math:: \frac{\partial J}{\partial\mu_i} = \frac{\varphi(a_i)}{\sigma}\,
    E_{b_{-i}}[f(b_i = +) - f(b_i = -)], \qquad
    \frac{\partial p}{\partial\mu} = \frac{\varphi(a)}{\sigma}, \qquad
    \frac{\partial}{\partial\mu}\log\frac{p}{1 - p} = \frac{\varphi(a)}{\sigma p (1 - p)}.

So whatever the literature gives as a gradient in p or in logits becomes one in μ, of the very loss
that :class:`gradlab.estimators.NES` smooths. All estimators here draw from NES's own search
distribution, and a seed gives all of them the same members: b from the sign of
:math:`\mu + \sigma\varepsilon`, its mirrored partner from :math:`\mu - \sigma\varepsilon`, and the
uniform number of the literature is :math:`u = \Phi(\varepsilon)`. What they average differs, here
per mirrored pair with f± at :math:`\mu \pm \sigma\varepsilon`:

=====================  =============================================================
antithetic NES         :math:`\tfrac12(f_+ - f_-)\,\varepsilon/\sigma`
ARM                    :math:`(f_+ - f_-)(u - \tfrac12)\,\varphi(a)/(\sigma p(1 - p))`
DisARM                 :math:`\tfrac12(f_+ - f_-)\,\tfrac12(b - \tilde b)\,
                       \varphi(a)/(\sigma\Phi(-|a|))`
=====================  =============================================================

The last is the expectation of either of the others given the signs, all that the loss depends on;
by the Rao-Blackwell theorem its variance is above neither's.

Real weights of the same network (the output layer) keep Gaussian noise and NES's score ε/σ. Layers
that scale their signs by the mean size of the latent weights have that scale *held* at its value
at μ, as backpropagation does (no gradient flows through it): there J is the loss smoothed in the
signs alone.

Which weights are binary: hidden layers of a ``BinarizedMLP`` with ``weight="binary"``, the weights
of :class:`gradlab.binary.layers.BinaryLinear` and ``BinaryConv2d`` in any module, or the names in
the attribute ``binary_weights`` of an objective that has one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.binary.layers import BinaryConv2d, BinaryLinear
from gradlab.estimators.base import GradientEstimate, require_finite, split_half_diagnostics
from gradlab.estimators.fitness_shaping import shape
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import GaussianPopulation, Params
from gradlab.models.mlp import BinarizedMLP
from gradlab.objectives.base import Objective

# Floats of noise, or of members, in flight: 16 MiB.
MEMBER_FLOATS = 2**22
# exp of this times the exact zero of a sign that is never drawn is zero; of infinity it is NaN
_LARGEST_LOG = 700.0


def binary_weights(objective: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the binary weights, and of those whose layer scales by the size of latent weights.

    >>> from gradlab.objectives import TeacherStudent
    >>> names, scaled = binary_weights(TeacherStudent(2, 8, seed=0, depth=1, weight="binary"))
    >>> sorted(names), sorted(scaled)
    (['layers.0.weight'], [])
    """
    if hasattr(objective, "binary_weights"):
        return frozenset(objective.binary_weights), frozenset()
    model = getattr(objective, "model", None)
    if model is None and hasattr(objective, "architecture"):
        model = objective.evaluator.program.module
    if isinstance(model, BinarizedMLP):
        hidden = model.layer_names[:-1] if model.weight == "binary" else ()
        return frozenset(hidden), frozenset()
    names, scaled = set(), set()
    for prefix, layer in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(layer, BinaryLinear | BinaryConv2d) and layer.binary:
            name = f"{prefix}.weight" if prefix else "weight"
            names.add(name)
            if layer.scaling in ("channel", "layer"):
                scaled.add(name)
    return frozenset(names), frozenset(scaled)


@dataclass(frozen=True)
class SignDistribution:
    """N(μ, σ²) on every weight, some of which act through their sign.

    Args:
        mean: parameters μ.
        sigma: standard deviation of every weight.
        names: the binary weights.
        held: those whose magnitude is held at that of μ.
    """

    mean: Params
    sigma: float
    names: frozenset[str]
    held: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        objective: Objective,
        params: Params,
        sigma: float,
        estimator: str,
        *,
        free: bool = False,
    ) -> SignDistribution:
        """The distribution of an objective's weights around ``params``.

        Args:
            objective: declares its binary weights.
            params: μ, detached.
            sigma: standard deviation.
            estimator: who asks, for the message.
            free: whether the magnitude of latent weights has to be free to choose.

        Raises:
            ValueError: a parameter that is not finite, no binary weights among them, or scales
                that depend on the magnitude which has to be free.
        """
        params = require_finite(params)
        names, scaled = (found & set(params) for found in binary_weights(objective))
        if not names:
            raise ValueError(
                f"{estimator} draws the signs of binary weights, and this "
                f'{type(objective).__name__} has none: use nes, or weight = "binary".'
            )
        if free and scaled:
            raise ValueError(
                f"{estimator} chooses the size of latent weights, which scales the layer of "
                f'{min(scaled)}: use rao_blackwell_nes, or scaling = "none" or "learned".'
            )
        return cls(params, float(sigma), names, scaled)

    @functools.cached_property
    def flat(self) -> Tensor:
        """μ flattened, ``(d,)``."""
        return pop.flatten(self.mean)

    @functools.cached_property
    def binary(self) -> Tensor:
        """Which flat coordinates are binary weights, ``(d,)`` bool."""
        parts = [torch.full_like(w, n in self.names) for n, w in self.mean.items()]
        return torch.cat([part.flatten() for part in parts]) > 0

    @functools.cached_property
    def ratio(self) -> Tensor:
        """The ratio a = μ/σ, ``(d,)`` float64."""
        return self.flat.double() / self.sigma

    @functools.cached_property
    def log_density(self) -> Tensor:
        """Its log density log φ(a), ``(d,)`` float64."""
        return -0.5 * self.ratio.square() - 0.5 * math.log(2 * math.pi)

    def log_probability(self, sign: Tensor | int = 1) -> Tensor:
        """Log of P(b = sign), ``(d,)`` float64, with its digits in the lower tail."""
        found: Tensor = torch.special.log_ndtr(sign * self.ratio)
        return found

    def log_metric(self, natural: bool) -> Tensor:
        """Log of the inverse Fisher information of each sign, σ²p(1 − p)/φ², or 0 for plain."""
        if not natural:
            return torch.zeros_like(self.ratio)
        both = self.log_probability(1) + self.log_probability(-1)
        return 2 * math.log(self.sigma) + both - 2 * self.log_density

    @property
    def logit_slope(self) -> Tensor:
        """Derivative of log p/(1 − p) in μ, ``(d,)`` float64."""
        both = self.log_probability(1) + self.log_probability(-1)
        return torch.exp(self.log_density - both) / self.sigma

    def drawn(self, noise: Tensor) -> Tensor:
        """μ + σε flat, as every population computes it."""
        return self.flat + self.sigma * noise.to(self.flat.dtype)

    def network_weights(self, drawn: Tensor, size: float | None = None) -> Params:
        """Flat members ``(..., d)`` as parameters; binary weights never zero.

        Args:
            drawn: whose signs, and whose values where weights are real.
            size: magnitude of binary weights; their own, or the held one, if left out.
        """
        found = {}
        for name, w in pop.unflatten(drawn, self.mean).items():
            if name in self.names:
                length = self.mean[name].abs().expand_as(w) if name in self.held else w.abs()
                if size is not None:
                    length = torch.full_like(w, size)
                length = length.clamp_min(torch.finfo(w.dtype).tiny)
                found[name] = torch.where(w >= 0, length, -length)
            else:
                found[name] = w
        return found

    def losses(self, objective: Objective, population: GaussianPopulation) -> Tensor:
        """Loss of every member, ``(P,)`` float64, with held magnitudes."""
        if not self.held:
            return objective.losses(population)
        found = []
        for low, high in pop.chunks(len(population), MEMBER_FLOATS // len(self.flat)):
            members = self.drawn(population.part(low, high).noise())
            found.append(objective.losses(self.network_weights(members)))
        return torch.cat(found)

    def estimate(self, gradient: Tensor) -> Params:
        """A flat gradient ``(d,)`` as parameters, in their precision."""
        found = pop.unflatten(gradient, self.mean)
        return {name: tensor.to(self.mean[name].dtype) for name, tensor in found.items()}


def score_estimate(
    objective: Objective,
    params: Params,
    generator: torch.Generator,
    *,
    estimator: str,
    score: str,
    population: int,
    sigma: float,
    natural: bool = False,
    baseline: bool = True,
) -> GradientEstimate:
    """One estimate from losses alone.

    Args:
        objective: with binary weights.
        params: where.
        generator: one key is drawn.
        estimator: its name, for messages.
        score: "bernoulli" for independent members, "arm" or "disarm" for mirrored pairs.
        population: number of evaluations.
        sigma: standard deviation of every weight.
        natural: divide by the Fisher information, that of Bernoulli variables in μ for signs and
            1/σ² for real weights.
        baseline: subtract the mean of the other members; mirrored pairs need none.

    Raises:
        ValueError: see :meth:`SignDistribution.of`.
    """
    distribution = SignDistribution.of(objective, params, sigma, estimator)
    mirrored = score != "bernoulli"
    whole = GaussianPopulation(
        distribution.mean, float(sigma), draw_key(generator), 0, population, antithetic=mirrored
    )
    losses = distribution.losses(objective, whole)
    fitness = "centered" if baseline else "raw"
    weights = torch.zeros(3, population, dtype=torch.float64, device=losses.device)
    group = torch.arange(population, device=losses.device) // (2 if mirrored else 1) % 2
    for row, chosen in zip(weights, (group >= 0, group == 0, group == 1), strict=True):
        if population >= 8 or chosen.all():
            shaped = shape(losses[chosen], fitness, antithetic=mirrored)
            row[chosen] = shaped / len(shaped)
    rows = _scored(distribution, whole, weights, score, natural)
    diagnostics = {}
    if population >= 8:
        first, second = (pop.unflatten(row, params) for row in rows[1:])
        diagnostics = split_half_diagnostics((first, second), population)
    return GradientEstimate(
        distribution.estimate(rows[0]), forward_passes=float(population), diagnostics=diagnostics
    )


def _scored(
    distribution: SignDistribution,
    population: GaussianPopulation,
    weights: Tensor,
    score: str,
    natural: bool,
) -> Tensor:
    """Weighted sums of scores, ``(R, d)`` float64, for weights ``(R, P)``."""
    binary, sigma, mean = distribution.binary, distribution.sigma, distribution.flat
    total = weights.sum(dim=1, keepdim=True)
    if population.antithetic:
        # a mirrored pair shares its noise
        weights = weights[:, 0::2] - weights[:, 1::2]
        population = GaussianPopulation(
            population.mean, population.sigma, population.key, 0, len(population) // 2
        )
    sums = torch.zeros(len(weights), len(binary), dtype=torch.float64, device=weights.device)
    for low, high in pop.chunks(len(population), MEMBER_FLOATS // len(binary)):
        noise = population.part(low, high).noise()
        plus = distribution.drawn(noise) >= 0
        if score == "bernoulli":
            # Only the less likely sign is counted: it is rare where scores are large.
            signs = (plus != (mean >= 0)).to(noise.dtype)
        elif score == "disarm":
            minus = distribution.drawn(-noise) >= 0
            signs = plus.to(noise.dtype) - minus.to(noise.dtype)
        else:
            signs = (2 * torch.special.ndtr(noise.double()) - 1).to(noise.dtype)
        sums += weights[:, low:high].to(noise.dtype) @ torch.where(binary, signs, noise)

    def scale(log_probability: Tensor) -> Tensor:
        exponent = distribution.log_density - log_probability + distribution.log_metric(natural)
        return torch.exp(exponent.clamp_max(_LARGEST_LOG)) / sigma

    magnitude = distribution.ratio.abs()
    likely, unlikely = (torch.special.log_ndtr(side) for side in (magnitude, -magnitude))
    if score == "bernoulli":
        towards = torch.where(mean >= 0, scale(likely), -scale(likely))
        away = torch.where(mean >= 0, scale(unlikely), -scale(unlikely))
        scored = towards * total - (towards + away) * sums
    else:
        scored = sums * scale(unlikely if score == "disarm" else likely + unlikely)
    return torch.where(binary, scored, sums * (sigma if natural else 1 / sigma))


def sampled_estimate(
    distribution: SignDistribution,
    generator: torch.Generator,
    samples: int,
    gradient_at: Callable[[Tensor], Tensor],
    *,
    forward_passes: float,
    backward_passes: float = 0.0,
) -> GradientEstimate:
    """The mean of a gradient over draws of the noise.

    Args:
        distribution: of the weights.
        generator: one key is drawn.
        samples: number of draws.
        gradient_at: of standard normal noise ``(d,)``, the flat gradient ``(d,)`` float64.
        forward_passes: of one draw.
        backward_passes: of one draw.
    """
    draws = GaussianPopulation(
        distribution.mean, distribution.sigma, draw_key(generator), 0, samples
    )
    sums = torch.zeros(2, len(distribution.flat), dtype=torch.float64).to(distribution.flat.device)
    for low, high in pop.chunks(samples, MEMBER_FLOATS // len(distribution.flat)):
        for index, noise in enumerate(draws.part(low, high).noise(), start=low):
            sums[index % 2] += gradient_at(noise)
    diagnostics = {}
    if samples >= 2:
        first = pop.unflatten(sums[0] / (samples - samples // 2), distribution.mean)
        second = pop.unflatten(sums[1] / (samples // 2), distribution.mean)
        diagnostics = split_half_diagnostics((first, second), samples)
    return GradientEstimate(
        distribution.estimate(sums.sum(dim=0) / samples),
        forward_passes=samples * forward_passes,
        backward_passes=samples * backward_passes,
        diagnostics=diagnostics,
    )


def check_population(population: object, *, mirrored: bool, least: int = 2) -> None:
    """Refuse a number of evaluations that the estimator cannot use, in one sentence.

    >>> check_population(5, mirrored=True)
    Traceback (most recent call last):
    ValueError: population is 5: mirrored pairs need an even number; give 6.
    """
    if isinstance(population, bool) or not isinstance(population, int) or population < least:
        raise ValueError(f"population is {population!r}: give a whole number of at least {least}.")
    if mirrored and population % 2:
        raise ValueError(
            f"population is {population}: mirrored pairs need an even number; "
            f"give {population + 1}."
        )


def label_of(name: str, count: int, sigma: float) -> str:
    """A name with its number of evaluations or samples, and sigma where it is not 0.1."""
    return f"{name} {count}" + ("" if sigma == 0.1 else f" σ={sigma:g}")
