"""From a cell's plain configuration to live objects, and back to the key columns of its rows."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from gradlab import estimators, objectives
from gradlab.estimators.ste import surrogate_label
from gradlab.objectives import Objective
from gradlab.studies.base import Cell, Row

# Batches that no study counts up to: judges of a step, training data of converged students.
FRESH_BATCHES = 2**30
TRAINING_BATCHES = 2**31


def derived_seed(cell: Cell, *coordinates: int) -> int:
    """A 63-bit seed from the study's seed and the cell's coordinates.

    The estimator is deliberately not among them: estimators on the same (init, batch, repeat)
    share their random numbers, which pairs their comparison.
    """
    sequence = np.random.SeedSequence(cell["seed"], spawn_key=coordinates)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def objective_of(cell: Cell, batch: int | None = None) -> Objective:
    """The cell's objective: its init fixes the teacher, ``batch`` or the cell's own the data."""
    options = {key: value for key, value in cell["objective"].items() if key != "name"}
    return objectives.create(
        cell["objective"]["name"],
        seed=derived_seed(cell, 0, cell["init"]),
        batch=cell["batch"] if batch is None else batch,
        **options,
    )


def estimator_of(cell: Cell) -> estimators.Estimator:
    """The cell's estimator."""
    options = {key: value for key, value in cell["estimator"].items() if key != "name"}
    return estimators.create(cell["estimator"]["name"], **options)


def generator_of(cell: Cell, repeat: int = 0) -> torch.Generator:
    """The estimator's random numbers for one repeat."""
    seed = derived_seed(cell, 1, cell["init"], cell["batch"], repeat)
    return torch.Generator().manual_seed(seed)


def _column(value: Any) -> Any:
    if isinstance(value, dict) and "name" in value:
        return surrogate_label(value)
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else value


def key_columns(
    cell: Cell, population: int | None = None, *, leave_out: tuple[str, ...] = ()
) -> Row:
    """The columns that say which cell, and which of its nested populations, a row belongs to.

    Args:
        cell: the cell.
        population: one of the nested populations, in place of the list.
        leave_out: settings that are no column (lists, or a column of the measurement itself).
    """
    options = {key: value for key, value in cell["estimator"].items() if key != "name"}
    if population is not None and "population" in options:
        options["population"] = population
    name = cell["estimator"]["name"]
    objective = {
        ("objective" if key == "name" else key): value for key, value in cell["objective"].items()
    }
    device = objective.pop("device", "cpu")
    settings = {k: _column(v) for k, v in cell["settings"].items() if k not in leave_out}
    return {
        "study": cell["study"],
        **objective,
        "student": cell["student"]["state"],
        "init": cell["init"],
        "batch": cell["batch"],
        "estimator": name,
        "label": estimators.label(name, options),
        **{key: _column(value) for key, value in options.items() if value is not None},
        **settings,
        "device": device,
    }


def populations_of(cell: Cell) -> list[int | None]:
    """The nested populations of the cell's estimator; one None where it has none."""
    population = cell["estimator"].get("population")
    if population is None:
        return [None]
    return list(population) if isinstance(population, (list, tuple)) else [population]


def estimator_work(cell: Cell) -> float:
    """About how many forward passes one estimate takes on this implementation."""
    name, options = cell["estimator"]["name"], cell["estimator"]
    if name == "nes":
        sizes = options["population"]
        return float(max(sizes) if isinstance(sizes, (list, tuple)) else sizes)
    if name == "nes_local":
        return 10.0 * (options.get("passes", 2) + 1)
    if name == "cdg":
        width = cell["objective"].get("num_dim", 1)
        # Sparse flips: about a pass per neuron and layer; a test function has no layers.
        return 0.7 * width * cell["objective"].get("depth", 1) + 1
    return 4.0 * options.get("samples", 1)
