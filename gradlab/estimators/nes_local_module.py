r"""Local NES of any ``nn.Module``: its noisy passes as an estimate.

The gradient is that of :mod:`gradlab.evaluation.module.noisy`, averaged over examples and passes;
:class:`gradlab.estimators.NESLocal` is the estimator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradlab._registry import unknown
from gradlab.estimators.base import GradientEstimate, require_finite, split_half_diagnostics
from gradlab.evaluation.population import Params
from gradlab.objectives.base import NoisyObjective


def estimate(
    objective: NoisyObjective,
    params: Params,
    key: int,
    *,
    sigma: float,
    passes: int,
    antithetic: bool,
    layers: Sequence[str] | None,
    baseline: str,
    noise: str,
) -> GradientEstimate:
    """One estimate; for the options see :class:`gradlab.estimators.NESLocal`.

    Args:
        objective: gives the noisy passes.
        params: one parameter dict.
        key: 64-bit noise key.
        sigma: standard deviation of every perturbed weight.
        passes: noisy forward passes.
        antithetic: passes come in mirrored pairs.
        layers: names of the perturbed parameters; all if None.
        baseline: "none" or "noise_free".
        noise: "weights" or "positions".

    Raises:
        ValueError: another baseline, a parameter that there is not, a module whose examples
            interact, or one that has no noise of the kind.
    """
    if baseline not in ("none", "noise_free"):
        raise ValueError(
            f'baseline = "{baseline}" is for networks of layers in a row, not for any nn.Module: '
            'use baseline = "noise_free" or "none".'
        )
    params = require_finite(params)
    names = tuple(params) if layers is None else tuple(layers)
    for name in names:
        if name not in params:
            raise ValueError(unknown("layer", name, tuple(params)))
    noisy = objective.noisy_passes(params, names, sigma, noise)
    size = noisy.size
    middle = size // 2
    # Examples are independent, so the two halves of the batch are two independent estimates.
    halves = [
        noisy.gradient(
            key,
            passes,
            antithetic=antithetic,
            baseline=baseline == "noise_free",
            examples=examples,
        )
        for examples in ((0, middle), (middle, size))
    ]
    gradient = {name: torch.zeros_like(w) for name, w in params.items()}
    for name in noisy.names:
        gradient[name] = ((halves[0][name] + halves[1][name]) / size).to(params[name].dtype)
    extra = baseline == "noise_free" and noisy.baseline_matters(passes, antithetic)
    return GradientEstimate(
        gradient,
        forward_passes=float(passes + extra),
        backward_passes=passes * noisy.pathwise,
        diagnostics=split_half_diagnostics((halves[0], halves[1]), passes) if middle else {},
    )
