"""Sparse flips against two whole evaluations for every weight."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradlab.evaluation import Params, coordinates, fused
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


@pytest.fixture(params=["tables", "vectors", "tensors"])
def differences(request: pytest.FixtureRequest) -> Callable[..., Params]:
    """Look-up tables where the processor has them, its plain vectors, tensor operations."""
    if request.param == "tensors":
        return mlp_differences
    if request.param == "tables" and not fused.HAS_TABLES:
        pytest.skip("this processor has no AVX-512, so no look-up tables")

    def compiled(
        model: BinarizedMLP,
        inputs: Tensor,
        targets: Tensor,
        params: Params,
        epsilon: float,
        loss: str = "mse",
    ) -> Params:
        tables = request.param == "tables"
        evaluator = fused.FusedMLPEvaluator(model, inputs, targets, loss, tables=tables)
        return evaluator.coordinate_differences(params, epsilon)

    return compiled


@pytest.mark.parametrize("activation", ["binary", "ternary", "decoupled_ternary"])
def test_examples_exactly_on_a_threshold_are_counted_as_the_forward_pass_does(
    activation: str, differences: Callable[..., Params]
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
        got = differences(model, inputs, targets, params, epsilon)
        expected = brute_force(model, inputs, targets, params, epsilon)
        for name in params:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["binary", "ternary", "decoupled_ternary", "2bit"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(("num_dim", "depth"), [(1, 1), (3, 3), (8, 2), (21, 2)])
def test_float32_differs_by_no_more_than_its_boundary_examples(
    activation: str,
    weight: str,
    loss: str,
    num_dim: int,
    depth: int,
    differences: Callable[..., Params],
) -> None:
    model = BinarizedMLP(num_dim, depth, activation, weight, num_inputs=9, num_outputs=3)
    generator = torch.Generator().manual_seed(depth)
    inputs = torch.randn(1000, 9, generator=generator)
    targets = torch.randn(1000, 3, generator=generator)
    wide_targets = targets.double()
    if loss == "cross_entropy":
        targets = wide_targets = targets.argmax(dim=1)
    params = {name: 2 * w for name, w in model.initial_params(generator).items()}
    if activation != "binary" and weight == "real":
        params = {name: w.abs() + w for name, w in params.items()}  # or zeros silence the rest
    for epsilon in (0.1, 1.0):
        got = differences(model, inputs, targets, params, epsilon, loss)
        wide = mlp_differences(
            model,
            inputs.double(),
            wide_targets,
            {name: w.double() for name, w in params.items()},
            epsilon,
            loss,
        )
        scale = max(float(each.abs().max()) for each in wide.values())
        assert scale > 1e-4
        for name in params:
            difference = (got[name] - wide[name]).abs()
            assert got[name].dtype == torch.float64
            # one example of 1,000 on the other side of a threshold moves its neuron's weights
            assert int((difference > 2e-6 * scale).sum()) <= difference.shape[1]
            assert difference.max() < 1e-2


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_several_outputs_are_differences_of_whole_losses(activation: str, loss: str) -> None:
    model = BinarizedMLP(4, 2, activation, num_inputs=6, num_outputs=3)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(60, 6, generator=generator).double()
    targets: Tensor = torch.randn(60, 3, generator=generator).double()
    function = torch.nn.functional.mse_loss
    if loss == "cross_entropy":
        targets, function = targets.argmax(dim=1), torch.nn.functional.cross_entropy
    params = {name: w.double().abs() for name, w in model.initial_params(generator).items()}
    got = mlp_differences(model, inputs, targets, params, 0.2, loss)
    for name, tensor in params.items():
        for index in range(tensor.numel()):
            losses = []
            for step in (0.2, -0.2):
                moved = {k: w.clone() for k, w in params.items()}
                moved[name].view(-1)[index] += step
                losses.append(function(model.forward(moved, inputs), targets))
            assert float(got[name].flatten()[index]) == pytest.approx(
                float(losses[0] - losses[1]), rel=1e-9, abs=1e-12
            )


def test_threads_change_nothing() -> None:
    objective = TeacherStudent(7, 500, seed=0, depth=3)
    params, threads = objective.initial_params(0), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            found.append(objective.coordinate_differences(params, 0.1))
    finally:
        torch.set_num_threads(threads)
    for name in params:
        assert all(torch.equal(found[0][name], other[name]) for other in found[1:])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_give_no_finite_loss(value: float) -> None:
    objective = TeacherStudent(4, 200, seed=0, depth=2)
    params = objective.initial_params(0)
    params["layers.2.weight"][0, 1] = value
    found = objective.coordinate_differences(params, 0.1)
    assert not any(each.isfinite().all() for each in found.values())


def test_dense_path_does_not_depend_on_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = TeacherStudent(6, 5000, seed=0, depth=2, activation="full")
    params = objective.initial_params(0)
    whole = objective.coordinate_differences(params, 0.1)
    monkeypatch.setattr(coordinates, "_BATCH_FLOATS", 1)
    pieces = objective.coordinate_differences(params, 0.1)
    for name in params:
        torch.testing.assert_close(whole[name], pieces[name], rtol=1e-6, atol=1e-9)
