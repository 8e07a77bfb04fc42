"""The compiled divergence and projection, against torch's operations in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.variational import divergence_kernel as kernel
from gradlab.variational.kl import ard, log_uniform
from gradlab.variational.weights import Hierarchical, Sparse, VariationalB

FITS = [log_uniform, ard]


def parameters(number: int, spread: float = 4.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(number, generator=generator) / 30
    log_sigma2 = -10 + spread * torch.randn(number, generator=generator)
    return weight.requires_grad_(), log_sigma2.requires_grad_()


def exact(weight: Tensor, log_sigma2: Tensor, fit: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    w, s = (t.detach().double().requires_grad_() for t in (weight, log_sigma2))
    total = fit(s - torch.log(w.square() + 1e-8)).sum()
    return total.detach(), torch.autograd.grad(total, (w, s))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("number", [1, 95, 96, 97, 5_003])
def test_value_and_derivatives(number: int, fit: Any) -> None:
    weight, log_sigma2 = parameters(number)
    total = kernel.divergence(weight, log_sigma2, fit)
    expected, slopes = exact(weight, log_sigma2, fit)
    torch.testing.assert_close(total.detach().double(), expected, rtol=1e-6, atol=0)
    found = torch.autograd.grad(total, (weight, log_sigma2))
    for one, other in zip(found, slopes, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-12)


@given(
    theta=st.floats(-1e4, 1e4, width=32),
    log_sigma2=st.floats(-60, 40, width=32),
    fit=st.sampled_from(FITS),
)
def test_one_weight_of_any_size(theta: float, log_sigma2: float, fit: Any) -> None:
    weight = torch.tensor([theta], requires_grad=True)
    variance = torch.tensor([log_sigma2], requires_grad=True)
    total = kernel.divergence(weight, variance, fit)
    expected, slopes = exact(weight, variance, fit)
    found = torch.autograd.grad(total, (weight, variance))
    # one part in 2**24 of ln α, which is up to 80, moves a power of α by 1e-5 of itself; beyond
    # |ln α| = 20 the divergence is a straight line or nothing
    torch.testing.assert_close(total.detach().double(), expected, rtol=2e-5, atol=1e-7)
    for one, other in zip(found, slopes, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-7 * max(
            1.0, abs(theta) / (theta * theta + 1e-8)))  # fmt: skip


@pytest.mark.parametrize("which", [0, 1])
def test_nan_comes_through(which: int) -> None:
    given_tensors = [t.detach().clone() for t in parameters(200)]
    given_tensors[which][150] = torch.nan
    assert kernel.divergence(*given_tensors, ard).isnan()
    kernel.bound(*given_tensors, -8.0, 8.0)
    assert given_tensors[which].isnan().sum() == 1


def test_a_graph_can_be_walked_twice_and_gradients_add_up() -> None:
    weight, log_sigma2 = parameters(300)
    total = kernel.divergence(weight, log_sigma2, log_uniform)
    first = torch.autograd.grad(total, (weight, log_sigma2), retain_graph=True)
    kept = [t.clone() for t in first]
    (3 * total).backward()
    for one, before, parameter in zip(first, kept, (weight, log_sigma2), strict=True):
        assert torch.equal(one, before)
        torch.testing.assert_close(parameter.grad, 3 * one)


def test_second_derivatives() -> None:
    weight, log_sigma2 = parameters(30)
    second = []
    for total in (
        kernel.divergence(weight, log_sigma2, log_uniform),
        log_uniform(log_sigma2 - torch.log(weight.square() + 1e-8)).sum(),
    ):
        slopes = torch.autograd.grad(total, (weight, log_sigma2), create_graph=True)
        penalty = slopes[0].square().sum() + slopes[1].square().sum()
        second.append(torch.autograd.grad(penalty, (weight, log_sigma2)))
    for one, other in zip(*second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bounds", [(-8.0, 8.0), (-8.0, 0.0)])
def test_projection_is_that_of_torch(bounds: tuple[float, float]) -> None:
    weight, log_sigma2 = (t.detach() for t in parameters(1_000, spread=10.0))
    centre = torch.log(weight.square() + 1e-8)
    expected = log_sigma2.clamp(centre + bounds[0], centre + bounds[1])
    found = log_sigma2.clone()
    kernel.bound(weight, found, *bounds)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    inside = expected == log_sigma2
    assert 0 < int(inside.sum()) < 1_000
    assert (found == log_sigma2)[inside].float().mean() > 0.99


@pytest.mark.parametrize("method", [Sparse(), Hierarchical(), VariationalB()])
def test_layers_say_the_same_with_and_without(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = method.linear(40, 30)
    found = {}
    for name, served in itertools.product(["kl", "project"], [True, False]):
        with monkeypatch.context() as patch:
            if not served:
                patch.setattr(kernel, "serves", lambda *_: False)
            layer.zero_grad()
            if name == "kl":
                layer.kl().backward()
                found[name, served] = [layer.kl().detach(), layer.weight.grad]
            else:
                twin = method.linear(40, 30)
                twin.load_state_dict(layer.state_dict())
                with torch.no_grad():
                    list(twin.parameters())[-1].add_(5.0)
                twin.project()
                found[name, served] = [t.detach() for t in twin.state_dict().values()]
    for name in ("kl", "project"):
        for one, other in zip(found[name, True], found[name, False], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_it_serves() -> None:
    weight, log_sigma2 = parameters(4)
    assert kernel.serves(weight, log_sigma2)
    assert not kernel.serves(weight.double(), log_sigma2.double())
    assert not kernel.serves(weight.reshape(2, 2).T, log_sigma2.reshape(2, 2))
    assert not kernel.serves(weight.to("meta"), log_sigma2)
