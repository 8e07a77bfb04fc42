"""REINFORCE of signs: its score, and what the baseline is for."""

from __future__ import annotations

import pytest
import torch

from gradlab import estimators
from gradlab.estimators import create
from tests.estimators import referees
from tests.estimators.sign_losses import (
    SIGMA,
    SignTable,
    exact_gradient,
    mean_weights,
    members,
)

PARAMS = mean_weights(0.0, 0.35, -0.6)


def estimate(seed: int, **options: object) -> torch.Tensor:
    return (
        create("reinforce", sigma=SIGMA, **options)
        .estimate(SignTable.random(3), PARAMS, generator=torch.Generator().manual_seed(seed))
        .gradient["w"]
    )


def log_probability_gradients(signs: torch.Tensor) -> torch.Tensor:
    mean = PARAMS["w"].expand(len(signs), -1).clone().requires_grad_()
    logs = referees.distribution(torch.where(signs, mean, -mean) / SIGMA).log()
    return torch.autograd.grad(logs.sum(), mean)[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
@pytest.mark.parametrize("population", [2, 9])
def test_it_is_the_score_times_the_loss_without_the_mean_of_the_others(
    seed: int, baseline: str, population: int
) -> None:
    drawn = members(PARAMS, seed, population, antithetic=False).members()
    losses = SignTable.random(3).losses(drawn)
    if baseline == "leave_one_out":
        losses = losses - (losses.sum() - losses) / (population - 1)
    by_definition = (losses[:, None] * log_probability_gradients(drawn["w"] >= 0)).mean(dim=0)
    found = estimate(seed, population=population, baseline=baseline)
    torch.testing.assert_close(found, by_definition, rtol=1e-6, atol=1e-6)


def test_leave_one_out_is_unbiased_with_two_members_and_of_lower_variance() -> None:
    exact = {"w": exact_gradient(SignTable.random(3).table, PARAMS["w"])}
    spread = {}
    for baseline in ("leave_one_out", "none"):
        found = [{"w": estimate(s, population=2, baseline=baseline)} for s in range(800)]
        assert referees.z_scores(found, exact).abs().max() < 4.5
        spread[baseline] = referees.relative_standard_error(found, exact)
    assert spread["leave_one_out"] < 0.5 * spread["none"]


def test_bad_options_and_label() -> None:
    with pytest.raises(ValueError, match=r"^population is 1: give a whole number of at least 2\.$"):
        create("reinforce", population=1)
    with pytest.raises(ValueError, match=r"Valid: leave_one_out, none"):
        create("reinforce", baseline="mean")
    assert estimators.label("reinforce", {"baseline": "none"}) == "REINFORCE 500 no baseline"
