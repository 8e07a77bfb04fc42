"""Stochastic rounding: averages of unit gradients over independent draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradlab.binary.stochastic_rounding import StochasticRounding
from gradlab.estimators import create
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from tests.estimators.referees import flat

OBJECTIVE = TeacherStudent(6, 400, seed=1, depth=2)
PARAMS = OBJECTIVE.initial_params(0)


def estimate(seed: int = 0, **options: Any) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return create("sr_ste", **options).estimate(OBJECTIVE, PARAMS, generator=generator).gradient


def test_one_sample_has_unit_norm_in_every_tensor() -> None:
    for tensor in estimate().values():
        assert float(tensor.norm()) == pytest.approx(1, rel=1e-5)


def test_one_sample_points_where_backpropagation_through_a_draw_does() -> None:
    """The same network, written out once more, on draws of its own: equal in the mean."""
    draws = torch.Generator().manual_seed(99)
    total = {name: torch.zeros_like(w) for name, w in PARAMS.items()}
    for _ in range(400):
        leaves = {name: w.clone().requires_grad_() for name, w in PARAMS.items()}
        hidden = OBJECTIVE.inputs
        for name in OBJECTIVE.layer_names[:-1]:
            z = hidden @ leaves[name].T
            # p = (A + 1)/2 with A = z/max z or z/|min z|; s is the relaxed draw at temperature 1
            scale = torch.where(z < 0, -z.min(), z.max()).detach()
            p = ((z / scale + 1) / 2).clamp(1e-7, 1 - 1e-7)
            u = torch.rand(z.shape, generator=draws)
            s = (p.logit() + (1 - u).logit()).sigmoid()
            hidden = torch.where(u < p, 1.0, -1.0).detach() + (s - s.detach())
        loss = (hidden @ leaves[OBJECTIVE.layer_names[-1]].T - OBJECTIVE.targets).square().mean()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        for name, gradient in zip(PARAMS, gradients, strict=True):
            total[name] += gradient / gradient.norm() / 400
    many = estimate(samples=400)
    for name in PARAMS:
        assert (many[name] - total[name]).norm() < 0.15 * total[name].norm()


def test_samples_are_averaged() -> None:
    # averaging lowers the variance as 1/samples and keeps the mean
    one = torch.stack([flat(estimate(seed)) for seed in range(100)])
    ten = torch.stack([flat(estimate(seed, samples=10)) for seed in range(100, 130)])
    assert 6 < float(one.var(dim=0).sum() / ten.var(dim=0).sum()) < 16
    error = (one.var(dim=0) / 100 + ten.var(dim=0) / 30).sqrt()
    assert ((one.mean(dim=0) - ten.mean(dim=0)).abs() / error).max() < 4.5


def test_without_normalization_it_is_the_gradient_itself() -> None:
    plain, unit = estimate(unit_norm=False), estimate()
    for name in PARAMS:
        scaled = plain[name] / plain[name].norm()
        torch.testing.assert_close(scaled, unit[name], rtol=1e-4, atol=1e-6)
        assert abs(float(plain[name].norm()) - 1) > 1e-3


def test_scale_is_that_of_the_whole_batch() -> None:
    # a large example in one place changes the rounding of all others: no block has its own scale
    objective = TeacherStudent(2, 300_000, seed=0, depth=1)  # beyond one block of examples
    seen: list[int] = []

    class Watched(StochasticRounding):
        def draw(self, x: torch.Tensor) -> Any:
            seen.append(len(x))
            return super().draw(x)

    objective.surrogate_gradient(objective.initial_params(0), Watched(torch.Generator()))
    assert seen == [300_000]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": 0}, "samples is 0: give a whole number of at least 1."),
        ({"temperature": 0}, "temperature is 0: give a finite number above 0."),
        ({"unit_norm": "yes"}, "unit_norm is 'yes': give true or false."),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create("sr_ste", **options)


@pytest.mark.parametrize("activation", ["ternary", "2bit", "full"])
def test_activations_without_sign_are_refused(activation: str) -> None:
    objective = TeacherStudent(2, 10, seed=0, activation=activation)
    with pytest.raises(ValueError, match="use the surrogate hardtanh"):
        create("sr_ste").estimate(
            objective, objective.initial_params(0), generator=torch.Generator()
        )
