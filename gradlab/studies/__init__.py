"""What one cell of a sweep measures.

>>> {"gradient_quality", "loss_decrease", "trajectory"} <= set(names())
True
"""

from __future__ import annotations

import math

import torch

from gradlab._registry import Registry
from gradlab.evaluation.population import GaussianPopulation
from gradlab.studies import (
    cells,
    gradient_variance,
    networks,
    students,
    training_run,
    variational_run,
)
from gradlab.studies.base import Cell, Settings, Study
from gradlab.studies.clock import now
from gradlab.studies.gradient_quality import GradientQuality
from gradlab.studies.gradient_variance import GradientVariance
from gradlab.studies.loss_decrease import LossDecrease
from gradlab.studies.loss_slice import LossSlice
from gradlab.studies.search_run import SearchRun
from gradlab.studies.training_run import TrainingRun
from gradlab.studies.trajectory import Trajectory
from gradlab.studies.variational_run import VariationalRun

REGISTRY: Registry[Study] = Registry("study", group="gradlab.studies")
for _study in (
    GradientQuality, GradientVariance, LossDecrease, LossSlice, SearchRun, TrainingRun, Trajectory,
    VariationalRun,
):  # fmt: skip
    REGISTRY.register(_study.name)(_study)

# Torch, NumPy and pandas in one worker process, measured with /usr/bin/time on Linux.
_PROCESS_BYTES = 350 * 2**20
# Noise, members and activations in flight in the evaluator.
_WORKING_BYTES = 64 * 2**20

__all__ = [
    "REGISTRY",
    "Cell",
    "Settings",
    "Study",
    "bytes_needed",
    "create",
    "names",
    "seconds_per_forward_pass",
    "seconds_per_step",
    "students",
]


def names() -> list[str]:
    """The registered studies, sorted."""
    return REGISTRY.names()


def create(name: str) -> Study:
    """The study called ``name``; ``ValueError`` with the nearest valid name otherwise."""
    return REGISTRY.create(name)


def bytes_needed(cell: Cell) -> int:
    """About how much memory one worker holds at the most while it measures this cell."""
    objective = cell["objective"]
    if "dataset" in objective:
        vectors = 0
        if cell["study"] == GradientVariance.name:
            vectors = gradient_variance.bytes_of_gradients(cell)
        return _PROCESS_BYTES + networks.bytes_of(cell) + vectors
    width = objective.get("num_dim", 1)
    batch = objective.get("batch_size", 1)
    # Inputs twice (as given and transposed) on the cell's and the fresh batch; CDG and local NES
    # keep every layer's pre-activation and activation.
    layers = 4 + 2 * (objective.get("depth", 1) + 1)
    if cell["estimator"]["name"] == "sr_ste":
        layers += 10  # its draws see the batch whole
    if objective.get("activation") == "full":
        layers += 8  # its decreases are taken in float64
    return int(_PROCESS_BYTES + _WORKING_BYTES + 4 * batch * width * layers)


def seconds_per_step(cell: Cell) -> float:
    """Seconds of one step of a training run, measured now on images of noise."""
    if cell["study"] == GradientVariance.name:
        return training_run.seconds_of_step(gradient_variance.training_spec(cell))
    study = variational_run if cell["study"] == VariationalRun.name else training_run
    return training_run.seconds_of_step(study.spec_of(cell))


def seconds_per_forward_pass(cell: Cell, members: int = 8) -> float:
    """Seconds of one full-batch forward pass of a population member, measured now.

    The fastest of three runs with the cell's own number of threads.
    """
    objective = cells.objective_of(cell)
    population = GaussianPopulation(objective.initial_params(0), 0.1, key=0, start=0, stop=members)
    threads = torch.get_num_threads()
    torch.set_num_threads(cell["threads"])
    try:
        fastest = math.inf
        for _ in range(3):
            clock = now()
            objective.losses(population)
            fastest = min(fastest, now() - clock)
    finally:
        torch.set_num_threads(threads)
    return fastest / members
