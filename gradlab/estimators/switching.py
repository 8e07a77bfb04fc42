r"""The straight-through gradient as long as a step along it lowers the loss, and NES where not.

.. math:: \hat g = \begin{cases}
    g_{\mathrm{STE}} & f(w) - f(w - \mathrm{lr}\,g_{\mathrm{STE}}) > \mathrm{tolerance}\,|f(w)| \\
    \hat g_{\mathrm{NES}} & \text{otherwise}\end{cases}

STE is cheap and mostly right far from a minimum; its bias does not shrink with the gradient, so at
some point its steps stop lowering the loss, and only an estimate of the gradient of a loss that
exists, smoothed as it may be (:mod:`gradlab.estimators.nes`), still finds the way down. The switch
is judged anew for each estimate, with no memory of earlier ones: the same parameters and the same
batch give the same choice (but for surrogates that draw). The decrease is taken per example in
float64 on the objective's own batch, so that a step which only fits that batch passes for progress;
``lr`` has to be the length of the steps that training takes, for a step too long for STE may be too
long for any gradient.

Given that it switches, the estimate is unbiased for the smoothed loss, with NES's variance;
otherwise it is STE's. Diagnostics: ``switched`` (1 where NES was used) and ``ste_decrease``, the
loss before minus the loss after the straight-through step, beside those of NES.

Cost: two forward passes (the one of the STE gradient gives the loss before the step, another the
loss after it) and one backward pass; where it switches also the population's forward passes.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=1)
>>> params = {"x": torch.ones(1, dtype=torch.float64)}
>>> generator = torch.Generator().manual_seed(0)
>>> short = Switching(lr=1.9).estimate(objective, params, generator=generator)
>>> short.diagnostics["switched"], short.forward_passes, float(short.gradient["x"])
(0.0, 2.0, 1.0)
>>> long = Switching(lr=2.1).estimate(objective, params, generator=generator)  # from 1 to -1.1
>>> long.diagnostics["switched"], long.forward_passes, round(long.diagnostics["ste_decrease"], 3)
(1.0, 502.0, -0.105)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gradlab.binary.layers import Choice
from gradlab.estimators.base import (
    GradientEstimate,
    NestedEstimates,
    above_zero,
    at_least_zero,
    require_finite,
)
from gradlab.estimators.nes import NES
from gradlab.estimators.ste import STE, surrogate_label
from gradlab.evaluation.population import LinePopulation, Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class Switching(NestedEstimates):
    """STE, or NES where the straight-through step does not lower the loss.

    Args:
        surrogate: of the straight-through gradient, as for ``ste``.
        lr: length of the step that is judged: to w - lr·gradient.
        tolerance: the step has to lower the loss by more than this part of it.
        population: of NES: number of evaluations, or an ascending list of nested populations.
        sigma: of NES: standard deviation of the search distribution, in units of the weights.
        fitness: as for ``nes``.
        antithetic: members come in mirrored pairs.

    Raises:
        ValueError: an option out of range, or a parameter is not finite.
    """

    surrogate: Choice = "hardtanh"
    lr: float = 0.1
    tolerance: float = 0.0
    population: int | Sequence[int] = 500
    sigma: float = 0.1
    fitness: str = "centered"
    antithetic: bool = True

    def __post_init__(self) -> None:
        STE(self.surrogate)
        above_zero("lr", self.lr)
        at_least_zero("tolerance", self.tolerance)
        self._nes()

    def _nes(self) -> NES:
        return NES(self.population, self.sigma, fitness=self.fitness, antithetic=self.antithetic)

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population; all the same where STE is used."""
        params, nes = require_finite(params), self._nes()
        ste = STE(self.surrogate).estimate(objective, params, generator=generator)
        step = LinePopulation(params, ste.gradient, (float(self.lr),))
        decrease = float(objective.decreases(params, step)[0])
        needed = self.tolerance * abs(float(objective.loss(params))) if self.tolerance else 0.0
        lowers = decrease > needed  # not where it is NaN
        found = [ste] * len(nes.sizes)
        if not lowers:
            found = nes.estimates(objective, params, generator=generator)
        spent = ste.forward_passes + 1
        used = {"switched": float(not lowers), "ste_decrease": decrease}
        return [
            replace(
                each,
                forward_passes=spent if lowers else spent + each.forward_passes,
                backward_passes=ste.backward_passes,
                diagnostics=each.diagnostics | used,
            )
            for each in found
        ]

    def label(self) -> str:
        """``STE→NES 500 hardtanh``, with options that are not the default."""
        text = f"STE→{self._nes().label()} {surrogate_label(self.surrogate)}"
        text += "" if self.lr == 0.1 else f" lr={self.lr:g}"
        return text if self.tolerance == 0 else f"{text} tolerance={self.tolerance:g}"
