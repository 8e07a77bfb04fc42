from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradlab.search.state import SearchState, begin, consider
from tests.search.problems import seeded


def begun() -> SearchState:
    # names out of alphabetical order, since a stored dict of tensors may come back sorted
    params = {"second": torch.arange(4.0).reshape(2, 2), "first": torch.tensor([7.0])}
    return begin(params, seeded(3), torch.full((5,), 0.5))


def test_the_mean_is_flat_float64_and_comes_back_as_parameters() -> None:
    state = begun()
    assert state.mean.dtype == torch.float64
    assert state.mean.tolist() == [0, 1, 2, 3, 7]
    params = state.params()
    assert list(params) == ["second", "first"]
    assert params["second"].dtype == torch.float32
    assert torch.equal(params["second"], torch.arange(4.0).reshape(2, 2))


def test_a_state_survives_safetensors_and_json(tmp_path: Path) -> None:
    state = replace(begun(), generation=4, drawn=40, evaluations=44, failed=1,
                    extra={"exp_avg/first": torch.tensor([0.1])})  # fmt: skip
    save_file(state.tensors(), tmp_path / "state.safetensors")
    text = json.dumps(state.numbers())
    again = SearchState.restore(load_file(tmp_path / "state.safetensors"), json.loads(text))
    assert again.numbers() == state.numbers()
    assert list(again.best) == ["second", "first"]
    for name, tensor in state.tensors().items():
        assert torch.equal(again.tensors()[name], tensor)
        assert again.tensors()[name].dtype == tensor.dtype


def test_an_incomplete_state_is_refused_by_name() -> None:
    tensors, numbers = begun().tensors(), begun().numbers()
    del tensors["spread"], numbers["key"]
    with pytest.raises(ValueError, match=r"missing: spread, key\): give what tensors\(\)"):
        SearchState.restore(tensors, numbers)


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.tensor([1.0, torch.nan]), "parameter w has NaN"),
     (torch.tensor([1, 2]), "parameter w is of type torch.int64")],
    ids=["nan", "integers"],
)  # fmt: skip
def test_parameters_that_cannot_be_searched_are_refused(value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        begin({"w": value}, seeded(0), torch.ones(2))


def test_the_best_changes_only_for_a_lower_loss() -> None:
    state = begun()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.best.items()}
    lower = consider(state, zeros, torch.tensor(2.0))
    assert float(lower.best_loss) == 2
    assert torch.equal(lower.best["first"], torch.zeros(1))
    ones = {name: torch.ones_like(tensor) for name, tensor in state.best.items()}
    for loss in (2.0, 3.0, torch.nan):
        same = consider(lower, ones, torch.tensor(loss))
        assert torch.equal(same.best["first"], torch.zeros(1))
        assert (float(same.best_loss), same.evaluations) == (2, 2)
