"""From a cell's plain configuration to live objects, and back to the key columns of its rows."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from gradlab import estimators, objectives, variational
from gradlab.estimators import GradientEstimate
from gradlab.estimators.ste import surrogate_label
from gradlab.objectives import Objective
from gradlab.objectives.network_state import require_images
from gradlab.studies import networks, noise_gradients, searches
from gradlab.studies.base import Cell, Row
from gradlab.studies.base import derived_seed as derived_seed

# Batches that no study counts up to: judges of a step, training data of converged students, and
# those of trajectories, which count steps below and batches above this bit.
FRESH_BATCHES = 2**30
TRAINING_BATCHES = 2**31
TRAJECTORY_BATCHES = 2**32

# How a converged student is trained where the spec does not say.
TRAINING = {"steps": 2000, "batch_size": 16000}

# Estimators that take any objective; and the examples on which all others are tried.
_TAKES_ANY_OBJECTIVE = ("cdg", "nes")
_REHEARSAL_EXAMPLES = {"teacher_student": 64, "network": 4}


def objective_of(cell: Cell, batch: int | None = None, scratch: Path | None = None) -> Objective:
    """The cell's objective: its init fixes the teacher, ``batch`` or the cell's own the data.

    Args:
        cell: the cell.
        batch: another batch than its own.
        scratch: folder of the caches; of a network that has been trained, it is trained here first.
            Without it a network is a fresh one.
    """
    options = {key: value for key, value in cell["objective"].items() if key != "name"}
    if scratch is not None and is_network(cell):
        trained = networks.trained_weights(cell, scratch)
        options |= {} if trained is None else {"weights": str(trained)}
    return objectives.create(
        cell["objective"]["name"],
        seed=derived_seed(cell, 0, cell["init"]),
        batch=cell["batch"] if batch is None else batch,
        **options,
    )


def is_network(cell: Cell) -> bool:
    """Whether the cell measures on a network of :mod:`gradlab.objectives.network`."""
    return bool(cell["objective"]["name"] == "network")


def estimator_of(cell: Cell) -> estimators.Estimator:
    """The cell's estimator, or gradient source in the study that compares those."""
    options = {key: value for key, value in cell["estimator"].items() if key != "name"}
    home: Any = estimators
    if cell.get("study") == "gradient_variance":
        home = noise_gradients.REGISTRY
    made: estimators.Estimator = home.create(cell["estimator"]["name"], **options)
    return made


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
    if cell["student"]["state"] != "fresh":
        if is_network(cell):
            if cell["objective"].get("weights") is not None:
                raise ValueError(
                    f'student.state = "{cell["student"]["state"]}" trains a network, and '
                    "objective.weights names one that is trained: leave out one of them."
                )
            networks.check_training(cell)
        elif cell["objective"]["name"] != "teacher_student":
            raise ValueError(
                f'student.state = "{cell["student"]["state"]}" needs the objective teacher_student '
                'or network: use "fresh".'
            )
    if is_network(cell):
        require_images(cell["objective"]["dataset"])
    if cell["estimator"]["name"] not in _TAKES_ANY_OBJECTIVE:
        _rehearsed_passes(_pair(cell))


def _pair(cell: Cell) -> str:
    """Objective and estimator as they are rehearsed: small."""
    objective = dict(cell["objective"])
    if "batch_size" in objective:
        few = _REHEARSAL_EXAMPLES.get(objective["name"], 64)
        objective["batch_size"] = min(objective["batch_size"], few)
    if is_network(cell):
        objective["width"] = min(objective["width"], 2)
        if objective.get("coordinates") is not None:
            objective["coordinates"] = 1
    return json.dumps([objective, cell["estimator"]], sort_keys=True)


@lru_cache(maxsize=4096)
def _rehearsed_passes(text: str) -> float:
    """The forward and backward passes of one estimate on a few examples."""
    objective, estimator = json.loads(text)
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
    >>> student_label({"state": "mid", "epochs": 20, "examples": 5000, "batch_size": 256})
    'mid (5000 images)'
    """
    if "epochs" in student:
        usual: dict[str, Any] = networks.TRAINING
        words = {"epochs": "epochs", "examples": "images", "batch_size": "a batch", "lr": "lr"}
    else:
        usual, words = TRAINING, {"steps": "steps", "batch_size": "examples"}
    unusual = [
        f"{student[key]} {word}"
        for key, word in words.items()
        if student.get(key, usual[key]) != usual[key]
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
    if is_network(cell):
        objective = networks.columns_of(objective)
    elif isinstance(objective.get("model"), dict):
        # every option of the model is a column
        model = objective.pop("model")
        objective |= {
            ("model" if key == "name" else key): _column(value) for key, value in model.items()
        }
    problem = {
        "study": cell["study"],
        **objective,
        "student": student_label(cell["student"]),
        "init": cell["init"],
        "batch": cell["batch"],
        "estimator": name,
        "label": label_of(cell, options),
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


def label_of(cell: Cell, options: Row | None = None) -> str:
    """The display name of the cell's estimator, variational method or search.

    Args:
        cell: the cell.
        options: others than its own: of its nested populations one.
    """
    if options is None:
        options = {key: value for key, value in cell["estimator"].items() if key != "name"}
    name, home = cell["estimator"]["name"], estimators.label
    if cell.get("study") == "variational_run":
        home = variational.label
    elif cell.get("study") == "gradient_variance":
        home = noise_gradients.label
    elif cell.get("study") == "search_run":
        home = searches.label
    return home(name, options)


def populations_of(cell: Cell) -> list[int | None]:
    """The nested populations of the cell's estimator; one None where it has none."""
    population = cell["estimator"].get("population")
    if population is None:
        return [None]
    return list(population) if isinstance(population, (list, tuple)) else [population]


def sizes_of(cell: Cell) -> tuple[int, int]:
    """How many tensors and how many weights the cell's parameters have."""
    if is_network(cell):
        shapes = networks.shapes_of(cell)
        return len(shapes), sum(shape.numel() for shape in shapes.values())
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
    if is_network(cell):
        # Two evaluations of a weight, of which what is in common is computed once.
        return float(sizes_of(cell)[1])
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
