"""ARM and DisARM, in their papers' own logits, and their variances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.estimators import create
from tests.estimators import referees
from tests.estimators.sign_losses import (
    SIGMA,
    SignTable,
    by_pattern,
    exact_gradient,
    mean_weights,
    members,
    moments,
    pattern_probability,
)

PARAMS = mean_weights(0.1, 0.35, -0.6)
OBJECTIVE = SignTable.random(3)


def logits(mean: Tensor) -> Tensor:
    return referees.distribution(mean / SIGMA).logit()


def loss(bits: Tensor) -> Tensor:
    return OBJECTIVE.table[tuple(bits.long())]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["arm", "disarm"])
def test_one_pair_is_that_of_the_papers(name: str, seed: int) -> None:
    # (f(1[u > s(−ℓ)]) − f(1[u < s(ℓ)]))(u − ½), and ½(f(b) − f(b̃))(−1)^b̃ 1[b ≠ b̃] s(|ℓ|)
    uniform = referees.distribution(members(PARAMS, seed, 2, antithetic=True).noise()[0].double())
    mean = PARAMS["w"].clone().requires_grad_()
    logit = logits(mean)
    b, other = uniform > torch.sigmoid(-logit), uniform < torch.sigmoid(logit)
    difference = loss(b) - loss(other)
    in_logits = difference * (uniform - 0.5)
    if name == "disarm":
        sign = torch.where(other, -1.0, 1.0) * (b != other)
        in_logits = difference / 2 * sign * torch.sigmoid(logit.abs())
    (in_mean,) = torch.autograd.grad(logit, mean, in_logits.detach())
    found = create(name, population=2, sigma=SIGMA).estimate(
        OBJECTIVE, PARAMS, generator=torch.Generator().manual_seed(seed)
    )
    torch.testing.assert_close(found.gradient["w"], in_mean, rtol=1e-5, atol=1e-6)
    assert difference != 0 or not in_mean.any()


def test_variance_of_disarm_is_below_that_of_arm() -> None:
    # u is even between Φ(−|a|) and Φ(|a|) where the signs agree, and beyond where they differ
    mean = PARAMS["w"]
    rare = referees.distribution(-(mean / SIGMA).abs())
    half = 0.5 - rare
    agree, differ = half**2 / 3, (0.25 + 0.5 * half + half**2) / 3
    slope = referees.density(mean / SIGMA) / SIGMA / (rare * (1 - rare))
    found = by_pattern("disarm", OBJECTIVE, PARAMS, {"population": 2}, pairs=True)
    first, second = moments(found, mean)
    exact = exact_gradient(OBJECTIVE.table, mean)
    torch.testing.assert_close(first, exact, rtol=1e-6, atol=1e-6)
    arm = torch.zeros_like(mean)
    for pattern in found:
        signs = torch.tensor(pattern)
        square = torch.where(signs[0] != signs[1], differ, agree) * slope**2
        chance = pattern_probability(signs, mean / SIGMA)
        arm += chance * (loss(signs[0]) - loss(signs[1])) ** 2 * square
    assert (second - exact**2 < 0.95 * (arm - exact**2)).all()


def test_variance_of_arm_is_the_enumerated_one() -> None:
    mean = PARAMS["w"]
    exact = exact_gradient(OBJECTIVE.table, mean)
    spread = {}
    for name in ("arm", "disarm"):
        estimator = create(name, population=2, sigma=SIGMA)
        found = referees.repeated_estimates(estimator, OBJECTIVE, PARAMS, 1000)
        gradients = [each.gradient for each in found]
        assert referees.z_scores(gradients, {"w": exact}).abs().max() < 4.5
        spread[name] = torch.stack([g["w"] for g in gradients]).var(dim=0)
    assert (spread["disarm"] < spread["arm"]).all()


def test_a_weight_whose_signs_agree_gets_nothing_from_disarm() -> None:
    params = mean_weights(0.0, 20.0)
    objective = SignTable.random(2)
    for name, zero in (("disarm", True), ("arm", False)):
        found = create(name, population=20, sigma=SIGMA).estimate(
            objective, params, generator=torch.Generator().manual_seed(0)
        )
        assert found.gradient["w"][0] != 0
        assert (found.gradient["w"][1] == 0) == zero


def test_odd_population_is_refused_and_labels() -> None:
    with pytest.raises(
        ValueError, match=r"^population is 3: mirrored pairs need an even number; g"
    ):
        create("disarm", population=3)
    assert estimators.label("arm", {"sigma": 0.2}) == "ARM 500 σ=0.2"
    assert estimators.label("disarm", {"population": 4}) == "DisARM 4"
