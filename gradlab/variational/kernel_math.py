"""What the compiled loops over weights share: logarithm, exponential, and what arrays they take.

Both are polynomials, good to a few units in the last place of float32, so that a compiler can make
vector instructions of a loop with them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab._kernels import kernel_function
from gradlab.evaluation.compiled.noise import _bits, _float
from gradlab.evaluation.noise import LN2_HIGH, LN2_LOW, LOG, SQRT_HALF_BITS

f32, i32 = np.float32, np.int32
# Sums may be reordered, which vectors need, and products fused into sums. NaN and ∞ stay.
compiled = kernel_function(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})

# Weights whose factors, each between 1 and 2, are multiplied before one logarithm is taken.
FACTORS = 96
LARGEST = f32(87.0)  # of exponents; e^87 is as good as infinite
_EXP2 = tuple(f32(math.log(2) ** n / math.factorial(n)) for n in range(7))


@compiled
def exponential(x: Any) -> Any:
    """Of |x| ≤ 87."""
    scaled = x * f32(1 / math.log(2))
    whole = i32(scaled + f32(256.5)) - i32(256)
    rest = scaled - f32(whole)
    series = _EXP2[6]
    series = series * rest + _EXP2[5]
    series = series * rest + _EXP2[4]
    series = series * rest + _EXP2[3]
    series = series * rest + _EXP2[2]
    series = series * rest + _EXP2[1]
    series = series * rest + _EXP2[0]
    return _float(i32(_bits(series) + (whole << i32(23))))


@compiled
def clipped_exponential(x: Any) -> Any:
    """Of any number, NaN included; as if ``x`` were between -87 and 87."""
    held = LARGEST if x > LARGEST else x
    held = -LARGEST if held < -LARGEST else held
    found = exponential(held)
    return found if x == x else x


@compiled
def logarithm(x: Any) -> Any:
    """Of normal positive numbers, ∞ and NaN."""
    bits = _bits(x)
    exponent = i32(i32(bits - i32(SQRT_HALF_BITS)) >> i32(23))
    rest = _float(i32(bits - (exponent << i32(23)))) - f32(1.0)
    series = f32(LOG[7])
    series = series * rest + f32(LOG[6])
    series = series * rest + f32(LOG[5])
    series = series * rest + f32(LOG[4])
    series = series * rest + f32(LOG[3])
    series = series * rest + f32(LOG[2])
    series = series * rest + f32(LOG[1])
    series = series * rest + f32(LOG[0])
    scale, square = f32(exponent), rest * rest
    tail = square * rest * series + scale * f32(LN2_LOW)
    found = scale * f32(LN2_HIGH) + (rest + (tail - f32(0.5) * square))
    return found if x < f32(np.inf) else x  # NaN too


def arrays(*tensors: Tensor) -> list[Any]:
    """Flat NumPy views of what :func:`serves`."""
    return [tensor.detach().reshape(-1).numpy() for tensor in tensors]


class Kept:
    """What a gradient needs, for graphs that are walked once from each of their two outputs.

    Torch frees what it saved after the first walk, from a loss, say, and refuses the second, from
    a divergence. Like torch, this refuses what has changed since.
    """

    def __init__(self, *tensors: Tensor | None) -> None:
        self._tensors = tensors
        self._versions = self._now()

    def _now(self) -> list[int | None]:
        return [None if t is None else t._version for t in self._tensors]

    def tensors(self) -> tuple[Any, ...]:
        """As they were given.

        Raises:
            RuntimeError: one of them has been changed in place.
        """
        if self._now() != self._versions:
            raise RuntimeError(
                "a parameter of a stochastic layer has been changed in place between the forward "
                "and the backward pass: call backward before the optimizer's step."
            )
        return self._tensors


def serves(*tensors: Tensor) -> bool:
    """Whether compiled loops take these: float32 on a processor, in one piece, not traced."""
    return (
        all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous()
            for t in tensors)
        and not torch.compiler.is_compiling()
    )  # fmt: skip
