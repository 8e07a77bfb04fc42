"""Normals and signs: their distribution, their seeds, and both ways to draw them."""

from __future__ import annotations

import math

import pytest
import torch

from gradlab.evaluation.noise import compiled_problem
from gradlab.variational import draws
from gradlab.variational.draws import random_signs, standard_normal

SHAPES = [(3, 5), (1, 70, 61), (4_099,), (0, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("draw", [standard_normal, random_signs])
def test_shape_type_and_seed(draw, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    like = torch.empty(2, dtype=dtype)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(draw(shape, like))
        assert found[-1].shape == shape
        assert found[-1].dtype == dtype
        assert found[-1].is_contiguous()
    assert torch.equal(found[0], found[1])
    assert not found[0].numel() or not torch.equal(found[0], found[2])


def test_large_ones_take_the_counter_based_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled_problem() is not None:
        pytest.skip("Numba is not there")
    torch.manual_seed(0)
    plain = torch.randn(100, 100)
    torch.manual_seed(0)
    assert not torch.equal(standard_normal((100, 100), torch.empty(0)), plain)
    monkeypatch.setattr(draws, "compiled_problem", lambda: "not there")
    torch.manual_seed(0)
    assert torch.equal(standard_normal((100, 100), torch.empty(0)), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_are_normal_and_independent(dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    x = standard_normal((500, 1_000), torch.empty(0, dtype=dtype)).double()
    number = x.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = float(x.pow(power).mean() - moment)
        assert abs(error) < 5 * math.sqrt(variance / number), power
    after = standard_normal((500, 1_000), torch.empty(0, dtype=dtype)).double()
    for product in (x[1:] * x[:-1], x[:, 1:] * x[:, :-1], x * after):
        assert abs(float(product.mean())) < 5 / math.sqrt(product.numel())


def test_signs_are_fair_and_independent() -> None:
    torch.manual_seed(4)
    x = random_signs((500, 1_001), torch.empty(0)).double()
    after = random_signs((500, 1_001), torch.empty(0)).double()
    assert sorted(x.unique().tolist()) == [-1.0, 1.0]
    for mean in (x, x[1:] * x[:-1], x[:, 32:] * x[:, :-32], x[:, 1:] * x[:, :-1], x * after):
        assert abs(float(mean.mean())) < 5 / math.sqrt(mean.numel())
