"""Simultaneous perturbation against its expectation, enumerated over all signs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gradlab.estimators import create
from gradlab.evaluation import population as pop
from gradlab.objectives import TestFunction
from tests.estimators import cases_directions, referees
from tests.estimators.case import Case
from tests.estimators.conformance import toy

TOY = Case("spsa", weight="binary")  # the one with 6 weights


def test_its_expectation_is_cdg_averaged_over_all_moves_of_the_other_weights() -> None:
    objective, params = toy(TOY, batch_size=50)
    exact = referees.flat(cases_directions.all_sign_patterns(objective, params))
    flat = pop.flatten(params).double()
    cdg = create("cdg", epsilon=0.1)
    averaged = torch.zeros(6, dtype=torch.float64)
    for pattern in itertools.product((-1.0, 1.0), repeat=6):
        for index in range(6):
            others = 0.1 * torch.tensor(pattern, dtype=torch.float64)
            others[index] = 0
            there = pop.unflatten((flat + others).float(), params)
            found = cdg.estimate(objective, there, generator=torch.Generator()).gradient
            averaged[index] += referees.flat(found)[index] / 64
    torch.testing.assert_close(averaged, exact, rtol=1e-4, atol=1e-5 * float(exact.norm()))


def test_real_weights_agree_with_the_enumeration() -> None:
    objective, params = referees.problem(2, 1)
    flat = pop.flatten(params).double()
    patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(flat)))).double()
    losses = objective.losses(pop.unflatten((flat + 0.4 * patterns).float(), params))
    exact = pop.unflatten(losses @ patterns / len(patterns) / 0.4, params)
    estimator = create("spsa", population=800, epsilon=0.4)
    found = referees.repeated_estimates(estimator, objective, params, 80)
    gradients = [estimate.gradient for estimate in found]
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    assert referees.relative_standard_error(gradients, exact) < 0.02


@pytest.mark.parametrize("function", ["linear", "quadratic"])
def test_it_is_unbiased_for_the_gradient_of_a_quadratic(function: str) -> None:
    objective = TestFunction(function, num_dim=5)
    params = objective.initial_params(0)
    found = referees.repeated_estimates(create("spsa", epsilon=2), objective, params, 80)
    gradients = [estimate.gradient for estimate in found]
    assert referees.z_scores(gradients, objective.surrogate_gradient(params)).abs().max() < 4.5


def test_variance_on_a_linear_function_is_that_of_the_other_coordinates() -> None:
    objective = TestFunction("linear", num_dim=4)
    params = objective.initial_params(0)
    gradient = objective.surrogate_gradient(params)["x"]
    found = referees.repeated_estimates(create("spsa", population=20), objective, params, 2000)
    variance = torch.stack([estimate.gradient["x"] for estimate in found]).var(dim=0)
    expected = (gradient.square().sum() - gradient.square()) / 10
    # the relative error of a variance of 2000 nearly normal numbers is √(2/2000) = 3 %
    assert ((variance / expected - 1).abs() < 0.13).all()


@pytest.mark.parametrize("epsilon", [0, -0.1, math.nan, "small"])
def test_bad_epsilon_is_refused(epsilon: object) -> None:
    with pytest.raises(ValueError, match=r"^epsilon is .*: give a (finite )?number above 0\.$"):
        create("spsa", epsilon=epsilon)


def test_label() -> None:
    assert create("spsa").label() == "SPSA 500"
    assert create("spsa", population=[10, 20], epsilon=1).label() == "SPSA 10/20 ε=1"
