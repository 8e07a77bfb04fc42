"""What the work of a cell takes on this machine, kind by kind.

A cell is a handful of kinds of work, each done so many times: a batch with its targets, members of
a population, estimates, judged learning rates. :func:`work` counts them as the study would do them;
:class:`Rates` does each kind once, on a part of the batch and of the population, and scales
linearly. An estimate is measured by the estimator itself, so it costs what the implementation
costs (central differences far less than two passes per weight).

A study of another package can have a method ``work(cell)`` that returns a list of :class:`Work`;
without one its ``forward_passes`` are taken at the rate of a population member.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from gradlab import studies
from gradlab.binary import surrogates
from gradlab.evaluation import GaussianPopulation, LinePopulation, Params, Population
from gradlab.evaluation import population as pop
from gradlab.objectives import Objective
from gradlab.studies import cells, gradient_variance, networks, training_run
from gradlab.studies.base import Cell
from gradlab.studies.gradient_quality import smoothed_reference
from gradlab.studies.steps import direction
from gradlab.sweep.worker import torch_threads

MEASURED_EXAMPLES = 32_768
# What the first, short run of a kind has: fewer would measure calls instead of arithmetic.
_EXAMPLES = 2048
_MEMBERS = 64
# Of networks, which take milliseconds per example.
_NETWORK_EXAMPLES = 32
_NETWORK_COORDINATES = (8, 64)
_NETWORK_SECONDS = 0.5
# Seconds of one run, of which there are at most three and the median counts.
_SECONDS = 0.05
_REPEATS = 3

KINDS: dict[str, str] = {
    "batch": "batch with targets",
    "loss": "loss",
    "member": "population member",
    "estimate": "estimate",
    "metric": "empirical Fisher",
    "lr": "lr judged",
    "single": "lr judged alone",
    "sample": "sample judged",
    "training": "training step",
    "network": "training step of a network",
    "pass": "forward pass",
}


@dataclass(frozen=True)
class Work:
    """One kind of work of a cell.

    Attributes:
        kind: one of ``KINDS``.
        cell: the cell that says how it is done; not always the one that asks for it, since a
            reference has an estimator of its own.
        count: how many times.
        once_per: coordinates ("init", "batch") whose cells share it; empty where each does its own.
    """

    kind: str
    cell: Cell
    count: float = 1.0
    once_per: tuple[str, ...] = ()

    @functools.cached_property
    def identity(self) -> str:
        """What its time depends on, and if it is shared what it is: equal for all replicates."""
        parts: dict[str, Any] = {
            "kind": self.kind, "objective": self.cell["objective"], "threads": self.cell["threads"]
        }  # fmt: skip
        if self.kind in ("estimate", "metric", "member", "network"):
            left_out = "population" if self.kind == "member" else ""
            estimator = self.cell["estimator"]
            parts["estimator"] = {k: v for k, v in estimator.items() if k != left_out}
        if self.kind == "lr":
            parts["lr"] = self.cell["settings"]["lr"]
        if self.once_per:
            parts["once"] = [self.once_per, self.count, self.cell["student"]]
        return json.dumps(parts, sort_keys=True)

    @property
    def words(self) -> str:
        """The kind in words, with whose estimate it is.

        >>> cell = {"estimator": {"name": "cdg", "epsilon": 0.1}}
        >>> Work("estimate", cell).words, Work("lr", cell).words
        ('CDG', 'lr judged')
        """
        name = self.cell["estimator"]["name"]
        if self.kind in ("estimate", "metric"):
            label = cells.label_of(self.cell)
            return f"{label}, Fisher matrix" if self.kind == "metric" else label
        if self.kind == "member" and name == "nes":
            return "NES member"
        return KINDS[self.kind]


def work(cell: Cell) -> list[Work]:
    """What one cell does.

    Raises:
        ValueError: an unknown study.

    >>> cell = {"study": "gradient_quality", "threads": 1, "student": {"state": "fresh"},
    ...         "objective": {"name": "teacher_student", "num_dim": 4, "batch_size": 64,
    ...                       "depth": 2},
    ...         "estimator": {"name": "ste", "surrogate": "relu"},
    ...         "settings": {"reference": "cdg", "reference_epsilon": 0.1, "repeats": 3}}
    >>> [(each.words, each.count) for each in work(cell)]
    [('batch with targets', 1.0), ('STE relu', 3.0), ('CDG', 1.0)]
    """
    study = studies.create(cell["study"])
    if hasattr(study, "work"):
        return list(study.work(cell))
    if cell["study"] not in _STUDIES:
        return [Work("pass", cell, float(study.forward_passes(cell)))]
    return [*_STUDIES[cell["study"]](cell), *_training(cell)]


def _loss_decrease(cell: Cell) -> list[Work]:
    settings = cell["settings"]
    judges = 2 if settings["fresh"] else 1
    lrs = float(len(settings["lr"]))
    steps = lrs * judges * len(settings["step_layers"]) * len(cells.populations_of(cell))
    tensors, weights = cells.sizes_of(cell)
    if settings["update"] != "joint":
        rounds = tensors if settings["update"] == "layerwise" else weights
        # The first of a step's estimates is the same for every lr.
        estimates = 1 + (rounds - 1) * lrs
        judged = Work("single", cell, steps)
    elif settings["final"] == "sample":
        estimates, judged = 1.0, Work("sample", cell, steps * settings["final_samples"])
    else:
        estimates, judged = 1.0, Work("lr", cell, steps)
    return [Work("batch", cell, judges), *_estimates(cell, estimates), judged]


def _gradient_quality(cell: Cell) -> list[Work]:
    settings = cell["settings"]
    reference: dict[str, Any] = {"name": "cdg", "epsilon": settings["reference_epsilon"]}
    count = 1.0
    if settings["reference"] == "smoothed":
        reference = smoothed_reference(cell, settings["reference_passes"] // 2)
        count = 2.0
        if reference["name"] == "nes_cdg":  # draws cost the same each: a few are measured
            reference["samples"], count = 4, settings["reference_passes"] / 4
    shared = Work("estimate", {**cell, "estimator": reference}, count, ("init", "batch"))
    return [Work("batch", cell), *_estimates(cell, float(settings["repeats"])), shared]


def _trajectory(cell: Cell) -> list[Work]:
    settings = cell["settings"]
    steps = float(settings["steps"])
    if settings["budget"] == "forward_passes":
        steps = min(steps, max(settings["amount"] / max(cells.nominal_passes(cell), 1.0), 1.0))
    moving = settings["resample"] and cell["objective"]["name"] != "test_function"
    # A recorded step takes a loss on two batches; nearly all points of a log scale are recorded.
    recorded = 2 * min(settings["points"], steps)
    batches = 2 + steps * moving
    return [Work("batch", cell, batches), *_estimates(cell, steps), Work("loss", cell, recorded)]


def _loss_slice(cell: Cell) -> list[Work]:
    settings = cell["settings"]
    judges = 2.0 if settings["fresh"] else 1.0
    points = float(cells.sizes_of(cell)[1] * settings["points"])
    return [
        Work("batch", cell, judges),
        *_estimates(cell, 1.0),
        Work("loss", cell, points * judges),
    ]


def _gradient_variance(cell: Cell) -> list[Work]:
    """One estimate more than repeats comes first, untimed."""
    settings, options = cell["settings"], cell["estimator"]
    count = settings["repeats"] + 1.0
    estimates = Work("estimate", cell, count)
    if options["name"] == "score_function" and options["noise"] == "weights":
        nes = {"name": "nes", "population": options["population"], "sigma": options["sigma"]}
        plain = {**cell, "study": "gradient_quality", "estimator": nes}
        estimates = Work("member", plain, count * options["population"])
    few = 4  # of the reference's passes are measured
    reference = {**cell, "estimator": gradient_variance.reference_entry(cell, few)}
    passes = Work("estimate", reference, settings["reference_passes"] / few, ("init", "batch"))
    own = [Work("batch", cell), estimates, passes]
    if settings["train_epochs"]:
        own.append(Work("network", cell, gradient_variance.training_steps(cell), ("init",)))
    return own


def _training_run(cell: Cell) -> list[Work]:
    settings = cell["settings"]
    # a method's pretraining is shared, and its steps are a little cheaper
    epochs = settings["epochs"] + settings.get("pretrain_epochs", 0)
    steps = training_run.steps_of(cell) * epochs / settings["epochs"]
    return [Work("network", cell, float(steps))]


_STUDIES: dict[str, Callable[[Cell], list[Work]]] = {
    "loss_slice": _loss_slice,
    "training_run": _training_run,
    "gradient_variance": _gradient_variance,
    "variational_run": _training_run,
    "gradient_quality": _gradient_quality,
    "loss_decrease": _loss_decrease,
    "trajectory": _trajectory,
}


def _estimates(cell: Cell, count: float) -> list[Work]:
    """Estimates by the cell's estimator; those of NES as so many members."""
    options = cell["estimator"]
    if options["name"] != "nes":
        return [Work("estimate", cell, count)]
    sizes = cells.populations_of(cell)
    members = Work("member", cell, count * float(max(size or 1 for size in sizes)))
    if not str(options.get("gradient")).startswith("empirical_fisher"):
        return [members]
    # A Gram matrix of all members, whatever the batch.
    plain = {**cell, "estimator": {**options, "gradient": "plain"}}
    return [replace(members, cell=plain), Work("metric", cell, count)]


def _training(cell: Cell) -> list[Work]:
    """The training of a converged student, at its longest: all cells of an init share it."""
    student = cell["student"]
    if student["state"] == "fresh":
        return []
    if cells.is_network(cell):
        larger = networks.as_training_run(cell)
        return [Work("network", larger, float(training_run.steps_of(larger)), ("init",))]
    batch_size = student.get("batch_size", cells.TRAINING["batch_size"])
    larger = {**cell, "objective": {**cell["objective"], "batch_size": batch_size}}
    steps = float(student.get("steps", cells.TRAINING["steps"]))
    return [Work("training", larger, steps, ("init",))]


class Rates:
    """Seconds of each kind of work on this machine, measured when first asked for.

    >>> cell = {"study": "gradient_quality", "threads": 1, "student": {"state": "fresh"},
    ...         "objective": {"name": "teacher_student", "num_dim": 2, "batch_size": 64,
    ...                       "depth": 1},
    ...         "estimator": {"name": "ste", "surrogate": "relu"},
    ...         "settings": {"reference": "cdg", "reference_epsilon": 0.1, "repeats": 3}}
    >>> [seconds > 0 for _, seconds in Rates().costs(cell)]
    [True, True, True]
    """

    def __init__(self) -> None:
        self._known: dict[str, float] = {}
        self._problem = ""
        self._objectives: dict[int, Objective] = {}

    def costs(self, cell: Cell) -> list[tuple[Work, float]]:
        """What a cell does, each with the seconds of doing it once."""
        found = [(each, self.seconds(each)) for each in work(cell)]
        if cell["study"] == "trajectory" and cell["settings"]["budget"] == "seconds":
            # Only estimating counts towards the budget; every estimate has its batch.
            steps = cell["settings"]["steps"]
            spent = sum(each.count * s for each, s in found if each.kind in ("estimate", "member"))
            left = min(1.0, cell["settings"]["amount"] / spent)
            found = [
                (replace(each, count=each.count * left) if each.count >= steps else each, seconds)
                for each, seconds in found
            ]
        return found

    def seconds(self, work: Work) -> float:
        """Seconds of one such piece of work."""
        if work.identity not in self._known:
            with torch_threads(work.cell["threads"]):
                self._known[work.identity] = self._measure(work)
        return self._known[work.identity]

    def _measure(self, work: Work) -> float:
        cell = {**work.cell, "seed": 0, "init": 0, "batch": 0}
        whole = cell["objective"].get("batch_size") or 1
        if "dataset" in cell["objective"] and work.kind != "network":
            return self._of_network(work, cell)
        # Of a forward pass studies know themselves how to measure it. The Gram matrix of the
        # empirical Fisher does not depend on the batch.
        examples = min(whole, {"pass": MEASURED_EXAMPLES, "metric": 64}.get(work.kind, _EXAMPLES))
        if work.kind == "network":
            return studies.seconds_per_step(cell)
        if work.kind == "pass":
            return studies.seconds_per_forward_pass(_resized(cell, examples)) * whole / examples
        members = max(cells.populations_of(cell)[-1] or 1, 1) if work.kind == "member" else 1
        some = min(members, _MEMBERS)
        task, units = self._task(work.kind, cell, examples, some)
        task()  # compiles, or loads what was compiled before
        if work.kind == "metric":
            return _median(task)
        taken = _clock(task)
        # First the batch, then the population, until one run takes long enough to be timed.
        larger = min(whole, MEASURED_EXAMPLES, max(examples, int(examples * _SECONDS / taken)))
        taken *= larger / examples
        more = min(members, max(some, int(some * _SECONDS / taken) // 2 * 2))
        if (larger, more) != (examples, some):
            task, units = self._task(work.kind, cell, larger, more)
            task()
        return _median(task) / units * whole / larger

    def _of_network(self, work: Work, cell: Cell) -> float:
        """Seconds on a part of the batch; a network's own fixed costs come but once."""
        whole = cell["objective"]["batch_size"]
        few = min(whole, _NETWORK_EXAMPLES)

        def seconds(cell: Cell, members: int = 1) -> float:
            task, units = self._task(work.kind, cell, few, members)
            task()
            taken: float = _median(task) / units * whole / few
            return taken

        weights = cells.sizes_of(cell)[1]
        if work.kind == "member":
            # As many as half a second allows: what comes before the chosen layers comes but once.
            largest = max(cells.populations_of(cell)[-1] or 1, 1)
            task, units = self._task(work.kind, cell, few, min(2, largest))
            more = int(units * _NETWORK_SECONDS / _clock(task)) // 2 * 2
            return seconds(cell, min(largest, max(more, 2)))
        if work.kind != "estimate" or cell["estimator"]["name"] != "cdg":
            return seconds(cell)
        # Of a few weights, and of some: what a further one takes, beside what all have in common.
        points = []
        for number in _NETWORK_COORDINATES:
            part = {**cell, "objective": {**cell["objective"], "coordinates": number}}
            points.append((cells.sizes_of(part)[1], seconds(part)))
            if points[-1][0] == weights:
                return points[-1][1]
        (fewer, short), (more, long) = points
        return long + (weights - more) * max(long - short, 0.0) / (more - fewer)

    def _task(
        self, kind: str, cell: Cell, examples: int, members: int
    ) -> tuple[Callable[[], object], int]:
        """One run of a kind of work on so many examples, and how many units it is."""
        small = _resized(cell, examples)
        if kind in ("batch", "training"):
            return functools.partial(_batch, small, train=kind == "training"), 1
        objective = self._objective(small, examples)
        params = objective.initial_params(0)
        if kind == "loss":
            return lambda: objective.loss(params), 1
        if kind in ("lr", "single", "sample"):
            population = _judged(kind, cell, objective, params)
            return lambda: objective.decreases(params, population), pop.size(population)
        if kind == "member":
            small = {**small, "estimator": {**cell["estimator"], "population": members}}
        estimator = cells.estimator_of(small)

        def estimate() -> object:
            generator = torch.Generator().manual_seed(0)
            return estimator.estimates(objective, params, generator=generator)

        return estimate, members

    def _objective(self, cell: Cell, examples: int) -> Objective:
        """The objective on so many examples; those of one problem are kept."""
        problem = json.dumps({**cell["objective"], "batch_size": None}, sort_keys=True)
        if problem != self._problem:
            self._problem, self._objectives = problem, {}
        if examples not in self._objectives:
            self._objectives[examples] = cells.objective_of(cell)
        return self._objectives[examples]


def _resized(cell: Cell, examples: int) -> dict[str, Any]:
    objective = cell["objective"]
    if objective.get("batch_size"):
        objective = {**objective, "batch_size": examples}
    return {**cell, "objective": objective}


def _batch(cell: Cell, *, train: bool) -> None:
    """A new batch with its targets and its first loss; and a step of a student's training."""
    objective = cells.objective_of(cell)
    params = objective.initial_params(0)
    objective.loss(params)
    if train:
        objective.surrogate_gradient(params, surrogates.create("hardtanh"))


def _judged(kind: str, cell: Cell, objective: Objective, params: Params) -> Population:
    """What a study judges: a line of all lrs, a single step, or samples around it."""
    settings = cell["settings"]
    line = LinePopulation(
        params, direction(objective.initial_params(1), "tensor"), tuple(settings["lr"])
    )
    if kind == "sample":
        samples = min(settings["final_samples"], _MEMBERS)
        return GaussianPopulation(params, settings["final_sigma"], 0, 0, samples)
    return line if kind == "lr" else line.part(0, 1).members()


def _median(task: Callable[[], object]) -> float:
    """The median seconds of three runs, or of one or two that are slow."""
    taken = [_clock(task)]
    while len(taken) < _REPEATS and sum(taken) < 2 * _REPEATS * _SECONDS:
        taken.append(_clock(task))
    return statistics.median(taken)


def _clock(task: Callable[[], object]) -> float:
    """Seconds of one run; a GPU has done its work when the run ends or is waited for."""
    started = time.perf_counter()
    task()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return max(time.perf_counter() - started, 1e-9)
