"""Where the files of a set lie, and how one is read: never before its checksum has been verified.

Checksums are remembered per process by path, size, modification time and inode, so that a file is
hashed once however often it is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from gradlab.data.sets import SETS, Checksum, ImageSet, StoredFile

_ALGORITHMS = {"sha256": "SHA-256", "md5": "MD5"}
_KNOWN: dict[tuple[str, int, int, int], dict[str, str]] = {}


class DataError(ValueError):
    """A file of a set is missing, damaged or out of reach; one sentence with the fix."""


def data_root(root: str | Path | None = None) -> Path:
    """The folder below which the sets lie.

    Args:
        root: a folder; ``None`` for ``$GRADLAB_DATA``, or else the user's cache folder.

    >>> data_root("elsewhere").name
    'elsewhere'
    """
    chosen = root if root is not None else os.environ.get("GRADLAB_DATA") or _cache_folder()
    return Path(chosen).expanduser().absolute()


def _cache_folder() -> Path:
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
        return Path(local) / "gradlab" / "data"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "gradlab" / "data"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradlab" / "data"


def fetch_command(info: ImageSet, root: Path) -> str:
    """The command that brings the files of a set, as error messages name it."""
    where = "" if root == data_root() else f" --data {shlex.quote(str(root))}"
    return f"`gradlab data fetch {info.name}{where}`"


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The checksum of a file, computed once per process while the file does not change."""
    key = _key(path)
    known = _KNOWN.setdefault(key, {})
    if algorithm not in known:
        with path.open("rb") as stream:
            known[algorithm] = hashlib.file_digest(stream, _new(algorithm)).hexdigest()
    return known[algorithm]


def _key(path: Path) -> tuple[str, int, int, int]:
    found = path.stat()
    return str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ino


def _new(algorithm: str) -> partial[Any]:
    # against damage, not attack: machines that forbid MD5 for security still have it for this
    return partial(hashlib.new, algorithm, usedforsecurity=False)


def is_intact(path: Path, checksum: Checksum) -> bool:
    """Whether a file is there with the published checksum."""
    return path.is_file() and digest(path, checksum.algorithm) == checksum.value


def mismatch(path: Path, checksum: Checksum, found: str, fix: str) -> DataError:
    """The complaint about a file with another checksum than the published one."""
    twin = _twin(found)
    return DataError(
        f"{path} is damaged or not what its name says: its {_ALGORITHMS[checksum.algorithm]} "
        f"should be {checksum.value} and is {found}{f' (that of {twin})' if twin else ''}: "
        f"{fix} replaces it."
    )


def _twin(found: str) -> str | None:
    """The file, of any set, that a checksum belongs to: files do get swapped."""
    for info in SETS.values():
        for file in info.files:
            if file.checksum is not None and file.checksum.value == found:
                return file.path
    return None


def missing(info: ImageSet, root: Path, files: Iterable[StoredFile]) -> DataError:
    """The complaint about files that are not there."""
    absent = [Path(file.path).name for file in files]
    verb = "is" if len(absent) == 1 else "are"
    return DataError(
        f"{info.name}: {', '.join(absent)} {verb} missing from {root / info.folder}: "
        f"{fetch_command(info, root)} downloads what is missing."
    )


def read_verified(path: Path, checksum: Checksum, fix: str) -> tuple[bytes, dict[str, Any]]:
    """The bytes of a file with the published checksum, and the record of that.

    Args:
        path: an existing file.
        checksum: the published one.
        fix: the command that replaces the file, for the complaint.

    Raises:
        DataError: another checksum, or a file that cannot be read.
    """
    try:
        key = _key(path)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): mend its permissions."
        ) from None
    known = _KNOWN.setdefault(key, {})
    for algorithm in {"sha256", checksum.algorithm}:
        if algorithm not in known:
            known[algorithm] = _new(algorithm)(content).hexdigest()
    if known[checksum.algorithm] != checksum.value:
        raise mismatch(path, checksum, known[checksum.algorithm], fix)
    return content, {"sha256": known["sha256"], "verified": checksum.algorithm}


def unwritable(error: OSError, folder: Path, again: str, needed: str = "") -> DataError:
    """The complaint about a disk that is full, or a folder that cannot be written to.

    Args:
        error: what the system said.
        folder: where the files go.
        again: the command that goes on afterwards.
        needed: how much space is wanted, if that is known: `` for X, of which …``.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(f"{folder} has no space left{needed}: free some, and {again} goes on "
                         "where it stopped.")  # fmt: skip
    return DataError(
        f"{error.filename or folder} cannot be written ({error.strerror or error}): mend its "
        "permissions, or choose another folder with --data or GRADLAB_DATA."
    )
