from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradlab import search
from gradlab.evaluation import population as pop
from gradlab.objectives import TeacherStudent, TestFunction
from gradlab.search import SNES, SearchMethod, SearchState, TraceRow, advance, minimize
from tests.search.problems import METHODS, ellipsoid, seeded

OBJECTIVE = TeacherStudent(num_dim=3, batch_size=50, seed=0)
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def bits(state: SearchState) -> dict[str, object]:
    tensors = {name: tensor.tolist() for name, tensor in state.tensors().items()}
    return tensors | state.numbers()


@methods
def test_a_restored_run_ends_with_the_bits_of_one_that_never_stopped(
    method: SearchMethod, tmp_path: Path
) -> None:
    start = OBJECTIVE.initial_params(1)
    whole = minimize(OBJECTIVE, start, method, 9, seeded(2))
    first = minimize(OBJECTIVE, start, method, 4, seeded(2))
    save_file(first.state.tensors(), tmp_path / "state.safetensors")
    numbers = json.loads(json.dumps(first.state.numbers()))
    restored = SearchState.restore(load_file(tmp_path / "state.safetensors"), numbers)
    second = advance(OBJECTIVE, method, restored, 5)
    assert first.rows + second.rows == whole.rows
    assert bits(second.state) == bits(whole.state)


@methods
def test_asking_and_telling_change_nothing_that_was_given(method: SearchMethod) -> None:
    state = method.initial(OBJECTIVE.initial_params(1), generator=seeded(0))
    for _ in range(3):
        before = json.dumps(bits(state))
        once, again = pop.members(method.ask(state)), pop.members(method.ask(state))
        assert all(torch.equal(once[name], again[name]) for name in once)
        losses = OBJECTIVE.losses(once)
        copy = losses.clone()
        after = method.tell(state, losses)
        assert torch.equal(losses, copy)
        assert json.dumps(bits(state)) == before
        assert json.dumps(bits(method.tell(state, losses))) == json.dumps(bits(after))
        state = after


@methods
def test_members_asked_for_in_parts_are_the_same(method: SearchMethod) -> None:
    state = method.initial(OBJECTIVE.initial_params(1), generator=seeded(0))
    state = method.tell(state, OBJECTIVE.losses(method.ask(state)))
    whole, size = pop.members(method.ask(state)), method.size(state)
    for name, tensor in whole.items():
        parts = [
            pop.members(method.ask(state, low, high))[name] for low, high in [(0, 3), (3, size)]
        ]
        torch.testing.assert_close(torch.cat(parts), tensor, rtol=1e-6, atol=1e-7)


@methods
def test_every_method_trains_a_student(method: SearchMethod) -> None:
    objective = TeacherStudent(num_dim=4, batch_size=200, seed=0)
    trace = minimize(objective, objective.initial_params(0), method, 60, seeded(0))
    rows = trace.rows
    assert rows[-1].loss < 0.9 * rows[0].loss
    assert [row.generation for row in rows] == list(range(61))
    assert all(one.best_loss >= two.best_loss for one, two in itertools.pairwise(rows))
    assert all(row.best_loss <= row.loss for row in rows)
    assert float(objective.loss(trace.state.best)) == rows[-1].best_loss
    assert float(objective.loss(trace.state.params())) == rows[-1].loss
    assert rows[-1].sigma == method.sigma_of(trace.state)
    assert rows[-1].evaluations == trace.state.evaluations
    if "importance" not in str(method) or "importance_mixing=None" in str(method):
        assert rows[-1].evaluations == 60 * method.size(trace.state) + 61


def test_binary_weights_are_searched_by_their_latent_values() -> None:
    objective = TeacherStudent(num_dim=4, batch_size=200, seed=0, weight="binary")
    trace = minimize(objective, objective.initial_params(0), SNES(), 60, seeded(0))
    assert trace.rows[-1].best_loss < 0.5 * trace.rows[0].loss


@pytest.mark.parametrize("name", search.names())
def test_single_and_double_precision_search_alike(name: str) -> None:
    objective, method = ellipsoid(3, 3, rotated=True), search.create(name)
    for dtype in (torch.float32, torch.float64):
        start = {"x": torch.ones(3, dtype=dtype)}
        trace = minimize(objective, start, method, 20, seeded(0))
        assert trace.state.best["x"].dtype == dtype
        assert trace.state.mean.dtype == torch.float64
        assert trace.rows[-1].best_loss < trace.rows[0].loss


def test_population_evaluated_in_parts_gives_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = TestFunction("quadratic", num_dim=4)
    start = objective.initial_params(0)
    whole = minimize(objective, start, SNES(population=30), 5, seeded(0)).rows[-1]
    monkeypatch.setattr("gradlab.search.noise._FLOATS", 28)
    parts = minimize(objective, start, SNES(population=30), 5, seeded(0)).rows[-1]
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.evaluations == whole.evaluations == 5 * 30 + 6


def test_a_callback_sees_every_row_and_may_end_the_search() -> None:
    seen: list[TraceRow] = []

    def stop(state: SearchState, row: TraceRow) -> bool:
        assert state.generation == row.generation
        seen.append(row)
        return row.generation == 3

    objective = TestFunction("quadratic", num_dim=3)
    trace = minimize(objective, objective.initial_params(0), SNES(), 50, seeded(0), stop)
    assert trace.rows == tuple(seen)
    assert len(seen) == 4
    assert trace.state.generation == 3


def test_a_mean_that_fails_is_shown_and_the_search_goes_on() -> None:
    class Cliff:
        def loss(self, params: pop.Params) -> torch.Tensor:
            return self.losses({"x": params["x"][None]})[0]

        def losses(self, population: pop.Population) -> torch.Tensor:
            x = pop.members(population)["x"].double().sum(-1)
            return torch.where(x > 1.99, math.nan, x.abs())

    start = {"x": torch.ones(2, dtype=torch.float64)}
    with pytest.warns(RuntimeWarning, match="rank last"):
        trace = minimize(Cliff(), start, SNES(sigma=0.3), 60, seeded(0))  # type: ignore[arg-type]
    assert math.isnan(trace.rows[0].loss)
    assert trace.rows[0].best_loss == math.inf
    assert trace.rows[-1].loss < 1


def test_zero_generations_are_refused() -> None:
    objective = TestFunction("quadratic", num_dim=3)
    with pytest.raises(ValueError, match="generations is 0"):
        minimize(objective, objective.initial_params(0), SNES(), 0, seeded(0))


def test_methods_are_created_by_name_and_slips_are_named() -> None:
    assert search.names() == ["gaussian_es", "metropolis", "particles", "pgpe", "snes", "xnes"]
    assert search.create("snes", sigma=0.2) == SNES(sigma=0.2)
    assert search.defaults("pgpe")["population"] == 20
    with pytest.raises(ValueError, match="unknown option of search method xnes 'sigm'"):
        search.create("xnes", sigm=1)
