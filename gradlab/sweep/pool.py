"""Workers on this machine: joblib's loky processes, rebuilt when one of them dies.

No more cells are handed out than there are workers, so that no finished result waits unstored
behind others. When a worker dies (killed, out of memory) nobody can say which cell took it down:
the cells in flight are suspects, and each is tried again alone, where a second death has one
culprit. A cell that takes its worker down three times has failed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from gradlab.sweep.cells import Cell
from gradlab.sweep.units import counted
from gradlab.sweep.worker import RETRIES, Outcome, killed, run_cell, start

Outcomes = Generator[Outcome, None, None]


def outcomes(
    cells: Sequence[Cell], scratch: str, jobs: int, say: Callable[[str], None]
) -> Outcomes:
    """The outcome of every cell, as they finish.

    Args:
        cells: what to run.
        scratch: a folder that the workers share for caches.
        jobs: number of workers; 1 works in this process.
        say: takes one sentence when a worker has died.
    """
    if jobs == 1:
        for cell in cells:
            yield run_cell(cell.hash, cell.config, scratch)
        return
    pending = {cell.hash: cell for cell in cells}
    while pending:
        flying: set[str] = set()
        try:
            with contextlib.closing(_parallel(pending.values(), scratch, jobs, flying)) as results:
                for outcome in results:
                    del pending[outcome.hash]
                    flying.discard(outcome.hash)
                    yield outcome
        except Exception as error:
            if not flying:  # nothing was handed out: no cell is to blame, and no use to repeat
                raise
            suspects = [pending.pop(key) for key in list(pending) if key in flying]
            say(f"a worker died ({type(error).__name__}): trying "
                f"{counted(len(suspects), 'cell')} again, one at a time.")  # fmt: skip
            for cell in suspects:
                yield _alone(cell, scratch, jobs)


def _alone(cell: Cell, scratch: str, jobs: int) -> Outcome:
    """Try a suspect again with nothing beside it."""
    reason: Exception | None = None
    for _ in range(RETRIES):
        try:
            (outcome,) = _parallel([cell], scratch, jobs, set())
        except Exception as error:
            reason = error
        else:
            return outcome
    return killed(cell.hash, cell.config, reason)


@contextlib.contextmanager
def _sigint_held_back() -> Iterator[None]:
    """Start workers that Ctrl-C never reaches, not even before :func:`start` has run in them.

    A blocked signal stays blocked in the processes that start meanwhile; here it arrives after.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parallel(cells: Iterable[Cell], scratch: str, jobs: int, flying: set[str]) -> Outcomes:
    """Outcomes as joblib's workers finish; ``flying`` holds the cells handed out."""
    import joblib

    def tasks() -> Iterator[Any]:
        for cell in list(cells):
            flying.add(cell.hash)
            yield joblib.delayed(run_cell)(cell.hash, cell.config, scratch)

    parallel = joblib.Parallel(
        n_jobs=jobs, backend="loky", pre_dispatch="n_jobs", batch_size=1,
        return_as="generator_unordered", initializer=start, initargs=(os.getpid(),),
    )  # fmt: skip
    with _sigint_held_back():
        results = parallel(tasks())
    try:
        for outcome in results:  # noqa: UP028  (`yield from` would close results by itself)
            yield outcome
    finally:
        # Closing kills the workers of an unfinished run; joblib warns that it does, as asked.
        with warnings.catch_warnings(action="ignore"):
            results.close()
