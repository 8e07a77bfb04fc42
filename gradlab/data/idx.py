"""The idx format of MNIST and Fashion-MNIST, gzipped.

A header of big-endian 32-bit numbers (two zero bytes, the type 0x08 of unsigned bytes, the number
of dimensions; then the dimensions) and the bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradlab.data.files import DataError, fetch_command, missing, read_verified
from gradlab.data.part import Part
from gradlab.data.sets import ImageSet

_UNSIGNED_BYTE = 0x08


def parse(content: bytes, where: str) -> NDArray[np.uint8]:
    """The array in a gzipped idx file of unsigned bytes.

    Args:
        content: the file.
        where: how complaints name it.

    Raises:
        DataError: not gzip, not idx, or another length than its header says.

    >>> header = bytes([0, 0, 8, 1]) + (3).to_bytes(4, "big")
    >>> parse(gzip.compress(header + bytes([7, 8, 9])), "labels.gz")
    array([7, 8, 9], dtype=uint8)
    """
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where} is not a complete gzip file ({error}).") from None
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DataError(f"{where} is not an idx file of unsigned bytes: it begins with "
                        f"{raw[:4].hex() or 'nothing'}.")  # fmt: skip
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise DataError(f"{where} ends within its idx header.")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    if len(raw) - start != math.prod(shape):
        raise DataError(f"{where} holds {len(raw) - start:,} bytes of data, and its header says "
                        f"{' × '.join(map(str, shape))}.")  # fmt: skip
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def read(info: ImageSet, split: str, root: Path) -> Part:
    """Images and labels of ``split``, from two files with verified checksums.

    Raises:
        DataError: a file is missing, damaged, or of another shape.
    """
    wanted = info.needed(split)
    absent = [file for file in wanted if not (root / file.path).is_file()]
    if absent:
        raise missing(info, root, absent)
    arrays, files = [], {}
    for file in wanted:
        assert file.checksum is not None
        path = root / file.path
        content, files[file.path] = read_verified(path, file.checksum, fetch_command(info, root))
        arrays.append(parse(content, str(path)))
    images, labels = arrays
    if images.shape[1:] != info.image_shape[1:] or labels.shape != images.shape[:1]:
        raise DataError(f"{info.name}: images of shape {images.shape} and labels of shape "
                        f"{labels.shape} do not belong together.")  # fmt: skip
    return Part(images[:, None], labels.astype(np.int64), info.classes, files)
