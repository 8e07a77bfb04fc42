"""Brings a set to this machine, and says what of it is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock

from gradlab.data import cifar, uc_merced
from gradlab.data.download import Progress, download, partial_of
from gradlab.data.files import (
    DataError,
    data_root,
    digest,
    fetch_command,
    is_intact,
    unwritable,
)
from gradlab.data.sets import Checksum, Download, ImageSet, StoredFile, find

_POLL = 0.5  # seconds between looks at what another process has downloaded


@dataclass(frozen=True)
class FileState:
    """What is known of one file of a set.

    Attributes:
        path: below the data folder.
        state: ``intact``, ``missing`` or ``damaged``.
        verified: by what an existing file was judged: a published ``sha256`` or ``md5``, or its
            ``content`` where no checksum is published.
        expected: the published checksum, if any.
        found: the checksum of an existing file.
        problem: what is wrong with a damaged file, if more is known than its checksum.
    """

    path: str
    state: Literal["intact", "missing", "damaged"]
    verified: Literal["sha256", "md5", "content"]
    expected: str | None
    found: str | None
    problem: str | None = None


def fetch(name: str, root: str | Path | None = None, *, progress: Progress | None = None) -> Path:
    """Download what is missing or damaged of a set, verified; what is intact is left alone.

    Several processes may do so at once: one downloads, and the others wait for it. A download that
    was cut off goes on where it stopped. Archives are unpacked, and stay beside their content.

    Args:
        name: one of :func:`gradlab.data.names`.
        root: the data folder; ``None`` for ``$GRADLAB_DATA``, or else the user's cache folder.
        progress: called with a path, the bytes so far and the bytes in all.

    Returns:
        The folder that holds the set.

    Raises:
        ValueError: no such set, or (as :class:`DataError`) a file that cannot be had or written.
    """
    info = find(name)
    folder = data_root(root)
    if not _is_complete(info, folder):
        with _alone(info, folder, progress):
            if not _is_complete(info, folder):
                _bring(info, folder, progress)
    return folder / info.folder


def check(name: str, root: str | Path | None = None) -> list[FileState]:
    """Verify every file of a set that is there, and name those that are missing.

    A missing archive is not named, nor are files that can be read out of an archive that is there.

    Raises:
        ValueError: there is no such set.
    """
    info = find(name)
    folder = data_root(root)
    stored = {file.path for file in info.files}
    archives = [
        _published(item.path, Checksum("sha256", item.sha256), folder)
        for item in info.downloads
        if item.path not in stored and (folder / item.path).is_file()
    ]
    states = [_state(info, file, folder) for file in info.files]
    if info.format == "cifar" and archives:
        states = [state for state in states if state.state != "missing"]
    return states + archives


def splits_here(name: str, root: str | Path | None = None) -> list[str]:
    """The splits whose files are there; nothing is read or verified.

    Raises:
        ValueError: there is no such set.
    """
    info = find(name)
    folder = data_root(root)
    packed = info.format == "cifar" and (folder / info.downloads[0].path).is_file()
    return [
        split
        for split in info.splits
        if packed or all((folder / file.path).is_file() for file in info.needed(split))
    ]


def _state(info: ImageSet, file: StoredFile, root: Path) -> FileState:
    if file.checksum is not None:
        return _published(file.path, file.checksum, root)
    path = root / file.path
    if not path.is_file():
        return FileState(file.path, "missing", "content", None, None)
    try:
        uc_merced.check(path, info, fetch_command(info, root))
    except DataError as error:
        return FileState(file.path, "damaged", "content", None, digest(path), str(error))
    return FileState(file.path, "intact", "content", None, digest(path))


def _published(path: str, checksum: Checksum, root: Path) -> FileState:
    if not (root / path).is_file():
        return FileState(path, "missing", checksum.algorithm, checksum.value, None)
    found = digest(root / path, checksum.algorithm)
    same = found == checksum.value
    return FileState(path, "intact" if same else "damaged", checksum.algorithm,
                     checksum.value, found)  # fmt: skip


def _is_complete(info: ImageSet, root: Path) -> bool:
    return all(_state(info, file, root).state == "intact" for file in info.files)


@contextmanager
def _alone(info: ImageSet, root: Path, progress: Progress | None) -> Iterator[None]:
    """Hold the set's lock; meanwhile, show how far the process that has it has come."""
    again = fetch_command(info, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / f".{info.name}.lock")
        while True:
            try:
                lock.acquire(timeout=_POLL)
                break
            except filelock.Timeout:
                for item in info.downloads:
                    partial = partial_of(root / item.path)
                    if progress is not None and partial.is_file():
                        progress(item.path, partial.stat().st_size, item.size)
    except OSError as error:
        raise unwritable(error, root, again) from None
    try:
        yield
    finally:
        lock.release()


def _bring(info: ImageSet, root: Path, progress: Progress | None) -> None:
    again = fetch_command(info, root)
    for item in info.downloads:
        if not _is_here(item, root):
            download(item, root, again, progress)
    try:
        if info.format == "cifar":
            cifar.unpack(info, root)
        elif info.format == "uc_merced":
            uc_merced.build(info, root)
    except OSError as error:
        raise unwritable(error, root, again) from None


def _is_here(item: Download, root: Path) -> bool:
    return is_intact(root / item.path, Checksum("sha256", item.sha256))
