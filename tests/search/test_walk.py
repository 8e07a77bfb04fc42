"""Moves of real and of binary weights, and what is refused, for every method that walks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from scipy import stats

from gradlab.search import Metropolis, Particles
from gradlab.search.walk import uniform
from tests.search.problems import noise_of, seeded, started

MIXED = {"w": torch.tensor([0.5, -0.2, 0.1]), "x": torch.tensor([1.0, 2.0])}


@pytest.mark.parametrize("flips", [1, 2, 3])
def test_a_move_flips_every_set_of_signs_as_often_as_its_size_says(flips: int) -> None:
    method = Metropolis(chains=40_000, binary_weights=["w"], flips=flips)
    state = method.initial({"w": MIXED["w"]}, generator=seeded(1))
    flipped = method.ask(state)["w"] != MIXED["w"]
    # up to `flips` draws with replacement: all sequences of all lengths, lengths alike
    expected = dict.fromkeys(itertools.product((False, True), repeat=3), 0.0)
    for length in range(1, flips + 1):
        for drawn in itertools.product(range(3), repeat=length):
            pattern = tuple(place in drawn for place in range(3))
            expected[pattern] += 1 / flips / 3**length
    observed = dict.fromkeys(expected, 0)
    for row in flipped.tolist():
        observed[tuple(row)] += 1
    possible = [pattern for pattern, chance in expected.items() if chance > 0]
    assert sum(observed[pattern] for pattern in possible) == 40_000
    counts = [observed[pattern] for pattern in possible]
    assert stats.chisquare(counts, [40_000 * expected[p] for p in possible]).pvalue > 1e-4


def test_real_weights_move_by_noise_of_width_sigma() -> None:
    method = Metropolis(chains=20_000, sigma=0.3)
    noise = noise_of(method, started(method, [1.0, -2.0]), 0.3).flatten()
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-4


def test_the_two_kinds_of_weights_take_turns() -> None:
    method = Metropolis(chains=10, binary_weights=["w"], temperature=1e9)
    state = method.initial(MIXED, generator=seeded(0))
    before = {name: w.expand(10, -1) for name, w in MIXED.items()}
    for generation in range(4):
        members = method.ask(state)
        moved, held = ("w", "x") if generation % 2 else ("x", "w")
        assert torch.equal(members[held], before[held])
        assert (members[moved] != before[moved]).any(dim=1).all()
        assert torch.equal(members["w"].abs(), MIXED["w"].abs().expand(10, -1))
        # so hot that whatever is proposed is accepted
        state = method.tell(state, torch.arange(10.0))
        assert all(torch.equal(w, method.samples(state)[name]) for name, w in members.items())
        before = members


def test_zero_has_a_sign_that_can_be_flipped() -> None:
    method = Metropolis(chains=4, binary_weights=["w"], temperature=1e9, flips=1)
    state = method.initial({"w": torch.zeros(1)}, generator=seeded(0))
    for negative in (True, False, True):
        assert torch.equal(method.ask(state)["w"] < 0, torch.full((4, 1), negative))
        state = method.tell(state, torch.zeros(4))


def test_uniform_numbers_are_uniform_and_their_columns_independent() -> None:
    method = Metropolis(chains=20_000)
    state = started(method, [0.0])
    first, second = (uniform(state, (0, 20_000), column) for column in (0, 1))
    assert stats.kstest(first.numpy(), "uniform").pvalue > 1e-4
    assert abs(float(torch.corrcoef(torch.stack((first, second)))[0, 1])) < 4.5 / 20_000**0.5
    part = uniform(state, (5, 9), 1)
    assert torch.equal(part, second[5:9])


@pytest.mark.parametrize("kind", [Metropolis, Particles])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"sigma": 0}, "sigma is 0: give a finite number above 0."),
     ({"prior_sigma": -1}, "prior_sigma is -1: give a finite number above 0."),
     ({"flips": 0}, "flips is 0: give a whole number of at least 1."),
     ({"temperature": 0}, "temperature is 0: give a finite number above 0."),
     ({"binary_weights": "w"}, "binary_weights is 'w': give a list of parameter names.")],
    ids=["sigma", "prior", "flips", "temperature", "binary"],
)  # fmt: skip
def test_options_out_of_range_are_refused(
    kind: Any, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        kind(**options)


@pytest.mark.parametrize(
    "method", [Metropolis(binary_weights=["z"]), Particles(sigma=0.2)], ids=str
)
def test_parameters_that_do_not_fit_are_refused(method: Any) -> None:
    bad = {"w": torch.tensor([torch.nan])}
    message = "unknown parameter in binary_weights 'z'" if method.binary_weights else "parameter w"
    with pytest.raises(ValueError, match=f"^{message}"):
        method.initial(bad, generator=seeded(0))


@pytest.mark.parametrize("method", [Metropolis(chains=3), Particles(population=3)], ids=str)
def test_a_beginning_without_a_finite_loss_is_refused(method: Any) -> None:
    state = started(method, [0.0])
    with pytest.raises(ValueError, match=r"^the walk has not begun: tell the losses"):
        method.samples(state)
    with (
        pytest.warns(RuntimeWarning, match="3 of 3 members are NaN"),
        pytest.raises(ValueError, match=r"^the losses of all 3 members are NaN or infinite"),
    ):
        method.tell(state, torch.full((3,), torch.inf))
