r"""How good an estimated gradient is, layer by layer, against a named reference.

The reference is the coordinate discrete gradient (``cdg``, of half-width ``reference_epsilon``) or
the converged gradient of the smoothed loss (``smoothed``, of width ``reference_sigma``): the mean
of two independent local-NES estimates, whose agreement is the reference's own split-half cosine.

Rows are per repeat and layer; ``hidden`` joins the hidden layers, ``all`` joins everything. Over R
repeats with mean ḡ and summed variance V, ``relative_variance`` is V/‖ref‖² and ``relative_bias``
√(‖ḡ - ref‖² - V/R)/‖ref‖, the mean's own noise taken out. The split-half cosine needs no reference.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.estimators import GradientEstimate, cosine
from gradlab.evaluation import Params
from gradlab.objectives import LayeredObjective
from gradlab.studies import cells
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.steps import PositiveFloat
from gradlab.studies.students import cached, student_of


class GradientQualitySettings(Settings):
    """Settings of the study.

    Attributes:
        reference: "cdg", or "smoothed" for the converged smoothed gradient.
        reference_epsilon: half-width of the CDG.
        reference_sigma: width of the smoothing.
        reference_passes: local-NES passes of the smoothed reference (even: two halves).
        repeats: independent estimates on the same batch.
    """

    reference: Literal["cdg", "smoothed"] = "cdg"
    reference_epsilon: PositiveFloat = 0.1
    reference_sigma: PositiveFloat = 0.1
    reference_passes: Annotated[int, pydantic.Field(ge=4, multiple_of=4)] = 64
    repeats: Annotated[int, pydantic.Field(ge=1)] = 1


class GradientQuality:
    """The study."""

    name = "gradient_quality"
    settings_model = GradientQualitySettings

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run; nothing is computed."""
        smoothed = cell["settings"]["reference"] == "smoothed"
        if smoothed and cell["objective"].get("weight", "real") != "real":
            raise ValueError(
                'settings.reference = "smoothed" needs real weights: use reference = "cdg".'
            )
        if smoothed and cell["objective"]["name"] == "test_function":
            raise ValueError(
                'settings.reference = "smoothed" needs a layered objective: use reference = "cdg".'
            )

    def forward_passes(self, cell: Cell) -> float:
        """The repeats, and the reference (shared by the cells of one init and batch)."""
        settings = cell["settings"]
        reference = 10.0 * settings["reference_passes"]
        if settings["reference"] == "cdg":
            width = cell["objective"].get("num_dim", 1)
            reference = 0.7 * width * cell["objective"].get("depth", 1)
        return settings["repeats"] * cells.estimator_work(cell) + reference

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """One row per nested population, repeat and layer."""
        settings = GradientQualitySettings.model_validate(cell["settings"])
        objective = cells.objective_of(cell)
        params = student_of(cell, scratch)
        reference, agreement = _reference(cell, settings, params, scratch)
        estimator = cells.estimator_of(cell)
        repeats: list[list[GradientEstimate]] = []
        seconds: list[float] = []
        for repeat in range(settings.repeats):
            generator = cells.generator_of(cell, repeat)
            clock = time.perf_counter()
            repeats.append(estimator.estimates(objective, params, generator=generator))
            seconds.append(time.perf_counter() - clock)
        rows: list[Row] = []
        layered = isinstance(objective, LayeredObjective)
        for index, population in enumerate(cells.populations_of(cell)):
            key = cells.key_columns(cell, population, leave_out=("repeats", "reference_passes"))
            # Of the two reference widths only the one that was used is a column.
            unused = "sigma" if settings.reference == "cdg" else "epsilon"
            key.pop(f"reference_{unused}")
            nested = [estimates[index] for estimates in repeats]
            for layer, names in _groups(params, layered).items():
                target = _joined(reference, names)
                gradients = torch.stack([_joined(e.gradient, names) for e in nested])
                bias, variance = _bias_and_variance(gradients, target)
                for repeat, estimate in enumerate(nested):
                    share = estimate.forward_passes / max(repeats[0][-1].forward_passes, 1.0)
                    rows.append(
                        {
                            **key,
                            "repeat": repeat,
                            "layer": layer,
                            **_agreement(gradients[repeat], target),
                            "split_half_cosine": number(
                                estimate.diagnostics.get(f"split_half_cosine/{layer}", math.nan)
                            ),
                            "relative_bias": number(bias),
                            "relative_variance": number(variance),
                            "reference": settings.reference,
                            "reference_split_half_cosine": number(agreement.get(layer, math.nan)),
                            "forward_passes": estimate.forward_passes,
                            "backward_passes": estimate.backward_passes,
                            "seconds": seconds[repeat] * share,
                        }
                    )
        return {"gradient_quality": rows}


def _groups(params: Params, layered: bool) -> dict[str, list[str]]:
    names = list(params)
    groups = {name: [name] for name in names}
    if layered and len(names) > 2:
        groups["hidden"] = names[:-1]
    if len(names) > 1:
        groups["all"] = names
    return groups


def _joined(gradient: Params, names: list[str]) -> Tensor:
    return torch.cat([gradient[name].double().flatten() for name in names])


def _agreement(gradient: Tensor, reference: Tensor) -> Row:
    scale = float(reference.norm())
    # A zero in the reference has no sign to agree with.
    signed = reference != 0
    same = (gradient.sign() == reference.sign())[signed].double()
    return {
        "cosine": number(cosine(gradient, reference)),
        "norm_ratio": number(float(gradient.norm()) / scale if scale > 0 else math.nan),
        "sign_agreement": number(float(same.mean()) if len(same) else math.nan),
    }


def _bias_and_variance(gradients: Tensor, reference: Tensor) -> tuple[float, float]:
    """Relative bias and variance of the rows of ``(R, d)``; NaN for a single repeat."""
    scale = float(reference.norm())
    if len(gradients) < 2 or scale == 0:
        return math.nan, math.nan
    variance = float(gradients.var(dim=0, correction=1).sum())
    offset = float((gradients.mean(dim=0) - reference).square().sum())
    bias = math.sqrt(max(offset - variance / len(gradients), 0.0))
    return bias / scale, variance / scale**2


def _reference(
    cell: Cell, settings: GradientQualitySettings, params: Params, scratch: Path
) -> tuple[Params, dict[str, float]]:
    """The reference gradient and its own split-half cosine per group of layers."""
    identity = {
        key: cell[key] for key in ("seed", "threads", "objective", "student", "init", "batch")
    }
    identity |= settings.model_dump(exclude={"repeats"})

    def compute() -> Params:
        objective = cells.objective_of(cell)
        if settings.reference == "cdg":
            estimator = estimators.create("cdg", epsilon=settings.reference_epsilon)
            return estimator.estimate(
                objective, params, generator=cells.generator_of(cell)
            ).gradient
        halves = {}
        for half in range(2):
            # A stream that no repeat reaches: the reference is independent of what it judges.
            generator = cells.generator_of(cell, repeat=2**30 + half)
            estimator = estimators.create(
                "nes_local",
                sigma=settings.reference_sigma,
                passes=settings.reference_passes // 2,
            )
            gradient = estimator.estimate(objective, params, generator=generator).gradient
            halves |= {f"{half}/{name}": tensor for name, tensor in gradient.items()}
        return halves

    stored = cached(scratch, "reference", identity, compute)
    if settings.reference == "cdg":
        return {name: stored[name] for name in params}, {}
    halves = [{name: stored[f"{half}/{name}"] for name in params} for half in range(2)]
    mean = {name: (halves[0][name] + halves[1][name]) / 2 for name in params}
    groups = _groups(params, layered=True)
    agreement = {
        layer: cosine(_joined(halves[0], names), _joined(halves[1], names))
        for layer, names in groups.items()
    }
    return mean, agreement
