"""Mirrored pairs along any directions, and the family that shares them on every objective."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from gradlab import estimators
from gradlab.estimators.mirrored import mirrored_estimates, nested_sizes
from gradlab.evaluation import Population
from gradlab.objectives import Classification, Network, TeacherStudent, TestFunction
from tests.estimators import cases_directions, referees
from tests.objectives.images import small_images

__all__ = ["small_images"]

FAMILY = sorted({case.name for case in cases_directions.CASES})
MIRRORED = ["guided", "low_rank_nes", "spsa"]
NESTED = [*MIRRORED, "regression_nes", "ste_mean_nes"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_estimate_is_the_mean_over_pairs_of_half_the_difference_times_the_score() -> None:
    objective = TestFunction("rosenbrock", num_dim=4)
    params = objective.initial_params(0)
    steps = torch.randn(6, 4, dtype=torch.float64, generator=generator())
    found = mirrored_estimates(
        objective, params, (4, 12), lambda low, high: steps[low:high], lambda drawn: 3 * drawn
    )
    for pairs, estimate in zip((2, 6), found, strict=True):
        terms = [
            (objective.loss({"x": params["x"] + s}) - objective.loss({"x": params["x"] - s})) / 2
            for s in steps[:pairs]
        ]
        weighted = [3 * term * s for term, s in zip(terms, steps, strict=False)]
        expected = torch.stack(weighted).mean(dim=0)
        torch.testing.assert_close(estimate.gradient["x"], expected, rtol=1e-12, atol=0)
    halves = [torch.stack(weighted[half::2]).mean(dim=0) for half in (0, 1)]
    agreement = found[1].diagnostics["split_half_cosine/x"]
    assert agreement == pytest.approx(estimators.cosine(*halves))
    assert found[0].diagnostics == {}  # two pairs are too few to be halved


@pytest.mark.parametrize("name", NESTED)
def test_nested_populations_are_prefixes_of_one_sample(name: str) -> None:
    objective = TeacherStudent(3, 40, seed=0, depth=1)
    params = objective.initial_params(0)
    nested = estimators.create(name, population=[4, 10, 60]).estimates(
        objective, params, generator=generator(5)
    )
    for size, inner in zip((4, 10, 60), nested, strict=True):
        alone = estimators.create(name, population=size).estimate(
            objective, params, generator=generator(5)
        )
        assert inner.forward_passes == alone.forward_passes
        assert inner.diagnostics == pytest.approx(alone.diagnostics, rel=1e-6)
        for key in params:
            torch.testing.assert_close(inner.gradient[key], alone.gradient[key])


@pytest.mark.parametrize("name", MIRRORED)
def test_no_more_than_the_budget_is_held_at_a_time(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradlab.estimators.mirrored.MEMBER_FLOATS", 100)
    sizes = []

    class Watched(TestFunction):
        def losses(self, population: Population) -> torch.Tensor:
            assert isinstance(population, dict)
            sizes.append(population["x"].numel())
            return super().losses(population)

    objective = Watched("quadratic", num_dim=5)
    estimators.create(name, population=500).estimate(
        objective, objective.initial_params(0), generator=generator()
    )
    assert max(sizes) == 100
    assert sum(sizes) == 500 * 5


class Small(nn.Module):
    """A convolution, a sign and a linear layer, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.linear = nn.Conv2d(1, 3, 2), nn.Linear(12, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(torch.sign(self.convolution(images)).flatten(1))
        return logits


OPTIONS: dict[str, dict[str, Any]] = {
    "forward_gradient": {"directions": 200},
    "greedy_discrete": {"epsilon": 0.2},
    "random_cdg": {"coordinates": 50},
    "regression_nes": {"sigma": 0.05},
}


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_classifier_of_images_learns_from_every_one(name: str, dtype: torch.dtype) -> None:
    images = torch.randn(24, 1, 3, 3, generator=generator(), dtype=dtype)
    objective = Classification(Small().to(dtype), images, torch.arange(24) % 4)
    params = objective.initial_params(0)
    estimate = estimators.create(name, **OPTIONS.get(name, {})).estimate(
        objective, params, generator=generator()
    )
    gradient = estimate.gradient
    assert {n: (g.shape, g.dtype) for n, g in gradient.items()} == {
        n: (w.shape, dtype) for n, w in params.items()
    }
    step = 0.02 / referees.flat(gradient).norm()
    moved = {n: (w - step * gradient[n]).to(dtype) for n, w in params.items()}
    assert objective.loss(moved) < objective.loss(params)


@pytest.mark.parametrize("name", FAMILY)
def test_chosen_coordinates_of_a_trained_architecture(name: str, small_images: list[str]) -> None:
    objective = Network(
        "mnist", "lenet", width=2, layers=[0, -1], coordinates=5, batch_size=16, seed=5
    )
    params = objective.initial_params(0)
    estimate = estimators.create(name, **OPTIONS.get(name, {})).estimate(
        objective, params, generator=generator()
    )
    assert {n: g.shape for n, g in estimate.gradient.items()} == {
        n: torch.Size([5]) for n in objective.layer_names
    }
    assert all(gradient.isfinite().all() for gradient in estimate.gradient.values())


@pytest.mark.parametrize(
    ("population", "sentence"),
    [
        (5, "population is 5: mirrored pairs need an even number; give 6."),
        (0, "population is 0: give an even number of at least 2."),
        ("500", "population is '500': give an even number of at least 2."),
        (True, "population is True: give an even number of at least 2."),
        ([], "population is []: give one number, or different numbers in ascending order."),
        ([20, 10], "population is [20, 10]: give one number, or different numbers in ascending"),
    ],
)
def test_bad_populations_are_refused_in_one_sentence(population: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        nested_sizes(population)
    for name in MIRRORED:
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            estimators.create(name, population=population)


@pytest.mark.parametrize("name", FAMILY)
def test_a_misspelt_option_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^unknown option of estimator {name} 'sigmma'"):
        estimators.create(name, sigmma=0.1)
