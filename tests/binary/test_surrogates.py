from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.binary import binarize, sign, surrogates
from gradlab.binary.surrogates import Surrogate

# name, options, kinks of the primitive: every branch of every formula appears
CASES: list[tuple[str, dict[str, Any], list[float]]] = [
    ("identity", {}, []),
    ("hardtanh", {}, [-1, 1]),
    ("hardtanh", {"threshold": 0.2}, [-0.2, 0.2]),
    ("relu", {}, [0]),
    ("steep", {}, [-0.5, 0.5]),
    ("swish_sign", {}, []),
    ("swish_sign", {"beta": 1}, []),
    ("polynomial", {}, [-1, 0, 1]),
    ("ede", {"progress": 0}, []),
    ("ede", {"progress": 0.5}, []),
    ("ede", {}, []),
    ("reste", {"o": 1}, [-1.5, 1.5]),
    ("reste", {"o": 1.7}, [-1.5, -0.1, 0.1, 1.5]),
    ("reste", {}, [-1.5, -0.1, 0.1, 1.5]),
    ("magnitude_aware", {}, [-1, 1]),
]
IDS = ["-".join([name, *map(str, options.values())]) for name, options, _ in CASES]
each_case = pytest.mark.parametrize(("name", "options", "kinks"), CASES, ids=IDS)


def derivative_at(surrogate: Surrogate, *points: float) -> list[float]:
    return surrogate.derivative(torch.tensor(points, dtype=torch.float64)).tolist()


def test_every_registered_surrogate_is_tested() -> None:
    assert sorted({name for name, _, _ in CASES}) == surrogates.names()


@each_case
@given(points=st.lists(st.floats(-3, 3), min_size=2, max_size=8))
def test_derivative_is_that_of_the_primitive(
    name: str, options: dict[str, Any], kinks: list[float], points: list[float]
) -> None:
    surrogate = surrogates.create(name, **options)
    step = 1e-6
    away = [p for p in points if all(abs(p - kink) > 10 * step for kink in kinks)]
    # one row, so that magnitude_aware has a single scale
    x = torch.tensor([away], dtype=torch.float64)
    if name == "magnitude_aware":
        if not away:
            return
        # the scale is held fixed by definition, so differentiate one hardtanh in its place
        difference = surrogate.scale(x) * (
            ((x + step).clamp(-1, 1) - (x - step).clamp(-1, 1)) / (2 * step)
        )
    else:
        difference = (surrogate.primitive(x + step) - surrogate.primitive(x - step)) / (2 * step)
    torch.testing.assert_close(surrogate.derivative(x), difference, rtol=1e-4, atol=1e-5)


@each_case
@given(points=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_derivative_is_autograd_of_the_primitive(
    name: str, options: dict[str, Any], kinks: list[float], points: list[float]
) -> None:
    surrogate = surrogates.create(name, **options)
    x = torch.tensor([[p for p in points if p not in kinks]], dtype=torch.float64)
    x.requires_grad_()
    surrogate.primitive(x).sum().backward()
    torch.testing.assert_close(x.grad, surrogate.derivative(x.detach()), rtol=1e-9, atol=1e-12)


@each_case
def test_forward_is_sign_up_to_the_scale(
    name: str, options: dict[str, Any], kinks: list[float]
) -> None:
    surrogate = surrogates.create(name, **options)
    x = torch.tensor([[-2.0, -0.0, 0.0, 4.0]])
    scale = 1.5 if name == "magnitude_aware" else 1.0
    assert surrogate.forward(x).tolist() == [[-scale, scale, scale, scale]]


@each_case
def test_nan_stays_and_infinity_does_not_become_nan(
    name: str, options: dict[str, Any], kinks: list[float]
) -> None:
    surrogate = surrogates.create(name, **options)
    x = torch.tensor([[0.5, math.nan]])
    for function in (surrogate.forward, surrogate.derivative, surrogate.primitive):
        assert function(x)[0, 1].isnan()
    if name != "magnitude_aware":
        assert not surrogate.derivative(torch.tensor([-math.inf, math.inf])).isnan().any()
        assert not surrogate.derivative(torch.tensor([-1e30, 1e30])).isnan().any()


@each_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_backward_is_exactly_the_derivative(
    name: str, options: dict[str, Any], kinks: list[float], dtype: torch.dtype
) -> None:
    surrogate = surrogates.create(name, **options)
    x = torch.linspace(-2, 2, 81, dtype=dtype).reshape(9, 9).requires_grad_()
    y = binarize(x, surrogate)
    incoming = torch.linspace(-3, 5, 81, dtype=dtype).reshape(9, 9)
    y.backward(incoming)
    assert y.dtype == dtype
    assert torch.equal(y, surrogate.forward(x))
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad, incoming * surrogate.derivative(x.detach()))


@each_case
def test_composes_with_function_transforms(
    name: str, options: dict[str, Any], kinks: list[float]
) -> None:
    surrogate = surrogates.create(name, **options)
    population = torch.linspace(-2, 2, 5 * 12, dtype=torch.float64).reshape(5, 3, 4)
    one_by_one = torch.stack([surrogate.derivative(member) for member in population])

    def total(w: Tensor) -> Tensor:
        return binarize(w, surrogate).sum()

    torch.testing.assert_close(torch.func.vmap(torch.func.grad(total))(population), one_by_one)
    values = torch.func.vmap(lambda w: binarize(w, surrogate))(population)
    assert torch.equal(values, torch.stack([surrogate.forward(member) for member in population]))

    member, tangent = population[1], population[2]
    _, slope = torch.func.jvp(total, (member,), (tangent,))
    torch.testing.assert_close(slope, (tangent * surrogate.derivative(member)).sum())


@pytest.mark.parametrize(
    ("name", "options", "point", "value"),
    [
        ("identity", {}, 7, 1),
        ("hardtanh", {}, 1, 1),
        ("hardtanh", {}, -1, 1),
        ("hardtanh", {}, 1.001, 0),
        ("hardtanh", {"threshold": 0.5}, 0.5, 1),
        ("hardtanh", {"threshold": 0.5}, -0.6, 0),
        ("relu", {}, 0, 0),
        ("relu", {}, 9, 1),
        ("relu", {}, -1e-9, 0),
        ("steep", {}, 0.5, 2),
        ("steep", {}, -0.51, 0),
        ("polynomial", {}, 0, 2),
        ("polynomial", {}, -0.25, 1.5),
        ("polynomial", {}, 1, 0),
        ("polynomial", {}, 1.5, 0),
        ("swish_sign", {}, 0, 5),
        ("swish_sign", {"beta": 2}, 0, 2),
        # 5(2 − 5 tanh 2.5)/(1 + cosh 5)
        ("swish_sign", {}, 1, 5 * (2 - 5 * math.tanh(2.5)) / (1 + math.cosh(5))),
        ("ede", {"progress": 1}, 0, 10),
        ("ede", {"progress": 1}, 0.1, 10 * (1 - math.tanh(1) ** 2)),
        ("ede", {"progress": 0}, 1, 1 - math.tanh(0.001) ** 2),
        ("ede", {"progress": 0.5}, 2, 1 - math.tanh(0.2) ** 2),  # t = .1, k = 10
        ("reste", {"o": 3}, 0, 0.1 ** (1 / 3) / 0.1),
        ("reste", {"o": 3}, 0.1, 0.1 ** (1 / 3) / 0.1),
        ("reste", {"o": 3}, -1, 1 / 3),
        ("reste", {"o": 3}, 1.5, 1.5 ** (-2 / 3) / 3),
        ("reste", {"o": 2}, 0.25, 1.0),
        ("reste", {"o": 3}, 1.51, 0),
    ],
)
def test_values_by_hand(name: str, options: dict[str, Any], point: float, value: float) -> None:
    (derivative,) = derivative_at(surrogates.create(name, **options), point)
    assert derivative == pytest.approx(value, rel=1e-12, abs=0)


@pytest.mark.parametrize("name", ["hardtanh", "steep", "polynomial", "swish_sign", "ede"])
def test_area_is_the_jump_of_sign(name: str) -> None:
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    area = torch.trapezoid(surrogates.create(name).derivative(x), x)
    assert float(area) == pytest.approx(2, abs=1e-3)


@given(x=st.floats(-1.5, 1.5))
def test_reste_starts_as_a_wide_hardtanh(x: float) -> None:
    assert derivative_at(surrogates.create("reste", o=1), x) == pytest.approx([1])


def test_ede_goes_from_identity_to_a_peak() -> None:
    x = (-2.0, -0.5, 0.0, 0.5, 2.0)
    assert derivative_at(surrogates.create("ede", progress=0), *x) == pytest.approx([1] * 5, 1e-5)
    outside = [
        derivative_at(surrogates.create("ede", progress=p), 0.5)[0] for p in (0, 0.75, 0.9, 1)
    ]
    assert outside == sorted(outside, reverse=True)
    assert outside[-1] < 2e-3


def test_magnitude_aware_scales_each_output_and_passes_no_gradient_through_the_scale() -> None:
    surrogate = surrogates.create("magnitude_aware")
    weight = torch.tensor([[[1.0, -3.0], [0.0, 4.0]], [[0.5, 0.5], [0.5, -0.5]]])
    assert surrogate.forward(weight).tolist() == [
        [[2, -2], [2, 2]],
        [[0.5, 0.5], [0.5, -0.5]],
    ]
    weight.requires_grad_()
    binarize(weight, surrogate).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[[2, 0], [2, 0]], [[0.5, 0.5], [0.5, 0.5]]]


def test_magnitude_aware_refuses_vectors() -> None:
    with pytest.raises(ValueError, match="at least two dimensions"):
        binarize(torch.ones(3), surrogates.create("magnitude_aware"))


NOT_POSITIVE = [math.nan, 0, -1, math.inf, True, "1"]


@pytest.mark.parametrize("value", NOT_POSITIVE)
@pytest.mark.parametrize(("name", "option"), [("hardtanh", "threshold"), ("swish_sign", "beta")])
def test_refuses_what_is_not_positive(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a finite number above 0, not"):
        surrogates.create(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("ede", "progress", -0.1),
        ("ede", "progress", 1.1),
        ("ede", "progress", math.nan),
        ("reste", "o", 0.9),
        ("reste", "o", 3.1),
        ("reste", "o", math.nan),
        ("reste", "o", None),
    ],
)
def test_refuses_what_is_out_of_range(name: str, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a number from"):
        surrogates.create(name, **{option: value})


def test_refuses_unknown_names_and_options_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match="did you mean 'swish_sign'"):
        surrogates.create("swishsign")
    with pytest.raises(ValueError, match="did you mean 'threshold'"):
        surrogates.create("hardtanh", treshold=1)


def test_a_surrogate_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogates.REGISTRY, "_factories", dict(surrogates.REGISTRY._factories))

    @surrogates.REGISTRY.register("triangle")
    @dataclass(frozen=True)
    class Triangle:
        width: float = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return sign(x)

        def derivative(self, x: Tensor) -> Tensor:
            return surrogates.where(x.abs() <= self.width, 1 - x.abs() / self.width, x)

    assert "triangle" in surrogates.names()
    assert surrogates.defaults("triangle") == {"width": 1.0}
    x = torch.tensor([0.5, 3.0, math.nan], requires_grad=True)
    binarize(x, surrogates.create("triangle", width=2)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist()[:2] == [0.75, 0]
    assert x.grad[2].isnan()
