"""Convolutions of a population against a loop over its members, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.evaluation.module import convolution
from gradlab.evaluation.module.convolution import (
    PopulationOperations,
    members_per_call,
    population_conv2d,
)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).double()


@given(
    members=st.integers(1, 5),
    batch=st.integers(1, 3),
    channels=st.integers(1, 3),
    rows=st.integers(1, 3),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    shared=st.booleans(),
    call=st.sampled_from([1, 600, 2**19]),
)
def test_members_are_convolved_with_their_own_filters(
    members: int,
    batch: int,
    channels: int,
    rows: int,
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    shared: bool,
    call: int,
) -> None:
    inputs = drawn(members, batch, channels * groups, 7, 6)
    weights = drawn(members, rows * groups, channels, *kernel)
    options = (stride, padding, dilation, groups)
    given_inputs = inputs[0] if shared else inputs
    before, convolution._CALL_FLOATS = convolution._CALL_FLOATS, call
    try:
        got = population_conv2d(given_inputs, weights, *options)
    finally:
        convolution._CALL_FLOATS = before
    each = [inputs[0] if shared else inputs[member] for member in range(members)]
    expected = [F.conv2d(x, w, None, *options) for x, w in zip(each, weights, strict=True)]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_calls_stay_small_on_the_cpu_and_whole_on_a_gpu() -> None:
    assert members_per_call(1000, (3, 3)) == 524
    assert members_per_call(2**22, (3, 3)) == 1
    assert members_per_call(0, (3, 3)) >= 1
    assert members_per_call(1000, (1, 1)) == 1
    assert members_per_call(2**22, (3, 3), "cuda") is None


@pytest.mark.parametrize("vary", ["inputs", "weight", "bias", "all", "weight and bias"])
@pytest.mark.parametrize("as_keywords", [False, True])
def test_vmap_meets_the_population_rule(vary: str, as_keywords: bool) -> None:
    tensors = {"input": drawn(4, 2, 3, 6, 6), "weight": drawn(4, 5, 3, 3, 3), "bias": drawn(4, 5)}
    varying = {
        "inputs": {"input"},
        "weight": {"weight"},
        "bias": {"bias"},
        "all": set(tensors),
        "weight and bias": {"weight", "bias"},
    }[vary]
    fixed = {name: tensor[0] for name, tensor in tensors.items() if name not in varying}

    def one(member: dict[str, Tensor]) -> Tensor:
        found = {**fixed, **member}
        if as_keywords:
            return F.conv2d(**found, stride=2, padding=1)
        return F.conv2d(found["input"], found["weight"], found["bias"], 2, 1)

    members = {name: tensors[name] for name in varying}
    with PopulationOperations():
        got = torch.func.vmap(one)(members)
    expected = [one({name: w[index] for name, w in members.items()}) for index in range(4)]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-12, atol=1e-12)


def test_padding_in_words_goes_by_the_rule_of_torch() -> None:
    inputs, weights = drawn(2, 3, 6, 6), drawn(4, 5, 3, 3, 3)
    with PopulationOperations():
        got = torch.func.vmap(lambda w: F.conv2d(inputs, w, padding="same"))(weights)
    expected = torch.stack([F.conv2d(inputs, w, padding="same") for w in weights])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_batch_statistics_leave_running_ones_alone() -> None:
    inputs, mean, variance = drawn(4, 5, 3), torch.zeros(3).double(), torch.ones(3).double()
    with PopulationOperations():
        got = torch.func.vmap(lambda x: F.batch_norm(x, mean, variance, training=True))(inputs)
        still = F.batch_norm(inputs[0], mean, variance, training=False)
    expected = torch.stack([F.batch_norm(x, None, None, training=True) for x in inputs])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(still, inputs[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(mean, torch.zeros(3).double())
    assert torch.equal(variance, torch.ones(3).double())


@pytest.mark.parametrize(
    ("inputs", "weights", "options", "message"),
    [
        ((2, 3, 6), (4, 5, 3, 3, 3), {}, r"give \(B, C, H, W\)"),
        ((2, 3, 6, 6), (5, 3, 3, 3), {}, r"give \(B, C, H, W\)"),
        ((3, 2, 3, 6, 6), (4, 5, 3, 3, 3), {}, "inputs of 3 members, weights of 4"),
        ((4, 2, 4, 6, 6), (4, 4, 3, 3, 3), {"groups": 2}, "do not make 2 groups"),
        ((4, 2, 2, 6, 6), (4, 5, 1, 3, 3), {"groups": 2}, "do not make 2 groups"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    inputs: tuple[int, ...], weights: tuple[int, ...], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        population_conv2d(torch.zeros(inputs), torch.zeros(weights), **options)
