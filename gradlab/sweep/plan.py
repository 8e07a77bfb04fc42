"""What a sweep will cost, before it runs: cells, what is done, time and memory."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.sweep import provenance
from gradlab.sweep.cells import Cell, group_labels
from gradlab.sweep.expansion import expand
from gradlab.sweep.spec import Spec
from gradlab.sweep.store import FILE, Store, exists
from gradlab.sweep.worker import torch_threads

MEASURED_EXAMPLES = 32_768
DRIVER_BYTES = 350 * 2**20  # Python with torch and pandas loaded, which works no cell itself


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
class Plan:
    """What a run would do.

    Attributes:
        groups: the cells by problem and estimator.
        jobs: number of workers assumed.
        seconds: estimated wall time of the missing cells.
        bytes: estimated peak memory of all workers together.
    """

    groups: list[Group]
    jobs: int
    seconds: float
    bytes: int

    def count(self, kind: str) -> int:
        """The sum of ``total``, ``done``, ``failed`` or ``missing`` over all groups."""
        return sum(getattr(group, kind) for group in self.groups)


def plan(spec: Spec, results: str | Path = "results", jobs: int | None = None) -> Plan:
    """Count the cells of a spec and estimate the time and memory of those that are missing.

    A cell's time is that of finished cells that differ from it in init and batch alone, where the
    store has any; otherwise the time of one forward pass, measured here once per objective, times
    the number of passes.

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
    study = studies.create(spec.study)
    known = _recorded_seconds(stored.values())
    pass_seconds: dict[str, float] = {}
    costs: dict[str, float] = {}
    for cell in cells:
        kind = _kind(cell.config)
        if cell.hash in stored or kind in costs:
            continue
        if kind in known:
            costs[kind] = known[kind]
            continue
        problem = json.dumps([cell.config["objective"], cell.config["threads"]], sort_keys=True)
        if problem not in pass_seconds:
            pass_seconds[problem] = _measure(cell.config)
        costs[kind] = study.forward_passes(cell.config) * pass_seconds[problem]
    missing = [cell for cell in cells if cell.hash not in stored]
    seconds = [costs[_kind(cell.config)] for cell in missing]
    # Work shared evenly, but no run is shorter than its longest cell.
    wall = max(sum(seconds) / jobs, max(seconds, default=0.0))
    largest = sorted((studies.bytes_needed(c.config) for c in missing), reverse=True)[:jobs]
    memory = sum(largest) + DRIVER_BYTES * (len(largest) > 1)
    return Plan(
        groups=group([(c.hash, c.config) for c in cells], stored, costs),
        jobs=jobs,
        seconds=wall,
        bytes=memory,
    )


def _measure(config: Mapping[str, Any]) -> float:
    """Seconds of one forward pass on this machine; a large batch is measured on a part of it."""
    from gradlab import studies

    objective = config["objective"]
    size = objective.get("batch_size") or 1
    part = min(size, MEASURED_EXAMPLES)
    smaller = {**objective, "batch_size": part} if "batch_size" in objective else objective
    with torch_threads(config["threads"]):
        return studies.seconds_per_forward_pass({**config, "objective": smaller}) * size / part


def group(
    cells: Sequence[tuple[str, Mapping[str, Any]]],
    stored: Mapping[str, Mapping[str, Any]],
    costs: Mapping[str, float] | None = None,
) -> list[Group]:
    """Cells by problem and estimator, in the order in which they first appear.

    Args:
        cells: (hash, configuration).
        stored: what the store knows of cells, by hash, with their ``status``.
        costs: estimated seconds by kind of cell; ``None`` leaves the estimate out.
    """
    tallies: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    labels = group_labels([config for _, config in cells])
    for label, (key, config) in zip(labels, cells, strict=True):
        tally = tallies[label]
        status = stored[key]["status"] if key in stored else "missing"
        tally["total"] += 1
        tally[status] += 1
        if costs is not None and status == "missing":
            tally["seconds"] += costs[_kind(config)]
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
    num_dim, depth = objective.get("num_dim") or 1, objective.get("depth") or 1
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
