"""Which changes of weights are one and the same."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from gradlab.evaluation.module.moves import _fingerprint, packed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_of_other_signs_have_other_fingerprints(dtype: torch.dtype) -> None:
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=12)), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (12,), generator=generator)
    for scale in (1.0, 0.3):
        assert len(torch.unique(_fingerprint(signs * scale, factors))) == len(signs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rounding_does_not_tell_rows_apart(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (72,), generator=generator)
    weights = torch.rand(72, generator=generator, dtype=dtype)
    # the same mean in as many orders as there are weights
    scales = torch.stack([functools.reduce(torch.add, weights.roll(k)) / 72 for k in range(72)])
    assert len(torch.unique(scales)) > 3
    found = torch.unique(_fingerprint(scales[:, None] * torch.ones(72, dtype=dtype), factors))
    # two, where they lie on both sides of a border
    assert len(found) <= 2
    larger = scales[:1, None] * torch.ones(72, dtype=dtype) * (1 + 1e3 * torch.finfo(dtype).eps)
    assert _fingerprint(larger, factors) not in found


def test_copies_hold_a_move_of_every_channel() -> None:
    places = [torch.tensor([4, 9, 2]), torch.tensor([], dtype=torch.int64), torch.tensor([7])]
    assert packed(places).tolist() == [[4, -1, 7], [9, -1, -1], [2, -1, -1]]
