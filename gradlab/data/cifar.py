"""CIFAR-10 and CIFAR-100: their Python files, unpacked or still in the archive.

The files are pickles, which :mod:`gradlab.data.pickles` reads without executing them.
"""

from __future__ import annotations

import os
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.data.files import (
    DataError,
    digest,
    fetch_command,
    is_intact,
    mismatch,
    missing,
    read_verified,
)
from gradlab.data.part import Part
from gradlab.data.pickles import parse
from gradlab.data.sets import Checksum, ImageSet, StoredFile

# CIFAR-100 has 20 coarse classes too; the fine ones are the usual task.
_LABELS = ("labels", "fine_labels")
_CLASSES = ("label_names", "fine_label_names")
_DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error)


def read(info: ImageSet, split: str, root: Path) -> Part:
    """Images and labels of ``split``, from unpacked files or else from the archive.

    Raises:
        DataError: a file is missing, damaged, or of another shape.
    """
    wanted = info.needed(split)
    absent = [file for file in wanted if not (root / file.path).is_file()]
    archive = root / info.downloads[0].path
    if not absent:
        contents, files = _unpacked(info, wanted, root)
    elif archive.is_file():
        contents, files = _packed(info, wanted, root)
    else:
        raise missing(info, root, absent)
    images, labels = [], []
    classes: tuple[str, ...] = ()
    for file in wanted:
        where = str(root / file.path)
        found = parse(contents.pop(file.path), where)
        names = _entry(found, _CLASSES)
        if names is not None:
            classes = _class_names(names, info, where)
            continue
        some_images, some_labels = _batch(found, info, where)
        images.append(some_images)
        labels.append(some_labels)
    return Part(np.concatenate(images), np.concatenate(labels), classes, files)


def _unpacked(
    info: ImageSet, wanted: tuple[StoredFile, ...], root: Path
) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    contents, files = {}, {}
    for file in wanted:
        assert file.checksum is not None
        contents[file.path], files[file.path] = read_verified(
            root / file.path, file.checksum, fetch_command(info, root)
        )
    return contents, files


def _packed(
    info: ImageSet, wanted: tuple[StoredFile, ...], root: Path
) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """The members of the archive, which vouches for them with its own SHA-256."""
    item = info.downloads[0]
    archive = root / item.path
    expected = Checksum("sha256", item.sha256)
    if not is_intact(archive, expected):
        raise mismatch(archive, expected, digest(archive), fetch_command(info, root))
    paths = {file.path for file in wanted}
    contents = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.name in paths and (stream := tar.extractfile(member)) is not None:
                    contents[member.name] = stream.read()
                if len(contents) == len(paths):
                    break
    except _DAMAGED as error:
        raise DataError(f"{archive} cannot be unpacked ({error}).") from None
    if len(contents) < len(paths):
        raise DataError(f"{archive} does not hold {', '.join(sorted(paths - set(contents)))}.")
    return contents, {item.path: {"sha256": item.sha256, "verified": "sha256"}}


def unpack(info: ImageSet, root: Path) -> None:
    """Write the files of a set from its archive, whose checksum was verified.

    Only members that the set names are written, to the places that the set names, each under its
    final name only once its own checksum is right.

    Raises:
        DataError: the archive lacks a file or holds another.
        OSError: a file cannot be written.
    """
    archive = root / info.downloads[0].path
    wanted = {file.path: file for file in info.files}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                file = wanted.get(member.name)
                stream = tar.extractfile(member) if file is not None else None
                if file is None or stream is None:
                    continue
                _write(stream.read(), file, root, archive)
                del wanted[member.name]
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}).") from None
    if wanted:
        raise DataError(f"{archive} does not hold {', '.join(sorted(wanted))}.")


def _write(content: bytes, file: StoredFile, root: Path, archive: Path) -> None:
    target = root / file.path
    partial = target.with_name(target.name + ".partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    assert file.checksum is not None
    found = digest(partial, file.checksum.algorithm)
    if found != file.checksum.value:
        raise mismatch(partial, file.checksum, found, f"deleting {archive} and fetching it again")
    os.replace(partial, target)


def _entry(found: dict[str, Any], keys: tuple[str, ...]) -> Any:
    return next((found[key] for key in keys if key in found), None)


def _class_names(names: Any, info: ImageSet, where: str) -> tuple[str, ...]:
    if not isinstance(names, list) or len(names) != info.num_classes:
        raise DataError(f"{where} does not name {info.num_classes} classes.")
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _batch(
    found: dict[str, Any], info: ImageSet, where: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``(N, C, H, W)`` and labels ``(N,)`` of one file."""
    data, labels = found.get("data"), _entry(found, _LABELS)
    size = int(np.prod(info.image_shape))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != size:
        raise DataError(f"{where} holds no array of images of {size} bytes.")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{where} holds no list of labels.")
    if len(labels) != len(data):
        raise DataError(f"{where} holds {len(data):,} images and {len(labels):,} labels.")
    return data.reshape(-1, *info.image_shape), np.array(labels, np.int64)
