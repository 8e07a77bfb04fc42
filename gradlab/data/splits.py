"""Seeded, stratified splits that keep identical images together.

The order of the images within a class comes from the raw 64-bit words of a
:class:`numpy.random.PCG64` seeded by :class:`numpy.random.SeedSequence`, a stream that NumPy
guarantees; its shuffling functions may change between versions, and a split must not.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

TEST = 0  # streams: the two splits of one seed are independent
VALIDATION = 1


def held_out(
    labels: NDArray[np.int64],
    fraction: float,
    seed: int,
    stream: int,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The images of a stratified random part.

    Each class gives ``fraction`` of its images, rounded to a whole number. Images of one group go
    together; where a group spans classes, its first image's class gives it.

    Args:
        labels: ``(N,)``, the class of each image.
        fraction: between 0 and 1.
        seed: at least 0.
        stream: ``TEST`` or ``VALIDATION``.
        groups: ``(N,)``, equal numbers for images that must stay together.

    Returns:
        Sorted indices, int64.

    Raises:
        ValueError: a class would have no image on one side.

    >>> held_out(np.repeat([0, 1], 5), 0.2, seed=0, stream=TEST).tolist()
    [2, 8]
    """
    if groups is None:
        groups = np.arange(len(labels))
    _, first, unit, size = np.unique(
        groups, return_index=True, return_inverse=True, return_counts=True
    )
    taken = np.zeros(len(first), dtype=bool)
    for label in np.unique(labels):
        count = int((labels == label).sum())
        wanted = math.floor(fraction * count + 0.5)
        if not 0 < wanted < count:
            raise ValueError(
                f"a part of {fraction:g} is {wanted} of the {count} images of class {label}, and "
                "each side needs at least one: choose another fraction."
            )
        candidates = np.flatnonzero(labels[first] == label)
        sequence = np.random.SeedSequence(seed, spawn_key=(stream, int(label)))
        keys = np.random.PCG64(sequence).random_raw(len(candidates))
        for candidate in candidates[np.argsort(keys, kind="stable")]:
            if size[candidate] <= wanted:
                taken[candidate] = True
                wanted -= size[candidate]
            if not wanted:
                break
    return np.flatnonzero(taken[unit])


def identical(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Numbers that are equal where images are, byte for byte: the first such image's index.

    >>> identical(np.array([[1, 2], [3, 4], [1, 2]], np.uint8)).tolist()
    [0, 1, 0]
    """
    seen: dict[bytes, int] = {}
    return np.array(
        [
            seen.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
            for index, image in enumerate(images)
        ],
        dtype=np.int64,
    )


def joined(groups: NDArray[np.int64], members: NDArray[np.int64]) -> NDArray[np.int64]:
    """``groups`` with all groups of the images ``members`` made one.

    >>> joined(np.array([0, 1, 0, 3]), np.array([1, 2])).tolist()
    [0, 0, 0, 3]
    """
    if len(members) == 0:
        return groups
    together = groups[members]
    return np.where(np.isin(groups, together), together.min(), groups)


def fingerprint(indices: NDArray[np.int64]) -> str:
    """SHA-256 of sorted indices, as little-endian 64-bit numbers.

    >>> fingerprint(np.array([0, 1]))[:8]
    '9d34149f'
    """
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
