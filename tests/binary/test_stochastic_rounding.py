from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab.binary import binarize, surrogates
from gradlab.binary.stochastic_rounding import (
    StochasticRounding,
    StochasticSign,
    relaxed_bernoulli,
    rounding_probability,
    stochastic_rounding,
    stochastic_sign,
)

DRAWS = 40_000
Z_LIMIT = 4.5  # two-sided 7e-6 per comparison, at a fixed seed


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def worst_z(draws: Tensor, probability: Tensor) -> float:
    """The largest |z| of the frequency of +1 against its probability, over the coins."""
    frequency = (draws > 0).double().mean(0)
    deviation = (probability * (1 - probability) / len(draws)).sqrt()
    coin = deviation > 0
    assert torch.equal(frequency[~coin], probability[~coin])
    return float(((frequency - probability)[coin] / deviation[coin]).abs().max())


def test_stochastic_sign_has_the_right_mean() -> None:
    x = torch.tensor([-3.0, -1.0, -0.6, -0.01, 0.0, 0.3, 0.99, 1.0, 2.0], dtype=torch.float64)
    draws = stochastic_sign(x.expand(DRAWS, -1), generator=seeded())
    assert worst_z(draws, ((x + 1) / 2).clamp(0, 1)) < Z_LIMIT


def test_stochastic_rounding_has_the_right_mean() -> None:
    x = torch.tensor([-4.0, -3.0, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0], dtype=torch.float64)
    draws = stochastic_rounding(x.expand(DRAWS, -1), generator=seeded())
    probability = torch.tensor([0, 0.125, 0.375, 0.4875, 0.5, 0.525, 0.75, 1], dtype=x.dtype)
    torch.testing.assert_close(rounding_probability(x), probability)
    assert worst_z(draws, probability) < Z_LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_unbiased(dtype: torch.dtype) -> None:
    x = torch.full((DRAWS, 1), 0.00390625 - 1, dtype=dtype)  # P(+1) = 1/512
    draws = stochastic_sign(x, generator=seeded())
    assert draws.dtype == dtype
    exact = (x[:1].double() + 1) / 2
    assert worst_z(draws, exact[0]) < Z_LIMIT


def test_the_same_generator_state_gives_the_same_draw() -> None:
    x = torch.linspace(-1, 1, 200)
    first = stochastic_rounding(x, generator=seeded(3))
    assert torch.equal(first, stochastic_rounding(x, generator=seeded(3)))
    assert not torch.equal(first, stochastic_rounding(x, generator=seeded(4)))
    generator = seeded(3)
    stochastic_rounding(x, generator=generator)
    assert not torch.equal(first, stochastic_rounding(x, generator=generator))


def test_neither_reads_nor_moves_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    stochastic_sign(torch.zeros(5), generator=seeded())
    stochastic_rounding(torch.ones(5), generator=seeded())
    assert torch.equal(before, torch.random.get_rng_state())


def test_stochastic_sign_uses_the_derivative_it_is_given() -> None:
    x = torch.tensor([-1.5, -0.4, 0.0, 0.9], requires_grad=True)
    for name in ("hardtanh", "identity", "polynomial"):
        surrogate = surrogates.create(name)
        draw = stochastic_sign(x, generator=seeded(), surrogate=surrogate)
        (gradient,) = torch.autograd.grad(draw.sum(), x)
        assert torch.equal(gradient, surrogate.derivative(x.detach()))
    (default,) = torch.autograd.grad(stochastic_sign(x, generator=seeded()).sum(), x)
    assert default.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_derivative_of_rounding_is_that_of_the_relaxed_variable(temperature: float) -> None:
    x = torch.tensor([-4.0, -1.0, -0.2, 0.1, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    draw = StochasticRounding(seeded(1), temperature).draw(x)
    scale = torch.tensor([4.0, 4, 4, 3, 3, 3], dtype=torch.float64)  # max x and |min x|, held fixed
    relaxed = relaxed_bernoulli((x / scale + 1) / 2, draw.uniform, temperature)  # type: ignore[attr-defined]
    (expected,) = torch.autograd.grad(relaxed[1:-1].sum(), x)
    inner = slice(1, -1)  # at the extremes the probability is 0 or 1, and its logit infinite
    torch.testing.assert_close(draw.derivative(x.detach())[inner], expected[inner])
    assert draw.derivative(x.detach()).isfinite().all()


def test_relaxed_variable_hardens_as_the_temperature_falls() -> None:
    uniform = torch.rand(1000, generator=seeded(), dtype=torch.float64)
    probability = torch.rand(1000, generator=seeded(1), dtype=torch.float64)
    hard = (uniform < probability).double()
    distances = [
        float((relaxed_bernoulli(probability, uniform, t) - hard).abs().mean())
        for t in (4.0, 1.0, 0.25, 1e-3)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3


def test_forward_does_not_depend_on_the_temperature() -> None:
    x = torch.linspace(-2, 1, 1000, dtype=torch.float64)
    cold, hot = (stochastic_rounding(x, generator=seeded(), temperature=t) for t in (0.01, 10.0))
    assert torch.equal(cold, hot)
    draw = StochasticRounding(seeded(), 10.0).draw(x)
    relaxed = relaxed_bernoulli(rounding_probability(x), draw.uniform, 10.0)  # type: ignore[attr-defined]
    assert torch.equal(torch.sign(relaxed - 0.5), hot)


@pytest.mark.parametrize(
    ("x", "probability"),
    [
        ([1.0, 2.0, 4.0], [0.625, 0.75, 1.0]),  # all positive: no negative scale is needed
        ([-1.0, -4.0], [0.375, 0.0]),  # all negative
        ([0.0, -4.0], [0.5, 0.0]),
        ([0.0, 0.0, -0.0], [0.5, 0.5, 0.5]),  # all zero: fair coins
        ([5.0], [1.0]),
        ([], []),
    ],
)
def test_edges_of_rounding(x: list[float], probability: list[float]) -> None:
    value = torch.tensor(x, requires_grad=True)
    assert rounding_probability(value.detach()).tolist() == probability
    draw = stochastic_rounding(value, generator=seeded())
    assert draw.abs().tolist() == [1.0] * len(x)
    draw.sum().backward()
    assert value.grad is not None
    assert value.grad.isfinite().all()
    if set(x) == {0.0}:
        assert value.grad.tolist() == [0.0] * len(x)


def test_a_zero_among_negatives_has_their_scale() -> None:
    x = torch.tensor([0.0, -4.0], dtype=torch.float64)
    draw = StochasticRounding(seeded()).draw(x)
    s = 1 - draw.uniform[0]  # type: ignore[attr-defined]  # the relaxed variable at p = ½, τ = 1
    torch.testing.assert_close(draw.derivative(x)[0], s * (1 - s) / 0.25 / (2 * 4))


def test_nan_is_not_hidden() -> None:
    x = torch.tensor([math.nan, 0.5, -1.0])
    assert stochastic_sign(x, generator=seeded()).isnan().tolist() == [True, False, False]
    draw = StochasticRounding(seeded()).draw(x)
    assert draw.forward(x).isnan().all()
    assert draw.derivative(x).isnan().all()
    infinite = torch.tensor([math.inf, 0.5, -1.0])
    assert stochastic_rounding(infinite, generator=seeded()).isnan().all()


def test_a_surrogate_draws_afresh_at_each_pass() -> None:
    surrogate = StochasticSign(seeded())
    x = torch.zeros(100)
    assert not torch.equal(binarize(x, surrogate), binarize(x, surrogate))


def test_under_vmap_members_draw_apart() -> None:
    generator = seeded()
    draws = torch.func.vmap(
        lambda x: stochastic_sign(x, generator=generator), randomness="different"
    )(torch.zeros(2, 100))
    assert not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf, "hot"])
def test_refuses_a_temperature_that_is_not_positive(temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        StochasticRounding(seeded(), temperature)
