"""Small complete cells, as a sweep would write them, and an independent evaluation in float64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradlab import estimators, objectives, studies
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from gradlab.studies.base import Cell, Row

TEACHER = {"name": "teacher_student", "num_dim": 4, "batch_size": 256, "depth": 2}
QUADRATIC = {"name": "test_function", "function": "quadratic", "num_dim": 5}
CDG = {"name": "cdg"}
STE = {"name": "ste"}
NES = {"name": "nes", "population": 24}
LOCAL = {"name": "nes_local"}


def cell(
    study: str,
    estimator: Mapping[str, Any] = STE,
    objective: Mapping[str, Any] = TEACHER,
    *,
    student: Mapping[str, Any] | None = None,
    seed: int = 0,
    init: int = 0,
    batch: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """A cell with every default written out."""
    model = studies.create(study).settings_model
    entries = getattr(studies.create(study), "entries", estimators.REGISTRY)
    defaults = objectives.defaults(objective["name"])
    return {
        "schema": 1,
        "study": study,
        "seed": seed,
        "threads": 1,
        "objective": {k: v for k, v in defaults.items() if k not in ("seed", "batch")} | objective,
        "student": student or {"state": "fresh"},
        "estimator": entries.defaults(estimator["name"]) | estimator,
        "init": init,
        "batch": batch,
        "settings": model.model_validate(settings).model_dump(mode="json"),
    }


def run(config: Cell, scratch: Path) -> list[Row]:
    """The rows of a cell's only table."""
    ((_, rows),) = studies.create(config["study"]).run(config, scratch).items()
    return rows


def without_seconds(rows: list[Row]) -> list[Row]:
    """The rows as far as they are a function of the cell."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def rows_of(rows: list[Row], **wanted: Any) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def loss64(objective: TeacherStudent, params: Params) -> Tensor:
    """Mean squared error of sign layers, written out in float64."""
    hidden = objective.inputs.double()
    *layers, output = params.values()
    for weight in layers:
        weight = weight.double()
        if objective.model.weight == "binary":
            weight = torch.where(weight >= 0, 1.0, -1.0).double()
        hidden = torch.where(hidden @ weight.T >= 0, 1.0, -1.0).double()
    error = hidden @ output.double().T - objective.targets.double()
    return error.square().mean()


def stepped(params: Params, direction: Params, lr: float) -> Params:
    """w - lr d in float64."""
    return {name: w.double() - lr * direction[name].double() for name, w in params.items()}


def joined(gradient: Params) -> Tensor:
    """All tensors as one vector in float64."""
    return torch.cat([tensor.double().flatten() for tensor in gradient.values()])
