r"""Whole searches within a budget of forward passes: where each method of search ends.

The methods are those of :mod:`gradlab.search`, on the cell's one batch from the cell's student on;
beside them ``descent`` takes steps against an estimated gradient. ``loss`` is that at the mean of
the search distribution (of the chains' points, or the particles' weighted mean), ``best_loss`` the
lowest of anything evaluated so far, and ``best_loss_fresh`` the loss of the same weights on an
unseen batch: a search that evaluates thousands of members on one batch may well overfit it.
``width_mean``, ``width_min`` and ``width_max`` are the geometric mean and the range of the search
distribution's principal standard deviations (of a walk, those of its moves); ``acceptance_rate`` is
the part of its proposals that a walk accepted: of chains all so far, at the lowest temperature, of
particles the last ones.

All evaluations are counted, the loss at the mean after every generation among them
(:func:`gradlab.search.minimize` has it compete for the best). A descent's loss comes with the
forward pass that an STE differentiates; with other estimators it is one pass more. A generation
that would overrun the budget is not begun. Random walks flip the signs of the objective's binary
weights and move the real ones; all others search the latent weights. Where real weights enter only
through signs, the length of a search distribution's mean is free.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
import torch

from gradlab import search
from gradlab.estimators import GradientEstimate
from gradlab.estimators.ste import surrogate_label
from gradlab.evaluation import Params
from gradlab.objectives import Objective
from gradlab.search import Metropolis, Particles, SearchMethod, SearchState, TraceRow
from gradlab.studies import cells, searches
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.clock import now
from gradlab.studies.searches import Descent
from gradlab.studies.steps import direction
from gradlab.studies.students import student_of

_REHEARSAL_EXAMPLES = 4


class SearchRunSettings(Settings):
    """Settings of the study.

    Attributes:
        budget: forward passes over the whole batch, backward passes counted in.
        points: about how many rows to record, evenly in log passes.
    """

    budget: Annotated[int, pydantic.Field(ge=1)] = 10_000
    points: Annotated[int, pydantic.Field(ge=1)] = 40


class SearchRun:
    """The study."""

    name = "search_run"
    settings_model = SearchRunSettings
    entries = searches.REGISTRY
    list_options = searches.LIST_OPTIONS
    listed_as = "searches"

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run, before anything is measured."""
        method, budget = _method(cell), cell["settings"]["budget"]
        if isinstance(method, Descent):
            cells.require_runnable(_as_trajectory(cell, method))
            objective = cells.objective_of(_smaller(cell))
            params, generator = objective.initial_params(0), cells.generator_of(cell)
            estimate = method.source().estimate(objective, params, generator=generator)
            least, what = math.ceil(_passes(estimate, method.entry["name"])), "one step"
        else:
            # a search asks of an objective what NES asks: losses
            cells.require_runnable({**cell, "estimator": {"name": "nes"}})
            objective = cells.objective_of(_smaller(cell))
            method = searches.fitted(method, objective)
            params = objective.initial_params(0)
            least = searches.least_budget(method, params, cells.generator_of(cell))
            what = "all stages" if isinstance(method, Particles) else "one generation"
        if budget < least:
            raise ValueError(
                f"settings.budget is {budget:,} forward passes, and {what} of "
                f"{cells.label_of(cell)} take{'' if what == 'all stages' else 's'} {least:,}: "
                "raise the budget, or search with fewer members."
            )

    def forward_passes(self, cell: Cell) -> float:
        """The budget; a descent's in the work of its estimator."""
        method, settings = _method(cell), cell["settings"]
        work = float(settings["budget"])
        if isinstance(method, Descent):
            # every step takes the loss at its weights too
            as_trajectory = _as_trajectory(cell, method)
            work /= max(cells.nominal_passes(as_trajectory), 1.0)
            work *= cells.estimator_work(as_trajectory) + 1
        return work + float(settings["points"])

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """One row per recorded generation or step."""
        settings = SearchRunSettings.model_validate(cell["settings"])
        method = _method(cell)
        objective = cells.objective_of(cell, scratch=scratch)
        unseen = cells.objective_of(
            cell, batch=cell["batch"] + cells.FRESH_BATCHES, scratch=scratch
        )
        key = cells.key_columns(cell, leave_out=("points",))
        if isinstance(method, Descent) and "surrogate" in method.entry:
            key["surrogate"] = surrogate_label(method.entry["surrogate"])
        params, generator = student_of(cell, scratch), cells.generator_of(cell)
        # its clock starts now, and students are trained once for all methods
        record = _Record(key, settings, lambda params: float(unseen.loss(params)))
        if isinstance(method, Descent):
            _descend(method, objective, params, generator, record)
        else:
            _search(searches.fitted(method, objective), objective, params, generator, record)
        return {"search_run": record.rows}


def _method(cell: Cell) -> searches.Entry:
    options = {key: value for key, value in cell["estimator"].items() if key != "name"}
    return searches.create(cell["estimator"]["name"], **options)


def _smaller(cell: Cell) -> Cell:
    objective = dict(cell["objective"])
    if objective.get("batch_size"):
        objective["batch_size"] = min(objective["batch_size"], _REHEARSAL_EXAMPLES)
    return {**cell, "objective": objective}


def _as_trajectory(cell: Cell, method: Descent) -> Cell:
    """The cell of a study in which the descent's estimator is what is compared."""
    return {**cell, "study": "trajectory", "estimator": method.entry}


def _passes(estimate: GradientEstimate, name: str) -> float:
    """Of one step: the forward pass that an STE differentiates gives the loss as well."""
    spent = estimate.forward_passes + estimate.backward_passes
    return spent if name == "ste" and spent == 2 else spent + 1


@dataclass
class _Record:
    """The rows, about ``points`` of them, evenly in the logarithm of what was spent."""

    key: Row
    settings: SearchRunSettings
    unseen: Callable[[Params], float]
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    clock: float = field(default_factory=now)

    def due(self, spent: float) -> bool:
        """Whether the next point of the scale has been reached."""
        if not self.rows:
            return True
        points, scale = self.settings.points, math.log1p(self.settings.budget)
        last = self.rows[-1]["forward_passes"] + self.rows[-1]["backward_passes"]
        reached = [math.floor(points * math.log1p(x) / scale) for x in (last, spent)]
        return reached[1] > reached[0]

    def add(self, best: Params, **measured: Any) -> None:
        """One more row; what recording takes is not counted as the method's time."""
        self.seconds += now() - self.clock
        row = {**self.key, **measured, "seconds": self.seconds,
               "best_loss_fresh": number(self.unseen(best))}  # fmt: skip
        self.rows.append(row)
        self.clock = now()


def _search(
    method: SearchMethod,
    objective: Objective,
    params: Params,
    generator: torch.Generator,
    record: _Record,
) -> None:
    budget = record.settings.budget

    def after(state: SearchState, row: TraceRow) -> bool:
        over = state.evaluations + method.size(state) + 1 > budget
        if over or record.due(state.evaluations):
            widths = method.widths(state)
            record.add(
                state.best,
                step=row.generation,
                forward_passes=float(row.evaluations),
                backward_passes=0.0,
                loss=number(row.loss),
                best_loss=number(row.best_loss),
                width_mean=number(row.sigma),
                width_min=number(float(widths.min())),
                width_max=number(float(widths.max())),
                acceptance_rate=number(_acceptance(method, state)),
            )
        return over

    # a generation takes one evaluation or more, so the budget ends it
    search.minimize(objective, params, method, budget, generator, after)


def _acceptance(method: SearchMethod, state: SearchState) -> float:
    if not isinstance(method, Metropolis | Particles) or not state.generation:
        return math.nan
    found = method.acceptance_rate(state)
    return found[0] if isinstance(found, list) else found


def _descend(
    method: Descent,
    objective: Objective,
    params: Params,
    generator: torch.Generator,
    record: _Record,
) -> None:
    estimator, step, name = method.source(), 0, method.entry["name"]
    forward = backward = last = 0.0
    best, lowest = params, math.inf
    while True:
        loss = float(objective.loss(params))
        if loss < lowest:
            best, lowest = params, loss
        spent = forward + backward
        over = not math.isfinite(loss) or (step > 0 and spent + last > record.settings.budget)
        if over or record.due(spent):
            record.add(
                best,
                step=step,
                forward_passes=forward,
                backward_passes=backward,
                loss=number(loss),
                best_loss=number(lowest),
                width_mean=None,
                width_min=None,
                width_max=None,
                acceptance_rate=None,
            )
        if over:
            return
        estimate = estimator.estimate(objective, params, generator=generator)
        move = direction(estimate.gradient, method.normalize)
        params = {name: w - method.lr * move[name] for name, w in params.items()}
        last, step = _passes(estimate, name), step + 1
        forward += last - estimate.backward_passes
        backward += estimate.backward_passes
