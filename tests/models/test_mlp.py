"""The teacher-student network: its forward pass by hand, and what it refuses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from gradlab import models
from gradlab.binary import surrogates
from gradlab.models import BinarizedMLP
from gradlab.models.mlp import ACTIVATIONS, WEIGHTS


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("activation", "weight", "expected"),
    [
        # W = ((2, −1.5), (0, −.5)), x = (1, 1), z = (.5, −.5); output 2h₁ + 3h₂
        ("binary", "real", 2 - 3),
        ("full", "real", 2 * 0.5),
        ("ternary", "real", 2 * 0.5),
        ("decoupled_ternary", "real", 2 * 0.5),
        ("2bit", "real", 2 * 2 / 3),  # 1.5 of three steps rounds up
        # sign(W) = ((1, −1), (1, 1)), x = (.5, 1), z = (−.5, 1.5); the output layer stays real
        ("binary", "binary", -2 + 3),
        ("full", "binary", 3 * 1.0),
    ],
)
def test_forward_pass_by_hand(activation: str, weight: str, expected: float) -> None:
    real = weight == "real"
    first = [[2.0, -1.5], [0.0, -0.5]] if real else [[0.2, -0.1], [0.0, 3.0]]
    params = {
        "layers.0.weight": torch.tensor(first),
        "layers.1.weight": torch.tensor([[2.0, 3.0]]),
    }
    inputs = torch.tensor([[1.0, 1.0]] if real else [[0.5, 1.0]])
    model = BinarizedMLP(2, 1, activation, weight)
    assert float(model.forward(params, inputs)) == pytest.approx(expected)


def test_depth_counts_hidden_layers() -> None:
    model = BinarizedMLP(3, 4)
    params = model.initial_params(generator())
    assert list(params) == list(model.layer_names)
    assert model.layer_names == tuple(f"layers.{layer}.weight" for layer in range(5))
    shapes = [tuple(w.shape) for w in params.values()]
    assert shapes == [(3, 3)] * 4 + [(1, 3)]
    assert all(w.dtype == torch.float32 for w in params.values())


@pytest.mark.parametrize("gain", [1.0, 1.7])
def test_initial_weights_are_uniform_up_to_the_gain_over_the_root_of_the_fan_in(
    gain: float,
) -> None:
    model = BinarizedMLP(100, 2, gain=gain)
    for w in model.initial_params(generator()).values():
        bound = gain / 10
        assert w.abs().max() <= bound
        fractions = torch.histc(w, bins=4, min=-bound, max=bound) / w.numel()
        assert (fractions - 0.25).abs().max() < 4.5 * (0.1875 / w.numel()) ** 0.5


@pytest.mark.parametrize(("activation", "weight"), list(itertools.product(ACTIVATIONS, WEIGHTS)))
def test_surrogate_forward_has_the_values_of_forward(activation: str, weight: str) -> None:
    model = BinarizedMLP(5, 3, activation, weight)
    params = model.initial_params(generator())
    inputs = torch.randn(50, 5, generator=generator())
    outputs = model.surrogate_forward(params, inputs, surrogates.create("hardtanh"))
    assert torch.equal(outputs, model.forward(params, inputs))


def test_effective_weights_take_any_leading_dimensions_and_leave_the_output_layer() -> None:
    model = BinarizedMLP(3, 1, weight="binary")
    params = {
        name: torch.randn(2, 4, *w.shape) for name, w in model.initial_params(generator()).items()
    }
    params["layers.0.weight"][0, 0, 0, 0] = 0
    effective = model.effective_weights(params)
    assert effective["layers.0.weight"].unique().tolist() == [-1, 1]
    assert effective["layers.0.weight"][0, 0, 0, 0] == 1
    assert torch.equal(effective["layers.1.weight"], params["layers.1.weight"])


def test_a_weight_surrogate_that_scales_is_refused_where_the_scale_shows() -> None:
    inputs = torch.randn(20, 4, generator=generator())
    aware = surrogates.create("magnitude_aware")
    signs = BinarizedMLP(4, 2, "binary", "binary")
    params = signs.initial_params(generator())
    outputs = signs.surrogate_forward(params, inputs, None, aware)
    assert torch.equal(outputs, signs.forward(params, inputs))
    with pytest.raises(ValueError, match="MagnitudeAware scales the weights, which changes a netw"):
        BinarizedMLP(4, 2, "ternary", "binary").surrogate_forward(params, inputs, None, aware)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_dim": 0}, r"^num_dim is 0: give a whole number of at least 1\.$"),
        ({"num_dim": 2.0}, "num_dim is 2.0: give a whole number"),
        ({"num_dim": True}, "num_dim is True: give a whole number"),
        ({"num_dim": 2, "depth": -1}, "depth is -1: give a whole number of at least 1."),
        ({"num_dim": 2, "activation": "tertiary"}, "activation 'tertiary': did you mean 'ternary'"),
        (
            {"num_dim": 2, "weight": "reel"},
            r"unknown weight 'reel': did you mean 'real'\? Valid: b",
        ),
        ({"num_dim": 2, "gain": 0}, "gain is 0: give a finite number above 0."),
        ({"num_dim": 2, "gain": "big"}, "gain is 'big': give a finite number above 0."),
        ({"num_dims": 2}, "unknown option of model mlp 'num_dims': did you mean 'num_dim'"),
        ({}, "model mlp needs the option 'num_dim'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        models.create("mlp", **options)


def test_names() -> None:
    assert "mlp" in models.names()
    with pytest.raises(ValueError, match="unknown model 'mpl': did you mean 'mlp'"):
        models.create("mpl")
