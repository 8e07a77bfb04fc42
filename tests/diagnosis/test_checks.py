"""Whatever cannot be diagnosed gets one sentence, before any work."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlab
from gradlab.diagnosis.checks import chosen_layers, undisturbed
from tests.diagnosis.networks import MLP, example, settled

LOSS = nn.CrossEntropyLoss()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.sign(self.layer(x)) + torch.randn(3)
        return out


def training() -> nn.Module:
    return MLP()


def dropping() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    return model.train()


def without_signs() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def diverged() -> nn.Module:
    model, _ = example("mlp")
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("nan")
    return model


Change = Callable[[dict[str, Any]], dict[str, Any]]
BATCH = example("mlp")[1]
X, T = BATCH
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no module": ({"model": lambda x: x}, "model is function: give a torch.nn.Module"),
    "loss no function": ({"loss_fn": 3}, "loss_fn is 3: give a function of outputs and targets"),
    "batch no pair": ({"batch": X}, r"batch is no pair of tensors: give \(inputs, targets\)"),
    "batch of lists": ({"batch": (X, T.tolist())}, "batch is no pair of tensors"),
    "empty batch": ({"batch": (X[:0], T[:0])}, "there are no examples: give at least one"),
    "unequal": ({"batch": (X, T[:7])}, "inputs have 96 examples and targets 7: give equally many"),
    "inputs of another shape": ({"batch": (X[:, :4], T)}, r"fails on inputs of shape \(96, 4\)"),
    "targets out of range": ({"batch": (X, T + 7)}, r"loss_fn fails on outputs \(96, 3\)"),
    "loss not a scalar": (
        {"loss_fn": nn.CrossEntropyLoss(reduction="none")},
        r"loss_fn returns shape \(96,\) instead of one number: take the mean",
    ),
    "loss no tensor": (
        {"loss_fn": lambda o, t: 1.0}, "loss_fn returns float instead of one number"),
    "NaN loss": (
        {"loss_fn": lambda o, t: o.mean() * float("nan")}, "the loss of the batch is nan: give"),
    "NaN weight": ({"model": diverged}, "first.weight has NaN or infinite entries"),
    "BatchNorm training": (
        {"model": training}, r"the BatchNorm1d 'norm' normalizes by the batch.* model.eval\(\)"),
    "dropout": ({"model": dropping}, r"the Dropout '1' is active.* call model.eval\(\) first"),
    "random forward": (
        {"model": Noisy}, r"the module draws random numbers in its forward pass \(randn\)"),
    "two outputs": ({"model": Pair}, "the model returns tuple for 96 examples: return one tensor"),
    "no sign": ({"model": without_signs}, "the model has no binary operation that depends on"),
    "unknown layer": (
        {"layers": ["secnd"]}, "unknown layer 'secnd': did you mean 'second.weight'. Valid: first"),
    "layer without weights": ({"layers": ["norm"]}, "the layer 'norm' has no weight of two or"),
    "layers a string": ({"layers": "second"}, "layers is 'second': give a list of names"),
    "no layers": ({"layers": []}, r"layers is \[\]: give a list of names, or leave it out"),
    "unknown estimator": (
        {"estimators": ["hardtan"]}, "unknown estimator 'hardtan': did you mean 'hardtanh'"),
    "unknown option": (
        {"estimators": [{"name": "nes", "populaton": 4}]}, "did you mean 'population'"),
    "no estimators": ({"estimators": []}, r"estimators is \[\]: give a list of names"),
    "no estimator": ({"estimators": [3]}, "3 is no estimator: give a name"),
    "nameless": ({"estimators": [{"population": 4}]}, "has no name: give name and options"),
    "epsilon": ({"epsilon": -1.0}, "epsilon is -1.0: give a finite number above 0"),
    "sigma": ({"sigma": 0.0}, "sigma is 0.0: give a finite number above 0"),
    "coordinates": ({"coordinates": 0}, "coordinates is 0"),
    "lr": ({"lr": [0.0]}, "lr is 0.0: give a finite number above 0"),
    "no lr": ({"lr": []}, r"lr is \[\]: give a list of step lengths"),
    "budget": ({"max_seconds": 0}, "max_seconds is 0: give a finite number above 0"),
    "seed": ({"seed": -1}, "seed is -1: give a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case: str) -> None:
    changes, words = BAD[case]
    arguments: dict[str, Any] = {"model": example("mlp")[0], "loss_fn": LOSS, "batch": BATCH}
    arguments |= changes
    if case not in ("no module",) and not isinstance(arguments["model"], nn.Module):
        arguments["model"] = arguments["model"]()
    with pytest.raises(ValueError, match=words) as error:
        gradlab.diagnose(**arguments)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).endswith(".")


def test_layers_are_parameters_or_modules_in_the_models_order() -> None:
    model = settled(MLP(), X)
    assert chosen_layers(model, None) == ("first.weight", "second.weight", "head.weight")
    assert chosen_layers(model, ["head", "norm.bias"]) == ("norm.bias", "head.weight")
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert chosen_layers(nested, ["0"]) == ("0.0.weight", "0.1.weight")


def test_a_model_of_vectors_alone_asks_for_layers() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sign(x + self.scale)

    with pytest.raises(ValueError, match="no weight of two or more dimensions: name its param"):
        chosen_layers(Scale(), None)
    assert chosen_layers(Scale(), ["scale"]) == ("scale",)


def test_random_numbers_go_on_as_they_were() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.rand()), random.random()

    def seed() -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    seed()
    expected = draw()
    seed()
    with undisturbed():
        draw()
    assert draw() == expected
