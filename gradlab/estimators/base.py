"""The estimators' contract: an objective and parameters in, a gradient and its cost out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class GradientEstimate:
    """One estimate.

    Attributes:
        gradient: same keys and shapes as the parameters; always points uphill of the loss.
        sigma_gradient: gradient in sigma or log sigma, where asked for.
        forward_passes: the estimator's definitional cost in full-batch equivalents (CDG: two per
            coordinate), whatever the implementation needed.
        backward_passes: likewise.
        diagnostics: numbers about the estimate, e.g. ``split_half_cosine/layers.0.weight``.
    """

    gradient: Params
    sigma_gradient: Params | None = None
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    diagnostics: dict[str, float] = field(default_factory=dict)


class Estimator(Protocol):
    """Anything that estimates the gradient of a binarized network's loss."""

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate; with nested populations, that of the largest."""

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, smallest first."""

    def label(self) -> str:
        """A short display name with every option that is not the default."""


class OneEstimate(ABC):
    """What an estimator without nested populations need not write."""

    @abstractmethod
    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """The estimate, alone in a list."""
        return [self.estimate(objective, params, generator=generator)]


class NestedEstimates(ABC):
    """What an estimator with nested populations need not write."""

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The estimate of the largest population."""
        return self.estimates(objective, params, generator=generator)[-1]

    @abstractmethod
    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, smallest first."""


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of the angle between two tensors; NaN where one of them is zero.

    >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    0.7071067811865475
    """
    first, second = first.double().flatten(), second.double().flatten()
    norms = first.norm() * second.norm()
    return float(first @ second / norms) if norms > 0 else math.nan


def split_half_diagnostics(
    halves: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], samples: float
) -> dict[str, float]:
    r"""How far an estimate agrees with itself, per tensor.

    If each half of the samples is signal plus independent noise, the split-half cosine ρ
    gives the noise-to-signal ratio of one half, :math:`(1 - \rho)/\rho`, and a cosine of .9 to the
    expected gradient is reached with :math:`n\,\frac{1-\rho}{\rho}\,\frac{.9^2}{2(1 - .9^2)}`
    samples (the Spearman-Brown formula, solved for n).

    Args:
        halves: the estimates from two disjoint halves of the samples.
        samples: how many samples both halves hold together.

    >>> halves = ({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([1.0, 1.0])})
    >>> numbers = split_half_diagnostics(halves, samples=10)
    >>> round(numbers["split_half_cosine/w"], 6), round(numbers["samples_for_0.9/w"], 6)
    (1.0, 0.0)
    """
    numbers = {}
    for name in halves[0]:
        agreement = cosine(halves[0][name], halves[1][name])
        numbers[f"split_half_cosine/{name}"] = agreement
        if len(halves[0]) > 1:  # what split_half_cosine needs to join tensors
            for index, half in enumerate(halves):
                numbers[f"split_half_norm_{index}/{name}"] = float(half[name].double().norm())
        needed = math.inf
        if agreement > 0:
            needed = samples * (1 - agreement) / agreement * 0.81 / (2 * (1 - 0.81))
        numbers[f"samples_for_0.9/{name}"] = max(needed, 0.0)
    return numbers


def split_half_cosine(diagnostics: Mapping[str, float], names: Iterable[str]) -> float:
    """The split-half cosine of several tensors taken as one vector.

    Tensors without halves (layers that the estimator left alone) count as zero; NaN where no tensor
    has any.

    Args:
        diagnostics: with what :func:`split_half_diagnostics` gives.
        names: the tensors.

    >>> halves = [{"v": torch.tensor([1.0]), "w": torch.tensor([2.0])},
    ...           {"v": torch.tensor([3.0]), "w": torch.tensor([-1.0])}]
    >>> numbers = split_half_diagnostics((halves[0], halves[1]), samples=10)
    >>> round(split_half_cosine(numbers, ["v", "w"]), 6) == round(1 / 50**0.5, 6)
    True
    """
    known = [name for name in names if f"split_half_cosine/{name}" in diagnostics]
    if len(known) == 1:
        return diagnostics[f"split_half_cosine/{known[0]}"]
    dot, squares = 0.0, [0.0, 0.0]
    for name in known:
        norms = [diagnostics.get(f"split_half_norm_{half}/{name}", math.nan) for half in (0, 1)]
        squares = [total + norm**2 for total, norm in zip(squares, norms, strict=True)]
        # the cosine of a zero half is NaN, its product is zero
        if 0.0 not in norms:
            dot += diagnostics[f"split_half_cosine/{name}"] * norms[0] * norms[1]
    scale = math.sqrt(squares[0] * squares[1])
    return dot / scale if scale > 0 else math.nan


def above_zero(name: str, value: object) -> float:
    """Refuse anything but a finite number above zero, in one sentence."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}: give a number above 0.")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}: give a finite number above 0.")
    return float(value)


def finite(name: str, value: object) -> float:
    """Refuse anything but a finite number, in one sentence."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}: give a finite number.")
    return value


def at_least_zero(name: str, value: object) -> None:
    """Refuse anything but a finite number of at least zero, in one sentence."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}: give a finite number of at least 0.")


def probability(name: str, value: object) -> None:
    """Refuse anything but a number strictly between 0 and 1, in one sentence."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{name} is {value!r}: give a number between 0 and 1, both excluded.")


def one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    """Refuse a word that is not among the valid ones, suggesting the nearest."""
    if value not in valid:
        raise ValueError(unknown(name, str(value), valid))


def true_or_false(name: str, value: object) -> None:
    """Refuse anything but a bool: a non-empty string would pass for true."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: give true or false.")


def require_finite(params: Mapping[str, Tensor]) -> Params:
    """The parameters, detached from any graph; NaN or infinity is refused, naming the tensor."""
    for name, tensor in params.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(
                f"parameter {name} has NaN or infinite entries: estimate before the run diverges."
            )
    return {name: tensor.detach() for name, tensor in params.items()}
