"""What a sweep will cost, before it runs: cells, what is done, time and memory."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.sweep import provenance
from gradlab.sweep.cells import Cell, group_labels
from gradlab.sweep.expansion import expand
from gradlab.sweep.spec import Spec
from gradlab.sweep.store import FILE, Store, exists

if TYPE_CHECKING:
    from gradlab.sweep.rates import Work

DRIVER_BYTES = 350 * 2**20  # Python with torch and pandas loaded, which works no cell itself
# What a new worker takes to import torch and load compiled kernels: 2 to 4 s on a server's core.
START_SECONDS = 3.0
RECORDED = "finished cells' own time"


@dataclass(frozen=True)
class Group:
    """The cells of one problem and one estimator.

    Attributes:
        problem: what varies of the objective, student and settings, in words.
        estimator: the estimator with its varying options, in words.
        total: number of cells.
        done: finished ones.
        failed: failed ones.
        seconds: estimated seconds of work for the missing ones, on one worker; ``None`` where it
            was not asked for.
    """

    problem: str
    estimator: str
    total: int
    done: int
    failed: int
    seconds: float | None = None

    @property
    def missing(self) -> int:
        """Cells that have neither finished nor failed."""
        return self.total - self.done - self.failed


@dataclass(frozen=True)
class Expense:
    """One kind of work of the missing cells, over all of them.

    Attributes:
        kind: in words.
        count: how many times it is done.
        seconds: of doing it that often, on one worker.
        fastest: seconds of doing it once, for the problem where that takes least.
        slowest: the same where it takes most.
    """

    kind: str
    count: float
    seconds: float
    fastest: float
    slowest: float


@dataclass(frozen=True)
class Plan:
    """What a run would do.

    Attributes:
        groups: the cells by problem and estimator.
        jobs: number of workers assumed.
        seconds: estimated wall time of the missing cells, with the start of the workers.
        bytes: estimated peak memory of all workers together.
        expenses: what the time goes to, the largest first.
        longest: seconds of the longest cell: no run is shorter.
        start: seconds that workers take to start.
    """

    groups: list[Group]
    jobs: int
    seconds: float
    bytes: int
    expenses: list[Expense]
    longest: float
    start: float = START_SECONDS

    @property
    def work(self) -> float:
        """Seconds of all missing cells on one worker."""
        return sum(expense.seconds for expense in self.expenses)

    def count(self, kind: str) -> int:
        """The sum of ``total``, ``done``, ``failed`` or ``missing`` over all groups."""
        return sum(getattr(group, kind) for group in self.groups)


def plan(spec: Spec, results: str | Path = "results", jobs: int | None = None) -> Plan:
    """Count the cells of a spec and estimate the time and memory of those that are missing.

    A cell's time is that of finished cells that differ from it in init and batch alone, where the
    store has any; otherwise that of its kinds of work, each measured here once
    (:mod:`gradlab.sweep.rates`). What cells share, such as a reference or a trained student, is
    divided among them. Compiling is not counted: kernels are compiled once and kept on disk.

    Args:
        spec: what would run.
        results: the folder that holds one folder per study.
        jobs: number of workers; ``None`` takes one per core and thread of a cell.

    Raises:
        SpecError: the spec is wrong.
        StoreError: the results cannot be read.
    """
    from gradlab import studies

    cells = expand(spec)
    jobs = jobs or default_jobs(spec.threads)
    stored = stored_cells(Path(results) / spec.name)
    missing = [cell for cell in cells if cell.hash not in stored]
    costs, expenses = _costs(missing, _recorded_seconds(stored.values()))
    # Work shared evenly, but no run is shorter than its longest cell.
    longest = max(costs.values(), default=0.0)
    wall = max(sum(costs.values()) / jobs, longest)
    largest = sorted((studies.bytes_needed(c.config) for c in missing), reverse=True)[:jobs]
    memory = sum(largest) + DRIVER_BYTES * (len(largest) > 1)
    return Plan(
        groups=group([(c.hash, c.config) for c in cells], stored, costs),
        jobs=jobs,
        seconds=wall + START_SECONDS * bool(missing),
        bytes=memory,
        expenses=expenses,
        longest=longest,
    )


def _costs(
    missing: Sequence[Cell], known: Mapping[str, float]
) -> tuple[dict[str, float], list[Expense]]:
    """Estimated seconds of each cell by hash, and what they go to."""
    if not missing:
        return {}, []
    from gradlab.sweep.rates import Rates

    rates = Rates()
    # By kind of cell: (words, work if it was measured, times, seconds of one).
    parts: dict[str, list[tuple[str, Work | None, float, float]]] = {}
    for cell in missing:
        kind = _kind(cell.config)
        if kind in parts:
            continue
        if kind in known:
            parts[kind] = [(RECORDED, None, 1.0, known[kind])]
        else:
            parts[kind] = [(w.words, w, w.count, s) for w, s in rates.costs(cell.config)]
    found = [(cell, part) for cell in missing for part in parts[_kind(cell.config)]]
    sharers = Counter(_shared(work, cell) for cell, (_, work, _, _) in found)
    costs: dict[str, float] = defaultdict(float)
    tallies: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for cell, (words, work, count, seconds) in found:
        owner = _shared(work, cell)
        count = count / (sharers[owner] if owner else 1)
        costs[cell.hash] += count * seconds
        tallies[words].append((count, seconds))
    expenses = [
        Expense(
            kind=words,
            count=sum(count for count, _ in tally),
            seconds=sum(count * seconds for count, seconds in tally),
            fastest=min(seconds for _, seconds in tally),
            slowest=max(seconds for _, seconds in tally),
        )
        for words, tally in tallies.items()
    ]
    return costs, sorted(expenses, key=lambda expense: -expense.seconds)


def _shared(work: Work | None, cell: Cell) -> tuple[Any, ...] | None:
    """Which piece of work this is where cells share it, otherwise None."""
    if work is None or not work.once_per:
        return None
    return work.identity, *(cell.config[coordinate] for coordinate in work.once_per)


def group(
    cells: Sequence[tuple[str, Mapping[str, Any]]],
    stored: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, float] | None = None,
) -> list[Group]:
    """Cells by problem and estimator, in the order in which they first appear.

    Args:
        cells: (hash, configuration).
        stored: what the store knows of cells, by hash, with their ``status``.
        costs: estimated seconds of the missing ones by hash; ``None`` leaves the estimate out.
    """
    tallies: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    labels = group_labels([config for _, config in cells])
    for label, (key, _) in zip(labels, cells, strict=True):
        tally = tallies[label]
        status = stored[key]["status"] if key in stored else "missing"
        tally["total"] += 1
        tally[status] += 1
        if costs is not None and status == "missing":
            tally["seconds"] += costs[key]
    return [
        Group(
            problem, estimator, int(tally["total"]), int(tally["done"]), int(tally["failed"]),
            None if costs is None else tally["seconds"],
        )
        for (problem, estimator), tally in tallies.items()
    ]  # fmt: skip


def stored_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """What a study's store knows of its cells, by hash; empty where there is no store yet."""
    if not exists(folder / FILE):
        return {}
    with Store(folder / FILE) as store:
        return {cell["hash"]: cell for cell in store.cells()}


def default_jobs(threads: int) -> int:
    """One worker per core and torch thread of a cell."""
    return max(provenance.cores() // threads, 1)


def weights(study: Any, cells: Sequence[Cell]) -> list[float]:
    """Estimated work of each cell, in any unit: what the time left is shared out by."""
    return [float(study.forward_passes(c.config)) * _size(c.config["objective"]) for c in cells]


def _size(objective: Mapping[str, Any]) -> float:
    """How much one forward pass costs, in any unit.

    A layer's product costs num_dim² and its activation num_dim per example, and on a processor
    the activation weighs like some sixteen multiply-adds.
    """
    num_dim = objective.get("num_dim") or objective.get("width") or 1
    depth = objective.get("depth") or 1
    return (objective.get("batch_size") or 1) * depth * num_dim * (num_dim + 16)


def _recorded_seconds(stored: Any) -> dict[str, float]:
    """The mean seconds of finished cells by kind."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for cell in stored:
        if cell["status"] == "done" and "seconds" in cell["provenance"]:
            seconds[_kind(cell["config"])].append(cell["provenance"]["seconds"])
    return {kind: sum(values) / len(values) for kind, values in seconds.items()}


def _kind(config: Mapping[str, Any]) -> str:
    """What a cell's cost depends on: everything but its replicate."""
    replicate = {"seed", "init", "batch"}
    return json.dumps({k: v for k, v in config.items() if k not in replicate}, sort_keys=True)
