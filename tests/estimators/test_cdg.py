"""Coordinate discrete gradient: its definition, and where it is exact."""

from __future__ import annotations

import math

import pytest
import torch

from gradlab.estimators import create
from gradlab.objectives import TeacherStudent, TestFunction


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1])
def test_a_quadratic_has_its_exact_gradient_at_any_epsilon(epsilon: float) -> None:
    objective = TestFunction("quadratic", num_dim=5)
    params = objective.initial_params(0)
    estimate = create("cdg", epsilon=epsilon).estimate(objective, params, generator=generator())
    exact = torch.linspace(1, 10, 5, dtype=torch.float64) * params["x"]
    torch.testing.assert_close(estimate.gradient["x"], exact, rtol=1e-10, atol=1e-10)
    assert estimate.forward_passes == 10


def test_rosenbrock_has_the_gradient_of_its_cubic_smoothing() -> None:
    # (f(x + ε) − f(x − ε))/2ε = f′ + ε²f‴/6 for a quartic; ∂³/∂x³ 100(y − x²)² = 2400x
    objective = TestFunction("rosenbrock", num_dim=4)
    params = {"x": torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=torch.float64)}
    estimate = create("cdg", epsilon=0.1).estimate(objective, params, generator=generator())
    x, y = params["x"][0::2], params["x"][1::2]
    exact = torch.zeros(4, dtype=torch.float64)
    exact[0::2] = -2 * (1 - x) - 400 * x * (y - x**2) + 0.1**2 / 6 * 2400 * x
    exact[1::2] = 200 * (y - x**2)
    torch.testing.assert_close(estimate.gradient["x"], exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["binary", "ternary", "2bit", "full"])
@pytest.mark.parametrize("epsilon", [0.01, 1])
def test_output_layer_is_that_of_backpropagation(activation: str, epsilon: float) -> None:
    objective = TeacherStudent(6, 1500, seed=0, depth=2, activation=activation)
    params = objective.initial_params(0)
    cdg = create("cdg", epsilon=epsilon).estimate(objective, params, generator=generator())
    ste = create("ste").estimate(objective, params, generator=generator())
    name = "layers.2.weight"
    torch.testing.assert_close(cdg.gradient[name], ste.gradient[name], rtol=1e-5, atol=1e-7)


def test_it_is_the_derivative_of_the_box_smoothed_loss() -> None:
    # d/dw of (1/2ε)∫ L(w + t e_i) dt over [−ε, ε], by a fine sum, on a step of the box's centre
    objective = TeacherStudent(2, 200, seed=0, depth=1)
    params = objective.initial_params(0)
    epsilon, delta = 0.5, 0.02
    gradient = create("cdg", epsilon=epsilon).estimate(objective, params, generator=generator())

    def smoothed(centre: float) -> float:
        shifts = centre + epsilon * (torch.arange(20_000) + 0.5) / 10_000 - epsilon
        population = {name: w.expand(20_000, *w.shape).clone() for name, w in params.items()}
        population["layers.0.weight"][:, 0, 1] += shifts
        return float(objective.losses(population).mean())

    # averaged over the same stretch of centres on both sides
    slope = (smoothed(delta) - smoothed(-delta)) / (2 * delta)
    around = []
    for shift in torch.linspace(-delta, delta, 81).tolist():
        moved = {name: w.clone() for name, w in params.items()}
        moved["layers.0.weight"][0, 1] += shift
        there = create("cdg", epsilon=epsilon).estimate(objective, moved, generator=generator())
        around.append(float(there.gradient["layers.0.weight"][0, 1]))
    assert sum(around) / len(around) == pytest.approx(slope, rel=0.02)
    assert min(around) <= float(gradient.gradient["layers.0.weight"][0, 1]) <= max(around)


@pytest.mark.parametrize("epsilon", [0, -0.1, math.nan, math.inf, "small", True])
def test_bad_epsilon_is_refused(epsilon: object) -> None:
    with pytest.raises(ValueError, match=r"^epsilon is .*: give a (finite )?number above 0\.$"):
        create("cdg", epsilon=epsilon)


def test_label() -> None:
    assert create("cdg").label() == "CDG"
    assert create("cdg", epsilon=1).label() == "CDG ε=1"
