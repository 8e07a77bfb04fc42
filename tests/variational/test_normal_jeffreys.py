"""Group normal-Jeffreys: moments, divergence, what it removes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab.variational.base import StochasticLayer, project
from gradlab.variational.exact import log_uniform_exact
from gradlab.variational.methods import REGISTRY
from gradlab.variational.normal_jeffreys import NormalJeffreys
from tests.variational.drop_in import check, check_kl_gradient

Z = 5.0


@pytest.mark.parametrize("initial", [-9.0, -2.0])
def test_a_drop_in_layer(initial: float) -> None:
    check(NormalJeffreys(initial=initial))


def test_a_new_layer_has_the_mean_weight_of_torch() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(3, 4, 3)
    layer = NormalJeffreys().conv2d(3, 4, 3)
    layer.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(layer.eval()(x), plain(x))


def noisy_layers() -> list[tuple[StochasticLayer, Tensor]]:
    torch.manual_seed(0)
    linear = NormalJeffreys().linear(3, 4, dtype=torch.float64)
    conv = NormalJeffreys().conv2d(4, 4, 3, padding=1, groups=2, dtype=torch.float64)
    for layer in (linear, conv):
        nn.init.uniform_(layer.weight_log_variance, -4, 0)
        nn.init.uniform_(layer.z_log_variance, -4, 0)
        nn.init.normal_(layer.z_mean)
    return [
        (linear, torch.randn(1, 3, dtype=torch.float64)),
        (conv, torch.randn(1, 4, 3, 3, dtype=torch.float64)),
    ]


def test_moments_of_every_output() -> None:
    """Of products zw: E = μ_z μ, Var = μ_z² σ² + σ_z² μ² + σ_z² σ², and what shares z covaries."""
    n = 40_000
    for layer, x in noisy_layers():
        with torch.no_grad():
            out = layer(x.repeat(n, *[1] * (x.dim() - 1)))
            expected = layer.eval()(x)[0]
            z_mean, z_variance = layer.z_mean, layer.z_log_variance.exp()
            variance = layer.weight_log_variance.exp()
            if x.dim() == 2:
                second = z_mean.square() + z_variance
                within = layer.apply_weight(x.square() * second, variance, None)
                between = layer.apply_weight(x.square() * z_variance, layer.weight.square(), None)
            else:
                second = layer.over_outputs(z_mean.square() + z_variance)
                within = second * layer.apply_weight(x.square(), variance, None)
                plain = layer.apply_weight(x, layer.weight, None)
                between = layer.over_outputs(z_variance) * plain.square()
        total = (within + between)[0]
        deviation = out - expected
        z = deviation.mean(0) / (total / n).sqrt()
        assert z.abs().max() < Z
        squares = deviation.square()
        z = (squares.mean(0) - total) / (squares.std(0) / math.sqrt(n))
        assert z.abs().max() < Z


def test_z_belongs_to_inputs_of_linear_layers_and_filters_of_convolutions() -> None:
    method = NormalJeffreys(threshold=0.0)
    linear, conv = method.linear(3, 5), method.conv2d(4, 6, 3, groups=2)
    assert linear.z_mean.shape == (3,)
    assert conv.z_mean.shape == (6,)
    for layer in (linear, conv):
        with torch.no_grad():
            layer.z_log_variance[2] = 1.0
    expected = torch.ones(5, 3, dtype=torch.bool)
    expected[:, 2] = False
    assert torch.equal(linear.mask(), expected)
    expected = torch.ones(6, 2, 3, 3, dtype=torch.bool)
    expected[2] = False
    assert torch.equal(conv.mask(), expected)


def test_positions_of_a_filter_share_z() -> None:
    """Weights hardly vary: outputs of a 1×1 kernel on a constant image vary by z alone."""
    torch.manual_seed(0)
    layer = NormalJeffreys(initial=-30.0).conv2d(2, 3, 1)
    nn.init.zeros_(layer.z_log_variance)
    out = layer(torch.ones(4, 2, 3, 3)).detach()
    assert (out - out[..., :1, :1]).abs().max() < 1e-5
    assert out[:, :, 0, 0].std(0).min() > 0.01


def test_kl_is_exact_for_weights_and_near_the_exact_one_for_z() -> None:
    normal = torch.distributions.Normal
    for layer, _ in noisy_layers():
        weights = torch.distributions.kl_divergence(
            normal(layer.weight, (layer.weight_log_variance / 2).exp()),
            normal(torch.zeros((), dtype=torch.float64), 1.0),
        ).sum()
        log_alpha = layer.log_alpha().detach()
        alpha = layer.z_log_variance.exp() / layer.z_mean.square()
        assert torch.allclose(log_alpha, alpha.log(), atol=1e-4)
        units = torch.as_tensor(log_uniform_exact(log_alpha)).sum()
        # the fit of each z's KL is at most .0094 off
        assert abs((layer.kl() - weights - units).item()) < 0.0094 * len(log_alpha)


def test_gradient_of_the_kl() -> None:
    for layer, _ in noisy_layers():
        check_kl_gradient(layer)


def test_variances_are_held_below_the_largest() -> None:
    layer = NormalJeffreys(initial=-1.0, largest_variance=0.04).linear(3, 2)
    project(layer)
    assert torch.allclose(layer.weight_log_variance, torch.tensor(math.log(0.04)))
    layer = NormalJeffreys(initial=-1.0).linear(3, 2)
    project(layer)
    assert torch.equal(layer.weight_log_variance, torch.full((2, 3), -1.0))


def test_inputs_that_do_not_matter_are_removed() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 10)
    y = x[:, :3] @ torch.tensor([[1.0], [-1.0], [0.7]]) + 0.5 * torch.randn(256, 1)
    layer = NormalJeffreys().linear(10, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.02 ** (1 / 800))
    for _ in range(800):
        optimizer.zero_grad()
        nll = (layer(x) - y).square().mean() / (2 * 0.5**2)
        (nll + layer.kl() / len(x)).backward()
        optimizer.step()
        schedule.step()
    assert layer.mask()[0].tolist() == [True] * 3 + [False] * 7
    assert (layer.eval()(x) - y).square().mean() < 1.2 * 0.5**2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": math.nan}, "initial is nan: give a finite number"),
        ({"threshold": "3"}, "threshold is '3': give a finite number"),
        ({"largest_variance": 0.0}, "largest_variance is 0.0: give a finite number above 0"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REGISTRY.create("normal_jeffreys", **options)
