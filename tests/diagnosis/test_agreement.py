"""Cosines to a noisy reference, and their intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlab.diagnosis.agreement import GROUPS, RESAMPLES, Reference, agreement


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_without_noise_the_numbers_are_those_of_the_textbook() -> None:
    reference, gradient = drawn(20), drawn(20, seed=1) + drawn(20)
    found = agreement(gradient, Reference("cdg", "w", None, (reference, reference)))
    cosine = float(gradient @ reference / gradient.norm() / reference.norm())
    assert found.cosine == pytest.approx(cosine)
    assert found.norm_ratio == pytest.approx(float(gradient.norm() / reference.norm()))
    same = (gradient.sign() == reference.sign()).double().mean()
    assert found.sign_agreement == pytest.approx(float(same))
    assert found.low < cosine < found.high
    assert found.resampled.shape == (RESAMPLES,)


def test_only_the_chosen_coordinates_are_compared() -> None:
    gradient, places = drawn(4, 5), torch.tensor([3, 11, 7])
    half = gradient.flatten()[places]
    found = agreement(gradient, Reference("cdg", "w", places, (half, half)))
    assert found.cosine == pytest.approx(1)


def test_zero_references_have_no_sign_and_zero_gradients_no_cosine() -> None:
    reference = torch.tensor([0.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    gradient = torch.tensor([1.0, -1.0, 1.0, -1.0])
    found = agreement(gradient, Reference("cdg", "w", None, (reference, reference)))
    assert found.sign_agreement == 0.5
    nothing = agreement(torch.zeros(4), Reference("cdg", "w", None, (reference, reference)))
    assert math.isnan(nothing.cosine)
    assert math.isnan(nothing.low)
    assert nothing.norm_ratio == 0
    opposed = Reference("smoothed", "w", None, (reference, -reference))
    assert math.isnan(agreement(gradient, opposed).cosine)


def test_the_noise_of_the_reference_is_taken_out() -> None:
    """Of 200 noisy references; without the correction the mean cosine would be .57, not .8."""
    truth = drawn(1500)
    gradient = 0.8 * truth / truth.norm() + 0.6 * drawn(1500, seed=1) / drawn(1500, seed=1).norm()
    exact = float(gradient @ truth / gradient.norm() / truth.norm())
    found, covered = [], 0
    for seed in range(200):
        halves = tuple(truth + 1.4 * drawn(1500, seed=2 + 2 * seed + k) for k in (0, 1))
        each = agreement(gradient, Reference("smoothed", "w", None, (halves[0], halves[1])))
        found.append(each.cosine)
        covered += each.low <= exact <= each.high
    # standard error of the mean: 4 of them
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / math.sqrt(200)
    # 95 % of 200 is 190, with a standard deviation of 3.1
    assert covered >= 190 - 4 * 3.1


def test_intervals_of_few_coordinates_hold_the_truth_about_as_often_as_they_say() -> None:
    """The cosine over 5,000 coordinates, from 64 of them at a time."""
    truth = drawn(5000)
    gradient = truth + drawn(5000, seed=1)
    exact = float(gradient @ truth / gradient.norm() / truth.norm())
    held = 0
    for seed in range(200):
        places = torch.from_numpy(np.random.default_rng(seed).choice(5000, 64, replace=False))
        half = truth[places]
        found = agreement(gradient, Reference("cdg", "w", places, (half, half)))
        held += found.low <= exact <= found.high
    assert held >= 0.95 * 200 - 4 * 3.1


def test_many_coordinates_are_joined_in_groups_without_a_change_of_the_cosine() -> None:
    size = 10 * GROUPS + 3
    reference, gradient = drawn(size), drawn(size, seed=1) + drawn(size)
    found = agreement(gradient, Reference("cdg", "w", None, (reference, reference)))
    exact = float(gradient @ reference / gradient.norm() / reference.norm())
    assert found.cosine == pytest.approx(exact)
    # the standard deviation of a cosine ρ of n normal pairs is (1 - ρ²)/√n
    width = 2 * 1.96 * (1 - exact**2) / math.sqrt(size)
    assert found.high - found.low == pytest.approx(width, rel=0.15)
