"""Sampled weights and their divergence from one loop, against torch's operations in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.variational import gaussian_kernel as kernel
from gradlab.variational.bayes import BayesByBackprop
from gradlab.variational.kl import gaussian
from gradlab.variational.weights import Sparse

WAYS = ["sample", "deviate", "variance"]


def parameters(number: int, spread: float = 3.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(number, generator=generator) / 10
    rho = -5 + spread * torch.randn(number, generator=generator)
    noise = torch.randn(number, generator=generator)
    return [mean.requires_grad_(), rho.requires_grad_(), noise]


def call(way: str, mean: Tensor, rho: Tensor, noise: Tensor, prior: float) -> tuple[Tensor, Tensor]:
    if way == "variance":
        return kernel.variance(mean, rho, prior)
    made: Any = getattr(kernel, way)
    return made(mean, rho, noise, prior)


def exact(
    way: str, mean: Tensor, rho: Tensor, noise: Tensor, prior: float
) -> tuple[Tensor, Tensor]:
    sigma = F.softplus(rho, threshold=100)
    total = gaussian(mean, sigma, 0.0, prior).sum()
    if way == "variance":
        return sigma.square(), total
    return sigma * noise + (mean if way == "sample" else 0), total


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


@pytest.mark.parametrize("used", ["out", "total", "both"])
@pytest.mark.parametrize("number", [1, 95, 97, 5_003])
@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients(way: str, number: int, used: str) -> None:
    tensors = parameters(number)
    found = []
    for function, given_tensors in ((call, tensors), (exact, doubles(*tensors))):
        out, total = function(way, *given_tensors, 0.3)
        weights = torch.linspace(-1, 2, number, dtype=out.dtype)
        loss = (out * weights).sum() if used != "total" else 0.0
        loss = loss + 0.7 * total if used != "out" else loss
        grads = torch.autograd.grad(loss, given_tensors[:2], allow_unused=True)
        grads = [torch.zeros(number) if g is None else g for g in grads]
        found.append([t.detach().double() for t in (out, total, *grads)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)


@given(
    mu=st.floats(-1e3, 1e3, width=32),
    rho=st.floats(-80, 1e4, width=32),
    prior=st.sampled_from([0.01, 1.0, 10.0]),
)
def test_one_weight_of_any_size(mu: float, rho: float, prior: float) -> None:
    tensors = [torch.tensor([mu], requires_grad=True), torch.tensor([rho], requires_grad=True)]
    found = []
    for function, pair in ((call, tensors), (exact, doubles(*tensors))):
        out, total = function("variance", *pair, pair[0].detach(), prior)
        found.append([out.detach(), total.detach(), *torch.autograd.grad(total, pair)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_nan_comes_through(which: int) -> None:
    tensors = [t.detach().clone() for t in parameters(200)]
    tensors[which][150] = torch.nan
    out, total = kernel.sample(*tensors, 0.1)
    assert total.isnan()
    assert out.isnan().sum() == 1


def test_a_graph_can_be_walked_twice_and_gradients_add_up() -> None:
    mean, rho, noise = parameters(300)
    out, total = kernel.sample(mean, rho, noise, 0.1)
    first = torch.autograd.grad(out.sum() + total, (mean, rho), retain_graph=True)
    kept = [t.clone() for t in first]
    (3 * (out.sum() + total)).backward()
    for one, before, parameter in zip(first, kept, (mean, rho), strict=True):
        assert torch.equal(one, before)
        torch.testing.assert_close(parameter.grad, 3 * one)


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives(way: str) -> None:
    tensors = parameters(30, spread=1.0)
    found = []
    for function in (call, exact):
        out, total = function(way, *tensors, 0.5)
        slopes = torch.autograd.grad(out.square().sum() + total, tensors[:2], create_graph=True)
        penalty = slopes[0].square().sum() + slopes[1].square().sum()
        found.append(torch.autograd.grad(penalty, tensors[:2]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"bias_noise": True}])
@pytest.mark.parametrize("estimator", ["weights", "flipout", "local"])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
def test_layers_say_the_same_with_and_without(
    layer: str, estimator: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if options and estimator == "local":
        options = {}  # refused, and tested elsewhere
    torch.manual_seed(0)
    made: Any = getattr(BayesByBackprop(estimator=estimator, **options), layer)
    one = made(7, 5) if layer == "linear" else made(3, 5, 3)
    x = torch.randn(6, 7) if layer == "linear" else torch.randn(6, 3, 8, 8)
    found = []
    for served in (True, False):
        with monkeypatch.context() as patch:
            if not served:
                patch.setattr(kernel, "serves", lambda *_: False)
            torch.manual_seed(1)
            one.zero_grad()
            out = one(x)
            (out.square().sum() + one.kl()).backward()
            found.append([out.detach(), *(p.grad.clone() for p in one.parameters())])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["bayes", "sparse"])
def test_a_divergence_is_handed_over_once_and_never_stale(method: str) -> None:
    layer = (BayesByBackprop() if method == "bayes" else Sparse()).linear(20, 10)
    x = torch.randn(3, 20)

    def fresh() -> float:
        return copy.deepcopy(layer).kl().item()

    layer(x)
    assert layer.kl().item() == pytest.approx(fresh())
    assert layer._divergence._held is None
    layer(x)
    with torch.no_grad():
        layer.weight.mul_(3.0)
    assert layer.kl().item() == pytest.approx(fresh())
    layer(x)
    other = copy.deepcopy(layer)  # a graph cannot be copied, and is left behind
    assert other._divergence._held is None
    with torch.no_grad():
        assert not layer.kl().requires_grad
    layer(x)
    layer.project()
    assert layer.kl().item() == pytest.approx(fresh())


@pytest.mark.parametrize("first", ["loss", "divergence", "both"])
@pytest.mark.parametrize("method", [BayesByBackprop(), BayesByBackprop("local"), Sparse()])
def test_loss_and_divergence_can_be_walked_apart(method: Any, first: str) -> None:
    torch.manual_seed(0)
    layer = method.linear(20, 10)
    x = torch.randn(3, 20)
    found = []
    for kernels in (True, False):
        torch.manual_seed(1)
        layer.zero_grad()
        loss = layer(x).square().sum()
        divergence = layer.kl() if kernels else copy.deepcopy(layer).kl()
        if kernels:
            if first == "both":
                (loss + divergence).backward()
            else:
                for each in (loss, divergence)[:: 1 if first == "loss" else -1]:
                    each.backward()
        else:
            twin = copy.deepcopy(layer)
            loss.backward()
            twin.kl().backward()
            for parameter, other in zip(layer.parameters(), twin.parameters(), strict=True):
                if other.grad is not None:
                    parameter.grad = parameter.grad + other.grad
        found.append([p.grad.clone() for p in layer.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("method", [BayesByBackprop(), Sparse()])
def test_a_step_before_backward_is_refused(method: Any) -> None:
    layer = method.linear(20, 10)
    layer(torch.randn(3, 20))
    divergence = layer.kl()
    with torch.no_grad():
        layer.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place between the forward and the backward"):
        divergence.backward()
