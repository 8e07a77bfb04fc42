from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from gradlab.variational.exact import largest_error, log_uniform_exact

WIDE = torch.linspace(-20, 20, 4001, dtype=torch.float64)


def by_quadrature(log_alpha: float) -> float:
    """E ln|1 + √α ε| − ½ ln α, an integral over y = |ε + 1/√α|, minus its limit as α → ∞."""
    m = math.exp(-log_alpha / 2)

    def integrand(y: float) -> float:
        return math.log(y) * (stats.norm.pdf(y - m) + stats.norm.pdf(y + m))

    # the logarithm's singularity is an end of the first part; the mass lies around m
    ends = sorted({0.0, min(1.0, m), max(m - 12, 0.0), m, m + 12})
    parts = [
        integrate.quad(integrand, low, high, epsabs=1e-12, epsrel=1e-12, limit=200)[0]
        for low, high in itertools.pairwise(ends)
    ]
    return math.fsum(parts) - (special.digamma(0.5) + math.log(2)) / 2


@pytest.mark.parametrize("log_alpha", [-12.0, -8.0, -5.0, -4.61, -4.6, -3.5, -1.0, 0.0, 3.0, 8.0])
def test_series_agrees_with_quadrature(log_alpha):
    exact = float(log_uniform_exact(torch.tensor(log_alpha, dtype=torch.float64)))
    assert exact == pytest.approx(by_quadrature(log_alpha), abs=1e-10)


def test_values_of_the_reference():
    values = log_uniform_exact(torch.tensor([0.0, 3.0]))
    assert values.tolist() == pytest.approx([0.4267, 0.0247], abs=5e-5)


def test_slope_is_dawsons_function_on_both_branches():
    x = WIDE.clone().requires_grad_()
    log_uniform_exact(x).sum().backward()
    root = np.exp(-WIDE.numpy() / 2) / math.sqrt(2)
    np.testing.assert_allclose(x.grad.numpy(), -root * special.dawsn(root), rtol=1e-11)


def test_branches_meet():
    border = math.log(0.01)
    around = torch.tensor([border - 1e-13, border, border + 1e-13], dtype=torch.float64)
    values = log_uniform_exact(around)
    assert float(values.max() - values.min()) < 1e-12


def test_limits():
    small, large = log_uniform_exact(torch.tensor([-40.0, 30.0], dtype=torch.float64)).tolist()
    assert small == pytest.approx(20 + (np.euler_gamma + math.log(2)) / 2, rel=1e-14)
    assert large == pytest.approx(math.exp(-30) / 2, rel=1e-12)


def test_positive_and_decreasing():
    values = log_uniform_exact(WIDE)
    assert (values > 0).all()
    assert (values.diff() < 0).all()


def test_any_shape_and_precision_gives_float64_of_that_shape():
    log_alpha = torch.tensor([[0.0, -8.0], [3.0, -3.0], [1.0, 8.0]])
    values = log_uniform_exact(log_alpha)
    assert values.dtype == torch.float64
    assert values.shape == (3, 2)
    torch.testing.assert_close(values[1, 0], log_uniform_exact(torch.tensor(3.0)))


def test_nan_stays_nan():
    assert log_uniform_exact(torch.tensor(math.nan)).isnan()


def test_largest_error_finds_the_place():
    def off_at_two(x):
        return log_uniform_exact(x) - 0.5 * torch.exp(-((x - 2) ** 2))

    error, place = largest_error(off_at_two, low=-1, high=3, points=401)
    assert error == pytest.approx(0.5, abs=1e-12)
    assert place == pytest.approx(2)
