"""What the estimators share: cosines, the split-half formula, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from gradlab import estimators
from gradlab.estimators.base import (
    NestedEstimates,
    OneEstimate,
    above_zero,
    at_least_zero,
    cosine,
    finite,
    probability,
    require_finite,
    split_half_cosine,
    split_half_diagnostics,
)


def test_cosine() -> None:
    assert cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[4.0, 3.0]])) == pytest.approx(0.96)
    assert math.isnan(cosine(torch.zeros(3), torch.ones(3)))
    # in float64: squares of 1e-30 underflow float32
    assert cosine(torch.full((2,), 1e-30), torch.ones(2)) == pytest.approx(1)


def test_predicted_samples_do_reach_a_cosine_of_nine_tenths() -> None:
    # g plus noise of norm r per sample, averaged over n; what the split halves predict is where
    # the mean of m samples has a cosine of .9 with g
    generator = torch.Generator().manual_seed(0)
    signal, spread, samples = torch.randn(20_000, generator=generator), 12.0, 100
    halves = [
        {"w": signal + spread * torch.randn(20_000, generator=generator) / math.sqrt(samples / 2)}
        for _ in range(2)
    ]
    numbers = split_half_diagnostics((halves[0], halves[1]), samples)
    needed = numbers["samples_for_0.9/w"]
    mean = signal + spread * torch.randn(20_000, generator=generator) / math.sqrt(needed)
    assert cosine(mean, signal) == pytest.approx(0.9, abs=0.01)


def test_halves_that_disagree_need_infinitely_many_samples() -> None:
    opposite = ({"w": torch.ones(2)}, {"w": -torch.ones(2)})
    assert split_half_diagnostics(opposite, 10)["samples_for_0.9/w"] == math.inf


def test_tensors_joined_have_the_cosine_of_the_whole_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    halves = [
        {
            name: torch.randn(size, generator=generator)
            for name, size in [("a", 3), ("b", 5), ("c", 2)]
        }
        for _ in range(2)
    ]
    halves[0]["c"] = torch.zeros(2)  # no direction of its own, but part of the other half's length
    numbers = split_half_diagnostics((halves[0], halves[1]), samples=10)
    for names in (["a", "b"], ["a", "b", "c"], ["b"]):
        first, second = (torch.cat([half[name] for name in names]) for half in halves)
        assert split_half_cosine(numbers, names) == pytest.approx(cosine(first, second))
    assert split_half_cosine(numbers, ["a", "left alone"]) == pytest.approx(
        cosine(halves[0]["a"], halves[1]["a"])
    )
    assert math.isnan(split_half_cosine(numbers, ["left alone"]))


def test_the_not_finite_tensor_is_named() -> None:
    params = {"a": torch.zeros(2), "b": torch.tensor([0.0, math.inf])}
    with pytest.raises(ValueError, match=r"^parameter b has NaN or infinite entries: estimate be"):
        require_finite(params)


@pytest.mark.parametrize(
    ("check", "fine", "wrong", "fix"),
    [
        (finite, [-3, 0.5], [math.nan, math.inf], "give a finite number."),
        (above_zero, [1, 1e-300], [0, -1.0, math.nan, math.inf], "give a finite number above 0."),
        (at_least_zero, [0, 2.5], [-1e-300, math.nan, math.inf], "give a finite number of at leas"),
        (probability, [1e-300, 0.5], [0, 1, 1.5, math.nan], "give a number between 0 and 1, both"),
    ],
    ids=["finite", "above_zero", "at_least_zero", "probability"],
)
def test_numbers_out_of_range(
    check: Callable[[str, object], object], fine: list[float], wrong: list[float], fix: str
) -> None:
    for value in fine:
        check("sigma", value)
    for value in wrong:
        with pytest.raises(ValueError, match=f"^sigma is {value}: {fix}"):
            check("sigma", value)
    for other in (True, "1", None):
        with pytest.raises(ValueError, match=f"^sigma is {other!r}: give a "):
            check("sigma", other)


def test_names_and_refusals() -> None:
    assert {"cdg", "nes", "nes_local", "sr_ste", "ste"} <= set(estimators.names())
    with pytest.raises(
        ValueError, match=r"^unknown estimator 'nes_locl': did you mean 'nes_local'"
    ):
        estimators.create("nes_locl")
    for name, option in estimators.LIST_OPTIONS:
        assert option in estimators.defaults(name)


@pytest.mark.parametrize(
    ("kind", "missing"), [(OneEstimate, "estimate"), (NestedEstimates, "estimates")]
)
def test_an_estimator_that_estimates_nothing_cannot_be_made(kind: type, missing: str) -> None:
    with pytest.raises(TypeError, match=f"abstract method '?{missing}'?"):
        type("Unfinished", (kind,), {})()
