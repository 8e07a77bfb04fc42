"""The compiled loop of :mod:`gradlab.evaluation.module.walk`.

A program is an array of instructions, a row each: the code, where its result goes, and what it is
made of, in numbers of the pair's own memory. Images have their channels last. Loops read and write
different places of that memory, which is what lets compilers use vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradlab._kernels import kernel_function

LOAD, AFFINE, SIGN, RELU, ADD, CONVOLVE, AVERAGE, JOIN, PAD, STORE = range(10)
WIDTH = 14  # numbers of an instruction
COMPARED = 32  # numbers that are compared at a time


def _add_changes(
    new: Any, old: Any, new_bits: Any, old_bits: Any, weight: Any, row_of: Any, column_of: Any,
    outputs: Any,
) -> Any:  # fmt: skip
    """Add what changed inputs ``(H, W, C)`` add to outputs ``(H', W', O)``; how many they are.

    Their bits, as integers ``(H, groups, ...)``, tell quickly where nothing has changed.
    """
    height, width, channels = new.shape
    _, tall, wide, filters = weight.shape
    changes = 0
    step = width // new_bits.shape[1]
    for y in range(height):
        reached = False
        for ky in range(tall):
            reached |= row_of[y, ky] >= 0
        if not reached:
            continue
        for group in range(new_bits.shape[1]):
            # indices from 0 on, which are known not to be negative, make vectors
            different = new_bits[y, group, 0] ^ old_bits[y, group, 0]
            for index in range(new_bits.shape[2]):
                different |= new_bits[y, group, index] ^ old_bits[y, group, index]
            if different == 0:
                continue
            for x in range(group * step, (group + 1) * step):
                reached = False
                for kx in range(wide):
                    reached |= column_of[x, kx] >= 0
                if not reached:
                    continue
                for channel in range(channels):
                    change = new[y, x, channel] - old[y, x, channel]
                    if change == 0:
                        continue
                    changes += 1
                    for ky in range(tall):
                        row = row_of[y, ky]
                        if row < 0:
                            continue
                        for kx in range(wide):
                            column = column_of[x, kx]
                            if column < 0:
                                continue
                            for filter in range(filters):
                                outputs[row, column, filter] += (
                                    change * weight[channel, ky, kx, filter]
                                )
    return changes


def _affine(x: Any, numbers: Any, out: Any) -> None:
    """Of ``(places, C)`` and ``(2, C)``: BatchNorm's scale and shift."""
    for place in range(x.shape[0]):
        for channel in range(x.shape[1]):
            out[place, channel] = x[place, channel] * numbers[0, channel] + numbers[1, channel]


def _sign(x: Any, out: Any) -> None:
    one = x.dtype.type(1)
    for index in range(len(x)):
        value = x[index]
        out[index] = one if value >= 0 else (-one if value < 0 else value)


def _relu(x: Any, out: Any) -> None:
    zero = x.dtype.type(0)
    for index in range(len(x)):
        out[index] = zero if x[index] < 0 else x[index]


def _add(x: Any, y: Any, out: Any) -> None:
    for index in range(len(x)):
        out[index] = x[index] + y[index]


def _average(x: Any, tall: Any, wide: Any, out: Any) -> None:
    """Means of ``tall × wide`` pixels of ``(H, W, C)``."""
    area = x.dtype.type(tall * wide)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[row, column] = 0.0
            for y in range(row * tall, (row + 1) * tall):
                for z in range(column * wide, (column + 1) * wide):
                    for channel in range(out.shape[2]):
                        out[row, column, channel] += x[y, z, channel]
            for channel in range(out.shape[2]):
                out[row, column, channel] /= area


def _pad(x: Any, top: Any, left: Any, out: Any) -> None:
    """Surround ``(H, W, C)`` with zeros, or cut its edges."""
    out[:] = 0.0
    for y in range(max(0, -top), min(x.shape[0], out.shape[0] - top)):
        for z in range(max(0, -left), min(x.shape[1], out.shape[1] - left)):
            for channel in range(x.shape[2]):
                out[y + top, z + left, channel] = x[y, z, channel]


add_changes = kernel_function()(_add_changes)
affine = kernel_function()(_affine)
sign = kernel_function()(_sign)
relu = kernel_function()(_relu)
add = kernel_function()(_add)
average = kernel_function()(_average)
pad = kernel_function()(_pad)


def _walk(
    program: Any,
    numbers: Any,
    places: Any,
    size: Any,
    before: Any,
    old_bits: Any,
    after: Any,
    starts: Any,
    pairs: Any,
    outputs: Any,
) -> Any:
    """Run the program for every pair.

    Args:
        program: ``(instructions, WIDTH)``.
        numbers: weights.
        places: which places of an output each place of an input reaches.
        size: of a pair's memory.
        before: ``(b, ...)`` what each example had before.
        old_bits: the same as integers.
        after: changed channels of all exits, one exit after the other.
        starts: where in ``after`` those of an exit begin.
        pairs: ``(3, n)`` copy, channel (-1 for none) and example.
        outputs: ``(n, ...)``, filled.

    Returns:
        How many inputs of convolutions had changed, and how many there were.
    """
    memory = np.empty(size, before.dtype)
    bits = memory.view(old_bits.dtype)
    changed = looked = 0
    for pair in range(pairs.shape[1]):
        copy, channel, example = pairs[0, pair], pairs[1, pair], pairs[2, pair]
        old = before[example]
        for index in range(len(program)):
            code, to, at, length, a, b, c, d, e, f, g, h, i, j = program[index]
            out = memory[to : to + length]
            x = memory[at : at + (d if code == JOIN else length)]
            if code == LOAD:
                # at in before; of exit a; b channels
                out[:] = old[at : at + length]
                if a >= 0 and channel >= 0:
                    area = length // b
                    start = starts[a] + (copy * b + channel) * area
                    image = out.reshape(area, b)
                    for place in range(area):
                        image[place, channel] = after[start + place]
            elif code == AFFINE:
                affine(
                    x.reshape(length // a, a),
                    numbers[b : b + 2 * a].reshape(2, a),
                    out.reshape(length // a, a),
                )
            elif code == SIGN:
                sign(x, out)
            elif code == RELU:
                relu(x, out)
            elif code == ADD:
                add(x, memory[a : a + length], out)
            elif code == CONVOLVE:
                # at, a and b in memory and before; shapes (c, d, e), (f, g, h); i, j in tables
                high, wide = weights_shape(places, j)
                rows = places[j + 2 : j + 2 + c * high].reshape(c, high)
                rest = j + 2 + c * high
                columns = places[rest : rest + d * wide].reshape(d, wide)
                filters = numbers[i : i + e * high * wide * h].reshape(e, high, wide, h)
                out[:] = old[b : b + length]
                count = c * d * e
                step = max(1, COMPARED // e)
                while d % step:
                    step -= 1
                groups = (c, d // step, step * e)
                changed += add_changes(
                    memory[at : at + count].reshape(c, d, e), old[a : a + count].reshape(c, d, e),
                    bits[at : at + count].reshape(groups),
                    old_bits[example, a : a + count].reshape(groups), filters, rows, columns,
                    out.reshape(f, g, h),
                )  # fmt: skip
                looked += count
            elif code == AVERAGE:
                # (a, b, c) to (d, e, c) by f × g
                pixels = memory[at : at + a * b * c].reshape(a, b, c)
                average(pixels, f, g, out.reshape(d, e, c))
            elif code == JOIN:
                # a of b channels, from channel c on; d numbers
                part, target = x.reshape(d // a, a), out.reshape(length // b, b)
                if a == b:
                    out[:] = x
                for place in range(d // a if a < b else 0):
                    for k in range(a):
                        target[place, c + k] = part[place, k]
            elif code == PAD:
                # (a, b, c) to (d, e, c), f above and g to the left
                pixels = memory[at : at + a * b * c].reshape(a, b, c)
                pad(pixels, f, g, out.reshape(d, e, c))
            else:
                outputs[pair, to : to + length] = x
    return changed, looked


def _weights_shape(places: Any, at: Any) -> Any:
    return places[at], places[at + 1]


weights_shape = kernel_function()(_weights_shape)
walk = kernel_function()(_walk)
