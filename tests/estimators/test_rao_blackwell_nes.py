"""NES with its noise averaged out given the signs, against enumerations of all signs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.estimators import create
from gradlab.objectives import TeacherStudent
from tests.estimators import referees
from tests.estimators.sign_losses import (
    SIGMA,
    SignTable,
    by_pattern,
    exact_gradient,
    mean_weights,
    moments,
    pattern_probability,
)

MEANS = (0.1, 0.35, -0.6)


def single(objective: SignTable) -> dict:
    """The score of one member by its signs, without a baseline."""
    options = {"population": 1, "baseline": "none"}
    return by_pattern("reinforce", objective, mean_weights(*MEANS), options)


def pairs(objective: SignTable, **options: object) -> dict:
    options = {"population": 2} | options
    return by_pattern("rao_blackwell_nes", objective, mean_weights(*MEANS), options, pairs=True)


def inverse_fisher(mean: Tensor) -> Tensor:
    ratio = mean / SIGMA
    both = referees.distribution(ratio) * referees.distribution(-ratio)
    return SIGMA**2 * both / referees.density(ratio) ** 2


def test_mean_over_all_signs_is_the_smoothed_gradient() -> None:
    objective, mean = SignTable.random(3), mean_weights(*MEANS)["w"]
    exact = exact_gradient(objective.table, mean)
    for found in (single(objective), pairs(objective)):
        torch.testing.assert_close(moments(found, mean)[0], exact, rtol=1e-6, atol=1e-6)
    natural, _ = moments(pairs(objective, gradient="natural"), mean)
    torch.testing.assert_close(natural, inverse_fisher(mean) * exact, rtol=1e-6, atol=1e-6)


def test_variance_is_below_that_of_the_gaussian_score() -> None:
    # E[ε²/σ² | b] = (1 − b a φ(a)/Φ(ba))/σ², the second moment of a truncated normal variable
    objective, mean = SignTable.random(3), mean_weights(*MEANS)["w"]
    ratio = mean / SIGMA
    _, averaged = moments(single(objective), mean)
    gaussian = torch.zeros_like(mean)
    for pattern in single(objective):
        signs = torch.tensor(pattern)
        side = torch.where(signs[0], ratio, -ratio)
        square = 1 - side * referees.density(side) / referees.distribution(side)
        loss = objective.table[tuple(signs[0].long())]
        gaussian += pattern_probability(signs, ratio) * loss**2 * square / SIGMA**2
    variances = [
        moment - exact_gradient(objective.table, mean) ** 2 for moment in (averaged, gaussian)
    ]
    assert (variances[0] < 0.85 * variances[1]).all()


def test_variance_with_mirrored_pairs_is_below_that_of_antithetic_nes() -> None:
    # where the signs differ |ε| > |a|, with E[ε²] = 1 + |a| φ(a)/Φ(−|a|); where they agree the
    # rest of E[ε²] = 1
    objective, mean = SignTable.random(3), mean_weights(*MEANS)["w"]
    size = (mean / SIGMA).abs()
    rare = referees.distribution(-size)
    differ = 1 + size * referees.density(size) / rare
    agree = (1 - 2 * rare * differ) / (1 - 2 * rare)
    found = pairs(objective)
    _, averaged = moments(found, mean)
    gaussian = torch.zeros_like(mean)
    for pattern in found:
        signs = torch.tensor(pattern)
        first, second = (objective.table[tuple(row.long())] for row in signs)
        square = torch.where(signs[0] != signs[1], differ, agree) / SIGMA**2
        chance = pattern_probability(signs, mean / SIGMA)
        gaussian += chance * ((first - second) / 2) ** 2 * square
    exact = exact_gradient(objective.table, mean)
    assert (averaged - exact**2 < 0.95 * (gaussian - exact**2)).all()


def network() -> tuple[TeacherStudent, dict[str, Tensor]]:
    objective = TeacherStudent(3, 64, seed=0, depth=2, weight="binary")
    return objective, objective.initial_params(0)


@pytest.mark.parametrize(("other", "antithetic"), [("reinforce", False), ("disarm", True)])
def test_it_is_an_estimator_of_another_name(other: str, antithetic: bool) -> None:
    objective, params = network()
    first, second = (
        create(name, population=60, sigma=0.4, **options).estimate(
            objective, params, generator=torch.Generator().manual_seed(3)
        )
        for name, options in (("rao_blackwell_nes", {"antithetic": antithetic}), (other, {}))
    )
    for name in params:
        assert torch.equal(first.gradient[name], second.gradient[name])
    assert first.diagnostics == second.diagnostics


def test_estimates_scatter_less_than_those_of_nes_with_the_same_members() -> None:
    objective, params = network()
    spread = {}
    for name in ("nes", "rao_blackwell_nes"):
        estimator = create(name, population=100, sigma=0.4)
        found = referees.repeated_estimates(estimator, objective, params, 60)
        spread[name] = {
            layer: torch.stack([e.gradient[layer] for e in found]).var(dim=0).mean()
            for layer in params
        }
    *hidden, output = params
    assert all(spread["rao_blackwell_nes"][n] < 0.8 * spread["nes"][n] for n in hidden)
    # the real output layer has NES's own score
    torch.testing.assert_close(spread["rao_blackwell_nes"][output], spread["nes"][output])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"population": 5}, "population is 5: mirrored pairs need an even number; give 6."),
        ({"population": 1, "antithetic": False}, "population is 1: give a whole number of at"),
        ({"population": [10]}, r"population is \[10\]: give a whole number of at least 2."),
        ({"sigma": 0}, "sigma is 0: give a finite number above 0."),
        ({"gradient": "natrual"}, "did you mean 'natural'"),
        ({"antithetic": "no"}, "antithetic is 'no': give true or false."),
        ({"populaton": 4}, "did you mean 'population'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        create("rao_blackwell_nes", **options)
    assert "\n" not in str(refusal.value)


def test_label() -> None:
    assert estimators.label("rao_blackwell_nes", {}) == "RB-NES 500"
    options = {"population": 10, "sigma": 1, "gradient": "natural", "antithetic": False}
    assert estimators.label("rao_blackwell_nes", options) == "RB-NES 10 σ=1 natural not antithetic"
