"""Binary weights: moments against all weights there are, gradients and divergences by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradlab.variational import methods
from gradlab.variational.base import sampling
from gradlab.variational.binary_weights import (
    BayesBiNNConv2d,
    BayesBiNNLinear,
    BayesBiNNWeights,
    BernoulliConv2d,
    BernoulliLinear,
    BernoulliWeights,
    Relaxed,
)
from gradlab.variational.methods import Method

LAYERS = [BernoulliLinear, BayesBiNNLinear]
CONVOLUTIONS = [BernoulliConv2d, BayesBiNNConv2d]
# a z of 4.5 is exceeded once in 150,000 comparisons; those below make some dozens, seeds fixed
LIMIT = 4.5


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def all_weights(log_odds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every weight of ±1, with its probability."""
    up = torch.sigmoid(log_odds.flatten().double())
    for signs in itertools.product((1.0, -1.0), repeat=len(up)):
        weight = torch.tensor(signs, dtype=torch.float64)
        yield weight.view_as(log_odds), torch.where(weight > 0, up, 1 - up).prod()


def set_weight(layer: Any, values: list[float]) -> None:
    layer.weight.data = torch.tensor(values, dtype=layer.weight.dtype).view_as(layer.weight)


DRAWN, UNSURE = BernoulliWeights(noise="weights"), BayesBiNNWeights(initial=0.1)
LOG_ODDS = [-3.0, -0.7, 0.0, 0.4, 1.5, 8.0]


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_moments_are_those_of_all_weights_there_are(kind: str) -> None:
    if kind == "linear":
        layer: Any = BernoulliLinear(3, 2, dtype=torch.float64)
        x = torch.randn(4, 3, dtype=torch.float64)
    else:
        layer = BernoulliConv2d(1, 1, (2, 3), padding=1, stride=2, dtype=torch.float64)
        x = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    set_weight(layer, LOG_ODDS)
    found = [(layer.apply_weight(x, w, layer.bias), p) for w, p in all_weights(layer.weight)]
    mean = sum(p * out for out, p in found)
    variance = sum(p * (out - mean).square() for out, p in found)
    assert len(found) == 64
    torch.testing.assert_close(layer.moments(x), (mean, variance))


def test_pre_activations_are_drawn_with_these_moments() -> None:
    layer = BernoulliLinear(3, 2)
    set_weight(layer, LOG_ODDS)
    x, draws = torch.randn(2, 3), 20_000
    out = layer(x.repeat(draws, 1)).view(draws, 2, 2).double()
    mean, variance = (moment.double() for moment in layer.moments(x))
    z = (out.mean(0) - mean) / (variance / draws).sqrt()
    assert z.abs().max() < LIMIT
    # of a Gaussian the variance of the variance is 2σ⁴/n
    z = (out.var(0) - variance) / (variance * math.sqrt(2 / draws))
    assert z.abs().max() < LIMIT


@pytest.mark.parametrize("factor", [1.0, 2.0], ids=["bernoulli", "bayes_binn"])
def test_drawn_weights_are_one_of_two_as_often_as_they_should(factor: float) -> None:
    # of tanh λ = 2 sigmoid(2λ) − 1 the log odds are 2λ
    method = DRAWN if factor == 1 else BayesBiNNWeights()
    layer, draws = method.linear(6, 1, bias=False), 20_000
    set_weight(layer, [value / factor for value in LOG_ODDS])
    with sampling(layer, draws):
        weights = layer(torch.eye(6).repeat(draws, 1)).view(draws, 6)
    assert set(weights.unique().tolist()) == {-1.0, 1.0}
    up = torch.sigmoid(torch.tensor(LOG_ODDS))
    z = ((weights > 0).float().mean(0) - up) / (up * (1 - up) / draws).sqrt()
    assert z.abs().max() < LIMIT


def test_the_gradient_of_drawn_weights_passes_straight_to_the_mean() -> None:
    layer = DRAWN.linear(6, 1, bias=False, dtype=torch.float64)
    set_weight(layer, LOG_ODDS)
    x = torch.randn(6, 6, dtype=torch.float64)
    out = layer(x)
    out.square().sum().backward()
    slope = (1 - torch.tanh(layer.weight / 2).square()) / 2
    expected = (2 * out * x).sum(0) * slope
    torch.testing.assert_close(layer.weight.grad, expected)


def test_it_is_exact_for_a_loss_that_is_linear_in_the_weights() -> None:
    layer = DRAWN.linear(6, 1, bias=False, dtype=torch.float64)
    set_weight(layer, LOG_ODDS)
    x = torch.randn(1, 6, dtype=torch.float64)
    layer(x).sum().backward()
    exact = torch.autograd.functional.jacobian(
        lambda theta: sum(
            (torch.where(w > 0, torch.sigmoid(theta), torch.sigmoid(-theta))).prod() * (x * w).sum()
            for w, _ in all_weights(theta)
        ),
        layer.weight.detach(),
    )
    torch.testing.assert_close(layer.weight.grad, exact)


@pytest.mark.parametrize("temperature", [1e-10, 0.3, 1.0])
def test_relaxed_weights_and_their_derivative_are_the_papers(temperature: float) -> None:
    layer = BayesBiNNWeights(temperature=temperature).linear(6, 1, bias=False)
    set_weight(layer, LOG_ODDS)
    x = torch.randn(1, 6)
    torch.manual_seed(3)
    out = layer(x)
    out.backward()
    torch.manual_seed(3)
    u = torch.rand(1, 1, 6)[0]
    w = torch.tanh((layer.weight.detach() + torch.log(u / (1 - u)) / 2) / temperature)
    torch.testing.assert_close(out, F.linear(x, w))
    # relative to a factor of 10 at most: (1 − w²) cancels in float32 where w is near ±1
    expected = x * (1 - w * w + 1e-10) / temperature
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-3, atol=1e-5)
    if temperature == 1e-10:
        assert w.abs().unique().tolist() == [1.0]
        torch.testing.assert_close(layer.weight.grad, x)


@pytest.mark.parametrize("lam", [-1.0, 0.0, 0.4])
def test_a_cold_relaxation_has_the_derivative_of_the_mean_on_average(lam: float) -> None:
    # over a fine grid of u, since of uniform draws the estimate has variance 1/τ
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    slope = Relaxed(0.02).derivative(lam + u.logit() / 2).mean()
    assert float(slope) == pytest.approx(1 - math.tanh(lam) ** 2, rel=2e-3)


@pytest.mark.parametrize(
    ("method", "scale", "prior_odds"),
    [
        (BernoulliWeights(prior=0.3), 1, math.log(0.3 / 0.7)),
        (BayesBiNNWeights(prior=-0.5), 2, -1.0),
    ],
    ids=["bernoulli", "bayes_binn"],
)
def test_kl_is_the_sum_over_all_weights_there_are(
    method: Method, scale: float, prior_odds: float
) -> None:
    layer = method.linear(3, 2, dtype=torch.float64)
    set_weight(layer, LOG_ODDS)
    prior = torch.full_like(layer.weight, prior_odds)
    pairs = zip(all_weights(scale * layer.weight.detach()), all_weights(prior), strict=True)
    expected = sum(q * (q / p).log() for (_, q), (_, p) in pairs)
    torch.testing.assert_close(layer.kl(), expected)


@pytest.mark.parametrize("make", LAYERS)
def test_kl_to_a_fair_coin_is_nothing_for_fair_coins(make: Any) -> None:
    layer = make(3, 2)
    nn.init.zeros_(layer.weight)
    assert layer.kl().item() == pytest.approx(0, abs=1e-6)
    nn.init.constant_(layer.weight, 20.0)
    assert layer.kl().item() == pytest.approx(6 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("make", LAYERS)
def test_evaluation_takes_signs_or_means_and_never_draws(make: Any) -> None:
    x = torch.randn(4, 6)
    layer = make(6, 1).eval()
    set_weight(layer, LOG_ODDS)
    signs = torch.tensor([[-1.0, -1.0, 1.0, 1.0, 1.0, 1.0]])  # a tie is +1
    torch.testing.assert_close(layer(x), F.linear(x, signs, layer.bias))
    soft = make(6, 1, method=replace(layer.method, prediction="mean")).eval()
    soft.load_state_dict(layer.state_dict())
    half = 2 if make is BernoulliLinear else 1
    mean = torch.tanh(torch.tensor([LOG_ODDS]) / half)
    torch.testing.assert_close(soft(x), F.linear(x, mean, layer.bias))
    with sampling(layer):
        assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (BernoulliLinear, {"method": DRAWN}),
        (BayesBiNNLinear, {"method": UNSURE}),
        (BernoulliConv2d, {"method": DRAWN, "groups": 2, "padding": "same"}),
        (BayesBiNNConv2d, {"method": UNSURE, "padding": 1, "padding_mode": "reflect"}),
    ],
)
def test_every_group_of_a_batch_has_a_weight_of_its_own(make: Any, options: dict[str, Any]) -> None:
    layer = make(8, 3, **options) if make in LAYERS else make(2, 4, 3, **options)
    one = torch.randn(1, 8) if make in LAYERS else torch.randn(1, 2, 5, 5)
    with sampling(layer, 3):
        out = layer(one.expand(6, *one.shape[1:])).unflatten(0, (3, 2))
    torch.testing.assert_close(out[:, 0], out[:, 1])
    for first, second in itertools.combinations(out[:, 0], 2):
        assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("make", CONVOLUTIONS)
@pytest.mark.parametrize(
    "options",
    [{"stride": 2, "padding": 1}, {"padding": "same", "dilation": 2}, {"groups": 2, "bias": False},
     {"padding": (1, 0), "padding_mode": "circular"}],
    ids=["stride", "same", "groups", "circular"],
)  # fmt: skip
def test_convolutions_take_all_that_torchs_takes(make: Any, options: dict[str, Any]) -> None:
    layer = make(2, 4, 3, **options).eval()
    plain = nn.Conv2d(2, 4, 3, **options)
    plain.load_state_dict(layer.state_dict())  # the same names and shapes
    plain.weight.data = layer.weight.detach().sign()
    x = torch.randn(3, 2, 7, 7)
    torch.testing.assert_close(layer(x), plain(x))
    assert layer.train()(x).shape == plain(x).shape


@pytest.mark.parametrize("make", LAYERS)
def test_plain_weights_give_their_signs(make: Any) -> None:
    plain = nn.Linear(20, 5)
    layer = make(20, 5)
    layer.start_from(plain.weight)
    assert torch.equal(layer.weight.sign(), plain.weight.sign())
    if make is BayesBiNNLinear:
        assert layer.weight.abs().unique().tolist() == [10.0]
        return
    spread = plain.weight.detach().numpy().std()
    expected = (0.5 * (1 + plain.weight / float(spread))).clamp(0.05, 0.95)
    torch.testing.assert_close(torch.sigmoid(layer.weight), expected)
    assert torch.sigmoid(layer.weight).max().item() == pytest.approx(0.95)


@given(st.floats(-3.0, 3.0), st.integers(1, 4))
def test_weights_without_spread_start_at_sensible_probabilities(value: float, inputs: int) -> None:
    layer = BernoulliLinear(inputs, 1)
    layer.start_from(torch.full((1, inputs), value))
    up = torch.sigmoid(layer.weight)
    assert bool(((up > 0.0499) & (up < 0.9501)).all())
    assert bool((up[0, 0] > 0.5) == (layer.weight[0, 0] > 0))


@pytest.mark.parametrize("noise", ["preactivations", "weights"])
def test_no_input_no_noise_and_a_finite_gradient(noise: str) -> None:
    layer = BernoulliWeights(noise=noise).linear(4, 3)
    out = layer(torch.zeros(5, 4))
    assert (out - layer.bias).abs().max() < 1e-3
    out.square().sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


@pytest.mark.parametrize("name", ["bernoulli_weights", "bayes_binn"])
def test_layers_run_in_half_precision(name: str) -> None:
    method = methods.REGISTRY.create(name)
    network = nn.Sequential(method.conv2d(1, 3, 3), nn.Flatten(), method.linear(48, 2))
    with torch.autocast("cpu", torch.bfloat16):
        out = network(torch.randn(4, 1, 6, 6))
    loss = out.float().square().mean() + network[0].kl() + network[2].kl()
    loss.backward()
    for key, parameter in network.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0 or name == "bayes_binn", key


def test_weights_saturate_without_losing_their_gradient() -> None:
    layer = BayesBiNNWeights(initial=1e6).linear(4, 1)
    layer(torch.ones(2, 4)).mean().backward()
    torch.testing.assert_close(layer.weight.grad, torch.ones(1, 4))


def test_methods_hand_their_options_to_their_layers() -> None:
    method = methods.REGISTRY.create("bernoulli_weights", noise="weights", prior=0.2)
    assert method.linear(3, 2).method == method == method.conv2d(3, 2, 1).method
    relaxed = methods.REGISTRY.create("bayes_binn", temperature=0.5, initial=2.0)
    assert relaxed.linear(3, 2, bias=False).method == relaxed == relaxed.conv2d(3, 2, 1).method
    assert relaxed.linear(3, 2).weight.abs().unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bernoulli_weights", {"noise": "weight"}, "did you mean 'weights'"),
        ("bernoulli_weights", {"prediction": "sing"}, "did you mean 'sign'"),
        ("bernoulli_weights", {"prior": 1.0}, "prior is 1.0: give a number between 0 and 1"),
        ("bernoulli_weights", {"priors": 0.5}, "did you mean 'prior'"),
        ("bayes_binn", {"temperature": 0}, "temperature is 0: give a finite number above 0"),
        ("bayes_binn", {"initial": -1.0}, "initial is -1.0"),
        ("bayes_binn", {"prior": math.inf}, "prior is inf: give a finite number"),
        ("bayes_binn", {"prediction": "median"}, "unknown prediction 'median'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")) as caught:
        methods.REGISTRY.create(name, **options)
    assert str(caught.value).count("\n") == 0
