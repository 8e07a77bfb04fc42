"""Straight-through estimation against backpropagation written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from gradlab.estimators import STE, create
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent

Array = np.ndarray
Derivative = Callable[[Array], Array]

# the formulas of the papers, once more
DERIVATIVES: dict[str, Derivative] = {
    "identity": lambda x: np.ones_like(x),
    "hardtanh": lambda x: (np.abs(x) <= 1).astype(float),
    "relu": lambda x: (x > 0).astype(float),
    "steep": lambda x: 2.0 * (np.abs(x) <= 0.5),
    "swish_sign": lambda x: 5 * (2 - 5 * x * np.tanh(2.5 * x)) / (1 + np.cosh(5 * x)),
    "polynomial": lambda x: (2 - 2 * np.abs(x)) * (np.abs(x) <= 1),
}


def sign(x: Array) -> Array:
    return np.where(x >= 0, 1.0, -1.0)


def backpropagate(
    objective: TeacherStudent, params: Params, surrogate: Derivative, of_weight: Derivative | None
) -> dict[str, Array]:
    """Layer by layer in float64, without autograd."""
    latent = [w.double().numpy() for w in params.values()]
    weights = [sign(w) if of_weight else w for w in latent[:-1]] + latent[-1:]
    hidden, z = [objective.inputs.double().numpy()], []
    for weight in weights[:-1]:
        z.append(hidden[-1] @ weight.T)
        hidden.append(sign(z[-1]))
    error = hidden[-1] @ weights[-1].T - objective.targets.double().numpy()
    upstream = 2 * error / len(error)
    gradients = [upstream.T @ hidden[-1]]
    for layer in reversed(range(len(z))):
        upstream = upstream @ weights[layer + 1] * surrogate(z[layer])
        gradient = upstream.T @ hidden[layer]
        gradients.append(gradient * of_weight(latent[layer]) if of_weight else gradient)
    return dict(zip(params, reversed(gradients), strict=True))


def estimate(objective: TeacherStudent, params: Params, **options: Any) -> Params:
    return (
        create("ste", **options).estimate(objective, params, generator=torch.Generator()).gradient
    )


def assert_close(got: Params, expected: dict[str, Array]) -> None:
    for name, tensor in got.items():
        scale = np.abs(expected[name]).max()
        assert scale > 0  # behind binary weights a narrow surrogate sees no whole number but 0
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-4, atol=2e-6 * scale)


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("depth", [1, 3])
def test_every_surrogate_is_backpropagated_as_by_hand(name: str, depth: int) -> None:
    objective = TeacherStudent(5, 1500, seed=2, depth=depth)
    params = objective.initial_params(0)
    got = estimate(objective, params, surrogate=name)
    assert_close(got, backpropagate(objective, params, DERIVATIVES[name], None))


@pytest.mark.parametrize("name", [None, "polynomial", "identity"])
def test_binary_weights_have_a_derivative_of_their_own(name: str | None) -> None:
    objective = TeacherStudent(5, 1500, seed=2, depth=2, weight="binary")
    params = {n: 3 * w for n, w in objective.initial_params(0).items()}  # some beyond ±1
    got = estimate(objective, params, surrogate="swish_sign", weight_surrogate=name)
    of_weight = DERIVATIVES[name or "hardtanh"]
    assert_close(got, backpropagate(objective, params, DERIVATIVES["swish_sign"], of_weight))


def test_options_of_a_surrogate_reach_it() -> None:
    objective = TeacherStudent(5, 1500, seed=2)
    params = objective.initial_params(0)
    got = estimate(objective, params, surrogate={"name": "hardtanh", "threshold": 0.2})
    narrow = backpropagate(objective, params, lambda x: (np.abs(x) <= 0.2).astype(float), None)
    assert_close(got, narrow)


def test_full_precision_is_the_true_gradient_of_a_clipped_network() -> None:
    objective = TeacherStudent(5, 1500, seed=2, depth=3, activation="full")
    params = objective.initial_params(0)
    leaves = [(2 * w).double().requires_grad_() for w in params.values()]
    hidden = objective.inputs.double()
    for weight in leaves[:-1]:
        hidden = torch.clamp(hidden @ weight.T, 0, 1)
    loss = (hidden @ leaves[-1].T - objective.targets).square().mean()
    exact = torch.autograd.grad(loss, leaves)
    got = estimate(objective, {name: 2 * w for name, w in params.items()})
    assert_close(got, {n: g.numpy() for n, g in zip(params, exact, strict=True)})


@pytest.mark.parametrize("activation", ["ternary", "2bit"])
def test_staircases_are_backpropagated_as_their_clip(activation: str) -> None:
    objective = TeacherStudent(4, 500, seed=2, depth=2, activation=activation)
    params = objective.initial_params(0)
    weights = [w.double().numpy() for w in params.values()]
    steps = {"ternary": 2, "2bit": 3}[activation]
    hidden, z = [objective.inputs.double().numpy()], []
    for weight in weights[:-1]:
        z.append(hidden[-1] @ weight.T)
        hidden.append(np.floor(np.clip(z[-1], 0, 1) * steps + 0.5) / steps)
    upstream = 2 * (hidden[-1] @ weights[-1].T - objective.targets.numpy()) / 500
    gradients = [upstream.T @ hidden[-1]]
    for layer in (1, 0):
        upstream = upstream @ weights[layer + 1] * ((z[layer] >= 0) & (z[layer] <= 1))
        gradients.append(upstream.T @ hidden[layer])
    assert_close(estimate(objective, params), dict(zip(params, reversed(gradients), strict=True)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"surrogate": "hardtan"}, "unknown surrogate 'hardtan': did you mean 'hardtanh'"),
        ({"surrogate": 3}, "surrogate is 3: give a name or a table such as"),
        ({"surrogate": {"threshold": 1}}, "give a name or a table such as"),
        ({"surrogate": {"name": "hardtanh", "treshold": 1}}, "did you mean 'threshold'"),
        ({"surrogate": {"name": "hardtanh", "threshold": 0}}, "threshold must be a finite number"),
        ({"surrogate": {"name": "swish_sign", "beta": math.nan}}, "beta must be a finite number"),
        ({"weight_surrogate": "steepp"}, "did you mean 'steep'"),
        ({"surogate": "steep"}, "did you mean 'surrogate'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create("ste", **options)


def test_surrogates_of_sign_are_refused_where_there_is_no_sign() -> None:
    objective = TeacherStudent(2, 10, seed=0, activation="ternary")
    with pytest.raises(ValueError, match="use the surrogate hardtanh with threshold 1"):
        estimate(objective, objective.initial_params(0), surrogate="steep")
    with pytest.raises(ValueError, match="MagnitudeAware is for weights, not for activations"):
        estimate(
            TeacherStudent(2, 10, seed=0), objective.initial_params(0), surrogate="magnitude_aware"
        )


@pytest.mark.parametrize(
    ("estimator", "label"),
    [
        (STE(), "STE hardtanh"),
        (STE("matched"), "matched STE"),
        (STE({"name": "matched", "sigma": 0.2}), "matched STE(sigma=0.2)"),
        (STE({"name": "hardtanh", "threshold": 0.5}), "STE hardtanh(threshold=0.5)"),
        (STE("steep", "identity"), "STE steep / weights identity"),
    ],
)
def test_label(estimator: STE, label: str) -> None:
    assert estimator.label() == label
