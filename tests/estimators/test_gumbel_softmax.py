"""Gumbel-softmax: a relaxed loss's own gradient, and a bias that shrinks with the temperature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.estimators import create
from gradlab.evaluation import GaussianPopulation
from gradlab.objectives import TeacherStudent
from tests.estimators import referees
from tests.estimators.sign_losses import (
    SIGMA,
    SignPolynomial,
    exact_gradient,
    mean_weights,
    members,
)

PARAMS = mean_weights(0.0, 0.35, -0.6)


def one_weight() -> SignPolynomial:
    """b³, of one sign."""
    return SignPolynomial(
        torch.zeros(1).double(), torch.zeros(1, 1).double(), torch.ones(1).double()
    )


def averaged_over_noise(monkeypatch: pytest.MonkeyPatch, **options: object) -> Tensor:
    """The expected estimate of one weight, by the midpoint rule in its uniform number."""
    points = 600

    def noise(population: GaussianPopulation) -> Tensor:
        uniform = (torch.arange(population.start, population.stop) + 0.5) / points
        return torch.special.ndtri(uniform.double())[:, None]

    monkeypatch.setattr(GaussianPopulation, "noise", noise)
    estimator = create("gumbel_softmax", samples=points, sigma=SIGMA, **options)
    found = estimator.estimate(one_weight(), mean_weights(0.2), generator=torch.Generator())
    return found.gradient["w"]


def test_bias_shrinks_with_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = exact_gradient(one_weight().table.table, torch.tensor([0.2]).double())
    errors = [
        float((averaged_over_noise(monkeypatch, temperature=temperature) / exact - 1).abs())
        for temperature in (1.0, 0.3, 0.1)
    ]
    assert errors[0] > 0.1
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_straight_through_keeps_its_bias_at_any_temperature(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the slope of b³ is 3 at either sign, and it rises by 2 between them
    exact = exact_gradient(one_weight().table.table, torch.tensor([0.2]).double())
    for temperature in (1.0, 0.1):
        found = averaged_over_noise(monkeypatch, temperature=temperature, straight_through=True)
        assert found / exact > 2


@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_the_derivative_of_the_relaxed_loss(seed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3,), (3, 3), (3,))
    objective = SignPolynomial(*(torch.randn(s, generator=generator).double() for s in shapes))
    uniform = referees.distribution(members(PARAMS, seed, 1, antithetic=False).noise()[0].double())
    mean = PARAMS["w"].clone().requires_grad_()
    logit = referees.distribution(mean / SIGMA).logit() + uniform.logit()
    relaxed = 2 * torch.sigmoid(logit / 0.7) - 1
    (by_definition,) = torch.autograd.grad(objective.value(relaxed), mean)
    found = create("gumbel_softmax", sigma=SIGMA, temperature=0.7).estimate(
        objective, PARAMS, generator=torch.Generator().manual_seed(seed)
    )
    torch.testing.assert_close(found.gradient["w"], by_definition, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("straight_through", [False, True])
def test_behind_sign_activations_it_is_biased(straight_through: bool) -> None:
    objective = TeacherStudent(2, 1300, seed=1, depth=1, weight="binary")
    params = {name: 0.1 * w for name, w in objective.initial_params(0).items()}
    layers = referees.Layers(objective.model, objective.inputs, objective.targets)
    exact, _ = referees.exact_gradients(referees.smoothed_loss_of_signs, layers, params, 0.1)
    estimator = create(
        "gumbel_softmax", samples=50, temperature=1.0, straight_through=straight_through
    )
    found = referees.repeated_estimates(estimator, objective, params, 20)
    scores = referees.z_scores([each.gradient for each in found], exact)
    # χ² of four coordinates: beyond 40 once in 2e7 if there were no bias
    assert scores[:4].square().sum() > 40
    if straight_through:  # the output layer has a derivative
        assert (scores[4:].abs() < 4.5).all()


def test_bad_options_and_label() -> None:
    with pytest.raises(ValueError, match=r"^temperature is 0: give a finite number above 0\.$"):
        create("gumbel_softmax", temperature=0)
    with pytest.raises(ValueError, match=r"^straight_through is 1: give true or false\.$"):
        create("gumbel_softmax", straight_through=1)
    options = {"temperature": 1, "straight_through": True, "surrogate": {"name": "identity"}}
    label = estimators.label("gumbel_softmax", options)
    assert label == "Gumbel-softmax 1 T=1 straight-through / identity"
