"""One estimator with options, for the shared battery, and what its exact referees are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from tests.estimators import referees

SIGMA = 0.1  # every sampled estimator's default


def smoothed(objective: TeacherStudent, params: Params) -> dict[str, Tensor]:
    """Exact gradient of the loss smoothed by N(0, 0.1²) on every weight."""
    layers = as_layers(objective)
    exact = referees.smoothed_loss
    if objective.model.weight == "binary":
        exact = referees.smoothed_loss_of_signs
    return referees.exact_gradients(exact, layers, params, SIGMA)[0]


def natural(objective: TeacherStudent, params: Params) -> dict[str, Tensor]:
    """The same divided by the Fisher information 1/σ²."""
    return {name: SIGMA**2 * g for name, g in smoothed(objective, params).items()}


def central_differences(objective: TeacherStudent, params: Params) -> dict[str, Tensor]:
    """Two whole evaluations in float64 for every coordinate, over ±0.1."""
    layers, out = as_layers(objective), {}
    for name, tensor in params.items():
        out[name] = torch.zeros_like(tensor).double()
        for index in range(tensor.numel()):
            losses = []
            for step in (0.1, -0.1):
                moved = {k: w.double().clone() for k, w in params.items()}
                moved[name].view(-1)[index] += step
                losses.append(layers.losses({k: w[None] for k, w in moved.items()})[0])
            out[name].view(-1)[index] = (losses[0] - losses[1]) / 0.2
    return out


def as_layers(objective: TeacherStudent) -> referees.Layers:
    return referees.Layers(objective.model, objective.inputs, objective.targets)


@dataclass(frozen=True)
class Case:
    """One estimator with options.

    Args:
        name: as registered.
        options: as given to ``create``.
        forward_passes: its documented cost on the toy (d = 36 weights).
        backward_passes: likewise.
        sampled: whether it draws from the generator.
        referee: the exact expectation of its gradient, where it has one.
        weight: the toy's weights, "real" or "binary".
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    forward_passes: float = 1.0
    backward_passes: float = 0.0
    sampled: bool = True
    referee: Callable[[TeacherStudent, Params], dict[str, Tensor]] | None = None
    weight: str = "real"

    def __str__(self) -> str:
        text = " ".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name} {text} {self.weight if self.weight == 'binary' else ''}".strip()
