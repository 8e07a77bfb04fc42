from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal, kl_divergence

from gradlab.variational.exact import largest_error, log_uniform_exact
from gradlab.variational.kl import (
    ard,
    bernoulli,
    concrete_entropy,
    gaussian,
    gaussian_log_density,
    log_uniform,
    log_uniform_cubic,
    scale_mixture_log_density,
)

LOG_ALPHA = torch.linspace(-20, 20, 2001, dtype=torch.float64)
MIXTURE = {"pi": 0.25, "sigma1": 1.0, "sigma2": math.exp(-6)}

# every function as one of a single tensor, over [−20, 20]
DIRECT = {
    "log_uniform": log_uniform,
    "log_uniform_cubic": log_uniform_cubic,
    "ard": ard,
    "gaussian_mean": lambda x: gaussian(x, torch.full_like(x, 0.25), 0.1, 0.5),
    "gaussian_log_density": lambda x: gaussian_log_density(x, 0.5, 0.1),
    "scale_mixture_log_density": lambda x: scale_mixture_log_density(x, **MIXTURE),
    "bernoulli": lambda x: bernoulli(x, 0.0),
    "bernoulli_certain_prior": lambda x: bernoulli(x, -20.0),
}
# and behind the function through which a layer reaches it, which rounds by itself
OF_ONE = DIRECT | {
    "gaussian_rho": lambda x: gaussian(torch.zeros_like(x), F.softplus(x), 0.1, 0.5),
    "concrete_entropy": lambda x: concrete_entropy(torch.sigmoid(x)),
}
direct = pytest.mark.parametrize("function", DIRECT.values(), ids=DIRECT.keys())
every = pytest.mark.parametrize("function", OF_ONE.values(), ids=OF_ONE.keys())

real = st.floats(-20, 20)
positive = st.floats(1e-4, 1e4)
shares = st.floats(1e-6, 1 - 1e-6)


def double(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def z_score(samples: torch.Tensor, expected: float) -> float:
    return float((samples.mean() - expected) / samples.std()) * math.sqrt(len(samples))


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_finite_with_finite_gradient(function, dtype):
    x = LOG_ALPHA.to(dtype, copy=True).requires_grad_()
    values = function(x)
    assert values.shape == x.shape
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    values.sum().backward()
    assert values.isfinite().all()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


@direct
def test_float32_agrees_with_float64(function):
    single = LOG_ALPHA.float()
    torch.testing.assert_close(
        function(single).double(), function(single.double()), rtol=1e-5, atol=1e-6
    )


@direct
def test_half_precision_is_computed_in_float32(function):
    half = LOG_ALPHA.bfloat16()
    assert torch.equal(function(half), function(half.float()))


@every
def test_autocast_changes_nothing(function):
    x = LOG_ALPHA.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(x)
    assert torch.equal(inside, function(x))


@pytest.mark.parametrize("name", ["log_uniform", "log_uniform_cubic", "ard", "gaussian_mean",
                                  "gaussian_rho", "bernoulli", "concrete_entropy"])  # fmt: skip
def test_gradients_are_those_of_finite_differences(name):
    x = torch.linspace(-4, 4, 17, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(OF_ONE[name], (x,))


# the log-uniform prior, and ARD


def test_k_fit_errs_as_little_as_published():
    assert largest_error(log_uniform, -8, 8)[0] <= 0.0094
    assert largest_error(log_uniform, -20, 20)[0] <= 0.0094


def test_fits_are_the_published_formulas():
    x = torch.linspace(-5, 5, 11, dtype=torch.float64)
    alpha = x.exp()
    fit = 0.63576 * torch.sigmoid(1.87320 + 1.48695 * x) - 0.5 * torch.log(1 + 1 / alpha) - 0.63576
    cubic = 0.5 * x + 1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3
    torch.testing.assert_close(log_uniform(x), -fit)
    torch.testing.assert_close(log_uniform_cubic(x) - log_uniform_cubic(x[:1]), cubic[:1] - cubic)


def test_float32_keeps_its_digits_where_alpha_is_large():
    x = torch.tensor([15.0, 20.0])
    torch.testing.assert_close(ard(x), torch.exp(-x) / 2, rtol=1e-6, atol=0)
    # the sigmoid's share is α^−1.49 there
    torch.testing.assert_close(log_uniform(x), torch.exp(-x) / 2, rtol=1e-3, atol=0)


def test_cubic_agrees_for_alpha_up_to_one_and_no_constant_would_do_better():
    grid = LOG_ALPHA[LOG_ALPHA <= 0]
    difference = log_uniform_cubic(grid) - log_uniform_exact(grid)
    assert float(difference.max()) == pytest.approx(0.0202, abs=5e-5)
    assert float(difference.min()) == pytest.approx(-0.0202, abs=5e-5)


def test_cubic_collapses_above():
    alpha = torch.tensor([1.60, 1.61, 3.0, 1e8], dtype=torch.float64)
    values = log_uniform_cubic(alpha.log())
    assert (values > 0).tolist() == [True, False, False, False]
    assert (values.diff() < 0).all()
    assert float(values[-1]) < -1e23


def test_values_of_the_reference():
    log_alpha = torch.tensor([0.0, 3.0])
    assert ard(log_alpha).tolist() == pytest.approx([0.3466, 0.0243], abs=5e-5)
    assert log_uniform(log_alpha).tolist() == pytest.approx([0.4267, 0.0247], abs=0.0094)


@given(real, real)
def test_log_uniform_and_ard_are_positive_and_fall(one, other):
    low, high = double(min(one, other), max(one, other))
    for function in (log_uniform, ard):
        assert float(function(high)) > 0
        assert float(function(low)) >= float(function(high))
        if high - low > 1e-6:
            assert float(function(low)) > float(function(high))


@pytest.mark.parametrize("function", [log_uniform, ard, log_uniform_cubic])
def test_slope_is_minus_one_half_where_alpha_is_small(function):
    x = torch.tensor(-20.0, dtype=torch.float64, requires_grad=True)
    function(x).backward()
    assert float(x.grad) == pytest.approx(-0.5, abs=1e-7)


@given(real, st.floats(0.01, 10))
def test_ard_is_the_gaussian_divergence_at_its_best_prior(log_alpha, theta):
    best = theta * math.sqrt(1 + math.exp(log_alpha))
    mean, sigma = double(theta, theta * math.exp(log_alpha / 2))
    expected = float(ard(torch.tensor(log_alpha, dtype=torch.float64)))
    assert float(gaussian(mean, sigma, 0.0, best)) == pytest.approx(expected, abs=1e-9)
    for factor in (0.9, 1.1):
        assert float(gaussian(mean, sigma, 0.0, factor * best)) > expected


# Gaussians


@given(real, positive, real, positive)
def test_gaussian_agrees_with_torch(mean, sigma, prior_mean, prior_sigma):
    q, p = Normal(*double(mean, sigma)), Normal(*double(prior_mean, prior_sigma))
    ours = gaussian(q.loc, q.scale, prior_mean, prior_sigma)
    torch.testing.assert_close(ours, kl_divergence(q, p), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gaussian(q.loc, q.scale, p.loc, p.scale), ours)
    assert float(ours) >= -1e-12


def test_gaussian_has_the_posterior_first():
    q, p = Normal(*double(0.3, 0.2)), Normal(*double(0.0, 1.0))
    ours = gaussian(q.loc, q.scale, 0.0, 1.0)
    torch.testing.assert_close(ours, kl_divergence(q, p))
    assert abs(float(ours - kl_divergence(p, q))) > 5
    # and the definition: an average over the posterior
    w = q.sample((100_000,))
    difference = gaussian_log_density(w, 0.3, 0.2) - gaussian_log_density(w, 0.0, 1.0)
    assert abs(z_score(difference, float(ours))) < 4


def test_gaussian_keeps_its_digits_where_the_widths_are_nearly_equal():
    ratio = 1 + torch.tensor([0.0, 1e-6, -1e-5, 1e-4, -1e-3])
    ours = gaussian(torch.zeros(5), ratio, 0.0, 1.0)
    d = ratio.double() - 1
    torch.testing.assert_close(ours.double(), d + d**2 / 2 - torch.log1p(d), rtol=1e-3, atol=1e-12)


def test_gaussian_broadcasts_a_posterior_against_priors():
    assert gaussian(torch.zeros(3, 1), torch.ones(3, 1), 0.0, torch.ones(4)).shape == (3, 4)


@given(real, real, positive)
def test_gaussian_log_density_agrees_with_torch(w, mean, sigma):
    at, loc, scale = double(w, mean, sigma)
    expected = Normal(loc, scale).log_prob(at)
    torch.testing.assert_close(gaussian_log_density(at, mean, sigma), expected)
    torch.testing.assert_close(gaussian_log_density(at, loc, scale), expected)


@given(st.floats(-3, 3), shares, st.floats(0.1, 2), st.floats(1e-3, 0.1))
def test_scale_mixture_agrees_with_torch(w, pi, sigma1, sigma2):
    mixture = MixtureSameFamily(
        Categorical(torch.tensor([pi, 1 - pi], dtype=torch.float64)),
        Normal(torch.zeros(2, dtype=torch.float64),
               torch.tensor([sigma1, sigma2], dtype=torch.float64)),
    )  # fmt: skip
    (at,) = double(w)
    ours = scale_mixture_log_density(at, pi, sigma1, sigma2)
    torch.testing.assert_close(ours, mixture.log_prob(at), rtol=1e-9, atol=1e-9)


def test_scale_mixture_sampled_agrees_with_quadrature():
    mean, sigma = 0.02, 0.01

    def integrand(w: float) -> float:
        (at,) = double(w)
        log_q = gaussian_log_density(at, mean, sigma)
        return float(log_q.exp() * (log_q - scale_mixture_log_density(at, **MIXTURE)))

    divergence, _ = integrate.quad(integrand, mean - 10 * sigma, mean + 10 * sigma, points=[0.0])
    q = Normal(*double(mean, sigma))
    torch.manual_seed(0)
    w = q.sample((100_000,))
    costs = gaussian_log_density(w, mean, sigma) - scale_mixture_log_density(w, **MIXTURE)
    assert divergence > 0.1
    assert abs(z_score(costs, divergence)) < 4
    assert float(costs.min()) < 0


def test_scale_mixture_lives_on_in_the_tails():
    w = torch.tensor([1e3, -1e4], requires_grad=True)
    values = scale_mixture_log_density(w, **MIXTURE)
    values.sum().backward()
    # there only the wide Gaussian is left, with slope −w / σ₁²
    torch.testing.assert_close(values, math.log(0.25) + gaussian_log_density(w, 0.0, 1.0))
    torch.testing.assert_close(w.grad, -w.detach())


# two values


@given(real, real)
def test_bernoulli_agrees_with_torch(log_odds, prior_log_odds):
    x, y = double(log_odds, prior_log_odds)
    ours = bernoulli(x, prior_log_odds)
    expected = kl_divergence(Bernoulli(logits=x), Bernoulli(logits=y))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(bernoulli(x, y), ours)
    torch.testing.assert_close(bernoulli(-x, -prior_log_odds), ours)
    assert float(ours) >= -1e-14


def test_bernoulli_has_the_posterior_first():
    x, y = double(3.0, 0.0)
    q, p = Bernoulli(logits=x), Bernoulli(logits=y)
    torch.testing.assert_close(bernoulli(x, 0.0), kl_divergence(q, p))
    assert abs(float(bernoulli(x, 0.0) - kl_divergence(p, q))) > 0.2


def test_bernoulli_keeps_its_digits_between_near_certainties():
    (close,) = bernoulli(torch.tensor([20.1]), 20.0).double()
    p = -20.0 - 0.1
    q_rare, p_rare = math.exp(p), math.exp(-20.0)
    # of two rare events: a ln(a/b) − a + b
    assert float(close) == pytest.approx(q_rare * -0.1 - q_rare + p_rare, rel=1e-2)


@given(st.floats(0, 1))
def test_concrete_entropy_agrees_with_torch(p):
    (at,) = double(p)
    expected = Bernoulli(probs=at).entropy()
    torch.testing.assert_close(concrete_entropy(at), expected, rtol=1e-6, atol=1e-12)


def test_concrete_entropy_at_the_ends():
    logit = torch.tensor([-200.0, -90.0, 90.0, 200.0], requires_grad=True)
    values = concrete_entropy(torch.sigmoid(logit))
    values.sum().backward()
    assert values.abs().max() < 1e-30
    assert logit.grad.abs().max() < 1e-30
    assert concrete_entropy(torch.tensor([math.nan, 1.1])).isnan().all()


# refusals


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_widths_out_of_range_are_refused(value):
    x = torch.zeros(1)
    with pytest.raises(ValueError, match=f"^prior_sigma is {value}: give a positive"):
        gaussian(x, x + 1, 0.0, value)
    with pytest.raises(ValueError, match=f"^sigma is {value}: give a positive"):
        gaussian_log_density(x, 0.0, value)
    with pytest.raises(ValueError, match=f"^sigma1 is {value}: give a positive"):
        scale_mixture_log_density(x, 0.5, value, 1.0)
    with pytest.raises(ValueError, match=f"^sigma2 is {value}: give a positive"):
        scale_mixture_log_density(x, 0.5, 1.0, value)


@pytest.mark.parametrize("pi", [0, 1, -0.1, math.nan])
def test_shares_out_of_range_are_refused(pi):
    with pytest.raises(ValueError, match=f"^pi is {pi}: give a share"):
        scale_mixture_log_density(torch.zeros(1), pi, 1.0, 0.1)
