from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradlab.objectives import TestFunction
from gradlab.search import SNES, minimize
from tests.search.problems import ellipsoid, noise_of, seeded, started


def utilities(losses: np.ndarray) -> np.ndarray:
    """max(0, ln(P/2 + 1) - ln k)/Σ - 1/P by a loop, the best has k = 1."""
    size, order = len(losses), np.argsort(losses)
    raw = [max(0.0, math.log(size / 2 + 1) - math.log(k)) for k in range(1, size + 1)]
    out = np.empty(size)
    for k, member in enumerate(order):
        out[member] = raw[k] / sum(raw) - 1 / size
    return out


def test_one_step_equals_the_formula() -> None:
    method, objective = SNES(sigma=0.3, learning_rate=0.8), ellipsoid(4, 9, rotated=True)
    state = started(method, [1.0, -2.0, 0.5, 3.0])
    for _ in range(3):
        sigma = state.spread.numpy()
        noise = noise_of(method, state, state.spread).numpy()
        losses = objective.losses(method.ask(state))
        u = utilities(losses.numpy())
        mean = state.mean.numpy() + 0.8 * sigma * (u @ noise)
        rate = (3 + math.log(4)) / (5 * 2)
        spread = sigma * np.exp(0.5 * rate * (u @ (noise**2 - 1)))
        state = method.tell(state, losses)
        np.testing.assert_allclose(state.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(state.spread, spread, rtol=1e-12)
    assert len(losses) == 4 + math.floor(3 * math.log(4))
    assert method.sigma_of(state) == pytest.approx(float(np.exp(np.log(spread).mean())))


@pytest.mark.parametrize("fitness", ["raw", "centered"])
def test_the_expected_step_on_a_quadratic_is_the_closed_form(fitness: str) -> None:
    objective = ellipsoid(3, 10, rotated=True)
    rate, size, rounds = 0.2, 4000, 25
    method = SNES(population=size, fitness=fitness, learning_rate_sigma=rate, sigma=0.4)
    start = started(method, [0.4, -0.2, 0.3])
    variance = 0.4**2
    hessian = objective.hessian
    expected = torch.cat((-variance * hessian @ start.mean,
                          -0.5 * rate * variance * torch.diag(hessian)))  # fmt: skip
    steps = []
    for seed in range(rounds):
        state = started(method, [0.4, -0.2, 0.3], seed)
        after = method.tell(state, objective.losses(method.ask(state)))
        steps.append(torch.cat((after.mean - state.mean, (after.spread / state.spread).log())))
    sample = torch.stack(steps)
    scores = (sample.mean(0) - expected) / (sample.std(0) / math.sqrt(rounds))
    # Student's t of 24 degrees: beyond 5 once in 23,000, for each of six numbers
    assert scores.abs().max() < 5
    assert (sample.std(0) / math.sqrt(rounds) < 0.1 * expected.abs()).all()


def test_widths_follow_axes_of_unlike_scale() -> None:
    objective, method = ellipsoid(6, 1e4, rotated=False), SNES(sigma=1.0, population=20)
    start = {"x": torch.full((6,), 2.0, dtype=torch.float64)}
    trace = minimize(objective, start, method, 200, seeded(0))
    assert trace.rows[-1].best_loss < 1e-10 * trace.rows[0].loss
    # the width of a coordinate goes as its curvature to the power of -1/2
    spread = trace.state.spread
    ideal = torch.diag(objective.hessian) ** -0.5
    slope = np.polyfit(ideal.log().numpy(), spread.log().numpy(), 1)[0]
    assert slope == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_minimum_of_a_sphere(seed: int) -> None:
    trace = minimize(ellipsoid(10, 1, rotated=False),
                     {"x": torch.full((10,), 3.0, dtype=torch.float64)},
                     SNES(sigma=1.0), 200, seeded(seed))  # fmt: skip
    assert trace.rows[-1].loss < 1e-6 * trace.rows[0].loss


def test_turns_move_their_own_coordinates_alone() -> None:
    objective = TestFunction("quadratic", num_dim=5)
    method = SNES(update="parameter_wise", block_size=2, sigma=0.5)
    state = method.initial(objective.initial_params(0), generator=seeded(0))
    for turn in [(0, 2), (2, 4), (4, 5)] * 2:
        members = method.ask(state)["x"]
        moved = (members != state.mean).any(0).nonzero()[:, 0].tolist()
        assert moved == list(range(*turn))
        after = method.tell(state, objective.losses({"x": members}))
        for new, old in ((after.mean, state.mean), (after.spread, state.spread)):
            assert (new != old).nonzero()[:, 0].tolist() == list(range(*turn))
        state = after
    # ⌊3 ln 2⌋ more than four: the largest block decides
    assert len(members) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"population": 1}, "population is 1: give a whole number of at least 2"),
     ({"population": True}, "population is True"),
     ({"sigma": 0.0}, "sigma is 0.0"),
     ({"learning_rate_sigma": -1.0}, "learning_rate_sigma is -1.0"),
     ({"fitness": "rank"}, "unknown fitness 'rank'"),
     ({"adaptation_sampling": "yes"}, "adaptation_sampling is 'yes': give true or false")],
    ids=["population", "bool", "sigma", "rate", "fitness", "adaptation"],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SNES(**options)  # type: ignore[arg-type]
