"""Counter-based noise: known bits, the same whatever the piece, and normal."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab.evaluation import noise


def word(value: int) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.int64)


# kat_vectors of Random123 (Salmon et al. 2011), philox4x32-10: counter, key, result
@pytest.mark.parametrize(
    ("counter", "key", "result"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_gives_the_published_known_answers(counter: str, key: str, result: str) -> None:
    words = tuple(word(int(text, 16)) for text in counter.split())
    low, high = (int(text, 16) for text in key.split())
    got = noise.philox(words, low | (high << 32))
    assert [int(w) for w in got] == [int(text, 16) for text in result.split()]


def test_philox_broadcasts_its_counters() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(4)[None]
    zero = torch.zeros((), dtype=torch.int64)
    got = noise.philox((columns, rows, zero, zero), 5)
    assert all(w.shape == (3, 4) for w in got)
    alone = noise.philox((word(2), word(1), word(0), word(0)), 5)
    assert [int(w[1, 2]) for w in got] == [int(w) for w in alone]


ROWS, COLUMNS = 40, 50
WHOLE = noise.normal(123456789123456789, (0, ROWS), (0, COLUMNS))


@given(
    rows=st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted),
    columns=st.tuples(st.integers(0, COLUMNS), st.integers(0, COLUMNS)).map(sorted),
    block=st.sampled_from([1, 7, 64, 32768]),
)
def test_any_piece_has_the_bits_of_the_whole(
    rows: list[int], columns: list[int], block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise, "_BLOCK", block)
        for draw in (noise.normal, noise.normal_by_tensors):
            piece = draw(123456789123456789, tuple(rows), tuple(columns))
            assert piece.dtype == torch.float32
            assert torch.equal(piece, WHOLE[rows[0] : rows[1], columns[0] : columns[1]])


@given(
    key=st.integers(0, 2**64 - 1),
    member=st.integers(0, 2**40),
    coordinate=st.integers(0, 2**32 - 2000),
    stream=st.integers(0, 2**32 - 1),
)
def test_the_compiled_kernel_and_tensor_operations_draw_the_same_bits(
    key: int, member: int, coordinate: int, stream: int
) -> None:
    where = (member, member + 3), (coordinate, coordinate + 701)
    compiled = noise.normal(key, *where, stream=stream)
    assert torch.equal(compiled, noise.normal_by_tensors(key, *where, stream=stream))


def test_normals_are_those_of_exact_logarithms_and_angles() -> None:
    size = 400_000
    drawn = noise.normal(7, (0, 1), (0, 4 * size)).double().reshape(size, 4)
    zero = torch.zeros(1, dtype=torch.int64)
    words = noise.philox((torch.arange(size), zero, zero, zero), 7)
    uniform = [((w >> 9).double() + 0.5) * 2.0**-23 for w in words]
    for pair in (0, 2):
        radius = torch.sqrt(-2 * torch.log(uniform[pair]))
        angle = 2 * math.pi * uniform[pair + 1]
        exact = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=1)
        assert (drawn[:, pair : pair + 2] - exact).abs().max() < 7e-7


def test_members_beyond_32_bits_have_noise_of_their_own() -> None:
    far = 3 << 32
    there = noise.normal(1, (far - 1, far + 2), (0, 8))
    assert torch.equal(there[1:], noise.normal(1, (far, far + 2), (0, 8)))
    assert not torch.equal(there[1], noise.normal(1, (0, 1), (0, 8))[0])


def test_moments_are_those_of_a_standard_normal() -> None:
    # 4 million numbers: each mean within 4.5 of its standard errors
    sample = noise.normal(42, (0, 2000), (0, 2000)).double().flatten()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        error = math.sqrt(variance / len(sample))
        assert abs(float((sample**power).mean()) - moment) < 4.5 * error
    for threshold in (0.5, 1.0, 2.0, 3.0, 4.0):
        tail = math.erfc(threshold / math.sqrt(2)) / 2
        for side in (sample, -sample):
            got = float((side > threshold).double().mean())
            assert abs(got - tail) < 4.5 * math.sqrt(tail / len(sample))
    assert sample.isfinite().all()


def test_coordinates_members_streams_and_keys_are_uncorrelated() -> None:
    size = 250_000
    fields = [
        noise.normal(1, (0, size), (0, 9)).T,  # neighbours in a Box-Muller pair, block and beyond
        noise.normal(1, (0, size), (0, 2), stream=noise.ACTIVATION_STREAM).T,
        noise.normal(1, (0, size), (0, 2), stream=noise.ACTIVATION_STREAM + 1).T,
        noise.normal(2, (0, size), (0, 2)).T,
        noise.normal(1 | (1 << 32), (0, size), (0, 2)).T,
        noise.normal(1, (1, size + 1), (0, 2)).T,
    ]
    for transform in (lambda x: x, torch.square, torch.abs):
        correlations = torch.corrcoef(transform(torch.cat(fields).double()))
        off_diagonal = correlations - torch.eye(len(correlations))
        assert off_diagonal.abs().max() < 4.5 / math.sqrt(size)


def test_a_key_is_one_draw_from_the_generator() -> None:
    generator = torch.Generator().manual_seed(3)
    keys = [noise.draw_key(generator) for _ in range(100)]
    assert len(set(keys)) == 100
    assert all(0 <= key < 2**64 for key in keys)
    assert max(keys) >= 2**63  # all 64 bits are used
    again = torch.Generator().manual_seed(3)
    assert [noise.draw_key(again) for _ in range(100)] == keys
