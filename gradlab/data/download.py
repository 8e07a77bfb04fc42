"""Downloads a file: resumed where it stopped, verified before it gets its name.

Bytes go to ``NAME.partial`` beside the file. A download that was cut off, however long ago, goes on
from there with an HTTP range request; a server that does not know ranges, or a partial file that
belongs to something else, means starting over. Only a file with the published SHA-256 is renamed,
in one step. pooch, which many projects use, does the last part but does not resume, and the largest
file here has 332 MB; so this is urllib.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from gradlab import __version__
from gradlab.data.files import DataError, unwritable
from gradlab.data.sets import Download

# path below the data folder, bytes so far, bytes in all
Progress = Callable[[str, int, int], None]

TIMEOUT = 30.0  # seconds without a sign of life
PAUSE = 1.0  # seconds before a mirror is asked again
CONNECTIONS = 20  # to one mirror, as long as each brings something
_BLOCK = 1 << 18
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _MirrorError(Exception):
    """This mirror will not do; the message is the reason."""


class _StartOverError(Exception):
    """The partial file cannot be continued here."""


def download(item: Download, root: Path, again: str, progress: Progress | None = None) -> Path:
    """Bring one file to its place below ``root``, replacing what is there.

    Args:
        item: what to download.
        root: the data folder.
        again: the command that tries again, for complaints.
        progress: called with the path, the bytes so far and the bytes in all.

    Returns:
        Where the file is.

    Raises:
        DataError: no mirror has the file (the sentence says how to do without them), or the disk
            is full (the partial file stays).
    """
    target = root / item.path
    partial = partial_of(target)
    tell = progress or (lambda *_: None)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(item, partial)
        reasons = []
        for url in item.urls:
            try:
                _from_mirror(url, item, partial, tell)
            except _MirrorError as reason:
                reasons.append(f"{url}: {reason}")
                continue
            os.replace(partial, target)
            return target
    except OSError as error:
        left = item.size - _size(partial)
        needed = f" for {target.name}, of which {left:,} bytes are missing"
        raise unwritable(error, target.parent, again, needed) from None
    raise DataError(
        f"{item.path} cannot be downloaded ({'; '.join(reasons)}): run {again} when there is a "
        f"connection, or put the file into {target.parent} by hand and run it then."
    )


def partial_of(target: Path) -> Path:
    """Where the bytes go until the file is complete."""
    return target.with_name(target.name + ".partial")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(item: Download, partial: Path) -> None:
    missing = item.size - _size(partial)
    if missing > shutil.disk_usage(partial.parent).free:
        raise OSError(errno.ENOSPC, "no space")


def _from_mirror(url: str, item: Download, partial: Path, tell: Progress) -> None:
    """Complete the partial file and verify it; ``_MirrorError`` with the reason otherwise."""
    for connection in range(CONNECTIONS):
        before = _size(partial)
        trouble = "the connection keeps being cut off"
        if before < item.size:
            try:
                _transfer(url, item, partial, tell)
            except _StartOverError:
                if not before:
                    raise _MirrorError("it answers with another part than asked for") from None
                partial.unlink()
                continue
            except (http.client.HTTPException, _NetworkError) as error:
                trouble = _reason(error)
        if _size(partial) >= item.size:
            found = _sha256(partial)
            if found == item.sha256:
                return
            partial.unlink()
            if before:  # what was there before may be to blame
                continue
            raise _MirrorError(f"its SHA-256 is {found}, not {item.sha256}")
        if _size(partial) <= before:
            raise _MirrorError(trouble)
        if connection + 1 < CONNECTIONS:
            time.sleep(PAUSE)
    raise _MirrorError("the connection keeps being cut off")


class _NetworkError(Exception):
    """An error of the connection, not of the disk."""


def _reason(error: Exception) -> str:
    cause: object = error.__cause__ or error
    if isinstance(cause, urllib.error.HTTPError):
        return f"HTTP status {cause.code}"
    if isinstance(cause, urllib.error.URLError):
        cause = cause.reason
    if isinstance(cause, TimeoutError):
        return f"no answer for {TIMEOUT:g} s"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__


def _transfer(url: str, item: Download, partial: Path, tell: Progress) -> None:
    """Add to the partial file what one connection brings."""
    offset = _size(partial)
    headers = {"User-Agent": f"gradlab/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise _StartOverError from None
        raise _NetworkError from error
    except OSError as error:
        raise _NetworkError from error
    with response:
        offset = _agreed_offset(response, offset, item)
        with partial.open("ab" if offset else "wb") as stream:
            _copy(response, stream, offset, item, tell)


def _agreed_offset(response: http.client.HTTPResponse, offset: int, item: Download) -> int:
    """Where the answer begins: at ``offset``, or at 0 where the server ignores ranges."""
    if response.status == http.client.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None or int(found[1]) != offset:
            raise _StartOverError
        total = found[2]
    else:
        offset = 0
        total = response.headers.get("Content-Length", "")
    if total.isdecimal() and int(total) != item.size:
        raise _MirrorError(f"it has {int(total):,} bytes, not {item.size:,}")
    return offset


def _copy(
    response: http.client.HTTPResponse, stream: IO[bytes], done: int, item: Download, tell: Progress
) -> None:
    tell(item.path, done, item.size)
    while done < item.size:
        try:
            block = response.read1(min(_BLOCK, item.size - done))
        except OSError as error:
            raise _NetworkError from error
        if not block:
            return
        stream.write(block)
        done += len(block)
        tell(item.path, done, item.size)
    stream.flush()
    os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
