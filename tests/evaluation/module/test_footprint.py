"""What is counted as held, against tensors of known sizes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab.evaluation.module.footprint import Footprint, Needs, chunk_sizes, line, peak_bytes


def test_views_and_old_tensors_do_not_count_and_dead_ones_leave() -> None:
    old = torch.zeros(100)
    with Footprint() as footprint:
        a = old.view(10, 10).t() + 1
        assert footprint.peak == 400
        b = a.reshape(100)[::2] * 1  # a copy of a and its half
        del a, b
        c = torch.zeros(50)
        old.add_(1)
    assert footprint.peak == 400 + 400 + 200
    assert footprint.total == 400 + 400 + 200 + 200
    del c


def test_what_vmap_makes_of_members_counts() -> None:
    members, x = torch.ones(7, 3, 3), torch.ones(5, 3)
    peak = peak_bytes(lambda: torch.func.vmap(lambda w: (x @ w.T).tanh())(members))
    assert peak >= 2 * 7 * 5 * 3 * 4


@pytest.mark.parametrize(
    "draws",
    [
        lambda: torch.rand(3),
        lambda: torch.zeros(3).bernoulli_(0.5),
        lambda: torch.nn.functional.dropout(torch.ones(3), 0.1),
        lambda: torch.multinomial(torch.ones(3), 1),
        lambda: torch.randperm(4),
    ],
)
def test_random_numbers_are_noticed(draws: object) -> None:
    with Footprint() as footprint:
        draws()  # type: ignore[operator]
    assert footprint.random
    with Footprint() as footprint:
        torch.nn.functional.dropout(torch.ones(3), 0.1, training=False)
    assert not footprint.random


def test_lines_round_upwards() -> None:
    assert line([(2, 10), (5, 20)]) == (2, 4)
    assert line([(2, 20), (5, 10)]) == (20, 0)
    assert line([(3, 10)]) == (0, 4)


@given(
    example=st.integers(1, 10**6),
    member=st.integers(0, 10**5),
    frontier=st.integers(0, 10**4),
    batch=st.integers(1, 5000),
    memory=st.integers(10**3, 10**8),
    batchable=st.booleans(),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_chunks_keep_to_memory_and_reach_for_it(
    example: int,
    member: int,
    frontier: int,
    batch: int,
    memory: int,
    batchable: bool,
    device: str,
) -> None:
    needs = Needs(frontier, frontier, member, example, batchable)
    chunks = chunk_sizes(needs, batch, memory, device)
    assert 1 <= chunks.examples <= batch
    assert chunks.members >= 1
    assert batchable or not chunks.batched

    def used(examples: int, members: int) -> int:
        passes = members if chunks.batched else 1
        return examples * (frontier + passes * example) + members * member

    smallest = chunks.examples == chunks.members == 1
    assert smallest or used(chunks.examples, chunks.members) <= memory
    if device == "cuda" and chunks.batched:
        assert used(chunks.examples, chunks.members + 1) > memory
    whole = chunk_sizes(needs, batch, memory, device, whole_batch=True)
    assert whole.examples == batch
