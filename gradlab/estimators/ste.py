r"""Straight-through estimator: backpropagation with a surrogate for the derivative of sign.

The forward pass is the exact network. Where the backward pass meets sign, whose derivative is zero
almost everywhere, it multiplies by a surrogate derivative instead (Bengio, Léonard and Courville
2013; Hubara et al. 2016); :mod:`gradlab.binary.surrogates` has the list. Deterministic, one forward
and one backward pass, and biased: for a stack of sign layers no surrogate makes it the gradient of
anything. The output layer behind the last sign is exact.

``surrogate="matched"`` is the exception that explains the others. Smooth every weight by
N(w, σ²); then a pre-activation z = w·h is N(z, s²) with s = σ‖h‖, its sign has mean
erf(z/(s√2)), and that mean's derivative :math:`2\varphi(z/s)/s` is a surrogate of width s. The
matched STE draws the noise once, backpropagates with exactly this derivative, and takes the last
sign layer in closed form: every NES has its matched STE (compare Shekhovtsov and Yanush,
"Reintroducing Straight-Through Estimators as Principled Methods for Stochastic Binary Networks",
2021). It estimates the smoothed gradient with a small bias at the cost of one forward and one
backward pass.

Of an ``nn.Module`` all parameters are smoothed, and every sign, or quantized activation, has the
derivative of its mean, given a sample of what lies below: through BatchNorm, scales, pooling and
residual sums down to the noisy layers, where :math:`s^2 = \sigma^2 \sum x^2` over the patch that a
position sees. Samples have weights of each example's own, which its positions share; binary weights
are taken by their means erf(w/(σ√2)) and variances, as normal. Behind the last sign moments are
propagated to the loss (:mod:`moment_propagation <gradlab.estimators.moment_propagation>`, whose
rules and limits these are), so that one hidden layer of real weights under a mean squared error is
exact. There forward and backward passes count products: 3, and 1 + 2K for K outputs of the part
behind the last sampled sign.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=256, seed=0)
>>> params = objective.initial_params(seed=0)
>>> estimate = STE("polynomial").estimate(objective, params, generator=torch.Generator())
>>> estimate.gradient["layers.0.weight"].shape, estimate.forward_passes, estimate.backward_passes
(torch.Size([4, 4]), 1.0, 1.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gradlab.binary import surrogates
from gradlab.binary.layers import Choice, name_and_options
from gradlab.estimators import moments_module
from gradlab.estimators.base import GradientEstimate, OneEstimate
from gradlab.estimators.matched import MatchedSmoothing, matched_gradient
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.objectives.base import LayeredObjective, NoisyObjective, Objective


def _build(choice: Choice) -> Any:
    name, options = name_and_options(choice)
    if name == "matched":
        return MatchedSmoothing.create(**options)
    try:
        return surrogates.create(name, **options)
    except ValueError as error:
        if name not in surrogates.names():
            raise ValueError(str(error).replace("Valid: ", "Valid: matched, ")) from None
        raise


def surrogate_label(choice: Choice) -> str:
    """A surrogate and its options in words.

    >>> surrogate_label({"name": "hardtanh", "threshold": 0.5})
    'hardtanh(threshold=0.5)'
    """
    name, options = name_and_options(choice)
    inside = ", ".join(
        f"{key}={value}" if isinstance(value, str) else f"{key}={value:g}"
        for key, value in sorted(options.items())
    )
    return f"{name}({inside})" if inside else name


def other_surrogate(choice: Choice) -> str:
    """For labels: a surrogate behind a stroke, or nothing for the default one.

    >>> other_surrogate("hardtanh"), other_surrogate("identity")
    ('', ' / identity')
    """
    return "" if choice == "hardtanh" else f" / {surrogate_label(choice)}"


@dataclass(frozen=True)
class STE(OneEstimate):
    """Backpropagation with a surrogate derivative.

    Args:
        surrogate: a registered surrogate's name, or a mapping with ``name`` and its options
            (``{"name": "hardtanh", "threshold": 0.5}``), or ``matched`` (option ``sigma``).
        weight_surrogate: the derivative of sign(w) where weights are binary; hardtanh if left out.

    Raises:
        ValueError: an unknown surrogate or option, or one out of range.
    """

    surrogate: Choice = "hardtanh"
    weight_surrogate: Choice | None = None

    def __post_init__(self) -> None:
        _build(self.surrogate)
        if self.weight_surrogate is not None:
            if name_and_options(self.weight_surrogate)[0] == "matched":
                raise ValueError(
                    "matched smooths pre-activations, not weights: choose another "
                    "weight_surrogate, e.g. hardtanh."
                )
            _build(self.weight_surrogate)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One forward and one backward pass; only ``matched`` draws from the generator."""
        surrogate = _build(self.surrogate)
        if isinstance(surrogate, MatchedSmoothing):
            if isinstance(objective, NoisyObjective) and not isinstance(
                objective, LayeredObjective
            ):
                return moments_module.estimate(
                    objective, params, surrogate.sigma, "the matched STE",
                    key=draw_key(generator),
                )  # fmt: skip
            gradient = matched_gradient(objective, params, surrogate.sigma, draw_key(generator))
        else:
            options = {}
            if self.weight_surrogate is not None:
                options["weight_surrogate"] = _build(self.weight_surrogate)
            gradient = objective.surrogate_gradient(params, surrogate, **options)
        return GradientEstimate(gradient, forward_passes=1.0, backward_passes=1.0)

    def label(self) -> str:
        """``STE hardtanh``, ``matched STE``, with options that are not the default."""
        name = surrogate_label(self.surrogate)
        text = name.replace("matched", "matched STE") if "matched" in name else f"STE {name}"
        if self.weight_surrogate is not None:
            text += f" / weights {surrogate_label(self.weight_surrogate)}"
        return text
