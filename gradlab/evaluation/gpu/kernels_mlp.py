# Kernels are written in Triton's language, not in Python: its tuples take no unpacking, its values
# have no types that mypy knows.
# ruff: noqa: RUF005, SIM108
# mypy: ignore-errors
"""Triton kernel of :func:`gradlab.evaluation.gpu.mlp_losses`, where the reasons stand.

Matrices are padded to powers of two of at least 16, ``k`` wide for neurons and ``k_in`` for inputs,
with zeros in the padding. Weights lie as (inputs, outputs), so that a layer is ``examples @
weights``. A factor of a product is a tuple of parts whose sum it is: three bfloat16 numbers hold a
float32 exactly, one holds it rounded. ``half`` is the type of a part: bfloat16, or float32 where
the interpreter stands in for a GPU, since it multiplies bfloat16 as if its bits were whole numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gradlab.evaluation.gpu.kernels_noise import member, noise_matrix


@triton.jit
def nearest_half(x):
    """x, finite, rounded to the eight significant bits of bfloat16, halves to even."""
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def split(x, parts: tl.constexpr, half: tl.constexpr):
    """One or three parts of x."""
    first = nearest_half(x)
    found = (first.to(half),)
    if parts == 3:
        second = nearest_half(x - first)
        # 24 bits less the leading eight, less eight more: what is left is exact
        found = found + (second.to(half), (x - first - second).to(half))
    return found


@triton.jit
def product(left, left_parts: tl.constexpr, right, right_parts: tl.constexpr, total):
    """``total + left @ right``, the smallest terms first and without those below 2^-24."""
    for order in tl.static_range(3):
        for i in tl.static_range(left_parts):
            for j in tl.static_range(right_parts):
                if i + j == 2 - order:
                    total = tl.dot(left[i], right[j], total, input_precision="ieee")
    return total


@triton.jit
def _activate(z, steps: tl.constexpr, coded: tl.constexpr):
    """Codes of the activation: ±1 (steps -1), the clip itself (0), or the thresholds reached.

    Where the input was codes as well, ``coded``, z is ``steps`` times the pre-activation.
    """
    if steps < 0:
        out = tl.where(z >= 0.0, 1.0, -1.0)
    elif steps == 0:
        out = tl.where(z < 0.0, 0.0, tl.where(z > 1.0, 1.0, z))
    else:
        out = tl.zeros_like(z)
        for level in tl.static_range(steps):
            if coded:
                out += tl.where(z >= level + 0.5, 1.0, 0.0)
            else:
                out += tl.where(z >= (level + 0.5) / steps, 1.0, 0.0)
    return out


@triton.jit
def matrix_of(ptr, rows: tl.constexpr, columns: tl.constexpr, n: tl.constexpr, k: tl.constexpr):
    """A weight ``(rows, columns)`` in ``(n, k)``, zero beyond it."""
    row = tl.arange(0, n)[:, None]
    column = tl.arange(0, k)[None, :]
    return tl.load(ptr + row * columns + column, (row < rows) & (column < columns), 0.0)


@triton.jit
def _signs(w, rows: tl.constexpr, columns: tl.constexpr, n: tl.constexpr, k: tl.constexpr):
    inside = (tl.arange(0, n)[:, None] < rows) & (tl.arange(0, k)[None, :] < columns)
    return tl.where(inside, tl.where(w >= 0.0, 1.0, -1.0), 0.0)


@triton.jit
def _stored_parts(ptr, n: tl.constexpr, k: tl.constexpr, parts: tl.constexpr):
    place = tl.arange(0, n)[:, None] * k + tl.arange(0, k)[None, :]
    found = ()
    for part in tl.static_range(parts):
        found = found + (tl.load(ptr + part * n * k + place),)
    return found


@triton.jit
def _drawn_layer(
    weights_ptr, offset: tl.constexpr, rows: tl.constexpr, columns: tl.constexpr,
    n: tl.constexpr, k: tl.constexpr, binary: tl.constexpr, twins: tl.constexpr,
    parts: tl.constexpr, half: tl.constexpr, sigma, low, high, key_0, key_1,
):  # fmt: skip
    """The parts of mean ± sigma noise, transposed, one tuple for each twin."""
    mean = matrix_of(weights_ptr + offset, rows, columns, n, k)
    moved = sigma * noise_matrix(offset, rows, columns, n, k, low, high, key_0, key_1)
    found = ()
    for twin in tl.static_range(twins):
        w = mean + moved if twin == 0 else mean - moved
        if binary:
            w = _signs(w, rows, columns, n, k)
        found = found + (split(tl.trans(w), parts, half),)
    return found


@triton.jit(do_not_specialize=["key_0", "key_1", "low", "high", "units", "batch", "again"])
def losses_kernel(
    inputs_ptr, base_ptr, targets_ptr, weights_ptr, heads_ptr, losses_ptr,
    sigma, key_0, key_1, low, high, units, batch, again,
    num_inputs: tl.constexpr, num_dim: tl.constexpr, num_outputs: tl.constexpr,
    depth: tl.constexpr, k_in: tl.constexpr, k: tl.constexpr, k_out: tl.constexpr,
    steps: tl.constexpr, binary: tl.constexpr, drawn: tl.constexpr, twins: tl.constexpr,
    shared: tl.constexpr, streamed: tl.constexpr, entropy: tl.constexpr, parts: tl.constexpr,
    half: tl.constexpr, group: tl.constexpr, tile: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    """Summed losses of ``group`` units on ``tiles`` tiles of examples, (chunks, members) float64.

    A unit is a member, or with ``twins`` 2 a mirrored pair. ``drawn`` members are the mean
    ``weights`` plus sigma times noise; others are read: ``weights`` holds the parts of the hidden
    layers and ``heads`` the output layers. With ``shared`` the first layer of a pair is ``base ±
    sigma (x @ noise)``, base being x @ mean. ``streamed`` members are read anew for every tile:
    ``again``, which is zero, keeps the compiler from reading them once and for all, into more
    shared memory than there is. Losses are cross-entropies with ``entropy``, else squared errors,
    for which ``targets`` is (batch, k_out); ``k_out`` 1 means a single output.
    """
    weight_parts: tl.constexpr = 1 if binary else parts
    code_parts: tl.constexpr = 3 if steps == 0 else 1
    first_size: tl.constexpr = k_in * k * weight_parts
    hidden_size: tl.constexpr = k * k * weight_parts
    member_size: tl.constexpr = first_size + (depth - 1) * hidden_size
    head_offset: tl.constexpr = num_dim * num_inputs + (depth - 1) * num_dim * num_dim

    # Everything that belongs to a member is made once and stays in shared memory.
    firsts, hiddens, heads, sums = (), (), (), ()
    for g in tl.static_range(group):
        # a unit beyond the last repeats it; its sums are not stored
        unit = tl.minimum(tl.program_id(0) * group + g, units - 1)
        layers = ()
        if drawn:
            own, upper = member(low, high, unit)
            if shared:
                drawing = noise_matrix(0, num_dim, num_inputs, k, k_in, own, upper, key_0, key_1)
                firsts = firsts + ((split(tl.trans(drawing), weight_parts, half),),)
            else:
                firsts = firsts + (_drawn_layer(
                    weights_ptr, 0, num_dim, num_inputs, k, k_in,
                    binary, twins, weight_parts, half, sigma, own, upper, key_0, key_1,
                ),)  # fmt: skip
            for layer in tl.static_range(depth - 1):
                layers = layers + (_drawn_layer(
                    weights_ptr, num_dim * num_inputs + layer * num_dim * num_dim, num_dim, num_dim,
                    k, k, binary, twins, weight_parts, half, sigma, own, upper, key_0, key_1,
                ),)  # fmt: skip
            mean = matrix_of(weights_ptr + head_offset, num_outputs, num_dim, k_out, k)
            step = sigma * noise_matrix(
                head_offset, num_outputs, num_dim, k_out, k, own, upper, key_0, key_1
            )
            heads = heads + ((mean + step, mean - step),)
        else:
            place = heads_ptr + unit.to(tl.int64) * num_outputs * num_dim
            heads = heads + ((matrix_of(place, num_outputs, num_dim, k_out, k),),)
            if not streamed:
                start = weights_ptr + unit.to(tl.int64) * member_size
                firsts = firsts + ((_stored_parts(start, k_in, k, weight_parts),),)
                for layer in tl.static_range(depth - 1):
                    place = start + first_size + layer * hidden_size
                    layers = layers + ((_stored_parts(place, k, k, weight_parts),),)
        hiddens = hiddens + (layers,)
        for _ in tl.static_range(twins):
            sums = sums + (tl.zeros((tile,), tl.float64),)

    begin = tl.program_id(1) * tiles
    neuron = tl.arange(0, k)[None, :]
    column = tl.arange(0, k_in)[None, :]
    for index in range(begin, tl.minimum(begin + tiles, tl.cdiv(batch, tile))):
        example = index * tile + tl.arange(0, tile)
        row = example[:, None].to(tl.int64)
        x = split(tl.load(inputs_ptr + row * k_in + column), 3, half)
        if entropy or k_out == 1:
            target = tl.load(targets_ptr + example)
        else:
            target = tl.load(targets_ptr + row * k_out + tl.arange(0, k_out)[None, :])
        if shared:
            base = tl.load(base_ptr + row * k + neuron)
        new_sums = ()
        for g in tl.static_range(group):
            if shared:
                moved = tl.zeros((tile, k), tl.float32)
                moved = sigma * product(x, 3, firsts[g][0], weight_parts, moved)
            for twin in tl.static_range(twins):
                if streamed:
                    owner = tl.minimum(tl.program_id(0) * group + g, units - 1)
                    stored = weights_ptr + owner.to(tl.int64) * member_size + index * again
                if shared:
                    z = base + moved if twin == 0 else base - moved
                else:
                    if streamed:
                        matrix = _stored_parts(stored, k_in, k, weight_parts)
                    else:
                        matrix = firsts[g][twin]
                    z = product(x, 3, matrix, weight_parts, tl.zeros((tile, k), tl.float32))
                hidden = _activate(z, steps, False)
                for layer in tl.static_range(depth - 1):
                    if streamed:
                        matrix = _stored_parts(
                            stored + first_size + layer * hidden_size, k, k, weight_parts
                        )
                    else:
                        matrix = hiddens[g][layer][twin]
                    codes = codes_of(hidden, code_parts, half)
                    z = tl.zeros((tile, k), tl.float32)
                    z = product(codes, code_parts, matrix, weight_parts, z)
                    hidden = _activate(z, steps, steps > 0)
                loss = _loss(
                    hidden, heads[g][twin], target,
                    num_outputs, k_out, steps, entropy, tile, half,
                )  # fmt: skip
                loss = tl.where(example < batch, loss, 0.0)
                new_sums = new_sums + (sums[g * twins + twin] + loss,)
        sums = new_sums

    for g in tl.static_range(group):
        unit = tl.program_id(0) * group + g
        for twin in tl.static_range(twins):
            place = tl.program_id(1).to(tl.int64) * units * twins + unit * twins + twin
            tl.store(losses_ptr + place, tl.sum(sums[g * twins + twin], axis=0), unit < units)


@triton.jit
def codes_of(hidden, parts: tl.constexpr, half: tl.constexpr):
    """A layer's output as a factor: codes are small whole numbers, one part holds them."""
    if parts == 1:
        found = (hidden.to(half),)
    else:
        found = split(hidden, 3, half)
    return found


@triton.jit
def _loss(
    hidden, head, target, num_outputs: tl.constexpr, k_out: tl.constexpr,
    steps: tl.constexpr, entropy: tl.constexpr, tile: tl.constexpr, half: tl.constexpr,
):  # fmt: skip
    """Loss of every example, float64, from the last codes and the output layer's weights."""
    level: tl.constexpr = 1.0 if steps < 1 else 1.0 / steps
    if k_out == 1:
        error = (tl.sum(hidden * head, axis=1) * level - target).to(tl.float64)
        loss = error * error
    else:
        parts: tl.constexpr = 3 if steps == 0 else 1
        output = tl.zeros((tile, k_out), tl.float32)
        codes = codes_of(hidden, parts, half)
        output = product(codes, parts, split(tl.trans(head), 3, half), 3, output) * level
        neuron = tl.arange(0, k_out)[None, :]
        if entropy:
            chosen = tl.sum(tl.where(neuron == target[:, None], output, 0.0), axis=1)
            output = tl.where(neuron < num_outputs, output, float("-inf"))
            top = tl.max(output, axis=1)
            total = tl.sum(tl.exp(output - top[:, None]), axis=1)
            loss = (tl.log(total) + (top - chosen)).to(tl.float64)
        else:
            error = output - target  # zero in the padding
            loss = tl.sum(error * error, axis=1).to(tl.float64) / num_outputs
    return loss
