"""The driver of a sweep: hand missing cells to workers, store each one as it finishes.

The driver alone writes. Workers are processes here (:mod:`gradlab.sweep.pool`) or on a cluster
(:mod:`gradlab.sweep.cluster`); both give every cell's outcome, whatever happens to the workers.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from gradlab.sweep import cluster, pool, provenance
from gradlab.sweep.cells import Cell
from gradlab.sweep.expansion import expand
from gradlab.sweep.plan import default_jobs, weights
from gradlab.sweep.progress import Progress
from gradlab.sweep.spec import Spec, SpecError
from gradlab.sweep.store import FILE, Store, lock, prepare
from gradlab.sweep.units import counted
from gradlab.sweep.worker import Outcome

Backend = Literal["loky", "dask"]


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        folder: the study's folder.
        total: cells of the study.
        ran: cells that this run finished.
        done: cells that are done, by this run or before.
        failed: cells that failed, in this run or before.
        seconds: wall time of this run.
        warnings: how many cells of this run gave each warning.
        stale: finished cells that other code than this made.
    """

    folder: Path
    total: int
    ran: int
    done: int
    failed: int
    seconds: float
    warnings: dict[str, int]
    stale: int = 0


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept."""


def run(
    spec: Spec,
    results: str | Path = "results",
    *,
    jobs: int | None = None,
    backend: Backend = "loky",
    scheduler: str | None = None,
    retry: bool = False,
    progress: bool = True,
) -> Summary:
    """Run the cells of a spec that are missing; what is done stays as it is.

    Args:
        spec: what to run.
        results: the folder that holds one folder per study.
        jobs: number of workers; ``None`` takes one per core and thread of a cell; 1 works in this
            process. The numbers are the same for any.
        backend: ``loky`` for processes on this machine, ``dask`` for a cluster.
        scheduler: address of the Dask scheduler; ``None`` starts workers on this machine.
        retry: also run the cells again that failed before.
        progress: show the progress on stderr.

    Raises:
        SpecError: the spec or an argument is wrong.
        StoreError: the results cannot be written, or another run is writing them.
        Interrupted: Ctrl-C; the finished cells are kept.
    """
    cells = expand(spec)
    folder = Path(results) / spec.name
    prepare(folder)
    with lock(folder), Store(folder / FILE, writable=True) as store:
        environment = provenance.environment()
        store.select(
            [(cell.hash, cell.config) for cell in cells],
            spec=spec.model_dump(mode="json"),
            environment=environment,
        )
        _write_json(folder / "environment.json", environment)
        return _run_missing(
            cells, store, folder, jobs or default_jobs(spec.threads), backend, scheduler,
            store.failed() if retry else set(), progress,
        )  # fmt: skip


def retry(
    folder: str | Path,
    prefixes: Sequence[str] = (),
    *,
    stale: bool = False,
    jobs: int | None = None,
    progress: bool = True,
) -> Summary:
    """Run failed cells of a study again, from the configurations in its store.

    Args:
        folder: the study's folder.
        prefixes: first digits of the hashes of the cells to run; empty means all that failed.
        stale: run the finished cells again that other code made.
        jobs: number of workers, see :func:`run`.
        progress: show the progress on stderr.

    Raises:
        SpecError: a prefix fits no cell of the study.
        StoreError: the results cannot be read or written, or another run is writing them.
        Interrupted: Ctrl-C; the finished cells are kept.
    """
    folder = Path(folder)
    prepare(folder)
    with lock(folder), Store(folder / FILE, writable=True) as store:
        cells = [Cell(config) for _, config in store.selection()]
        again = {c["hash"] for c in stale_cells(store)} if stale else store.failed()
        if prefixes:
            again = {_matching(cells, prefix) for prefix in prefixes}
        threads = max((cell.config["threads"] for cell in cells), default=1)
        return _run_missing(
            cells, store, folder, jobs or default_jobs(threads), "loky", None, again, progress,
            only=again,
        )  # fmt: skip


def stale_cells(store: Store) -> list[dict[str, Any]]:
    """The study's finished cells that were made by other code than this."""
    selected = {key for key, _ in store.selection()}
    current = provenance.code_digest()
    return [
        cell
        for cell in store.cells()
        if cell["status"] == "done"
        and cell["hash"] in selected
        and cell["provenance"].get("code") != current
    ]


def _matching(cells: Sequence[Cell], prefix: str) -> str:
    found = [cell.hash for cell in cells if cell.hash.startswith(prefix.lower())]
    if len(found) != 1:
        what = "no cell" if not found else counted(len(found), "cell")
        raise SpecError(f"'{prefix}' fits {what} of this study: give the digits that "
                        "`gradlab failed` shows.")  # fmt: skip
    return found[0]


def _run_missing(
    cells: Sequence[Cell],
    store: Store,
    folder: Path,
    jobs: int,
    backend: Backend,
    scheduler: str | None,
    again: set[str],
    progress: bool,
    only: set[str] | None = None,
) -> Summary:
    from gradlab import studies

    started = time.monotonic()
    settled = (store.finished() | store.failed()) - again
    todo = [c for c in cells if c.hash not in settled and (only is None or c.hash in only)]
    # Trained students and reference gradients are kept for the code that computed them alone.
    scratch = folder / "scratch" / provenance.code_digest()
    scratch.mkdir(parents=True, exist_ok=True)
    notes: Counter[str] = Counter()
    ran = 0
    work: dict[str, float] = {}
    if todo:
        study = studies.create(todo[0].config["study"])
        work = dict(zip((c.hash for c in todo), weights(study, todo), strict=True))
    done = sum(cell.hash in settled for cell in cells)
    with Progress(sum(work.values()), len(cells), done, _stream(progress)) as display:
        configs = {cell.hash: cell.config for cell in todo}
        shared = str(scratch.resolve())
        if backend == "dask":
            outcomes = cluster.outcomes(todo, shared, jobs, scheduler)
        else:
            outcomes = pool.outcomes(todo, shared, jobs, display.say)
        try:
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    _store(store, configs[outcome.hash], outcome)
                    ran += outcome.failure is None
                    notes.update(outcome.provenance.get("warnings", ()))
                    seconds = outcome.provenance.get("seconds", 0.0)
                    display.advance(work[outcome.hash], seconds, outcome.failure is not None)
        except KeyboardInterrupt:
            finished = len(store.finished() & {cell.hash for cell in cells})
            raise Interrupted(
                f"interrupted: {finished:,} of {counted(len(cells), 'cell')} are done and kept, "
                "the same command continues."
            ) from None
    wanted = {cell.hash for cell in cells}
    return Summary(
        folder=folder,
        total=len(cells),
        ran=ran,
        done=len(store.finished() & wanted),
        failed=len(store.failed() & wanted),
        seconds=time.monotonic() - started,
        warnings=dict(notes.most_common()),
        stale=len(stale_cells(store)),
    )


def _store(store: Store, config: dict[str, Any], outcome: Outcome) -> None:
    if outcome.failure is None:
        try:
            store.save(outcome.hash, config, outcome.tables, outcome.provenance)
        except TypeError as error:  # a study that returned something else than rows of scalars
            failure = f"TypeError: {error}\n"
            store.save_failure(outcome.hash, config, failure, outcome.provenance)
    else:
        store.save_failure(outcome.hash, config, outcome.failure, outcome.provenance)


def _stream(progress: bool) -> TextIO:
    return sys.stderr if progress else io.StringIO()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
