"""Loads a set: checksums first, then the split, then the device."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradlab._registry import unknown
from gradlab.data import cifar, idx, uc_merced
from gradlab.data.dataset import Dataset
from gradlab.data.files import data_root
from gradlab.data.part import Part
from gradlab.data.sets import find
from gradlab.data.splits import TEST, VALIDATION, fingerprint, held_out, identical, joined

SPLITS = ("train", "validation", "test")
_TEST_FRACTION = 0.2  # where a set has no official split
_READERS = {"idx": idx.read, "cifar": cifar.read, "uc_merced": uc_merced.read}


def load(
    name: str,
    split: str = "train",
    *,
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    validation: float = 0.0,
    seed: int = 0,
) -> Dataset:
    """A split of a set, whole, as bytes on ``device``.

    Only the files that the split needs must be there; nothing is downloaded. UC Merced has no
    official split: a fifth of each class is its test set, chosen by ``seed``. Images that are
    identical, byte for byte, never lie on both sides of a split made here.

    Args:
        name: one of :func:`gradlab.data.names`.
        split: ``train``, ``validation`` or ``test``.
        root: the data folder; ``None`` for ``$GRADLAB_DATA``, or else the user's cache folder.
        device: where the tensors go.
        validation: the fraction of each class of the training set that is set aside; ``train`` is
            then the rest.
        seed: chooses the validation set, and UC Merced's test set.

    Returns:
        The set; its ``record`` holds the checksums of the files read, and the SHA-256 of the
        sorted indices of the split, counted in the order of the files.

    Raises:
        ValueError: an argument is wrong, or a file is missing, damaged or another one (a
            :class:`DataError`); one sentence with the fix.
    """
    info = find(name)
    if split not in SPLITS:
        raise ValueError(unknown("split", split, SPLITS))
    _check_split(split, validation, seed)
    place = _device(device)
    folder = data_root(root)
    official = "test" if split == "test" else "train"
    part = _READERS[info.format](info, official, folder)
    record: dict[str, Any] = {"set": name, "split": split, "files": part.files}
    indices = np.arange(len(part.labels))
    if info.format == "uc_merced":
        record |= {"seed": int(seed), "test_fraction": _TEST_FRACTION}
        test = held_out(part.labels, _TEST_FRACTION, seed, TEST, _groups(part))
        indices = test if split == "test" else np.setdiff1d(indices, test)
    if validation > 0 and split != "test":
        record |= {"seed": int(seed), "validation": float(validation)}
        indices = _with_validation(part, indices, split, validation, seed)
    record |= {"size": len(indices), "indices_sha256": fingerprint(indices)}
    images, labels = part.images, part.labels
    if len(indices) < len(labels):
        images, labels = images[indices], labels[indices]
    return Dataset(
        name=name,
        split=split,
        images=_tensor(images, place),
        labels=_tensor(labels, place),
        classes=part.classes,
        mean=info.mean,
        std=info.std,
        record=record,
    )


def _check_split(split: str, validation: float, seed: int) -> None:
    number = isinstance(validation, (int, float)) and not isinstance(validation, bool)
    if not number or not math.isfinite(validation) or not 0 <= validation < 1:
        raise ValueError(f"validation is {validation!r}: give a fraction of the training set, "
                         "from 0 to below 1.")  # fmt: skip
    if split == "validation" and validation == 0:
        raise ValueError("the validation split is empty: give validation=0.1, for example.")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed is {seed!r}: give a whole number of at least 0.")


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}: give cpu, or cuda where there is a GPU.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, and torch sees no GPU here: give cpu.")
    return place


def _tensor(array: NDArray[Any], place: torch.device) -> torch.Tensor:
    # An array over a file's bytes cannot be written to, and a tensor can.
    ours = np.ascontiguousarray(array) if array.flags.writeable else array.copy()
    return torch.from_numpy(ours).to(place)


def _groups(part: Part) -> NDArray[np.int64]:
    """Which images must stay together: identical ones, and those known to be."""
    groups = identical(part.images)
    if part.names is None:
        return groups
    return joined(groups, np.flatnonzero(np.isin(part.names, uc_merced.IDENTICAL)))


def _with_validation(
    part: Part, train: NDArray[np.int64], split: str, fraction: float, seed: int
) -> NDArray[np.int64]:
    """Those of the training images that ``split`` is made of."""
    chosen = held_out(part.labels[train], fraction, seed, VALIDATION, _groups(part)[train])
    return train[chosen] if split == "validation" else np.delete(train, chosen)
