"""Learning rates: known values, torch's own curves, and what holds for all of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab.training import schedules

OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {}, "cosine": {}, "exponential": {}, "linear": {}, "one_cycle": {},
    "step": {"milestones": [1, 2], "gamma": 0.5},
}  # fmt: skip


def rates(name: str, lr: float, steps: int, epochs: int, **options: Any) -> list[float]:
    schedule = schedules.create(name, **options)
    schedule.check(epochs)
    return [schedule.rate(lr, step, steps, epochs) for step in range(steps * epochs)]


def test_every_schedule_is_tested_here() -> None:
    assert set(OPTIONS) == set(schedules.names())


@given(
    name=st.sampled_from(sorted(OPTIONS)),
    steps=st.integers(1, 7),
    epochs=st.integers(3, 9),
    warmup=st.sampled_from([0, 0.5, 1, 2]),
)
def test_rates_stay_between_zero_and_lr(name: str, steps: int, epochs: int, warmup: float) -> None:
    found = rates(name, 0.3, steps, epochs, warmup_epochs=warmup, **OPTIONS[name])
    assert all(0 <= rate <= 0.3 * (1 + 1e-12) for rate in found)
    assert found[-1] > 0
    warm = round(warmup * steps)
    assert found[:warm] == pytest.approx([0.3 * (i + 1) / warm for i in range(warm)])


@pytest.mark.parametrize("final", [0.0, 0.01])
def test_cosine_is_torchs(final: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.2)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12, eta_min=final)
    expected = []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates("cosine", 0.2, 4, 3, final_lr=final) == pytest.approx(expected, rel=1e-9)


def test_linear_can_hold_the_full_rate_first() -> None:
    found = rates("linear", 1.0, 2, 4, hold=0.5)
    assert found == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_exponential_falls_after_every_epoch() -> None:
    assert rates("exponential", 1.0, 2, 3, gamma=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_linear_is_a_straight_line_to_its_end() -> None:
    found = rates("linear", 1.0, 5, 2, final_lr=0.5)
    assert found == pytest.approx([1 - 0.05 * i for i in range(10)])


def test_steps_fall_at_their_milestones_whatever_the_warm_up() -> None:
    found = rates("step", 1.0, 2, 4, milestones=[1, 2.5], gamma=0.1, warmup_epochs=0.5)
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_one_cycle_rises_to_lr_and_falls() -> None:
    found = rates("one_cycle", 1.0, 10, 10, rise=0.3, start_factor=0.1)
    assert found[0] == pytest.approx(0.1)
    assert max(found) == pytest.approx(1.0)
    assert found.index(max(found)) == 30
    assert all(a < b for a, b in itertools.pairwise(found[:31]))
    assert all(a > b for a, b in itertools.pairwise(found[30:]))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cosine", {"warmup_epochs": -1}, "warmup_epochs is -1: give a number from 0 on"),
        ("cosine", {"final_lr": math.nan}, "final_lr is nan"),
        ("cosine", {"final_lr": "low"}, "final_lr is 'low'"),
        ("linear", {"final_lr": -0.1}, "final_lr is -0.1"),
        ("step", {}, r"milestones is \(\): give the epochs at which"),
        ("step", {"milestones": 3}, "milestones is 3"),
        ("step", {"milestones": [1], "gamma": 2}, "gamma is 2: give a number from 0 to 1"),
        ("one_cycle", {"rise": 1.5}, "rise is 1.5: give a number from 0 to 1"),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        schedules.create(name, **options)
