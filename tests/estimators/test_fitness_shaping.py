"""Fitness shaping: formulas by hand, and what each shaping must keep."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.estimators.fitness_shaping import FITNESS, shape

RANKED = ["centered_rank", "utilities"]
CENTRED = ["centered", "z_score", *RANKED]

# multiples of 1/8, so that adding a whole number is exact
eighths = st.lists(st.integers(-800, 800), min_size=4, max_size=20).map(
    lambda numbers: torch.tensor(numbers[: len(numbers) // 2 * 2], dtype=torch.float64) / 8
)


def by_hand(losses: list[float]) -> Tensor:
    return torch.tensor(losses, dtype=torch.float64)


LOSSES = by_hand([3.0, 1.0, 10.0, 2.0])


def test_raw_is_the_loss() -> None:
    assert torch.equal(shape(LOSSES, "raw", antithetic=False), LOSSES)


def test_centered_leaves_the_member_itself_out() -> None:
    # the others' means: 13/3, 5, 2, 14/3
    expected = by_hand([3 - 13 / 3, 1 - 5, 10 - 2, 2 - 14 / 3])
    torch.testing.assert_close(shape(LOSSES, "centered", antithetic=False), expected)


def test_centered_leaves_the_whole_mirrored_pair_out() -> None:
    expected = by_hand([3 - 6, 1 - 6, 10 - 2, 2 - 2])  # pair means 2 and 6
    torch.testing.assert_close(shape(LOSSES, "centered", antithetic=True), expected)
    six = by_hand([3.0, 1.0, 10.0, 2.0, 0.0, 5.0])  # pair means 2, 6, 2.5
    expected = by_hand([3 - 4.25, 1 - 4.25, 10 - 2.25, 2 - 2.25, 0 - 4, 5 - 4])
    torch.testing.assert_close(shape(six, "centered", antithetic=True), expected)


def test_z_score_has_mean_zero_and_variance_one() -> None:
    # mean 4, squared deviations 1, 9, 36, 4
    expected = by_hand([-1, -3, 6, -2]) / math.sqrt(12.5)
    torch.testing.assert_close(shape(LOSSES, "z_score", antithetic=False), expected)


def test_centered_ranks_run_from_minus_to_plus_one_half() -> None:
    expected = by_hand([1 / 6, -1 / 2, 1 / 2, -1 / 6])
    torch.testing.assert_close(shape(LOSSES, "centered_rank", antithetic=False), expected)


def test_utilities_of_four_are_those_of_the_paper() -> None:
    # ln 3 − ln k for k = 1, 2, then 0 at ln 3 − ln 3 and below: 1.0986 and .4055 of 1.5041; less
    # 1/4 each; a loss weighs minus P times its utility, and the smallest loss is the best
    first, second = math.log(3), math.log(3 / 2)
    utility = [first / (first + second) - 1 / 4, second / (first + second) - 1 / 4, -1 / 4, -1 / 4]
    expected = -4 * by_hand([utility[2], utility[0], utility[3], utility[1]])
    torch.testing.assert_close(shape(LOSSES, "utilities", antithetic=False), expected)


@pytest.mark.parametrize("fitness", CENTRED)
@given(losses=eighths, shift=st.integers(-1000, 1000), antithetic=st.booleans())
def test_a_constant_added_to_all_losses_changes_nothing(
    fitness: str, losses: Tensor, shift: int, antithetic: bool
) -> None:
    torch.testing.assert_close(
        shape(losses, fitness, antithetic=antithetic),
        shape(losses + shift, fitness, antithetic=antithetic),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("fitness", FITNESS)
@given(losses=eighths)
def test_a_larger_loss_never_weighs_less(fitness: str, losses: Tensor) -> None:
    weights = shape(losses, fitness, antithetic=False)
    order = torch.argsort(losses)
    assert (weights[order].diff() >= -1e-9).all()


@pytest.mark.parametrize("fitness", FITNESS)
@given(losses=eighths)
def test_equal_losses_weigh_the_same(fitness: str, losses: Tensor) -> None:
    twice = torch.cat((losses, losses.flip(0)))
    weights = shape(twice, fitness, antithetic=False)
    size = len(losses)
    torch.testing.assert_close(weights[:size], weights[size:].flip(0), rtol=0, atol=0)


@pytest.mark.parametrize("fitness", CENTRED)
@given(losses=eighths, antithetic=st.booleans())
def test_weights_sum_to_zero(fitness: str, losses: Tensor, antithetic: bool) -> None:
    weights = shape(losses, fitness, antithetic=antithetic)
    assert abs(float(weights.sum())) <= 1e-9 * (1 + float(weights.abs().sum()))


@pytest.mark.parametrize("fitness", RANKED)
@given(losses=eighths)
def test_ranks_see_the_order_alone(fitness: str, losses: Tensor) -> None:
    # exact for eighths: torch's transcendental functions round the end of a tensor otherwise than
    # its middle, which would tell equal losses apart
    bent = losses * losses.abs()
    assert torch.equal(
        shape(losses, fitness, antithetic=False), shape(bent, fitness, antithetic=False)
    )


@pytest.mark.parametrize("fitness", CENTRED)
@pytest.mark.parametrize("size", [2, 3, 7, 100])
def test_a_flat_population_weighs_nothing(fitness: str, size: int) -> None:
    losses = torch.full((size,), 0.1, dtype=torch.float64)
    assert shape(losses, fitness, antithetic=size % 2 == 0).abs().max() < 1e-14


@pytest.mark.parametrize("fitness", FITNESS)
@pytest.mark.parametrize("position", [0, 2])
def test_nan_is_not_lost(fitness: str, position: int) -> None:
    losses = LOSSES.clone()
    losses[position] = math.nan
    weights = shape(losses, fitness, antithetic=False)
    assert weights[position].isnan()
    assert fitness == "raw" or weights.isnan().all()


@pytest.mark.parametrize("fitness", RANKED)
def test_an_infinite_loss_is_the_worst(fitness: str) -> None:
    losses = LOSSES.clone()
    losses[0] = math.inf
    assert shape(losses, fitness, antithetic=False).argmax() == 0
    assert shape(losses, fitness, antithetic=False).isfinite().all()
