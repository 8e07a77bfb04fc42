"""Local NES against enumeration of all activation patterns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gradlab.estimators import create
from gradlab.estimators.matched import draw_noise
from gradlab.objectives import TeacherStudent
from tests.estimators import referees

SIGMA = 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


DEFAULT: dict[str, Any] = {}
EXPANDED: dict[str, Any] = {"baseline": "mean_field"}
SAMPLED: dict[str, Any] = {"condition_last": False}
BARE: dict[str, Any] = {
    "condition_last": False,
    "antithetic": False,
    "baseline": "none",
    "passes": 1,
}


# 200 copies of five examples (1,500 where nothing lowers the variance): one estimate averages the
# fresh noise of all, while only five need enumeration. By t with 39 degrees of freedom a coordinate
# of an unbiased estimator exceeds 4.5 with probability 6e-5, and there are about 350 coordinates;
# the seeds are fixed.
@pytest.mark.parametrize(
    ("activation", "depth", "options"),
    [
        ("binary", 1, DEFAULT),
        ("binary", 1, SAMPLED),
        ("binary", 1, BARE),
        ("binary", 2, DEFAULT),
        ("binary", 2, SAMPLED),
        ("binary", 2, BARE),
        ("binary", 2, {"antithetic": False}),
        ("binary", 2, {"baseline": "none", "passes": 3}),
        ("binary", 3, DEFAULT),
        ("binary", 3, BARE),
        ("binary", 3, {"layers": ["layers.0.weight"]}),
        ("binary", 3, {"layers": ["layers.1.weight", "layers.3.weight"]}),
        ("binary", 3, {"layers": ["layers.2.weight"]}),
        ("binary", 3, {"layers": ["layers.0.weight", "layers.2.weight"]}),
        ("binary", 3, {"layers": ["layers.1.weight", "layers.2.weight"]} | SAMPLED),
        ("binary", 2, EXPANDED),
        ("binary", 3, EXPANDED),
        ("binary", 3, EXPANDED | SAMPLED),
        ("binary", 3, EXPANDED | {"antithetic": False, "passes": 3}),
        ("binary", 3, EXPANDED | {"layers": ["layers.0.weight", "layers.2.weight"]}),
        ("binary", 3, EXPANDED | {"layers": ["layers.1.weight", "layers.3.weight"]}),
        ("ternary", 3, EXPANDED),
        ("2bit", 2, EXPANDED | SAMPLED),
        ("full", 2, EXPANDED | SAMPLED),
        ("ternary", 2, DEFAULT),
        ("ternary", 2, BARE),
        ("ternary", 3, {"passes": 3}),
        ("ternary", 3, {"layers": ["layers.0.weight", "layers.1.weight"]}),
        ("decoupled_ternary", 2, DEFAULT),
        ("2bit", 2, DEFAULT),
        ("2bit", 2, BARE),
        ("2bit", 3, SAMPLED),
        ("full", 1, SAMPLED),
        ("full", 2, DEFAULT),
        ("full", 2, BARE),
        ("full", 2, {"layers": ["layers.1.weight"]} | SAMPLED),
    ],
)
def test_gradient_is_unbiased_in_every_coordinate(
    activation: str, depth: int, options: dict[str, Any]
) -> None:
    objective, params = referees.problem(2, depth, activation)
    layers = options.get("layers")
    exact, _ = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA, layers)
    if layers is not None:
        exact = {n: g if n in layers else torch.zeros_like(g) for n, g in exact.items()}
    estimator = create("nes_local", sigma=SIGMA, **options)
    copies = 1500 if options == BARE else 200
    repeats = referees.repeated_estimates(estimator, objective.repeated(copies), params, 40)
    gradients = [estimate.gradient for estimate in repeats]
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    # most are known to a hundredth of the gradient, all well enough to show a bias
    assert referees.relative_standard_error(gradients, exact) < 0.1


def test_agrees_with_weight_space_nes_and_needs_far_fewer_passes() -> None:
    objective = TeacherStudent(4, 512, seed=0, depth=2)
    params = objective.initial_params(0)
    layers = referees.Layers(objective.model, objective.inputs, objective.targets)
    exact, _ = referees.exact_gradients(referees.smoothed_loss, layers, params, 0.1)
    truth = referees.flat(exact)

    def error(name: str, **options: Any) -> float:
        estimate = create(name, **options).estimate(objective, params, generator=generator())
        return float((referees.flat(estimate.gradient) - truth).norm() / truth.norm())

    assert error("nes", population=20_000) < 0.15
    assert error("nes_local", passes=2) < 0.15
    assert error("nes_local", passes=200) < 0.015  # ten times less, at 100 times the passes


@pytest.mark.parametrize(
    ("better", "worse", "layer"),
    [
        ({}, {"condition_last": False}, "layers.2.weight"),
        ({}, {"baseline": "none"}, "layers.0.weight"),
        ({"passes": 8}, {"passes": 2}, "layers.0.weight"),
        ({}, {"passes": 1}, "layers.0.weight"),  # the second pass mirrors, not repeats, the first
    ],
)
def test_conditioning_baseline_and_passes_each_lower_the_variance(
    better: dict[str, Any], worse: dict[str, Any], layer: str
) -> None:
    objective, params = referees.problem(4, 3, examples=64)

    def variance(options: dict[str, Any]) -> float:
        estimator = create("nes_local", sigma=0.2, **options)
        repeats = referees.repeated_estimates(estimator, objective, params, 40)
        return float(torch.stack([r.gradient[layer] for r in repeats]).var(dim=0).sum())

    assert variance(better) < 0.7 * variance(worse)


def test_mean_field_baseline_lowers_the_variance_of_wide_layers() -> None:
    objective = TeacherStudent(32, 64, seed=0)
    params = objective.initial_params(0)

    def variance(baseline: str, layer: str) -> float:
        estimator = create("nes_local", sigma=0.1, baseline=baseline)
        repeats = [estimator.estimate(objective, params, generator=generator(s)) for s in range(20)]
        return float(torch.stack([r.gradient[layer] for r in repeats]).var(dim=0).sum())

    for layer in ("layers.0.weight", "layers.1.weight"):
        assert variance("mean_field", layer) < 0.4 * variance("noise_free", layer)


def test_noise_is_fresh_for_every_example_pass_layer_and_neuron() -> None:
    whole = draw_noise(5, 0, 0, (0, 6), 4, torch.device("cpu"))
    assert torch.equal(whole[2:5], draw_noise(5, 0, 0, (2, 5), 4, torch.device("cpu")))
    others = [
        draw_noise(key, layer, pair, (0, 6), 4, torch.device("cpu"))
        for key, layer, pair in [(6, 0, 0), (5, 1, 0), (5, 0, 1), (5, 2, 3)]
    ]
    everything = torch.cat([whole, *others]).flatten()
    assert len(everything.unique()) == len(everything)


def test_split_half_cosine_is_near_one_when_noise_is_small_and_counts_perturbed_layers() -> None:
    objective, params = referees.problem(2, 2, examples=6)
    options = {"passes": 400, "layers": ["layers.0.weight"]}
    estimate = create("nes_local", sigma=SIGMA, **options).estimate(
        objective.repeated(20), params, generator=generator()
    )
    assert set(estimate.diagnostics) == {
        "split_half_cosine/layers.0.weight",
        "samples_for_0.9/layers.0.weight",
    }
    assert 0.99 < estimate.diagnostics["split_half_cosine/layers.0.weight"] <= 1
    assert estimate.gradient["layers.1.weight"].abs().max() == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"passes": 0}, "passes is 0: give a whole number of at least 1."),
        ({"passes": 1.5}, "passes is 1.5: give a whole number of at least 1."),
        ({"sigma": -1}, "sigma is -1: give a finite number above 0."),
        ({"sigma": math.inf}, "sigma is inf: give a finite number above 0."),
        ({"layers": []}, r"layers is \[\]: give a list of layer names, or leave it out for all."),
        ({"layers": "layers.0.weight"}, "layers is 'layers.0.weight': give a list of layer names"),
        ({"antithetic": "no"}, "antithetic is 'no': give true or false."),
        ({"condition_last": 1}, "condition_last is 1: give true or false."),
        ({"baseline": "meanfield"}, "unknown baseline 'meanfield': did you mean 'mean_field'?"),
        ({"pases": 2}, "did you mean 'passes'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create("nes_local", **options)


def test_a_layer_that_the_network_has_not_is_refused() -> None:
    objective, params = referees.problem(2, 1)
    estimator = create("nes_local", layers=["layers.0.weigth"])
    with pytest.raises(ValueError, match=r"unknown layer .*did you mean 'layers.0.weight'\?"):
        estimator.estimate(objective, params, generator=generator())


def test_binary_weights_are_refused() -> None:
    objective, params = referees.problem(2, 1, weight="binary")
    with pytest.raises(ValueError, match=r"needs real weights .* use nes, or weight = "):
        create("nes_local").estimate(objective, params, generator=generator())
