"""The compiled sparse flips of :mod:`gradlab.evaluation.coordinates`.

A block of 128 examples runs forward once. Then, for every neuron and threshold, the examples whose
pre-activation a step could carry across the threshold are gathered, their next pre-activations are
corrected by one column of weights, and 128 such candidates at a time go through the remaining
layers as a block of the population evaluator does. What a crossing changes is added to every weight
of the neuron whose step crosses.
"""

from __future__ import annotations

import functools

import numpy as np

from gradlab._kernels import kernel_function
from gradlab.evaluation.compiled import mlp as kernel
from gradlab.evaluation.compiled.mlp import _tile_rows, _tile_width, pack
from gradlab.evaluation.compiled.parts import (
    aligned32,
    aligned32i,
    aligned64,
    cross_entropy,
)
from gradlab.evaluation.compiled.tiles import (
    BLOCK,
    add_crossings,
    moved_signs,
    pointer,
    value_tile,
)


@kernel_function()
def _raw_layer(packed, packed_at, inputs, columns, rows, none, scratch, z):
    """Pre-activations ``(rows, 128)`` of values ``(columns, 128)``."""
    row = 0
    while row < rows:
        height = _tile_rows(row, rows)
        width = _tile_width(height)
        for column in range(0, BLOCK, width):
            value_tile(
                -1, height, packed, packed_at + row * columns, inputs, column, columns, none, none,
                np.float32(0.0), none, 0, scratch, z, row * BLOCK + column,
            )  # fmt: skip
        row += height


@kernel_function()
def _transpose(values, rows, width, out):
    """``(rows, 128)`` to ``(128, width)``; what pads a row stays as it is."""
    for row in range(rows):
        for lane in range(BLOCK):
            out[lane * width + row] = values[row * BLOCK + lane]


@kernel_function()
def _largest(values, rows, out):
    """A hair more than the largest magnitude of every example."""
    for lane in range(BLOCK):
        out[lane] = np.float32(0.0)
    for row in range(rows):
        for lane in range(BLOCK):
            magnitude = abs(values[row * BLOCK + lane])
            out[lane] = magnitude if magnitude > out[lane] else out[lane]
    for lane in range(BLOCK):
        out[lane] *= np.float32(1.00001)


@functools.cache
def compiled(thresholds, tables):
    """Sums of loss differences for activations of so many thresholds."""
    functions = kernel.compiled(thresholds, tables)
    hidden_layers, prepare = functions.hidden_layers, functions.prepare
    outputs_of_codes, outputs_of_values = functions.outputs_of_codes, functions.outputs_of_values
    bits = 1 if thresholds == 1 else 2

    @kernel_function(thresholds, tables)
    def _activate(z, size, edges, levels, values):
        if thresholds == 1:
            low, high, edge = np.float32(levels[0]), np.float32(levels[1]), edges[0]
            for index in range(size):
                values[index] = high if z[index] >= edge else low
        else:
            for index in range(size):
                code = 0
                for t in range(thresholds):
                    code += z[index] >= edges[t]
                values[index] = levels[code]

    @kernel_function(thresholds, tables)
    def next_codes(z, at, column, column_at, change, rows, edges, levels, lane, codes, hidden):
        """Activations behind next pre-activations moved by ``change`` times a column."""
        if tables and thresholds == 1:
            for word in range((rows + 31) // 32):
                left, first = rows - 32 * word, 32 * word
                valid = np.int32(-1) if left >= 32 else np.int32((1 << left) - 1)
                codes[word * BLOCK + lane] = moved_signs(
                    z, at + first, column, column_at + first, change, valid
                )
        elif tables:
            for word in range((rows * bits + 31) // 32):
                packed = np.uint32(0)
                first = word * 32 // bits
                for r in range(min(32 // bits, rows - first)):
                    moved = z[at + first + r] + change * column[column_at + first + r]
                    code = np.uint32(moved >= edges[0])
                    for t in range(1, thresholds):
                        code += np.uint32(moved >= edges[t])
                    packed |= code << np.uint32(r * bits)
                codes[word * BLOCK + lane] = np.int32(packed)
        else:
            for r in range(rows):
                moved = z[at + r] + change * column[column_at + r]
                code = 0
                for t in range(thresholds):
                    code += moved >= edges[t]
                hidden[r * BLOCK + lane] = levels[code]

    @kernel_function(thresholds, tables)
    def output_error(base, targets, values, rows, width, here, out):
        """Σ error · activation of every output weight."""
        for j in range(width):
            for k in range(rows):
                total = 0.0
                for lane in range(here):
                    error = base[j * BLOCK + lane] - targets[j, lane]
                    total += error * np.float64(values[k * BLOCK + lane])
                out[j, k] += total

    @kernel_function(thresholds, tables)
    def output_entropy(base, labels, values, rows, width, here, epsilon, out):
        """Σ ℓ(w + ε) - ℓ(w - ε) of every output weight, as in ``coordinates``."""
        for lane in range(here):
            largest, total = base[lane], 0.0
            for j in range(1, width):
                largest = max(largest, base[j * BLOCK + lane])
            for j in range(width):
                total += np.exp(base[j * BLOCK + lane] - largest)
            for j in range(width):
                share = np.exp(base[j * BLOCK + lane] - largest) / total
                own = 2.0 * epsilon if labels[lane] == j else 0.0
                previous, change = np.float32(np.nan), 0.0
                for k in range(rows):
                    value = values[k * BLOCK + lane]
                    if value != previous:  # most neighbours have the same level
                        step = epsilon * np.float64(value)
                        change = np.log1p(share * np.expm1(step))
                        change -= np.log1p(share * np.expm1(-step))
                        change -= own * np.float64(value)
                        previous = value
                    out[j, k] += change

    @kernel_function(thresholds, tables)
    def flush(layer, count, block, sizes, padded, entropy, network, work, batch, found_here, moves):
        """Carry the gathered candidates to the loss and add what their crossings change."""
        packed, head, radius, exact, edges, exact_edges, levels, stride, half = network
        codes, hidden, floats, hits, y = work
        targets, labels, base, base_losses, z, x_rows = batch
        lanes, neurons, signs, steps = found_here
        ups, downs, out = moves
        columns, rows, depth, width = sizes
        if layer < depth - 1:
            at, _ = hidden_layers(
                pointer(packed), 0, stride, pointer(exact), 0, sizes, pointer(edges),
                pointer(exact_edges), pointer(levels), pointer(radius), 0, pointer(floats[0]),
                pointer(floats[1]), pointer(hits), pointer(codes), pointer(hidden), half, layer + 2,
            )  # fmt: skip
            if tables:
                outputs_of_codes(pointer(head), 0, pointer(codes), at, rows, width, pointer(y))
            else:
                output_at = columns * rows + (depth - 1) * rows * rows
                outputs_of_values(
                    pointer(exact), output_at, pointer(hidden), at, rows, width, pointer(y)
                )
        for index in range(count):
            lane, neuron = lanes[index], neurons[index]
            change = 0.0
            if entropy:
                label = labels[block, lane]
                change = cross_entropy(pointer(y), label, index, width) - base_losses[lane]
            else:
                for j in range(width):
                    after, before = y[j * BLOCK + index], base[j * BLOCK + lane]
                    both = after + before - 2.0 * targets[block, j, lane]
                    change += (after - before) * both
            add_crossings(
                z[layer, neuron * BLOCK + lane], edges[steps[index]], pointer(x_rows[layer]),
                lane * padded, pointer(ups), pointer(downs), (layer * rows + neuron) * padded,
                padded, signs[index] * change, pointer(out),
            )  # fmt: skip

    @kernel_function(thresholds, tables)
    def differences(
        inputs, norms, targets, labels, weights, exact, sizes, binary, edges, exact_edges, levels,
        entropy, examples, ups, downs, first_neuron, last_neuron, epsilon, out, head_out,
    ):  # fmt: skip
        """Σ over examples of ℓ(w + up) - ℓ(w + down) for neurons of a range, in every layer.

        ups, downs and out ``(depth, rows, padded)``: float32 steps, float64 sums. head_out
        ``(outputs, rows)`` is that of the output layer; filled by whoever has the first neuron.
        """
        columns, rows, depth, width = sizes
        padded = ups.shape[2]
        groups = (rows + (4 // bits) - 1) // (4 // bits)
        stride = rows * groups * 16 if tables else rows * rows
        held = max(1, (depth - 1) * stride)
        packed = aligned32(held).reshape(1, held)
        front = aligned32(columns * rows).reshape(1, columns * rows)
        head_size = width * groups * 16 if tables else 1
        head = aligned64(head_size).reshape(1, head_size)
        radius = np.empty((1, depth), np.float32)
        prepare(weights, exact, sizes, binary, levels, front, packed, head, radius)
        # Plain weights for the forward pass, and their columns for the corrections.
        plain = aligned32(columns * rows + (depth - 1) * rows * rows)
        turned = aligned32(max(1, depth - 1) * rows * padded)
        begin = 0
        for layer in range(depth):
            size = rows * (columns if layer == 0 else rows)
            pack(weights[0, begin:], rows, columns if layer == 0 else rows, plain[begin:])
            for row in range(rows if layer else 0):
                for k in range(rows):
                    place = ((layer - 1) * rows + k) * padded + row
                    turned[place] = weights[0, begin + row * rows + k]
            begin += size
        output_at = begin
        z = aligned32(depth * rows * BLOCK).reshape(depth, rows * BLOCK)
        values = aligned32(depth * rows * BLOCK).reshape(depth, rows * BLOCK)
        z_rows = aligned32(depth * BLOCK * padded).reshape(depth, BLOCK * padded)
        x_rows = aligned32(depth * BLOCK * padded).reshape(depth, BLOCK * padded)
        half = ((rows * bits + 31) // 32) * BLOCK if tables else rows * BLOCK
        codes = aligned32i(2 * half if tables else 1)
        hidden = aligned32(1 if tables else 2 * half)
        floats = aligned32(2 * 1024).reshape(2, 1024)
        floats[0] = 1.0
        hits = np.empty(1024, np.int64)
        y, base = np.empty(width * BLOCK), np.empty(width * BLOCK)
        base_losses, largest = np.empty(BLOCK), np.empty(BLOCK, np.float32)
        near = np.empty(BLOCK, np.int64)
        lanes, neurons = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
        signs, steps = np.empty(BLOCK), np.empty(BLOCK, np.int64)
        edge32, level = pointer(edges), pointer(levels)
        flat_codes, flat_hidden, flat_turned = pointer(codes), pointer(hidden), pointer(turned)
        ones, scratch = pointer(floats[0]), pointer(floats[1])
        network = (packed, head, radius, exact, edges, exact_edges, levels, stride, half)
        work = (codes, hidden, floats, hits, y)
        batch = (targets, labels, base, base_losses, z, x_rows)
        found_here = (lanes, neurons, signs, steps)
        moves = (ups, downs, out)
        for block in range(inputs.shape[0]):
            here = min(BLOCK, examples - block * BLOCK)
            begin = 0
            for layer in range(depth):
                source = inputs[block].reshape(-1) if layer == 0 else values[layer - 1]
                wide = columns if layer == 0 else rows
                _raw_layer(
                    pointer(plain), begin, pointer(source), wide, rows, ones, scratch,
                    pointer(z[layer]),
                )  # fmt: skip
                begin += rows * wide
                _activate(pointer(z[layer]), rows * BLOCK, edge32, level, pointer(values[layer]))
                if layer:  # the first layer's are never corrected
                    _transpose(z[layer], rows, padded, z_rows[layer])
                _transpose(source, wide, padded, x_rows[layer])
            outputs_of_values(
                pointer(exact), output_at, pointer(values[depth - 1]), 0, rows, width, pointer(base)
            )
            for lane in range(here if entropy else 0):
                base_losses[lane] = cross_entropy(pointer(base), labels[block, lane], lane, width)
            if first_neuron == 0:
                last_values = pointer(values[depth - 1])
                if entropy:
                    output_entropy(
                        base, labels[block], last_values, rows, width, here, epsilon, head_out
                    )
                else:
                    output_error(base, targets[block], last_values, rows, width, here, head_out)
            for layer in range(depth):
                wide = columns if layer == 0 else rows
                source = inputs[block].reshape(-1) if layer == 0 else values[layer - 1]
                _largest(pointer(source), wide, pointer(largest))
                count = 0
                for neuron in range(first_neuron, last_neuron):
                    reach = np.float32(0.0)
                    for j in range(wide):
                        reach = max(reach, abs(ups[layer, neuron, j]))
                        reach = max(reach, abs(downs[layer, neuron, j]))
                    for t in range(0 if reach == 0.0 else thresholds):
                        found = 0
                        for lane in range(here):
                            near[found] = lane
                            distance = abs(z[layer, neuron * BLOCK + lane] - edges[t])
                            found += distance <= reach * largest[lane]
                        # Both levels beside the threshold but the present one: of two, the other.
                        for item in range(found if thresholds == 1 else 2 * found):
                            lane, side = near[item // (1 if thresholds == 1 else 2)], item % 2
                            value = values[layer, neuron * BLOCK + lane]
                            if thresholds == 1:
                                side = np.int64(z[layer, neuron * BLOCK + lane] < edges[0])
                            change = np.float32(levels[t + side]) - value
                            if change == 0.0:
                                continue
                            lanes[count], neurons[count], steps[count] = lane, neuron, t
                            signs[count] = 2.0 * side - 1.0
                            if layer == depth - 1:
                                for j in range(width):
                                    weight = exact[0, output_at + j * rows + neuron]
                                    moved = base[j * BLOCK + lane] + weight * np.float64(change)
                                    y[j * BLOCK + count] = moved
                            else:
                                next_codes(
                                    pointer(z_rows[layer + 1]), lane * padded, flat_turned,
                                    (layer * rows + neuron) * padded, change, rows, edge32, level,
                                    count, flat_codes, flat_hidden,
                                )  # fmt: skip
                            count += 1
                            if count == BLOCK:
                                flush(
                                    layer, count, block, sizes, padded, entropy, network, work,
                                    batch, found_here, moves,
                                )  # fmt: skip
                                count = 0
                if count:
                    flush(
                        layer, count, block, sizes, padded, entropy, network, work, batch,
                        found_here, moves,
                    )  # fmt: skip

    return differences
