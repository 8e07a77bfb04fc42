r"""Many steps instead of one: where an estimator leads, per forward pass and per second.

One-step decrease is myopic. Here each estimator drives w ← w - lr·g for a budget of steps, of
forward passes (a backward pass counts as one more) or of seconds, on a new batch each step unless
``resample`` is off, and the loss is recorded on a held-out batch. Runs are reproducible but for a
budget in seconds, which ends where the machine's speed says.

``decay_after``, ``decay_every`` and ``decay_factor`` shrink the lr in steps, and with
``decay_width`` the estimator's epsilon or sigma too.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from gradlab.studies import cells
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.steps import Normalization, PositiveFloat, direction
from gradlab.studies.students import student_of

PositiveInt = Annotated[int, pydantic.Field(ge=1)]
_TRAJECTORY_BATCHES = 2**20


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
        """Refuse combinations that cannot run; nothing is computed."""
        if len(cells.populations_of(cell)) > 1:
            raise ValueError(
                "a trajectory follows one gradient: give nes one population (several entries, one "
                "each) instead of a nested list."
            )

    def forward_passes(self, cell: Cell) -> float:
        """Steps that the budget allows, times the work of one."""
        settings = cell["settings"]
        steps = settings["steps"]
        if settings["budget"] == "forward_passes":
            steps = min(steps, settings["amount"] / max(cells.estimator_work(cell), 1.0))
        return steps * (cells.estimator_work(cell) + 2) + settings["points"]

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """One row per recorded step."""
        settings = TrajectorySettings.model_validate(cell["settings"])
        held_out = cells.objective_of(cell, batch=cell["batch"] + cells.FRESH_BATCHES)
        params = student_of(cell, scratch)
        generator = cells.generator_of(cell)
        key = cells.key_columns(
            cell,
            cells.populations_of(cell)[0],
            leave_out=("steps", "amount", "points", "decay_after", "decay_every", "decay_factor"),
        )
        recorded = _recorded_steps(settings)
        moving = settings.resample and cell["objective"]["name"] != "test_function"
        objective = cells.objective_of(cell)
        forward = backward = seconds = 0.0
        rows: list[Row] = []
        for step in range(settings.steps + 1):
            if moving:
                batch = _TRAJECTORY_BATCHES * (cell["batch"] + 1) + step
                objective = cells.objective_of(cell, batch=batch)
            over = step == settings.steps or _spent(settings, forward + backward, seconds)
            if step in recorded or over:
                loss = float(objective.loss(params))
                rows.append(
                    {
                        **key,
                        "step": step,
                        "forward_passes": forward,
                        "backward_passes": backward,
                        "seconds": seconds,
                        "loss": number(loss),
                        "loss_fresh": number(held_out.loss(params)),
                    }
                )
                if not math.isfinite(loss):
                    break
            if over:
                break
            shrink = _shrink(settings, step)
            estimator = cells.estimator_of(_narrowed(cell, shrink if settings.decay_width else 1.0))
            clock = time.perf_counter()
            estimate = estimator.estimate(objective, params, generator=generator)
            move = direction(estimate.gradient, settings.normalize)
            params = {name: w - settings.lr * shrink * move[name] for name, w in params.items()}
            seconds += time.perf_counter() - clock
            forward += estimate.forward_passes
            backward += estimate.backward_passes
        return {"trajectory": rows}


def _recorded_steps(settings: TrajectorySettings) -> set[int]:
    """Step 0, the last, and about ``points`` in between, evenly spaced in log(1 + step).

    >>> sorted(_recorded_steps(TrajectorySettings(steps=100, points=4)))
    [0, 3, 9, 31, 100]
    """
    scale = math.log1p(settings.steps) / settings.points
    return {round(math.expm1(scale * i)) for i in range(settings.points + 1)} | {0, settings.steps}


def _spent(settings: TrajectorySettings, passes: float, seconds: float) -> bool:
    spent = {"steps": 0.0, "forward_passes": passes, "seconds": seconds}[settings.budget]
    return spent >= settings.amount


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



