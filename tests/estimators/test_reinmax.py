"""ReinMax: exact where the trapezoidal rule is, and the paper's own formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.estimators import create
from gradlab.objectives import TeacherStudent
from tests.estimators import referees
from tests.estimators.sign_losses import (
    SIGMA,
    SignPolynomial,
    by_pattern,
    exact_gradient,
    mean_weights,
    members,
    moments,
)

PARAMS = mean_weights(0.0, 0.35, -0.6)


def polynomial(cubic: float) -> SignPolynomial:
    generator = torch.Generator().manual_seed(0)
    linear, quadratic = (
        torch.randn(shape, generator=generator).double() for shape in ((3,), (3, 3))
    )
    return SignPolynomial(linear, quadratic, torch.full((3,), cubic).double())


def bias(objective: SignPolynomial, name: str, **options: object) -> Tensor:
    found, _ = moments(by_pattern(name, objective, PARAMS, options), PARAMS["w"])
    return found - exact_gradient(objective.table.table, PARAMS["w"])


def test_no_bias_where_the_loss_is_quadratic_along_every_sign() -> None:
    assert bias(polynomial(0), "reinmax").abs().max() < 1e-10
    # a softer second distribution is no trapezoidal rule
    assert bias(polynomial(0), "reinmax", temperature=2.0).abs().max() > 0.01


def test_bias_of_a_cubic_is_that_of_the_trapezoidal_rule() -> None:
    # b³ rises by 2 between the signs, and the rule has 3 + 3
    density = referees.density(PARAMS["w"] / SIGMA) / SIGMA
    torch.testing.assert_close(bias(polynomial(0.5), "reinmax"), density * 0.5 * 4)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("seed", range(4))
def test_a_draw_is_that_of_the_paper_in_two_logits(seed: int, temperature: float) -> None:
    # 2 J(π₁) g − ½ J(p) g with π₁ = ½(softmax(θ/τ) + D), for f of b = D₊ − D₋
    objective = polynomial(0.5)
    drawn = members(PARAMS, seed, 1, antithetic=False).members()["w"][0]
    signs = torch.where(drawn >= 0, 1.0, -1.0).double()
    slope = torch.autograd.functional.jacobian(objective.value, signs)
    mean = PARAMS["w"].clone().requires_grad_()
    one = referees.distribution(torch.stack((mean, -mean), dim=-1) / SIGMA).log()
    hot = torch.stack((signs > 0, signs < 0), dim=-1).double()
    probability, tempered = one.softmax(dim=-1), (one / temperature).softmax(dim=-1)
    outer = torch.stack((slope, -slope), dim=-1)

    def product(pi: Tensor) -> Tensor:
        return pi * outer - pi * (pi * outer).sum(dim=-1, keepdim=True)

    in_logits = 2 * product((tempered + hot) / 2) - product(probability) / 2
    (in_mean,) = torch.autograd.grad(one, mean, in_logits.detach())
    found = create("reinmax", sigma=SIGMA, temperature=temperature).estimate(
        objective, PARAMS, generator=torch.Generator().manual_seed(seed)
    )
    torch.testing.assert_close(found.gradient["w"], in_mean, rtol=1e-8, atol=1e-8)


def test_behind_sign_activations_it_is_biased() -> None:
    objective = TeacherStudent(2, 64, seed=1, depth=1, weight="binary")
    params = {name: 0.1 * w for name, w in objective.initial_params(0).items()}
    layers = referees.Layers(objective.model, objective.inputs, objective.targets)
    exact, _ = referees.exact_gradients(referees.smoothed_loss_of_signs, layers, params, 0.1)
    found = referees.repeated_estimates(create("reinmax", samples=50), objective, params, 20)
    scores = referees.z_scores([each.gradient for each in found], exact)
    # χ² of four coordinates: beyond 40 once in 2e7 if there were no bias
    assert scores[:4].square().sum() > 40
    assert (scores[4:].abs() < 4.5).all()  # the output layer, which has a derivative


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": 0.5}, r"^temperature is 0.5: ReinMax takes a number of at least 1\.$"),
        ({"temperature": math.nan}, r"^temperature is nan: give a finite number above 0\.$"),
        ({"samples": 0}, r"^samples is 0: give a whole number of at least 1\.$"),
        ({"surrogate": "hardtan"}, "did you mean 'hardtanh'"),
    ],
)
def test_bad_options_are_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create("reinmax", **options)


def test_label() -> None:
    options = {"samples": 3, "temperature": 2, "surrogate": "ede"}
    assert estimators.label("reinmax", options) == "ReinMax 3 T=2 / ede"
