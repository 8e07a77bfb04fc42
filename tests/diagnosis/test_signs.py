"""Signs as people write them: unchanged values, and the surrogate's derivative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gradlab.binary import binarize, sign, surrogates
from gradlab.diagnosis.signs import SignCount, count_signs, written_signs
from gradlab.evaluation.module.program import Program, cross_entropy
from gradlab.objectives.surrogate_mode import surrogate_derivatives
from tests.diagnosis.networks import example

X = torch.tensor([-2.0, -0.5, 0.25, 0.9], dtype=torch.float64)


class OwnSign(torch.autograd.Function):
    """A sign whose derivative is 5."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 5 * grad


def clipped(x: Tensor) -> Tensor:
    inside = x.clamp(-1, 1)
    return inside + (torch.sign(inside) - inside).detach()


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        rest = torch.sign(x) - x
    return x + rest


SIGNS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.sign": torch.sign,
    "method": lambda x: x.sign(),
    "gradlab": sign,
    "binarize": lambda x: binarize(x, surrogates.create("identity")),
    "function": OwnSign.apply,
    "where": lambda x: torch.where(x > 0, 1.0, -1.0),
    "where of tensors": lambda x: torch.where(x >= 0, torch.ones_like(x), -torch.ones_like(x)),
    "where below": lambda x: torch.where(x < 0, -1.0, 1.0),
    "where of integers": lambda x: torch.where(x >= 0, 1, -1).double(),
    "float": lambda x: (x > 0).double() * 2 - 1,
    "bool arithmetic": lambda x: 2.0 * (x >= 0) - 1,
    "integer arithmetic": lambda x: (2 * (x >= 0) - 1).to(x.dtype),
    "one minus": lambda x: (1 - 2 * (x < 0)).double(),
    "two steps": lambda x: (x > 0).double() - (x < 0).double(),
    "int": lambda x: (2 * (x > 0).int() - 1).double(),
    "heaviside": lambda x: 2 * torch.heaviside(x, torch.ones((), dtype=x.dtype)) - 1,
    "detached": lambda x: x + (torch.sign(x) - x).detach(),
    "detached first": lambda x: (x.sign() - x).detach() + x,
    "detached, minus": lambda x: x - (x - x.sign()).detach(),
    "detached parts": lambda x: x.detach().sign() - x.detach() + x,
    "detached where": lambda x: (torch.where(x >= 0, 1.0, -1.0) - x).detach() + x,
    "detached clip": clipped,
    "detached clip twice": lambda x: (x.sign() - x.clamp(-1, 1)).detach() + x.clamp(-1, 1),
    "data": lambda x: x + (torch.sign(x) - x).data,
    "no_grad": without_grad,
    "detached tanh": lambda x: torch.tanh(x) + (torch.sign(x) - torch.tanh(x)).detach(),
}


def differentiated(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    x = X.clone().requires_grad_()
    with surrogate_derivatives(surrogates.create("polynomial")), written_signs():
        y = function(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("form", SIGNS)
def test_every_form_of_a_sign_has_the_surrogates_derivative(form: str) -> None:
    value, gradient = differentiated(SIGNS[form])
    assert torch.allclose(value.double(), torch.sign(X))
    assert torch.allclose(gradient, surrogates.create("polynomial").derivative(X))


def test_a_threshold_moves_the_derivative_and_a_scale_stretches_it() -> None:
    polynomial = surrogates.create("polynomial")
    value, gradient = differentiated(lambda x: torch.where(x > 0.3, 2.0, -1.0).to(x.dtype))
    assert torch.equal(value, torch.where(X > 0.3, 2.0, -1.0).double())
    assert torch.allclose(gradient, 1.5 * polynomial.derivative(X - 0.3))

    def scaled(x: Tensor) -> Tensor:
        return (x.abs().mean().detach() * x.sign() - x).detach() + x

    value, gradient = differentiated(scaled)
    assert torch.allclose(value, X.abs().mean() * X.sign())
    assert torch.allclose(gradient, X.abs().mean() * polynomial.derivative(X))


@pytest.mark.parametrize(
    "rectifier",
    [
        lambda x: x * (x > 0).double(),
        lambda x: (x > 0).double() * x,
        lambda x: torch.where(x > 0, x, 0.0),
        torch.relu,
    ],
    ids=["times", "times, other way", "where", "relu"],
)
def test_a_rectifier_keeps_its_own_derivative(rectifier: Callable[[Tensor], Tensor]) -> None:
    value, gradient = differentiated(rectifier)
    assert torch.equal(value.abs(), torch.relu(X))
    assert torch.equal(gradient, (X > 0).double())


def test_masks_of_masks_are_left_alone() -> None:
    def masked(x: Tensor) -> Tensor:
        inside = torch.where(x > 0, x < 0.5, x > -1)
        return torch.where(inside, 2 * x, x)

    value, gradient = differentiated(masked)
    assert torch.equal(value, masked(X))
    assert torch.equal(gradient, torch.tensor([1.0, 2.0, 2.0, 1.0]).double())


@pytest.mark.parametrize(
    ("kind", "count"),
    [("mlp", SignCount(2, 0)), ("conv", SignCount(2, 0)), ("xnor", SignCount(2, 1))],
)
def test_signs_are_counted_of_activations_and_of_weights(kind: str, count: SignCount) -> None:
    model, (inputs, _) = example(kind)
    program = Program(model, cross_entropy)
    assert count_signs(program, inputs[:2], program.params) == count


def test_signs_of_inputs_alone_do_not_count() -> None:
    class SignedInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.sign(x))
            return out

    program = Program(SignedInputs(), cross_entropy)
    assert count_signs(program, torch.randn(2, 4), program.params) == SignCount()
