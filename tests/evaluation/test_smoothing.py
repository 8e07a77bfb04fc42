"""Moments and scores of smoothed activations against numeric quadrature."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import integrate, stats

from gradlab.binary import activations
from gradlab.evaluation.smoothing import moments, score

NAMES = ["binary", "ternary", "decoupled_ternary", "2bit", "full"]
MEANS = [-2.0, -0.3, 0.0, 0.25, 0.6, 1.0, 3.0]


def value(name: str, z: float) -> float:
    return float(activations.create(name).forward(torch.tensor(z, dtype=torch.float64)))


def edges(name: str) -> list[float]:
    thresholds = activations.create(name).thresholds
    return list(thresholds if thresholds is not None else (0.0, 1.0))


def expectation(name: str, mean: float, spread: float, power: int, with_noise: bool) -> float:
    """E a(z)^power, or E a(z)^power ξ, by quadrature between the thresholds."""

    def integrand(z: float) -> float:
        noise = (z - mean) / spread
        return value(name, z) ** power * (noise if with_noise else 1) * stats.norm.pdf(noise)

    low, high = mean - 10 * spread, mean + 10 * spread
    inner = [edge for edge in edges(name) if low < edge < high]
    ends = [low, *inner, high]
    pieces = itertools.pairwise(ends)
    # a hair inside, so that no node lies on a threshold
    return sum(
        integrate.quad(integrand, a + 1e-12, b - 1e-12, limit=100)[0] / spread for a, b in pieces
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spread", [0.2, 1.5])
def test_moments_and_their_derivatives_agree_with_quadrature(name: str, spread: float) -> None:
    mean = torch.tensor(MEANS, dtype=torch.float64, requires_grad=True)
    first, second = moments(activations.create(name), mean, torch.tensor(spread).double())
    (slope,) = torch.autograd.grad(first.sum(), mean, retain_graph=True)
    first, second = first.detach(), second.detach()
    for index, at in enumerate(MEANS):
        assert float(first[index]) == pytest.approx(
            expectation(name, at, spread, 1, False), abs=1e-7
        )
        assert float(second[index]) == pytest.approx(
            expectation(name, at, spread, 2, False), abs=1e-7
        )
        # d E a(z)/d mean = E a(z) ξ / spread
        assert float(slope[index]) == pytest.approx(
            expectation(name, at, spread, 1, True) / spread, abs=1e-6
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.4, 0.8, 2.0])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_score_is_the_mean_noise_of_its_level(name: str, mean: float, spread: float) -> None:
    activation = activations.create(name)
    bounds = [-math.inf, *edges(name), math.inf]
    for k, (low, high) in enumerate(itertools.pairwise(bounds)):
        a, b = (low - mean) / spread, (high - mean) / spread
        mass = stats.norm.cdf(b) - stats.norm.cdf(a)
        if mass < 1e-9:
            continue
        inside = float(stats.norm.ppf(stats.norm.cdf(a) + 0.37 * mass))
        got = score(
            activation,
            torch.tensor([mean]).double(),
            torch.tensor([spread]).double(),
            torch.tensor([inside]).double(),
        )
        expected = (stats.norm.pdf(a) - stats.norm.pdf(b)) / mass
        if name == "full" and k == 1:
            expected = inside  # between the clips the network sees z itself
        assert float(got) * spread == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mean", [-1.0, 0.1, 0.9])
def test_score_has_mean_zero_and_gives_the_derivative_of_the_mean(name: str, mean: float) -> None:
    # midpoints of equal mass: a quadrature of E over ξ
    size, spread = 400_000, torch.tensor(0.5).double()
    noise = torch.special.ndtri((torch.arange(size).double() + 0.5) / size)
    centre = torch.full_like(noise, mean).requires_grad_()
    activation = activations.create(name)
    scores = score(activation, centre.detach(), spread, noise)
    assert abs(float(scores.mean())) < 2e-5
    (slope,) = torch.autograd.grad(moments(activation, centre, spread)[0].sum(), centre)
    estimate = (activation.forward(centre.detach() + spread * noise) * scores).mean()
    assert float(estimate) == pytest.approx(float(slope[0]), abs=5e-5)
    # conditioning never raises the variance: E s² ≤ 1/spread²
    assert float((scores * spread).square().mean()) <= 1 + 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_and_right_however_extreme_the_pre_activation(name: str) -> None:
    # float32, as the estimators use it; noise within the ±5.8 that the generator can draw
    activation = activations.create(name)
    a = torch.cat((-torch.logspace(6, -6, 60), torch.zeros(1), torch.logspace(-6, 6, 60)))
    noise = torch.linspace(-5.76, 5.76, 97)
    for spread in (1e-3, 0.5, 30.0):
        mean = (a * spread)[:, None].expand(-1, len(noise)).contiguous()
        width = torch.full((len(a), 1), spread)
        got = score(activation, mean, width, noise.expand(len(a), -1).contiguous())
        assert got.isfinite().all()
        wide = score(activation, mean.double(), width.double(), noise.double().expand(len(a), -1))
        # rounding of z may put it on the other side of a threshold
        z, exact = mean + width * noise, mean.double() + width.double() * noise.double()
        same = torch.ones_like(z, dtype=torch.bool)
        for edge in edges(name):
            same &= (z >= edge) == (exact >= edge)
        error = ((got - wide) * width).abs()[same]
        assert same.double().mean() > 0.95
        # a score is a conditional mean of noise: of order one, at most six
        assert (wide * width).abs().max() < 6.5
        assert error.max() < 2e-3


def test_moments_are_finite_at_extreme_widths() -> None:
    for name in NAMES:
        for spread in (1e-13, 1e-6, 1e6):
            mean = torch.tensor([-1e4, -1.0, 0.0, 0.3, 1.0, 1e4], requires_grad=True)
            first, second = moments(activations.create(name), mean, torch.tensor(spread))
            (slope,) = torch.autograd.grad((first + second).sum(), mean)
            assert first.isfinite().all()
            assert second.isfinite().all()
            assert slope.isfinite().all()
