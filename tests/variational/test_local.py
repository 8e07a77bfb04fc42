"""Drawn linear maps against the same formula in torch's operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.variational import local
from gradlab.variational.local import local_linear, local_noise


def given(
    shape: tuple[int, ...] = (6, 5), bias: bool = True, dtype: torch.dtype = torch.float64
) -> list[Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=dtype).requires_grad_()

    x, weight = normal(*shape), normal(4, shape[-1])
    variance = torch.rand(4, shape[-1], generator=generator, dtype=dtype).requires_grad_()
    return [x, weight, normal(4) if bias else None, variance]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, variance: Tensor) -> Tensor:
    return local_noise(F.linear(x, weight, bias), F.linear(x * x, variance))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (5,), (2, 3, 5), (0, 5)])
def test_outputs_and_gradients_are_those_of_torch(shape: tuple[int, ...], bias: bool) -> None:
    arguments = given(shape, bias)
    wanted = [t for t in arguments if t is not None]
    found = []
    for draw in (local_linear, plain):
        torch.manual_seed(1)
        out = draw(*arguments)
        weights = torch.arange(1.0, 1.0 + out.numel(), dtype=out.dtype).reshape(out.shape)
        found.append([out, *torch.autograd.grad((out * weights).sum(), wanted)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", range(4))
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    arguments = given()
    arguments[frozen].requires_grad_(False)
    torch.manual_seed(1)
    local_linear(*arguments).sum().backward()
    torch.manual_seed(1)
    others = given()
    plain(*others).sum().backward()
    for number, (one, other) in enumerate(zip(arguments, others, strict=True)):
        if number == frozen:
            assert one.grad is None
        else:
            torch.testing.assert_close(one.grad, other.grad)


def test_second_derivatives() -> None:
    def fixed(*tensors: Tensor) -> Tensor:
        torch.manual_seed(2)
        return local_linear(*tensors)

    assert torch.autograd.gradgradcheck(fixed, given((2, 3)))


def test_variance_of_zero_is_harmless() -> None:
    x, weight, bias, _ = given()
    variance = torch.zeros(4, 5, dtype=torch.float64, requires_grad=True)
    out = local_linear(x, weight, bias, variance)
    torch.testing.assert_close(out, F.linear(x, weight, bias))
    out.sum().backward()
    assert torch.equal(variance.grad, torch.zeros_like(variance))
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_moments() -> None:
    torch.manual_seed(0)
    x, weight = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.25]])
    variance = torch.tensor([[0.3, 0.1]])
    out = local_linear(x.expand(200_000, 2), weight, None, variance).double()
    assert abs(float(out.mean())) < 5 * (0.7 / 200_000) ** 0.5
    assert float(out.var()) == pytest.approx(0.3 + 4 * 0.1, rel=0.02)


def test_autocast_vmap_and_mixed_types_go_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the written-out gradient was used")

    monkeypatch.setattr(local._LocalLinear, "apply", refuse)
    x, weight, bias, variance = given(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert local_linear(x, weight, bias, variance).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda w: local_linear(x, w, bias, variance), randomness="different")(
        torch.stack([weight, weight])
    )
    assert mapped.shape == (2, 6, 4)
    assert not torch.equal(mapped[0], mapped[1])
    with pytest.raises(AssertionError, match="written-out"):
        local_linear(x, weight, bias, variance)
