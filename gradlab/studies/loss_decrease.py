r"""How far one step against the estimated gradient brings the loss down.

The gradient does not depend on the learning rate: it is estimated once per cell, and every lr is
one member of a population on the line :math:`w - \eta\,g`. The decrease is judged on the same batch
(``loss_decrease``) and, since that rewards overfitting the batch, on an unseen one
(``loss_decrease_fresh``). Nested NES populations give a set of rows each.

``update`` asks whether weights should move jointly, layer by layer or one weight at a time: there
the gradient is estimated anew, with the same random numbers, before each partial step, which takes
its piece of the normalized new estimate. All estimates are counted as whole ones.
``final`` asks whether the stepped mean or samples around it are what is evaluated (the mean over
``final_samples`` draws). ``step_layers`` moves all layers, the hidden ones or the output layer
alone: the output layer's gradient is easy to estimate and brings most of the decrease, so a step of
all layers says little about the hidden ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from gradlab.estimators import GradientEstimate
from gradlab.evaluation import GaussianPopulation, LinePopulation, Params, Population
from gradlab.evaluation.population import num_coordinates
from gradlab.objectives import Objective
from gradlab.studies import cells
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.clock import now
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
        """Refuse combinations that cannot run, before anything is measured."""
        cells.require_runnable(cell)
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
        if settings["step_layers"] != ["all"] and cells.is_network(cell):
            raise ValueError(
                "of a network the layers that step are those of objective.layers: leave "
                'settings.step_layers at ["all"].'
            )

    def forward_passes(self, cell: Cell) -> float:
        """The estimate, every lr, and the same on the fresh batch."""
        settings = cell["settings"]
        judged = len(settings["lr"]) * (2 if settings["fresh"] else 1)
        judged *= len(settings["step_layers"]) * len(cells.populations_of(cell))
        judged *= settings["final_samples"] if settings["final"] == "sample" else 1
        estimates = 1.0
        if settings["update"] != "joint":
            tensors, weights = cells.sizes_of(cell)
            rounds = tensors if settings["update"] == "layerwise" else weights
            # The first of a step's estimates is the same for every lr.
            estimates += (rounds - 1) * len(settings["lr"])
        # A judged member takes half as long again, for its float64 output layer; two batches with
        # their targets are worth about eight passes.
        return float(estimates * cells.estimator_work(cell) + 1.5 * judged + 8)

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """One row per nested population and lr."""
        settings = LossDecreaseSettings.model_validate(cell["settings"])
        objective = cells.objective_of(cell, scratch=scratch)
        judges = {"loss_decrease": objective}
        if settings.fresh:
            judges["loss_decrease_fresh"] = cells.objective_of(
                cell, batch=cell["batch"] + cells.FRESH_BATCHES, scratch=scratch
            )
        params = student_of(cell, scratch)
        before = float(objective.loss(params))
        clock = now()
        estimates = cells.estimator_of(cell).estimates(
            objective, params, generator=cells.generator_of(cell)
        )
        seconds = now() - clock
        rows: list[Row] = []
        for population, estimate in zip(cells.populations_of(cell), estimates, strict=True):
            key = cells.key_columns(cell, population, leave_out=("lr", "fresh", "step_layers"))
            measure = _Measure(settings, cell, judges, params, estimate)
            own_seconds = seconds * cells.share_of(estimate, estimates[-1])
            for layers in settings.step_layers:
                for lr, (decreases, more_seconds) in zip(
                    settings.lr, measure.decreases(layers), strict=True
                ):
                    rows.append(
                        {
                            **key,
                            "step_layers": layers,
                            "lr": lr,
                            "loss_before": number(before),
                            "loss_after": number(before - decreases["loss_decrease"]),
                            "loss_decrease": number(decreases["loss_decrease"]),
                            "loss_decrease_fresh": number(
                                decreases.get("loss_decrease_fresh", math.nan)
                            ),
                            "forward_passes": estimate.forward_passes * measure.estimates,
                            "backward_passes": estimate.backward_passes * measure.estimates,
                            "seconds": own_seconds + more_seconds,
                        }
                    )
        return {"loss_decrease": rows}


class _Measure:
    """What the steps of one estimate bring, for every lr.

    Attributes:
        estimates: how many estimates one step takes.
    """

    def __init__(
        self,
        settings: LossDecreaseSettings,
        cell: Cell,
        judges: dict[str, Objective],
        params: Params,
        estimate: GradientEstimate,
    ) -> None:
        self.settings = settings
        self.cell = cell
        self.judges = judges
        self.params = params
        self.gradient = estimate.gradient
        rounds = {"joint": 1, "layerwise": len(params), "coordinate": num_coordinates(params)}
        self.estimates = rounds[settings.update]

    def decreases(self, layers: StepLayers) -> Iterator[tuple[dict[str, float], float]]:
        """For every lr the decrease on each judge's batch, and the seconds of further estimates."""
        lrs = self.settings.lr
        if self.settings.update != "joint":
            for lr in lrs:
                end, seconds = self._one_by_one(lr)
                yield {k: float(found[0]) for k, found in self._judge(end)}, seconds
            return
        line = LinePopulation(self.params, self._step(layers), tuple(lrs))
        if self.settings.final == "mean":
            judged = {name: found.tolist() for name, found in self._judge(line)}
            for index in range(len(lrs)):
                yield {name: values[index] for name, values in judged.items()}, 0.0
            return
        key = cells.derived_seed(self.cell, 2, self.cell["init"], self.cell["batch"])
        sigma, draws = self.settings.final_sigma, self.settings.final_samples
        for index in range(len(lrs)):
            stepped = line.part(index, index + 1).members()
            mean = {name: tensor[0] for name, tensor in stepped.items()}
            samples = GaussianPopulation(mean, sigma, key, 0, draws)
            yield {name: float(found.mean()) for name, found in self._judge(samples)}, 0.0

    def _judge(self, population: Population) -> Iterator[tuple[str, Tensor]]:
        for name, judge in self.judges.items():
            yield name, judge.decreases(self.params, population)

    def _step(self, layers: StepLayers) -> Params:
        """The normalized gradient of the layers that move, zero elsewhere."""
        *hidden, output = self.params
        moving = {"all": list(self.params), "hidden": hidden, "output": [output]}[layers]
        step = direction({name: self.gradient[name] for name in moving}, self.settings.normalize)
        return {
            name: step[name] if name in step else torch.zeros_like(tensor)
            for name, tensor in self.params.items()
        }

    def _one_by_one(self, lr: float) -> tuple[Params, float]:
        """One member that stepped piece by piece, and the seconds of all estimates but the first.

        Every estimate is normalized as a whole before its piece is taken: a single weight divided
        by its own norm would lose its size.
        """
        estimator, objective = cells.estimator_of(self.cell), self.judges["loss_decrease"]
        current = {name: tensor.clone() for name, tensor in self.params.items()}
        gradient, seconds = self.gradient, 0.0
        for index, (name, piece) in enumerate(self._pieces()):
            if index:
                clock = now()
                generator = cells.generator_of(self.cell)
                gradient = estimator.estimate(objective, current, generator=generator).gradient
                seconds += now() - clock
            move = direction(gradient, self.settings.normalize)[name]
            current[name] = current[name].clone()
            current[name].view(-1)[piece] -= lr * move.reshape(-1)[piece]
            if not torch.isfinite(current[name]).all():
                # Diverged: there is nothing left to estimate at, and a sign of infinity must not
                # pass for a step.
                current[name].fill_(math.nan)
                break
        return {name: tensor[None] for name, tensor in current.items()}, seconds

    def _pieces(self) -> Iterator[tuple[str, slice]]:
        for name, tensor in self.params.items():
            size = tensor.numel()
            length = size if self.settings.update == "layerwise" else 1
            yield from ((name, slice(i, i + length)) for i in range(0, size, length))
