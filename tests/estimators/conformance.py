"""Every estimator, with the variants of its options, that the shared battery runs on.

A new estimator needs one line here; a registered name without one fails the battery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradlab.binary import surrogates
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


def ste(**options: Any) -> Case:
    return Case("ste", options, 1.0, 1.0, sampled=False)


def nes(population: Any = 500, referee: Any = None, **options: Any) -> Case:
    largest = population if isinstance(population, int) else population[-1]
    return Case("nes", {"population": population} | options, largest, 0.0, referee=referee)


LAYERS = 3  # of the network with real weights below: two hidden and the output


def nes_local(passes: int = 2, **options: Any) -> Case:
    # The conformance network has LAYERS layers; the last two of them are taken pathwise.
    head = 2 if options.get("condition_last", True) else 1
    forward, backward = float(passes), passes * head / LAYERS
    baseline = options.get("baseline", "noise_free")
    if baseline == "noise_free":
        forward += 1
    if baseline == "mean_field":
        behind = [(LAYERS - layer - 1) / LAYERS for layer in range(LAYERS - head)]
        expansions = sum(share * (passes if layer else 1) for layer, share in enumerate(behind))
        forward, backward = forward + expansions, backward + expansions
    return Case("nes_local", {"passes": passes} | options, forward, backward, referee=smoothed)


CASES = [
    *(ste(surrogate=name) for name in surrogates.names() if name != "magnitude_aware"),
    ste(surrogate={"name": "hardtanh", "threshold": 0.5}),
    Case("ste", {"surrogate": "hardtanh"}, 1.0, 1.0, sampled=False, weight="binary"),
    Case("ste", {"weight_surrogate": "polynomial"}, 1.0, 1.0, sampled=False, weight="binary"),
    Case("ste", {"surrogate": "matched"}, 1.0, 1.0),
    Case("cdg", {}, 72.0, 0.0, sampled=False, referee=central_differences),
    Case("cdg", {"epsilon": 0.01}, 72.0, 0.0, sampled=False),
    Case("cdg", {"epsilon": 1}, 72.0, 0.0, sampled=False),
    Case("cdg", {}, 12.0, 0.0, sampled=False, referee=central_differences, weight="binary"),
    nes(referee=smoothed),
    nes([20, 100, 500], referee=smoothed),
    nes(2000, referee=smoothed, fitness="raw"),
    nes(referee=smoothed, antithetic=False),
    nes(2000, referee=smoothed, fitness="raw", antithetic=False),
    nes(referee=natural, gradient="natural"),
    nes(gradient="natural", antithetic=False, fitness="centered_rank"),
    nes(fitness="z_score"),
    nes(fitness="centered_rank"),
    nes(fitness="utilities"),
    nes(fitness="utilities", antithetic=False),
    nes(gradient="empirical_fisher"),
    nes(20, gradient="empirical_fisher", antithetic=False),
    nes(gradient="empirical_fisher_per_tensor", ridge=0.1),
    nes(sigma_gradient="sigma"),
    nes(sigma_gradient="log_sigma", gradient="natural"),
    nes(sigma_gradient="log_sigma", gradient="empirical_fisher", antithetic=False),
    Case("nes", {"population": 500}, 500.0, 0.0, referee=smoothed, weight="binary"),
    nes_local(),
    nes_local(5),
    nes_local(antithetic=False),
    nes_local(condition_last=False),
    nes_local(8, baseline="none"),
    nes_local(baseline="mean_field"),
    nes_local(5, baseline="mean_field", antithetic=False),
    nes_local(3, baseline="mean_field", condition_last=False),
    # Without the last hidden layer only the output layer is pathwise.
    Case("nes_local", {"layers": ["layers.0.weight", "layers.2.weight"]}, 3.0, 2 / LAYERS),
    Case("sr_ste", {}, 1.0, 1.0),
    Case("sr_ste", {"samples": 10}, 10.0, 10.0),
    Case("sr_ste", {"samples": 3, "temperature": 0.5, "unit_norm": False}, 3.0, 3.0),
]


def toy(case: Case, batch_size: int = 1300) -> tuple[TeacherStudent, Params]:
    """A teacher-student pair small enough for exact smoothed losses, and a fresh student."""
    if case.weight == "binary":
        objective = TeacherStudent(2, batch_size, seed=1, depth=1, weight="binary")
        # near zero, where a step of 0.1 flips signs
        return objective, {k: 0.1 * w for k, w in objective.initial_params(0).items()}
    objective = TeacherStudent(4, batch_size, seed=0, depth=2)
    return objective, objective.initial_params(0)
