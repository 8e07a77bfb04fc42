"""Local NES of any module, as an estimator: options, cost, diagnostics, and what it estimates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import sign
from gradlab.estimators import cosine, create
from gradlab.estimators.nes_local import NESLocal
from gradlab.evaluation import Params
from gradlab.models import BinarizedMLP
from gradlab.objectives import Classification
from gradlab.objectives.base import LayeredObjective, NoisyObjective
from tests.estimators import referees


class BinaryConvolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(sign(x), sign(self.weight))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 2)
        self.norm = nn.BatchNorm2d(3)
        self.binary = BinaryConvolution(3, 4, 2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.binary(self.norm(self.stem(x)))
        return self.head(sign(x).mean((2, 3)))


def problem(size: int = 40, train: bool = False, **options: Any) -> tuple[Classification, Params]:
    torch.manual_seed(0)
    model = ConvNet().train(train)
    inputs = torch.randn(size, 1, 5, 5)
    labels = (inputs.mean((1, 2, 3)) > 0).long() + (inputs[:, 0, 2, 2] > 0).long()
    objective = Classification(model, inputs, labels, **options)
    return objective, objective.initial_params(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same_expectation(
    estimators: tuple[Any, Any], objective: Classification, params: Params, seeds: int, limit: float
) -> None:
    """By t with at least 9 degrees of freedom 7 is exceeded with probability 6e-5."""
    means, variances = [], []
    for estimator in estimators:
        found = referees.repeated_estimates(estimator, objective, params, seeds)
        flat = torch.stack([referees.flat(e.gradient) for e in found])
        means.append(flat.mean(dim=0))
        variances.append(flat.var(dim=0) / seeds)
        # known well enough to show a bias
        assert variances[-1].sum().sqrt() < limit * means[-1].norm()
    assert ((means[0] - means[1]).abs() / sum(variances).sqrt()).max() < 7


def test_default_takes_every_parameter_of_a_module_and_agrees_with_nes() -> None:
    objective, params = problem()
    local, shared = create("nes_local", passes=20), create("nes", population=500)
    assert_same_expectation((local, shared), objective, params, 10, 0.6)
    estimate = create("nes_local", passes=400).estimate(objective, params, generator=generator())
    for name, gradient in estimate.gradient.items():
        assert gradient.shape == params[name].shape
        assert gradient.dtype == torch.float32
    step = {name: params[name] - 0.05 * g for name, g in estimate.gradient.items()}
    assert objective.loss(step) < objective.loss(params)


# What each costs: noisy passes, one more for a baseline that changes something, and of every pass
# the output layer, one of three, differentiated.
@pytest.mark.parametrize(
    ("options", "forward", "backward"),
    [
        ({}, 3.0, 2 / 3),  # the binary convolution's score is conditioned on its sign
        ({"baseline": "none"}, 2.0, 2 / 3),
        ({"passes": 5}, 6.0, 5 / 3),
        ({"layers": ["stem.weight"]}, 2.0, 0.0),  # mirrored passes cancel the baseline
        ({"layers": ["stem.weight"], "passes": 3}, 4.0, 0.0),
        ({"layers": ["stem.weight"], "antithetic": False}, 3.0, 0.0),
        ({"layers": ["stem.weight", "stem.bias"], "noise": "positions"}, 2.0, 0.0),
        ({"layers": ["head.bias"], "noise": "positions"}, 2.0, 2 / 3),
    ],
)
def test_cost_and_diagnostics(options: dict[str, Any], forward: float, backward: float) -> None:
    objective, params = problem()
    estimate = create("nes_local", **options).estimate(objective, params, generator=generator())
    assert estimate.forward_passes == forward
    assert estimate.backward_passes == pytest.approx(backward)
    chosen = options.get("layers", list(params))
    for name, gradient in estimate.gradient.items():
        assert bool(gradient.any()) == (name in chosen)
        assert (f"split_half_cosine/{name}" in estimate.diagnostics) == (name in chosen)


def test_same_generator_same_bits_whatever_the_memory_and_nothing_is_changed() -> None:
    objective, params = problem()
    before = {name: w.clone() for name, w in params.items()}
    state, random = objective.model.state_dict(), torch.random.get_rng_state()
    buffers = {name: each.clone() for name, each in state.items()}
    first, again, other = (
        create("nes_local").estimate(objective, params, generator=generator(seed)).gradient
        for seed in (0, 0, 1)
    )
    small, _ = problem(memory_bytes=2**15)
    blocks = create("nes_local").estimate(small, params, generator=generator()).gradient
    for name in params:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
        torch.testing.assert_close(blocks[name], first[name], rtol=1e-4, atol=1e-4)
        assert torch.equal(params[name], before[name])
    assert all(torch.equal(each, state[name]) for name, each in buffers.items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert objective.model.training is False


@pytest.mark.parametrize("weight", ["real", "binary"])
def test_built_in_network_classifies_too(weight: str) -> None:
    torch.manual_seed(0)
    model = BinarizedMLP(4, depth=2, weight=weight, num_outputs=3)
    inputs, labels = torch.randn(400, 4), torch.randint(0, 3, (400,))
    random = torch.random.get_rng_state()
    objective = Classification(model, inputs, labels)
    params = {name: 0.5 * w for name, w in objective.initial_params(0).items()}
    local, shared = create("nes_local", passes=50), create("nes", population=4000)
    assert_same_expectation((local, shared), objective, params, 10, 0.2)
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_loss_of_the_users_own_need_not_be_smooth() -> None:
    def mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).double()

    objective, params = problem(loss=mistakes)
    layers = ["head.weight", "head.bias"]
    local = create("nes_local", passes=300, layers=layers)
    estimate = local.estimate(objective, params, generator=generator())
    assert estimate.backward_passes == 0
    few = {name: params[name] for name in layers}
    noise = {n: torch.randn(20000, *w.shape, generator=generator()) for n, w in few.items()}
    members = {n: few[n] + 0.1 * e for n, e in noise.items()}
    base = {name: w for name, w in params.items() if name not in layers}
    losses = objective.evaluator.losses(members, base)
    weights = ((losses - losses.mean()) / (0.1 * len(losses))).float()
    for name in layers:
        assert cosine(torch.tensordot(weights, noise[name], 1), estimate.gradient[name]) > 0.9


def test_protocols_tell_the_kinds_of_objective_apart() -> None:
    objective, _ = problem()
    assert isinstance(objective, NoisyObjective)
    assert not isinstance(objective, LayeredObjective)
    assert not isinstance(referees.problem(2, 1)[0], NoisyObjective)


def test_noise_is_named_in_the_label_where_it_is_not_the_default() -> None:
    assert NESLocal(noise="positions").label() == "local NES (2 passes) by position"
    assert NESLocal(noise="weights").label() == "local NES (2 passes)"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"baseline": "mean_field"},
            r'"mean_field" is for networks of layers in a row.*noise_free',
        ),
        ({"layers": ["stem.weigth"]}, r"unknown layer 'stem.weigth': did you mean 'stem.weight'\?"),
        (
            {"noise": "positions", "layers": ["binary.weight"]},
            r'parameter binary.weight is not itself the weight .* use noise = "weights", or leave',
        ),
        ({"noise": "positions"}, r"parameter norm.weight is not itself .* leave it out of layers"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    objective, params = problem()
    estimator = create("nes_local", **options)
    with pytest.raises(ValueError, match=sentence):
        estimator.estimate(objective, params, generator=generator())


def test_unknown_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown noise 'position': did you mean 'positions'"):
        create("nes_local", noise="position")


def test_batch_normalization_in_training_mode_is_refused() -> None:
    objective, params = problem(train=True)
    with pytest.raises(
        ValueError, match=r"couples the examples .* call model\.eval\(\), or use nes"
    ):
        create("nes_local").estimate(objective, params, generator=generator())


def test_parameters_that_are_not_finite_are_refused_and_nan_losses_give_nan() -> None:
    objective, params = problem()
    broken = {**params, "head.bias": torch.full((3,), torch.nan)}
    with pytest.raises(ValueError, match=r"parameter head\.bias has NaN"):
        create("nes_local").estimate(objective, broken, generator=generator())
    inputs = objective.inputs.clone()
    inputs[3] = torch.nan
    poisoned = Classification(objective.model, inputs, objective.labels)
    estimate = create("nes_local").estimate(poisoned, params, generator=generator())
    assert all(gradient.isnan().any() for gradient in estimate.gradient.values())


def test_one_example_is_enough() -> None:
    objective, params = problem(size=1)
    estimate = create("nes_local").estimate(objective, params, generator=generator())
    assert estimate.diagnostics == {}
    assert all(gradient.isfinite().all() for gradient in estimate.gradient.values())
