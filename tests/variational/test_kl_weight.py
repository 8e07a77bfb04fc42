from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.variational import kl_weight

steps = st.integers(1, 3000)


def over_epoch(schedule, steps_per_epoch: int, epoch: int = 1, epochs: int = 10) -> list[float]:
    return [
        schedule.weight(epoch, step, steps_per_epoch, epochs) for step in range(steps_per_epoch)
    ]


def test_names():
    assert kl_weight.names() == ["blundell", "constant", "linear", "soenderby", "standard"]


@pytest.mark.parametrize("name", ["blundell", "standard"])
@given(steps=steps, scale=st.floats(0, 10))
def test_weights_sum_to_the_number_of_steps_or_faithfully_to_one(name, steps, scale):
    correct = over_epoch(kl_weight.create(name, scale=scale), steps)
    faithful = over_epoch(kl_weight.create(name, scale=scale, mode="faithful"), steps)
    assert math.fsum(correct) == pytest.approx(scale * steps, rel=1e-12)
    assert math.fsum(faithful) == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize("name", kl_weight.names())
@given(data=st.data(), steps=steps, scale=st.floats(0, 10))
def test_weights_are_finite_not_negative_and_proportional_to_scale(name, data, steps, scale):
    epochs = data.draw(st.integers(1, 300))
    place = (data.draw(st.integers(1, epochs)), data.draw(st.integers(0, steps - 1)))
    weight = kl_weight.create(name, scale=scale).weight(*place, steps, epochs)
    whole = kl_weight.create(name).weight(*place, steps, epochs)
    assert 0 <= weight < math.inf
    assert weight == pytest.approx(scale * whole)


@pytest.mark.parametrize("name", ["constant", "linear", "soenderby", "standard"])
def test_last_epochs_have_the_full_weight_at_every_step(name):
    schedule = kl_weight.create(name, scale=0.7)
    assert over_epoch(schedule, 3, epoch=40, epochs=40) == [0.7] * 3


def test_constant():
    assert over_epoch(kl_weight.create("constant", scale=0.1), 2) == [0.1, 0.1]


def test_blundell_has_the_published_weights():
    faithful = over_epoch(kl_weight.create("blundell", mode="faithful"), 5)
    assert faithful == pytest.approx([2 ** (5 - i) / (2**5 - 1) for i in range(1, 6)], rel=1e-15)


@pytest.mark.parametrize("steps_per_epoch", [1, 1023, 1024, 5000])
def test_blundell_halves_from_step_to_step_and_never_overflows(steps_per_epoch):
    weights = over_epoch(kl_weight.create("blundell"), steps_per_epoch)
    assert weights[0] == pytest.approx(max(steps_per_epoch / 2, 1))
    # beyond 2^-1022 halves are rounded, and in the end zero
    assert all(b == a / 2 for a, b in itertools.pairwise(weights[:1000]))
    assert weights[-1] >= 0


def test_linear_by_hand():
    schedule = kl_weight.create("linear", start=2, length=4, scale=2.0)
    assert [schedule.weight(epoch, 0, 1, 8) for epoch in range(1, 9)] == [
        0, 0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0,
    ]  # fmt: skip


def test_linear_has_the_defaults_of_sparse_variational_dropout():
    schedule = kl_weight.create("linear")
    by_hand = [0.0 if epoch < 5 else min((epoch - 5) / 15, 1.0) for epoch in range(1, 201)]
    assert [schedule.weight(epoch, 0, 600, 200) for epoch in range(1, 201)] == by_hand


def test_linear_jumps_where_its_length_is_zero():
    schedule = kl_weight.create("linear", start=3, length=0)
    assert [schedule.weight(epoch, 0, 1, 5) for epoch in range(1, 6)] == [0, 0, 0, 1, 1]


def test_soenderby_takes_a_quarter_of_the_run():
    schedule = kl_weight.create("soenderby")
    weights = [schedule.weight(epoch, 0, 1, 10) for epoch in range(1, 11)]
    assert weights == pytest.approx([min(epoch / 2.5, 1) for epoch in range(1, 11)])


def test_schedules_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        kl_weight.create("constant").scale = 2.0


@pytest.mark.parametrize("name", kl_weight.names())
@pytest.mark.parametrize("scale", [-1, -1e-9, math.nan, math.inf, True, "1"], ids=repr)
def test_scales_out_of_range_are_refused(name, scale):
    with pytest.raises(ValueError, match=r"^scale is .*: give a finite number of at least 0\.$"):
        kl_weight.create(name, scale=scale)


@pytest.mark.parametrize("option", ["start", "length"])
def test_linear_refuses_negative_epochs(option):
    with pytest.raises(ValueError, match=f"^{option} is -1: give a finite number"):
        kl_weight.create("linear", **{option: -1})


def test_misspelt_modes_names_and_options_get_a_sentence():
    with pytest.raises(ValueError, match="did you mean 'faithful'"):
        kl_weight.create("blundell", mode="faithfull")
    with pytest.raises(ValueError, match="did you mean 'blundell'"):
        kl_weight.create("blundel")
    with pytest.raises(ValueError, match="unknown option of KL weight constant 'mode'"):
        kl_weight.create("constant", mode="faithful")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((0, 0, 5, 10), "epoch is 0 of 10: epochs count from 1"),
        ((11, 0, 5, 10), "epoch is 11 of 10"),
        ((1, 5, 5, 10), "step_in_epoch is 5 of 5: steps count from 0"),
        ((1, -1, 5, 10), "step_in_epoch is -1 of 5"),
        ((1, 0, 0, 10), "step_in_epoch is 0 of 0"),
    ],
)
def test_places_outside_the_run_are_refused(place, message):
    with pytest.raises(ValueError, match=message):
        kl_weight.create("constant").weight(*place)
