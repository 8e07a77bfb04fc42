"""Concrete dropout: the mask's distribution, its limits, the objective of its paper."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab.variational.base import StochasticLayer
from gradlab.variational.concrete import Concrete, logistic
from gradlab.variational.methods import REGISTRY
from tests.variational.drop_in import check, check_kl_gradient

Z = 5.0


def test_a_drop_in_layer() -> None:
    check(Concrete(initial=0.3, length_scale=1.0))


def kept(layer: StochasticLayer, examples: int) -> Tensor:
    """What multiplies inputs, times 1 − p, ``(examples, in)``: the layer becomes the identity."""
    nn.init.eye_(layer.weight)
    x = torch.ones(examples, layer.input_units(), dtype=torch.float64)
    with torch.no_grad():
        return layer(x) * (1 - layer.dropout())


@pytest.mark.parametrize("temperature", [0.01, 0.1, 2 / 3])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
def test_an_input_is_more_than_half_dropped_with_probability_p(
    p: float, temperature: float
) -> None:
    torch.manual_seed(0)
    layer = Concrete(initial=p, temperature=temperature).linear(
        10, 10, bias=False, dtype=torch.float64
    )
    dropped = (kept(layer, 2_000) < 0.5).double().mean().item()
    assert abs(dropped - p) < Z * math.sqrt(p * (1 - p) / 20_000)


def test_cold_masks_are_those_of_dropout() -> None:
    torch.manual_seed(0)
    layer = Concrete(initial=0.3, temperature=1e-4).linear(10, 10, bias=False, dtype=torch.float64)
    mask = kept(layer, 2_000)
    assert torch.minimum(mask, (mask - 1).abs()).max() < 0.5
    # logit u is within t·ln(1/δ) of −logit p, hence the mask between δ and 1 − δ, that rarely
    assert ((mask > 1e-3) & (mask < 1 - 1e-3)).double().mean() < 1e-3
    # dropout's inverted scaling: the mean output is the input
    mean = mask.mean().item() / 0.7
    assert abs(mean - 1) < Z * math.sqrt(0.3 / 0.7 / 20_000) + 1e-4


def test_limits_of_the_probability() -> None:
    layer = Concrete(initial=1e-9).linear(4, 3, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose(layer(x), layer.eval()(x), atol=1e-9)
    layer = Concrete(initial=1 - 1e-4, temperature=0.01).linear(10, 10, bias=False).double()
    assert kept(layer, 100).lt(1e-3).double().mean() > 0.98


def test_channels_are_dropped_whole() -> None:
    torch.manual_seed(0)
    layer = Concrete(initial=0.5).conv2d(3, 3, 1, groups=3, bias=False)
    nn.init.ones_(layer.weight)
    out = layer(torch.ones(50, 3, 4, 4)).detach()
    assert torch.equal(out, out[..., :1, :1].expand_as(out))
    assert out[:, :, 0, 0].std(0).min() > 0.3
    assert out[:, :, 0, 0].std(1).min() > 0


def test_the_objective_is_that_of_the_paper() -> None:
    """kl()/N are the paper's regularizers of a mean NLL; of a squared error, times 2/τ."""
    n, precision, length_scale, p = 500, 4.0, 0.7, 0.2
    layer = Concrete(initial=p, length_scale=length_scale).conv2d(4, 6, 3, dtype=torch.float64)
    squares = layer.weight.detach().square().sum().item()
    w_r, d_r = length_scale**2 / (precision * n), 2 / (precision * n)
    regularizer = w_r * squares / (1 - p)
    regularizer += d_r * 4 * (p * math.log(p) + (1 - p) * math.log(1 - p))
    assert layer.kl().item() / n * 2 / precision == pytest.approx(regularizer)
    method = Concrete(initial=p, weight_regularizer=2.0, dropout_regularizer=3.0)
    by_hand = method.linear(4, 6, dtype=torch.float64)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    expected = 2 * by_hand.weight.detach().square().sum().item() / (1 - p) - 3 * 4 * entropy
    assert by_hand.kl().item() == pytest.approx(expected)


def test_gradient_of_the_kl() -> None:
    check_kl_gradient(Concrete(length_scale=1.0).conv2d(3, 2, 2, dtype=torch.float64))


def test_the_probability_learns_what_the_data_allow() -> None:
    """The entropy alone draws p to ½; inputs that matter pull it down."""
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    y = x.sum(1, keepdim=True)
    learned = {}
    for likelihood in (0.0, 100.0):
        layer = Concrete(temperature=0.1).linear(3, 1)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            (likelihood * (layer(x) - y).square().mean() + layer.kl() / 200).backward()
            optimizer.step()
        learned[likelihood] = layer.dropout().item()
    assert abs(learned[0.0] - 0.5) < 0.02
    assert learned[100.0] < 0.02


def test_log_alpha() -> None:
    assert Concrete(initial=0.2).linear(2, 2).log_alpha().item() == pytest.approx(math.log(0.25))


def test_logistic_noise_is_finite() -> None:
    torch.manual_seed(0)
    noise = logistic([100_000], torch.ones(1))
    assert noise.abs().max() <= math.log(1e6) + 0.1
    assert abs(noise.mean().item()) < Z * math.pi / math.sqrt(3 * 100_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 0.0}, "initial is 0.0: give a number between 0 and 1"),
        ({"temperature": 0}, "temperature is 0: give a finite number above 0"),
        ({"length_scale": -1.0}, "length_scale is -1.0"),
        ({"weight_regularizer": "x"}, "weight_regularizer is 'x': give a number above 0"),
        ({"dropout_regularizer": math.nan}, "dropout_regularizer is nan"),
        ({"lengthscale": 1.0}, "did you mean 'length_scale'"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REGISTRY.create("concrete", **options)
