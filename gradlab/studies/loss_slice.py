r"""The loss along one coordinate of a layer, and what estimators take its slope to be.

Where a layer has too many weights for central differences, a slice still shows what they would see:
the loss of a binarized network is a staircase in every hidden weight, flat almost everywhere, and
an estimator's partial derivative is the slope of a line through the point where the network stands.
The objective says which layers and how many seeded ``coordinates`` of each. With
``along="ste"`` the slice of a layer goes along its hardtanh straight-through gradient, of length 1,
instead; its ``coordinate`` is -1, and a slope is the component of the estimate in that direction.

Table ``loss_slice`` has the curve, a row per layer, coordinate and offset, on the cell's batch and
on an unseen one; differences from the loss at offset 0 are taken per example in float64.
``loss_slice_slopes`` has each estimator's partial derivative, a row per layer and coordinate,
beside the slope of the chord over the whole slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch

from gradlab.binary import surrogates
from gradlab.evaluation import LinePopulation, Params
from gradlab.objectives import Objective
from gradlab.studies import cells
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.clock import now
from gradlab.studies.steps import PositiveFloat, direction
from gradlab.studies.students import student_of

# More slices than these are no picture, and would take a forward pass for each of their points.
MOST_COORDINATES = 64


class LossSliceSettings(Settings):
    """Settings of the study.

    Attributes:
        reach: offsets go from -reach to reach, in units of the weights.
        points: how many, evenly spaced; an odd number, so that 0 is one of them.
        fresh: the loss on an unseen batch too.
        along: single weights ("coordinate"), or each layer's hardtanh STE ("ste").
    """

    reach: PositiveFloat = 0.5
    points: Annotated[int, pydantic.Field(ge=3)] = 101
    fresh: bool = True
    along: Literal["coordinate", "ste"] = "coordinate"

    @pydantic.field_validator("points")
    @classmethod
    def _odd(cls, points: int) -> int:
        if points % 2 == 0:
            raise ValueError("give an odd number of points, so that offset 0 is one of them")
        return points


class LossSlice:
    """The study."""

    name = "loss_slice"
    settings_model = LossSliceSettings

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run, before anything is measured."""
        slices = slices_of(cell)
        if slices > MOST_COORDINATES:
            less = "fewer weights"
            if cells.is_network(cell):
                less = "objective.coordinates = 1, for example"
            raise ValueError(
                f"there are {slices:,} weights to slice along, and {MOST_COORDINATES} are the "
                f"most: choose {less}."
            )
        if len(cells.populations_of(cell)) > 1:
            raise ValueError(
                "a slice compares one slope of each estimator: give nes one population (several "
                "entries, one each) instead of a nested list."
            )
        cells.require_runnable(cell)

    def forward_passes(self, cell: Cell) -> float:
        """The estimate, and the points of every slice on each batch."""
        settings = cell["settings"]
        judges = 2 if settings["fresh"] else 1
        return float(cells.estimator_work(cell) + slices_of(cell) * settings["points"] * judges)

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """The curves and the slopes."""
        settings = LossSliceSettings.model_validate(cell["settings"])
        objective = cells.objective_of(cell, scratch=scratch)
        judges = {"loss": objective}
        if settings.fresh:
            unseen = cell["batch"] + cells.FRESH_BATCHES
            judges["loss_fresh"] = cells.objective_of(cell, batch=unseen, scratch=scratch)
        params = student_of(cell, scratch)
        key = cells.key_columns(cell, cells.populations_of(cell)[0], leave_out=("points",))
        clock = now()
        estimate = cells.estimator_of(cell).estimate(
            objective, params, generator=cells.generator_of(cell)
        )
        seconds = now() - clock
        before = {name: float(judge.loss(params)) for name, judge in judges.items()}
        half = settings.points // 2
        offsets = [settings.reach * (step - half) / half for step in range(settings.points)]
        curves: list[Row] = []
        slopes: list[Row] = []
        for layer, coordinate, along in _directions(settings.along, objective, params):
            line = LinePopulation(params, along, tuple(-offset for offset in offsets))
            found = {
                name: (before[name] - judge.decreases(params, line)).tolist()
                for name, judge in judges.items()
            }
            place = {**key, "layer": layer, "coordinate": coordinate}
            curves += [
                {**place, "offset": offset, "loss_fresh": None}
                | {name: number(values[index]) for name, values in found.items()}
                for index, offset in enumerate(offsets)
            ]
            component = estimate.gradient[layer].double() * along[layer].double()
            rise = found["loss"][-1] - found["loss"][0]
            slopes.append(
                {
                    **place,
                    "slope": number(float(component.sum())),
                    "chord_slope": number(rise / (2 * settings.reach)),
                    "loss": number(before["loss"]),
                    "forward_passes": estimate.forward_passes,
                    "backward_passes": estimate.backward_passes,
                    "seconds": seconds,
                }
            )
        return {"loss_slice": curves, "loss_slice_slopes": slopes}


def slices_of(cell: Cell) -> int:
    """How many slices a cell takes: one per weight, or one per layer."""
    tensors, weights = cells.sizes_of(cell)
    return weights if cell["settings"]["along"] == "coordinate" else tensors


def _directions(
    along: str, objective: Objective, params: Params
) -> Iterator[tuple[str, int, Params]]:
    """Layer, coordinate (-1 for all of its weights at once) and direction of every slice."""
    zero = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    if along == "ste":
        gradient = objective.surrogate_gradient(params, surrogates.create("hardtanh"))
        for name, step in direction(gradient, "tensor").items():
            yield name, -1, {**zero, name: step}
        return
    for name, tensor in params.items():
        for coordinate in range(tensor.numel()):
            one = torch.zeros_like(tensor)
            one.view(-1)[coordinate] = 1.0
            yield name, coordinate, {**zero, name: one}
