"""Noise on units: moments, where it acts, how often its KL counts, what bounds do to gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradlab.variational import units
from gradlab.variational.base import kl_divergence, sampling
from gradlab.variational.kl import ard, log_uniform, log_uniform_cubic
from gradlab.variational.methods import REGISTRY
from tests.variational.drop_in import check

Z = 5.0  # two-sided, the largest of some hundreds
FIXED = ("bernoulli", "gaussian_s")
LEARNED = ("variational_a", "sparse_a", "hierarchical_a")
SIDES = ("input", "output")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", [*FIXED, *LEARNED])
def test_a_drop_in_layer(name: str, side: str) -> None:
    check(REGISTRY.create(name, side=side))


def test_no_noise_is_torchs_layer_in_training_too() -> None:
    layer = REGISTRY.create("none").conv2d(2, 4, 3, groups=2)
    plain = nn.Conv2d(2, 4, 3, groups=2)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 2, 5, 5)
    assert torch.equal(layer.train()(x), plain(x))
    assert (float(layer.kl()), layer.log_alpha(), layer.mask()) == (0.0, None, None)


def with_uneven_alpha(layer: Any) -> Any:
    if layer.unit_log_alpha is not None:
        nn.init.uniform_(layer.unit_log_alpha, -4, 0)
    return layer


def alpha_of(layer: Any, units_there: int) -> Tensor:
    return layer.log_alpha().detach().exp().expand(units_there)


@pytest.mark.parametrize("name", [*FIXED, *LEARNED])
def test_moments_with_noise_on_inputs(name: str) -> None:
    """The output is a sum of independent inputs: mean xθ, variance Σ α x² θ²."""
    torch.manual_seed(0)
    n = 40_000
    layer = with_uneven_alpha(REGISTRY.create(name).linear(5, 3, dtype=torch.float64))
    x = torch.randn(1, 5, dtype=torch.float64)
    with torch.no_grad():
        out = layer(x.expand(n, -1))
        mean = layer.eval()(x)[0]
        variance = (alpha_of(layer, 5) * x.square()) @ layer.weight.square().T
    errors = (out.mean(0) - mean) / (variance[0] / n).sqrt()
    assert errors.abs().max() < Z
    # of whatever distribution: the standard error from the sample's own fourth moment
    squares = (out - mean).square()
    errors = (squares.mean(0) - variance[0]) / (squares.std(0) / math.sqrt(n))
    assert errors.abs().max() < Z


@pytest.mark.parametrize("name", [*FIXED, *LEARNED])
def test_moments_with_noise_on_outputs_bias_included(name: str) -> None:
    torch.manual_seed(0)
    n = 4_000
    # p = ½ would have a square without any spread
    options = {"p": 0.3} if name in FIXED else {}
    layer = with_uneven_alpha(
        REGISTRY.create(name, side="output", **options).conv2d(2, 3, 2, dtype=torch.float64)
    )
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        out = layer(x.expand(n, -1, -1, -1))
        mean = layer.eval()(x)[0]
        variance = alpha_of(layer, 3)[:, None, None] * mean.square()
    errors = (out.mean(0) - mean) / (variance / n).sqrt()
    assert errors.abs().max() < Z
    squares = (out - mean).square()
    errors = (squares.mean(0) - variance) / (squares.std(0) / math.sqrt(n))
    assert errors.abs().max() < Z
    # every position has noise of its own
    deviations = ((out - mean) / variance.sqrt()).flatten(2)
    between = (deviations[..., 0] * deviations[..., 1]).mean(0)
    assert between.abs().max() < Z * 3 / math.sqrt(n)


@pytest.mark.parametrize(
    ("name", "divergence"),
    [("variational_a", log_uniform_cubic), ("sparse_a", log_uniform), ("hierarchical_a", ard)],
)
@pytest.mark.parametrize("side", SIDES)
def test_kl_counts_once_for_every_unit(name: str, divergence: Any, side: str) -> None:
    layer = with_uneven_alpha(REGISTRY.create(name, side=side).conv2d(4, 6, 3, groups=2))
    assert layer.unit_log_alpha.shape == ((4,) if side == "input" else (6,))
    torch.testing.assert_close(layer.kl(), divergence(layer.unit_log_alpha).sum())
    twice = REGISTRY.create(name, side=side)
    one, two = twice.linear(8, 8).kl(), twice.linear(16, 16).kl()
    torch.testing.assert_close(two, 2 * one)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_noise_costs_nothing_and_prunes_nothing(name: str) -> None:
    layer = REGISTRY.create(name, p=0.75).linear(2, 2)
    assert float(kl_divergence(layer)) == 0
    assert layer.mask() is None
    assert float(layer.log_alpha()) == pytest.approx(math.log(3))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side", SIDES)
def test_the_mask_removes_what_the_unit_would_have_passed_on(side: str, groups: int) -> None:
    layer = REGISTRY.create("sparse_a", side=side, threshold=2.0).conv2d(4, 6, 1, groups=groups)
    units_there = 4 if side == "input" else 6
    with torch.no_grad():
        layer.unit_log_alpha[1] = 2.5
        x = torch.randn(3, 4, 2, 2)
        masked = layer.apply_weight(x, layer.weight * layer.mask(), None)
        if side == "input":
            x[:, 1] = 0
        by_hand = layer.apply_weight(x, layer.weight, None)
        if side == "output":
            by_hand[:, 1] = 0
    assert torch.equal(masked, by_hand)
    assert int(layer.mask().sum()) == layer.weight.numel() * (units_there - 1) // units_there


@pytest.mark.parametrize("name", LEARNED)
def test_projection_leaves_a_gradient_and_a_clamp_does_not(name: str) -> None:
    torch.manual_seed(0)
    largest = 0.0 if name == "variational_a" else 8.0
    x = torch.randn(50, 3)
    for beyond in (-9.0, largest + 1):
        for mode in ("correct", "faithful"):
            layer = REGISTRY.create(name, mode=mode).linear(3, 2)
            nn.init.constant_(layer.unit_log_alpha, beyond)
            layer.project()
            bounded = min(max(beyond, -8.0), largest)
            assert layer.log_alpha().tolist() == [bounded] * 3
            (layer(x).square().mean() + layer.kl()).backward()
            alive = bool((layer.unit_log_alpha.grad != 0).all())
            assert alive == (mode == "correct")
            assert layer.unit_log_alpha[0].item() == (bounded if alive else beyond)


def test_what_lies_beyond_the_bound_comes_back_only_with_projection() -> None:
    """A loss that wants little noise, from above the bound."""
    for mode in ("correct", "faithful"):
        torch.manual_seed(0)
        layer = units.VariationalA(mode=mode).linear(3, 2)
        nn.init.constant_(layer.unit_log_alpha, 0.5)
        optimizer = torch.optim.Adam([layer.unit_log_alpha], lr=0.05)
        for _ in range(40):
            optimizer.zero_grad()
            (layer(torch.ones(64, 3)) * 10).var().backward()
            optimizer.step()
            layer.project()
        found = layer.unit_log_alpha.detach()
        assert (found < -0.5).all() if mode == "correct" else (found == 0.5).all()


def test_sampling_switches_noise_on_for_evaluation() -> None:
    layer = units.GaussianS().linear(4, 2).eval()
    x = torch.randn(3, 4)
    assert torch.equal(layer(x), layer(x))
    with sampling(layer):
        assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), layer(x))


def test_a_copy_and_a_plain_network_load() -> None:
    layer = with_uneven_alpha(units.SparseA().linear(3, 2))
    twin = copy.deepcopy(layer)
    nn.init.zeros_(twin.unit_log_alpha)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.log_alpha(), layer.log_alpha())
    plain = nn.Linear(3, 2)
    missing = layer.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["unit_log_alpha"]
    assert not missing.unexpected_keys
    assert torch.equal(layer.weight, plain.weight)


@given(
    name=st.sampled_from([*FIXED, *LEARNED]),
    side=st.sampled_from(SIDES),
    leading=st.lists(st.integers(1, 3), max_size=3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
)
def test_any_shape(name: str, side: str, leading: list[int], inputs: int, outputs: int) -> None:
    layer = REGISTRY.create(name, side=side).linear(inputs, outputs)
    x = torch.randn(*leading, inputs)
    assert layer(x).shape == (*leading, outputs)
    assert torch.equal(layer.eval()(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("bernoulli", {"p": 1.0}, "p is 1.0: give a number between 0 and 1"),
        ("gaussian_s", {"p": "half"}, "p is 'half'"),
        ("gaussian_s", {"side": "inputs"}, "unknown side 'inputs': did you mean 'input'"),
        ("variational_a", {"initial": 0.5}, "initial is 0.5: give a log alpha from -8 to 0."),
        ("sparse_a", {"initial": math.nan}, "initial is nan: give a finite number"),
        ("sparse_a", {"threshold": math.inf}, "threshold is inf: give a finite number"),
        ("hierarchical_a", {"mode": "exact"}, "unknown mode 'exact'"),
        ("none", {"p": 0.5}, "unknown option of variational method none 'p'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        REGISTRY.create(name, **options)
