"""The estimators of a diagnosis, by name: gradlab's own, surrogates, and the module's own way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradlab import estimators
from gradlab._registry import unknown
from gradlab.binary import surrogates
from gradlab.diagnosis.objective import ModuleObjective
from gradlab.estimators import Estimator, GradientEstimate
from gradlab.evaluation import Params

OWN = "own"
Given = str | Mapping[str, Any] | Estimator
DEFAULT_ESTIMATORS: tuple[Given, ...] = (
    OWN,
    "identity",
    "hardtanh",
    "polynomial",
    "swish_sign",
    "reste",
    {"name": "ste", "surrogate": "matched"},
    {"name": "nes_local", "passes": 8},
    {"name": "nes", "population": 500},
)


class OwnBackward:
    """Backpropagation as the module itself does it, whatever its signs have for a derivative."""

    def estimate(
        self, objective: Any, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One forward and one backward pass; the generator is not used."""
        gradient = objective.own_gradient(params)
        return GradientEstimate(gradient, forward_passes=1.0, backward_passes=1.0)

    def estimates(
        self, objective: Any, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """The estimate, alone in a list."""
        return [self.estimate(objective, params, generator=generator)]

    def label(self) -> str:
        """``own backward``."""
        return "own backward"


@dataclass(frozen=True)
class Entry:
    """One estimator of a diagnosis.

    Attributes:
        label: how the table calls it.
        estimator: the estimator.
        optional: left out without a row where it does not apply to a module.
    """

    label: str
    estimator: Estimator
    optional: bool = False

    def forward_passes(self, objective: ModuleObjective) -> float:
        """What it is expected to take; 1 where nothing is known."""
        options = self.estimator
        if isinstance(options, estimators.CDG):
            return 2.0 * sum(w.numel() for w in objective.params.values())
        for option in ("population", "passes", "samples"):
            size = getattr(options, option, None)
            if isinstance(size, list | tuple) and size:
                size = size[-1]
            if isinstance(size, int | float) and not isinstance(size, bool):
                return float(size)
        return 1.0


def entries(given: Sequence[Given], sigma: float, epsilon: float) -> list[Entry]:
    """The estimators, made.

    Args:
        given: "own" for the module's own backward pass, names of estimators, names of surrogates
            (the straight-through estimator with that derivative), tables of a name and options, or
            estimators themselves.
        sigma: width of the smoothing where an estimator's options leave it open.
        epsilon: half-width of differences, likewise.

    Raises:
        ValueError: an unknown name or option, or nothing at all.

    >>> [each.label for each in entries(["own", "steep", "nes"], 0.1, 0.1)]
    ['own backward', 'STE steep', 'NES 500']
    """
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence) or not given:
        raise ValueError(f"estimators is {given!r}: give a list of names, such as ['own', 'nes'].")
    defaults = [each for each in DEFAULT_ESTIMATORS if isinstance(each, Mapping)]
    found: dict[str, Entry] = {}
    for each in given:
        estimator = _made(each, {"sigma": sigma, "epsilon": epsilon})
        label = _made(each, {}).label()  # the diagnosis's own widths need not be told in every line
        # what everybody gets without asking need not apply to every network
        optional = given is DEFAULT_ESTIMATORS and each in defaults
        found.setdefault(label, Entry(label, estimator, optional))
    return list(found.values())


def _made(given: Given, widths: Mapping[str, float]) -> Estimator:
    if not isinstance(given, str | Mapping):
        if callable(getattr(given, "estimate", None)) and callable(getattr(given, "label", None)):
            return given
        raise ValueError(
            f"{given!r} is no estimator: give a name, a table with a name and options, or what "
            "gradlab.estimators.create returns."
        )
    table: dict[str, Any] = {"name": given} if isinstance(given, str) else dict(given)
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise ValueError(f"the estimator {given!r} has no name: give name and options.")
    if name == OWN and not table:
        return OwnBackward()
    if name in surrogates.names() and name not in estimators.names():
        return estimators.create("ste", surrogate={"name": name, **table} if table else name)
    if name not in estimators.names():
        valid = [OWN, *estimators.names(), *surrogates.names()]
        raise ValueError(unknown("estimator", name, valid))
    options = estimators.REGISTRY.options(name)
    widened = {key: value for key, value in widths.items() if key in options}
    surrogate = table.get("surrogate")
    if name == "ste" and surrogate == "matched" and widths:
        table["surrogate"] = {"name": "matched", "sigma": widths["sigma"]}
    return estimators.create(name, **{**widened, **table})
