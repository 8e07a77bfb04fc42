"""Sparse flips against two whole evaluations for every weight."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from gradlab.evaluation import Params, coordinates
from gradlab.evaluation.coordinates import mlp_differences
from gradlab.models import BinarizedMLP
from gradlab.models.mlp import ACTIVATIONS, WEIGHTS
from gradlab.objectives import TeacherStudent


def brute_force(
    model: BinarizedMLP, inputs: Tensor, targets: Tensor, params: Params, epsilon: float
) -> Params:
    """L(w + ε e_i) − L(w − ε e_i) from the definition."""
    out = {}
    for name, tensor in params.items():
        differences = torch.zeros(tensor.numel(), dtype=torch.float64)
        for index in range(tensor.numel()):
            losses = []
            for step in (epsilon, -epsilon):
                moved = {k: w.clone() for k, w in params.items()}
                moved[name].view(-1)[index] += step
                losses.append((model.forward(moved, inputs) - targets).square().mean())
            differences[index] = losses[0] - losses[1]
        out[name] = differences.reshape(tensor.shape)
    return out


@pytest.mark.parametrize(
    ("activation", "weight", "depth", "num_dim"),
    list(itertools.product(ACTIVATIONS, WEIGHTS, (1, 2, 3), (1, 2, 5))),
)
def test_differences_are_those_of_whole_evaluations(
    activation: str, weight: str, depth: int, num_dim: int
) -> None:
    # in float64, where no example of these is within rounding of a threshold
    model = BinarizedMLP(num_dim, depth, activation, weight)
    generator = torch.Generator().manual_seed(num_dim)
    inputs = torch.randn(40, num_dim, generator=generator).double()
    targets = torch.randn(40, 1, generator=generator).double()
    params = {
        name: torch.randn(w.shape, generator=generator).double()
        * (0.2 if weight == "binary" else 1)
        for name, w in model.initial_params(generator).items()
    }
    for name in model.layer_names[:-1]:
        params[name].diagonal().abs_()  # so that activations of zero do not silence the rest
    if weight == "binary":
        # a latent weight of exactly zero, and two that ε = .1 brings exactly to zero
        for edge, value in zip(range(num_dim), (0.0, 0.1, -0.1), strict=False):
            params["layers.0.weight"][edge, 0] = value
    changed = 0
    for epsilon in (0.01, 0.1, 1.0):
        got = mlp_differences(model, inputs, targets, params, epsilon)
        expected = brute_force(model, inputs, targets, params, epsilon)
        for name in params:
            assert got[name].dtype == torch.float64
            torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-12)
        changed += int(sum((expected[n] != 0).sum() for n in model.layer_names[:-1]))
    assert changed > 0 or num_dim == 1  # something was there to be found


@pytest.mark.parametrize("activation", ["binary", "ternary", "decoupled_ternary"])
def test_examples_exactly_on_a_threshold_are_counted_as_the_forward_pass_does(
    activation: str,
) -> None:
    # quarters: all sums are exact, steps of ε land on thresholds, and inputs of zero do nothing
    model = BinarizedMLP(3, 2, activation)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(-4, 5, (300, 3), generator=generator) / 4
    inputs[:5] = 0
    targets = torch.randn(300, 1, generator=generator)
    params = {
        name: torch.randint(-4, 5, w.shape, generator=generator) / 4
        for name, w in model.initial_params(generator).items()
    }
    for epsilon in (0.25, 0.5):
        got = mlp_differences(model, inputs, targets, params, epsilon)
        expected = brute_force(model, inputs, targets, params, epsilon)
        for name in params:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_float32_differs_by_no_more_than_its_boundary_examples(
    activation: str, weight: str
) -> None:
    objective = TeacherStudent(8, 3000, seed=0, depth=2, activation=activation, weight=weight)
    params = {name: 2 * w for name, w in objective.initial_params(0).items()}
    got = objective.coordinate_differences(params, 0.1)
    wide = mlp_differences(
        objective.model,
        objective.inputs.double(),
        objective.targets.double(),
        {name: w.double() for name, w in params.items()},
        0.1,
    )
    for name in params:
        difference = (got[name] - wide[name]).abs()
        # one example of 3,000 on the other side of a threshold moves one weight by 1e-3 or so
        assert int((difference > 1e-6).sum()) <= 2
        assert difference.max() < 5e-3
        assert wide[name].abs().max() > 5e-3


def test_dense_path_does_not_depend_on_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = TeacherStudent(6, 5000, seed=0, depth=2, activation="full")
    params = objective.initial_params(0)
    whole = objective.coordinate_differences(params, 0.1)
    monkeypatch.setattr(coordinates, "_BATCH_FLOATS", 1)
    pieces = objective.coordinate_differences(params, 0.1)
    for name in params:
        torch.testing.assert_close(whole[name], pieces[name], rtol=1e-6, atol=1e-9)
