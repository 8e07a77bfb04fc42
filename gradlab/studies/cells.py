"""From a cell's plain configuration to live objects, and back to the key columns of its rows."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from gradlab import estimators, objectives
from gradlab.estimators import GradientEstimate
from gradlab.estimators.ste import surrogate_label
from gradlab.objectives import Objective
from gradlab.studies.base import Cell, Row

# Batches that no study counts up to: judges of a step, training data of converged students, and
# those of trajectories, which count steps below and batches above this bit.
FRESH_BATCHES = 2**30
TRAINING_BATCHES = 2**31
TRAJECTORY_BATCHES = 2**32

# How a converged student is trained where the spec does not say.
TRAINING = {"steps": 2000, "batch_size": 16000}

# Estimators that take any objective; and the examples on which all others are tried.
_TAKES_ANY_OBJECTIVE = ("cdg", "nes")
_REHEARSAL_EXAMPLES = 64


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


def require_runnable(cell: Cell) -> None:
    """Refuse an estimator, objective and student that do not go together, in one sentence.

    What an estimator asks of an objective is its own affair, so it is tried: one estimate on a few
    examples, once for each pair of them.

    Raises:
        ValueError: as the estimator itself would say it in the middle of a sweep.
    """
    if cell["student"]["state"] == "converged" and cell["objective"]["name"] != "teacher_student":
        raise ValueError(
            'student.state = "converged" needs the objective teacher_student: use "fresh".'
        )
    if cell["estimator"]["name"] not in _TAKES_ANY_OBJECTIVE:
        _rehearsed_passes(_pair(cell))


def _pair(cell: Cell) -> str:
    return json.dumps([cell["objective"], cell["estimator"]], sort_keys=True)


@lru_cache(maxsize=4096)
def _rehearsed_passes(text: str) -> float:
    """The forward and backward passes of one estimate on a few examples."""
    objective, estimator = json.loads(text)
    if "batch_size" in objective:
        objective["batch_size"] = min(objective["batch_size"], _REHEARSAL_EXAMPLES)
    cell = {"seed": 0, "init": 0, "batch": 0, "objective": objective, "estimator": estimator}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so few examples are not worth waking another thread
    try:
        small = objective_of(cell)
        params = small.initial_params(0)
        estimate = estimator_of(cell).estimate(small, params, generator=generator_of(cell))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"{estimator['name']} fails on {objective['name']} with these options "
            f"({type(error).__name__}: {error}): choose others."
        ) from error
    finally:
        torch.set_num_threads(threads)
    return estimate.forward_passes + estimate.backward_passes


def share_of(estimate: GradientEstimate, largest: GradientEstimate) -> float:
    """A nested population's share of the time of the one pass that served all of them."""
    if largest.forward_passes <= 0:
        return 1.0
    return estimate.forward_passes / largest.forward_passes


def student_label(student: Cell) -> str:
    """The student's state, with what is unusual about its training.

    >>> student_label({"state": "fresh"})
    'fresh'
    >>> student_label({"state": "converged", "steps": 500, "batch_size": 16000})
    'converged (500 steps)'
    """
    unusual = [
        f"{student[key]} {words}"
        for key, words in (("steps", "steps"), ("batch_size", "examples"))
        if student.get(key, TRAINING[key]) != TRAINING[key]
    ]
    return str(student["state"]) + (f" ({', '.join(unusual)})" if unusual else "")


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
    problem = {
        "study": cell["study"],
        **objective,
        "student": student_label(cell["student"]),
        "init": cell["init"],
        "batch": cell["batch"],
        "estimator": name,
        "label": estimators.label(name, options),
    }
    settings = {k: _column(v) for k, v in cell["settings"].items() if k not in leave_out}
    # An option called like another column is told apart by its estimator (<estimator>_<option>).
    taken = {*problem, *settings, *cell["settings"], "device"}
    own = {
        (f"{name}_{key}" if key in taken else key): _column(value)
        for key, value in options.items()
        if value is not None
    }
    return {**problem, **own, **settings, "device": device}


def populations_of(cell: Cell) -> list[int | None]:
    """The nested populations of the cell's estimator; one None where it has none."""
    population = cell["estimator"].get("population")
    if population is None:
        return [None]
    return list(population) if isinstance(population, (list, tuple)) else [population]


def sizes_of(cell: Cell) -> tuple[int, int]:
    """How many tensors and how many weights the cell's parameters have."""
    width = cell["objective"].get("num_dim", 1)
    if "depth" not in cell["objective"]:
        return 1, width
    depth = cell["objective"]["depth"]
    return depth + 1, depth * width**2 + width


def estimator_work(cell: Cell) -> float:
    """About how many forward passes of a population member one estimate takes in time.

    Measured on one core at num_dim 2 to 64 and batches of 1,024 to 160,000: right within a factor
    of two or three, which is what an estimate of time needs.
    """
    name, options = cell["estimator"]["name"], cell["estimator"]
    if cell["objective"]["name"] == "test_function":
        # Calls, not arithmetic: a few members cost as much as many.
        return 20 + 0.1 * _largest_population(options) if name == "nes" else 3.0
    # Without thresholds there are no sparse flips, and moments of a clip take more than an erf.
    full = cell["objective"].get("activation") == "full"
    if name == "nes":
        return float(_largest_population(options))
    if name == "nes_local":
        return float((60 if full else 20) * options.get("passes", 2) + 10)
    if name == "cdg":
        return differences_work(cell)
    if name == "sr_ste":
        return float(25 * options.get("samples", 1))
    if "matched" in str(options.get("surrogate")):
        return 60.0 if full else 18.0
    return 8.0


def differences_work(cell: Cell) -> float:
    """The same of central differences along every weight."""
    objective = cell["objective"]
    if objective.get("activation") == "full":
        return float(sizes_of(cell)[1])
    # Sparse flips: about a pass per neuron.
    return float(objective.get("num_dim", 1) * objective.get("depth", 1) + 1)


def nominal_passes(cell: Cell) -> float:
    """What one estimate costs by definition: its forward and backward passes."""
    name = cell["estimator"]["name"]
    if name == "nes":
        return float(_largest_population(cell["estimator"]))
    if name == "cdg":
        return 2.0 * sizes_of(cell)[1]
    return _rehearsed_passes(_pair(cell))


def _largest_population(options: Cell) -> int:
    sizes = options["population"]
    return max(sizes) if isinstance(sizes, (list, tuple)) else int(sizes)
