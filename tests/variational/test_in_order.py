"""The kernels: rounded like a loop over float32 numbers, and blind to zero weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradlab.variational import in_order

Floats = NDArray[np.float32]


def sums(weight: Floats, bias: Floats, x: Floats) -> Floats:
    """The kernel on a whole matrix."""
    rows, inputs = weight.shape
    out = np.empty((rows, x.shape[1]), np.float32)
    columns, starts = np.arange(inputs, dtype=np.int32), np.zeros(rows, np.int64)
    lengths = np.full(rows, inputs, np.int64)
    in_order.weighted_sums(weight.reshape(-1), lengths, columns, starts, bias, x, out)
    return out


def sparse_sums(weight: Floats, kept: NDArray[np.bool_], bias: Floats, x: Floats) -> Floats:
    """The kernel on the weights that are kept alone."""
    lengths = kept.sum(1).astype(np.int64)
    starts, columns = np.cumsum(lengths) - lengths, kept.nonzero()[1].astype(np.int32)
    out = np.empty((len(weight), x.shape[1]), np.float32)
    in_order.weighted_sums(weight[kept], lengths, columns, starts, bias, x, out)
    return out


def numbers(generator: np.random.Generator, *shape: int) -> Floats:
    """Normal ones, exact cancellations, zeros of both signs, subnormal and large ones."""
    values = generator.standard_normal(shape) * 10.0 ** generator.integers(-3, 4, shape)
    special = np.array([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-42, 1e15, -1e15])
    chosen = np.where(generator.random(shape) < 0.3, generator.choice(special, shape), values)
    return chosen.astype(np.float32)


@given(st.integers(1, 6), st.integers(0, 11), st.integers(1, 300), st.integers(0, 999))
def test_products_and_sums_are_rounded_one_after_the_other(
    rows: int, inputs: int, examples: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    weight, bias = numbers(generator, rows, inputs), numbers(generator, rows) + np.float32(0)
    x = numbers(generator, inputs, examples)
    expected = np.repeat(bias[:, None], examples, 1)
    for k in range(inputs):
        # NumPy rounds the product before it adds: a fused multiply-add would differ
        expected = expected + weight[:, k, None] * x[k]
    np.testing.assert_array_equal(sums(weight, bias, x).view(np.int32), expected.view(np.int32))


@given(
    st.integers(1, 6), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 999)
)
def test_zero_weights_change_no_bit(
    rows: int, inputs: int, examples: int, density: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    kept = generator.random((rows, inputs)) < density
    weight = np.where(kept, numbers(generator, rows, inputs), np.float32(0))
    bias, x = numbers(generator, rows) + np.float32(0), numbers(generator, inputs, examples)
    whole, left = sums(weight, bias, x), sparse_sums(weight, kept, bias, x)
    np.testing.assert_array_equal(whole.view(np.int32), left.view(np.int32))


def test_sums_in_blocks_round_differently() -> None:
    """What the kernel is there for: a library's sum over the same numbers has other bits."""
    generator = np.random.default_rng(0)
    weight, x = (generator.standard_normal(s).astype(np.float32) for s in ((50, 784), (784, 64)))
    assert (sums(weight, np.zeros(50, np.float32), x) != weight @ x).mean() > 0.1


def test_no_multiply_add_is_fused() -> None:
    """(1 + 2⁻¹²)² needs 25 bits: fused, what is left of it minus 1 + 2⁻¹¹ is 2⁻²⁴, rounded 0."""
    near = np.float32(1 + 2**-12)
    bias = np.array([-(1 + 2**-11)], np.float32)
    for inputs in range(1, 9):  # with four at a time and the rest
        weight, x = np.zeros((1, inputs), np.float32), np.zeros((inputs, 200), np.float32)
        weight[0, -1], x[-1] = near, near
        assert not sums(weight, bias, x).any()


@pytest.mark.parametrize("examples", [1, 7, 16, 130])
def test_activations_are_those_of_float64_rounded(examples: int) -> None:
    generator = np.random.default_rng(0)
    x = (8 * generator.standard_normal((5, examples))).astype(np.float32)
    x[0, 0], x[-1, -1] = np.nan, -0.0
    x[2] = [30, -30, 200, -200, 0.5, 1e-30][:examples] if examples < 7 else 20
    wide = x.astype(np.float64)
    one, two = np.minimum(wide, 20), np.minimum(2 * wide, 5)
    for name, options, expected in (
        ("relu", (), np.maximum(wide, 0)),
        ("tanh", (), np.tanh(wide)),
        ("softplus", (1.0, 20.0), np.where(wide > 20, wide, np.log1p(np.exp(one)))),
        ("softplus", (2.0, 5.0), np.where(2 * wide > 5, wide, np.log1p(np.exp(two)) / 2)),
    ):
        found = x.copy()
        getattr(in_order, name)(found, *options)
        np.testing.assert_array_max_ulp(
            found[~np.isnan(x)], expected.astype(np.float32)[~np.isnan(x)], 1
        )
        assert math.isnan(found[0, 0])


@pytest.mark.parametrize("name", ["relu", "tanh", "softplus"])
def test_a_unit_does_not_depend_on_its_neighbours(name: str) -> None:
    x = (3 * np.random.default_rng(0).standard_normal((9, 37))).astype(np.float32)
    options = (1.0, 20.0) if name == "softplus" else ()
    whole = x.copy()
    getattr(in_order, name)(whole, *options)
    some = np.ascontiguousarray(x[[1, 4, 8]])
    getattr(in_order, name)(some, *options)
    np.testing.assert_array_equal(whole[[1, 4, 8]].view(np.int32), some.view(np.int32))
