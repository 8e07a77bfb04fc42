"""The clock by which studies time estimates."""

from __future__ import annotations

import time

import torch


def now() -> float:
    """Seconds, taken once the GPU, if this process uses one, has done what was asked of it.

    >>> now() <= now()
    True
    """
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()
