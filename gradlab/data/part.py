"""What a reader returns, before it is split and moved to a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a set as its files have it.

    Attributes:
        images: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64.
        classes: the names of the classes.
        files: by path, the SHA-256 of every file read and how it was verified.
        names: ``(N,)``, the names of the images, where the set has any.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    files: dict[str, dict[str, Any]]
    names: NDArray[np.str_] | None = None
