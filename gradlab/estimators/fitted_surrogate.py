r"""Surrogates with their width chosen on the network at hand.

A surrogate's options are usually taken from the paper that proposed it, where pre-activations had
another scale. :func:`fit_surrogate` chooses them so that the straight-through gradient agrees best
with a referee on this network, the mean over the hidden layers of the cosine between the two

.. math:: \max_\theta \frac1L \sum_l
    \cos\bigl(g_l^{\mathrm{STE}(\theta)}, g_l^{\mathrm{referee}}\bigr),

and judges the choice on batches that it was not made on. The referee is any estimator: central
differences (the default), or ``nes_local`` and ``psa`` for a smoothed gradient. What it costs is
paid once for every batch. A noisy referee lowers all cosines alike, so that the choice still
holds but gains look smaller. The cosine says nothing of a layer's length: an optimizer that
normalizes gradients sees none of it, plain descent sees it in the lr.

Every option is searched in turn, on a grid (geometric, where the range spans a factor of ten or
more) and by golden section around the best point of it, until a round over all options changes
nothing. With boxes such as hardtanh's the cosine is a staircase in the option, one step for every
pre-activation, and may have several maxima: what is found is the best of what was tried, never
worse on the fitting batch than the start, and no proof that nothing is better. A layer in which
the surrogate lets nothing through counts as cosine 0. All layers share one choice, as everywhere
in gradlab, so that the mean may rise where one layer's cosine falls: ``gain(layer)`` says it.

>>> from gradlab.objectives import TeacherStudent
>>> objective, *unseen = (TeacherStudent(4, 1024, seed=0, batch=batch) for batch in range(4))
>>> fitted = fit_surrogate(objective, objective.initial_params(seed=0), "hardtanh", unseen=unseen,
...                        generator=torch.Generator().manual_seed(0))
>>> sorted(fitted.surrogate), fitted.fitting_gain >= 0, fitted.gain().batches
(['name', 'threshold'], True, 3)
>>> from gradlab.estimators import create
>>> create("ste", surrogate=fitted.surrogate).label().split("=")[0]
'STE hardtanh(threshold'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from scipy import special

from gradlab._registry import unknown
from gradlab.binary import surrogates
from gradlab.binary.layers import Choice, name_and_options
from gradlab.estimators.base import Estimator, GradientEstimate, cosine, finite, require_finite
from gradlab.estimators.cdg import CDG
from gradlab.estimators.matched import MatchedSmoothing
from gradlab.estimators.ste import STE, surrogate_label
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.objectives.base import LayeredObjective, Objective

RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("ede", "progress"): (0.0, 1.0),
    ("hardtanh", "threshold"): (0.01, 10.0),
    ("matched", "sigma"): (0.01, 10.0),
    ("reste", "o"): (1.0, 3.0),
    ("swish_sign", "beta"): (0.1, 100.0),
}
"""Where the options of gradlab's own surrogates are searched, if nothing else is said."""

_GRID = 15  # points over a range
_STEPS = 12  # of golden section, to 0.6 % of the grid's spacing
_ROUNDS = 4  # over several options
_GOLDEN = (math.sqrt(5) - 1) / 2
_LEVEL = 0.95

Cosines = dict[str, float]


@dataclass(frozen=True)
class Gain:
    """How much a cosine rose, over unseen batches.

    Attributes:
        mean: after less before.
        low: lower end of the 95 % interval of Student's t, paired over batches.
        high: its upper end.
        batches: how many.
    """

    mean: float
    low: float
    high: float
    batches: int


@dataclass(frozen=True)
class FittedSurrogate:
    """A choice of options, and how far it agrees with the referee. All cosines are per layer.

    Attributes:
        surrogate: the choice: a mapping with ``name`` and options, as any ``surrogate`` takes it.
        start: the same before.
        before: cosines to the referee of the start, on the fitting batch.
        after: of the choice.
        unseen_before: of the start, on every unseen batch.
        unseen_after: of the choice.
        evaluations: straight-through gradients that the search looked at.
        forward_passes: of all gradients and referees, those on unseen batches included.
        backward_passes: likewise.
    """

    surrogate: dict[str, Any]
    start: dict[str, Any]
    before: Cosines
    after: Cosines
    unseen_before: tuple[Cosines, ...]
    unseen_after: tuple[Cosines, ...]
    evaluations: int
    forward_passes: float
    backward_passes: float

    @property
    def fitting_gain(self) -> float:
        """How much the mean cosine rose on the batch that was searched: what search maximizes."""
        return _mean(self.after) - _mean(self.before)

    def gain(self, layer: str | None = None) -> Gain:
        """How much the cosine rose on unseen batches.

        Args:
            layer: of one layer; of the mean over layers if left out.

        Raises:
            ValueError: no unseen batches were given, or none has such a layer.
        """
        if not self.unseen_before:
            raise ValueError("no unseen batches were given: fit with unseen=[…], at least two.")
        if layer is not None and layer not in self.before:
            raise ValueError(unknown("layer", layer, self.before))
        pick = _mean if layer is None else lambda cosines: _or_zero(cosines[layer])
        pairs = zip(self.unseen_before, self.unseen_after, strict=True)
        rises = torch.tensor([pick(after) - pick(before) for before, after in pairs]).double()
        count, mean = len(rises), float(rises.mean())
        quantile = float(special.stdtrit(count - 1, 0.5 + _LEVEL / 2))
        half = quantile * float(rises.std()) / math.sqrt(count)
        return Gain(mean, mean - half, mean + half, count)

    def summary(self) -> str:
        """What was chosen and what it brought, in words."""
        start, chosen = surrogate_label(self.start), surrogate_label(self.surrogate)
        cosines = f"{_mean(self.before):.3f} to {_mean(self.after):.3f}"
        text = f"{chosen} in place of {start}: mean cosine from {cosines} on the fitting batch"
        if self.surrogate == self.start:
            return f"{start} stays: nothing that was tried agrees better on the fitting batch."
        if not self.unseen_before:
            return f"{text}; no unseen batch was given, so that this says little of others."
        gain = self.gain()
        text += (
            f", {gain.mean:+.3f} on {gain.batches} unseen ones "
            f"(95 % interval {gain.low:+.3f} to {gain.high:+.3f})"
        )
        if gain.low > 0:
            return f"{text}."
        verdict = "worse" if gain.high < 0 else "no better than chance"
        return f"{text}: {verdict} beyond the fitting batch, so keep {start}."


def fit_surrogate(
    objective: Objective,
    params: Params,
    surrogate: Choice = "hardtanh",
    *,
    options: Sequence[str] | Mapping[str, tuple[float, float]] | None = None,
    referee: Estimator | None = None,
    unseen: Sequence[Objective] = (),
    layers: Sequence[str] | None = None,
    generator: torch.Generator,
) -> FittedSurrogate:
    """Choose a surrogate's options by agreement with a referee.

    Args:
        objective: the network on the batch to fit on.
        params: where its gradients are compared.
        surrogate: a registered surrogate, or ``matched``; a mapping says where the search starts.
        options: the real-valued options to choose, all that have a range in :data:`RANGES` if left
            out; a mapping gives each its range instead.
        referee: an estimator of the gradient to agree with; ``CDG()`` if left out.
        unseen: the same network on other batches, none or at least two: another ``batch`` of
            ``TeacherStudent``, another part of the data by ``Classification.on``.
        layers: parameters whose cosines are averaged; all but the output layer if left out, and all
            where the objective does not say which that is.
        generator: what the referee draws from, and ``matched`` its noise, the same for all options.

    Raises:
        ValueError: an unknown surrogate, option or layer, no options to choose, a range that is
            none, a single unseen batch, a referee that is zero everywhere.
    """
    start, ranges = _checked(surrogate, options)
    if len(unseen) == 1:
        raise ValueError("unseen is one batch, of which there is no interval: give two or none.")
    params = require_finite(params)
    names = _layers(objective, params, layers)
    referee = CDG() if referee is None else referee
    key = draw_key(generator)
    spent: list[GradientEstimate] = []

    def refereed(batch: Objective) -> Callable[[Mapping[str, Any]], Cosines]:
        truth = referee.estimate(batch, params, generator=generator)
        spent.append(truth)

        def cosines(choice: Mapping[str, Any]) -> Cosines:
            fixed = torch.Generator().manual_seed(key)
            found = STE(dict(choice)).estimate(batch, params, generator=fixed)
            spent.append(found)
            return {name: cosine(found.gradient[name], truth.gradient[name]) for name in names}

        if not any(truth.gradient[name].any() for name in names):
            raise ValueError(
                f"the referee {referee.label()} is zero in all of {', '.join(names)}: there is "
                "nothing to agree with, so choose another referee or a larger batch."
            )
        return cosines

    judge = refereed(objective)
    tried = {tuple(start.items()): judge(start)}
    best = _search(start, ranges, tried, judge)
    evaluations = len(tried)
    judged = [[other(choice) for choice in (start, best)] for other in map(refereed, unseen)]
    return FittedSurrogate(
        surrogate=best,
        start=start,
        before=tried[tuple(start.items())],
        after=tried[tuple(best.items())],
        unseen_before=tuple(before for before, _ in judged),
        unseen_after=tuple(after for _, after in judged),
        evaluations=evaluations,
        forward_passes=sum(estimate.forward_passes for estimate in spent),
        backward_passes=sum(estimate.backward_passes for estimate in spent),
    )


def _search(
    start: dict[str, Any],
    ranges: Mapping[str, tuple[float, float]],
    tried: dict[tuple[tuple[str, Any], ...], Cosines],
    judge: Callable[[Mapping[str, Any]], Cosines],
) -> dict[str, Any]:
    """The best choice found, the start unless another is better; ``tried`` gets all cosines."""

    def score(choice: dict[str, Any]) -> float:
        point = tuple(choice.items())
        if point not in tried:
            tried[point] = judge(choice)
        return _mean(tried[point])

    def along(choice: dict[str, Any], option: str, value: float) -> float:
        return score({**choice, option: value})

    best = start
    for _ in range(_ROUNDS if len(ranges) > 1 else 1):
        before = best
        for option, (low, high) in ranges.items():
            found = {**best, option: _highest(partial(along, best, option), low, high)}
            best = found if score(found) > score(best) else best
        if best == before:
            break
    return best


def _highest(score: Callable[[float], float], low: float, high: float) -> float:
    """Where the score is highest: on a grid, then by golden section around its best point."""
    geometric = low > 0 and high >= 10 * low
    a, b = (math.log(low), math.log(high)) if geometric else (low, high)
    seen: dict[float, float] = {}

    def look(x: float) -> float:
        value = min(max(math.exp(x) if geometric else x, low), high)
        seen[value] = score(value)
        return seen[value]

    grid = [a + (b - a) * k / (_GRID - 1) for k in range(_GRID)]
    scores = list(map(look, grid))
    middle = scores.index(max(scores))
    a, b = grid[max(middle - 1, 0)], grid[min(middle + 1, _GRID - 1)]
    for _ in range(_STEPS):
        left, right = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
        a, b = (a, right) if look(left) >= look(right) else (left, b)
    return max(seen, key=lambda value: seen[value])


def _checked(
    surrogate: Choice, options: Sequence[str] | Mapping[str, tuple[float, float]] | None
) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """The choice with all its options, and the ranges to search."""
    name, given = name_and_options(surrogate)
    STE({"name": name, **given})
    values = {"sigma": MatchedSmoothing().sigma} if name == "matched" else surrogates.defaults(name)
    start = {"name": name, **values, **given}
    if options is None:
        options = [option for kind, option in RANGES if kind == name]
    if isinstance(options, str):
        raise ValueError(f"options is '{options}': give a list of names, [\"{options}\"].")
    if not options:
        raise ValueError(
            f"the surrogate {name} has no option to choose: take one that has, such as hardtanh, "
            "or name its options with their ranges."
        )
    ranges = {}
    for option in options:
        if option not in start or option == "name":
            raise ValueError(unknown(f"option of surrogate {name}", option, sorted({*values})))
        found = options[option] if isinstance(options, Mapping) else RANGES.get((name, option))
        if found is None:
            raise ValueError(
                f"where to search {option} of {name} is not known: "
                f'give its range, options={{"{option}": (low, high)}}.'
            )
        pair = isinstance(found, tuple | list) and len(found) == 2
        if not pair or not finite(option, found[0]) < finite(option, found[1]):
            raise ValueError(f"the range of {option} is {found!r}: give (low, high), low < high.")
        ranges[option] = (float(found[0]), float(found[1]))
        for end in ranges[option]:
            STE({**start, option: end})
    return start, ranges


def _layers(objective: Objective, params: Params, layers: Sequence[str] | None) -> list[str]:
    if layers is None:
        # The output layer's gradient is exact, whatever the surrogate.
        named = objective.layer_names[:-1] if isinstance(objective, LayeredObjective) else params
        return list(named)
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers is {layers!r}: give a list of parameter names, or leave it out.")
    for layer in layers:
        if layer not in params:
            raise ValueError(unknown("layer", layer, params))
    return list(layers)


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _mean(cosines: Cosines) -> float:
    return sum(map(_or_zero, cosines.values())) / len(cosines)
