"""Functions with analytic smoothed losses, judged by quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from gradlab.evaluation import GaussianPopulation
from gradlab.objectives import TestFunction, create
from gradlab.objectives.test_functions import FUNCTIONS

every_function = pytest.mark.parametrize("function", sorted(FUNCTIONS))
X = {"x": torch.tensor([0.4, -1.2], dtype=torch.float64)}


def gauss_hermite(function: str, sigma: np.ndarray, nodes: int = 40) -> float:
    """E f(x), x ~ N(X, σ²) in two dimensions; exact for polynomials, and nearly for cosines."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / math.sqrt(2 * math.pi)
    objective, total = TestFunction(function, num_dim=2), 0.0
    grid = list(itertools.product(range(nodes), repeat=2))
    x = X["x"].numpy() + sigma * np.array([[points[i], points[j]] for i, j in grid])
    values = objective.losses({"x": torch.tensor(x)}).numpy()
    for (i, j), value in zip(grid, values, strict=True):
        total += weights[i] * weights[j] * value
    return total


@every_function
def test_smoothed_loss_is_that_of_quadrature(function: str) -> None:
    objective = TestFunction(function, num_dim=2)
    for sigma in (0.1, 0.8):
        expected = gauss_hermite(function, np.full(2, sigma))
        assert float(objective.smoothed_loss(X, sigma)) == pytest.approx(expected, rel=1e-9)
    each = np.array([0.3, 0.7])
    got = objective.smoothed_loss(X, torch.tensor(each))
    assert float(got) == pytest.approx(gauss_hermite(function, each), rel=1e-9)


@every_function
def test_smoothed_gradient_is_that_of_the_smoothed_loss(function: str) -> None:
    objective, step = TestFunction(function, num_dim=2), 1e-5
    mean, width = objective.smoothed_gradient(X, 0.3)
    for index in range(2):
        unit = torch.zeros(2, dtype=torch.float64)
        unit[index] = step
        up = objective.smoothed_loss({"x": X["x"] + unit}, 0.3)
        down = objective.smoothed_loss({"x": X["x"] - unit}, 0.3)
        slope = float(up - down) / (2 * step)
        assert float(mean["x"][index]) == pytest.approx(slope, rel=1e-6, abs=1e-6)
        up = objective.smoothed_loss(X, 0.3 + unit)
        down = objective.smoothed_loss(X, 0.3 - unit)
        slope = float(up - down) / (2 * step)
        assert float(width["x"][index]) == pytest.approx(slope, rel=1e-6, abs=1e-6)


@every_function
def test_gradient_is_the_derivative(function: str) -> None:
    objective, step = TestFunction(function, num_dim=2), 1e-6
    gradient = objective.surrogate_gradient(X, "ignored", weight_surrogate=None)["x"]
    for index in range(2):
        moved = torch.stack((X["x"], X["x"]))
        moved[0, index] += step
        moved[1, index] -= step
        up, down = objective.losses({"x": moved})
        assert float(gradient[index]) == pytest.approx(float(up - down) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("rosenbrock", (1 - 0.4) ** 2 + 100 * (-1.2 - 0.16) ** 2),
        ("quadratic", (0.16 + 10 * 1.44) / 2),
        ("linear", 0.4 - 12.0),
        (
            "rastrigin",
            20 + 1.6 - 10 * (math.cos(0.8 * math.pi) + math.cos(2.4 * math.pi)),
        ),
    ],
)
def test_values_by_hand(function: str, value: float) -> None:
    loss = TestFunction(function, num_dim=2).loss(X)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(value)


@pytest.mark.parametrize("function", ["rosenbrock", "quadratic", "rastrigin"])
def test_the_optimum_is_where_it_is_said_to_be(function: str) -> None:
    objective = TestFunction(function, num_dim=4)
    assert float(objective.loss(objective.optimum)) == pytest.approx(0, abs=1e-12)
    gradient = objective.surrogate_gradient(objective.optimum)["x"]
    assert gradient.abs().max() < 1e-9


def test_populations_and_decreases() -> None:
    objective = TestFunction("rosenbrock", num_dim=4)
    params = objective.initial_params(0)
    population = GaussianPopulation(params, 0.5, 3, 0, 9, antithetic=True)
    losses = objective.losses(population)
    assert losses.tolist() == [float(objective.loss({"x": x})) for x in population.members()["x"]]
    decreases = objective.decreases(params, population)
    assert torch.equal(decreases, objective.loss(params) - losses)


def test_rosenbrock_starts_from_whole_numbers_up_to_ten() -> None:
    objective = TestFunction("rosenbrock", num_dim=100)
    start = objective.initial_params(0)["x"]
    assert start.dtype == torch.float64
    assert torch.equal(start, start.round())
    assert start.abs().max() == 10
    assert torch.equal(start, objective.initial_params(0)["x"])
    assert not torch.equal(start, objective.initial_params(1)["x"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"function": "rosenbrok"}, "unknown test function 'rosenbrok': did you mean 'rosenbrock'"),
        ({"function": "linear", "num_dim": 0}, "num_dim is 0: give a whole number of at least 1."),
        (
            {"function": "rosenbrock", "num_dim": 3},
            "num_dim is 3: rosenbrock takes pairs, give an even number of coordinates.",
        ),
        ({"function": "linear", "seed": -1}, "seed is -1: give a whole number of at least 0."),
        ({}, "objective test_function needs the option 'function'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create("test_function", **options)


def test_other_parameters_are_refused() -> None:
    objective = TestFunction("linear", num_dim=2)
    with pytest.raises(ValueError, match=r"seed is -1: give a whole number of at least 0."):
        objective.initial_params(-1)
    with pytest.raises(ValueError, match=r"parameter x has shape \(3,\), not \(2,\)"):
        objective.loss({"x": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"\(missing: x; unknown: y\)"):
        objective.loss({"y": torch.zeros(2)})


def test_nan_is_passed_on() -> None:
    for function in FUNCTIONS:
        params = {"x": torch.tensor([math.nan, 0.0], dtype=torch.float64)}
        assert TestFunction(function).loss(params).isnan()
