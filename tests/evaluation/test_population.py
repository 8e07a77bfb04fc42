"""Populations that are never held: parts, mirrored pairs, lines."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab.evaluation import GaussianPopulation, LinePopulation
from gradlab.evaluation import population as pop

MEAN = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([10.0, -10.0, 0.5])}
SIZE = 11


@given(start=st.integers(0, SIZE - 1), length=st.integers(1, SIZE), antithetic=st.booleans())
def test_a_part_has_the_bits_of_the_whole(start: int, length: int, antithetic: bool) -> None:
    stop = min(start + length, SIZE)
    whole = GaussianPopulation(MEAN, 0.3, 8, 2, 2 + SIZE, antithetic=antithetic)
    part = whole.part(start, stop)
    assert len(part) == stop - start
    assert torch.equal(part.noise(), whole.noise()[start:stop])
    for name, members in part.members().items():
        assert torch.equal(members, whole.members()[name][start:stop])
    inner = part.part(0, 1)
    assert torch.equal(inner.noise(), whole.noise()[start : start + 1])


@pytest.mark.parametrize("antithetic", [True, False])
def test_noise_of_some_coordinates_is_a_slice(antithetic: bool) -> None:
    whole = GaussianPopulation(MEAN, 0.3, 8, 0, 5, antithetic=antithetic)
    for coordinates in [(0, 9), (1, 2), (3, 8), (5, 9)]:
        assert torch.equal(whole.noise(coordinates), whole.noise()[:, slice(*coordinates)])


def test_mirrored_members_are_pairs_around_the_mean() -> None:
    population = GaussianPopulation(MEAN, 0.3, 8, 0, 10, antithetic=True)
    noise = population.noise()
    assert torch.equal(noise[0::2], -noise[1::2])
    assert len(noise[0::2].unique(dim=0)) == 5
    pairs = GaussianPopulation(MEAN, 0.3, 8, 0, 5).noise()
    assert torch.equal(noise[0::2], pairs)


def test_members_are_the_mean_plus_sigma_times_the_noise() -> None:
    population = GaussianPopulation(MEAN, 0.3, 8, 0, 4)
    members, noise = population.members(), population.noise()
    ranges = pop.coordinate_ranges(MEAN)
    for name, mean in MEAN.items():
        expected = mean + 0.3 * noise[:, slice(*ranges[name])].reshape(4, *mean.shape)
        torch.testing.assert_close(members[name], expected)
        assert members[name].dtype == mean.dtype


def test_members_of_float64_parameters_are_float64() -> None:
    mean = {"x": torch.zeros(3, dtype=torch.float64)}
    assert GaussianPopulation(mean, 0.3, 8, 0, 4).members()["x"].dtype == torch.float64


def test_a_line_is_the_origin_less_each_step_of_the_direction() -> None:
    direction = {name: torch.randn_like(w) for name, w in MEAN.items()}
    line = LinePopulation(MEAN, direction, (0.0, 0.1, 2.0))
    for name, members in line.members().items():
        for row, step in enumerate(line.steps):
            assert torch.equal(members[row], MEAN[name] - torch.tensor(step) * direction[name])
    assert line.part(1, 3).steps == (0.1, 2.0)
    assert pop.size(line) == 3


def test_all_kinds_have_one_face() -> None:
    kinds = [
        GaussianPopulation(MEAN, 0.3, 8, 0, 4),
        LinePopulation(MEAN, MEAN, (0.0, 0.1, 0.2, 0.3)),
        {name: w.expand(4, *w.shape) for name, w in MEAN.items()},
    ]
    for kind in kinds:
        assert pop.size(kind) == 4
        whole, part = pop.members(kind), pop.members(pop.part(kind, 1, 3))
        assert all(torch.equal(part[name], whole[name][1:3]) for name in MEAN)


@given(total=st.integers(0, 30), length=st.integers(-2, 40))
def test_chunks_cover_everything_once(total: int, length: int) -> None:
    ranges = pop.chunks(total, length)
    assert [i for a, b in ranges for i in range(a, b)] == list(range(total))
    assert all(b - a <= max(1, length) for a, b in ranges)


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
def test_a_width_that_is_none_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"^sigma is .*: give a finite number above 0\.$"):
        GaussianPopulation(MEAN, sigma, 8, 0, 4)


def test_empty_populations_are_refused() -> None:
    with pytest.raises(ValueError, match="members 4 to 4 are an empty population"):
        GaussianPopulation(MEAN, 0.1, 8, 4, 4)
    with pytest.raises(ValueError, match="a line population has no steps"):
        LinePopulation(MEAN, MEAN, ())


def test_rounding_beyond_a_hundredth_of_sigma_is_refused() -> None:
    mean = {"w": torch.linspace(-0.2, 0.2, 400)}
    whole = GaussianPopulation(mean, 0.1, 1, 0, 50, rounded=True)
    exact = GaussianPopulation(mean, 0.1, 1, 0, 50).members()["w"]
    moved = (whole.members()["w"] - exact).double().square().mean().sqrt() / 0.1
    assert 0.001 < whole.rounding < 0.005
    assert whole.rounding == pytest.approx(float(moved), rel=0.1)
    assert torch.equal(whole.part(3, 5).members()["w"], whole.members()["w"][3:5])
    with pytest.raises(ValueError, match=r"% of sigma = 0\.01: use a larger sigma"):
        GaussianPopulation(mean, 0.01, 1, 0, 50, rounded=True)
