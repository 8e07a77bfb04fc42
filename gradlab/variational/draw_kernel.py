r"""A draw of outputs and its derivative, in one pass over them.

For :math:`y = m + \sqrt{v}\,\varepsilon` with ε given, one loop computes y and
:math:`\partial y / \partial v = \varepsilon / (2\sqrt{v})`, so that backpropagation is one product.
Variances below the smallest normal number count as that number, and have the derivative 0: some
algorithms for convolutions return sums of squares that are a little negative, and an infinite
derivative times 0 is NaN.

>>> mean, variance = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 0.0])
>>> noise = torch.tensor([0.5, 1.0])
>>> draw(mean, variance, noise).tolist(), noise.tolist()
([2.0, 2.0], [0.125, 0.0])
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.variational.draws import in_order_of_memory
from gradlab.variational.kernel_math import compiled, f32

_SMALLEST = f32(np.finfo(np.float32).tiny)


@compiled
def _draw(mean: Any, variance: Any, noise: Any, out: Any) -> None:
    """The draw is written to ``out``; ``noise`` becomes its derivative by the variance."""
    for i in range(mean.size):
        still = variance[i] < _SMALLEST
        deviation = np.sqrt(_SMALLEST if still else variance[i])
        out[i] = mean[i] + deviation * noise[i]
        noise[i] = f32(0.0) if still else f32(0.5) * noise[i] / deviation


def draw(mean: Tensor, variance: Tensor, noise: Tensor) -> Tensor:
    """A draw; ``noise`` is overwritten with its derivative by the variance.

    All are of one shape and one order in memory, without gaps, float32 on a processor.
    """
    out = torch.empty_like(mean)  # of the same strides, as they are dense
    _draw(*[in_order_of_memory(t.detach()).numpy() for t in (mean, variance, noise, out)])
    return out
