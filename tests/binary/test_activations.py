from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.binary import activations, surrogates
from gradlab.binary.stochastic_rounding import StochasticSign

CASES: list[tuple[str, dict[str, Any]]] = [
    ("binary", {}),
    ("ternary", {}),
    ("2bit", {}),
    ("kbit", {"bits": 1}),
    ("kbit", {"bits": 4}),
    ("decoupled_ternary", {}),
    ("full", {}),
]
each_case = pytest.mark.parametrize(("name", "options"), CASES, ids=str)
QUANTIZED = [case for case in CASES if case[0] != "full"]


def test_every_registered_activation_is_tested() -> None:
    assert sorted({name for name, _ in CASES}) == activations.names()


@pytest.mark.parametrize(
    ("name", "levels", "thresholds"),
    [
        ("binary", (-1, 1), (0,)),
        ("ternary", (0, 0.5, 1), (0.25, 0.75)),
        ("decoupled_ternary", (0, 0.5, 1), (0.25, 0.75)),
        ("2bit", (0, 1 / 3, 2 / 3, 1), (1 / 6, 0.5, 5 / 6)),
        ("full", None, None),
    ],
)
def test_levels_and_thresholds(name: str, levels: Any, thresholds: Any) -> None:
    activation = activations.create(name)
    if levels is None:
        assert activation.levels is None
        assert activation.thresholds is None
    else:
        assert activation.levels == pytest.approx(levels)
        assert activation.thresholds == pytest.approx(thresholds)


@pytest.mark.parametrize(("name", "options"), QUANTIZED, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_level_starts_exactly_at_its_threshold(
    name: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    activation = activations.create(name, **options)
    levels = torch.tensor(activation.levels, dtype=dtype)
    at = torch.tensor(activation.thresholds, dtype=dtype)
    below = torch.nextafter(at, torch.full_like(at, -math.inf))
    assert torch.equal(activation.forward(at), levels[1:])
    assert torch.equal(activation.forward(below), levels[:-1])
    ends = torch.tensor([-math.inf, -5, 5, math.inf], dtype=dtype)
    assert torch.equal(activation.forward(ends), levels[[0, 0, -1, -1]])


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@given(x=st.floats(-2, 2))
def test_coupled_is_rounding_away_from_the_thresholds(bits: int, x: float) -> None:
    activation = activations.create("kbit", bits=bits)
    steps = 2**bits - 1
    scaled = steps * min(max(x, 0.0), 1.0)
    if abs(scaled - math.floor(scaled) - 0.5) < 1e-9:
        return
    value = activation.forward(torch.tensor(x, dtype=torch.float64))
    assert float(value) == pytest.approx(round(scaled) / steps, abs=1e-15)


@given(x=st.floats(-3, 3))
def test_decoupled_ternary_computes_what_coupled_does(x: float) -> None:
    value = torch.tensor(x)
    decoupled = activations.create("decoupled_ternary")
    assert torch.equal(decoupled.forward(value), activations.create("ternary").forward(value))
    assert torch.equal(decoupled.apply(value), decoupled.forward(value))


def test_decoupled_ternary_centres_each_half_on_its_threshold() -> None:
    decoupled = activations.create("decoupled_ternary")
    x = torch.tensor([-0.3, -0.2, 0.0, 0.5, 0.7, 0.8, 1.2, 1.3])
    # ½·1[−¼ ≤ x ≤ ¾] + ½·1[¼ ≤ x ≤ 1¼]
    assert decoupled.derivative(x).tolist() == [0, 0.5, 0.5, 1, 1, 0.5, 0.5, 0]


def test_halves_of_the_decoupled_ternary_are_differentiable_apart() -> None:
    decoupled = activations.DecoupledTernary()
    x = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    low, high = decoupled.halves(x)
    assert low.tolist() == [0, 1, 1]
    assert high.tolist() == [0, 0, 1]
    (gradient,) = torch.autograd.grad(high.sum(), x)
    assert gradient.tolist() == [0, 1, 1]


@each_case
def test_apply_is_forward_with_the_derivative(name: str, options: dict[str, Any]) -> None:
    activation = activations.create(name, **options)
    x = torch.linspace(-2, 2, 161, dtype=torch.float64, requires_grad=True)
    incoming = torch.linspace(1, 3, 161, dtype=torch.float64)
    y = activation.apply(x)
    torch.testing.assert_close(y, activation.forward(x), rtol=0, atol=1e-15)
    y.backward(incoming)
    torch.testing.assert_close(x.grad, incoming * activation.derivative(x.detach()))


@each_case
def test_nan_stays_and_dtype_too(name: str, options: dict[str, Any]) -> None:
    activation = activations.create(name, **options)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.tensor([math.nan, 0.3], dtype=dtype)
        for y in (activation.forward(x), activation.derivative(x), activation.apply(x)):
            assert y.dtype == dtype
            assert y.isnan().tolist() == [True, False]


@each_case
def test_composes_with_function_transforms(name: str, options: dict[str, Any]) -> None:
    activation = activations.create(name, **options)
    x = torch.linspace(-1.5, 1.5, 24, dtype=torch.float64).reshape(4, 6)

    def total(row: Tensor) -> Tensor:
        return activation.apply(row).sum()

    gradients = torch.func.vmap(torch.func.grad(total))(x)
    torch.testing.assert_close(gradients, activation.derivative(x))


@pytest.mark.parametrize("name", ["ternary", "2bit", "full"])
def test_the_clip_derivative_is_closed(name: str) -> None:
    x = torch.tensor([-0.01, 0.0, 0.5, 1.0, 1.01])
    assert activations.create(name).derivative(x).tolist() == [0, 1, 1, 1, 0]


def test_full_has_its_own_derivative() -> None:
    x = torch.tensor([-0.5, 0.3, 0.9, 1.7], requires_grad=True)
    full = activations.create("full")
    full.forward(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, full.derivative(x.detach()))


def test_binary_takes_any_surrogate() -> None:
    binary = activations.create("binary")
    for name in set(surrogates.names()) - {"magnitude_aware"}:
        surrogate = surrogates.create(name)
        x = torch.linspace(-2, 2, 9).requires_grad_()
        binary.apply(x, surrogate).sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, surrogate.derivative(x.detach()))


def test_binary_takes_a_stochastic_surrogate() -> None:
    generator = torch.Generator().manual_seed(1)
    values = activations.create("binary").apply(torch.zeros(1000), StochasticSign(generator))
    assert set(values.tolist()) == {-1, 1}


@pytest.mark.parametrize("name", ["binary", "decoupled_ternary"])
def test_refuses_a_surrogate_for_weights(name: str) -> None:
    activation = activations.create(name)
    with pytest.raises(ValueError, match="MagnitudeAware is for weights"):
        activation.apply(torch.ones(2, 2), surrogates.create("magnitude_aware"))
    with pytest.raises(ValueError, match="MagnitudeAware is for weights"):
        activation.check(surrogates.create("magnitude_aware"))


@pytest.mark.parametrize("name", ["ternary", "2bit", "full"])
def test_more_levels_refuse_all_but_the_clip(name: str) -> None:
    activation = activations.create(name)
    x = torch.tensor([0.2])
    assert torch.equal(activation.apply(x, surrogates.create("hardtanh")), activation.forward(x))
    for refused in ("steep", "swish_sign"):
        with pytest.raises(ValueError, match="one derivative, its clip"):
            activation.apply(x, surrogates.create(refused))
        with pytest.raises(ValueError, match="one derivative, its clip"):
            activation.derivative(x, surrogates.create(refused))
    with pytest.raises(ValueError, match="one derivative, its clip"):
        activation.apply(x, surrogates.create("hardtanh", threshold=0.5))


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, math.nan, True, "2"])
def test_refuses_a_number_of_bits_out_of_range(bits: Any) -> None:
    with pytest.raises(ValueError, match="whole number from 1 to 8"):
        activations.create("kbit", bits=bits)


def test_kbit_needs_its_bits() -> None:
    with pytest.raises(ValueError, match="needs the option 'bits'"):
        activations.create("kbit")
