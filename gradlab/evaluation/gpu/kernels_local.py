# Kernels are written in Triton's language, not in Python: its tuples take no unpacking, its values
# have no types that mypy knows.
# ruff: noqa: RUF005
# mypy: ignore-errors
"""Triton kernel of :func:`gradlab.evaluation.gpu.local_nes_gradient`, where the reasons stand."""

from __future__ import annotations

import triton
import triton.language as tl

from gradlab.evaluation.gpu.kernels_mlp import matrix_of, product, split
from gradlab.evaluation.gpu.kernels_noise import four_columns, four_normals, polynomial

# (1 - Phi(t)) / phi(t) = u (c0 + c1 u + ...) with u = 1 / (1 + 0.4 t), t >= 0: the Chebyshev
# interpolant, rounded to float32 (relative error 4e-7)
_MILLS: tl.constexpr = tl.constexpr((
    0.3999999165534973, 0.4000200629234314, 0.3352820873260498, 0.21799033880233765,
    -0.023724861443042755, 0.195334792137146, -0.7846084237098694, 0.823431134223938,
    -0.37768375873565674, 0.06727282702922821,
))  # fmt: skip
_ROOT_HALF: tl.constexpr = tl.constexpr(0.7071067811865476)
_DENSITY_AT_0: tl.constexpr = tl.constexpr(0.3989422804014327)


@triton.jit
def density(t):
    """The standard normal density."""
    return _DENSITY_AT_0 * tl.exp(-0.5 * t * t)


@triton.jit
def hazard(t):
    """``phi(t) / (1 - Phi(t))``, with all its digits in the upper tail, where both vanish."""
    u = 1.0 / (1.0 + 0.4 * tl.abs(t))
    mills = u * polynomial(_MILLS, 10, u)
    here = density(t)
    return tl.where(t >= 0.0, 1.0 / mills, here / (1.0 - here * mills))


@triton.jit
def hazard_kernel(t_ptr, out_ptr, size, block: tl.constexpr):
    """Elementwise :func:`hazard`, for its test."""
    place = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out_ptr + place, hazard(tl.load(t_ptr + place, place < size, 0.0)), place < size)


@triton.jit
def _layer(hidden, hidden_parts: tl.constexpr, weight, tile: tl.constexpr, k: tl.constexpr):
    return product(hidden, hidden_parts, weight, 3, tl.zeros((tile, k), tl.float32))


@triton.jit
def _head(z, output, spread, target, offset):
    """The last hidden layer in closed form: its scaled and expected outputs, error and loss."""
    scaled = z / spread[:, None]
    mean = tl.math.erf(scaled * _ROOT_HALF)
    error = tl.sum(mean * output, axis=1) - target
    variance = tl.sum((1.0 - mean * mean) * (output * output), axis=1) + offset
    return scaled, mean, error, error * error + variance


@triton.jit
def _sign(z):
    return tl.where(z >= 0.0, 1.0, -1.0)


@triton.jit(do_not_specialize=["key_0", "key_1", "first", "examples", "passes"])
def local_nes_kernel(
    inputs_ptr, targets_ptr, weights_ptr, partial_ptr,
    sigma, width_spread, output_variance, key_0, key_1, first, examples, passes,
    num_inputs: tl.constexpr, num_dim: tl.constexpr, depth: tl.constexpr,
    k_in: tl.constexpr, k: tl.constexpr, antithetic: tl.constexpr, noise_free: tl.constexpr,
    half: tl.constexpr, tile: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    """Gradients of one program's examples, summed over passes, ``partial`` (programs, weights).

    ``width_spread`` is sigma √num_dim, ``output_variance`` sigma² num_dim, ``first`` the index of
    the first example in its noise. Layers are 0 … depth - 2, sampled, the last hidden layer and the
    output layer, both in closed form.
    """
    first_size: tl.constexpr = num_dim * num_inputs
    hidden_size: tl.constexpr = num_dim * num_dim
    head_offset: tl.constexpr = first_size + (depth - 1) * hidden_size
    last_parts: tl.constexpr = 3 if depth == 1 else 1
    weights = (split(tl.trans(matrix_of(weights_ptr, num_dim, num_inputs, k, k_in)), 3, half),)
    totals = (tl.zeros((k, k_in), tl.float32),)
    for layer in tl.static_range(depth - 1):
        place = weights_ptr + first_size + layer * hidden_size
        weights = weights + (split(tl.trans(matrix_of(place, num_dim, num_dim, k, k)), 3, half),)
        totals = totals + (tl.zeros((k, k), tl.float32),)
    output = matrix_of(weights_ptr + head_offset, 1, num_dim, 1, k)
    head_total = tl.zeros((k,), tl.float32)

    begin = tl.program_id(0) * tiles
    for index in range(begin, tl.minimum(begin + tiles, tl.cdiv(examples, tile))):
        example = index * tile + tl.arange(0, tile)
        inside = example < examples
        x = tl.load(inputs_ptr + example[:, None] * k_in + tl.arange(0, k_in)[None, :])
        x_parts = split(x, 3, half)
        target = tl.load(targets_ptr + example)
        x_spread = sigma * tl.maximum(tl.sqrt_rn(tl.sum(x * x, axis=1)), 1e-12)
        constant = tl.zeros((tile,), tl.float32) + width_spread
        base = tl.zeros((tile,), tl.float32)
        if noise_free:
            calm = x_parts
            for layer in tl.static_range(depth - 1):
                z_0 = _layer(calm, 3 if layer == 0 else 1, weights[layer], tile, k)
                calm = (_sign(z_0).to(half),)
            z_1 = _layer(calm, last_parts, weights[depth - 1], tile, k)
            spread_0 = x_spread if depth == 1 else constant
            _s, _m, _e, base = _head(z_1, output, spread_0, target, output_variance)
        for number in range(0, passes):
            pair = number + index * 0
            if antithetic:
                pair = pair // 2
            hidden = x_parts
            seen, scores = (), ()
            for layer in tl.static_range(depth - 1):
                spread = x_spread if layer == 0 else constant
                mean = _layer(hidden, 3 if layer == 0 else 1, weights[layer], tile, k)
                block = tl.zeros((tile, 1), tl.int32) + tl.arange(0, k // 4)[None, :]
                drawn = four_columns(four_normals(
                    block, (first + example).to(tl.uint32)[:, None], pair.to(tl.uint32),
                    pair * 0 + 1 + layer, key_0, key_1,
                ))  # fmt: skip
                if antithetic:
                    drawn = tl.where(pair * 2 == number, drawn, -drawn)
                sample = _sign(mean + spread[:, None] * drawn)
                score = sample * hazard(-sample * mean / spread[:, None]) / spread[:, None]
                seen, scores = seen + (hidden,), scores + (score,)
                hidden = (sample.to(half),)
            spread_1 = x_spread if depth == 1 else constant
            z_2 = _layer(hidden, last_parts, weights[depth - 1], tile, k)
            scaled, expected, error, loss = _head(z_2, output, spread_1, target, output_variance)
            # pathwise: derivatives of error² + Σ (1 - m²) v² in m and v
            error = tl.where(inside, error, 0.0)
            slope = 2.0 * error[:, None] * output - 2.0 * expected * (output * output)
            slope = slope * 2.0 * density(scaled) / spread_1[:, None]
            slope = tl.where(inside[:, None], slope, 0.0)
            by_output = error[:, None] * expected + output * (1.0 - expected * expected)
            by_output = tl.where(inside[:, None], by_output, 0.0)
            head_total += 2.0 * tl.sum(by_output, axis=0)
            reward = tl.where(inside, loss - base, 0.0)
            grown = ()
            for layer in tl.static_range(depth - 1):
                factor = split(tl.trans(scores[layer] * reward[:, None]), 3, half)
                grown = grown + (
                    product(factor, 3, seen[layer], 3 if layer == 0 else 1, totals[layer]),
                )
            factor_1 = split(tl.trans(slope), 3, half)
            grown = grown + (product(factor_1, 3, hidden, last_parts, totals[depth - 1]),)
            totals = grown

    start = partial_ptr + tl.program_id(0).to(tl.int64) * (head_offset + num_dim)
    neuron = tl.arange(0, k)[:, None]
    column = tl.arange(0, k_in)[None, :]
    inside_first = (neuron < num_dim) & (column < num_inputs)
    tl.store(start + neuron * num_inputs + column, totals[0], inside_first)
    other = tl.arange(0, k)[None, :]
    for layer in tl.static_range(depth - 1):
        place_of = start + first_size + layer * hidden_size + neuron * num_dim + other
        tl.store(place_of, totals[layer + 1], (neuron < num_dim) & (other < num_dim))
    tl.store(start + head_offset + tl.arange(0, k), head_total, tl.arange(0, k) < num_dim)
