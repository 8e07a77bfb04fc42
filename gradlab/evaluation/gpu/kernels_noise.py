# Kernels are written in Triton's language, not in Python: its tuples take no unpacking, its values
# have no types that mypy knows.
# ruff: noqa: RUF005
# mypy: ignore-errors
"""Triton kernels of counter-based normals: the bits of :mod:`gradlab.evaluation.noise`.

The same float32 operations in the same order, none of them contracted, so they have to be compiled
with ``enable_fp_fusion=False``. Members are 64-bit, in two halves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gradlab.evaluation import noise

_MULTIPLIER_0: tl.constexpr = tl.constexpr(0xD2511F53)
_MULTIPLIER_1: tl.constexpr = tl.constexpr(0xCD9E8D57)
_WEYL_0: tl.constexpr = tl.constexpr(0x9E3779B9)
_WEYL_1: tl.constexpr = tl.constexpr(0xBB67AE85)
_SQRT_HALF_BITS: tl.constexpr = tl.constexpr(noise.SQRT_HALF_BITS)
_LN2_HIGH: tl.constexpr = tl.constexpr(noise.LN2_HIGH)
_LN2_LOW: tl.constexpr = tl.constexpr(noise.LN2_LOW)
_LOG: tl.constexpr = tl.constexpr(noise.LOG)
_SINE: tl.constexpr = tl.constexpr(noise.SINE)
_COSINE: tl.constexpr = tl.constexpr(noise.COSINE)


@triton.jit
def polynomial(coefficients: tl.constexpr, count: tl.constexpr, x):
    """Horner's rule, lowest coefficient first."""
    total = tl.zeros_like(x) + coefficients[count - 1]
    for i in tl.static_range(1, count):
        total = total * x + coefficients[count - 1 - i]
    return total


@triton.jit
def _philox(word_0, word_1, word_2, word_3, key_0, key_1):
    for _ in tl.static_range(10):
        high_0, low_0 = tl.umulhi(word_0, _MULTIPLIER_0), word_0 * _MULTIPLIER_0
        high_1, low_1 = tl.umulhi(word_2, _MULTIPLIER_1), word_2 * _MULTIPLIER_1
        word_0 = high_1 ^ word_1 ^ key_0
        word_1 = low_1
        word_2 = high_0 ^ word_3 ^ key_1
        word_3 = low_0
        key_0 = key_0 + _WEYL_0
        key_1 = key_1 + _WEYL_1
    return word_0, word_1, word_2, word_3


@triton.jit
def _log_uniform(word):
    bits = ((word >> 9) * 2 + 1).to(tl.int32).to(tl.float32).to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    x = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    scale = (exponent - 24).to(tl.float32)
    square = x * x
    tail = square * x * polynomial(_LOG, 8, x) + scale * _LN2_LOW
    return scale * _LN2_HIGH + (x + (tail - 0.5 * square))


@triton.jit
def _box_muller(first, second):
    radius = tl.sqrt_rn(-2.0 * _log_uniform(first))
    shifted = (second >> 9).to(tl.int32) + 1048576
    quarter = (shifted >> 21) & 3
    rest = (((shifted & 2097151) - 1048576).to(tl.float32) + 0.5) * 4.76837158203125e-07  # 2^-21
    square = rest * rest
    sine = rest * polynomial(_SINE, 4, square)
    cosine = polynomial(_COSINE, 5, square)
    odd = (quarter & 1) == 1
    left = tl.where(odd, sine, cosine)
    right = tl.where(odd, cosine, sine)
    left = tl.where((quarter == 1) | (quarter == 2), -left, left)
    right = tl.where(quarter >= 2, -right, right)
    return radius * left, radius * right


@triton.jit
def member(low, high, offset):
    """The halves of a 64-bit member index, ``offset`` further on."""
    start = low.to(tl.uint32)
    moved = start + offset.to(tl.uint32)
    return moved, high.to(tl.uint32) + (moved < start).to(tl.uint32)


@triton.jit
def four_normals(block, low, high, stream, key_0, key_1):
    """The normals of the coordinates ``4 block`` to ``4 block + 3``, each in a tensor."""
    zero = block.to(tl.uint32) * 0
    words = _philox(
        block.to(tl.uint32), zero + low, zero + high, zero + stream.to(tl.uint32),
        key_0.to(tl.uint32), key_1.to(tl.uint32),
    )  # fmt: skip
    normal_0, normal_1 = _box_muller(words[0], words[1])
    normal_2, normal_3 = _box_muller(words[2], words[3])
    return normal_0, normal_1, normal_2, normal_3


@triton.jit
def four_columns(values):
    """Four tensors as columns 0, 1, 2, 3 of every four."""
    return tl.interleave(tl.interleave(values[0], values[2]), tl.interleave(values[1], values[3]))


@triton.jit(do_not_specialize=["key_0", "key_1", "low", "high", "first", "stream"])
def normal_kernel(
    out_ptr, key_0, key_1, low, high, first, stream, rows, blocks,
    block_rows: tl.constexpr, block_columns: tl.constexpr,
):  # fmt: skip
    """``out`` (rows, 4 blocks): members from ``high:low`` on, blocks of four from ``first``."""
    row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    own, upper = member(low, high, row)
    block = (first + column)[None, :] + tl.zeros((block_rows, 1), tl.int32)
    values = four_columns(four_normals(block, own[:, None], upper[:, None], stream, key_0, key_1))
    place = tl.program_id(1) * block_columns * 4 + tl.arange(0, block_columns * 4)
    inside = (row[:, None] < rows) & (place[None, :] < 4 * blocks)
    tl.store(out_ptr + row[:, None].to(tl.int64) * (4 * blocks) + place[None, :], values, inside)


@triton.jit(do_not_specialize=["key_0", "key_1", "low", "high"])
def weighted_noise_kernel(
    weights_ptr, squared_ptr, first_ptr, second_ptr, key_0, key_1, low, high, units, coordinates,
    rows: tl.constexpr, second: tl.constexpr, segment: tl.constexpr, blocks: tl.constexpr,
):  # fmt: skip
    """Sums over one segment of units: ``first`` (segments, rows, coordinates) float64.

    One unit at a time, so that every sum stays in the thread that draws its coordinate and needs
    neither an exchange nor an order that depends on the hardware.
    """
    block = tl.program_id(0) * blocks + tl.arange(0, blocks)
    start = tl.program_id(1) * segment
    sums, squares = (), ()
    for _ in tl.static_range(rows):
        sums = sums + (tl.zeros((blocks * 4,), tl.float64),)
        squares = squares + (tl.zeros((blocks * 4,), tl.float64),)
    stream = tl.program_id(0) * 0
    for unit in range(start, tl.minimum(start + segment, units)):
        # (a plain number where the interpreter runs the loop)
        own, upper = member(low, high, unit + tl.program_id(0) * 0)
        values = four_columns(four_normals(block, own, upper, stream, key_0, key_1))
        extra = (values * values - 1.0).to(tl.float64)
        values = values.to(tl.float64)
        new_sums, new_squares = (), ()
        for row in tl.static_range(rows):
            weight = tl.load(weights_ptr + row * units + unit)
            new_sums = new_sums + (sums[row] + weight * values,)
            if second:
                weight = tl.load(squared_ptr + row * units + unit)
                new_squares = new_squares + (squares[row] + weight * extra,)
            else:
                new_squares = new_squares + (squares[row],)
        sums, squares = new_sums, new_squares
    place = tl.program_id(0) * blocks * 4 + tl.arange(0, blocks * 4)
    for row in tl.static_range(rows):
        offset = (tl.program_id(1) * rows + row).to(tl.int64) * coordinates + place
        tl.store(first_ptr + offset, sums[row], place < coordinates)
        if second:
            tl.store(second_ptr + offset, squares[row], place < coordinates)


@triton.jit
def noise_matrix(
    offset: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    n: tl.constexpr, k: tl.constexpr, low, high, key_0, key_1,
):  # fmt: skip
    """One member's normals of a weight ``(rows, columns)``, in ``(n, k)``, zero beyond it."""
    row = tl.arange(0, n)[:, None]
    column = tl.arange(0, k)[None, :]
    stream = low * 0
    if columns % 4 == 0 and offset % 4 == 0:
        block = offset // 4 + row * (columns // 4) + tl.arange(0, k // 4)[None, :]
        values = four_columns(four_normals(block, low, high, stream, key_0, key_1))
    else:
        # Rows that begin inside a block of four: every coordinate draws its whole block.
        coordinate = offset + row * columns + column
        block = (coordinate >> 2).to(tl.uint32)
        words = _philox(
            block, block * 0 + low, block * 0 + high, block * 0 + stream,
            key_0.to(tl.uint32), key_1.to(tl.uint32),
        )  # fmt: skip
        upper = (coordinate & 2) == 2
        left, right = _box_muller(
            tl.where(upper, words[2], words[0]), tl.where(upper, words[3], words[1])
        )
        values = tl.where((coordinate & 1) == 1, right, left)
    return tl.where((row < rows) & (column < columns), values, 0.0)
