"""Images to classify, from picture files or arrays, as the network's data set would give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradlab.data import Dataset
from gradlab.training.files import FileProblem

ARRAYS = (".npy", ".npz")
_KEY = "images"


@dataclass(frozen=True)
class Images:
    """Images and where each comes from.

    Attributes:
        data: ready for :func:`gradlab.training.predict`; the labels mean nothing.
        sources: file of each image.
        indices: place of each image in its file.
    """

    data: Dataset
    sources: list[str]
    indices: list[int]


def read_images(paths: list[Path], facts: Mapping[str, Any]) -> Images:
    """The images of some files, with the normalization that a network was trained with.

    A picture (PNG, JPEG and whatever else Pillow reads) is turned to grey or colour as the network
    needs it, and never resized. An array in a ``.npy`` file, or called ``images`` or alone in a
    ``.npz`` file, has bytes of shape (N, H, W), (N, H, W, C) or (N, C, H, W), or one image of
    shape (H, W), (H, W, C) or (C, H, W). Pickles are not read.

    Args:
        paths: the files.
        facts: of the weights, see :mod:`gradlab.training.weights`.

    Raises:
        FileProblem: a file that is missing or none of these, images of another type or size, or
            weights that do not say what they were trained on.
    """
    try:
        known = facts["data"]
        shape: tuple[int, int, int] = tuple(known["image_shape"])
        classes, mean, std = (tuple(known[key]) for key in ("classes", "mean", "std"))
    except (KeyError, TypeError):
        raise FileProblem("the weights do not say what images they were trained on: use a file "
                          "that `gradlab train` or `gradlab compress` made.") from None  # fmt: skip
    parts: list[NDArray[np.uint8]] = []
    sources: list[str] = []
    indices: list[int] = []
    for path in paths:
        array = _read(path, shape)
        parts.append(array)
        sources += [str(path)] * len(array)
        indices += range(len(array))
    pixels = torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)))
    labels = torch.zeros(len(pixels), dtype=torch.int64)
    data = Dataset(str(known["name"]), "given", pixels, labels, classes, mean, std, {})
    return Images(data, sources, indices)


def _read(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """``(N, C, H, W)`` of one file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileProblem(f"{path} {what}: give a picture, or a .npy or .npz file of images.")
    if path.suffix.lower() in ARRAYS:
        return _arranged(_array(path), shape, path)
    return _picture(path, shape)


def _picture(path: Path, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            size = opened.size
            if size != (width, height):
                raise FileProblem(f"{path} has {size[1]} × {size[0]} pixels, and the network takes "
                                  f"{height} × {width}: crop or resize it first.")  # fmt: skip
            pixels = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)
        raise FileProblem(f"{path} is no picture that can be read ({reason.rstrip('.')}): give a "
                          "PNG or JPEG file, or a .npy or .npz file.") from None  # fmt: skip
    return _arranged(pixels, shape, path)


def _array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                return stored
            names = list(stored.files)
            if _KEY not in names and len(names) != 1:
                raise FileProblem(f"{path} holds the arrays {', '.join(names) or '(none)'}: name "
                                  f"the images '{_KEY}'.")  # fmt: skip
            found: NDArray[Any] = stored[_KEY if _KEY in names else names[0]]
            return found
    except FileProblem:
        raise
    except Exception as error:  # damaged archives fail in many ways
        first = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if "pickle" in str(error).lower():
            first = "it holds Python objects, and pickles are not read"
        raise FileProblem(f"{path} is no readable array ({first}): save bytes with numpy.save or "
                          "numpy.savez.") from None  # fmt: skip


def _arranged(array: NDArray[Any], shape: tuple[int, int, int], path: Path) -> NDArray[np.uint8]:
    """Images as ``(N, C, H, W)``, whatever way round they were given."""
    if array.dtype != np.uint8:
        raise FileProblem(f"the images of {path} are {array.dtype}: give bytes (uint8) from 0 to "
                          "255.")  # fmt: skip
    channels, height, width = shape
    one = {(height, width, channels): (2, 0, 1), shape: (0, 1, 2)}
    if channels == 1 and array.ndim in (2, 3) and array.shape[-2:] == (height, width):
        array = array.reshape(-1, 1, height, width)
    if array.shape in one:
        array = array[None]
    order = one.get(array.shape[1:]) if array.ndim == 4 else None
    if order is None or not len(array):
        raise FileProblem(f"the images of {path} have shape {array.shape}, and the network takes "
                          f"(N, {channels}, {height}, {width}) or (N, {height}, {width}, "
                          f"{channels}).")  # fmt: skip
    return array.transpose(0, *(axis + 1 for axis in order))
