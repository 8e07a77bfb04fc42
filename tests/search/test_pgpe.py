from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradlab.search import PGPE, minimize
from tests.search.problems import ellipsoid, noise_of, seeded, started


@pytest.mark.parametrize("normalized", [True, False])
def test_steps_equal_the_formulas(normalized: bool) -> None:
    method = PGPE(population=6, sigma=0.3, learning_rate=0.2, learning_rate_sigma=0.05,
                  baseline_decay=0.7, normalized=normalized, max_change=0.9)  # fmt: skip
    objective = ellipsoid(3, 4, rotated=True)
    state, baseline, lowest = started(method, [1.0, 2.0, -1.0]), None, math.inf
    for _ in range(4):
        sigma = state.spread.numpy()
        noise = noise_of(method, state, state.spread).numpy()
        np.testing.assert_allclose(noise[1::2], -noise[0::2], rtol=1e-12)
        losses = objective.losses(method.ask(state)).numpy()
        lowest = min(lowest, losses.min())
        pairs = losses.reshape(3, 2)
        baseline = pairs.mean() if baseline is None else baseline
        mean, spread = np.zeros(3), np.zeros(3)
        for epsilon, (plus, minus) in zip(noise[0::2], pairs, strict=True):
            along = (plus - minus) / (plus + minus - 2 * lowest if normalized else 2)
            across = (plus + minus) / 2 - baseline
            if normalized:
                across /= baseline - lowest
            mean -= 0.2 * along * sigma * epsilon / 3
            spread -= 0.05 * across * sigma * (epsilon**2 - 1) / 3
        expected = state.mean.numpy() + mean, sigma + spread
        state = method.tell(state, torch.from_numpy(losses))
        baseline = 0.7 * baseline + 0.3 * pairs.mean()
        np.testing.assert_allclose(state.mean, expected[0], rtol=1e-11)
        np.testing.assert_allclose(state.spread, expected[1], rtol=1e-11)
        assert float(state.extra["baseline"]) == pytest.approx(baseline)


def test_the_expected_step_is_the_smoothed_gradient_times_the_variance() -> None:
    objective = ellipsoid(3, 5, rotated=True)
    method = PGPE(population=4000, sigma=0.4, learning_rate=1.0, learning_rate_sigma=0.1,
                  normalized=False)  # fmt: skip
    hessian, mean = objective.hessian, torch.tensor([0.3, -0.5, 0.4], dtype=torch.float64)
    # J = f(mean) + tr(H) sigma² / 2, so its derivative in a coordinate's sigma is H_jj sigma
    smoothed = 0.5 * mean @ hessian @ mean + 0.5 * torch.diag(hessian).sum() * 0.16
    expected = torch.cat((-0.16 * hessian @ mean, -0.1 * 0.16 * torch.diag(hessian) * 0.4))
    steps = []
    for seed in range(25):
        state = started(method, mean.tolist(), seed)
        # a baseline that does not know the members
        state = replace(state, extra={"baseline": smoothed})
        after = method.tell(state, objective.losses(method.ask(state)))
        steps.append(torch.cat((after.mean - state.mean, after.spread - state.spread)))
    sample = torch.stack(steps)
    error = sample.std(0) / 5
    # Student's t of 24 degrees: beyond 5 once in 23,000, for each of six numbers
    assert ((sample.mean(0) - expected) / error).abs().max() < 5
    assert (error < 0.1 * expected.abs()).all()


def test_a_width_stays_a_width() -> None:
    method = PGPE(population=4, learning_rate_sigma=100.0, max_change=0.5)
    state = started(method, [1.0, 2.0])
    for _ in range(20):
        losses = ellipsoid(2, 3, rotated=False).losses(method.ask(state))
        after = method.tell(state, losses)
        ratio = after.spread / state.spread
        assert ((ratio >= 0.5 - 1e-12) & (ratio <= 1.5 + 1e-12)).all()
        state = after


@pytest.mark.parametrize("normalized", [True, False])
def test_equal_losses_say_nothing(normalized: bool) -> None:
    method = PGPE(population=4, normalized=normalized)
    state = started(method, [1.0, 2.0])
    after = method.tell(state, torch.full((4,), 3.0))
    assert torch.equal(after.mean, state.mean)
    assert torch.equal(after.spread, state.spread)


@pytest.mark.parametrize("update", ["joint", "parameter_wise"])
def test_it_finds_the_minimum_of_a_sphere(update: str) -> None:
    trace = minimize(ellipsoid(6, 1, rotated=False),
                     {"x": torch.full((6,), 3.0, dtype=torch.float64)},
                     PGPE(sigma=0.5, update=update), 200, seeded(0))  # fmt: skip
    assert trace.rows[-1].loss < 1e-5 * trace.rows[0].loss


@pytest.mark.parametrize("population", [2, 5, 0])
def test_a_population_without_pairs_is_refused(population: int) -> None:
    with pytest.raises(ValueError, match=f"population is {population}: "):
        PGPE(population=population)
