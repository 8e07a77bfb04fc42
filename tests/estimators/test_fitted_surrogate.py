"""Surrogates fitted to a referee, against optima that are known or found by brute force."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from gradlab.binary import surrogates
from gradlab.estimators import CDG, NESLocal, cosine, create
from gradlab.estimators.fitted_surrogate import FittedSurrogate, Gain, fit_surrogate
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent

W = {"w": torch.zeros(3, dtype=torch.float64)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Dial:
    """A surrogate gradient that turns with the options, and a referee at a known angle.

    Its cosine is the greater the nearer the options are to ``best``, in logarithms if asked for.
    """

    best: dict[str, float]
    logarithms: bool = True
    truth: float = 1.0

    def initial_params(self, seed: int) -> Params:
        return {name: w.clone() for name, w in W.items()}

    def surrogate_gradient(self, params: Params, surrogate: Any, **_: Any) -> Params:
        scale = math.log if self.logarithms else float
        off = [scale(getattr(surrogate, k)) - scale(v) for k, v in self.best.items()]
        angle = 0.3 * math.sqrt(sum(x**2 for x in off) + 0.5 * math.prod(off) * (len(off) > 1))
        return {"w": torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)}

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        return {"w": 2 * epsilon * torch.tensor([self.truth, 0.0, 0.0]).double()}


def fit(objective: Any, *arguments: Any, **options: Any) -> FittedSurrogate:
    return fit_surrogate(objective, W, *arguments, generator=generator(), **options)


@pytest.mark.parametrize("best", [0.013, 0.37, 1.0, 4.2, 9.9])
def test_the_best_value_of_a_range_is_found(best: float) -> None:
    fitted = fit(Dial({"threshold": best}))
    assert fitted.surrogate["threshold"] == pytest.approx(best, rel=0.005)
    assert fitted.after["w"] == pytest.approx(1, abs=1e-5)
    assert fitted.before["w"] == pytest.approx(math.cos(0.3 * math.log(best)), abs=1e-9)


@pytest.mark.parametrize("best", [0.0, 0.62, 1.0])
def test_a_range_with_zero_is_searched_evenly(best: float) -> None:
    fitted = fit(Dial({"progress": best}, logarithms=False), "ede", options=["progress"])
    assert fitted.surrogate["progress"] == pytest.approx(best, abs=0.001)


def test_a_best_value_beyond_the_range_gives_its_end() -> None:
    fitted = fit(Dial({"threshold": 30.0}), options={"threshold": (0.5, 2)})
    assert fitted.surrogate == {"name": "hardtanh", "threshold": 2.0}


def test_several_options_are_searched_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Two(surrogates.Identity):
        width: float = 1.0
        height: float = 1.0
        other: float = 7.0

    monkeypatch.setitem(surrogates.REGISTRY._factories, "two", Two)
    ranges = {"width": (0.1, 10.0), "height": (0.1, 10.0)}
    fitted = fit(Dial({"width": 0.4, "height": 3.0}), "two", options=ranges)
    assert fitted.surrogate["width"] == pytest.approx(0.4, rel=0.05)
    assert fitted.surrogate["height"] == pytest.approx(3.0, rel=0.05)
    assert fitted.surrogate["other"] == 7.0
    with pytest.raises(ValueError, match="where to search width of two is not known"):
        fit(Dial({}), "two", options=["width"])
    with pytest.raises(ValueError, match="two has no option to choose"):
        fit(Dial({}), "two")


def by_brute_force(objective: TeacherStudent, params: Params) -> float:
    """The highest cosine of one sign layer over every threshold that makes a difference."""
    truth = CDG().estimate(objective, params, generator=generator()).gradient["layers.0.weight"]
    first, second = (w.double() for w in params.values())
    inputs, targets = objective.inputs.double(), objective.targets.double()
    z = inputs @ first.T
    hidden = torch.where(z >= 0, 1.0, -1.0).double()
    upstream = (hidden @ second.T - targets) @ second
    highest = -1.0
    for threshold in z.abs().flatten().tolist():
        if 0.01 <= threshold <= 10:
            gradient = (upstream * (z.abs() <= threshold)).T @ inputs
            highest = max(highest, cosine(gradient, truth))
    return highest


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_sign_layer_is_fitted_as_well_as_by_brute_force(seed: int) -> None:
    objective = TeacherStudent(4, 400, seed=seed, depth=1)
    params = objective.initial_params(seed)
    fitted = fit_surrogate(objective, params, generator=generator())
    highest = by_brute_force(objective, params)
    assert fitted.before["layers.0.weight"] < highest
    # a staircase of 1,600 steps, of which golden section may miss the very highest
    assert highest - 0.01 < fitted.after["layers.0.weight"] < highest + 1e-6


def test_cosines_costs_and_gains_are_those_computed_apart() -> None:
    objective, *unseen = (TeacherStudent(4, 300, seed=0, batch=k) for k in range(4))
    params = objective.initial_params(0)
    fitted = fit_surrogate(objective, params, "swish_sign", unseen=unseen, generator=generator())
    layers = ["layers.0.weight", "layers.1.weight", "layers.2.weight"]
    assert fitted.start == {"name": "swish_sign", "beta": 5.0}

    def apart(batch: TeacherStudent, choice: Any) -> list[float]:
        pair = [
            estimator.estimate(batch, params, generator=generator()).gradient
            for estimator in (create("ste", surrogate=choice), CDG())
        ]
        return [cosine(pair[0][name], pair[1][name]) for name in layers]

    assert list(fitted.before.items()) == list(
        zip(layers, apart(objective, fitted.start), strict=True)
    )
    assert list(fitted.after.values()) == apart(objective, fitted.surrogate)
    before = torch.tensor([apart(batch, fitted.start) for batch in unseen])
    after = torch.tensor([apart(batch, fitted.surrogate) for batch in unseen])
    assert [list(c.values()) for c in fitted.unseen_before] == [
        apart(b, "swish_sign") for b in unseen
    ]
    for layer, rises in [(None, (after - before).mean(dim=1)), (layers[1], (after - before)[:, 1])]:
        interval = stats.ttest_1samp(rises.numpy(), 0).confidence_interval(0.95)
        gain = fitted.gain(layer)
        expected = (float(rises.mean()), interval.low, interval.high)
        assert (gain.mean, gain.low, gain.high) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert gain.batches == 3
    size = sum(w.numel() for w in params.values())
    gradients = fitted.evaluations + 2 * 3
    assert fitted.forward_passes == 4 * 2 * size + gradients
    assert fitted.backward_passes == gradients
    assert fitted.fitting_gain > 0


def test_the_matched_ste_finds_the_width_of_its_referee() -> None:
    objective = TeacherStudent(4, 4096, seed=0, depth=1)
    params = objective.initial_params(0)
    fitted = fit_surrogate(
        objective, params, "matched", referee=NESLocal(sigma=0.4), generator=generator()
    )
    assert fitted.surrogate["sigma"] == pytest.approx(0.4, rel=0.02)
    again = fit_surrogate(
        objective, params, "matched", referee=NESLocal(sigma=0.4), generator=generator()
    )
    assert again == fitted


def test_the_noise_of_the_matched_ste_is_the_same_throughout() -> None:
    objective = TeacherStudent(4, 300, seed=0)
    params = objective.initial_params(0)
    fitted = fit_surrogate(
        objective, params, "matched", unseen=[objective] * 2, generator=generator()
    )
    assert fitted.unseen_before == (fitted.before,) * 2
    assert fitted.unseen_after == (fitted.after,) * 2


def test_what_was_gained_is_said_as_it_is() -> None:
    at = {"threshold": 0.3}
    gained = fit(Dial(at), unseen=[Dial({"threshold": t}) for t in (0.25, 0.3, 0.31)])
    assert gained.gain().low > 0
    assert gained.summary().startswith("hardtanh(threshold=0.299")
    assert "in place of hardtanh(threshold=1): mean cosine from 0.935 to 1.000" in gained.summary()
    assert gained.summary().endswith(").")
    chance = fit(Dial(at), unseen=[Dial({"threshold": t}) for t in (0.3, 1.0)])
    assert "no better than chance beyond the fitting batch, so keep hardtanh" in chance.summary()
    worse = fit(Dial(at), unseen=[Dial({"threshold": t}) for t in (1.0, 1.1, 0.9)])
    assert "worse beyond the fitting batch, so keep hardtanh(threshold=1)" in worse.summary()
    assert "no unseen batch was given" in fit(Dial(at)).summary()
    best = fit(Dial({"threshold": 1.0}))
    assert best.surrogate == best.start == {"name": "hardtanh", "threshold": 1.0}
    assert best.summary().startswith("hardtanh(threshold=1) stays")
    with pytest.raises(ValueError, match="no unseen batches were given"):
        best.gain()
    with pytest.raises(ValueError, match="unknown layer 'v'"):
        gained.gain("v")


def test_a_layer_that_lets_nothing_through_counts_as_zero() -> None:
    objective = TeacherStudent(4, 300, seed=0)
    params = {name: 100 * w for name, w in objective.initial_params(0).items()}
    narrow = {"name": "hardtanh", "threshold": 1e-9}
    fitted = fit_surrogate(
        objective, params, narrow, referee=CDG(10.0), unseen=[objective] * 2, generator=generator()
    )
    assert all(math.isnan(value) for value in fitted.before.values())
    assert fitted.fitting_gain > 0
    rise = sum(fitted.after.values()) / 3
    assert fitted.gain() == Gain(pytest.approx(rise), pytest.approx(rise), pytest.approx(rise), 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"surrogate": "hardtan"}, "unknown surrogate 'hardtan': did you mean 'hardtanh'"),
        ({"surrogate": "identity"}, "the surrogate identity has no option to choose"),
        ({"options": []}, "the surrogate hardtanh has no option to choose"),
        ({"options": ["treshold"]}, "unknown option of surrogate hardtanh 'treshold': did you"),
        ({"options": "threshold"}, r'options is \'threshold\': give a list of names, \["thresh'),
        ({"options": {"threshold": (2, 1)}}, "the range of threshold is .*: give .low, high."),
        ({"options": {"threshold": (0, 1)}}, "threshold must be a finite number above 0, not 0"),
        ({"options": {"threshold": (1, math.inf)}}, "threshold is inf: give a finite number"),
        ({"unseen": [Dial({})]}, "unseen is one batch, of which there is no interval"),
        ({"layers": ["v"]}, "unknown layer 'v'"),
        ({"layers": "w"}, "layers is 'w': give a list of parameter names"),
    ],
)
def test_bad_input_is_refused_before_any_gradient(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fit(object(), **options)


def test_a_referee_that_says_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the referee CDG is zero in all of w: there is nothing"):
        fit(Dial({"threshold": 1.0}, truth=0.0))


def test_only_the_layers_asked_for_count() -> None:
    objective = TeacherStudent(4, 300, seed=0)
    params = objective.initial_params(0)
    fitted = fit_surrogate(objective, params, layers=["layers.1.weight"], generator=generator())
    assert list(fitted.after) == ["layers.1.weight"]


def test_nothing_given_is_changed() -> None:
    objective = TeacherStudent(4, 300, seed=0)
    params = {n: w.requires_grad_() for n, w in objective.initial_params(0).items()}
    before: dict[str, Tensor] = {name: w.detach().clone() for name, w in params.items()}
    fit_surrogate(objective, params, generator=generator())
    assert all(torch.equal(before[name], w) and w.grad is None for name, w in params.items())
