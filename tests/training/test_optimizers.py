"""Optimizers by name: all of them step, and go on exactly from what a checkpoint holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradlab.training import files, optimizers

ONLY_MATRICES = {"muon"}


def network(bias: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, bias=bias), nn.Flatten(), nn.Linear(32, 3, bias=bias)]
    if not bias:
        layers = [nn.Flatten(), nn.Linear(36, 4, bias=False), nn.Linear(4, 3, bias=False)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 1, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()


def fresh(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network(bias=name not in ONLY_MATRICES)
    return model, optimizers.create(name, model.parameters(), lr=0.01)


@pytest.mark.parametrize("name", optimizers.names())
def test_it_goes_on_exactly_from_what_was_stored(name: str) -> None:
    whole, optimizer = fresh(name)
    start = copy.deepcopy(whole.state_dict())
    steps(whole, optimizer, 0, 4)
    assert any(not torch.equal(start[key], tensor) for key, tensor in whole.state_dict().items())

    first, optimizer = fresh(name)
    steps(first, optimizer, 0, 2)
    tensors, others = optimizers.state_tensors(optimizer)
    stored = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    facts = files.finite(others)

    second, optimizer = fresh(name)
    second.load_state_dict(first.state_dict())
    optimizers.restore(optimizer, stored, facts)
    steps(second, optimizer, 2, 4)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


def test_what_needs_closures_or_sparse_gradients_is_not_offered() -> None:
    assert not {"lbfgs", "sparseadam", "optimizer"} & set(optimizers.names())
    with pytest.raises(ValueError, match="unknown optimizer 'lbfgs'"):
        optimizers.create("lbfgs", [nn.Parameter(torch.zeros(2))], lr=0.1)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_is_the_default_and_the_same_but_for_rounding(name: str) -> None:
    results = []
    for options in ({}, {"fused": False}, {"foreach": True}):
        model = network(bias=True)
        optimizer = optimizers.create(name, model.parameters(), lr=0.01, **options)
        assert bool(optimizer.defaults["fused"]) is (options == {})
        steps(model, optimizer, 0, 3)
        results.append(model.state_dict())
    for other in results[1:]:
        for key, tensor in results[0].items():
            torch.testing.assert_close(tensor, other[key], rtol=1e-5, atol=1e-6)


def test_lists_become_tuples() -> None:
    optimizer = optimizers.create("adam", [nn.Parameter(torch.zeros(2))], 0.1, betas=[0.5, 0.9])
    assert optimizer.defaults["betas"] == (0.5, 0.9)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"beta": [0.5]}, "unknown option of optimizer adam 'beta': did you mean 'betas'"),
     ({"betas": [0.5, 2.0]}, "[Ii]nvalid beta.*see torch.optim.Adam"),
     ({"betas": 3}, "see torch.optim.Adam"),
     ({"maximize": True}, "unknown option of optimizer adam 'maximize'")],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        optimizers.create("adam", [nn.Parameter(torch.zeros(2))], 0.1, **options)
