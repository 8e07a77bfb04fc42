"""References within a budget: right where they are known, and unknown in words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradlab.diagnosis import references
from gradlab.diagnosis.agreement import agreement
from gradlab.diagnosis.checks import checked_objective
from gradlab.diagnosis.objective import ModuleObjective
from gradlab.diagnosis.references import (
    Budget,
    central_differences,
    smoothed_gradient,
    time_one_pass,
)
from gradlab.estimators import cosine, create
from tests.diagnosis.networks import example


def objective_of(kind: str, size: int = 96, weighted: bool = False) -> ModuleObjective:
    model, batch = example(kind, size)
    weight = torch.tensor([1.0, 2.0, 1.5]) if weighted else None
    return checked_objective(model, nn.CrossEntropyLoss(weight=weight), batch, None)


def test_central_differences_are_those_of_the_cdg() -> None:
    objective = objective_of("mlp")
    budget = Budget(1e6, 1e6)
    found = central_differences(objective, 0.3, 20, budget, 1.0, seed=0)
    cdg = create("cdg", epsilon=0.3).estimate(
        objective, objective.params, generator=torch.Generator()
    )
    assert budget.spent == 2 * (20 + 20 + 18)
    for name, reference in found.items():
        assert reference.problem == ""
        assert reference.halves is not None
        assert reference.coordinates is not None
        values = cdg.gradient[name].flatten()[reference.coordinates].double()
        assert torch.allclose(reference.halves[0], values, rtol=1e-4, atol=1e-6)
        assert len(set(reference.coordinates.tolist())) == len(values)
        assert reference.forward_passes == 2 * len(values)


def test_a_tight_budget_leaves_fewer_coordinates_and_then_none() -> None:
    objective = objective_of("mlp")
    some = central_differences(objective, 0.3, 1000, Budget(100, 1e6), 1.0, seed=0)
    sizes = [len(r.coordinates) for r in some.values() if r.coordinates is not None]
    assert len(sizes) == 3
    assert 2 * sum(sizes) <= 100
    assert min(sizes) >= 8
    none = central_differences(objective, 0.3, 1000, Budget(40, 1e6), 1.0, seed=0)
    assert [bool(each.halves) for each in none.values()] == [True, True, False]
    assert none["head.weight"].problem == (
        "not measured: CDG needs 16 forward passes, and 8 of the budget's 40 are left for it"
    )


def test_differences_that_change_nothing_are_unknown() -> None:
    found = central_differences(objective_of("mlp"), 1e-7, 20, Budget(1e6, 1e6), 1.0, seed=0)
    assert found["first.weight"].problem.startswith("unknown: 0 of 20 coordinates change the loss")
    assert found["head.weight"].problem == ""


def test_the_smoothed_gradient_agrees_with_a_long_run_of_weight_space_nes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def weight_space(
        objective: ModuleObjective, sigma: float, budget: Budget, seed: int, judged: object
    ) -> references._Sampler:
        generator = torch.Generator().manual_seed(seed)
        return references._Sampler(objective, sigma, generator, "nes")

    # which sampler is the better bargain depends on the machine; this one is quick everywhere
    monkeypatch.setattr(references, "_better_sampler", weight_space)
    objective = objective_of("mlp", size=32)
    budget = Budget(20_000, 1e6)
    time_one_pass(objective, 0.2, budget)
    found = smoothed_gradient(objective, 0.2, budget, 1.0, seed=1)
    assert budget.spent <= 20_000
    nes = create("nes", sigma=0.2, population=60_000).estimate(
        objective, objective.params, generator=torch.Generator().manual_seed(5)
    )
    for name, reference in found.items():
        assert reference.problem == ""
        numbers = agreement(nes.gradient[name], reference)
        # NES's own noise is all that is left between them
        expected = nes.diagnostics[f"split_half_cosine/{name}"]
        own = (2 * expected / (1 + expected)) ** 0.5
        assert abs(numbers.cosine - own) < 0.05
        assert abs(numbers.norm_ratio * own - 1) < 0.1


def test_few_samples_are_unknown_and_say_how_many_would_do() -> None:
    objective = objective_of("conv")
    found = smoothed_gradient(objective, 0.02, Budget(100, 1e6), 1.0, seed=0)
    problems = [found[name].problem for name in ("conv1.weight", "conv2.weight")]
    assert all(p.startswith("unknown: after ") and "agree to a cosine of" in p for p in problems)
    nothing = smoothed_gradient(objective, 0.02, Budget(50, 1e6), 1.0, seed=0)
    assert {each.problem for each in nothing.values()} == {
        "not measured: the smoothed gradient needs 86 forward passes, and 50 of the budget's 50 "
        "are left for it"
    }


def test_between_noise_and_knowledge_the_passes_needed_are_told() -> None:
    text = references._unresolved(0.1, 10_000, 500)
    # each half has noise 9 times its signal, wanted are 3: three times as many samples
    assert text.endswith("agree to a cosine of 0.10; 0.25 take about 1,500")
    assert references._unresolved(0.1, 100, 500).endswith("which is noise")
    assert references._unresolved(0.3, 10_000, 500) == ""


def test_where_examples_interact_weight_space_samples_take_over() -> None:
    objective = objective_of("mlp", size=48, weighted=True)
    assert objective.evaluator.couples
    budget = Budget(4000, 10)
    found = smoothed_gradient(objective, 0.3, budget, 1.0, seed=0)
    halves = found["head.weight"].halves
    assert halves is not None
    assert cosine(*halves) > 0.5
