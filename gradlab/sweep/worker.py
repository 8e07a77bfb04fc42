"""What happens inside a worker: one cell in, its rows or its failure out; it never raises."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradlab._memory import keep_freed_memory
from gradlab.sweep import provenance
from gradlab.sweep.cells import title

MOST_WARNINGS = 5
RETRIES = 2  # of a cell whose worker died


@dataclass(frozen=True)
class Outcome:
    """What came of one cell.

    Attributes:
        hash: the cell's identity.
        tables: its rows by table name; empty if it failed.
        failure: the traceback, or ``None`` if it is done.
        provenance: versions, machine, start, seconds, and distinct warnings.
    """

    hash: str
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failure: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def run_cell(cell_hash: str, config: Mapping[str, Any], scratch: str) -> Outcome:
    """Run one cell with its own number of torch threads; the former number comes back after.

    Args:
        cell_hash: the cell's identity.
        config: the cell, plain JSON values.
        scratch: a folder that the workers share for caches.

    Returns:
        The rows, or the traceback of whatever went wrong.
    """
    started = datetime.datetime.now(datetime.UTC)
    clock = time.perf_counter()
    tables: dict[str, list[dict[str, Any]]] = {}
    failure = None
    with warnings.catch_warnings(record=True) as caught:
        # Each distinct warning once per cell, kept with the cell: a thousand cells that overflow
        # must not write a thousand lines.
        warnings.simplefilter("default")
        try:
            from gradlab import studies

            with torch_threads(int(config["threads"])):
                tables = studies.create(config["study"]).run(config, Path(scratch))
        except (Exception, SystemExit):
            failure = traceback.format_exc()
    notes = dict.fromkeys(f"{note.category.__name__}: {note.message}" for note in caught)
    facts = {
        **provenance.code(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": time.perf_counter() - clock,
        "warnings": list(notes)[:MOST_WARNINGS],
    }
    return Outcome(cell_hash, tables, failure, facts)


def killed(cell_hash: str, config: Mapping[str, Any], error: BaseException | None) -> Outcome:
    """The outcome of a cell that took its worker down every time."""
    failure = (
        f"The worker died {RETRIES + 1} times while running this cell ({title(config)}): "
        f"out of memory, or killed.\n{type(error).__name__}: {error}\n"
    )
    return Outcome(cell_hash, failure=failure, provenance=provenance.code())


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with ``count`` torch threads: the last bits of a sum depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def start(driver: int) -> None:
    """Prepare a fresh worker process.

    Ctrl-C reaches the whole process group; the driver alone decides what it means. And a worker
    whose driver was killed ends itself: nobody is left to store what it would compute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    if sys.platform != "win32":
        threading.Thread(target=_end_with, args=(driver,), daemon=True).start()


def _end_with(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(0.5)
    os._exit(1)
