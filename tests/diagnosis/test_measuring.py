"""The whole diagnosis: its table, what it leaves alone, and what it says."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab import estimators
from gradlab.diagnosis import COLUMNS, Diagnosis
from gradlab.diagnosis.checks import checked_objective
from gradlab.diagnosis.measuring import exact_layers
from tests.diagnosis.networks import MLP, example

LOSS = nn.CrossEntropyLoss()
# passes alone bind, so that a slow machine finds the same
QUICK: dict[str, Any] = {"max_forward_passes": 260, "max_seconds": 600, "coordinates": 36}


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    model, batch = example("mlp")
    chosen = ["own", "hardtanh", "steep", {"name": "nes", "population": 60}]
    budget = {**QUICK, "max_forward_passes": 800}
    return gradlab.diagnose(model, LOSS, batch, estimators=chosen, epsilon=0.2, sigma=0.2, **budget)


def cell(table: pd.DataFrame, estimator: str, layer: str, reference: str) -> pd.Series:
    rows = table[(table["estimator"] == estimator) & (table["layer"] == layer)
                 & (table["reference"] == reference)]  # fmt: skip
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_table_has_a_row_for_every_estimator_layer_and_reference(found: Diagnosis) -> None:
    assert tuple(found.table.columns) == COLUMNS
    assert COLUMNS[:11] == (
        "estimator", "layer", "cosine", "cosine_low", "cosine_high", "norm_ratio",
        "sign_agreement", "best_lr", "loss_decrease", "forward_passes", "seconds",
    )  # fmt: skip
    assert len(found.table) == 4 * 3 * 2
    assert list(found.table["estimator"].unique()) == [
        "own backward", "STE hardtanh", "STE steep", "NES 60"]  # fmt: skip
    assert set(found.table["reference"]) == {"cdg", "smoothed"}
    measured = found.table[found.table["status"] == "ok"]
    assert len(measured) >= 10
    assert (measured["cosine_low"] <= measured["cosine"]).all()
    assert (measured["cosine"] <= measured["cosine_high"]).all()
    assert measured[["norm_ratio", "sign_agreement", "best_lr", "seconds"]].notna().all(axis=None)
    ste = found.table[found.table["estimator"] == "STE hardtanh"]
    assert set(ste["forward_passes"]) == {1.0}
    assert set(ste["backward_passes"]) == {1.0}


def test_rows_hold_what_brute_force_in_float64_gives(found: Diagnosis) -> None:
    """Cosine, norm ratio and signs to all central differences of a layer, by a plain loop."""
    model, (inputs, targets) = example("mlp")
    model, inputs = model.double(), inputs.double()
    weight = dict(model.named_parameters())["second.weight"]
    differences = torch.zeros_like(weight).flatten()
    with torch.no_grad():
        for i in range(36):
            pair = []
            for step in (0.2, -0.2):
                weight.view(-1)[i] += step
                pair.append(LOSS(model(inputs), targets))
                weight.view(-1)[i] -= step
            differences[i] = (pair[0] - pair[1]) / 0.4
    assert isinstance(model, MLP)
    model.sign = lambda x: x.clamp(-0.5, 0.5) * 2 + (x.sign() - x.clamp(-0.5, 0.5) * 2).detach()
    LOSS(model(inputs), targets).backward()
    gradient = model.second.weight.grad
    assert gradient is not None
    gradient = gradient.flatten()
    row = cell(found.table, "STE steep", "second.weight", "cdg")
    assert row["coordinates"] == 36
    assert row["cosine"] == pytest.approx(
        float(gradient @ differences / gradient.norm() / differences.norm()), abs=1e-5
    )
    assert row["norm_ratio"] == pytest.approx(float(gradient.norm() / differences.norm()), rel=1e-5)
    signed = differences != 0
    same = (gradient.sign() == differences.sign())[signed].double().mean()
    assert row["sign_agreement"] == pytest.approx(float(same))
    # and the best step of that layer alone
    best = []
    before = weight.detach().clone()
    shares = [float(f"{s * float(before.norm()):.3g}") for s in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)]
    model.sign = torch.sign
    with torch.no_grad():
        start = float(LOSS(model(inputs), targets))
        for step in shares:
            weight.copy_(before - step * (gradient / gradient.norm()).reshape(before.shape))
            best.append(start - float(LOSS(model(inputs), targets)))
    assert row["loss_decrease"] == pytest.approx(max(best), rel=1e-4)
    assert row["best_lr"] == pytest.approx(shares[int(np.argmax(best))])


def test_no_gradient_is_said_and_the_layer_behind_the_last_sign_is_exact(found: Diagnosis) -> None:
    for layer in ("first.weight", "second.weight"):
        row = cell(found.table, "own backward", layer, "cdg")
        assert row["status"] == "the estimate is zero: no gradient reaches this layer"
        assert math.isnan(row["cosine"])
        assert not row["exact"]
    row = cell(found.table, "own backward", "head.weight", "cdg")
    assert row["exact"]
    assert row["cosine"] > 0.999
    assert "own backward gives no gradient at all in first.weight, second.weight." in (
        found.recommendation)  # fmt: skip
    assert "Behind the last sign (head.weight) backpropagation is exact" in found.recommendation


def test_the_recommendation_names_the_best_with_its_evidence(found: Diagnosis) -> None:
    hidden = found.table[~found.table["exact"]]
    means = hidden.groupby("estimator")["cosine"].mean()
    best = means.drop("own backward").idxmax()
    assert found.recommendation.startswith(f"Use {best}: over 2 layers in front of a sign its mean")
    assert f"is {means[best]:.2f} (95 % interval" in found.recommendation
    assert "epsilon 0.2 of the differences, sigma 0.2 of the smoothing" in found.recommendation
    assert "Judged on one batch of 96 examples." in found.recommendation


@pytest.mark.parametrize("kind", ["conv", "xnor"])
def test_convolutions_and_gradlabs_own_layers(kind: str) -> None:
    model, batch = example(kind, 48)
    found = gradlab.diagnose(model, LOSS, batch, estimators=["own", "polynomial"], **QUICK)
    cdg = found.table[(found.table["reference"] == "cdg") & (found.table["status"] == "ok")]
    assert (cdg.loc[cdg["exact"], "cosine"] > 0.99).all()
    assert not cdg[~cdg["exact"]].empty
    own = found.table[(found.table["estimator"] == "own backward") & ~found.table["exact"]]
    zero = own["status"].str.startswith("the estimate is zero")
    assert zero.all() if kind == "conv" else not zero.any()


def test_the_module_and_all_random_numbers_are_as_they_were() -> None:
    model, batch = example("xnor", 32)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: None)
    first = next(model.parameters())
    first.grad = torch.full_like(first, 7.0)
    first.requires_grad_(False)
    state = copy.deepcopy(model.state_dict())
    modes = [each.training for each in model.modules()]
    hooks = [dict(each._forward_hooks) for each in model.modules()]
    numbers = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    inputs, targets = batch[0].clone(), batch[1].clone()
    gradlab.diagnose(model, LOSS, batch, estimators=["own", "nes"], **QUICK)
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[name], state[name]) for name in state)
    assert [each.training for each in model.modules()] == modes
    assert [dict(each._forward_hooks) for each in model.modules()] == hooks
    assert first.grad is not None
    assert bool((first.grad == 7).all())
    assert not first.requires_grad
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert np.array_equal(np.random.get_state()[1], numbers[1])
    assert random.getstate() == numbers[2]
    assert torch.equal(batch[0], inputs)
    assert torch.equal(batch[1], targets)
    assert not calls


def test_the_same_seed_gives_the_same_numbers() -> None:
    model, batch = example("mlp", 32)
    chosen = ["hardtanh", {"name": "nes", "population": 50}]
    tables = [
        gradlab.diagnose(
            model, LOSS, batch, ["second"], chosen, seed=seed, coordinates=12,
            max_forward_passes=400, max_seconds=60,
        ).table.query("reference == 'cdg'").drop(columns="seconds")
        for seed in (0, 0, 1)
    ]  # fmt: skip
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


def test_too_small_a_budget_gives_words_instead_of_noise() -> None:
    model, batch = example("conv", 32)
    found = gradlab.diagnose(
        model, LOSS, batch, estimators=["hardtanh", "nes"], max_forward_passes=60,
    )  # fmt: skip
    assert found.table["cosine"].isna().all()
    assert (found.table["status"] != "ok").all()
    assert "No recommendation: in none of these layers did the budget suffice" in (
        found.recommendation)  # fmt: skip
    nes = found.table[found.table["estimator"] == "NES 500"]
    assert nes["status"].str.startswith("not run: needs 500 forward passes, and").all()
    assert "NES 500 was not run: needs 500 forward passes" in found.recommendation


def test_samples_that_are_too_few_are_called_noise() -> None:
    model, batch = example("conv", 32)
    found = gradlab.diagnose(
        model, LOSS, batch, ["conv1", "conv2"], [{"name": "nes", "population": 10, "sigma": 0.01}],
        epsilon=0.1, **QUICK,
    )  # fmt: skip
    noisy = found.table[found.table["status"].str.startswith("noise: the halves of 10 forward")]
    assert len(noisy)
    assert noisy["cosine"].isna().all()
    assert (noisy["cosine_low"] <= 0).all()
    assert (noisy["cosine_high"] > 0).all()


def test_an_estimator_that_refuses_is_reported_and_a_default_one_left_out() -> None:
    model, batch = example("mlp", 32)
    model = nn.Sequential(model, nn.Softmax(1))  # no rule of moments
    matched = {"name": "ste", "surrogate": "matched"}
    found = gradlab.diagnose(model, LOSS, batch, ["0.second"], ["hardtanh", matched], **QUICK)
    rows = found.table[found.table["estimator"] == "matched STE"]
    assert rows["status"].str.startswith("refused: ").all()
    found = gradlab.diagnose(model, LOSS, batch, ["0.second"], **QUICK)
    assert "matched STE" not in set(found.table["estimator"])
    assert "Left out, since it does not apply to this network: matched STE." in (
        found.recommendation)  # fmt: skip


def test_estimators_of_ones_own_are_taken() -> None:
    class Ones:
        def estimate(self, objective: Any, params: Any, *, generator: Any) -> Any:
            return estimators.GradientEstimate(
                {name: torch.ones_like(w) for name, w in params.items()}, forward_passes=3.0
            )

        def estimates(self, objective: Any, params: Any, *, generator: Any) -> list[Any]:
            return [self.estimate(objective, params, generator=generator)]

        def label(self) -> str:
            return "ones"

    model, batch = example("mlp", 32)
    found = gradlab.diagnose(model, LOSS, batch, ["second"], [Ones()], **QUICK)
    assert set(found.table["estimator"]) == {"ones"}
    assert set(found.table["forward_passes"]) == {3.0}


def test_layers_are_exact_behind_the_last_sign_alone() -> None:
    model, batch = example("conv", 16)
    objective = checked_objective(model, LOSS, batch, None)
    assert exact_layers(objective) == {"head.weight"}

    class Halves(nn.Module):
        """A layer on a path of its own, beside a sign."""

        def __init__(self) -> None:
            super().__init__()
            self.rough, self.smooth = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.sign(self.rough(x)) + self.smooth(x)
            return out

    objective = checked_objective(Halves(), LOSS, example("mlp")[1], None)
    assert exact_layers(objective) == {"smooth.weight"}


def test_a_network_whose_chosen_layers_are_all_exact_has_nothing_to_choose() -> None:
    model, batch = example("mlp", 32)
    found = gradlab.diagnose(model, LOSS, batch, ["head"], ["own"], **QUICK)
    assert found.recommendation.startswith("No sign lies behind any of these layers")
