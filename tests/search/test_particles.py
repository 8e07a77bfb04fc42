"""Particles against exact integrals: enumerated sums and Gaussians.

The estimate of Z is unbiased for any population, and so is its product with a weighted mean for the
integral of that function: their z-scores over independent runs are exact, without an allowance.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.estimators.bernoulli import binary_weights
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from gradlab.search import Particles, SearchState, minimize
from gradlab.search.particles import effective_size, systematic
from tests.estimators.sign_losses import SignTable
from tests.search.problems import ellipsoid, seeded, started

LIMIT = 4.5
RUNS = 60


def run(method: Particles, objective: Any, start: Params, seed: int) -> SearchState:
    state = method.initial(start, generator=seeded(seed))
    for _ in range(method.generations):
        state = method.tell(state, objective.losses(method.ask(state)))
    return state


def integrals(method: Particles, state: SearchState, values: Tensor) -> Tensor:
    """Estimates of Z and of Z times the means of these functions ``(P, n)``."""
    weights = method.weights(state)
    means = torch.cat((torch.ones(1, dtype=torch.float64), weights @ values))
    return math.exp(method.log_normalizer(state)) * means


def scores(found: list[Tensor], exact: Tensor) -> Tensor:
    sample = torch.stack(found)
    return (sample.mean(0) - exact) / (sample.std(0) / math.sqrt(len(found)))


@pytest.mark.parametrize(
    "options",
    [{}, {"resample_below": 0.0}, {"resample_below": 1.0, "moves": 2},
     {"stages": 1, "power": 1.0}, {"flips": 4, "stages": 3}],
    ids=["default", "never resampled", "always resampled", "one stage", "many flips"],
)  # fmt: skip
def test_sums_over_all_signs_are_unbiased(options: dict[str, Any]) -> None:
    objective = SignTable.random(6)
    chances = torch.exp(-objective.table.flatten() / 0.4) / 64
    patterns = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6))).double()
    method = Particles(**{"population": 500, "temperature": 0.4, "stages": 5,
                          "binary_weights": ["w"]} | options)  # fmt: skip
    found = []
    for seed in range(RUNS):
        state = run(method, objective, {"w": torch.full((6,), 0.2)}, seed)
        found.append(integrals(method, state, method.samples(state)["w"].sign().double()))
    exact = torch.cat((chances.sum()[None], chances @ patterns))
    assert scores(found, exact).abs().max() < LIMIT
    # and a bias of a fifth would have shown
    assert torch.stack(found).std(0)[0] / math.sqrt(RUNS) < exact[0] / 5 / LIMIT


@pytest.mark.parametrize("moves", [1, 3])
def test_gaussian_integrals_are_unbiased(moves: int) -> None:
    objective, beta, width = ellipsoid(3, 6, rotated=True), 1 / 0.2, 0.8
    centre = torch.tensor([0.5, -0.2, 0.4], dtype=torch.float64)
    precision = beta * objective.hessian + torch.eye(3) / width**2
    mean = torch.linalg.solve(precision, centre / width**2)
    second = torch.diag(torch.linalg.inv(precision)) + mean.square()
    # exp(-β f) is a Gaussian in w without its constant, and the prior spreads it
    spread = torch.linalg.inv(beta * objective.hessian) + width**2 * torch.eye(3)
    normalizer = torch.exp(-0.5 * centre @ torch.linalg.solve(spread, centre))
    normalizer = (
        normalizer / torch.linalg.det(torch.eye(3) + beta * width**2 * objective.hessian).sqrt()
    )
    method = Particles(population=300, temperature=0.2, prior_sigma=width, sigma=0.2, stages=6,
                       moves=moves)  # fmt: skip
    found = []
    for seed in range(RUNS):
        state = run(method, objective, {"x": centre}, seed)
        x = method.samples(state)["x"]
        found.append(integrals(method, state, torch.cat((x, x.square()), dim=1)))
        torch.testing.assert_close(state.mean, method.weights(state) @ x)
    exact = normalizer * torch.cat((torch.ones(1), mean, second))
    assert scores(found, exact).abs().max() < LIMIT
    assert torch.stack(found).std(0)[0] / math.sqrt(RUNS) < exact[0] / 10 / LIMIT


def test_the_weighted_mean_of_a_large_population_is_that_of_the_posterior() -> None:
    objective = ellipsoid(2, 3, rotated=True)
    centre = torch.tensor([1.0, -1.0], dtype=torch.float64)
    method = Particles(population=20_000, temperature=0.5, stages=8, sigma=0.5, moves=2)
    state = run(method, objective, {"x": centre}, 0)
    precision = objective.hessian / 0.5 + torch.eye(2)
    mean = torch.linalg.solve(precision, centre)
    error = torch.diag(torch.linalg.inv(precision)).sqrt() / math.sqrt(method.effective_size(state))
    # particles with common ancestors are no independent sample: twice the error of one
    assert ((state.mean - mean).abs() < 2 * LIMIT * error).all()


def test_the_first_particles_are_drawn_from_the_prior() -> None:
    method = Particles(population=20_000, prior_sigma=0.5, binary_weights=["w"])
    start = {"w": torch.tensor([0.3, -0.1]), "x": torch.tensor([2.0], dtype=torch.float64)}
    drawn = method.ask(method.initial(start, generator=seeded(0)))
    assert torch.equal(drawn["w"].abs(), start["w"].abs().expand(20_000, -1))
    root = math.sqrt(20_000)
    assert (root * drawn["w"].sign().mean(0)).abs().max() < LIMIT
    noise = (drawn["x"][:, 0] - 2) / 0.5
    assert abs(root * float(noise.mean())) < LIMIT
    assert abs(root * float(noise.square().mean() - 1)) / math.sqrt(2) < LIMIT


def test_particles_whose_loss_fails_have_no_weight() -> None:
    class Cliff:
        def losses(self, population: Any) -> Tensor:
            x = population["x"][:, 0].double()
            return torch.where(x > 0, math.nan, 0.0 * x)

    method = Particles(population=200, temperature=1.0, stages=3, resample_below=0.0)
    found, start = [], {"x": torch.zeros(1, dtype=torch.float64)}
    for seed in range(RUNS):
        with pytest.warns(RuntimeWarning, match="are NaN or infinite"):
            state = run(method, Cliff(), start, seed)
        weights, x = method.weights(state), method.samples(state)["x"][:, 0]
        assert weights[x > 0].sum() == 0
        found.append(integrals(method, state, x[:, None].clamp_max(0)))
    exact = torch.tensor([0.5, -1 / math.sqrt(2 * math.pi)], dtype=torch.float64)
    assert scores(found, exact).abs().max() < LIMIT


def test_stages_grow_to_the_inverse_temperature_and_end_there() -> None:
    method = Particles(temperature=0.5, stages=4, power=2.0, moves=3, population=50)
    assert [method.beta(stage) for stage in range(6)] == [0.0, 0.125, 0.5, 1.125, 2.0, 2.0]
    assert method.generations == 13
    objective = ellipsoid(2, 3, rotated=False)
    state = started(method, [1.0, 0.0])
    normalizers = []
    for _ in range(16):
        state = method.tell(state, objective.losses(method.ask(state)))
        normalizers.append(method.log_normalizer(state))
    changes = [i for i, (a, b) in enumerate(itertools.pairwise([0.0, *normalizers])) if a != b]
    assert changes == [0, 3, 6, 9]
    assert 0 < method.acceptance_rate(state) < 1


def test_resampling_waits_for_the_effective_size() -> None:
    objective, equal = ellipsoid(2, 3, rotated=False), torch.full((80,), 1 / 80).double()
    for least in (0.0, 0.5, 1.0):
        method = Particles(population=80, temperature=0.05, resample_below=least, stages=6)
        state, resampled = started(method, [1.0, 0.0]), []
        for _ in range(6):
            state = method.tell(state, objective.losses(method.ask(state)))
            weights = method.weights(state)
            assert float(weights.sum()) == pytest.approx(1)
            resampled.append(torch.allclose(weights, equal))
            assert method.effective_size(state) == pytest.approx(float(1 / weights.square().sum()))
            assert resampled[-1] or method.effective_size(state) >= 80 * least
        assert (True in resampled, False in resampled) == (least > 0, least < 1)


@given(
    weights=st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3),
    place=st.floats(0, 1, exclude_max=True),
)
def test_systematic_resampling_rounds_the_expected_numbers(
    weights: list[float], place: float
) -> None:
    size = len(weights)
    expected = torch.tensor(weights, dtype=torch.float64)
    counts = systematic(expected, place).bincount(minlength=size)
    expected = size * expected / expected.sum()
    assert counts.sum() == size
    assert (counts >= (expected - 1e-9).floor()).all()
    assert (counts <= (expected + 1e-9).ceil()).all()
    assert (counts[expected == 0] == 0).all()


def test_systematic_resampling_is_unbiased_over_its_place() -> None:
    weights = torch.tensor([0.1, 0.45, 0.0, 0.25, 0.2], dtype=torch.float64)
    places = [(i + 0.5) / 1000 for i in range(1000)]
    counts = torch.stack([systematic(weights, place).bincount(minlength=5) for place in places])
    torch.testing.assert_close(counts.double().mean(0), 5 * weights, rtol=0, atol=1.1e-3)
    assert effective_size(weights.log()) == pytest.approx(1 / float(weights.square().sum()))


def test_binary_networks_are_trained() -> None:
    objective = TeacherStudent(num_dim=4, batch_size=200, seed=0, weight="binary")
    names = sorted(binary_weights(objective)[0])
    method = Particles(population=40, temperature=1e-3, stages=20, moves=2, sigma=0.1,
                       prior_sigma=0.3, binary_weights=names)  # fmt: skip
    trace = minimize(objective, objective.initial_params(0), method, method.generations, seeded(0))
    assert trace.rows[-1].best_loss < 0.5 * trace.rows[0].loss


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"prior_sigma": None}, "prior_sigma is None: particles are drawn from the prior"),
     ({"population": 0}, "population is 0: give a whole number of at least 1."),
     ({"stages": 2.5}, "stages is 2.5: give a whole number of at least 1."),
     ({"moves": True}, "moves is True: give a whole number of at least 1."),
     ({"power": -1}, "power is -1: give a finite number above 0."),
     ({"resample_below": 1.5}, "resample_below is 1.5: give a number from 0 to 1.")],
    ids=["prior", "population", "stages", "moves", "power", "resampling"],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Particles(**options)
