"""What the compiled evaluators share: buffers and losses."""

from __future__ import annotations

import numpy as np

from gradlab._kernels import kernel_function
from gradlab.evaluation.compiled.tiles import BLOCK, squared_decrease, squared_error

SQUARED_ERROR, CROSS_ENTROPY, OUTPUTS, SQUARED_DECREASE, ENTROPY_DECREASE = range(5)


@kernel_function()
def aligned32(size):
    """Float32 zeros at the start of a cache line, which vectors then never straddle."""
    whole = np.zeros(size + 16, np.float32)
    skip = (-whole.ctypes.data % 64) // 4
    return whole[skip : skip + size]


@kernel_function()
def aligned32i(size):
    """The same of int32."""
    whole = np.zeros(size + 16, np.int32)
    skip = (-whole.ctypes.data % 64) // 4
    return whole[skip : skip + size]


@kernel_function()
def aligned64(size):
    """The same of float64."""
    whole = np.zeros(size + 8, np.float64)
    skip = (-whole.ctypes.data % 64) // 8
    return whole[skip : skip + size]


@kernel_function()
def cross_entropy(y, label, lane, outputs):
    """-log softmax of one example's label; y ``(outputs, 128)``."""
    largest = y[lane]
    for j in range(1, outputs):
        largest = max(largest, y[j * BLOCK + lane])
    total = 0.0
    for j in range(outputs):
        total += np.exp(y[j * BLOCK + lane] - largest)
    return np.log(total) + (largest - y[label * BLOCK + lane])


@kernel_function()
def account(kind, member, y, origin, targets, labels, results, width, block, here, examples):
    """What a member's outputs on one block add to its sum; outputs may also be kept.

    y and origin ``(width, 128)`` float64, targets ``(blocks, width, 128)``, labels ``(blocks,
    128)``, results ``(P, examples, width)``; ``here`` examples of the block are real.
    """
    place = block * width * BLOCK
    for j in range(width):
        for lane in range(here, BLOCK):
            y[j * BLOCK + lane] = 0.0  # as the targets that pad the last block
    if kind == SQUARED_ERROR:
        return squared_error(y, targets, place, width * BLOCK)
    total = 0.0
    if kind == CROSS_ENTROPY:
        for lane in range(here):
            total += cross_entropy(y, labels[block * BLOCK + lane], lane, width)
    elif kind == OUTPUTS:
        for j in range(width):
            for lane in range(here):
                at = (member * examples + block * BLOCK + lane) * width
                results[at + j] = y[j * BLOCK + lane]
    elif member == 0:
        for index in range(width * BLOCK):
            origin[index] = y[index]
    elif kind == SQUARED_DECREASE:
        total = squared_decrease(origin, y, targets, place, width * BLOCK)
    else:
        for lane in range(here):
            label = labels[block * BLOCK + lane]
            total += cross_entropy(origin, label, lane, width) - cross_entropy(
                y, label, lane, width
            )
    return total
