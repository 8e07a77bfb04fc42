"""What a noisy weight costs: divergences between posterior and prior, and log densities.

Variational inference fits a distribution q over the weights by minimizing

    mean negative log-likelihood + beta · KL(q ‖ p) / N,    KL(q ‖ p) = E_q[ln q(w) − ln p(w)],

with N the size of the training set. The divergence is in nats, its first argument is the posterior,
and it is a sum over weights. Every function here is elementwise and sums over nothing, so that the
sum, and what it runs over, is visible where it is taken.

**Multiplicative noise**, q(w) = N(θ, α θ²), and a prior that is log-uniform, p(w) ∝ 1/|w|: the
divergence depends on α alone (Kingma, Salimans and Welling 2015, arXiv 1506.02557). The prior has
no norm, hence the divergence no origin (and, for the usual likelihoods, there is no posterior:
Hron, Matthews and Ghahramani 2017, arXiv 1711.02989); here it is shifted to vanish as α → ∞, where
the data say nothing about the weight. With ε ~ N(0, 1) and the digamma function ψ,

    KL(α) = E ln|1 + √α ε| − ½ ln α − ½ (ψ(½) + ln 2).

It has no elementary form; :mod:`gradlab.variational.exact` sums its series and is the referee of
two fits:

- :func:`log_uniform`, Molchanov, Ashukha and Vetrov 2017 (arXiv 1701.05369, eq. 14),
  k₁ − k₁ sigmoid(k₂ + k₃ ln α) + ½ ln(1 + 1/α), at most .0094 off for ln α in [−20, 20], positive
  and decreasing everywhere. Sparse variational dropout takes it; Louizos, Ullrich and Welling 2017
  (arXiv 1705.08665) take it for the noise on a group of weights.
- :func:`log_uniform_cubic`, Kingma et al. 2015, appendix C, C − ½ ln α − c₁ α − c₂ α² − c₃ α³, for
  α ≤ 1 only. Its authors leave C open; no C brings the largest error there below .0202. Above, the
  cubic collapses: it is negative from α = 1.61 on, falls to −∞, and rewards noise without end.

**The same posterior under a prior that learns its width**, N(0, γ): at the best γ = θ²(1 + α), one
for each weight, the divergence is ½ ln(1 + 1/α), :func:`ard`. Liu et al. 2018 (arXiv 1811.07533)
call it hierarchical, Kharitonov, Molchanov and Vetrov 2018 (arXiv 1811.00596) automatic
relevance determination. It is proper, exact, and has the log-uniform divergence's slope −½ in ln α
where α is small.

**Additive noise**, q(w) = N(μ, σ²). Under a Gaussian prior the divergence is closed,
:func:`gaussian`. Under the scale mixture π N(0, σ₁²) + (1 − π) N(0, σ₂²) of Blundell, Cornebise,
Kavukcuoglu and Wierstra 2015 (arXiv 1505.05424, eq. 7) it is not; they sample
:func:`gaussian_log_density` − :func:`scale_mixture_log_density` at w ~ q, which is unbiased, and
negative for some w.

**Two values**: :func:`bernoulli` for weights ±1 with a probability each. Concrete dropout (Gal,
Hron and Kendall 2017, arXiv 1705.07832) learns the probability p of dropping a unit and subtracts
its entropy, :func:`concrete_entropy`. The penalty of Louizos, Welling and Kingma 2018 (arXiv
1712.01312) is an expected number of weights, no divergence, and stands with its layer.

**Numbers.** Everything is finite, with its gradient, for ln α in [−20, 20] in float32 and float64.
Inputs of half precision are computed and returned in float32, since a layer's sum has no meaning in
eight bits; their gradients come back in half precision.

>>> log_uniform(torch.tensor([-8.0, 0.0, 3.0]))
tensor([4.6359, 0.4312, 0.0254])
>>> ard(torch.tensor([-8.0, 0.0, 3.0]))
tensor([4.0002, 0.3466, 0.0243])
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# of Molchanov et al. 2017, eq. 14
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695
# of Kingma et al. 2015, appendix C; the constant, which they leave open, halves the largest
# difference to the exact divergence over all alpha ≤ 1
_C1, _C2, _C3 = 1.16145124, -1.50204118, 0.58629921
_CUBIC_CONSTANT = 0.65535


def log_uniform(log_alpha: Tensor) -> Tensor:
    """KL(N(θ, α θ²) ‖ log-uniform), the fit of Molchanov et al. 2017 (arXiv 1701.05369, eq. 14).

    Positive, decreasing, 0 as α → ∞; at most .0094 off for ln α in [−20, 20].

    Args:
        log_alpha: ln α, any shape.

    Returns:
        nats, of the shape of ``log_alpha``.

    >>> log_uniform(torch.tensor([-20.0, 20.0]))
    tensor([1.0636e+01, 1.0306e-09])
    """
    x = _floating(log_alpha)
    # k₁ − k₁ sigmoid(y) cancels where y is large; k₁ sigmoid(−y) does not
    return _K1 * torch.sigmoid(-(_K2 + _K3 * x)) + ard(x)


def log_uniform_cubic(log_alpha: Tensor) -> Tensor:
    """KL(N(θ, α θ²) ‖ log-uniform) for α ≤ 1, the cubic of Kingma et al. 2015, appendix C.

    At most .0202 off for every α ≤ 1, with a constant of ours (see the module's docstring). Wrong
    above, where it falls to −∞: keep ln α ≤ 0 by projection after each step.

    Args:
        log_alpha: ln α, any shape.

    Returns:
        nats, of the shape of ``log_alpha``.

    >>> log_uniform_cubic(torch.tensor([-20.0, 0.0, 3.0]))
    tensor([ 1.0655e+01,  4.0964e-01, -4.1690e+03])
    """
    x = _floating(log_alpha)
    alpha = x.exp()
    return _CUBIC_CONSTANT - x / 2 - alpha * (_C1 + alpha * (_C2 + alpha * _C3))


def ard(log_alpha: Tensor) -> Tensor:
    """½ ln(1 + 1/α): KL(N(θ, α θ²) ‖ N(0, γ)) at its best γ, which is θ²(1 + α).

    Liu et al. 2018 (arXiv 1811.07533), Kharitonov et al. 2018 (arXiv 1811.00596).

    Args:
        log_alpha: ln α, any shape.

    Returns:
        nats, of the shape of ``log_alpha``.

    >>> ard(torch.tensor([-20.0, 0.0, 20.0]))
    tensor([1.0000e+01, 3.4657e-01, 1.0306e-09])
    """
    # softplus(−x) without its switch to a straight line, which float64 would see
    return -F.logsigmoid(_floating(log_alpha)) / 2


def gaussian(
    mean: Tensor, sigma: Tensor, prior_mean: Tensor | float, prior_sigma: Tensor | float
) -> Tensor:
    """KL(N(mean, sigma²) ‖ N(prior_mean, prior_sigma²)): the posterior first.

    Args:
        mean: mean of the posterior.
        sigma: its standard deviation, positive.
        prior_mean: mean of the prior.
        prior_sigma: its standard deviation, positive.

    Returns:
        nats, of the shape that the arguments broadcast to.

    Raises:
        ValueError: a ``prior_sigma`` that is a number and not positive and finite.

    >>> gaussian(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.1]), 0.0, 1.0)
    tensor([0.0000, 2.3076])
    """
    _positive("prior_sigma", prior_sigma)
    mean, sigma = _floating(mean), _floating(sigma)
    # ½(r² − 1) − ln r in t = ln r keeps its digits where the two widths are nearly equal
    t = torch.log(sigma / prior_sigma)
    return torch.expm1(2 * t) / 2 - t + ((mean - prior_mean) / prior_sigma).square() / 2


def gaussian_log_density(w: Tensor, mean: Tensor | float, sigma: Tensor | float) -> Tensor:
    """The log density ln N(w; mean, sigma²).

    Args:
        w: where.
        mean: mean.
        sigma: standard deviation, positive.

    Returns:
        nats, of the shape that the arguments broadcast to.

    Raises:
        ValueError: a ``sigma`` that is a number and not positive and finite.

    >>> gaussian_log_density(torch.tensor([0.0, 2.0]), 0.0, 1.0)
    tensor([-0.9189, -2.9189])
    """
    _positive("sigma", sigma)
    w = _floating(w)
    log_sigma = torch.log(_like(sigma, w))
    return -((w - mean) / sigma).square() / 2 - log_sigma - math.log(2 * math.pi) / 2


def scale_mixture_log_density(w: Tensor, pi: float, sigma1: float, sigma2: float) -> Tensor:
    """The log density ln(π N(w; 0, σ₁²) + (1 − π) N(w; 0, σ₂²)) of Blundell et al. 2015, eq. 7.

    They (arXiv 1505.05424) try π in {¼, ½, ¾}, −ln σ₁ in {0, 1, 2} and −ln σ₂ in {6, 7, 8}.

    Args:
        w: where.
        pi: share of the first Gaussian, between 0 and 1.
        sigma1: standard deviation of the first, positive.
        sigma2: standard deviation of the second, positive.

    Returns:
        nats, of the shape of ``w``.

    Raises:
        ValueError: a share or standard deviation out of range.

    >>> scale_mixture_log_density(torch.tensor([0.0, 1.0]), 0.5, 1.0, 0.01)
    tensor([ 3.0030, -2.1121])
    """
    if not 0 < pi < 1:
        raise ValueError(f"pi is {pi!r}: give a share of the mixture between 0 and 1.")
    _positive("sigma1", sigma1)
    _positive("sigma2", sigma2)
    return torch.logaddexp(
        math.log(pi) + gaussian_log_density(w, 0.0, sigma1),
        math.log1p(-pi) + gaussian_log_density(w, 0.0, sigma2),
    )


def bernoulli(log_odds: Tensor, prior_log_odds: Tensor | float) -> Tensor:
    """KL(Bernoulli(sigmoid(log_odds)) ‖ Bernoulli(sigmoid(prior_log_odds))).

    A weight ±1 of mean tanh λ has log odds 2λ.

    Args:
        log_odds: ln(p / (1 − p)) of the posterior.
        prior_log_odds: of the prior; 0 for a fair coin.

    Returns:
        nats, of the shape that the arguments broadcast to.

    >>> bernoulli(torch.tensor([0.0, -20.0, 20.0]), 0.0)
    tensor([0.0000, 0.6931, 0.6931])
    """
    x = _floating(log_odds)
    y = _like(prior_log_odds, x)
    yes, no = F.logsigmoid(x) - F.logsigmoid(y), F.logsigmoid(-x) - F.logsigmoid(-y)
    return torch.sigmoid(x) * yes + torch.sigmoid(-x) * no


def concrete_entropy(p: Tensor) -> Tensor:
    """−p ln p − (1 − p) ln(1 − p), which concrete dropout rewards (Gal et al. 2017).

    Its slope is infinite at 0 and 1, where it counts as 0 here: what reaches a p in [0, 1] through
    a sigmoid that has saturated has gradient zero anyway, and zero times infinity would be NaN.

    Args:
        p: probabilities.

    Returns:
        nats, of the shape of ``p``; at most ln 2.

    >>> concrete_entropy(torch.tensor([0.0, 0.1, 0.5, 1.0]))
    tensor([0.0000, 0.3251, 0.6931, 0.0000])
    """
    p = _floating(p)
    certain = (p == 0) | (p == 1)
    # computed at ½ there, so that the branch not taken has a finite gradient
    inside = torch.where(certain, 0.5, p)
    entropy = -inside * inside.log() - (1 - inside) * torch.log1p(-inside)
    return torch.where(certain, 0.0, entropy)


def _floating(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _like(value: Tensor | float, x: Tensor) -> Tensor:
    """A number or tensor as a tensor with which ``x`` can be combined."""
    return _floating(value) if isinstance(value, Tensor) else x.new_tensor(value)


def _positive(name: str, value: Tensor | float) -> None:
    # tensors are not looked at: that would wait for the device at every step
    if not isinstance(value, Tensor) and not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r}: give a positive standard deviation.")
