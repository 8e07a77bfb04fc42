"""Bayes by Backprop: moments of its estimators, divergences, a posterior that is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.variational.base import StochasticLayer, sampling
from gradlab.variational.bayes import BayesByBackprop
from gradlab.variational.conversion import to_variational
from gradlab.variational.draws import random_signs
from gradlab.variational.methods import REGISTRY
from tests.variational.drop_in import check, check_kl_gradient, group_spread

ESTIMATORS = ("weights", "local", "flipout")
# a two-sided z-test of the largest of some hundreds of numbers
Z = 5.0


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_drop_in_layer(estimator: str, prior: str) -> None:
    check(BayesByBackprop(estimator=estimator, prior=prior))


@pytest.mark.parametrize("estimator", ["weights", "flipout"])
def test_a_drop_in_layer_with_noise_in_the_bias(estimator: str) -> None:
    check(BayesByBackprop(estimator=estimator, bias_noise=True, initial_rho=-1.0))


def noisy_layers(**options: Any) -> list[tuple[StochasticLayer, Tensor]]:
    """A linear layer and a grouped convolution in float64 with uneven ρ, and one example each."""
    torch.manual_seed(0)
    method = BayesByBackprop(**options)
    linear = method.linear(3, 4, dtype=torch.float64)
    conv = method.conv2d(4, 4, 3, padding=1, groups=2, dtype=torch.float64)
    for layer in (linear, conv):
        nn.init.uniform_(layer.rho, -3, 0)
        if layer.bias_rho is not None:
            nn.init.uniform_(layer.bias_rho, -3, 0)
    return [
        (linear, torch.randn(1, 3, dtype=torch.float64)),
        (conv, torch.randn(1, 4, 3, 3, dtype=torch.float64)),
    ]


def draws_of(layer: StochasticLayer, x: Tensor, n: int) -> Tensor:
    """Outputs ``(n, …)`` for the example, of n independent draws."""
    with torch.no_grad(), sampling(layer.eval(), n):
        return layer(x.repeat(n, *[1] * (x.dim() - 1)))


@pytest.mark.parametrize(
    ("estimator", "bias_noise"),
    [
        ("weights", False),
        ("weights", True),
        ("local", False),
        ("flipout", False),
        ("flipout", True),
    ],
)
def test_mean_and_variance_of_every_output(estimator: str, bias_noise: bool) -> None:
    n = 20_000
    for layer, x in noisy_layers(estimator=estimator, bias_noise=bias_noise):
        out = draws_of(layer, x, n)
        with torch.no_grad():
            mean = layer.apply_weight(x, layer.weight, layer.bias)[0]
            sigma_of_bias = F.softplus(layer.bias_rho) if bias_noise else None
            variance_of_bias = None if sigma_of_bias is None else sigma_of_bias.square()
            variance = layer.apply_weight(x.square(), layer.sigma().square(), variance_of_bias)[0]
        z_mean = (out.mean(0) - mean) / (variance / n).sqrt()
        # outputs are Gaussian: the sample variance has variance 2σ⁴/(n − 1)
        z_variance = (out.var(0) / variance - 1) / math.sqrt(2 / (n - 1))
        assert z_mean.abs().max() < Z
        assert z_variance.abs().max() < Z


def test_flipout_decorrelates_examples_and_shared_weights_do_not() -> None:
    correlations = {}
    for estimator in ("weights", "flipout"):
        layer, x = noisy_layers(estimator=estimator)[0]
        with torch.no_grad():
            layer.train()
            pairs = torch.stack([layer(x.repeat(2, 1)) for _ in range(2_000)])
        deviations = pairs - layer.eval()(x).detach()
        scale = deviations.square().mean((0, 1))
        correlations[estimator] = (deviations[:, 0] * deviations[:, 1]).mean(0) / scale
    assert (correlations["weights"] - 1).abs().max() < 1e-9
    assert correlations["flipout"].abs().max() < Z / math.sqrt(2_000)


def test_flipout_has_signs_of_inputs_and_of_outputs() -> None:
    """The deviations of examples with one input x are r ∘ ΔW(x ∘ s)."""
    torch.manual_seed(0)
    method = BayesByBackprop(estimator="flipout", initial_rho=0.0)
    for layer, deviations in ((method.linear(2, 1), 2), (method.linear(1, 2), 1)):
        x = torch.ones(100, layer.in_features)
        with torch.no_grad():
            drawn = layer(x) - layer.eval()(x)
        sizes = (drawn.abs() * 1e4).round().unique(dim=0)
        # |Δ₁ + Δ₂| and |Δ₁ − Δ₂| from two inputs; from one, a single size for each output, …
        assert len(sizes) == deviations
        # … and every combination of the outputs' signs
        assert len(drawn.sign().unique(dim=0)) == 2**layer.out_features


def test_positions_of_a_convolution_share_a_weight_unless_local() -> None:
    """A 1×1 kernel on a constant image: without local draws all positions are equal."""
    for estimator in ESTIMATORS:
        layer = BayesByBackprop(estimator=estimator, initial_rho=0.0).conv2d(2, 3, 1)
        out = layer(torch.ones(4, 2, 3, 3)).detach()
        spread = (out - out[..., :1, :1]).abs().max()
        assert (spread > 0.1) if estimator == "local" else (spread < 1e-5)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_gradients_vary_less_than_with_shared_weights(estimator: str) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(64, 5), torch.randn(64, 3)
    variance = {}
    for name in ("weights", estimator):
        torch.manual_seed(1)
        layer = BayesByBackprop(estimator=name, initial_rho=-1.0).linear(5, 3)
        gradients = []
        for _ in range(200):
            layer.zero_grad()
            (layer(x) - target).square().mean().backward()
            gradients.append(layer.weight.grad.clone())  # type: ignore[union-attr]
        variance[name] = torch.stack(gradients).var(0).mean().item()
    # 64 nearly independent examples against one shared weight
    assert variance[estimator] < variance["weights"] / 8


def test_groups_have_a_weight_each() -> None:
    for bias_noise in (False, True):
        for layer, x in noisy_layers(estimator="weights", bias_noise=bias_noise):
            within, between = group_spread(layer, x, 4)
            assert within < 1e-12
            assert between > 1e-3


def test_gaussian_kl_is_that_of_torch() -> None:
    for layer, _ in noisy_layers(prior_sigma=0.3, bias_noise=True):
        parts = [(layer.weight, layer.rho), (layer.bias, layer.bias_rho)]
        prior = torch.distributions.Normal(layer.weight.new_tensor(0.0), 0.3)
        expected = sum(
            torch.distributions.kl_divergence(
                torch.distributions.Normal(mean, F.softplus(rho)), prior
            ).sum()
            for mean, rho in parts
        )
        assert torch.isclose(layer.kl(), expected, rtol=1e-9)


@pytest.mark.parametrize("prior", ["gaussian", "mixture"])
def test_gradient_of_the_kl(prior: str) -> None:
    for layer, x in noisy_layers(prior=prior, bias_noise=True):
        layer(x)
        check_kl_gradient(layer)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mixture_kl_is_unbiased(estimator: str) -> None:
    """With two equal halves the mixture is a Gaussian, whose KL is known."""
    options = {"estimator": estimator, "prior": "mixture", "pi": 0.3, "sigma1": 0.5, "sigma2": 0.5}
    for layer, x in noisy_layers(**options):
        layer.train()
        estimates = []
        for _ in range(300):
            layer(x)
            estimates.append(layer.kl().detach())
        drawn = torch.stack(estimates)
        sigma = layer.sigma().detach()
        normal = torch.distributions.Normal
        exact = torch.distributions.kl_divergence(
            normal(layer.weight.detach(), sigma), normal(0.0, 0.5)
        ).sum()
        assert ((drawn.mean() - exact) / (drawn.std() / math.sqrt(300))).abs() < 4


def test_the_mixture_kl_is_at_the_weights_of_the_last_pass() -> None:
    layer = noisy_layers(prior="mixture", pi=0.25, sigma1=1.0, sigma2=0.01)[0][0]
    layer.bias = None
    with sampling(layer, 3):
        out = layer(torch.eye(3, dtype=torch.float64).repeat(3, 1))
    weights = out.detach().reshape(3, 3, 4).mT
    normal = torch.distributions.Normal
    posterior = normal(layer.weight.detach(), layer.sigma().detach())
    log_prior = torch.logaddexp(
        math.log(0.25) + normal(0.0, 1.0).log_prob(weights),
        math.log(0.75) + normal(0.0, 0.01).log_prob(weights),
    )
    expected = (posterior.log_prob(weights) - log_prior).sum() / 3
    assert torch.isclose(layer.kl(), expected, rtol=1e-9)
    assert torch.equal(layer.kl(), layer.kl())
    with torch.no_grad():
        layer(torch.eye(3, dtype=torch.float64))
    assert torch.isclose(layer.kl(), expected, rtol=1e-9)


def test_weights_travel_between_estimators() -> None:
    made = {e: BayesByBackprop(estimator=e, initial_rho=-2.0).conv2d(2, 3, 3) for e in ESTIMATORS}
    x = torch.randn(4, 2, 5, 5)
    for source in ESTIMATORS:
        nn.init.normal_(made[source].weight)
        for target in ESTIMATORS:
            made[target].load_state_dict(made[source].state_dict())
            assert torch.equal(made[target].eval()(x), made[source].eval()(x))
            assert torch.equal(made[target].kl(), made[source].kl())


def test_starts() -> None:
    torch.manual_seed(0)
    layer = BayesByBackprop(initial_mean="normal").linear(200, 200)
    assert abs(layer.weight.std().item() / 0.1 - 1) < 5 / math.sqrt(2 * 40_000)
    assert torch.allclose(layer.sigma(), torch.tensor(math.log1p(math.exp(-5.0))))
    torch.manual_seed(3)
    plain = nn.Linear(4, 2)
    torch.manual_seed(3)
    assert torch.equal(BayesByBackprop().linear(4, 2).weight, plain.weight)


def test_converted_networks_keep_their_means_unless_told() -> None:
    torch.manual_seed(0)
    network = nn.Linear(200, 200)
    kept = to_variational(network, "bayes_by_backprop")
    assert torch.equal(kept.get_parameter("weight"), network.weight)
    drawn = to_variational(network, "bayes_by_backprop", initial_mean="normal")
    spread = drawn.get_parameter("weight").std().item()
    assert abs(spread / 0.1 - 1) < 5 / math.sqrt(2 * 40_000)


def test_log_alpha() -> None:
    layer = BayesByBackprop(initial_rho=0.0).linear(2, 2)
    nn.init.constant_(layer.weight, 2.0)
    assert torch.allclose(layer.log_alpha(), torch.tensor(2 * math.log(math.log(2) / 2)))


def test_signs_are_per_example_and_channel() -> None:
    torch.manual_seed(0)
    layer = BayesByBackprop().conv2d(3, 2, 1)
    images = torch.ones(200, 3, 5, 5)
    signs = random_signs(layer.unit_shape(images), images)
    assert signs.shape == (200, 3, 1, 1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean().item()) < 5 / math.sqrt(600)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "lokal"}, "did you mean 'local'"),
        ({"prior": "laplace"}, "unknown prior 'laplace'"),
        ({"prior_sigma": 0.0}, "prior_sigma is 0.0: give a finite number above 0"),
        ({"pi": 1.0}, "pi is 1.0: give a number between 0 and 1"),
        ({"sigma2": -1.0}, "sigma2 is -1.0"),
        ({"initial_mean": "zeros"}, "unknown initial_mean 'zeros'"),
        ({"initial_rho": math.inf}, "initial_rho is inf: give a finite number"),
        ({"bias_noise": 1}, "bias_noise is 1: give true or false"),
        ({"bias_noise": True, "estimator": "local"}, "use estimator 'weights' or 'flipout'"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REGISTRY.create("bayes_by_backprop", **options)


@pytest.mark.parametrize("estimator", ["local", "weights"])
def test_bayesian_linear_regression_reaches_its_known_optimum(estimator: str) -> None:
    """With Gaussian noise and prior the posterior is N(m, P⁻¹), P = XᵀX/s² + I/σ₀².

    The best factorized Gaussian has the mean m and the variances 1/P_ii. Each of 24 outputs has the
    same targets, hence is a replica with noise of its own: their spread gives the standard error.
    What is left of the optimizer's start and step, by the learning rate's end of 1e-4, is below
    .002 (posterior widths are about .1).
    """
    torch.manual_seed(0)
    examples, noise, prior_sigma, replicas, steps = 40, 0.5, 0.8, 24, 1_500
    mixing = torch.tensor([[1.0, 0.6, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.5]])
    x = torch.randn(examples, 3) @ mixing
    y = (x @ torch.tensor([1.0, -0.5, 0.3]) + noise * torch.randn(examples))[:, None]
    precision = x.T @ x / noise**2 + torch.eye(3) / prior_sigma**2
    mean = torch.linalg.solve(precision, x.T @ y / noise**2)[:, 0]
    sigma = precision.diagonal().rsqrt()

    method = BayesByBackprop(estimator=estimator, prior_sigma=prior_sigma, initial_rho=-2.0)
    layer = method.linear(3, replicas, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, (1e-4 / 0.03) ** (1 / steps))
    for _ in range(steps):
        optimizer.zero_grad()
        nll = (layer(x) - y).square().mean(0).sum() / (2 * noise**2)
        (nll + layer.kl() / examples).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        error = torch.cat([layer.weight - mean, layer.sigma().log() - sigma.log()], 1)
    standard_error = error.std(0) / math.sqrt(replicas)
    assert (error.mean(0).abs() < 5 * standard_error + 0.002).all()
