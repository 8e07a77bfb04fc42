"""The driver of a sweep: hand missing cells to workers, store each one as it finishes.

The driver alone writes. It hands out no more cells than there are workers, so that no finished
result waits unstored behind others. When a worker dies (killed, out of memory) nobody can say
which cell took it down: the cells in flight are suspects, and each is tried again alone, where a
second death has one culprit. A cell that takes its worker down three times is recorded as failed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from gradlab.sweep import provenance
from gradlab.sweep.cells import Cell, title
from gradlab.sweep.expansion import expand
from gradlab.sweep.plan import default_jobs, weights
from gradlab.sweep.progress import Progress
from gradlab.sweep.spec import Spec, SpecError
from gradlab.sweep.store import FILE, Store, lock, prepare
from gradlab.sweep.units import counted
from gradlab.sweep.worker import Outcome, run_cell, start

Backend = Literal["loky", "dask"]
BACKENDS: tuple[Backend, ...] = ("loky", "dask")
RETRIES = 2


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
    """

    folder: Path
    total: int
    ran: int
    done: int
    failed: int
    seconds: float
    warnings: dict[str, int]


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
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    notes: Counter[str] = Counter()
    ran = 0
    work: dict[str, float] = {}
    if todo:
        study = studies.create(todo[0].config["study"])
        work = dict(zip((c.hash for c in todo), weights(study, todo), strict=True))
    done = sum(cell.hash in settled for cell in cells)
    with Progress(sum(work.values()), len(cells), done, _stream(progress)) as display:
        configs = {cell.hash: cell.config for cell in todo}
        outcomes = _outcomes(todo, str(scratch), jobs, backend, scheduler, display.say)
        try:
            with contextlib.closing(outcomes):
                for outcome in outcomes:
                    _store(store, configs[outcome.hash], outcome)
                    ran += outcome.failure is None
                    notes.update(outcome.provenance.get("warnings", ()))
                    display.advance(work[outcome.hash], outcome.failure is not None)
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


def _outcomes(
    cells: Sequence[Cell],
    scratch: str,
    jobs: int,
    backend: Backend,
    scheduler: str | None,
    say: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """The outcome of every cell, as they finish."""
    if jobs == 1 and backend == "loky":
        for cell in cells:
            yield run_cell(cell.hash, cell.config, scratch)
        return
    with _pool(backend, scheduler, jobs):
        pending = {cell.hash: cell for cell in cells}
        while pending:
            flying: set[str] = set()
            outcomes = _parallel(pending.values(), scratch, jobs, backend, flying)
            try:
                with contextlib.closing(outcomes):
                    for outcome in outcomes:
                        del pending[outcome.hash]
                        flying.discard(outcome.hash)
                        yield outcome
            except Exception as error:
                if not flying:  # nothing was handed out: no cell is to blame, and no use to repeat
                    raise
                suspects = [pending.pop(key) for key in list(pending) if key in flying]
                say(f"a worker died ({_first_line(error)}): trying "
                    f"{counted(len(suspects), 'cell')} again, one at a time.")  # fmt: skip
                for cell in suspects:
                    yield _alone(cell, scratch, jobs, backend)


def _alone(cell: Cell, scratch: str, jobs: int, backend: Backend) -> Outcome:
    """Try a suspect again with nothing beside it."""
    for _ in range(RETRIES):
        try:
            (outcome,) = _parallel([cell], scratch, jobs, backend, set())
        except Exception as error:
            reason = error
        else:
            return outcome
    failure = (
        f"The worker died {RETRIES + 1} times while running this cell "
        f"({title(cell.config)}): out of memory, or killed.\n"
        f"{type(reason).__name__}: {reason}\n"
    )
    return Outcome(cell.hash, failure=failure, provenance=provenance.code())


def _parallel(
    cells: Iterable[Cell], scratch: str, jobs: int, backend: Backend, flying: set[str]
) -> Generator[Outcome, None, None]:
    """Outcomes as joblib's workers finish; ``flying`` holds the cells handed out."""
    import joblib

    options: dict[str, Any] = {"n_jobs": -1, "pre_dispatch": "n_jobs", "batch_size": 1}
    if backend == "loky":
        # (With one worker joblib would run in this very process, which must outlive any cell.)
        options |= {"n_jobs": max(jobs, 2), "backend": "loky"}
        options |= {"initializer": start, "initargs": (os.getpid(),)}

    def tasks() -> Iterator[Any]:
        for cell in list(cells):
            flying.add(cell.hash)
            yield joblib.delayed(run_cell)(cell.hash, cell.config, scratch)

    outcomes = joblib.Parallel(return_as="generator_unordered", **options)(tasks())
    try:
        yield from outcomes
    finally:
        # Closing kills the workers of an unfinished run; joblib warns that it does, as asked.
        with warnings.catch_warnings(action="ignore"):
            outcomes.close()


@contextlib.contextmanager
def _pool(backend: Backend, scheduler: str | None, jobs: int) -> Iterator[None]:
    """Where the workers live: joblib's own processes, or a Dask cluster and all its cores."""
    if backend == "loky":
        yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise SpecError("the Dask backend needs the package distributed: "
                        "pip install 'gradlab[dask]'.") from None  # fmt: skip
    import joblib

    # No inner_max_num_threads: Dask's backend refuses it, and each cell sets its own threads.
    local = {"n_workers": jobs, "threads_per_worker": 1, "dashboard_address": None}
    client = Client(scheduler) if scheduler else Client(**local)
    with client, joblib.parallel_config(backend="dask"):
        yield


def _stream(progress: bool) -> TextIO:
    return sys.stderr if progress else io.StringIO()


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:100] if lines[0] else type(error).__name__


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
