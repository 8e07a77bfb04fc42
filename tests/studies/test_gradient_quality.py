"""Cosines, bias and variance against formulas written out, and references that are kept."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gradlab import estimators, studies
from gradlab.estimators import CDG, GradientEstimate, NESLocal
from gradlab.evaluation import GaussianPopulation, Params
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.objectives import Objective, TeacherStudent
from gradlab.studies import cells
from tests.studies import configs
from tests.studies.configs import rows_of

HIDDEN = ["layers.0.weight", "layers.1.weight"]
ALL = [*HIDDEN, "layers.2.weight"]
GROUPS = {**{name: [name] for name in ALL}, "hidden": HIDDEN, "all": ALL}


def quality(*arguments: Any, **settings: Any) -> dict[str, Any]:
    return configs.cell("gradient_quality", *arguments, **settings)


def cosine(first: Tensor, second: Tensor) -> float:
    return float(first @ second / (first.norm() * second.norm()))


def part(gradient: Params, names: list[str]) -> Tensor:
    return configs.joined({name: gradient[name] for name in names})


@dataclass
class Synthetic:
    """An estimator with a known bias and a known variance around a known gradient."""

    truth: Params
    bias: Params
    deviation: float
    halves: bool = False

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        return self.estimates(objective, params, generator=generator)[0]

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        gradient = {
            name: truth + self.bias[name] + self.deviation * torch.randn(
                truth.shape, generator=generator, dtype=torch.float64
            )
            for name, truth in self.truth.items()
        }  # fmt: skip
        return [GradientEstimate(gradient, forward_passes=3.0)]

    def label(self) -> str:
        return "synthetic"


@pytest.fixture
def replace_estimator(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Makes every cell use this estimator."""
    return lambda estimator: monkeypatch.setattr(cells, "estimator_of", lambda _: estimator)


def cdg_of(config: dict[str, Any], epsilon: float = 0.1) -> tuple[Objective, Params, Params]:
    objective = cells.objective_of(config)
    params = objective.initial_params(cells.derived_seed(config, 0, config["init"]))
    estimate = CDG(epsilon).estimate(objective, params, generator=torch.Generator())
    return objective, params, estimate.gradient


@pytest.mark.parametrize("estimator", [configs.STE, configs.NES, configs.LOCAL])
def test_a_cell_is_a_pure_function(estimator: dict[str, Any], tmp_path: Path) -> None:
    config = quality(estimator, repeats=2)
    first = configs.run(config, tmp_path / "a")
    # once with the reference computed, once with it read
    for scratch in ("a", "b"):
        again = configs.run(config, tmp_path / scratch)
        assert configs.without_seconds(first) == configs.without_seconds(again)
    for other in ({"seed": 1}, {"init": 1}, {"batch": 1}):
        rows = configs.run(quality(estimator, repeats=2, **other), tmp_path)
        assert not {row["cosine"] for row in rows} & {row["cosine"] for row in first}


def test_the_table_has_the_columns_that_figures_read(tmp_path: Path) -> None:
    nested = {**configs.NES, "population": [8, 24]}
    rows = configs.run(quality(nested, repeats=2, reference_epsilon=0.2), tmp_path)
    assert [(r["population"], r["layer"], r["repeat"]) for r in rows] == [
        (size, layer, repeat) for size in (8, 24) for layer in GROUPS for repeat in (0, 1)
    ]
    expected = {
        "study": "gradient_quality", "num_dim": 4, "depth": 2, "batch_size": 256, "init": 0,
        "batch": 0, "estimator": "nes", "label": "NES 24", "sigma": 0.1, "student": "fresh",
        "reference": "cdg", "reference_epsilon": 0.2, "forward_passes": 24.0,
        "backward_passes": 0.0, "device": "cpu",
    }  # fmt: skip
    assert {key: rows[-1][key] for key in expected} == expected
    assert "reference_sigma" not in rows[0]
    assert rows[0]["seconds"] == pytest.approx(rows[10]["seconds"] * 8 / 24)


def test_the_reference_agrees_with_itself(tmp_path: Path) -> None:
    config = quality({**configs.CDG, "epsilon": 0.3}, reference_epsilon=0.3, repeats=2)
    rows = configs.run(config, tmp_path)
    assert {row["layer"] for row in rows} == set(GROUPS)
    for row in rows:
        assert row["cosine"] == pytest.approx(1, abs=1e-12)
        assert row["norm_ratio"] == row["sign_agreement"] == 1
        assert row["relative_bias"] == row["relative_variance"] == 0
        assert row["split_half_cosine"] is None  # nothing is sampled
        assert row["reference_split_half_cosine"] is None


def test_a_scaled_and_turned_gradient_is_measured_by_hand(
    tmp_path: Path, replace_estimator: Callable[[Any], None]
) -> None:
    config = quality()
    _, _, truth = cdg_of(config)
    zeros = {name: torch.zeros_like(g, dtype=torch.float64) for name, g in truth.items()}
    # the first weight of every tensor has its sign turned
    turned = {name: g.double() * 3 for name, g in truth.items()}
    for gradient in turned.values():
        gradient.view(-1)[0] *= -1
    replace_estimator(Synthetic(turned, zeros, 0.0))
    for row in configs.run(config, tmp_path):
        names = GROUPS[row["layer"]]
        estimate, reference = part(turned, names), part(truth, names)
        assert row["cosine"] == pytest.approx(cosine(estimate, reference), rel=1e-12)
        assert row["norm_ratio"] == pytest.approx(3)
        signed = int((reference != 0).sum())
        flipped = sum(float(truth[name].view(-1)[0]) != 0 for name in names)
        assert row["sign_agreement"] == pytest.approx(1 - flipped / signed)
        assert row["relative_bias"] is row["relative_variance"] is None  # one repeat says nothing


def test_bias_and_variance_of_a_known_estimator(
    tmp_path: Path, replace_estimator: Callable[[Any], None]
) -> None:
    repeats, deviation = 400, 0.05
    config = quality(repeats=repeats)
    _, _, truth = cdg_of(config)
    truth = {name: g.double() for name, g in truth.items()}
    generator = torch.Generator().manual_seed(0)
    bias = {
        name: 0.1 * torch.randn(g.shape, generator=generator, dtype=torch.float64)
        for name, g in truth.items()
    }
    replace_estimator(Synthetic(truth, bias, deviation))
    rows = rows_of(configs.run(config, tmp_path), repeat=0)
    for row in rows:
        names = GROUPS[row["layer"]]
        reference, offset = part(truth, names), part(bias, names)
        size, scale = len(reference), float(reference.norm())
        # The summed variance has a relative deviation of √(2/(d R)); the squared bias of
        # 2 |b| s/√R/|b|², plus what the sum of squares of the mean's noise scatters.
        assert row["relative_variance"] == pytest.approx(
            size * deviation**2 / scale**2, rel=5 * math.sqrt(2 / (size * repeats))
        )
        noise = deviation / math.sqrt(repeats)
        spread = 2 * float(offset.norm()) * noise + noise**2 * math.sqrt(2 * size)
        assert (row["relative_bias"] * scale) ** 2 == pytest.approx(
            float(offset.square().sum()), abs=5 * spread
        )


def test_an_unbiased_estimator_has_no_bias_left(
    tmp_path: Path, replace_estimator: Callable[[Any], None]
) -> None:
    config = quality(repeats=50)
    _, _, truth = cdg_of(config)
    zeros = {name: torch.zeros_like(g, dtype=torch.float64) for name, g in truth.items()}
    deviation = 0.1
    replace_estimator(Synthetic({n: g.double() for n, g in truth.items()}, zeros, deviation))
    row = rows_of(configs.run(config, tmp_path), repeat=0, layer="all")[0]
    scale = float(configs.joined(truth).norm())
    # Uncorrected it would be s √(d/R) = 0.085; corrected, the fourth root of 2/d of that.
    uncorrected = deviation * math.sqrt(36 / 50) / scale
    assert row["relative_bias"] < 0.75 * uncorrected
    assert row["relative_variance"] > 0


SMOOTHED = {"reference": "smoothed", "reference_sigma": 0.2, "reference_passes": 8}


def test_the_smoothed_reference_is_the_mean_of_two_halves_of_local_nes(tmp_path: Path) -> None:
    config = quality(configs.STE, **SMOOTHED)
    objective, params, _ = cdg_of(config)
    halves = []
    for half in range(2):
        generator = cells.generator_of(config, repeat=2**30 + half)
        local = NESLocal(sigma=0.2, passes=4)
        halves.append(local.estimate(objective, params, generator=generator).gradient)
    ste = estimators.create("ste").estimate(objective, params, generator=torch.Generator())
    rows = configs.run(config, tmp_path)
    assert {row["layer"] for row in rows} == set(GROUPS)
    for row in rows:
        first, second = (part(half, GROUPS[row["layer"]]) for half in halves)
        gradient = part(ste.gradient, GROUPS[row["layer"]])
        assert row["cosine"] == pytest.approx(cosine(gradient, first + second), rel=1e-5)
        assert row["reference_split_half_cosine"] == pytest.approx(cosine(first, second), rel=1e-9)
        assert (row["reference"], row["reference_sigma"]) == ("smoothed", 0.2)
        assert "reference_epsilon" not in row


BINARY = {**configs.TEACHER, "num_dim": 2, "depth": 1, "weight": "binary"}


def enumerated(objective: Objective, params: Params, sigma: float) -> Params:
    """The gradient of the loss smoothed over signs, all of them, and the real output's noise."""
    assert isinstance(objective, TeacherStudent)
    hidden, output = params.values()
    mean = hidden.double().flatten().requires_grad_()
    last = output.double().requires_grad_()
    up = torch.special.ndtr(mean / sigma)
    smoothed = torch.zeros((), dtype=torch.float64)
    for signs in itertools.product((1.0, -1.0), repeat=len(mean)):
        drawn = torch.tensor(signs, dtype=torch.float64)
        chance = torch.where(drawn > 0, up, 1 - up).prod()
        codes = torch.where(objective.inputs.double() @ drawn.reshape(2, 2).T >= 0, 1.0, -1.0)
        error = codes.double() @ last.T - objective.targets.double()
        # the noise of the output adds a constant: its gradient is that at its mean
        smoothed = smoothed + chance * error.square().mean()
    found = torch.autograd.grad(smoothed, [mean, last])
    return {n: g.reshape(w.shape) for (n, w), g in zip(params.items(), found, strict=True)}


def test_the_smoothed_reference_of_binary_weights_is_the_enumerated_gradient(
    tmp_path: Path, replace_estimator: Callable[[Any], None]
) -> None:
    config = quality(objective=BINARY, reference="smoothed", repeats=2, reference_passes=600)
    studies.create("gradient_quality").validate(config)
    objective, params, differences = cdg_of(config)
    truth = enumerated(objective, params, 0.1)
    # all four weights are further from zero than CDG reaches: to it they have no gradient
    assert not differences["layers.0.weight"].any()
    assert truth["layers.0.weight"].norm() > 0.1
    zeros = {name: torch.zeros_like(g) for name, g in truth.items()}
    replace_estimator(Synthetic(truth, zeros, 0.0))
    rows = rows_of(configs.run(config, tmp_path), repeat=0)
    assert {row["layer"] for row in rows} == {*params, "all"}
    for row in rows:
        assert row["cosine"] > 0.99
        assert row["norm_ratio"] == pytest.approx(1, abs=0.1)
        assert 0.98 < row["reference_split_half_cosine"] < 1
        assert row["relative_bias"] < 0.1
        assert (row["reference"], row["reference_sigma"]) == ("smoothed", 0.1)


def test_the_noise_of_the_reference_is_no_bias(
    tmp_path: Path, replace_estimator: Callable[[Any], None]
) -> None:
    config = quality(repeats=2, **SMOOTHED)
    objective, params, _ = cdg_of(config)
    local = NESLocal(sigma=0.2, passes=300)
    converged = local.estimate(objective, params, generator=torch.Generator().manual_seed(1))
    truth = {name: g.double() for name, g in converged.gradient.items()}
    zeros = {name: torch.zeros_like(g) for name, g in truth.items()}
    replace_estimator(Synthetic(truth, zeros, 0.0))
    rows = rows_of(configs.run(config, tmp_path), repeat=0)
    stored = load_file(next(tmp_path.glob("reference-*")))
    for row in rows:
        names = GROUPS[row["layer"]]
        first, second = (part({n: stored[f"{half}/{n}"] for n in names}, names) for half in (0, 1))
        reference = (first + second) / 2
        offset = float((part(truth, names) - reference).square().sum())
        noise = float((first - second).square().sum()) / 4
        expected = math.sqrt(max(offset - noise, 0)) / float(reference.norm())
        assert row["relative_bias"] == pytest.approx(expected, abs=1e-6)
        if row["layer"] == "all":
            # of the same size: this much would have passed for bias
            assert 0.3 * noise < offset < 3 * noise


def test_the_smoothed_reference_shares_no_noise_with_the_repeats(tmp_path: Path) -> None:
    local = {**configs.LOCAL, "passes": 4, "sigma": 0.2}
    wide = {**configs.TEACHER, "num_dim": 8}
    config = quality(local, wide, repeats=3, **SMOOTHED)
    seeds = {draw_key(cells.generator_of(config, repeat)) for repeat in range(3)}
    seeds |= {draw_key(cells.generator_of(config, 2**30 + half)) for half in range(2)}
    assert len(seeds) == 5
    objective, params, _ = cdg_of(config)
    converged = NESLocal(sigma=0.2, passes=200).estimate(
        objective, params, generator=torch.Generator().manual_seed(1)
    )
    configs.run(config, tmp_path)
    stored = load_file(next(tmp_path.glob("reference-*")))
    truth = configs.joined({name: converged.gradient[name] for name in HIDDEN})
    noises = []
    for repeat in range(3):
        generator = cells.generator_of(config, repeat)
        estimate = cells.estimator_of(config).estimate(objective, params, generator=generator)
        noises.append(part(estimate.gradient, HIDDEN) - truth)
    for half in (0, 1):
        noise = part({name: stored[f"{half}/{name}"] for name in HIDDEN}, HIDDEN) - truth
        # 128 weights: an independent cosine has a deviation of about .1
        assert all(abs(cosine(noise, other)) < 0.4 for other in noises)
        assert cosine(noise, noise) == pytest.approx(1)


def test_split_halves_are_joined_over_layers(tmp_path: Path) -> None:
    config = quality({**configs.NES, "population": [16, 48], "fitness": "raw"}, repeats=2)
    objective, params, _ = cdg_of(config)
    rows = configs.run(config, tmp_path)
    for repeat in range(2):
        key = draw_key(cells.generator_of(config, repeat))
        whole = GaussianPopulation(params, 0.1, key, 0, 48, antithetic=True)
        losses, noise = objective.losses(whole), whole.noise().double()
        for size in (16, 48):
            # pairs go to the halves in turn
            owner = torch.arange(size) // 2 % 2
            halves = [
                pop.unflatten((losses[:size][owner == half, None] *
                               noise[:size][owner == half]).mean(0) / 0.1, params)
                for half in (0, 1)
            ]  # fmt: skip
            for row in rows_of(rows, population=size, repeat=repeat):
                first, second = (part(half, GROUPS[row["layer"]]) for half in halves)
                assert row["split_half_cosine"] == pytest.approx(cosine(first, second), rel=1e-4)


def test_layers_that_stand_still_have_no_split_half(tmp_path: Path) -> None:
    config = quality({**configs.LOCAL, "layers": ["layers.1.weight"]})
    found = {row["layer"]: row for row in configs.run(config, tmp_path)}
    assert found["layers.0.weight"]["split_half_cosine"] is None
    assert found["layers.0.weight"]["cosine"] is None  # the gradient is zero
    one = found["layers.1.weight"]["split_half_cosine"]
    assert found["hidden"]["split_half_cosine"] == found["all"]["split_half_cosine"] == one
    assert 0 < one <= 1


def test_a_test_function_has_one_layer_and_all(tmp_path: Path) -> None:
    rows = configs.run(quality(configs.CDG, configs.QUADRATIC), tmp_path)
    assert [(row["layer"], row["cosine"]) for row in rows] == [
        ("x", pytest.approx(1)),
        ("all", pytest.approx(1)),
    ]


class Count:
    """How often the differences of a reference were computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        original = TeacherStudent.coordinate_differences

        def counted(objective: TeacherStudent, params: Params, epsilon: float) -> Params:
            self.calls += 1
            return original(objective, params, epsilon)

        monkeypatch.setattr(TeacherStudent, "coordinate_differences", counted)


def test_the_reference_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(monkeypatch)
    configs.run(quality(), tmp_path)
    configs.run(quality({**configs.STE, "surrogate": "steep"}, repeats=2), tmp_path)
    # what a CDG does not depend on
    configs.run(quality(reference_sigma=0.3, reference_passes=8), tmp_path)
    assert count.calls == len(list(tmp_path.iterdir())) == 1
    for other in ({"init": 1}, {"batch": 1}, {"seed": 1}, {"reference_epsilon": 0.3}):
        configs.run(quality(**other), tmp_path)
    assert count.calls == len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", [b"", b"not tensors", "half"])
def test_a_damaged_reference_is_computed_again(
    damage: bytes | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Count(monkeypatch)
    first = configs.run(quality(), tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage if isinstance(damage, bytes) else whole[: len(whole) // 2])
    again = configs.run(quality(), tmp_path)
    assert configs.without_seconds(first) == configs.without_seconds(again)
    assert count.calls == 2
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("objective", "settings", "sentence"),
    [
        (configs.QUADRATIC, SMOOTHED, "needs a layered objective"),
    ],
)
def test_impossible_references_are_refused(
    objective: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        studies.create("gradient_quality").validate(quality(configs.CDG, objective, **settings))


def test_the_estimate_of_work_follows_the_settings() -> None:
    study = studies.create("gradient_quality")
    one = study.forward_passes(quality(configs.NES))
    assert study.forward_passes(quality(configs.NES, repeats=3)) == pytest.approx(one + 2 * 24)
    smoothed = study.forward_passes(quality(configs.NES, reference="smoothed"))
    assert smoothed > one
    assert study.forward_passes(quality(configs.NES, **SMOOTHED)) < smoothed
    # every draw of all signs has a round of flips
    signs = quality(configs.NES, {**configs.TEACHER, "weight": "binary"}, **SMOOTHED)
    twice = {**signs, "settings": {**signs["settings"], "reference_passes": 16}}
    assert study.forward_passes(twice) - 24 == pytest.approx(2 * (study.forward_passes(signs) - 24))
