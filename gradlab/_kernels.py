"""Functions that Numba compiles, kept on disk so that no process ever runs another one's kernel.

Numba's own cache cannot be trusted with what several processes write:

- It numbers a function's files and keeps an index of the numbers. Two processes that save at once
  may take the same number, and the index then promises one machine code where the other lies
  (https://github.com/numba/numba/issues/4807).
- Symbols of machine code hold a number that counts the functions of the process. Functions made by
  one factory share all else of their name; where two processes made them in different orders, a
  third that loads both links calls of one to the other.
- A change in another file than the function's own is not noticed.

Each of them gives wrong numbers without a word, or a crash. Here a file is named by the hash of all
that its content depends on, there is no index, and names hold the values that a factory was called
with.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import __version__ as VERSION
from numba import njit

try:
    from numba.core.caching import FunctionCache
    from numba.core.serialize import dumps
except ImportError:  # a release of Numba that keeps its cache elsewhere: compile in every process
    FunctionCache = None

_EVALUATION = Path(__file__).parent / "evaluation"
# What kernels of other files call, or take constants from.
_SHARED = (*sorted((_EVALUATION / "compiled").glob("*.py")), _EVALUATION / "noise.py")
_DIGEST = hashlib.sha256(b"".join(f.read_bytes() for f in (*_SHARED, Path(__file__)))).hexdigest()
_SUM = hashlib.sha256().digest_size


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


class _Files:
    """Where :class:`numba.core.caching.Cache` puts what it has compiled; no index, no numbers.

    A name is that of the function, then hashes of the state of the sources and of the key, which
    holds argument types, processor, byte code and what the function closes over.
    """

    def __init__(self, folder: str, base: str, stamp: object) -> None:
        self.folder, self.base, self.state = Path(folder), base, _hash(stamp, VERSION, _DIGEST)

    def _file(self, key: object) -> Path:
        return self.folder / f"{self.base}.{self.state}.{_hash(key)}.nbc"

    def load(self, key: object) -> object:
        """What was saved for ``key``, or None."""
        try:
            content = self._file(key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content[_SUM:]).digest() != content[:_SUM]:
            return None  # half of one, or one that the disk has changed: it is compiled again
        found, data = pickle.loads(content[_SUM:])
        return data if found == repr(key) else None

    def save(self, key: object, data: object) -> None:
        """Keep ``data``, which a reader sees whole or not at all; drop what older sources gave.

        A disk that is full or not to be written costs the next process a compilation, no more.
        """
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=self.folder) as apart:
            new = Path(apart, "new")
            content = dumps((repr(key), data))
            new.write_bytes(hashlib.sha256(content).digest() + content)
            new.replace(self._file(key))
            for old in self._all():
                if f".{self.state}." not in old.name:
                    old.unlink()

    def flush(self) -> None:
        """Forget every state of every key of this function."""
        for old in self._all():
            old.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        return list(self.folder.glob(f"{glob.escape(self.base)}.*.nb[ci]"))


def kernel_function(*values: bool | int, **options: Any) -> Callable[[Any], Any]:
    """``njit`` without the interpreter's lock for functions of a module, or made by a factory.

    Args:
        values: what tells the functions of a factory apart; none for a function of a module.
        options: further ones of ``numba.njit``.

    Examples:
        >>> @kernel_function()
        ... def double(x):
        ...     return 2 * x
        >>> double(4)
        8
    """
    if not all(isinstance(value, bool | int) for value in values):
        raise TypeError(f"kernels are told apart by whole numbers and truth values, not {values}")

    def decorate(function: Any) -> Any:
        # names of symbols are made of this one
        function.__qualname__ = "_".join([function.__qualname__, *map(str, values)])
        dispatcher = njit(nogil=True, **options)(function)
        # What a closure calls is part of its key. Numba draws an identity of functions anew in
        # every process, with which nothing would ever be found.
        dispatcher._set_uuid(f"{function.__module__}.{function.__qualname__}")
        if FunctionCache is not None and _from_a_file(function):
            cache = FunctionCache(function)
            source = cache._impl.locator.get_source_stamp()
            chosen = {k: sorted(v) if isinstance(v, set) else v for k, v in options.items()}
            cache._cache_file = _Files(
                cache.cache_path, cache._impl.filename_base, (source, chosen)
            )
            dispatcher._cache = cache
        return dispatcher

    return decorate


def _from_a_file(function: Any) -> bool:
    return Path(function.__code__.co_filename).is_file()
