"""Chains against the distribution they have to reach: enumerated, Gaussian, and both at once.

Every chain counts once, at its last point, so that the sample is independent and a z-score exact.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from gradlab.estimators.bernoulli import binary_weights
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from gradlab.search import Metropolis, SearchState, minimize
from gradlab.search.metropolis import exchange
from tests.estimators.sign_losses import SignTable
from tests.search.problems import Quadratic, ellipsoid, seeded, started

# of a standard normal: a hundred of them exceed it once in 1,500 choices of seeds
LIMIT = 4.5


def walked(method: Metropolis, objective: Any, start: Params, generations: int) -> SearchState:
    state = method.initial(start, generator=seeded(7))
    for _ in range(generations):
        state = method.tell(state, objective.losses(method.ask(state)))
    return state


def boltzmann(table: Tensor, temperature: float) -> Tensor:
    """The probability of each pattern of signs."""
    return torch.softmax(-table.flatten() / temperature, dim=0)


def pattern_scores(weights: Tensor, chances: Tensor) -> Tensor:
    """How many standard errors each pattern's frequency is from its probability."""
    places = 2 ** torch.arange(weights.shape[1]).flip(0)
    found = torch.bincount(((weights >= 0) * places).sum(1), minlength=len(chances))
    size = len(weights)
    return (found - size * chances) / (size * chances * (1 - chances)).sqrt()


@pytest.mark.parametrize("flips", [1, 2, 4])
def test_signs_reach_the_boltzmann_distribution(flips: int) -> None:
    table = SignTable.random(5)
    method = Metropolis(chains=10_000, temperature=0.8, binary_weights=["w"], flips=flips)
    start = {"w": torch.tensor([0.1, -0.2, 0.3, -0.4, 0.5])}
    state = walked(method, table, start, 60)
    weights = method.samples(state)["w"]
    assert pattern_scores(weights, boltzmann(table.table, 0.8)).abs().max() < LIMIT
    # a temperature an eighth off would have shown
    assert pattern_scores(weights, boltzmann(table.table, 0.9)).abs().max() > LIMIT
    assert torch.equal(weights.abs(), start["w"].abs().expand(10_000, -1))


@pytest.mark.parametrize("prior_sigma", [None, 0.5])
def test_a_quadratic_loss_gives_its_gaussian(prior_sigma: float | None) -> None:
    objective = ellipsoid(2, 5, rotated=True)
    start = torch.tensor([0.4, -0.3], dtype=torch.float64)
    method = Metropolis(chains=10_000, temperature=0.5, sigma=0.6, prior_sigma=prior_sigma)
    state = walked(method, objective, {"x": start}, 80)
    precision, mean = objective.hessian / 0.5, torch.zeros(2, dtype=torch.float64)
    if prior_sigma is not None:
        precision = precision + torch.eye(2) / prior_sigma**2
        mean = torch.linalg.solve(precision, start / prior_sigma**2)
    z = (method.samples(state)["x"] - mean) @ torch.linalg.cholesky(precision)
    root = math.sqrt(10_000)
    assert (root * z.mean(0)).abs().max() < LIMIT
    assert (root * (z.square().mean(0) - 1) / math.sqrt(2)).abs().max() < LIMIT
    assert abs(root * float(z.prod(1).mean())) < LIMIT
    assert all(stats.kstest(column.numpy(), "norm").pvalue > 1e-4 for column in z.mT)


@dataclass
class Mixed:
    """A loss of its own for every pattern of signs, and a parabola whose bottom depends on it."""

    table: Tensor

    def losses(self, population: Any) -> Tensor:
        signs = torch.where(population["w"] >= 0, 1.0, -1.0).double()
        levels = self.table[tuple((signs > 0).long().mT)]
        return levels + 0.5 * (population["x"][:, 0] - signs.sum(1)).square()


def test_real_and_binary_weights_together() -> None:
    objective = Mixed(torch.tensor([[0.0, 0.5], [1.0, 0.2]], dtype=torch.float64))
    start = {"x": torch.zeros(1, dtype=torch.float64), "w": torch.ones(2, dtype=torch.float64)}
    method = Metropolis(chains=10_000, temperature=1.0, sigma=2.0, binary_weights=["w"])
    samples = method.samples(walked(method, objective, start, 80))
    assert pattern_scores(samples["w"], boltzmann(objective.table, 1.0)).abs().max() < LIMIT
    rest = samples["x"][:, 0] - torch.where(samples["w"] >= 0, 1.0, -1.0).sum(1)
    assert stats.kstest(rest.numpy(), "norm").pvalue > 1e-4


def test_a_ladder_crosses_what_a_cold_chain_cannot() -> None:
    depths = torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    depths[0, 0, 0, 0], depths[1, 1, 1, 1] = -1.0, -0.95
    table, start = SignTable(depths), {"w": torch.ones(4)}
    temperatures = [0.08, 0.14, 0.25, 0.6]
    alone = Metropolis(chains=2000, temperature=0.08, binary_weights=["w"])
    stuck = alone.samples(walked(alone, table, start, 200))["w"]
    # in the well that was nearer at first
    assert pattern_scores(stuck, boltzmann(depths, 0.08))[-1] > 3 * LIMIT
    ladder = Metropolis(chains=2000, temperature=temperatures, binary_weights=["w"])
    state = walked(ladder, table, start, 250)
    rungs = state.extra["points"].reshape(2000, 4, 4)
    assert torch.equal(rungs[:, 0], ladder.samples(state)["w"].double())
    for rung, temperature in enumerate(temperatures):
        chances = boltzmann(depths, temperature)
        # the counts of rare patterns are no normal numbers
        usual = chances * 2000 > 10
        assert pattern_scores(rungs[:, rung], chances)[usual].abs().max() < LIMIT
    assert all(0.3 < rate < 0.95 for rate in ladder.exchange_rate(state))
    assert float(state.extra["losses"].min()) == -1.0


def test_every_pair_on_the_ladder_has_its_turn() -> None:
    class Flat:
        def losses(self, population: Any) -> Tensor:
            return torch.zeros(len(population["x"]))

    method = Metropolis(chains=5, temperature=[1.0, 2.0, 3.0, 4.0])
    start = {"x": torch.zeros(1, dtype=torch.float64)}
    assert all(math.isnan(r) for r in method.exchange_rate(walked(method, Flat(), start, 1)))
    for generations in (3, 4, 7):
        state = walked(method, Flat(), start, generations)
        # nothing to lose: all exchanges and all proposals are accepted
        assert method.exchange_rate(state) == [1.0, 1.0, 1.0]
        assert method.acceptance_rate(state) == [1.0, 1.0, 1.0, 1.0]


def test_exchanges_follow_their_probability() -> None:
    losses = torch.tensor([1.0, 1.4, 0.3, 0.8], dtype=torch.float64).repeat(40_000, 1)
    inverse = torch.tensor([4.0, 2.5, 1.0, 0.5], dtype=torch.float64)
    chance = torch.rand(40_000, 4, generator=seeded(0), dtype=torch.float64)
    for first, expected in ((0, [math.exp(-0.6), 0, math.exp(-0.25)]), (1, [0, 1, 0])):
        order, exchanged = exchange(losses, inverse, first, chance)
        assert torch.equal(order.sort().values, torch.arange(160_000))
        for count, mean in zip(exchanged.tolist(), expected, strict=True):
            error = math.sqrt(40_000 * mean * (1 - mean))
            assert abs(count - 40_000 * mean) <= LIMIT * error
        moved = (order != torch.arange(160_000)).sum()
        assert moved == 2 * exchanged.sum()


def test_the_acceptance_rate_is_that_of_a_walk_over_a_gaussian() -> None:
    # of N(0, 1) with proposals of width s: (2/π) arctan(2/s)
    objective = Quadratic(torch.eye(1, dtype=torch.float64))
    method = Metropolis(chains=20_000, temperature=1.0, sigma=1.5)
    state = walked(method, objective, {"x": torch.zeros(1, dtype=torch.float64)}, 40)
    before = float(state.extra["accepted"])
    state = method.tell(state, objective.losses(method.ask(state)))
    rate = (float(state.extra["accepted"]) - before) / 20_000
    exact = 2 / math.pi * math.atan(2 / 1.5)
    assert abs(rate - exact) < LIMIT * math.sqrt(exact * (1 - exact) / 20_000)
    assert method.acceptance_rate(state) == pytest.approx(
        [float(state.extra["accepted"]) / 800_000]
    )


def test_chains_do_not_enter_where_the_loss_fails() -> None:
    class Cliff:
        def losses(self, population: Any) -> Tensor:
            x = population["x"][:, 0]
            return torch.where(x > 0.5, math.nan, 0.5 * x.square())

    method = Metropolis(chains=20_000, temperature=1.0, sigma=1.0)
    start = {"x": torch.zeros(1, dtype=torch.float64)}
    with pytest.warns(RuntimeWarning, match="are NaN or infinite"):
        begun = walked(method, Cliff(), start, 1)
    with pytest.warns(RuntimeWarning, match="are NaN or infinite"):
        state = walked(method, Cliff(), start, 60)
    # whoever began beyond it has joined another, loss and all
    assert torch.equal(begun.extra["losses"], Cliff().losses(method.samples(begun)))
    x = method.samples(state)["x"][:, 0]
    assert x.max() <= 0.5
    assert stats.kstest(x.numpy(), stats.truncnorm(-math.inf, 0.5).cdf).pvalue > 1e-4


def test_binary_networks_are_trained_by_flips() -> None:
    objective = TeacherStudent(num_dim=4, batch_size=200, seed=0, weight="binary")
    names = sorted(binary_weights(objective)[0])
    method = Metropolis(chains=10, temperature=1e-3, sigma=0.05, binary_weights=names)
    start = objective.initial_params(0)
    trace = minimize(objective, start, method, 80, seeded(0))
    assert trace.rows[-1].best_loss < 0.5 * trace.rows[0].loss
    for name in names:
        assert torch.equal(trace.state.best[name].abs(), start[name].abs())


def test_the_mean_is_that_of_the_first_temperature() -> None:
    method = Metropolis(chains=3, temperature=[0.1, 0.2])
    state = walked(method, ellipsoid(2, 2, rotated=False), {"x": torch.ones(2).double()}, 5)
    torch.testing.assert_close(state.mean, method.samples(state)["x"].mean(0))


@pytest.mark.parametrize("temperature", [[], [0.2, 0.1], [0.1, 0.1]], ids=str)
def test_temperatures_out_of_order_are_refused(temperature: list[float]) -> None:
    with pytest.raises(ValueError, match="give one number, or different numbers in ascending"):
        Metropolis(temperature=temperature)


def test_members_are_points_of_the_ladders_in_turn() -> None:
    method = Metropolis(chains=2, temperature=[0.1, 0.2, 0.4])
    state = started(method, [0.0])
    assert method.size(state) == 6
    parts = [method.ask(state, low, high)["x"] for low, high in itertools.pairwise((0, 1, 4, 6))]
    assert torch.equal(torch.cat(parts), method.ask(state)["x"])
