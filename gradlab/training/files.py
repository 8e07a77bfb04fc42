"""Files that appear whole or not at all, and tensors in them without pickle.

A safetensors file is a JSON header, which names every tensor's type, shape and place, followed by
their bytes. The header also holds our own facts and a SHA-256 of names, types, shapes, bytes and
facts, so that damage of any kind is found by reading the file alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gradlab.variational.exported import EXPORTED

FACTS = "gradlab"
DIGEST = "sha256"


class FileProblem(ValueError):  # noqa: N818 - its message is for users
    """A file cannot be written, or is not what it should be; one sentence with the fix."""


def write(path: Path, content: bytes, kept: str = "") -> None:
    """Write a file whole or not at all, and not return before it is on the disk.

    Args:
        path: the file; what was there before stays until the new content is complete.
        content: all of it.
        kept: what is safe if there is no space, in words.

    Raises:
        FileProblem: no space left, no permission.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FileProblem(_unwritable(path, len(content), error, kept)) from None


def _unwritable(path: Path, size: int, error: OSError, kept: str) -> str:
    kept = f"; {kept}" if kept else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"{path} cannot be written, since the disk has no space left for its "
            f"{size / 2**20:,.1f} MiB: free some, and the same command goes on{kept}."
        )
    reason = (error.strerror or str(error)).lower()
    return (f"{path} cannot be written ({reason}): mend the permissions of its folder, or choose "
            f"another one{kept}.")  # fmt: skip


def _sync_folder(folder: Path) -> None:
    """Make a rename durable, where folders can be opened (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse; the rename itself was atomic
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; numbers that are not finite become null."""
    write(path, (json.dumps(finite(value), indent=2) + "\n").encode())


def finite(value: Any) -> Any:
    """A JSON value with null for NaN and infinities.

    >>> finite({"loss": float("nan"), "rows": [1.0]})
    {'loss': None, 'rows': [1.0]}
    """
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        return None
    return value


def packed(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file with facts and a digest in its header."""
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(finite(facts))
    return save(held, metadata={FACTS: text, DIGEST: _digest(held, text)})


def unpacked(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file made by :func:`packed`, on the processor.

    Raises:
        FileProblem: it is missing, damaged, or another kind of file.
    """
    if not path.is_file():
        raise FileProblem(f"there is no file {path}: check the path.")
    try:
        # read by ourselves: a mapped file would change under us when it is replaced
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise FileProblem(
            f"{path} is damaged or no safetensors file ({str(error).rstrip('.')}): no other format "
            "is read."
        ) from None
    text = metadata.get(FACTS)
    if text is None and EXPORTED in metadata:
        raise FileProblem(f"{path} holds a compressed network, which lacks the weights that were "
                          "pruned: give the weights file it was made of.")  # fmt: skip
    if text is None:
        raise FileProblem(f"{path} was not written by gradlab: it says nothing about its network.")
    if metadata.get(DIGEST) != _digest(tensors, text):
        raise FileProblem(f"{path} is damaged: its content has another SHA-256 than it says.")
    facts: dict[str, Any] = json.loads(text)
    return tensors, facts


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        # memoryviews of bytes: NumPy does not know bfloat16
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
