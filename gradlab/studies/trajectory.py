r"""Many steps instead of one: where an estimator leads, per forward pass and per second.

One-step decrease is myopic. Here each estimator drives w ← w - lr·g for a budget of steps, of
forward passes (a backward pass counts as one more) or of seconds, on a new batch each step unless
``resample`` is off. ``loss`` is that on the batch of the coming step, ``loss_fresh`` that on one
held-out batch. A step that would overrun the forward passes is not taken, except the first: an
estimator dearer than the whole budget shows what it does with one step. Seconds are those of
estimating and stepping alone. Runs are reproducible but for a budget in seconds, which ends where
the machine's speed says. A run that diverges ends there, with a row without a loss.

``decay_after``, ``decay_every`` and ``decay_factor`` shrink the lr in steps, and with
``decay_width`` the estimator's epsilon or sigma too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch

from gradlab.estimators import GradientEstimate
from gradlab.studies import cells
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.clock import now
from gradlab.studies.steps import Normalization, PositiveFloat, direction
from gradlab.studies.students import student_of

PositiveInt = Annotated[int, pydantic.Field(ge=1)]


class TrajectorySettings(Settings):
    """Settings of the study.

    Attributes:
        lr: learning rate.
        steps: most steps, whatever the budget.
        budget: what ends a run: "steps", "forward_passes" or "seconds".
        amount: forward passes (backward passes counted in) or seconds; unused for "steps".
        points: about how many rows to record, evenly in log steps.
        normalize: divide each tensor's gradient, or all of it, by its norm before stepping.
        resample: a new batch each step.
        decay_after: first step at which the lr has shrunk (0: never).
        decay_every: steps between shrinkings after that.
        decay_factor: by how much.
        decay_width: shrink the estimator's epsilon or sigma as well.
    """

    lr: PositiveFloat = 0.03
    steps: PositiveInt = 300
    budget: Literal["steps", "forward_passes", "seconds"] = "steps"
    amount: PositiveFloat = 10_000.0
    points: PositiveInt = 40
    normalize: Normalization = "tensor"
    resample: bool = True
    decay_after: Annotated[int, pydantic.Field(ge=0)] = 0
    decay_every: PositiveInt = 10_000
    decay_factor: PositiveFloat = 0.1
    decay_width: bool = False


class Trajectory:
    """The study."""

    name = "trajectory"
    settings_model = TrajectorySettings

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run, before anything is measured."""
        cells.require_runnable(cell)
        if len(cells.populations_of(cell)) > 1:
            raise ValueError(
                "a trajectory follows one gradient: give nes one population (several entries, one "
                "each) instead of a nested list."
            )

    def forward_passes(self, cell: Cell) -> float:
        """Steps that the budget allows, times the work of one."""
        settings = cell["settings"]
        steps: float = settings["steps"]
        if settings["budget"] == "forward_passes":
            steps = min(steps, max(settings["amount"] / max(cells.nominal_passes(cell), 1.0), 1.0))
        # A new batch, its targets and the inputs' copies are worth about four passes.
        batch = 4 if _resamples(cell) else 0
        return float(steps * (cells.estimator_work(cell) + batch) + 2 * settings["points"])

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """One row per recorded step."""
        settings = TrajectorySettings.model_validate(cell["settings"])
        key = cells.key_columns(
            cell, cells.populations_of(cell)[0], leave_out=("steps", "amount", "points")
        )
        held_out = cells.objective_of(
            cell, batch=cell["batch"] + cells.FRESH_BATCHES, scratch=scratch
        )
        objective = cells.objective_of(cell, scratch=scratch)
        moving = _resamples(cell)
        params = student_of(cell, scratch)
        generator = cells.generator_of(cell)
        recorded = _recorded_steps(settings)
        estimator, width = cells.estimator_of(cell), 1.0
        cost = _Cost()
        rows: list[Row] = []
        for step in range(settings.steps + 1):
            if moving:
                batch = cells.TRAJECTORY_BATCHES * (cell["batch"] + 1) + step
                objective = cells.objective_of(cell, batch=batch, scratch=scratch)
            diverged = not all(bool(torch.isfinite(w).all()) for w in params.values())
            over = diverged or step == settings.steps or cost.reaches(settings)
            if step in recorded or over:
                loss = math.nan if diverged else float(objective.loss(params))
                rows.append(
                    {
                        **key,
                        "step": step,
                        "forward_passes": cost.forward_passes,
                        "backward_passes": cost.backward_passes,
                        "seconds": cost.seconds,
                        "loss": number(loss),
                        "loss_fresh": None if diverged else number(float(held_out.loss(params))),
                    }
                )
                over = over or not math.isfinite(loss)
            if over:
                break
            shrink = _shrink(settings, step)
            if settings.decay_width and shrink != width:
                estimator, width = cells.estimator_of(_narrowed(cell, shrink)), shrink
            clock = now()
            estimate = estimator.estimate(objective, params, generator=generator)
            move = direction(estimate.gradient, settings.normalize)
            params = {name: w - settings.lr * shrink * move[name] for name, w in params.items()}
            cost.add(estimate, now() - clock)
        return {"trajectory": rows}


@dataclass
class _Cost:
    """What a run has spent so far."""

    forward_passes: float = 0.0
    backward_passes: float = 0.0
    seconds: float = 0.0
    last: float = 0.0

    def add(self, estimate: GradientEstimate, seconds: float) -> None:
        """One more step."""
        self.forward_passes += estimate.forward_passes
        self.backward_passes += estimate.backward_passes
        self.seconds += seconds
        self.last = estimate.forward_passes + estimate.backward_passes

    def reaches(self, settings: TrajectorySettings) -> bool:
        """Whether the budget leaves no room for another step."""
        if settings.budget == "seconds":
            return self.seconds >= settings.amount
        if settings.budget == "forward_passes":
            spent = self.forward_passes + self.backward_passes
            return spent > 0 and spent + self.last > settings.amount
        return False


def _resamples(cell: Cell) -> bool:
    """Whether every step has a batch of its own; a test function has none."""
    return bool(cell["settings"]["resample"]) and cell["objective"]["name"] != "test_function"


def _recorded_steps(settings: TrajectorySettings) -> set[int]:
    """Step 0, the last, and about ``points`` in between, evenly spaced in log(1 + step).

    >>> sorted(_recorded_steps(TrajectorySettings(steps=100, points=4)))
    [0, 2, 9, 31, 100]
    """
    scale = math.log1p(settings.steps) / settings.points
    return {round(math.expm1(scale * i)) for i in range(settings.points + 1)} | {0, settings.steps}


def _shrink(settings: TrajectorySettings, step: int) -> float:
    if not settings.decay_after or step < settings.decay_after:
        return 1.0
    times = (step - settings.decay_after) // settings.decay_every + 1
    return settings.decay_factor**times


def _narrowed(cell: Cell, factor: float) -> Cell:
    """The cell with its estimator's epsilon and sigma scaled."""
    options: dict[str, Any] = dict(cell["estimator"])
    for width in ("epsilon", "sigma"):
        if options.get(width) is not None:
            options[width] *= factor
    return {**cell, "estimator": options}
