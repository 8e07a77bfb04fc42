"""The loss of a batch taken apart, and its gradients against brute force."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import surrogates
from gradlab.diagnosis.checks import checked_objective
from gradlab.diagnosis.objective import per_example_loss
from tests.diagnosis.networks import MLP, example

LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), torch.arange(8) % 3),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), torch.arange(8) % 3),
    "function": (lambda o, t: F.mse_loss(o, t), torch.linspace(-1, 1, 24).reshape(8, 3)),
    "hinge": (nn.MultiMarginLoss(), torch.arange(8) % 3),
    "own": (lambda o, t: (o - t).abs().amax(1).mean(), torch.linspace(-1, 1, 24).reshape(8, 3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_or_sum_over_examples_is_taken_apart(name: str) -> None:
    loss, targets = LOSSES[name]
    outputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    rows = per_example_loss(loss, outputs, targets)
    assert rows is not None
    assert rows(outputs, targets).shape == (8,)
    each = torch.stack([loss(outputs[i : i + 1], targets[i : i + 1]) for i in range(8)])
    scale = 8 if name == "summed" else 1
    assert torch.allclose(rows(outputs, targets), scale * each)
    assert torch.allclose(rows(outputs, targets).mean(), loss(outputs, targets))


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])), lambda o, t: o.std() + 0 * t.sum()],
    ids=["weighted", "spread"],
)
def test_a_loss_that_couples_examples_is_seen_whole(
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    model, (inputs, targets) = example("mlp")
    objective = checked_objective(model, loss, (inputs, targets), None)
    assert objective.evaluator.couples
    with torch.no_grad():
        assert float(objective.loss(objective.params)) == pytest.approx(
            float(loss(model(inputs), targets)), rel=1e-5
        )
    # and its differences and gradients are those of the whole batch
    moved = copy.deepcopy(model)
    assert isinstance(moved, MLP)
    losses = []
    for step in (0.2, -0.4):
        with torch.no_grad():
            moved.second.weight[1, 2] += step
            losses.append(float(loss(moved(inputs), targets)))
    place = torch.tensor([1 * 6 + 2])
    found = objective.some_differences("second.weight", 0.2, place)
    assert float(found) == pytest.approx(losses[0] - losses[1], abs=1e-6)
    model.zero_grad()
    loss(model(inputs), targets).backward()
    own = objective.own_gradient(objective.params)
    assert isinstance(model, MLP)
    assert model.head.weight.grad is not None
    assert torch.allclose(own["head.weight"], model.head.weight.grad, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "conv", "xnor"])
def test_differences_agree_with_brute_force_in_float64(kind: str) -> None:
    model, (inputs, targets) = example(kind)
    model, inputs = model.double(), inputs.double()
    loss = nn.CrossEntropyLoss()
    objective = checked_objective(model, loss, (inputs, targets), None)
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    changed = 0
    for name in objective.names:
        weight = weights[name]
        places = torch.randperm(weight.numel(), generator=generator)[:6]
        found = objective.some_differences(name, 0.3, places)
        for place, difference in zip(places.tolist(), found.tolist(), strict=True):
            with torch.no_grad():
                before = float(weight.view(-1)[place])
                pair = []
                for step in (0.3, -0.3):
                    weight.view(-1)[place] = before + step
                    pair.append(float(loss(model(inputs), targets)))
                weight.view(-1)[place] = before
            assert difference == pytest.approx(pair[0] - pair[1], abs=1e-12)
            changed += difference != 0
    assert changed >= 9


def written(rule: object) -> Callable[[Tensor], Tensor]:
    """A sign with a derivative of its own, by autograd."""

    class Written(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.sign(x)

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
            slope: Tensor = rule.derivative(x)  # type: ignore[attr-defined]
            return grad * slope

    return Written.apply  # type: ignore[no-any-return]


def test_the_own_backward_and_surrogates_are_those_of_the_written_network() -> None:
    """A network that is written with one surrogate, and asked for another."""
    _, (inputs, targets) = example("mlp")
    plain, _ = example("mlp")
    assert isinstance(plain, MLP)
    steep = surrogates.create("steep")
    written_model = copy.deepcopy(plain)
    written_model.sign = written(steep)
    loss = nn.CrossEntropyLoss()
    objective = checked_objective(written_model, loss, (inputs, targets), None)
    loss(written_model(inputs), targets).backward()
    own = objective.own_gradient(objective.params)
    for name in objective.names:
        grad = dict(written_model.named_parameters())[name].grad
        assert grad is not None
        assert float(grad.abs().max()) > 0
        assert torch.allclose(own[name], grad, atol=1e-6)
    # asked for steep, the network of plain signs has the same gradient
    other = checked_objective(plain, loss, (inputs, targets), None)
    found = other.surrogate_gradient(other.params, steep)
    assert all(torch.allclose(found[name], own[name], atol=1e-6) for name in objective.names)
    nothing = other.own_gradient(other.params)
    assert not nothing["first.weight"].any()


def test_where_weights_alone_are_binary_the_surrogate_is_theirs() -> None:
    class BinaryWeights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(5, 4, bias=False), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(F.linear(x, torch.sign(self.first.weight))))
            return out

    _, batch = example("mlp")
    objective = checked_objective(BinaryWeights(), nn.CrossEntropyLoss(), batch, None)
    assert (objective.signs.activations, objective.signs.weights) == (0, 1)
    gradients = {
        name: objective.surrogate_gradient(objective.params, surrogates.create(name))
        for name in ("identity", "polynomial")
    }
    slope = surrogates.create("polynomial").derivative(objective.whole["first.weight"])
    assert torch.allclose(
        gradients["polynomial"]["first.weight"], slope * gradients["identity"]["first.weight"]
    )
