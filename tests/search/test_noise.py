from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gradlab.evaluation.noise import normal
from gradlab.search.noise import chunk, rows, sums
from gradlab.search.state import begin
from tests.search.problems import seeded

STATE = begin({"w": torch.zeros(6)}, seeded(1), torch.ones(6))


def test_noise_goes_on_where_the_last_generation_ended() -> None:
    whole = normal(STATE.key, (0, 9), (1, 5)).double()
    later = rows(replace(STATE, drawn=4), (1, 5))
    assert torch.equal(later(0, 5), whole[4:])
    assert torch.equal(later(2, 4), whole[6:8])


@pytest.mark.parametrize("matrix", [False, True])
def test_sums_equal_numpy_whatever_the_chunk(matrix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = rows(STATE, (0, 6))
    drawn = noise(0, 11).numpy()
    first, second = torch.linspace(-1, 1, 11).double(), torch.linspace(0, 2, 11).double() ** 2
    expected = second.numpy() @ (drawn**2 - 1)
    if matrix:
        outer = np.einsum("pi,pj->pij", drawn, drawn) - np.eye(6)
        expected = np.einsum("p,pij->ij", second.numpy(), outer)
    for floats in (2**22, 13):
        monkeypatch.setattr("gradlab.search.noise._FLOATS", floats)
        one, two = sums(noise, 6, first, second, matrix=matrix)
        np.testing.assert_allclose(one, first.numpy() @ drawn, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(two, expected, rtol=1e-13, atol=1e-13)
    assert chunk(6) == 2
