"""Small sets in the formats of the real ones, made on the spot."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gradlab.data.sets import SETS, Checksum, Download, ImageSet, StoredFile

Contents = dict[str, bytes]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write(root: Path, contents: Contents) -> Path:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def idx_file(array: NDArray[np.uint8]) -> bytes:
    """A gzipped idx file."""
    header = bytes([0, 0, 8, array.ndim])
    header += b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


def idx_set(
    mirrors: tuple[str, ...] = (), train: int = 40, test: int = 20
) -> tuple[ImageSet, Contents]:
    """A set called mnist of 1 × 5 × 4 images in two classes, and its four files."""
    generator = np.random.default_rng(0)
    contents, files, downloads = {}, [], []
    for split, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 2
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = f"mnist/{split}-{kind}-ubyte.gz"
            content = contents[path] = idx_file(array)
            splits = ("train" if split == "train" else "test",)
            files.append(StoredFile(path, splits, Checksum("sha256", sha256(content))))
            urls = tuple(f"{mirror}/{path}" for mirror in mirrors)
            downloads.append(Download(path, urls, len(content), sha256(content)))
    info = replace(
        SETS["mnist"], sizes=(("train", train), ("test", test)), image_shape=(1, 5, 4),
        num_classes=2, classes=("even", "odd"), files=tuple(files), downloads=tuple(downloads),
    )  # fmt: skip
    return info, contents


def _text(value: str) -> bytes:
    return b"U" + bytes([len(value)]) + value.encode()


def _array(array: NDArray[np.uint8]) -> bytes:
    rows, columns = (b"J" + side.to_bytes(4, "little") for side in array.shape)
    minus_one = b"J" + b"\xff" * 4
    return b"".join([
        b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n", b"K\x00\x85", b"U\x01b",
        b"\x87R", b"(K\x01", rows, columns, b"\x86", b"cnumpy\ndtype\n", b"U\x02u1K\x00K\x01\x87R",
        b"(K\x03U\x01|NNN", minus_one, minus_one, b"K\x00tb", b"\x89",
        b"T" + array.size.to_bytes(4, "little") + array.tobytes(), b"tb",
    ])  # fmt: skip


def cifar_pickle(entries: dict[str, Any]) -> bytes:
    """A pickle with the opcodes that Python 2 gave CIFAR's files."""
    parts = [b"\x80\x02}q\x01("]
    for key, value in entries.items():
        parts.append(_text(key))
        if isinstance(value, np.ndarray):
            parts.append(_array(value))
        elif isinstance(value, list):
            items = [b"K" + bytes([x]) if isinstance(x, int) else _text(x) for x in value]
            parts.append(b"](" + b"".join(items) + b"e")
        else:
            parts.append(b"M" + int(value).to_bytes(2, "little"))
    return b"".join([*parts, b"u."])


def cifar_set(
    hundred: bool = False, mirrors: tuple[str, ...] = ()
) -> tuple[ImageSet, Contents, Contents]:
    """A set called cifar10 or cifar100 of 3 × 4 × 4 images, its files, and its archive."""
    real = SETS["cifar100" if hundred else "cifar10"]
    prefix = "fine_" if hundred else ""
    generator = np.random.default_rng(1)
    contents, files = {}, []
    for file in real.files:
        if file.path.endswith("meta"):
            content = cifar_pickle({f"{prefix}label_names": ["cat", "dog"], "num_vis": 48})
        else:
            data = generator.integers(0, 256, (10, 48), dtype=np.uint8)
            content = cifar_pickle({f"{prefix}labels": [0, 1] * 5, "data": data})
        contents[file.path] = content
        md5 = hashlib.md5(content).hexdigest()
        checksum = Checksum("md5", md5) if hundred else Checksum("sha256", sha256(content))
        files.append(replace(file, checksum=checksum))
    archive = packed(contents)
    (item,) = real.downloads
    urls = tuple(f"{mirror}/{item.path}" for mirror in mirrors)
    download = Download(item.path, urls, len(archive), sha256(archive))
    train = 10 if hundred else 50
    info = replace(
        real, sizes=(("train", train), ("test", 10)), image_shape=(3, 4, 4), num_classes=2,
        files=tuple(files), downloads=(download,),
    )  # fmt: skip
    return info, contents, {item.path: archive}


def packed(contents: Contents) -> bytes:
    """A tar.gz."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for path, content in contents.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def uc_merced_arrays() -> dict[str, NDArray[Any]]:
    """The arrays of a set called uc_merced with two of the classes."""
    classes = np.array(["agricultural", "airplane"])
    labels = np.repeat(np.arange(2, dtype=np.uint8), 100)
    names = np.array([f"{classes[k]}{i % 100:02d}" for i, k in enumerate(labels)])
    images = np.random.default_rng(2).integers(0, 256, (200, 64, 64, 3), dtype=np.uint8)
    return {"images": images, "labels": labels, "class_names": classes, "names": names}


def uc_merced_set(mirrors: tuple[str, ...] = (), archive: bytes = b"") -> ImageSet:
    """What is known of the set of :func:`uc_merced_arrays`."""
    real = SETS["uc_merced"]
    (item,) = real.downloads
    urls = tuple(f"{mirror}/{item.path}" for mirror in mirrors)
    download = Download(item.path, urls, len(archive), sha256(archive))
    return replace(real, sizes=(("train", 160), ("test", 40)), num_classes=2, downloads=(download,))


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=True, **arrays)
    return stream.getvalue()


def uc_merced_archive(arrays: dict[str, NDArray[Any]]) -> bytes:
    """A zip of TIFF files of twice the side, whose averages are the images."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("UCMerced_LandUse/readme.txt", "what is in here")
        for image, name in zip(arrays["images"], arrays["names"], strict=True):
            large = image.repeat(2, axis=0).repeat(2, axis=1)
            inner = np.clip(image, 1, 254) == image
            large[::2, ::2][inner] += 1  # the four pixels of a block differ, their mean does not
            large[1::2, 1::2][inner] -= 1
            tiff = io.BytesIO()
            Image.fromarray(large).save(tiff, format="TIFF")
            archive.writestr(f"UCMerced_LandUse/Images/{name[:-2]}/{name}.tif", tiff.getvalue())
    return stream.getvalue()
