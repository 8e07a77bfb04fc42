from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import Tensor

from gradlab.objectives import TestFunction
from gradlab.search import SNES, XNES, minimize
from tests.search.problems import ellipsoid, seeded, started
from tests.search.test_snes import utilities


def test_one_step_equals_the_formula() -> None:
    method = XNES(sigma=0.3, learning_rate=0.8, learning_rate_sigma=0.5, learning_rate_shape=0.4)
    objective = ellipsoid(3, 9, rotated=True)
    state = started(method, [1.0, -2.0, 0.5])
    for _ in range(4):
        root = state.spread.reshape(3, 3).numpy()
        members = method.ask(state)["x"]
        noise = np.linalg.solve(root, (members - state.mean).numpy().T).T
        losses = objective.losses({"x": members})
        u = utilities(losses.numpy())
        along = sum(w * z for w, z in zip(u, noise, strict=True))
        across = sum(w * (np.outer(z, z) - np.eye(3)) for w, z in zip(u, noise, strict=True))
        size = np.trace(across) / 3
        mean = state.mean.numpy() + 0.8 * root @ along
        spread = root @ expm(0.2 * (across - size * np.eye(3))) * math.exp(0.25 * size)
        state = method.tell(state, losses)
        np.testing.assert_allclose(state.mean, mean, rtol=1e-11)
        np.testing.assert_allclose(state.spread.reshape(3, 3), spread, rtol=1e-11, atol=1e-13)
    determinant = float(np.linalg.det(spread))
    assert method.sigma_of(state) == pytest.approx(determinant ** (1 / 3))
    np.testing.assert_allclose(method.covariance(state.spread), spread @ spread.T)


def test_the_expected_step_on_a_quadratic_is_the_closed_form() -> None:
    objective = ellipsoid(2, 10, rotated=True)
    size, rounds, rate = 8000, 25, 0.1
    method = XNES(population=size, fitness="centered", learning_rate_sigma=rate,
                  learning_rate_shape=rate)  # fmt: skip
    root = torch.tensor([[0.4, 0.0], [0.2, 0.3]], dtype=torch.float64)
    mean = torch.tensor([0.3, -0.6], dtype=torch.float64)
    hessian = objective.hessian
    # with equal rates the step is A expm(rate G_M / 2), so that its logarithm is -rate AᵀHA / 2
    expected = torch.cat((-root @ root.mT @ hessian @ mean,
                          (-0.5 * rate * root.mT @ hessian @ root).flatten()))  # fmt: skip
    steps = []
    for seed in range(rounds):
        state = started(method, mean.tolist(), seed)
        state = replace(state, spread=root.flatten())
        after = method.tell(state, objective.losses(method.ask(state)))
        factor = torch.linalg.solve(root, after.spread.reshape(2, 2))
        values, vectors = torch.linalg.eigh((factor + factor.mT) / 2)
        assert torch.allclose(factor, factor.mT)
        logarithm = vectors @ torch.diag(values.log()) @ vectors.mT
        steps.append(torch.cat((after.mean - mean, logarithm.flatten())))
    sample = torch.stack(steps)
    scores = (sample.mean(0) - expected) / (sample.std(0) / math.sqrt(rounds))
    # Student's t of 24 degrees: beyond 5 once in 23,000, for each of six numbers
    assert scores.abs().max() < 5
    assert (sample.std(0) / math.sqrt(rounds) < 0.15 * expected.abs()).all()


def alignment(method: XNES, generations: int) -> Tensor:
    """|cos| between the axes of the covariance and of the ellipsoid, longest to shortest."""
    objective = ellipsoid(4, 1e3, rotated=True)
    state = started(method, [1.0] * 4)
    for _ in range(generations):
        state = method.tell(state, objective.losses(method.ask(state)))
    covariance = method.covariance(state.spread)
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    return (axes * torch.linalg.eigh(objective.hessian).eigenvectors).sum(0).abs()


def test_the_covariance_turns_into_a_rotated_ellipsoid(monkeypatch: pytest.MonkeyPatch) -> None:
    method = XNES(sigma=1.0, population=40)
    assert alignment(method, 80).min() > 0.98
    # an elementwise exponential, as in a published library, never does
    monkeypatch.setattr(torch.linalg, "matrix_exp", torch.exp)
    for generations in (5, 20, 80):
        assert alignment(method, generations).min() < 0.8


def test_a_slanting_valley_is_for_xnes_and_not_for_snes() -> None:
    objective = ellipsoid(5, 1e4, rotated=True)
    start = {"x": torch.full((5,), 2.0, dtype=torch.float64)}
    xnes = minimize(objective, start, XNES(sigma=1.0, population=20), 150, seeded(0))
    snes = minimize(objective, start, SNES(sigma=1.0, population=20), 150, seeded(0))
    assert xnes.rows[-1].best_loss < 1e-6
    assert snes.rows[-1].best_loss > 1e-2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_follows_the_valley_of_rosenbrock(seed: int) -> None:
    objective = TestFunction("rosenbrock", num_dim=2)
    trace = minimize(objective, objective.initial_params(seed), XNES(sigma=1.0), 400, seeded(seed))
    assert trace.rows[-1].best_loss < 1e-8
    torch.testing.assert_close(trace.state.best, objective.optimum, atol=1e-3, rtol=0)


def test_layers_in_turn_have_a_block_of_the_matrix_each() -> None:
    params = {"a": torch.zeros(2, 2), "b": torch.zeros(3)}
    method = XNES(update="layer_wise", sigma=0.5)
    state = method.initial(params, generator=seeded(0))
    assert len(state.spread) == 16 + 9
    assert method.sigma_of(state) == pytest.approx(0.5)
    members = method.ask(state)
    assert members["a"].ne(0).all()
    assert members["b"].eq(0).all()
    state = method.tell(state, torch.arange(8.0))
    assert torch.equal(state.spread[16:], 0.5 * torch.eye(3).double().flatten())
    assert not torch.equal(state.spread[:16], 0.5 * torch.eye(4).double().flatten())
    assert method.ask(state)["b"].ne(0).all()


def test_one_tensor_searched_layer_wise_is_a_joint_search() -> None:
    objective, start = ellipsoid(3, 5, rotated=True), {"x": torch.ones(3, dtype=torch.float64)}
    joint = minimize(objective, start, XNES(), 5, seeded(1))
    turns = minimize(objective, start, XNES(update="layer_wise"), 5, seeded(1))
    assert joint.rows == turns.rows


def test_the_state_of_another_method_is_refused() -> None:
    state = started(SNES(), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"the state was not begun by XNES\(.*go on with"):
        XNES().ask(state)
    with pytest.raises(ValueError, match="learning_rate_shape is 0"):
        XNES(learning_rate_shape=0)
