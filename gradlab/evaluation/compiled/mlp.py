"""The compiled evaluator of a population of binarized MLPs; see :mod:`gradlab.evaluation.fused`.

For every block of 128 examples and every member all layers run one after another, and what passes
between them never leaves the first-level cache: codes of the activations, or their values where
there are no sixteen-entry tables or no levels. Layers with codes as inputs look up four bits of
them at a time: a table of sixteen sums of weights stands for four multiply-adds, exactly.

The loops over values and over codes are alike, but differ in what they read and how they settle it;
they stand beside each other, in one file with the walk that calls them for every block.

A pre-activation within rounding of a threshold is computed again in float64, so every code is the
one that exact arithmetic would give (up to float64's own rounding).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from gradlab._kernels import kernel_function
from gradlab.evaluation.compiled.parts import (
    account,
    aligned32,
    aligned32i,
    aligned64,
)
from gradlab.evaluation.compiled.tiles import (
    BLOCK,
    FROM_CODES,
    FROM_PAIRS,
    FROM_VALUES,
    LANES,
    SHAPES,
    code_tile,
    output_tile,
    pointer,
    value_tile,
)

# Half a unit in the last place of float32.
ROUNDING = 2.0**-24

(_R0, _V0), (_R1, _V1), (_R2, _V2), (_R3, _V3) = ((SHAPES[0],) * (4 - len(SHAPES))) + SHAPES


@kernel_function()
def _tile_rows(row, rows):
    """Rows of the tile that starts at ``row``: as many as are left allow."""
    left = rows - row
    if left >= _R0:
        return _R0
    if left >= _R1:
        return _R1
    if left >= _R2:
        return _R2
    return _R3


@kernel_function()
def _tile_width(height):
    """Examples of a tile of this height."""
    if height == _R0:
        return _V0 * LANES
    if height == _R1:
        return _V1 * LANES
    if height == _R2:
        return _V2 * LANES
    return _V3 * LANES


@kernel_function()
def pack(weights, rows, columns, out):
    """``(rows, columns)`` into tiles: the rows of a tile lie beside each other."""
    row = 0
    while row < rows:
        height = _tile_rows(row, rows)
        for k in range(columns):
            for r in range(height):
                out[row * columns + k * height + r] = weights[(row + r) * columns + k]
        row += height


@kernel_function()
def pack_pairs(weights, rows, columns, out):
    """The same as pairs of bfloat16 in 32-bit words; the weights are representable."""
    bits = weights.view(np.uint32)
    steps = (columns + 1) // 2
    row = 0
    while row < rows:
        height = _tile_rows(row, rows)
        for k in range(steps):
            for r in range(height):
                at = (row + r) * columns + 2 * k
                word = bits[at] >> np.uint32(16)
                if 2 * k + 1 < columns:
                    word |= bits[at + 1] & np.uint32(0xFFFF0000)
                out[row * steps + k * height + r] = np.int32(word)
        row += height


@kernel_function()
def tabulate(weights, rows, columns, levels, tiled, out):
    """Tables of sixteen sums, one for each code of a group of inputs, rounded once.

    A group is four inputs of two levels or two of up to four. ``tiled`` lays them out as
    ``(tile, group, row of the tile, 16)``, otherwise ``(row, group, 16)``.
    """
    bits = 1 if len(levels) == 2 else 2
    together = 4 // bits
    groups = (columns + together - 1) // together
    pattern = np.empty((together, 16))
    for j in range(together):
        for entry in range(16):
            code = (entry >> (bits * j)) & (2**bits - 1)
            pattern[j, entry] = levels[min(code, len(levels) - 1)]
    sums = np.empty(16)
    row = 0
    while row < rows:
        height = _tile_rows(row, rows) if tiled else 1
        for r in range(height):
            for g in range(groups):
                sums[:] = 0.0
                for j in range(together):
                    k = g * together + j
                    if k < columns:
                        weight = np.float64(weights[(row + r) * columns + k])
                        for entry in range(16):
                            sums[entry] += weight * pattern[j, entry]
                at = row * groups * 16 + (g * height + r) * 16
                for entry in range(16):
                    out[at + entry] = sums[entry]
        row += height


@kernel_function()
def largest_norms(weights, rows, columns):
    """The largest Euclidean norm and the largest sum of magnitudes of a row."""
    largest_square, largest_sum = np.float32(0.0), np.float32(0.0)
    for row in range(rows):
        square, magnitude = np.float32(0.0), np.float32(0.0)
        for k in range(columns):
            w = weights[row * columns + k]
            square += w * w
            magnitude += abs(w)
        largest_square = max(largest_square, square)
        largest_sum = max(largest_sum, magnitude)
    return np.sqrt(largest_square), largest_sum


@kernel_function()
def _find_near(scratch, size, width, column, edges, thresholds, radius, norms, norms_at, hits):
    """Which of a tile's pre-activations lie within reach of a threshold; how many."""
    found = 0
    for index in range(size):
        reach = radius * norms[norms_at + column + index % width]
        for t in range(thresholds):
            if abs(scratch[index] - edges[t]) <= reach:
                hits[found] = index
                found += 1
                break
    return found


@kernel_function()
def _exact_sum(weights, weights_at, inputs, inputs_at, depth, lane):
    total = 0.0
    for k in range(depth):
        weight = np.float64(weights[weights_at + k])
        total += weight * np.float64(inputs[inputs_at + k * BLOCK + lane])
    return total


@kernel_function()
def _exact_sum_of_codes(weights, weights_at, codes, codes_at, depth, lane, bits, levels):
    total = 0.0
    for k in range(depth):
        word = codes[codes_at + (k * bits // 32) * BLOCK + lane]
        code = (word >> ((k * bits) % 32)) & (2**bits - 1)
        total += np.float64(weights[weights_at + k]) * levels[code]
    return total


@kernel_function()
def _code(z, edges, thresholds):
    code = 0
    for t in range(thresholds):
        if z >= edges[t]:
            code += 1
    return code


@kernel_function()
def _set_code(codes, codes_at, row, lane, bits, code):
    at, shift = codes_at + (row * bits // 32) * BLOCK + lane, (row * bits) % 32
    mask = np.uint32(2**bits - 1) << np.uint32(shift)
    word = np.uint32(codes[at])
    codes[at] = np.int32((word & ~mask) | (np.uint32(code) << np.uint32(shift)))


class Compiled(NamedTuple):
    """What is compiled for one number of thresholds, with or without tables of codes."""

    prepare: Any
    hidden_layers: Any
    outputs_of_codes: Any
    outputs_of_values: Any
    evaluate: Any


@functools.cache
def compiled(thresholds, tables, pairs=0):
    """The functions for activations of so many thresholds, with or without tables of codes.

    With ``pairs`` the first layer multiplies bfloat16. Compiled when first called, then cached on
    disk.
    """
    bits = 1 if thresholds == 1 else 2
    together = 4 // bits
    source = FROM_PAIRS if pairs else FROM_VALUES

    @kernel_function(thresholds, tables, pairs)
    def value_layer(
        packed, packed_at, factors, factors_at, steps, weights, weights_at, inputs, inputs_at,
        columns, rows, edges, exact_edges, levels, radius, norms, norms_at, scratch, hits, codes,
        hidden, out_at,
    ):  # fmt: skip
        """Values ``(columns, 128)`` to codes or to values; how many were settled.

        ``factors`` are the inputs as the tile takes them, in ``steps`` steps.
        """
        settled, row = 0, 0
        while row < rows:
            height = _tile_rows(row, rows)
            width = _tile_width(height)
            at = packed_at + row * steps
            for column in range(0, BLOCK, width):
                if tables:
                    near = code_tile(
                        thresholds, source, height, packed, at, factors, factors_at + column, steps,
                        edges, radius, norms, norms_at + column, scratch, codes,
                        out_at + (row * bits // 32) * BLOCK + column, np.int32((row * bits) % 32),
                    )  # fmt: skip
                else:
                    near = value_tile(
                        thresholds, height, packed, at, factors, factors_at + column, steps,
                        edges, levels, radius, norms, norms_at + column, scratch, hidden,
                        out_at + row * BLOCK + column,
                    )  # fmt: skip
                if near:
                    found = _find_near(
                        scratch,
                        height * width,
                        width,
                        column,
                        edges,
                        thresholds,
                        radius,
                        norms,
                        norms_at,
                        hits,
                    )
                    settled += found
                    for index in range(found):
                        r, lane = row + hits[index] // width, column + hits[index] % width
                        where = weights_at + r * columns
                        z = _exact_sum(weights, where, inputs, inputs_at, columns, lane)
                        if tables:
                            _set_code(
                                codes, out_at, r, lane, bits, _code(z, exact_edges, thresholds)
                            )
                        else:
                            hidden[out_at + r * BLOCK + lane] = levels[
                                _code(z, exact_edges, thresholds)
                            ]
            row += height
        return settled

    @kernel_function(thresholds, tables, pairs)
    def code_layer(
        table, table_at, weights, weights_at, codes, in_at, out_at, rows, edges, exact_edges,
        levels, radius, norms, scratch, hits,
    ):  # fmt: skip
        """Codes to codes; how many were settled."""
        settled, row = 0, 0
        groups = (rows + together - 1) // together
        while row < rows:
            height = _tile_rows(row, rows)
            width = _tile_width(height)
            at = table_at + row * groups * 16
            for column in range(0, BLOCK, width):
                near = code_tile(
                    thresholds, FROM_CODES, height, table, at, codes, in_at + column, groups,
                    edges, radius, norms, 0, scratch, codes,
                    out_at + (row * bits // 32) * BLOCK + column, np.int32((row * bits) % 32),
                )  # fmt: skip
                if near:
                    found = _find_near(
                        scratch,
                        height * width,
                        width,
                        column,
                        edges,
                        thresholds,
                        radius,
                        norms,
                        0,
                        hits,
                    )
                    settled += found
                    for index in range(found):
                        r, lane = row + hits[index] // width, column + hits[index] % width
                        where = weights_at + r * rows
                        z = _exact_sum_of_codes(
                            weights, where, codes, in_at, rows, lane, bits, levels
                        )
                        _set_code(codes, out_at, r, lane, bits, _code(z, exact_edges, thresholds))
            row += height
        return settled

    @kernel_function(thresholds, tables, pairs)
    def outputs_of_codes(table, table_at, codes, codes_at, columns, outputs, y):
        groups = (columns + together - 1) // together
        for j in range(outputs):
            at = table_at + j * groups * 16
            for column in range(0, BLOCK, 16):
                output_tile(table, at, codes, codes_at + column, groups, y, j * BLOCK + column)

    if not tables:
        # Never called, but compiled: without the instructions that this processor may not have.
        @kernel_function(thresholds, tables, pairs)
        def code_layer(
            table, table_at, weights, weights_at, codes, in_at, out_at, rows, edges, exact_edges,
            levels, radius, norms, scratch, hits,
        ):  # fmt: skip
            return 0

        @kernel_function(thresholds, tables, pairs)
        def outputs_of_codes(table, table_at, codes, codes_at, columns, outputs, y):
            return

    @kernel_function(thresholds, tables, pairs)
    def outputs_of_values(weights, weights_at, hidden, hidden_at, columns, outputs, y):
        for j in range(outputs):
            for lane in range(BLOCK):
                y[j * BLOCK + lane] = 0.0
            for k in range(columns):
                weight = np.float64(weights[weights_at + j * columns + k])
                at = hidden_at + k * BLOCK
                for lane in range(BLOCK):
                    y[j * BLOCK + lane] += weight * np.float64(hidden[at + lane])

    @kernel_function(thresholds, tables, pairs)
    def hidden_layers(
        packed, packed_at, stride, weights, weights_at, sizes, edges, exact_edges, levels, radius,
        radius_at, ones, scratch, hits, codes, hidden, half, begin,
    ):  # fmt: skip
        """The hidden layers from ``begin`` ≥ 1 on; where the last activations lie, and settled."""
        columns, rows, depth, _ = sizes
        at, other, settled = 0, half, 0
        weights_at += columns * rows + (begin - 1) * rows * rows
        packed_at += (begin - 1) * stride
        for layer in range(begin, depth):
            if tables:
                settled += code_layer(
                    packed, packed_at, weights, weights_at, codes, at, other, rows, edges,
                    exact_edges, levels, radius[radius_at + layer], ones, scratch, hits,
                )  # fmt: skip
            else:
                settled += value_layer(
                    packed, packed_at, hidden, at, rows, weights, weights_at, hidden, at, rows,
                    rows, edges,
                    exact_edges, levels, radius[radius_at + layer], ones, 0, scratch, hits, codes,
                    hidden, other,
                )  # fmt: skip
            at, other = other, at
            weights_at += rows * rows
            packed_at += stride
        return at, settled

    @kernel_function(thresholds, tables, pairs)
    def prepare(weights, exact, sizes, binary, levels, front, packed, head, radius):
        """Weights in the order of the tiles, tables, and how far rounding reaches."""
        columns, rows, depth, width = sizes
        groups = (rows + together - 1) // together
        first, hidden_size = columns * rows, rows * rows
        output_at = first + (depth - 1) * hidden_size
        stride = rows * groups * 16 if tables else hidden_size
        for member in range(weights.shape[0]):
            w, here = weights[member], packed[member]
            if pairs:
                pack_pairs(w[:first], rows, columns, front[member])
            else:
                pack(w[:first], rows, columns, front[member])
            longest, _ = largest_norms(w[:first], rows, columns)
            radius[member, 0] = longest * np.float32((columns + 4) * ROUNDING)
            for layer in range(1, depth):
                part = w[first + (layer - 1) * hidden_size :][:hidden_size]
                room = here[(layer - 1) * stride :][:stride]
                _, magnitude = largest_norms(part, rows, rows)
                magnitude *= np.float32(max(abs(levels[0]), abs(levels[-1])))
                if tables:
                    tabulate(part, rows, rows, levels, True, room)
                    radius[member, layer] = magnitude * np.float32((groups + 3) * ROUNDING)
                else:
                    pack(part, rows, rows, room)
                    radius[member, layer] = magnitude * np.float32((rows + 3) * ROUNDING)
                if binary and thresholds == 1:
                    radius[member, layer] = -1.0  # sums of ±1 are exact, and zero is common
            if tables:
                tabulate(exact[member, output_at:], width, rows, levels, False, head[member])

    @kernel_function(thresholds, tables, pairs)
    def walk(
        inputs, norms, targets, labels, factors, exact, sizes, edges, exact_edges, levels, kind,
        examples, out, settled, outputs, front, packed, head, radius, codes, hidden, floats, hits,
        doubles, every,
    ):  # fmt: skip
        """Every block of examples, every member, every layer."""
        blocks, members = norms.shape[0], exact.shape[0]
        columns, rows, depth, width = sizes
        groups = (rows + together - 1) // together
        output_at = columns * rows + (depth - 1) * rows * rows
        stride = rows * groups * 16 if tables else rows * rows
        half = ((rows * bits + 31) // 32) * BLOCK if tables else rows * BLOCK
        ones, scratch = pointer(floats[0]), pointer(floats[1])
        y, origin = pointer(doubles[0]), pointer(doubles[1])
        x, goals, lengths = pointer(inputs), pointer(targets), pointer(norms)
        answers, results = pointer(labels), pointer(outputs)
        flat_codes, flat_hidden, flat_packed = pointer(codes), pointer(hidden), pointer(packed)
        flat_exact, flat_head, flat_every = pointer(exact), pointer(head), pointer(every)
        flat_radius, near = pointer(radius), pointer(hits)
        edge, exact_edge, level = pointer(edges), pointer(exact_edges), pointer(levels)
        steps, flat_factors, flat_front = factors.shape[1], pointer(factors), pointer(front)
        number = every.shape[2]  # codes of a whole layer, where they are few; otherwise 0
        for member in range(members if number else 0):
            for start in range(0, number, BLOCK):
                for lane in range(BLOCK):
                    flat_codes[lane] = np.int32(start + lane)
                at, more = hidden_layers(
                    flat_packed, member * packed.shape[1], stride, flat_exact,
                    member * exact.shape[1], sizes, edge, exact_edge, level, flat_radius,
                    member * depth, ones, scratch, near, flat_codes, flat_hidden, half, 1,
                )  # fmt: skip
                settled[member] += more
                outputs_of_codes(flat_head, member * head.shape[1], flat_codes, at, rows, width, y)
                for j in range(width):
                    for lane in range(BLOCK):
                        every[member, j, start + lane] = y[j * BLOCK + lane]
        for block in range(blocks):
            here = min(BLOCK, examples - block * BLOCK)
            for member in range(members):
                exact_at, packed_at = member * exact.shape[1], member * packed.shape[1]
                found = value_layer(
                    flat_front, member * front.shape[1], flat_factors, block * steps * BLOCK, steps,
                    flat_exact, exact_at, x, block * columns * BLOCK, columns, rows, edge,
                    exact_edge, level, radius[member, 0], lengths, block * BLOCK, scratch, near,
                    flat_codes, flat_hidden, 0,
                )  # fmt: skip
                if number:
                    for j in range(width):
                        begin = (member * width + j) * number
                        for lane in range(BLOCK):
                            y[j * BLOCK + lane] = flat_every[begin + flat_codes[lane]]
                else:
                    at, more = hidden_layers(
                        flat_packed, packed_at, stride, flat_exact, exact_at, sizes, edge,
                        exact_edge, level, flat_radius, member * depth, ones, scratch, near,
                        flat_codes, flat_hidden, half, 1,
                    )  # fmt: skip
                    found += more
                    if tables:
                        outputs_of_codes(
                            flat_head, member * head.shape[1], flat_codes, at, rows, width, y
                        )
                    else:
                        outputs_of_values(
                            flat_exact, exact_at + output_at, flat_hidden, at, rows, width, y
                        )
                settled[member] += found
                out[member] += account(
                    kind, member, y, origin, goals, answers, results, width, block, here, examples
                )

    @kernel_function(thresholds, tables, pairs)
    def evaluate(
        inputs, norms, targets, labels, factors, front, weights, exact, sizes, binary, edges,
        exact_edges, levels, kind, examples, out, settled, outputs,
    ):  # fmt: skip
        """Sums of losses of the members of one chunk; see :mod:`gradlab.evaluation.fused`.

        inputs ``(blocks, columns, 128)``, norms ``(blocks, 128)``, targets ``(blocks, m, 128)``
        float64, labels ``(blocks, 128)``; factors are the inputs, or pairs of them as bfloat16
        ``(blocks, columns / 2, 128)``, and front has room for the first layer's weights in the same
        form, ``(P, …)``; weights ``(P, d)`` float32, what is evaluated fast, and
        exact ``(P, d)`` what it stands for; sizes (inputs, rows, depth, outputs); out and settled
        ``(P,)``; outputs ``(P, B, m)``.
        """
        members = weights.shape[0]
        _, rows, depth, width = sizes
        groups = (rows + together - 1) // together
        held = max(1, (depth - 1) * (rows * groups * 16 if tables else rows * rows))
        packed = aligned32(members * held).reshape(members, held)
        head_size = width * groups * 16 if tables else 1
        head = aligned64(members * head_size).reshape(members, head_size)
        radius = np.empty((members, depth), np.float32)
        prepare(weights, exact, sizes, binary, levels, front, packed, head, radius)
        codes = aligned32i(2 * ((rows * bits + 31) // 32) * BLOCK)
        hidden = aligned32(1 if tables else 2 * rows * BLOCK)
        floats = aligned32(2 * 1024).reshape(2, 1024)
        floats[0] = 1.0
        doubles = aligned64(2 * width * BLOCK).reshape(2, width * BLOCK)
        few = tables and depth > 0 and rows * bits <= 8
        number = max(2 ** (rows * bits), BLOCK) if few else 0
        every = np.empty((members, width, number))
        walk(
            inputs, norms, targets, labels, factors, exact, sizes, edges, exact_edges, levels, kind,
            examples, out, settled, outputs, front, packed, head, radius, codes, hidden, floats,
            np.empty(1024, np.int64), doubles, every,
        )  # fmt: skip

    return Compiled(prepare, hidden_layers, outputs_of_codes, outputs_of_values, evaluate)
