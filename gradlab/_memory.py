"""How a process of gradlab's own treats memory that it has freed.

Glibc gives large blocks back to the kernel as soon as they are free, and a training step takes the
same blocks again: the kernel then maps and clears every page anew. On a small convolutional network
that is a third of the time of a step (``python benchmarks/freed_memory.py``). Only processes that
gradlab starts itself are changed, never one that imports it.
"""

from __future__ import annotations

import ctypes
import os

# Names and numbers of glibc's malloc.h. Blocks of up to a gibibyte come from the heap, which grows
# by 64 MiB at once and keeps what was freed.
_OPTIONS = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**30),
    "MALLOC_TOP_PAD_": (-2, 2**26),
}


def keep_freed_memory() -> bool:
    """Keep freed memory for the next allocation; whether this process's allocator could be told.

    What the user's environment says of an option, or of the allocator as a whole
    (``GLIBC_TUNABLES``, ``LD_PRELOAD``), stands.
    """
    if any("malloc" in os.environ.get(name, "") for name in ("GLIBC_TUNABLES", "LD_PRELOAD")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows, musl
        return False
    told = [
        mallopt(number, value) for name, (number, value) in _OPTIONS.items()
        if name not in os.environ
    ]  # fmt: skip
    return all(told)
