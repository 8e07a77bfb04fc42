"""Estimators for binary weights; their costs on the toy, of four signs and two real weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from tests.estimators import referees
from tests.estimators.case import SIGMA, Case, smoothed


def bernoulli_natural(objective: TeacherStudent, params: Params) -> dict[str, Tensor]:
    """The smoothed gradient over the Fisher information, φ²/(σ²p(1 − p)) of signs, else 1/σ²."""
    found = smoothed(objective, params)
    for name, gradient in found.items():
        ratio = params[name].double() / SIGMA
        spread = torch.ones_like(ratio)
        if name != objective.layer_names[-1]:
            spread = referees.distribution(ratio) * referees.distribution(-ratio)
            spread = spread / referees.density(ratio) ** 2
        found[name] = SIGMA**2 * spread * gradient
    return found


def sampled(name: str, count: int = 500, referee: Any = smoothed, **options: Any) -> Case:
    option = {"population": count} | options
    return Case(name, option, float(count), 0.0, referee=referee, weight="binary")


def drawn(name: str, samples: int, forward: float, backward: float = 0.0, **options: Any) -> Case:
    exact = None if backward else smoothed
    options = {"samples": samples} | options
    total = samples * forward, samples * backward
    return Case(name, options, *total, referee=exact, weight="binary")


CASES = [
    sampled("rao_blackwell_nes"),
    sampled("rao_blackwell_nes", antithetic=False),
    sampled("rao_blackwell_nes", 2000, bernoulli_natural, gradient="natural"),
    sampled("rao_blackwell_nes", 2000, bernoulli_natural, gradient="natural", antithetic=False),
    sampled("reinforce"),
    sampled("reinforce", 2000, baseline="none"),
    sampled("arm"),
    sampled("disarm"),
    drawn("local_expectation", 60, 1 + 4 + 2 * 2),
    drawn("nes_cdg", 60, 2 * 6),
    drawn("gumbel_softmax", 100, 1, 1),
    drawn("gumbel_softmax", 100, 1, 1, straight_through=True, temperature=1.0),
    drawn("reinmax", 100, 1, 1),
    drawn("reinmax", 100, 1, 1, temperature=2.0, surrogate="polynomial"),
]
