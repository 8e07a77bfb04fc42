"""Optimizers by name: all of them step, and go on exactly from what a checkpoint holds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gradlab.binary.layers import BinaryLinear
from gradlab.training import files, optimizers
from gradlab.variational.binary_weights import BayesBiNNLinear

ONLY_MATRICES = {"muon"}
BINARY_WEIGHTS = {"bayes_binn", "bop"}


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
        torch.manual_seed(step)  # of layers that draw
        model(torch.randn(5, 1, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()


def binary_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    layer = BinaryLinear(36, 4) if name == "bop" else BayesBiNNLinear(36, 4)
    layers = [nn.Flatten(), layer, nn.BatchNorm1d(4), nn.Linear(4, 3)]
    return nn.Sequential(*layers)


def fresh(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    if name in BINARY_WEIGHTS:
        model = binary_network(name)
        options = {"momentum": 0.5} if name == "bayes_binn" else {"gamma": 0.1}
        return model, optimizers.create(
            name, model.parameters(), lr=0.01, model=model, train_size=100, **options
        )
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


@pytest.mark.parametrize("name", sorted(BINARY_WEIGHTS))
def test_binary_weights_have_their_rule_and_the_rest_has_adam(name: str) -> None:
    model, optimizer = fresh(name)
    twin = copy.deepcopy(model)
    others = [p for key, p in twin.named_parameters() if key != "1.weight"]
    adam = optimizers.create("adam", others, lr=0.01, fused=False)
    steps(model, optimizer, 0, 1)
    steps(twin, adam, 0, 1)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, twin.state_dict()[key]) is (key != "1.weight"), key
    assert optimizer.param_groups[0]["params"] == [model[1].weight]


def test_without_a_model_all_parameters_are_binary_weights() -> None:
    optimizer = optimizers.create("bop", [nn.Parameter(torch.ones(2))], 0.1, gamma=0.2)
    assert [group["binary"] for group in optimizer.param_groups] == [True]


@pytest.mark.parametrize(
    ("name", "words"),
    [("bop", "bop flips binary weights, and the model has none: choose a model"),
     ("bayes_binn", "bayes_binn needs weights of the method bayes_binn, and the model has none")],
)  # fmt: skip
def test_a_model_without_binary_weights_is_refused(name: str, words: str) -> None:
    model = network(bias=True)
    with pytest.raises(ValueError, match=words):
        optimizers.create(name, model.parameters(), 0.1, model=model, train_size=10)


def test_bayes_binn_needs_the_number_of_examples() -> None:
    with pytest.raises(ValueError, match="needs the number of training examples"):
        optimizers.create("bayes_binn", [nn.Parameter(torch.ones(2))], 0.1)
    assert "train_size" not in optimizers.defaults("bayes_binn")


def test_lists_become_tuples() -> None:
    optimizer = optimizers.create("adam", [nn.Parameter(torch.zeros(2))], 0.1, betas=[0.5, 0.9])
    assert optimizer.defaults["betas"] == (0.5, 0.9)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("bop", {"gama": 0.1}, "unknown option of optimizer bop 'gama': did you mean 'gamma'"),
     ("bop", {"gamma": 2.0}, "gamma is 2.0: give a share.*see gradlab.variational.optimizers.Bop"),
     ("bop", {"adam_betas": 3}, "see gradlab.variational.optimizers.Bop"),
     ("bayes_binn", {"train_size": 0}, "train_size is 0: give a finite number above 0")],
)  # fmt: skip
def test_wrong_options_of_binary_optimizers(
    name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        optimizers.create(name, [nn.Parameter(torch.ones(2))], 0.1, **{"train_size": 10, **options})


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
