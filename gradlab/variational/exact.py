"""The exact divergence of multiplicative noise from the log-uniform prior: the fits' referee.

For q(w) = N(θ, α θ²) and p(w) ∝ 1/|w|, with ε ~ N(0, 1) and u = 1/(2α), the divergence that
vanishes as α → ∞ is

    KL(α) = E ln|1 + √α ε| − ½ ln α − ½ (ψ(½) + ln 2) = ½ Σ_k Pois(k; u) (ψ(½ + k) − ψ(½)),

since (1 + √α ε)²/α has a noncentral χ² distribution with one degree of freedom, a Poisson mixture
of central ones with 1 + 2k, and E ln χ²_ν = ψ(ν/2) + ln 2. The difference of digammas is the sum of
1/(j + ½) over j < k: every term is positive, and nothing cancels.

**Truncation.** The series stops after 160 terms and serves for u ≤ 50. The k-th difference is at
most 2k, so that what is left out is at most Σ_{k > 160} k Pois(k; u) = u P(K ≥ 160), and by
Chernoff's bound P(K ≥ 160) ≤ e^{−50} (50 e / 160)^160 < 2·10⁻³⁴.

**Small α.** For u > 50 the expansion at α → 0 takes over,

    KL(α) ~ ½ (γ + ln 2 − ln α) − Σ_{n ≥ 1} (2n − 1)!! αⁿ / (2n),

with Euler's γ. It diverges, but its terms fall until n ≈ u; after 20 of them, at α = .01, the next
is below 10⁻¹⁸. Together they hold for every α.

The slope is Dawson's function D in disguise, dKL/d ln α = −√u D(√u), which the tests use. Autograd
gives it too, but with 160 numbers for each weight: this is for judging fits, not for training.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_TERMS = 160
_SMALL_TERMS = 20
_SMALL = math.log(0.01)  # ln α below which the expansion for small α takes over
_EULER = 0.5772156649015329


def log_uniform_exact(log_alpha: Tensor) -> Tensor:
    """KL(N(θ, α θ²) ‖ log-uniform), normalized to 0 as α → ∞, to rounding in float64.

    Args:
        log_alpha: ln α, any shape and any value.

    Returns:
        nats in float64, of the shape of ``log_alpha``.

    >>> log_uniform_exact(torch.tensor([-8.0, 0.0, 3.0]))
    tensor([4.6350, 0.4267, 0.0247], dtype=torch.float64)
    """
    x = log_alpha.double()
    # each branch sees only its own range, so that neither spoils the other's gradient
    return torch.where(x < _SMALL, _small_alpha(x.clamp(max=_SMALL)), _poisson(x.clamp(min=_SMALL)))


def largest_error(
    approximation: Callable[[Tensor], Tensor],
    low: float = -8.0,
    high: float = 8.0,
    points: int = 16001,
) -> tuple[float, float]:
    """Where a fit to the log-uniform divergence is furthest off, and by how much.

    Args:
        approximation: of ln α, elementwise.
        low: least ln α.
        high: greatest ln α.
        points: of an equidistant grid.

    Returns:
        The largest absolute error in nats on the grid, and the ln α where it occurs.

    >>> from gradlab.variational.kl import log_uniform, log_uniform_cubic
    >>> error, place = largest_error(log_uniform)
    >>> f"{error:.4f} at {place:.1f}"
    '0.0094 at -3.5'
    >>> error, place = largest_error(log_uniform_cubic, low=-20, high=0)
    >>> f"{error:.4f} at {place:.1f}"
    '0.0202 at -2.1'
    """
    grid = torch.linspace(low, high, points, dtype=torch.float64)
    errors = (approximation(grid) - log_uniform_exact(grid)).abs()
    worst = int(errors.argmax())
    return float(errors[worst]), float(grid[worst])


def _poisson(x: Tensor) -> Tensor:
    u = torch.exp(-x) / 2
    k = torch.arange(1, _TERMS + 1, dtype=x.dtype, device=x.device)
    differences = (1 / (k - 0.5)).cumsum(0)  # ψ(½ + k) − ψ(½)
    weights = torch.exp(-u)[..., None] * torch.cumprod(u[..., None] / k, dim=-1)
    return weights @ differences / 2


def _small_alpha(x: Tensor) -> Tensor:
    alpha = x.exp()
    total, term = (_EULER + math.log(2) - x) / 2, torch.ones_like(x)
    for n in range(1, _SMALL_TERMS + 1):
        term = term * (2 * n - 1) * alpha
        total = total - term / (2 * n)
    return total
