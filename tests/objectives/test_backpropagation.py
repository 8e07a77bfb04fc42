"""Blocks of examples change the memory of backpropagation, and nothing else."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradlab.binary import surrogates
from gradlab.binary.stochastic_rounding import StochasticSign
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.population import Params
from gradlab.objectives.backpropagation import (
    affordable_examples,
    blocked_gradient,
    draws,
    module_gradient,
)

SIZE = 12


@settings(max_examples=20, deadline=None)
@given(block=st.integers(1, SIZE + 3))
def test_any_block_gives_the_gradient_of_the_whole_sum(block: int) -> None:
    x = torch.arange(1.0, SIZE + 1, dtype=torch.float64)
    params = {"a": torch.tensor(1.5, dtype=torch.float64), "unused": torch.ones(2)}
    lengths = []

    def loss(leaves: Params, start: int, stop: int) -> Tensor:
        lengths.append(stop - start)
        return (leaves["a"].square() * x[start:stop]).sum()

    with torch.no_grad():  # callers need not think of it
        found = blocked_gradient(params, SIZE, block, loss)
    assert sum(lengths) == SIZE
    assert max(lengths) == min(block, SIZE)
    assert found["a"] == 2 * 1.5 * x.sum()
    assert torch.equal(found["unused"], torch.zeros(2))
    assert not params["a"].requires_grad


def test_a_sum_without_gradient_gives_zero() -> None:
    found = blocked_gradient({"a": torch.ones(2)}, 3, 2, lambda leaves, start, stop: torch.ones(()))
    assert torch.equal(found["a"], torch.zeros(2))


def evaluator(memory_bytes: int = 2**28) -> ModuleEvaluator:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))
    return ModuleEvaluator(
        model, torch.randn(SIZE, 5), torch.arange(SIZE) % 3, memory_bytes=memory_bytes
    )


def test_the_parameters_that_are_held_get_no_gradient() -> None:
    whole = evaluator()
    params = whole.program.params
    chosen = {"2.weight": params["2.weight"]}
    rule = surrogates.create("hardtanh")
    part = module_gradient(whole, chosen, rule, None, block=5, held=params)
    everything = module_gradient(whole, params, rule, None, block=SIZE)
    assert list(part) == ["2.weight"]
    torch.testing.assert_close(part["2.weight"], everything["2.weight"])
    assert everything["0.weight"].abs().max() > 0


def test_more_memory_affords_more_examples() -> None:
    params = evaluator().program.params
    few, many = (affordable_examples(evaluator(bound), params) for bound in (2**12, 2**16))
    assert 1 <= few < many
    assert affordable_examples(evaluator(1), params) == 1


def test_a_surrogate_that_draws_is_told_from_one_that_does_not() -> None:
    fixed, drawn = surrogates.create("hardtanh"), StochasticSign(torch.Generator())
    assert not draws(fixed, None)
    assert draws(fixed, drawn)
