"""Every estimator, with the variants of its options, that the shared battery runs on.

A new estimator needs one line here, or in the list of its family (``cases_*.py``); a registered
name without one fails the battery.
"""

from __future__ import annotations

from typing import Any

from gradlab.binary import surrogates
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from tests.estimators.case import SIGMA, Case, as_layers, central_differences, natural, smoothed
from tests.estimators.cases_bernoulli import CASES as BERNOULLI
from tests.estimators.cases_directions import CASES as DIRECTIONS
from tests.estimators.cases_psa import CASES as PSA
from tests.estimators.cases_switching import CASES as SWITCHING

__all__ = ["CASES", "LAYERS", "SIGMA", "Case", "as_layers", "toy"]


def ste(**options: Any) -> Case:
    return Case("ste", options, 1.0, 1.0, sampled=False)


def nes(population: Any = 500, referee: Any = None, **options: Any) -> Case:
    largest = population if isinstance(population, int) else population[-1]
    return Case("nes", {"population": population} | options, largest, 0.0, referee=referee)


def moment_nes(draws: int = 2, **options: Any) -> Case:
    # 16, 16 and 4 multiplications; the first layer is sampled, the last two are closed in form.
    head, expansion = draws * 20, 3 * 20
    products = options.get("passes", 1) * (16 + head + expansion) / 36
    return Case("moment_nes", {"draws": draws} | options, products, products / 2, referee=smoothed)


LAYERS = 3  # of the network with real weights below: two hidden and the output


def nes_local(passes: int = 2, **options: Any) -> Case:
    # The conformance network has LAYERS layers; the last two of them are taken pathwise.
    head = 2 if options.get("condition_last", True) else 1
    forward, backward = float(passes), passes * head / LAYERS
    baseline = options.get("baseline", "noise_free")
    if baseline == "noise_free":
        forward += 1
    if baseline == "mean_field":
        behind = [(LAYERS - layer - 1) / LAYERS for layer in range(LAYERS - head)]
        expansions = sum(share * (passes if layer else 1) for layer, share in enumerate(behind))
        forward, backward = forward + expansions, backward + expansions
    return Case("nes_local", {"passes": passes} | options, forward, backward, referee=smoothed)


CASES = [
    *(ste(surrogate=name) for name in surrogates.names() if name != "magnitude_aware"),
    ste(surrogate={"name": "hardtanh", "threshold": 0.5}),
    Case("ste", {"surrogate": "hardtanh"}, 1.0, 1.0, sampled=False, weight="binary"),
    Case("ste", {"weight_surrogate": "polynomial"}, 1.0, 1.0, sampled=False, weight="binary"),
    Case("ste", {"surrogate": "matched"}, 1.0, 1.0),
    Case("cdg", {}, 72.0, 0.0, sampled=False, referee=central_differences),
    Case("cdg", {"epsilon": 0.01}, 72.0, 0.0, sampled=False),
    Case("cdg", {"epsilon": 1}, 72.0, 0.0, sampled=False),
    Case("cdg", {}, 12.0, 0.0, sampled=False, referee=central_differences, weight="binary"),
    nes(referee=smoothed),
    nes([20, 100, 500], referee=smoothed),
    nes(2000, referee=smoothed, fitness="raw"),
    nes(referee=smoothed, antithetic=False),
    nes(2000, referee=smoothed, fitness="raw", antithetic=False),
    nes(referee=natural, gradient="natural"),
    nes(gradient="natural", antithetic=False, fitness="centered_rank"),
    nes(fitness="z_score"),
    nes(fitness="centered_rank"),
    nes(fitness="utilities"),
    nes(fitness="utilities", antithetic=False),
    nes(gradient="empirical_fisher"),
    nes(20, gradient="empirical_fisher", antithetic=False),
    nes(gradient="empirical_fisher_per_tensor", ridge=0.1),
    nes(sigma_gradient="sigma"),
    nes(sigma_gradient="log_sigma", gradient="natural"),
    nes(sigma_gradient="log_sigma", gradient="empirical_fisher", antithetic=False),
    Case("nes", {"population": 500}, 500.0, 0.0, referee=smoothed, weight="binary"),
    Case("moment_propagation", {}, 76 / 36, 136 / 72, sampled=False),
    moment_nes(),
    moment_nes(1, passes=3),
    nes_local(),
    nes_local(5),
    nes_local(antithetic=False),
    nes_local(condition_last=False),
    nes_local(8, baseline="none"),
    nes_local(baseline="mean_field"),
    nes_local(5, baseline="mean_field", antithetic=False),
    nes_local(3, baseline="mean_field", condition_last=False),
    # Without the last hidden layer only the output layer is pathwise.
    Case("nes_local", {"layers": ["layers.0.weight", "layers.2.weight"]}, 3.0, 2 / LAYERS),
    Case("sr_ste", {}, 1.0, 1.0),
    Case("sr_ste", {"samples": 10}, 10.0, 10.0),
    Case("sr_ste", {"samples": 3, "temperature": 0.5, "unit_norm": False}, 3.0, 3.0),
    *BERNOULLI,
    *DIRECTIONS,
    *PSA,
    *SWITCHING,
]


def toy(case: Case, batch_size: int = 1300) -> tuple[TeacherStudent, Params]:
    """A teacher-student pair small enough for exact smoothed losses, and a fresh student."""
    if case.weight == "binary":
        objective = TeacherStudent(2, batch_size, seed=1, depth=1, weight="binary")
        # near zero, where a step of 0.1 flips signs
        return objective, {k: 0.1 * w for k, w in objective.initial_params(0).items()}
    objective = TeacherStudent(4, batch_size, seed=0, depth=2)
    return objective, objective.initial_params(0)
