r"""How good an estimated gradient is, layer by layer, against a named reference.

The reference is the coordinate discrete gradient (``cdg``, of half-width ``reference_epsilon``) or
the converged gradient of the smoothed loss (``smoothed``, of width ``reference_sigma``): the mean
of two independent estimates, whose agreement is the reference's own split-half cosine. These are
local NES's, but where a teacher-student network has binary weights, and the smoothing is one of
their signs: there they are local expectation gradients, every binary weight's own expectation exact
at each draw of the others, by sparse flips (:mod:`gradlab.estimators.nes_cdg`).

Rows are per repeat and layer; ``hidden`` joins the hidden layers, ``all`` joins everything;
``gradient_norm`` and ``reference_norm`` are lengths, and of a network ``depth_index`` counts
binarized layers from the input. Over R
repeats with mean ḡ and summed variance V, ``relative_variance`` is V/‖ref‖² and ``relative_bias``
√(‖ḡ - ref‖² - V/R - N)/‖ref‖: the noise of the mean and that of the reference (N, a quarter of the
squared distance of its halves) are taken out, so that an unbiased estimator scatters around 0, cut
off below. Both need two repeats. The split-half cosine needs no reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.estimators import GradientEstimate, cosine
from gradlab.estimators.base import split_half_cosine
from gradlab.evaluation import Params
from gradlab.objectives import LayeredObjective
from gradlab.studies import cells, networks
from gradlab.studies.base import Cell, Row, Settings, Tables, number
from gradlab.studies.clock import now
from gradlab.studies.steps import PositiveFloat
from gradlab.studies.students import cached, student_of


class GradientQualitySettings(Settings):
    """Settings of the study.

    Attributes:
        reference: "cdg", or "smoothed" for the converged smoothed gradient.
        reference_epsilon: half-width of the CDG.
        reference_sigma: width of the smoothing.
        reference_passes: local-NES passes of the smoothed reference, or draws of all signs where
            weights are binary (even: two halves).
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
        """Refuse combinations that cannot run, before anything is measured."""
        cells.require_runnable(cell)
        smoothed = cell["settings"]["reference"] == "smoothed"
        network = cells.is_network(cell)
        if smoothed and network and cell["objective"].get("coordinates") is not None:
            raise ValueError(
                'settings.reference = "smoothed" goes by whole layers: use reference = "cdg", or '
                "leave out objective.coordinates."
            )
        if smoothed and cell["objective"]["name"] == "test_function":
            raise ValueError(
                'settings.reference = "smoothed" needs a layered objective: use reference = "cdg".'
            )

    def forward_passes(self, cell: Cell) -> float:
        """The repeats and half the reference: the cells of one init and batch share it."""
        settings = cell["settings"]
        reference = cells.differences_work(cell)
        if settings["reference"] == "smoothed":
            entry = smoothed_reference(cell, settings["reference_passes"])
            if entry["name"] == "nes_cdg":
                reference *= settings["reference_passes"]
            else:
                reference = cells.estimator_work({**cell, "estimator": entry})
        return float(settings["repeats"] * cells.estimator_work(cell) + reference / 2)

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """One row per nested population, repeat and layer."""
        settings = GradientQualitySettings.model_validate(cell["settings"])
        objective = cells.objective_of(cell, scratch=scratch)
        params = student_of(cell, scratch)
        reference = _reference(cell, settings, params, scratch)
        estimator = cells.estimator_of(cell)
        repeats: list[list[GradientEstimate]] = []
        seconds: list[float] = []
        for repeat in range(settings.repeats):
            generator = cells.generator_of(cell, repeat)
            clock = now()
            repeats.append(estimator.estimates(objective, params, generator=generator))
            seconds.append(now() - clock)
        rows: list[Row] = []
        layered = isinstance(objective, LayeredObjective)
        depths = networks.depths_of(cell) if cells.is_network(cell) else {}
        # Of the two reference widths only the one that was used is a column.
        unused = "sigma" if settings.reference == "cdg" else "epsilon"
        leave_out = ("repeats", "reference_passes", f"reference_{unused}")
        for index, population in enumerate(cells.populations_of(cell)):
            key = cells.key_columns(cell, population, leave_out=leave_out)
            nested = [estimates[index] for estimates in repeats]
            for layer, names in _groups(params, layered).items():
                target = _joined(reference.gradient, names)
                gradients = torch.stack([_joined(e.gradient, names) for e in nested])
                bias, variance = _bias_and_variance(gradients, target, reference.noise(names))
                for repeat, estimate in enumerate(nested):
                    share = cells.share_of(estimate, repeats[repeat][-1])
                    rows.append(
                        {
                            **key,
                            "repeat": repeat,
                            "layer": layer,
                            **({"depth_index": depths.get(layer)} if depths else {}),
                            **_agreement(gradients[repeat], target),
                            "split_half_cosine": number(
                                split_half_cosine(estimate.diagnostics, names)
                            ),
                            "relative_bias": number(bias),
                            "relative_variance": number(variance),
                            "reference": settings.reference,
                            "reference_split_half_cosine": number(reference.agreement(names)),
                            "forward_passes": estimate.forward_passes,
                            "backward_passes": estimate.backward_passes,
                            "seconds": seconds[repeat] * share,
                        }
                    )
        return {"gradient_quality": rows}


def smoothed_reference(cell: Cell, draws: int) -> Row:
    """What estimates the smoothed reference, from so many draws, as an entry of ``[[estimators]]``.

    >>> cell = {"objective": {"name": "teacher_student", "weight": "binary"},
    ...         "settings": {"reference_sigma": 0.1}}
    >>> smoothed_reference(cell, 500)
    {'name': 'nes_cdg', 'sigma': 0.1, 'samples': 500}
    """
    # of networks local NES draws binary weights as well, for every example anew
    signs = not cells.is_network(cell) and cell["objective"].get("weight", "real") == "binary"
    name, size = ("nes_cdg", "samples") if signs else ("nes_local", "passes")
    return {"name": name, "sigma": cell["settings"]["reference_sigma"], size: draws}


def _groups(params: Params, layered: bool) -> dict[str, list[str]]:
    names = list(params)
    groups = {name: [name] for name in names}
    if layered and len(names) > 2:
        groups["hidden"] = names[:-1]
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
        "gradient_norm": number(float(gradient.norm())),
        "reference_norm": number(scale),
        "sign_agreement": number(float(same.mean()) if len(same) else math.nan),
    }


def _bias_and_variance(
    gradients: Tensor, reference: Tensor, reference_noise: float
) -> tuple[float, float]:
    """Relative bias and variance of the rows of ``(R, d)``; NaN for a single repeat."""
    scale = float(reference.norm())
    if len(gradients) < 2 or scale == 0:
        return math.nan, math.nan
    variance = float(gradients.var(dim=0, correction=1).sum())
    offset = float((gradients.mean(dim=0) - reference).square().sum())
    bias = math.sqrt(max(offset - variance / len(gradients) - reference_noise, 0.0))
    return bias / scale, variance / scale**2


@dataclass(frozen=True)
class _Reference:
    """A reference gradient, and the two independent halves it is the mean of, if it is sampled."""

    gradient: Params
    halves: tuple[Params, Params] | None = None

    def noise(self, names: list[str]) -> float:
        """Its expected squared distance from the converged gradient: a quarter of the halves'."""
        if self.halves is None:
            return 0.0
        first, second = (_joined(half, names) for half in self.halves)
        return float((first - second).square().sum()) / 4

    def agreement(self, names: list[str]) -> float:
        """Its split-half cosine; NaN where nothing is sampled."""
        if self.halves is None:
            return math.nan
        return cosine(*(_joined(half, names) for half in self.halves))


def _reference(
    cell: Cell, settings: GradientQualitySettings, params: Params, scratch: Path
) -> _Reference:
    """The reference of the cell's init and batch, computed once and kept."""
    identity = {
        key: cell[key] for key in ("seed", "threads", "objective", "student", "init", "batch")
    }
    sampled = settings.reference == "smoothed"
    fields = {"reference", "reference_sigma", "reference_passes"}
    identity |= settings.model_dump(
        include=fields if sampled else {"reference", "reference_epsilon"}
    )
    objective = cells.objective_of(cell, scratch=scratch)

    def differences() -> Params:
        cdg = estimators.create("cdg", epsilon=settings.reference_epsilon)
        return cdg.estimate(objective, params, generator=cells.generator_of(cell)).gradient

    def halves() -> Params:
        half_of = estimators.create(**smoothed_reference(cell, settings.reference_passes // 2))
        found: Params = {}
        for half in range(2):
            # A stream that no repeat reaches: the reference is independent of what it judges.
            generator = cells.generator_of(cell, repeat=2**30 + half)
            gradient = half_of.estimate(objective, params, generator=generator).gradient
            found |= {f"{half}/{name}": tensor for name, tensor in gradient.items()}
        return found

    stored = cached(scratch, "reference", identity, halves if sampled else differences)
    if not sampled:
        return _Reference({name: stored[name].to(w.device) for name, w in params.items()})
    first, second = (
        {name: stored[f"{half}/{name}"].to(w.device) for name, w in params.items()}
        for half in range(2)
    )
    return _Reference({name: (first[name] + second[name]) / 2 for name in params}, (first, second))
