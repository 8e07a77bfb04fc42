"""The normals of :mod:`gradlab.evaluation.noise` on a processor, compiled.

The same operations in the same order as the tensor version, so the same bits; sixteen times faster,
because the words of a block never leave the vector registers.
"""

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from gradlab._kernels import kernel_function
from gradlab.evaluation.compiled.tiles import tile
from gradlab.evaluation.noise import (
    COSINE,
    LN2_HIGH,
    LN2_LOW,
    LOG,
    SINE,
    SQRT_HALF_BITS,
)

# Philox blocks in flight.
_LANES = 64

f32, i32, u32, u64 = np.float32, np.int32, np.uint32, np.uint64


@tile
def _bits(typing, value):
    """The bits of a float32 as an int32."""
    if value != types.float32:
        return None

    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), emit


@tile
def _float(typing, value):
    """The float32 of an int32's bits."""
    if value != types.int32:
        return None

    def emit(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), emit


@kernel_function()
def _log_uniform(word):
    bits = _bits(f32(i32(((word >> u32(9)) << u32(1)) | u32(1))))
    exponent = i32(i32(bits - i32(SQRT_HALF_BITS)) >> i32(23))
    x = _float(i32(bits - (exponent << i32(23)))) - f32(1.0)
    series = f32(LOG[7])
    series = series * x + f32(LOG[6])
    series = series * x + f32(LOG[5])
    series = series * x + f32(LOG[4])
    series = series * x + f32(LOG[3])
    series = series * x + f32(LOG[2])
    series = series * x + f32(LOG[1])
    series = series * x + f32(LOG[0])
    scale = f32(i32(exponent - i32(24)))
    square = x * x
    tail = square * x * series + scale * f32(LN2_LOW)
    return scale * f32(LN2_HIGH) + (x + (tail - f32(0.5) * square))


@kernel_function()
def _pair(first, second):
    radius = np.sqrt(f32(-2.0) * _log_uniform(first))
    shifted = i32(i32(second >> u32(9)) + i32(2**20))
    quarter = i32((shifted >> i32(21)) & i32(3))
    rest = (f32(i32((shifted & i32(2**21 - 1)) - i32(2**20))) + f32(0.5)) * f32(2.0**-21)
    square = rest * rest
    sine = f32(SINE[3])
    sine = sine * square + f32(SINE[2])
    sine = sine * square + f32(SINE[1])
    sine = rest * (sine * square + f32(SINE[0]))
    cosine = f32(COSINE[4])
    cosine = cosine * square + f32(COSINE[3])
    cosine = cosine * square + f32(COSINE[2])
    cosine = cosine * square + f32(COSINE[1])
    cosine = cosine * square + f32(COSINE[0])
    odd = (quarter & i32(1)) == i32(1)
    left = sine if odd else cosine
    right = cosine if odd else sine
    # the sign bit, as tensors' negation does it
    left = _float(i32(_bits(left) ^ (((quarter + i32(1)) & i32(2)) << i32(30))))
    right = _float(i32(_bits(right) ^ ((quarter & i32(2)) << i32(30))))
    return radius * left, radius * right


@kernel_function()
def fill(out, first, low, stream, key):
    """Rows are members from ``first`` on, columns blocks of four coordinates from ``low`` on."""
    # Words stay in 64-bit lanes, of which the multiplier reads the lower half: nothing to pack.
    columns = out.shape[1] // 4
    total = out.shape[0] * columns
    words = np.empty((4, _LANES), np.uint64)
    row, column = 0, 0
    for start in range(0, total, _LANES):
        size = min(_LANES, total - start)
        for lane in range(size):
            words[0, lane] = u64(low + column)
            words[1, lane] = u64(first + row)
            words[2, lane] = u64(first + row) >> u64(32)
            column += 1
            if column == columns:
                row, column = row + 1, 0
        for lane in range(size):
            w0, w1, w2, w3 = words[0, lane], words[1, lane], words[2, lane], u64(stream)
            k0, k1 = key, key >> u64(32)
            for _ in range(10):
                p0 = (w0 & u64(0xFFFFFFFF)) * u64(0xD2511F53)
                p1 = (w2 & u64(0xFFFFFFFF)) * u64(0xCD9E8D57)
                w0 = (p1 >> u64(32)) ^ w1 ^ k0
                w1 = p1
                w2 = (p0 >> u64(32)) ^ w3 ^ k1
                w3 = p0
                k0 += u64(0x9E3779B9)
                k1 += u64(0xBB67AE85)
            words[0, lane], words[1, lane], words[2, lane], words[3, lane] = w0, w1, w2, w3
        flat = out.reshape(-1)[4 * start : 4 * (start + size)]
        for lane in range(size):
            first_normal, second_normal = _pair(u32(words[0, lane]), u32(words[1, lane]))
            third_normal, fourth_normal = _pair(u32(words[2, lane]), u32(words[3, lane]))
            flat[4 * lane] = first_normal
            flat[4 * lane + 1] = second_normal
            flat[4 * lane + 2] = third_normal
            flat[4 * lane + 3] = fourth_normal


def normal(key: int, members: tuple[int, int], coordinates: tuple[int, int], stream: int) -> Tensor:
    """Standard normals ``(members, coordinates)`` float32, see :func:`noise.normal`."""
    low, high = coordinates[0] // 4, -(-coordinates[1] // 4)
    out = np.empty((members[1] - members[0], 4 * (high - low)), np.float32)
    fill(out, members[0], low, stream, np.uint64(key))
    return torch.from_numpy(out)[:, coordinates[0] - 4 * low : coordinates[1] - 4 * low]
