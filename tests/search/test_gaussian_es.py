from __future__ import annotations

import pytest
import torch

from gradlab.estimators import NES
from gradlab.evaluation.population import GaussianPopulation
from gradlab.objectives import TeacherStudent
from gradlab.search import GaussianES, SearchState, minimize
from gradlab.search.gaussian_es import _optimizers
from tests.search.problems import ellipsoid, seeded, started


@pytest.mark.parametrize("fitness", ["raw", "centered", "centered_rank", "utilities"])
def test_the_first_gradient_is_that_of_nes(fitness: str) -> None:
    objective = TeacherStudent(num_dim=3, batch_size=64, seed=0)
    params = objective.initial_params(0)
    method = GaussianES(population=40, fitness=fitness, optimizer="sgd", learning_rate=1.0)
    state = method.initial(params, generator=seeded(4))
    members = method.ask(state)
    assert isinstance(members, GaussianPopulation)
    after = method.tell(state, objective.losses(members))
    nes = NES(population=40, fitness=fitness).estimate(objective, params, generator=seeded(4))
    for name, tensor in nes.gradient.items():
        step = state.params()[name].double() - after.params()[name].double()
        torch.testing.assert_close(step, tensor.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(_optimizers()) - {"muon"}))
def test_an_optimizer_remembers_as_if_it_had_never_been_rebuilt(name: str) -> None:
    objective = ellipsoid(3, 4, rotated=True)
    method = GaussianES(population=10, optimizer=name, learning_rate=0.05, fitness="centered")
    state = started(method, [1.0, 2.0, 3.0])
    leaf = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    optimizer = _optimizers()[name]([leaf], lr=0.05)  # type: ignore[call-arg]
    for _ in range(4):
        population = method.ask(state)
        losses = objective.losses(population)
        pairs = (losses[0::2] - losses[1::2])[:, None] * population.noise()[0::2]
        leaf.grad = (pairs.sum(0) / (0.1 * 10)).double()
        optimizer.step()
        state = method.tell(state, losses)
        # rprop goes by signs and adadelta by tiny quotients: rounding is all that may differ
        torch.testing.assert_close(state.mean, leaf.detach(), rtol=1e-7, atol=1e-9)
        state = SearchState.restore(state.tensors(), state.numbers())


def test_a_matrix_stays_a_matrix_for_optimizers_that_need_one() -> None:
    method = GaussianES(population=10, optimizer="muon")
    state = method.initial({"w": torch.zeros(3, 2)}, generator=seeded(0))
    after = method.tell(state, torch.arange(10.0))
    assert after.params()["w"].shape == (3, 2)
    assert after.mean.abs().sum() > 0


def test_it_finds_the_minimum_of_a_sphere() -> None:
    trace = minimize(ellipsoid(6, 1, rotated=False),
                     {"x": torch.full((6,), 1.0, dtype=torch.float64)},
                     GaussianES(population=50, learning_rate=0.05), 150, seeded(0))  # fmt: skip
    assert trace.rows[-1].loss < 1e-3 * trace.rows[0].loss
    assert {row.sigma for row in trace.rows} == {0.1}


def test_members_in_single_precision_are_those_that_kernels_evaluate() -> None:
    objective = TeacherStudent(num_dim=4, batch_size=100, seed=0)
    method = GaussianES(population=12)
    state = method.initial(objective.initial_params(0), generator=seeded(0))
    state = method.tell(state, objective.losses(method.ask(state)))
    assert state.best["layers.0.weight"].dtype == torch.float32
    assert float(objective.loss(state.best)) == float(state.best_loss)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"optimizer": "adm"}, "unknown optimizer 'adm': did you mean"),
     ({"optimizer": "lbfgs"}, "unknown optimizer 'lbfgs'"),
     ({"optimizer_options": {"beta": 1}}, "unknown option of optimizer adam 'beta'"),
     ({"population": 7}, "mirrored pairs need an even number; give 8")],
    ids=["name", "unfit", "option", "odd"],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussianES(**options)  # type: ignore[arg-type]
