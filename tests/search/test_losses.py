from __future__ import annotations

import math
import warnings

import pytest
import torch

from gradlab.search import SNES, XNES
from gradlab.search.losses import told
from tests.search.problems import ellipsoid, started


def test_a_failed_member_weighs_as_much_as_the_worst_and_is_said_once() -> None:
    method = SNES(population=4)
    state = started(method, [1.0, 2.0, 3.0])
    infinite = torch.tensor([2.0, 1.0, math.inf, 3.0])
    with pytest.warns(RuntimeWarning, match="1 of 4 members are NaN or infinite"):
        after = method.tell(state, infinite)
    plain = method.tell(state, torch.tensor([2.0, 1.0, 4.0, 3.0]))
    assert torch.equal(after.mean, plain.mean)
    assert torch.equal(after.spread, plain.spread)
    assert (after.failed, float(after.best_loss)) == (1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = method.tell(after, torch.tensor([2.0, math.nan, math.nan, 3.0]))
    assert again.failed == 3


def test_a_generation_without_a_finite_loss_is_one_sentence() -> None:
    method = XNES(population=6)
    state = started(method, [1.0, 2.0])
    message = "all 6 members are NaN or infinite.*smaller sigma"
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=message):
        method.tell(state, torch.full((6,), math.nan))


def test_another_number_of_losses_is_refused() -> None:
    method = SNES(population=4)
    with pytest.raises(ValueError, match=r"shape \(3,\): give one loss for each of the 4 members"):
        method.tell(started(method, [1.0]), torch.zeros(3))


def test_the_best_is_the_member_of_the_lowest_loss_and_is_never_lost() -> None:
    method, objective = SNES(sigma=2.0, population=8), ellipsoid(3, 10, rotated=False)
    state, lowest = started(method, [0.1, 0.1, 0.1]), math.inf
    # far too wide near the optimum: most generations are worse than the best before them
    rises = 0
    for _ in range(20):
        losses = objective.losses(method.ask(state))
        rises += float(losses.min()) > lowest
        lowest = min(lowest, float(losses.min()))
        state = method.tell(state, losses)
        assert float(state.best_loss) == lowest
        assert float(objective.loss(state.best)) == lowest
    assert rises > 3


def test_the_best_of_a_population_in_parts_is_found_in_its_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gradlab.search.noise._FLOATS", 8)
    method = SNES(population=10)
    state = started(method, [1.0, 2.0])
    losses = torch.arange(10.0)
    losses[7] = -1
    after, _ = told(state, losses, 10, lambda *part: method.ask(state, *part))
    assert torch.equal(after.best["x"], method.ask(state)["x"][7])
