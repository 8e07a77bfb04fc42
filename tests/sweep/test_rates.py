"""What a cell does, what each kind of work takes here, and what a plan makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradlab import studies
from gradlab.sweep import expand, plan, read_spec
from gradlab.sweep import rates as measured
from gradlab.sweep.plan import START_SECONDS
from gradlab.sweep.rates import KINDS, Rates, Work, work

SPEC = """
name = "small"
study = "loss_decrease"
inits = 1
batches = 1
[objective]
name = "teacher_student"
num_dim = 4
batch_size = 4000
depth = 2
[settings]
lr = [0.01, 0.1, 1.0]
step_layers = ["all", "hidden"]
[[estimators]]
name = "ste"
surrogate = "relu"
[[estimators]]
name = "nes"
population = [20, 400]
"""
WriteSpec = Callable[..., Path]


@pytest.fixture
def cells_of(write_spec: WriteSpec) -> Callable[..., list[dict[str, Any]]]:
    """The cells of the small spec with overrides, as configurations."""

    def cells(*overrides: str, text: str = SPEC) -> list[dict[str, Any]]:
        spec = read_spec(write_spec(text=text), overrides)
        return [cell.config for cell in expand(spec)]

    return cells


@pytest.fixture
def unit_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything takes a second."""
    monkeypatch.setattr(Rates, "seconds", lambda self, work: 1.0)


def counts(cell: dict[str, Any]) -> dict[str, float]:
    return {each.kind: each.count for each in work(cell)}


def test_a_loss_decrease_is_counted_by_hand(cells_of: Callable[..., Any]) -> None:
    ste, nes = cells_of()
    # two batches; two judges, two choices of layers, three lrs
    assert counts(ste) == {"batch": 2, "estimate": 1, "lr": 12}
    # one sample serves both nested populations, and each is judged
    assert counts(nes) == {"batch": 2, "member": 400, "lr": 24}
    alone = cells_of("settings.fresh=false", "settings.step_layers=all")[0]
    assert counts(alone) == {"batch": 1, "estimate": 1, "lr": 3}


def test_the_smoothed_reference_of_binary_weights_is_counted_by_draws(
    cells_of: Callable[..., Any],
) -> None:
    text = SPEC.replace("loss_decrease", "gradient_quality").split("[settings]")[0]
    text += (
        '[settings]\nreference = "smoothed"\nreference_passes = 200\n[[estimators]]\nname = "ste"'
    )
    for weight, name, each, count in (("real", "nes_local", 100, 2), ("binary", "nes_cdg", 4, 50)):
        (cell,) = cells_of(f"objective.weight={weight}", text=text)
        *_, reference = work(cell)
        entry = reference.cell["estimator"]
        assert (entry["name"], entry["sigma"], reference.count) == (name, 0.1, count)
        assert entry["samples" if weight == "binary" else "passes"] == each
        assert Rates().seconds(reference) > 0


def test_samples_and_single_steps_are_counted_by_hand(cells_of: Callable[..., Any]) -> None:
    sampled = cells_of("settings.final=sample", "settings.final_samples=5")[0]
    assert counts(sampled) == {"batch": 2, "estimate": 1, "sample": 60}
    layerwise = cells_of(
        "settings.update=layerwise", "settings.step_layers=all", "estimators.nes.population=20"
    )[0]
    # three tensors: one estimate for all lrs, and two more for each
    assert counts(layerwise) == {"batch": 2, "estimate": 7, "single": 6}


def test_the_empirical_fisher_is_work_of_its_own(cells_of: Callable[..., Any]) -> None:
    nes = cells_of("estimators.nes.gradient=empirical_fisher", "estimators.nes.antithetic=false")[1]
    members, metric, *_ = (each for each in work(nes) if each.kind in ("member", "metric"))
    assert (members.count, metric.count) == (400, 1)
    assert members.cell["estimator"]["gradient"] == "plain"


def test_a_trajectory_stops_at_its_budget(cells_of: Callable[..., Any]) -> None:
    lines = SPEC.replace('"loss_decrease"', '"trajectory"').replace("[20, 400]", "20")
    text = lines.replace("lr = [0.01, 0.1, 1.0]\n", "").replace(
        'step_layers = ["all", "hidden"]', "steps = 50\npoints = 10"
    )
    assert counts(cells_of(text=text)[1]) == {"batch": 52, "member": 1000, "loss": 20}
    short = cells_of("settings.budget=forward_passes", "settings.amount=100", text=text)[1]
    assert counts(short) == {"batch": 7, "member": 100, "loss": 10}


def test_a_budget_in_seconds_limits_estimates_and_their_batches(
    cells_of: Callable[..., Any], unit_rates: None
) -> None:
    lines = SPEC.replace('"loss_decrease"', '"trajectory"').replace("[20, 400]", "20")
    text = lines.replace("lr = [0.01, 0.1, 1.0]\n", "").replace(
        'step_layers = ["all", "hidden"]', "steps = 50\npoints = 10"
    )
    cell = cells_of("settings.budget=seconds", "settings.amount=10", text=text)[0]
    found = {each.kind: each.count for each, _ in Rates().costs(cell)}
    assert found["estimate"] == pytest.approx(10)
    assert found["batch"] == pytest.approx(52 / 5)
    assert found["loss"] == 20


def test_another_package_says_itself_what_its_study_does(
    cells_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Speaking:
        def work(self, cell: dict[str, Any]) -> list[Work]:
            return [Work("loss", cell, 7.0)]

    class Silent:
        def forward_passes(self, cell: dict[str, Any]) -> float:
            return 9.0

    for study, expected in ((Speaking(), {"loss": 7.0}), (Silent(), {"pass": 9.0})):
        monkeypatch.setattr(studies, "create", lambda name, study=study: study)
        assert counts({**cells_of_one(), "study": "theirs"}) == expected


def cells_of_one() -> dict[str, Any]:
    """A cell without a spec."""
    return {"threads": 1, "objective": {}, "estimator": {"name": "ste"}, "settings": {}}


def test_every_kind_takes_some_time(cells_of: Callable[..., Any]) -> None:
    nes = cells_of("estimators.nes.gradient=empirical_fisher", "estimators.nes.antithetic=false",
                   "settings.final_samples=4", "settings.final=sample")[1]  # fmt: skip
    rates = Rates()
    for kind in (each for each in KINDS if each != "network"):  # which needs one
        seconds = rates.seconds(Work(kind, nes))
        assert math.isfinite(seconds)
        assert seconds > 0
        assert rates.seconds(Work(kind, nes)) == seconds  # measured once


def test_time_is_scaled_to_the_whole_batch_and_per_unit(
    cells_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run of 32,768 examples and 64 members that takes a second, whatever it does.
    runs: list[tuple[str, int, int]] = []

    def task(self: Rates, kind: str, cell: Any, examples: int, members: int) -> Any:
        runs.append((kind, examples, members))
        return (lambda: None), (members if kind == "member" else 3 if kind == "lr" else 1)

    monkeypatch.setattr(Rates, "_task", task)
    monkeypatch.setattr(measured, "_clock", lambda task: 1e-3 if len(runs) == 1 else 1.0)
    nes = cells_of("objective.batch_size=327680")[1]
    assert Rates().seconds(Work("member", nes)) == pytest.approx(10 / 200)
    assert runs == [("member", 2048, 64), ("member", 32_768, 200)]
    runs.clear()
    assert Rates().seconds(Work("lr", nes)) == pytest.approx(10 / 3)
    runs.clear()
    assert Rates().seconds(Work("metric", nes)) == 1e-3  # whatever the batch
    assert runs == [("metric", 64, 1)]


def test_cost_grows_with_what_is_asked(cells_of: Callable[..., Any]) -> None:
    rates = Rates()
    small, large = (
        rates.seconds(Work("loss", cells_of(f"objective.batch_size={size}")[0]))
        for size in (4000, 40_000_000)
    )
    # ten thousand times the examples; the factor leaves room for a busy machine
    assert large > 50 * small


def test_a_plan_needs_no_store_and_writes_nothing(write_spec: WriteSpec, tmp_path: Path) -> None:
    planned = plan(read_spec(write_spec(text=SPEC)), tmp_path / "results", jobs=1)
    assert planned.count("missing") == 2
    assert planned.seconds == pytest.approx(planned.work + START_SECONDS)
    assert 0 < planned.longest < planned.work
    assert {expense.kind for expense in planned.expenses} == {
        "batch with targets", "STE relu", "NES member", "lr judged"
    }  # fmt: skip
    assert planned.work == pytest.approx(sum(group.seconds or 0 for group in planned.groups))
    assert not (tmp_path / "results").exists()


def test_the_estimate_grows_linearly_with_inits(write_spec: WriteSpec, unit_rates: None) -> None:
    path = write_spec(text=SPEC)
    one, four = (plan(read_spec(path, [f"inits={inits}"]), jobs=2) for inits in (1, 4))
    # batches, estimate and lrs of the STE; batches, members and lrs of NES
    assert one.work == pytest.approx((2 + 1 + 12) + (2 + 400 + 24))
    assert four.work == pytest.approx(4 * one.work)
    assert four.seconds - START_SECONDS == pytest.approx(four.work / 2)
    assert one.seconds - START_SECONDS == pytest.approx(426)  # the longest cell
    assert [each.count for each in four.expenses] == [4 * each.count for each in one.expenses]


def test_what_cells_share_is_counted_once(write_spec: WriteSpec, unit_rates: None) -> None:
    text = SPEC.replace('"loss_decrease"', '"gradient_quality"').replace(
        'lr = [0.01, 0.1, 1.0]\nstep_layers = ["all", "hidden"]', "repeats = 2"
    )
    planned = plan(read_spec(write_spec(text=text), ["batches=3", "inits=2"]), jobs=1)
    kinds = {expense.kind: expense.count for expense in planned.expenses}
    # a reference for each init and batch, whatever the number of estimators
    assert kinds == pytest.approx(
        {"batch with targets": 12, "STE relu": 12, "NES member": 4800, "CDG": 6}
    )


def test_a_student_is_trained_once_for_each_init(write_spec: WriteSpec, unit_rates: None) -> None:
    spec = read_spec(
        write_spec(text=SPEC), ["batches=3", "inits=2", "student.state=converged",
                                "student.steps=100"]
    )  # fmt: skip
    kinds = {each.kind: each.count for each in plan(spec, jobs=1).expenses}
    assert kinds["training step"] == pytest.approx(200)


def test_expenses_say_what_takes_longest(write_spec: WriteSpec, unit_rates: None) -> None:
    expenses = plan(read_spec(write_spec(text=SPEC)), jobs=1).expenses
    assert expenses[0].kind == "NES member"
    assert [e.seconds for e in expenses] == sorted((e.seconds for e in expenses), reverse=True)
    assert all(expense.fastest == expense.slowest == 1.0 for expense in expenses)
