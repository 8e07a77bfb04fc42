"""What estimates are compared with: central differences, and the gradient of the smoothed loss.

Both are measured as far as a share of the budget goes. A layer whose reference is noise is said to
be unknown; nothing is compared with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.diagnosis.agreement import Reference
from gradlab.diagnosis.objective import ModuleObjective
from gradlab.estimators import GradientEstimate, cosine
from gradlab.evaluation import GaussianPopulation, Params
from gradlab.studies.clock import now

FIRST = 8
"""Coordinates of every layer that central differences begin with."""
CHANGED = 8
"""Coordinates that have to change the loss before the differences of a layer say anything."""
RESOLVED = 0.25
"""Cosine of a smoothed reference's halves above which its layer is compared: the mean of both then
has a cosine of .63 to what they estimate, and that noise is taken out."""
SETTLED = 0.9
"""Cosine at which no more samples are drawn."""
SIGNIFICANT = 2.5
"""Standard deviations of the cosine of two noises, which is 1/√coordinates."""


@dataclass
class Budget:
    """Forward passes and seconds that may be spent, and what one forward pass takes.

    Attributes:
        max_forward_passes: in full-batch equivalents, by each method's definition.
        max_seconds: of the whole diagnosis.
        spent: forward passes so far.
        seconds_per_pass: of one member of a population.
    """

    max_forward_passes: float
    max_seconds: float
    spent: float = 0.0
    seconds_per_pass: float = 0.0
    started: float = field(default_factory=now)

    def left(self, share: float = 1.0) -> tuple[float, float]:
        """Forward passes and seconds that are left of a share of the whole."""
        passes = share * self.max_forward_passes - self.spent
        return passes, share * self.max_seconds - (now() - self.started)

    def affords(self, passes: float, seconds: float, share: float = 1.0) -> bool:
        """Whether so much is left of a share of the whole."""
        left_passes, left_seconds = self.left(share)
        return passes <= left_passes and seconds <= left_seconds

    def too_dear(self, passes: float, seconds: float, share: float = 1.0) -> str:
        """Why something is not done, in one sentence without its end."""
        left_passes, left_seconds = (max(0.0, each) for each in self.left(share))
        if passes > left_passes:
            return (f"needs {passes:,.0f} forward passes, and {left_passes:,.0f} of the budget's "
                    f"{self.max_forward_passes:,.0f} are left for it")  # fmt: skip
        return (f"takes about {seconds:,.2g} s, and {left_seconds:,.2g} s of the budget's "
                f"{self.max_seconds:,.4g} are left for it")  # fmt: skip


def typical_width(params: Params) -> float:
    """Half the root mean square weight of the median layer, in two digits.

    >>> typical_width({"a": torch.full((2, 2), 0.1), "b": torch.full((3, 3), -0.3)})
    0.1
    """
    sizes = [float(w.double().square().mean().sqrt()) for w in params.values()]
    median = float(np.median(sizes))
    return float(f"{median / 2:.2g}") if median > 0 else 0.1


def time_one_pass(objective: ModuleObjective, sigma: float, budget: Budget) -> None:
    """Measure what one forward pass with other weights takes."""
    few = GaussianPopulation(objective.params, sigma, key=1, start=0, stop=2)
    objective.losses(few)  # the first call measures memory, too
    clock = now()
    objective.losses(few)
    budget.seconds_per_pass = (now() - clock) / 2
    budget.spent += 4


def central_differences(
    objective: ModuleObjective,
    epsilon: float,
    coordinates: int,
    budget: Budget,
    share: float,
    seed: int,
) -> dict[str, Reference]:
    """The coordinate discrete gradient of some random coordinates of every layer.

    Args:
        objective: the loss.
        epsilon: half-width.
        coordinates: how many of each layer at most.
        budget: what may be spent.
        share: of the whole budget, what may have been spent afterwards.
        seed: fixes the coordinates.
    """
    order = {
        name: np.random.default_rng([seed, index]).permutation(w.numel())
        for index, (name, w) in enumerate(objective.params.items())
    }
    found: dict[str, list[Tensor]] = {name: [] for name in order}
    seconds = dict.fromkeys(order, 0.0)
    wanted = {name: min(coordinates, len(places)) for name, places in order.items()}

    problems: dict[str, str] = {}

    def measure(name: str, start: int, stop: int) -> None:
        places = torch.from_numpy(order[name][start:stop]).to(objective.whole[name].device)
        clock = now()
        found[name].append(objective.some_differences(name, epsilon, places) / (2 * epsilon))
        seconds[name] = now() - clock
        budget.spent += 2 * (stop - start)

    for name, most in wanted.items():
        first = min(FIRST, most)
        cost = 2 * first, 2 * first * budget.seconds_per_pass
        if budget.affords(*cost, share):
            measure(name, 0, first)
        else:
            problems[name] = f"not measured: CDG {budget.too_dear(*cost, share)}"
    for name, most in wanted.items():
        first = sum(map(len, found[name]))
        layers_left = len(wanted) - list(wanted).index(name)
        if not first or first == most:
            continue
        passes, time_left = budget.left(share)
        affordable = int(min(passes / 2, time_left / max(seconds[name] / first, 1e-9)))
        more = min(most - first, affordable // layers_left)
        if more > 0:
            measure(name, first, first + more)
    references = {}
    for name, parts in found.items():
        passes = 2 * sum(map(len, parts))
        if not parts:
            references[name] = Reference("cdg", name, None, None, problems[name])
            continue
        values = torch.cat(parts)
        places = torch.from_numpy(order[name][: len(values)])
        changed, needed = int((values != 0).sum()), min(CHANGED, wanted[name])
        problem = ""
        if not torch.isfinite(values).all():
            problem = "unknown: a central difference is NaN or infinite"
        elif changed < needed:
            problem = (
                f"unknown: {changed} of {len(values)} coordinates change the loss at epsilon = "
                f"{epsilon:g}; raise epsilon, coordinates or the batch size"
            )
        references[name] = Reference(
            "cdg", name, places, (values, values), problem, forward_passes=passes
        )
    return references


@dataclass(frozen=True)
class _Sampler:
    """Independent samples of the smoothed gradient: local NES, or NES."""

    objective: ModuleObjective
    sigma: float
    generator: torch.Generator
    name: str

    def __call__(self, samples: int) -> GradientEstimate:
        size = "passes" if self.name == "nes_local" else "population"
        estimator = estimators.create(self.name, sigma=self.sigma, **{size: samples})
        objective: Any = self.objective
        return estimator.estimate(objective, objective.params, generator=self.generator)


def _better_sampler(
    objective: ModuleObjective, sigma: float, budget: Budget, seed: int, judged: Collection[str]
) -> _Sampler:
    """Which of both has less noise in the layers ``judged`` for the same share of the budget.

    Both estimate the same gradient without bias. Local NES has a noise for every example, and where
    that is dear, as in convolutions, it may still be the worse bargain.
    """
    left_passes, left_seconds = (max(each, 1e-9) for each in budget.left())
    found: list[tuple[float, _Sampler]] = []
    for name, samples in (("nes_local", 2), ("nes", 32)):
        sampler = _Sampler(objective, sigma, torch.Generator().manual_seed(seed), name)
        try:
            first = sampler(samples)
        except ValueError:  # examples interact, or a layer that it cannot put noise on
            continue
        clock = now()
        second = sampler(samples)
        seconds = now() - clock
        budget.spent += first.forward_passes + second.forward_passes
        price = max(second.forward_passes / left_passes, seconds / left_seconds)
        noise = [
            math.log(
                float((first.gradient[n] - second.gradient[n]).double().square().sum()) + 1e-99
            )
            for n in judged or objective.params
        ]
        found.append((math.log(price) + sum(noise) / len(noise), sampler))
    return min(found, key=lambda each: each[0])[1]


def smoothed_gradient(
    objective: ModuleObjective,
    sigma: float,
    budget: Budget,
    share: float,
    seed: int,
    judged: Collection[str] = (),
) -> dict[str, Reference]:
    """The gradient of the loss smoothed by N(0, σ²) on every chosen weight, in two halves.

    By local NES or by NES, whichever has less noise for its cost here; more samples at every round
    until the halves agree in every layer or the share of the budget is spent.

    Args:
        objective: the loss.
        sigma: standard deviation of the smoothing.
        budget: what may be spent.
        share: of the whole budget, what may have been spent afterwards.
        seed: fixes the samples.
        judged: the layers by which samplers are chosen; all if left out.
    """
    names = list(objective.params)
    # of a pilot of each sampler, local NES with a pass for its baseline, and a first round
    least, seconds = 2 * (3 + 32) + 2 * 8, 2 * (3 + 32 + 8) * budget.seconds_per_pass
    if not budget.affords(least, seconds, share):
        problem = f"not measured: the smoothed gradient {budget.too_dear(least, seconds, share)}"
        return {name: Reference("smoothed", name, None, None, problem) for name in names}
    sampler = _better_sampler(objective, sigma, budget, seed, judged)
    halves = [
        {name: torch.zeros(w.numel(), dtype=torch.float64, device=w.device)
         for name, w in objective.params.items()} for _ in range(2)
    ]  # fmt: skip
    total, samples, spent = 0, 8, 0.0
    agreed = dict.fromkeys(names, math.nan)
    while True:
        clock = now()
        for half in halves:
            estimate = sampler(samples)
            for name in names:
                half[name] += samples * estimate.gradient[name].double().flatten()
            spent += estimate.forward_passes
            budget.spent += estimate.forward_passes
        total += samples
        seconds = (now() - clock) / (2 * samples)
        agreed = {name: cosine(halves[0][name], halves[1][name]) for name in names}
        passes_left, seconds_left = budget.left(share)
        most = int(min((passes_left / 2 - 1), seconds_left / (2 * max(seconds, 1e-9))))
        following = min(2 * samples, most - most % 2)
        # a last round much smaller than those before changes nothing
        if all(each >= SETTLED for each in agreed.values()) or following < max(2, total / 16):
            break
        samples = following
    references = {}
    for name in names:
        first, second = (half[name] / total for half in halves)
        problem = _unresolved(agreed[name], len(first), spent)
        references[name] = Reference(
            "smoothed", name, None, (first, second), problem, agreed[name], spent
        )
    return references


def _unresolved(agreed: float, size: int, passes: float) -> str:
    """Why two halves are too noisy to be a reference, if they are."""
    if agreed >= RESOLVED and agreed * math.sqrt(size) >= SIGNIFICANT:
        return ""
    if not math.isfinite(agreed):
        return "unknown: the smoothed gradient is zero or not finite"
    text = (
        f"unknown: after {passes:,.0f} forward passes the halves of the smoothed gradient agree to "
        f"a cosine of {agreed:.2f}"
    )
    if agreed * math.sqrt(size) < SIGNIFICANT:
        return f"{text}, which is noise"
    # the Spearman-Brown formula, solved for the number of samples
    needed = passes * (1 - agreed) / agreed * RESOLVED / (1 - RESOLVED)
    return f"{text}; {RESOLVED:g} take about {needed:,.0f}"
