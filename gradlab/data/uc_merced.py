"""UC Merced Land Use, 2,100 aerial images of 21 classes, averaged down to 64 × 64.

The archive holds TIFF files of about 256 × 256 (44 are a few pixels off). ``build`` makes
``uc_merced_64.npz`` of them by area averaging; its bytes depend on the version of Pillow, so the
file has no published checksum: its SHA-256 is recorded, and its content is checked on every read.
Two images, airplane01 and airplane02, are identical, which a split must not tear apart. There is
no official split.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.data.files import DataError, digest, fetch_command, missing
from gradlab.data.part import Part
from gradlab.data.sets import ImageSet

SIDE = 64
PER_CLASS = 100
# The same photograph twice (images 1 and 2 of a class that counts from 0).
IDENTICAL = ("airplane01", "airplane02")
_MEMBER = re.compile(r"(?:.*/)?([a-z]+)/(\1\d\d)\.tif")
_LARGEST = 1 << 26  # bytes of an array in the file; what is larger is not this set
_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, KeyError, MemoryError)


def read(info: ImageSet, split: str, root: Path) -> Part:
    """All images, whatever the split: the file knows none.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    (file,) = info.needed(split)
    path = root / file.path
    if not path.is_file():
        raise missing(info, root, [file])
    arrays = check(path, info, fetch_command(info, root))
    images = np.ascontiguousarray(arrays["images"].transpose(0, 3, 1, 2))
    classes = tuple(str(name) for name in arrays["class_names"])
    files = {file.path: {"sha256": digest(path), "verified": "content"}}
    return Part(images, arrays["labels"].astype(np.int64), classes, files, arrays["names"])


def check(path: Path, info: ImageSet, fix: str) -> dict[str, NDArray[Any]]:
    """The arrays of ``uc_merced_64.npz``, after checking all that can be checked.

    Raises:
        DataError: damaged, or not 100 images of 64 × 64 of each of the 21 classes.
    """
    try:
        with zipfile.ZipFile(path) as packed:
            if any(member.file_size > _LARGEST for member in packed.infolist()):
                raise ValueError("an array is too large for this set")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("images", "labels", "class_names", "names")}
    except _DAMAGED as error:
        raise DataError(f"{path} is damaged or no npz file of this set ({error}): {fix} makes it "
                        "anew.") from None  # fmt: skip
    wrong = _wrong(arrays, info)
    if wrong:
        raise DataError(f"{path} is not the {info.title} set at {SIDE} × {SIDE}: {wrong}; "
                        f"{fix} makes it anew.")  # fmt: skip
    return arrays


def _wrong(arrays: Mapping[str, NDArray[Any]], info: ImageSet) -> str | None:
    """What is wrong with the content, in a phrase."""
    images, labels = arrays["images"], arrays["labels"]
    classes, names = arrays["class_names"], arrays["names"]
    count = info.num_classes * PER_CLASS
    shape = (count, SIDE, SIDE, info.image_shape[0])
    if images.dtype != np.uint8 or images.shape != shape:
        return f"images are {images.dtype} {images.shape}, not uint8 {shape}"
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        return f"labels are {labels.dtype} {labels.shape}, not {count} whole numbers"
    if labels.min() < 0 or labels.max() >= info.num_classes:
        return f"labels go from {labels.min()} to {labels.max()}, not 0 to {info.num_classes - 1}"
    if classes.shape != (info.num_classes,) or names.shape != (count,):
        return f"{classes.size} classes and {names.size} names, not {info.num_classes} and {count}"
    if classes.dtype.kind != "U" or names.dtype.kind != "U":
        return "names are not text"
    if (np.bincount(labels, minlength=info.num_classes) != PER_CLASS).any():
        return f"not every class has {PER_CLASS} images"
    if not np.strings.startswith(names, classes[labels]).all() or len(set(names)) < count:
        return "names and labels disagree"
    return None


def build(info: ImageSet, root: Path) -> None:
    """Make ``uc_merced_64.npz`` from the archive, whose checksum was verified.

    Raises:
        DataError: the archive does not hold the set.
        OSError: the file cannot be written.
    """
    archive, target = root / info.downloads[0].path, root / info.files[0].path
    try:
        arrays = _averaged(archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, SyntaxError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}).") from None
    arrays["archive_sha256"] = np.array(info.downloads[0].sha256)
    wrong = _wrong(arrays, info)
    if wrong:
        raise DataError(f"{archive} is not the {info.title} set: {wrong}.")
    partial = target.with_name(target.name + ".partial")
    with partial.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
    os.replace(partial, target)


def _averaged(archive: Path) -> dict[str, NDArray[Any]]:
    """All images of the archive at 64 × 64, in alphabetical order of class and name."""
    from PIL import Image

    images, names, classes, sizes = [], [], [], []
    with zipfile.ZipFile(archive) as packed:
        members = sorted(
            (found[1], found[2], member)
            for member in packed.namelist()
            if (found := _MEMBER.fullmatch(member))
        )
        for kind, name, member in members:
            with Image.open(io.BytesIO(packed.read(member))) as picture:
                sizes.append((picture.height, picture.width))
                # as floats, since bytes would be rounded after the rows and again after the columns
                channels: list[Any] = [
                    channel.convert("F").resize((SIDE, SIDE), Image.Resampling.BOX)
                    for channel in picture.convert("RGB").split()
                ]
            images.append(np.rint(np.stack(channels, axis=-1)))
            names.append(name)
            classes.append(kind)
    class_names, labels = np.unique(np.array(classes, dtype=np.str_), return_inverse=True)
    return {
        "images": np.array(images, np.uint8),
        "labels": labels.astype(np.uint8),
        "class_names": class_names,
        "names": np.array(names, dtype=np.str_),
        "orig_hw": np.array(sizes, np.int16),
    }
