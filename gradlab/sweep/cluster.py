"""Workers of a Dask cluster, or of one that starts here for the run.

This talks to ``distributed`` itself. Through joblib's Dask backend a worker that dies would never
be heard of: its backend calls back for results alone, and a generator of outcomes then waits for
ever. Dask retries the cell of a dead worker by its own count.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from typing import Any

from gradlab.sweep.cells import Cell
from gradlab.sweep.spec import SpecError
from gradlab.sweep.worker import RETRIES, Outcome, killed, run_cell


def outcomes(
    cells: Sequence[Cell], scratch: str, jobs: int, scheduler: str | None
) -> Generator[Outcome, None, None]:
    """The outcome of every cell, as they finish.

    Args:
        cells: what to run.
        scratch: a folder that the workers share for caches.
        jobs: number of workers to start here; a running cluster decides for itself.
        scheduler: address of a running cluster's scheduler.

    Raises:
        SpecError: the package ``distributed`` is not installed.
    """
    try:
        from distributed import as_completed
    except ImportError:
        raise SpecError("the Dask backend needs the package distributed: "
                        "pip install 'gradlab[dask]'.") from None  # fmt: skip
    waiting = iter(cells)
    with _client(jobs, scheduler) as client:
        workers = max(sum(client.nthreads().values()), 1)

        def submit(count: int) -> list[Any]:
            return [
                client.submit(run_cell, cell.hash, cell.config, scratch, key=cell.hash, pure=False)
                for cell in itertools.islice(waiting, count)
            ]

        # One more cell than there are workers, so that none waits for the network.
        configs = {cell.hash: cell.config for cell in cells}
        finished = as_completed(submit(workers + 1))
        for future in finished:
            key, error = future.key, future.exception()
            yield killed(key, configs[key], error) if error else future.result()
            future.release()
            finished.update(submit(1))


def _client(jobs: int, scheduler: str | None) -> Any:
    from distributed import Client

    if scheduler:
        try:
            return Client(scheduler)
        except (OSError, ValueError):
            raise SpecError(f"no Dask scheduler answers at {scheduler}: give the address that "
                            "`dask scheduler` printed.") from None  # fmt: skip
    return Client(
        n_workers=jobs,
        threads_per_worker=1,
        dashboard_address=None,
        scheduler_kwargs={"allowed_failures": RETRIES},
    )
