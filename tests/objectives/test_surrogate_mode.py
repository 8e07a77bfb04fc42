"""Every way to write a sign gets the surrogate, and nothing else does."""

from __future__ import annotations

import pytest
import torch

import gradlab.binary
from gradlab.binary import activations, binarize, sign, surrogates
from gradlab.objectives.surrogate_mode import surrogate_derivatives


class OwnSign(torch.autograd.Function):
    """A user's own straight-through sign, with a backward pass that no surrogate has."""

    @staticmethod
    def forward(ctx, x):
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return 17 * gradient


class Doubled(torch.autograd.Function):
    """No sign: its own backward pass stays."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


SIGNS = {
    "torch.sign": torch.sign,
    "torch.sgn": torch.sgn,
    "method": lambda x: x.sign(),
    "keyword": lambda x: torch.sign(input=x),
    "in place": lambda x: (1 * x).sign_(),
    "sgn in place": lambda x: (1 * x).sgn_(),
    "gradlab sign": sign,
    "attribute": lambda x: gradlab.binary.sign(x),
    "binarize": lambda x: binarize(x, surrogates.create("steep")),
    "activation": activations.create("binary").forward,
    "applied activation": activations.create("binary").apply,
    "own function": OwnSign.apply,
    "own function, looked up late": lambda x: OwnSign.apply(x),
}


@pytest.mark.parametrize("name", surrogates.names())
@pytest.mark.parametrize("kind", SIGNS)
def test_every_sign_gets_the_surrogate(kind: str, name: str) -> None:
    x = torch.tensor([-1.5, -0.6, -0.05, 0.04, 0.5, 1.4], requires_grad=True)
    surrogate = surrogates.create(name)
    if name == "magnitude_aware":
        with surrogate_derivatives(surrogate), pytest.raises(ValueError, match="is for weights"):
            SIGNS[kind](x)
        return
    with surrogate_derivatives(surrogate):
        y = SIGNS[kind](x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, torch.sign(x))
    torch.testing.assert_close(gradient, surrogate.derivative(x.detach()))


class Step(torch.autograd.Function):
    """Where everything is positive it is 1 as sign is."""

    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return 5 * gradient


def test_what_is_no_sign_keeps_its_own_derivative() -> None:
    x = torch.tensor([0.2, 0.7, 0.4], requires_grad=True)
    ternary = activations.create("ternary")
    cases = {
        "function": (Doubled.apply, 3.0),
        "step": (Step.apply, 5.0),
        "where": (lambda x: torch.where(x.isnan(), x, 2 * x), 2.0),
        "staircase": (ternary.apply, 1.0),
        "tanh-like": (lambda x: x * x.detach().sign(), 1.0),
    }
    for function, slope in cases.values():
        with surrogate_derivatives(surrogates.create("hardtanh", threshold=0.1)):
            y = function(x)
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [slope] * 3
    # and afterwards everything is as it was
    assert torch.autograd.grad(OwnSign.apply(x).sum(), x)[0].tolist() == [17.0] * 3
    assert torch.autograd.grad(torch.sign(x).sum(), x)[0].tolist() == [0.0] * 3


def test_a_draw_that_is_the_sign_itself_ends() -> None:
    class Certain:
        """A stochastic sign at temperature zero."""

        def draw(self, x: torch.Tensor) -> Certain:
            return self

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x >= 0, 1.0, -1.0)

        def derivative(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x, 0.25)

    x = torch.tensor([-2.0, 3.0], requires_grad=True)
    with surrogate_derivatives(Certain()):
        for way in (torch.sign, sign):
            y = way(x)
            assert y.tolist() == [-1.0, 1.0]
            assert torch.autograd.grad(y.sum(), x)[0].tolist() == [0.25, 0.25]
