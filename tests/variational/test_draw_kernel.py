"""Draws and their derivatives in one pass, against the formula in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.variational import local
from gradlab.variational.draws import dense, in_order_of_memory
from gradlab.variational.local import draw, local_noise

LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t,
    lambda t: t.contiguous(memory_format=torch.channels_last),
    lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),  # dense in neither format
    lambda t: t.repeat_interleave(2, -1)[..., ::2],  # gaps
]


def parts(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 4, 5, 6)
    mean, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    return mean.to(dtype), torch.rand(shape, generator=generator).to(dtype), noise.to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_the_formula_in_every_layout(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    mean, variance, noise = (layout(t) for t in parts(dtype=dtype))
    wide = variance.double()
    wanted = mean.double() + wide.sqrt() * noise.double()
    slope = noise.double() / (2 * wide.sqrt())
    out, found = draw(mean, variance, noise)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.double(), slope, rtol=1e-6, atol=1e-6)
    again = parts(dtype=dtype)
    assert torch.equal(mean, again[0])
    assert torch.equal(variance, again[1])


def test_compiled_and_plain_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given_ = parts()
    compiled = draw(*(t.clone() for t in given_))
    monkeypatch.setattr(local, "_compiled", lambda *_: False)
    for one, other in zip(compiled, draw(*given_), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=9))
def test_no_variance_is_too_strange(values: list[float]) -> None:
    """None and less count as the smallest, without a derivative; NaN comes through."""
    variance = torch.tensor(values)
    out, slope = draw(torch.zeros(len(values)), variance, torch.ones(len(values)))
    tiny = torch.finfo(torch.float32).tiny
    still = variance < tiny
    assert torch.equal(out.isnan(), variance.isnan())
    assert (out[still] == tiny**0.5).all()
    assert (slope[still] == 0).all()
    rest = ~still
    torch.testing.assert_close(out[rest], variance[rest].sqrt(), equal_nan=True)
    torch.testing.assert_close(slope[rest], 0.5 / variance[rest].sqrt(), equal_nan=True)


def test_order_in_memory() -> None:
    x = torch.arange(24.0).reshape(1, 2, 3, 4)
    rolled = x.to(memory_format=torch.channels_last)
    assert torch.equal(in_order_of_memory(rolled), x.permute(0, 2, 3, 1).flatten())
    assert in_order_of_memory(x).data_ptr() == x.data_ptr()
    assert [dense(layout(x)) for layout in LAYOUTS] == [True, True, True, False]
    assert not dense(x.expand(2, 2, 3, 4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_images(layout: Callable[[Tensor], Tensor]) -> None:
    """Against torch's own backpropagation through the formula, with the noise that was drawn."""
    mean, variance, _ = (layout(t).requires_grad_() for t in parts())
    out = local_noise(mean, variance)
    noise = ((out - mean) / variance.sqrt()).detach()
    assert float(noise.std()) == pytest.approx(1.0, abs=0.15)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((mean + variance.sqrt() * noise), (mean, variance), pull)
    found = torch.autograd.grad(out, (mean, variance), pull)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_second_derivatives_of_images() -> None:
    def fixed(mean: Tensor, variance: Tensor) -> Tensor:
        torch.manual_seed(3)
        return local_noise(mean, variance)

    mean, variance, _ = parts(dtype=torch.float64)
    small = [t[:1, :2, :2, :2].clone().requires_grad_() for t in (mean, variance + 0.1)]
    assert torch.autograd.gradcheck(fixed, small)
    assert torch.autograd.gradgradcheck(fixed, small)


def test_draws_of_images_are_normal_in_both_memory_formats() -> None:
    torch.manual_seed(0)
    for layout in LAYOUTS[:2]:
        mean = layout(torch.zeros(20, 8, 16, 16))
        out = local_noise(mean, torch.full_like(mean, 4.0))
        assert out.stride() == mean.stride()
        assert abs(float(out.mean())) < 5 * 2 / out.numel() ** 0.5
        assert float(out.std()) == pytest.approx(2.0, rel=0.02)
        neighbours = F.pad(out, (0, -1)) * F.pad(out, (-1, 0))
        assert abs(float(neighbours.mean())) < 5 * 4 / out.numel() ** 0.5
