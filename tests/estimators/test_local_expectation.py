"""Local expectation gradients and the NES-CDG identity: exact given the other signs."""

from __future__ import annotations

import pytest
import torch

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
)

PARAMS = mean_weights(0.0, 0.35, -0.6)
NAMES = pytest.mark.parametrize("name", ["local_expectation", "nes_cdg"])


@NAMES
def test_mean_over_all_signs_is_exact_and_variance_below_that_of_the_score(name: str) -> None:
    objective = SignTable.random(3)
    exact = exact_gradient(objective.table, PARAMS["w"])
    local, square = moments(by_pattern(name, objective, PARAMS, {}), PARAMS["w"])
    torch.testing.assert_close(local, exact, rtol=1e-10, atol=1e-10)
    options = {"population": 1, "baseline": "none"}
    _, score = moments(by_pattern("reinforce", objective, PARAMS, options), PARAMS["w"])
    assert (square < score).all()


@NAMES
def test_one_weight_alone_has_no_variance(name: str) -> None:
    objective, params = SignTable.random(1), mean_weights(0.2)
    exact = exact_gradient(objective.table, params["w"])
    for gradient in by_pattern(name, objective, params, {}).values():
        torch.testing.assert_close(gradient, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["binary", "ternary", "2bit", "full"])
def test_both_find_the_same_differences(activation: str) -> None:
    objective = TeacherStudent(4, 128, seed=0, depth=2, activation=activation, weight="binary")
    params = objective.initial_params(0)
    first, second = (
        create(name, samples=3, sigma=0.4).estimate(
            objective, params, generator=torch.Generator().manual_seed(2)
        )
        for name in ("local_expectation", "nes_cdg")
    )
    *hidden, output = params
    for name in hidden:
        assert first.gradient[name].any()
        torch.testing.assert_close(
            first.gradient[name], second.gradient[name], rtol=1e-4, atol=1e-6
        )
    # of a real weight one takes the Gaussian expectation and the other a difference at the draw
    assert not torch.equal(first.gradient[output], second.gradient[output])
    assert (first.forward_passes, second.forward_passes) == (3 * (1 + 32 + 8), 3 * 2 * 36)


@NAMES
def test_real_output_weights_are_unbiased_under_a_squared_error(name: str) -> None:
    objective = TeacherStudent(2, 24, seed=1, depth=1, activation="ternary", weight="binary")
    params = {name: 0.5 * w for name, w in objective.initial_params(0).items()}
    layers = referees.Layers(objective.model, objective.inputs, objective.targets)
    exact, _ = referees.exact_gradients(referees.smoothed_loss_of_signs, layers, params, SIGMA)
    estimator = create(name, samples=20, sigma=SIGMA)
    found = referees.repeated_estimates(estimator, objective, params, 60)
    gradients = [each.gradient for each in found]
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    assert referees.relative_standard_error(gradients, exact) < 0.1


@NAMES
def test_bad_options_and_labels(name: str) -> None:
    with pytest.raises(ValueError, match=r"^samples is 0: give a whole number of at least 1\.$"):
        create(name, samples=0)
    text = {"local_expectation": "local expectation 2 σ=1", "nes_cdg": "NES-CDG 2 σ=1"}[name]
    assert estimators.label(name, {"samples": 2, "sigma": 1.0}) == text
