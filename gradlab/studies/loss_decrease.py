r"""How far one step against the estimated gradient brings the loss down.

The gradient does not depend on the learning rate: it is estimated once per cell, and every lr is
one member of a population on the line :math:`w - \eta\,g`. The decrease is judged on the same batch
(``loss_decrease``) and, since that rewards overfitting the batch, on an unseen one
(``loss_decrease_fresh``). Nested NES populations give a set of rows each.

``update`` asks whether weights should move jointly, layer by layer (the gradient estimated anew
before each layer's step) or one weight at a time; ``final`` whether the stepped mean or samples
around it are what is evaluated (the mean over ``final_samples`` draws). ``step_layers`` moves all
layers, the hidden ones or the output layer alone: the output layer's gradient is easy to estimate
and brings most of the decrease, so a step of all layers says little about the hidden ones.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch

from gradlab.estimators import Estimator, GradientEstimate
from gradlab.evaluation import LinePopulation, Params
from gradlab.evaluation.population import GaussianPopulation, num_coordinates
from gradlab.objectives import Objective
from gradlab.studies import cells
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.steps import Normalization, PositiveFloat, direction
from gradlab.studies.students import student_of

# Sixteen learning rates, three per decade, from 1e-5 to 1.
DEFAULT_LR = [float(f"{10 ** (-5 + i / 3):.12g}") for i in range(16)]


StepLayers = Literal["all", "hidden", "output"]


class LossDecreaseSettings(Settings):
    """Settings of the study.

    Attributes:
        lr: learning rates; all are taken in one cell.
        normalize: divide each tensor's gradient, or all of it, by its norm before stepping.
        fresh: judge every step on an unseen batch too.
        update: move weights jointly, layer by layer, or one at a time.
        final: evaluate the stepped weights themselves, or samples around them.
        final_samples: how many samples.
        final_sigma: their standard deviation.
        step_layers: which layers move; several are measured from the same estimate.
    """

    lr: list[PositiveFloat] = pydantic.Field(default=DEFAULT_LR, min_length=1)
    normalize: Normalization = "tensor"
    fresh: bool = True
    update: Literal["joint", "layerwise", "coordinate"] = "joint"
    final: Literal["mean", "sample"] = "mean"
    final_samples: Annotated[int, pydantic.Field(ge=1)] = 32
    final_sigma: PositiveFloat = 0.1
    step_layers: list[StepLayers] = pydantic.Field(default=["all"], min_length=1)


class LossDecrease:
    """The study."""

    name = "loss_decrease"
    settings_model = LossDecreaseSettings

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run; nothing is computed."""
        settings = cell["settings"]
        if settings["update"] != "joint" and len(cells.populations_of(cell)) > 1:
            raise ValueError(
                f'settings.update = "{settings["update"]}" estimates anew at every new weight: '
                "give nes one population instead of a nested list."
            )
        if settings["update"] != "joint" and settings["final"] != "mean":
            raise ValueError(
                'settings.final = "sample" goes with settings.update = "joint" only: choose one.'
            )

        if settings["step_layers"] != ["all"] and settings["update"] != "joint":
            raise ValueError(
                'settings.step_layers other than ["all"] goes with settings.update = "joint" only: '
                "choose one."
            )
        if settings["step_layers"] != ["all"] and cell["objective"]["name"] == "test_function":
            raise ValueError(
                'a test function has no layers: leave settings.step_layers at ["all"].'
            )

    def forward_passes(self, cell: Cell) -> float:
        """The estimate, every lr, and the same on the fresh batch."""
        settings = cell["settings"]
        judged = len(settings["lr"]) * (2 if settings["fresh"] else 1)
        judged *= len(settings["step_layers"])
        judged *= settings["final_samples"] if settings["final"] == "sample" else 1
        estimates = 1.0
        if settings["update"] != "joint":
            layers = cell["objective"].get("depth", 0) + 1
            width = cell["objective"].get("num_dim", 1)
            rounds = layers if settings["update"] == "layerwise" else layers * width**2
            estimates += rounds * len(settings["lr"])
        return estimates * cells.estimator_work(cell) + judged

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """One row per nested population and lr."""
        settings = LossDecreaseSettings.model_validate(cell["settings"])
        objective = cells.objective_of(cell)
        judges = {"loss_decrease": objective}
        if settings.fresh:
            judges["loss_decrease_fresh"] = cells.objective_of(
                cell, batch=cell["batch"] + cells.FRESH_BATCHES
            )
        params = student_of(cell, scratch)
        estimator = cells.estimator_of(cell)
        generator = cells.generator_of(cell)
        before = float(objective.loss(params))
        rows: list[Row] = []
        clock = time.perf_counter()
        estimates = estimator.estimates(objective, params, generator=generator)
        seconds = time.perf_counter() - clock
        for population, estimate in zip(cells.populations_of(cell), estimates, strict=True):
            # A nested population's time is its share of the one pass that served all.
            share = estimate.forward_passes / max(estimates[-1].forward_passes, 1.0)
            steps = _Steps(settings, estimator, objective, params, estimate, cell)
            no_columns = ("lr", "fresh", "final_samples", "final_sigma", "step_layers")
            key = cells.key_columns(cell, population, leave_out=no_columns)
            moved = [(layers, steps.decreases(judges, layers)) for layers in settings.step_layers]
            for (layers, decreases), index in itertools.product(moved, range(len(settings.lr))):
                decrease = decreases["loss_decrease"][index]
                measured = {name: number(values[index]) for name, values in decreases.items()}
                rows.append(
                    {
                        **key,
                        "step_layers": layers,
                        "lr": settings.lr[index],
                        "loss_before": number(before),
                        "loss_after": number(before - decrease),
                        **measured,
                        "forward_passes": estimate.forward_passes * steps.estimates_per_step,
                        "backward_passes": estimate.backward_passes * steps.estimates_per_step,
                        "seconds": seconds * share,
                    }
                )
        return {"loss_decrease": rows}


class _Steps:
    """The stepped weights of one estimate, for every lr."""

    def __init__(
        self,
        settings: LossDecreaseSettings,
        estimator: Estimator,
        objective: Objective,
        params: Params,
        estimate: GradientEstimate,
        cell: Cell,
    ) -> None:
        self.settings = settings
        self.estimator = estimator
        self.objective = objective
        self.params = params
        self.gradient = estimate.gradient
        self.cell = cell
        rounds = {"joint": 1, "layerwise": len(params), "coordinate": num_coordinates(params)}
        self.estimates_per_step = rounds[settings.update]

    def decreases(
        self, judges: dict[str, Objective], layers: StepLayers
    ) -> dict[str, Sequence[float]]:
        """Loss decrease at every lr, on each judge's batch, when these layers move."""
        lrs = self.settings.lr
        if self.settings.update != "joint":
            ends = [self._one_by_one(lr) for lr in lrs]
            stacked = {name: torch.stack([end[name] for end in ends]) for name in self.params}
            return {k: j.decreases(self.params, stacked).tolist() for k, j in judges.items()}
        step = direction(self.gradient, self.settings.normalize)
        output = list(step)[-1]
        still = {"all": [], "hidden": [output], "output": [n for n in step if n != output]}
        step |= {name: torch.zeros_like(step[name]) for name in still[layers]}
        line = LinePopulation(self.params, step, tuple(lrs))
        if self.settings.final == "mean":
            return {k: j.decreases(self.params, line).tolist() for k, j in judges.items()}
        result: dict[str, Sequence[float]] = {name: [] for name in judges}
        key = cells.derived_seed(self.cell, 2, self.cell["init"], self.cell["batch"])
        for index in range(len(lrs)):
            stepped = line.part(index, index + 1).members()
            mean = {name: tensor[0] for name, tensor in stepped.items()}
            samples = GaussianPopulation(
                mean, self.settings.final_sigma, key, 0, self.settings.final_samples
            )
            for name, judge in judges.items():
                drawn = judge.decreases(self.params, samples).mean()
                result[name] = [*result[name], float(drawn)]
        return result

    def _one_by_one(self, lr: float) -> Params:
        """Weights after stepping each layer, or each weight, at its own new estimate."""
        current = {name: tensor.clone() for name, tensor in self.params.items()}
        # Norms of the joint estimate: a single weight divided by its own norm would lose its size.
        scale = direction(self.gradient, self.settings.normalize)
        for name, tensor in current.items():
            if self.settings.update == "layerwise":
                pieces = [slice(None)]
            else:
                pieces = list(range(tensor.numel()))
            original, scaled = self.gradient[name].double(), scale[name].double()
            norm = original.norm() / scaled.norm() if scaled.norm() > 0 else original.new_ones(())
            for piece in pieces:
                generator = cells.generator_of(self.cell)
                estimate = self.estimator.estimate(self.objective, current, generator=generator)
                gradient = estimate.gradient[name].flatten()
                moved = tensor.flatten().clone()
                moved[piece] -= (lr * gradient[piece] / norm).to(tensor.dtype)
                tensor = current[name] = moved.reshape(tensor.shape)
        return current
