"""Sentences about noise that is stuck, each with the state that calls for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradlab.variational import names, stochastic_layers, to_variational
from gradlab.variational.complaints import complaints


def noisy(value: float, **options: Any) -> nn.Module:
    """A network whose noise has log α ``value`` everywhere in its second layer."""
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    model = to_variational(network, **{"method": "sparse", **options})
    layer: Any = stochastic_layers(model)["2"]
    parameter = layer.unit_log_alpha if "side" in options else layer.weight_log_alpha
    with torch.no_grad():
        parameter.fill_(value)
    return model


DIRECT: dict[str, Any] = {"parameterization": "log_alpha"}


@pytest.mark.parametrize(("value", "options", "words"), [
    (float("nan"), DIRECT, "the noise of layer 2 is no number"),
    (-8.0, DIRECT, "nearly all noise of layer 2 stands at its lower bound"),
    (4.0, DIRECT, "no weight of layer 2 is kept"),
    (4.0, {"method": "hierarchical_a", "side": "input"}, "no weight of layer 2 is kept"),
    (0.0, {**DIRECT, "method": "variational_b"}, "nearly all noise of layer 2 stands at its upper"),
    (1.0, {**DIRECT, "method": "variational_b", "noise": "weights", "mode": "faithful"},
     "the noise of layer 2 has crossed the clamp"),
])  # fmt: skip
def test_what_is_stuck_is_said(value: float, options: dict[str, Any], words: str) -> None:
    (sentence,) = complaints(noisy(value, **options))
    assert sentence.startswith(words)
    assert "\n" not in sentence


@pytest.mark.parametrize("options", [
    DIRECT,
    {"method": "variational_b", **DIRECT, "noise": "weights", "mode": "faithful"},
    {"method": "sparse_a", "side": "output"},
])  # fmt: skip
def test_noise_that_moves_is_not_complained_about(options: dict[str, Any]) -> None:
    assert complaints(noisy(-2.0, **options)) == []


@pytest.mark.parametrize("method", names())
def test_a_fresh_network_is_not_complained_about(method: str) -> None:
    assert complaints(to_variational(nn.Linear(3, 2), method)) == []


def test_closed_gates_and_broken_rates_are_said() -> None:
    closed: Any = to_variational(nn.Linear(3, 2), "l0")
    broken: Any = to_variational(nn.Linear(3, 2), "concrete")
    with torch.no_grad():
        closed.log_odds.fill_(-4.0)
        broken.logit_p.fill_(torch.nan)
    assert complaints(closed) == [
        "no weight of the model is kept: pruned, its output is a constant."
    ]
    assert complaints(broken)[0].startswith("the noise of the model is no number")
