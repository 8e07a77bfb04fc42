"""Several straight-through steps against the same steps taken by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gradlab.estimators import create
from gradlab.objectives import TeacherStudent, TestFunction


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("weight", ["real", "binary"])
def test_it_is_the_displacement_by_the_steps_over_lr(weight: str) -> None:
    objective = TeacherStudent(4, 200, seed=0, weight=weight)
    params = objective.initial_params(0)
    ste = create("ste", surrogate="polynomial")
    here = {name: w.double() for name, w in params.items()}
    for _ in range(4):
        rounded = {name: w.float() for name, w in here.items()}
        gradient = ste.estimate(objective, rounded, generator=generator()).gradient
        here = {name: w - 0.8 / 4 * gradient[name].double() for name, w in here.items()}
    found = create("multi_step_ste", surrogate="polynomial", steps=4, lr=0.8).estimate(
        objective, params, generator=generator()
    )
    for name, gradient in found.gradient.items():
        displaced = (params[name].double() - here[name]) / 0.8
        torch.testing.assert_close(gradient.double(), displaced, rtol=1e-4, atol=1e-6)
    single = create("ste", surrogate="polynomial").estimate(
        objective, params, generator=generator()
    )
    assert not torch.allclose(
        found.gradient["layers.0.weight"], single.gradient["layers.0.weight"], rtol=1e-2
    )


@pytest.mark.parametrize("options", [{}, {"surrogate": "identity"}, {"surrogate": "matched"}])
def test_one_step_is_ste(options: dict[str, Any]) -> None:
    objective = TeacherStudent(4, 200, seed=0)
    params = objective.initial_params(0)
    ste = create("ste", **options).estimate(objective, params, generator=generator())
    found = create("multi_step_ste", steps=1, lr=3, **options).estimate(
        objective, params, generator=generator()
    )
    assert all(torch.equal(found.gradient[name], ste.gradient[name]) for name in params)
    assert (found.forward_passes, found.backward_passes) == (1, 1)


def test_every_step_of_a_sampled_surrogate_draws_anew() -> None:
    objective = TeacherStudent(4, 200, seed=0)
    params = objective.initial_params(0)
    # steps so short that only the draws tell them apart
    several = create("multi_step_ste", surrogate="matched", steps=3, lr=1e-9).estimate(
        objective, params, generator=generator()
    )
    draws, matched = generator(), create("ste", surrogate="matched")
    singles = [matched.estimate(objective, params, generator=draws).gradient for _ in range(3)]
    name = "layers.0.weight"
    mean = torch.stack([single[name] for single in singles]).mean(dim=0)
    torch.testing.assert_close(several.gradient[name], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_closed_form_on_a_quadratic(steps: int) -> None:
    objective = TestFunction("quadratic", num_dim=5)
    params = objective.initial_params(0)
    found = create("multi_step_ste", steps=steps, lr=0.3).estimate(
        objective, params, generator=generator()
    )
    curvature = torch.linspace(1, 10, 5).double()
    exact = (1 - (1 - curvature * 0.3 / steps) ** steps) * params["x"] / 0.3
    torch.testing.assert_close(found.gradient["x"], exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"lr": 0}, "lr is 0: give a finite number above 0."),
        ({"surrogate": "hardtan"}, "unknown surrogate 'hardtan': did you mean 'hardtanh'"),
        ({"weight_surrogate": "matched"}, "matched smooths pre-activations, not weights"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        create("multi_step_ste", **options)


def test_label() -> None:
    assert create("multi_step_ste").label() == "multi-step STE hardtanh (5 steps)"
    estimator = create("multi_step_ste", surrogate="matched", steps=1, lr=1)
    assert estimator.label() == "multi-step matched STE (1 step) lr=1"
