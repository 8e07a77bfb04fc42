"""L0 gates: their distribution, their cost, what they remove."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab.variational.base import project, sampling
from gradlab.variational.l0 import L0, LARGEST_LOG_ODDS
from gradlab.variational.methods import REGISTRY
from tests.variational.drop_in import check, check_kl_gradient, group_spread

Z = 5.0


@pytest.mark.parametrize("groups", ["weights", "inputs", "outputs"])
def test_a_drop_in_layer(groups: str) -> None:
    check(L0(groups=groups, weight_decay=0.1))


@pytest.mark.parametrize("temperature", [0.3, 2 / 3])
def test_probability_of_a_gate_that_is_not_zero(temperature: float) -> None:
    torch.manual_seed(0)
    n = 20_000
    layer = L0(groups="weights", temperature=temperature).linear(
        5, 1, bias=False, dtype=torch.float64
    )
    with torch.no_grad():
        layer.log_odds.copy_(torch.tensor([[-3.0, -1.0, 0.0, 1.0, 3.0]]))
        layer.weight.fill_(1.0)
        with sampling(layer, n):
            # group g has its own gates, and example i of five sees gate i alone
            gates = layer(torch.eye(5, dtype=torch.float64).repeat(n, 1)).reshape(n, 5)
    assert gates.min() == 0
    assert gates.max() == 1
    p = layer.nonzero_probability()[0].detach()
    z = ((gates != 0).double().mean(0) - p) / (p * (1 - p) / n).sqrt()
    assert z.abs().max() < Z
    # the distribution is symmetric: P(z = 1) at log α is P(z = 0) at −log α
    z = ((gates == 1).double().mean(0) - (1 - p.flip(0))) / (p.flip(0) * (1 - p.flip(0)) / n).sqrt()
    assert z.abs().max() < Z


def test_gates_belong_to_their_units() -> None:
    shut = {"inputs": 1, "outputs": 5}
    for groups, unit in shut.items():
        for layer in (L0(groups=groups).linear(4, 6), L0(groups=groups).conv2d(4, 6, 3, groups=2)):
            with torch.no_grad():
                layer.log_odds[unit] = -4.0
            mask = layer.mask()
            assert mask.shape == layer.weight.shape
            assert mask.dtype == torch.bool
            assert torch.equal(mask, layer.mean_weight() != 0)
            if groups == "outputs":
                expected = torch.ones_like(mask)
                expected[5] = False
            else:
                # input 1 of a convolution in two groups is column 1 of the first half of outputs
                expected = torch.ones_like(mask)
                expected[: 3 if layer.weight.dim() == 4 else 6, 1] = False
            assert torch.equal(mask, expected)


def test_a_shut_input_does_not_reach_the_output() -> None:
    torch.manual_seed(0)
    layer = L0().conv2d(4, 6, 3, groups=2).eval()
    x = torch.randn(2, 4, 5, 5)
    changed = x.clone()
    changed[:, 2] += 1
    assert not torch.equal(layer(x), layer(changed))
    with torch.no_grad():
        layer.log_odds[2] = -4.0
    assert torch.equal(layer(x), layer(changed))


def test_groups_of_samples_have_gates_each() -> None:
    torch.manual_seed(0)
    for groups in ("weights", "inputs", "outputs"):
        method = L0(groups=groups)
        for layer, x in (
            (method.linear(6, 5, dtype=torch.float64), torch.randn(1, 6)),
            (method.conv2d(6, 4, 3, groups=2, dtype=torch.float64), torch.randn(1, 6, 4, 4)),
        ):
            within, between = group_spread(layer, x.double(), 4)
            assert within < 1e-12
            assert between > 1e-3


def test_the_cost_is_the_expected_number_of_weights() -> None:
    torch.manual_seed(0)
    method = L0(penalty=0.3, weight_decay=0.2)
    for layer in (method.linear(4, 6), method.conv2d(4, 6, 3)):
        with torch.no_grad():
            layer.log_odds.normal_()
        p = torch.sigmoid(layer.log_odds + 2 / 3 * math.log(11)).detach()
        expected = 0.0
        for unit in range(4):
            w = layer.weight.detach()[:, unit]
            expected += (p[unit] * (0.3 * w.numel() + 0.1 * w.square().sum())).item()
        assert layer.kl().item() == pytest.approx(expected, rel=1e-5)


def test_gradient_of_the_cost() -> None:
    method = L0(penalty=0.3, weight_decay=0.2)
    check_kl_gradient(method.conv2d(4, 2, 1, groups=2, dtype=torch.float64))


def test_the_start_and_its_bounds() -> None:
    layer = L0(droprate_init=0.2).linear(3, 2)
    assert torch.allclose(layer.log_odds, torch.tensor(math.log(4.0)))
    with torch.no_grad():
        layer.log_odds.copy_(torch.tensor([-9.0, 0.0, 9.0]))
    project(layer)
    assert layer.log_odds.tolist() == pytest.approx([-LARGEST_LOG_ODDS, 0.0, LARGEST_LOG_ODDS])
    # both ends are beyond the clip: a shut gate is exactly 0, an open one exactly 1
    assert layer.gates().tolist() == [0.0, 0.5, 1.0]


def regression() -> tuple[Tensor, Tensor]:
    """Ten inputs, of which the first three matter."""
    x = torch.randn(256, 10)
    y = x[:, :3] @ torch.tensor([[1.0], [-1.0], [0.7]])
    return x, y + 0.5 * torch.randn(256, 1)


@pytest.mark.parametrize("groups", ["weights", "inputs"])
def test_inputs_that_do_not_matter_are_removed(groups: str) -> None:
    torch.manual_seed(0)
    x, y = regression()
    layer = L0(groups=groups, penalty=5.0).linear(10, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        nll = (layer(x) - y).square().mean() / (2 * 0.5**2)
        (nll + layer.kl() / len(x)).backward()
        optimizer.step()
        project(layer)
    assert layer.mask()[0].tolist() == [True] * 3 + [False] * 7
    assert (layer.eval()(x) - y).square().mean() < 1.2 * 0.5**2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "input"}, "did you mean 'inputs'"),
        ({"penalty": -1.0}, "penalty is -1.0: give a finite number of at least 0"),
        ({"weight_decay": "x"}, "weight_decay is 'x'"),
        ({"droprate_init": 1.0}, "droprate_init is 1.0: give a number between 0 and 1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REGISTRY.create("l0", **options)
