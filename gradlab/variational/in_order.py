"""Layers whose sums are taken one product after the other, in the order of the inputs.

A library's matrix product adds in blocks, so that a removed zero moves the others to another block
and changes the rounding. Here each output starts at its bias and adds weight times input in
ascending order of the inputs, every product and every sum rounded once: adding a product with a
zero weight then changes no bit of a finite sum (the sum is never −0, for it starts at no −0 and a
cancellation gives +0), and leaving it out neither.

Examples lie beside each other in memory, ``(units, examples)``, and are what vector instructions
run over. Numba neither reorders sums nor fuses products into them unless it is told to. An element
is computed by the same instructions in every row, whichever rows there are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradlab._kernels import kernel_function

kernel = kernel_function()

_EXAMPLES = 128  # side by side: a sum of them stays in the first-level cache


def _weighted_sums(
    values: Any, lengths: Any, columns: Any, column_starts: Any, bias: Any, x: Any, out: Any
) -> None:
    """``out[r, e] = bias[r] + Σ_k values[r, k] · x[columns[r, k], e]``, in order of k.

    Args:
        values: of all rows one after the other, float32.
        lengths: of each row, int64.
        columns: which input a value belongs to, int32.
        column_starts: where a row's columns begin, int64; rows may share them.
        bias: ``(rows,)`` float32, without −0.
        x: ``(inputs, examples)`` float32.
        out: ``(rows, examples)`` float32.
    """
    examples = x.shape[1]
    for start in range(0, examples, _EXAMPLES):
        stop, at = min(start + _EXAMPLES, examples), 0
        for row in range(out.shape[0]):
            y = out[row, start:stop]
            y[:] = bias[row]
            place, left = column_starts[row], lengths[row]
            # four at a time, so that sums are loaded and stored a quarter as often
            while left >= 4:
                w0, w1, w2, w3 = values[at], values[at + 1], values[at + 2], values[at + 3]
                x0, x1 = x[columns[place], start:stop], x[columns[place + 1], start:stop]
                x2, x3 = x[columns[place + 2], start:stop], x[columns[place + 3], start:stop]
                for e in range(len(y)):
                    y[e] = (((y[e] + w0 * x0[e]) + w1 * x1[e]) + w2 * x2[e]) + w3 * x3[e]
                at, place, left = at + 4, place + 4, left - 4
            while left > 0:
                weight, inputs = values[at], x[columns[place], start:stop]
                for e in range(len(y)):
                    y[e] += weight * inputs[e]
                at, place, left = at + 1, place + 1, left - 1


def _relu(x: Any) -> None:
    """In place, ``(units, examples)``; NaN stays."""
    for row in range(x.shape[0]):
        for e in range(x.shape[1]):
            x[row, e] = np.float32(0.0) if x[row, e] <= 0 else x[row, e]


def _tanh(x: Any) -> None:
    """In place; by float64, so that it is as good as correctly rounded."""
    for row in range(x.shape[0]):
        for e in range(x.shape[1]):
            x[row, e] = math.tanh(np.float64(x[row, e]))


def _softplus(x: Any, beta: float, threshold: float) -> None:
    """In place: ln(1 + exp(beta x))/beta, and x where beta x exceeds the threshold."""
    for row in range(x.shape[0]):
        for e in range(x.shape[1]):
            z = beta * np.float64(x[row, e])
            if not z > threshold:
                x[row, e] = math.log1p(math.exp(z)) / beta


weighted_sums = kernel(_weighted_sums)
relu = kernel(_relu)
tanh = kernel(_tanh)
softplus = kernel(_softplus)
