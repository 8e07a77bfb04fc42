"""The compiled evaluator of binarized MLPs with binary weights and binary activations.

The first layer adds and subtracts inputs: sixteen neurons side by side look up the signed sums of
four inputs of an example, in tables that all members share. Later layers count the bits in which
codes and weights differ. Both are exact, the first one as far as float32 sums are; what lies within
their rounding of zero is added again in float64. Only for processors with look-up tables.
"""

from __future__ import annotations

import functools

import numpy as np

from gradlab._kernels import kernel_function
from gradlab.evaluation.compiled import mlp as kernel
from gradlab.evaluation.compiled.mlp import ROUNDING, tabulate
from gradlab.evaluation.compiled.parts import (
    account,
    aligned32,
    aligned32i,
    aligned64,
)
from gradlab.evaluation.compiled.tiles import BLOCK, EXAMPLES, count_tile, input_tile, pointer

# Examples whose tables are made at a time: they stay in the first-level cache for all members.
_TOGETHER = 32


@kernel_function()
def _pack_signs(weights, rows, columns, words, across, out):
    """Signs of ``(rows, columns)`` as 32-bit words ``(rows, words)`` or ``(words, across)``."""
    for row in range(rows):
        for word in range(words):
            bits = np.uint32(0)
            for k in range(word * 32, min(columns, word * 32 + 32)):
                if weights[row * columns + k] >= 0:
                    bits |= np.uint32(1) << np.uint32(k - word * 32)
            place = word * across + row if across else row * words + word
            out[place] = np.int32(bits)


@kernel_function()
def _signed_sums(inputs, at, columns, lane, groups, pattern, out, out_at):
    """All sixteen signed sums of each four inputs of one example, eight examples beside each other.

    ``pattern`` ``(4, 16)`` holds ±1.
    """
    for g in range(groups):
        here = out_at + 16 * EXAMPLES * g
        for entry in range(16):
            out[here + entry] = np.float32(0.0)
        for j in range(min(4, columns - 4 * g)):
            x = inputs[at + (4 * g + j) * BLOCK + lane]
            for entry in range(16):
                out[here + entry] += x * pattern[16 * j + entry]


@kernel_function()
def _settle_signs(
    scratch, vectors, first, rows, radius, norms, at, exact, exact_at, inputs, inputs_at, columns,
    lane, codes, codes_at,
):  # fmt: skip
    """Add again in float64 what a tile holds within reach of zero; how many."""
    settled = 0
    for example in range(EXAMPLES):
        reach = radius * norms[at + example]
        for index in range(16 * vectors):
            row = first + index
            if row >= rows or not abs(scratch[example * 16 * vectors + index]) <= reach:
                continue
            total, here = 0.0, lane + example
            for k in range(columns):
                weight = exact[exact_at + row * columns + k]
                total += weight * np.float64(inputs[inputs_at + k * BLOCK + here])
            bit = np.uint32(1) << np.uint32(row % 32)
            place = codes_at + (row // 32) * BLOCK + here
            word = np.uint32(codes[place])
            codes[place] = np.int32(word | bit if total >= 0 else word & ~bit)
            settled += 1
    return settled


@functools.cache
def compiled():
    """The evaluator; its arguments are those of :func:`.mlp.compiled`'s ``evaluate``."""
    outputs_of_codes = kernel.compiled(1, 1).outputs_of_codes

    @kernel_function()
    def count_layer(signs, at, codes, in_at, out_at, rows, words):
        least = np.int32(-(rows // 2) - 1)
        for word in range(words):
            here = min(32, rows - 32 * word)
            place = at + 32 * word * words
            for column in range(0, BLOCK, 16):
                goal = out_at + word * BLOCK + column
                if words == 1:
                    count_tile(1, signs, place, here, codes, in_at + column, least, codes, goal)
                elif words == 2:
                    count_tile(2, signs, place, here, codes, in_at + column, least, codes, goal)
                elif words == 3:
                    count_tile(3, signs, place, here, codes, in_at + column, least, codes, goal)
                else:
                    count_tile(4, signs, place, here, codes, in_at + column, least, codes, goal)

    @kernel_function()
    def walk(
        inputs, norms, targets, labels, exact, sizes, kind, examples, out, settled, outputs, first,
        later, head, codes, sums, pattern, floats, doubles,
    ):  # fmt: skip
        columns, rows, depth, width = sizes
        members, words, groups = exact.shape[0], (rows + 31) // 32, (columns + 3) // 4
        # the only error of the first layer is that of its sums, weights being ±1
        radius = np.float32(np.sqrt(columns) * (groups + 4) * ROUNDING)
        size, half = 2 * words * BLOCK, words * BLOCK
        x, goals, lengths, answers = (
            pointer(inputs), pointer(targets), pointer(norms), pointer(labels),
        )  # fmt: skip
        results, flat_exact, flat_first = pointer(outputs), pointer(exact), pointer(first)
        flat_later, flat_head, flat_codes = pointer(later), pointer(head), pointer(codes)
        flat_sums, flat_pattern = pointer(sums), pointer(pattern)
        scratch, y, origin = pointer(floats), pointer(doubles[0]), pointer(doubles[1])
        for block in range(norms.shape[0]):
            here = min(BLOCK, examples - block * BLOCK)
            begin = block * columns * BLOCK
            for start in range(0, BLOCK, _TOGETHER):
                for lane in range(_TOGETHER):
                    _signed_sums(
                        x, begin, columns, start + lane, groups, flat_pattern, flat_sums,
                        ((lane // EXAMPLES) * groups * EXAMPLES + lane % EXAMPLES) * 16,
                    )  # fmt: skip
                for member in range(members):
                    for lane in range(0, _TOGETHER, EXAMPLES):
                        at, length = start + lane, block * BLOCK + start + lane
                        longest = np.float32(-1.0)
                        for example in range(EXAMPLES):
                            longest = max(longest, lengths[length + example])
                        reach, sums_at = radius * longest, lane * groups * 16
                        for word in range(words):
                            left = rows - 32 * word
                            words_at = member * first.shape[1] + 32 * word
                            goal = member * size + word * BLOCK + at
                            if left > 16:
                                valid = np.int32(-1) if left >= 32 else np.int32((1 << left) - 1)
                                near = input_tile(
                                    2, flat_sums, sums_at, groups, flat_first, words_at,
                                    32 * words, reach, valid, scratch, flat_codes, goal,
                                )  # fmt: skip
                            else:
                                valid = np.int32((1 << left) - 1)
                                near = input_tile(
                                    1, flat_sums, sums_at, groups, flat_first, words_at,
                                    32 * words, reach, valid, scratch, flat_codes, goal,
                                )  # fmt: skip
                            if near:
                                settled[member] += _settle_signs(
                                    scratch, 2 if left > 16 else 1, 32 * word, rows, radius,
                                    lengths, length, flat_exact, member * exact.shape[1], x, begin,
                                    columns, at, flat_codes, member * size,
                                )  # fmt: skip
            for member in range(members):
                at, other = member * size, member * size + half
                for layer in range(1, depth):
                    place = member * later.shape[1] + (layer - 1) * rows * words
                    count_layer(flat_later, place, flat_codes, at, other, rows, words)
                    at, other = other, at
                outputs_of_codes(flat_head, member * head.shape[1], flat_codes, at, rows, width, y)
                out[member] += account(
                    kind, member, y, origin, goals, answers, results, width, block, here, examples
                )

    @kernel_function()
    def evaluate(
        inputs, norms, targets, labels, factors, front, weights, exact, sizes, binary, edges,
        exact_edges, levels, kind, examples, out, settled, outputs,
    ):  # fmt: skip
        columns, rows, depth, width = sizes
        members, words = weights.shape[0], (rows + 31) // 32
        groups, across = (columns + 3) // 4, 32 * words
        input_words = (columns + 31) // 32
        first = aligned32i(members * input_words * across).reshape(members, -1)
        later = aligned32i(members * max(1, (depth - 1) * rows * words)).reshape(members, -1)
        head = aligned64(members * width * ((rows + 3) // 4) * 16).reshape(members, -1)
        output_at = columns * rows + (depth - 1) * rows * rows
        for member in range(members):
            w = weights[member]
            _pack_signs(w[: columns * rows], rows, columns, input_words, across, first[member])
            for layer in range(1, depth):
                begin = columns * rows + (layer - 1) * rows * rows
                _pack_signs(
                    w[begin : begin + rows * rows], rows, rows, words, 0,
                    later[member, (layer - 1) * rows * words :],
                )  # fmt: skip
            tabulate(exact[member, output_at:], width, rows, levels, False, head[member])
        codes = aligned32i(members * 2 * words * BLOCK)
        pattern = aligned32(64)
        for j in range(4):
            for entry in range(16):
                pattern[16 * j + entry] = 1.0 if (entry >> j) & 1 else -1.0
        walk(
            inputs, norms, targets, labels, exact, sizes, kind, examples, out, settled, outputs,
            first, later, head, codes, aligned32(_TOGETHER * groups * 16), pattern, aligned32(1024),
            aligned64(2 * width * BLOCK).reshape(2, -1),
        )  # fmt: skip

    return evaluate
