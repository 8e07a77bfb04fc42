"""Normalized directions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab.studies.steps import direction

GRADIENT = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([12.0])}


def test_by_hand() -> None:
    assert direction(GRADIENT, "tensor")["a"].tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert direction(GRADIENT, "tensor")["b"].tolist() == [pytest.approx(1)]
    # the norm of all of it is 13
    assert direction(GRADIENT, "global")["a"].tolist() == [
        [pytest.approx(3 / 13), pytest.approx(4 / 13)]
    ]
    assert direction(GRADIENT, "global")["b"].tolist() == [pytest.approx(12 / 13)]
    assert direction(GRADIENT, "none")["a"].tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("normalize", ["tensor", "global", "none"])
def test_the_gradient_stays_as_it_was(normalize: str) -> None:
    step = direction(GRADIENT, normalize)
    step["a"] = torch.zeros(1, 2)
    assert GRADIENT["a"].tolist() == [[3.0, 4.0]]


@pytest.mark.parametrize("normalize", ["tensor", "global", "none"])
def test_a_zero_gradient_is_no_step(normalize: str) -> None:
    step = direction({"a": torch.zeros(3), "b": torch.zeros(2)}, normalize)
    assert all(float(tensor.abs().sum()) == 0 for tensor in step.values())


@given(st.floats(1e-3, 1e3), st.sampled_from(["tensor", "global"]))
def test_the_length_of_a_step_does_not_depend_on_that_of_the_gradient(
    scale: float, normalize: str
) -> None:
    scaled = direction({name: scale * g for name, g in GRADIENT.items()}, normalize)
    for name, tensor in direction(GRADIENT, normalize).items():
        assert torch.allclose(scaled[name], tensor, rtol=1e-4)


def test_dtypes_are_kept() -> None:
    wide = {name: g.double() for name, g in GRADIENT.items()}
    assert all(g.dtype == torch.float64 for g in direction(wide, "global").values())
    assert all(g.dtype == torch.float32 for g in direction(GRADIENT, "tensor").values())
