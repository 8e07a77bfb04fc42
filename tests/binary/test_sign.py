from __future__ import annotations

import math

import pytest
import torch

from gradlab.binary import sign

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FLOATS)
def test_two_values_and_nan(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal
    x = torch.tensor([-math.inf, -3, -tiny, -0.0, 0.0, tiny, 3, math.inf, math.nan], dtype=dtype)
    y = sign(x)
    assert y.dtype == dtype
    assert y[:8].tolist() == [-1, -1, -1, 1, 1, 1, 1, 1]
    assert y[8].isnan()


def test_keeps_shape_also_when_empty_or_scalar() -> None:
    for shape in [(), (0,), (2, 0, 3), (2, 3)]:
        assert sign(torch.zeros(shape)).shape == shape


def test_negative_nan_is_nan() -> None:
    assert sign(-torch.tensor(math.nan)).isnan()


def test_does_not_change_its_input() -> None:
    x = torch.tensor([-0.0, -2.0])
    sign(x)
    assert torch.signbit(x).tolist() == [True, True]
    assert x[1] == -2


def test_gradient_is_zero() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    sign(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0]


def test_under_vmap() -> None:
    x = torch.tensor([[-1.0, 0.0], [-0.0, math.nan]])
    torch.testing.assert_close(torch.func.vmap(sign)(x), sign(x), equal_nan=True)


def test_refuses_integers() -> None:
    with pytest.raises(ValueError, match=r"floating-point tensor, not torch.int64"):
        sign(torch.tensor([1, 2]))
