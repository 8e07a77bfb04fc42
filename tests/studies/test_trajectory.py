"""Many steps, against gradient descent written out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab import studies
from gradlab.estimators import CDG, NES, STE
from gradlab.objectives import TeacherStudent
from gradlab.studies import cells, students, trajectory
from gradlab.studies.trajectory import TrajectorySettings
from tests.studies import configs

LINEAR = {**configs.QUADRATIC, "function": "linear"}
CURVATURE = torch.linspace(1, 10, 5, dtype=torch.float64)


def descent(*arguments: Any, **settings: Any) -> dict[str, Any]:
    # so many points that every step is recorded
    return configs.cell("trajectory", *arguments, **{"steps": 8, "points": 1000, **settings})


def start_of(config: dict[str, Any]) -> torch.Tensor:
    objective = cells.objective_of(config)
    return objective.initial_params(cells.derived_seed(config, 0, config["init"]))["x"]


@pytest.mark.parametrize("estimator", [configs.STE, configs.NES, configs.LOCAL])
def test_a_cell_is_a_pure_function(estimator: dict[str, Any], tmp_path: Path) -> None:
    first = configs.run(descent(estimator), tmp_path / "a")
    again = configs.run(descent(estimator), tmp_path / "b")
    assert configs.without_seconds(first) == configs.without_seconds(again)
    losses = {(row["loss"], row["loss_fresh"]) for row in first}
    for other in ({"seed": 1}, {"init": 1}, {"batch": 1}):
        rows = configs.run(descent(estimator, **other), tmp_path)
        assert not losses & {(row["loss"], row["loss_fresh"]) for row in rows}


def test_the_table_has_the_columns_that_figures_read(tmp_path: Path) -> None:
    estimator = {**configs.NES, "population": [24]}
    rows = configs.run(descent(estimator, steps=2, init=1, budget="forward_passes"), tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    expected = {
        "study": "trajectory", "num_dim": 4, "depth": 2, "batch_size": 256, "init": 1, "batch": 0,
        "estimator": "nes", "label": "NES 24", "population": 24, "student": "fresh", "lr": 0.03,
        "normalize": "tensor", "budget": "forward_passes", "resample": True,
        "forward_passes": 48.0, "backward_passes": 0.0, "device": "cpu",
    }  # fmt: skip
    assert {key: rows[2][key] for key in expected} == expected
    assert rows[0]["seconds"] == rows[0]["forward_passes"] == 0
    assert rows[2]["seconds"] > rows[1]["seconds"] > 0


@pytest.mark.parametrize("estimator", [configs.CDG, {**configs.STE, "surrogate": "identity"}])
def test_a_quadratic_converges_as_gradient_descent_by_hand(
    estimator: dict[str, Any], tmp_path: Path
) -> None:
    config = descent(estimator, configs.QUADRATIC, steps=30, lr=0.05, normalize="none", init=2)
    x = start_of(config)
    rows = configs.run(config, tmp_path)
    for row in rows:
        # central differences of a quadratic are its derivative
        expected = float((0.5 * CURVATURE * x**2).sum())
        assert row["loss"] == pytest.approx(expected, rel=1e-7)
        assert row["loss_fresh"] == row["loss"]
        x = x - 0.05 * CURVATURE * x
    assert len(rows) == 31
    assert rows[-1]["loss"] < 0.02 * rows[0]["loss"]


def test_a_student_descends_as_by_hand(tmp_path: Path) -> None:
    config = descent(configs.STE, lr=0.1, normalize="global", resample=False, batch=3)
    objective = cells.objective_of(config)
    unseen = cells.objective_of(config, batch=3 + cells.FRESH_BATCHES)
    params = objective.initial_params(cells.derived_seed(config, 0, 0))
    for row in configs.run(config, tmp_path):
        assert row["loss"] == pytest.approx(float(objective.loss(params)), rel=1e-6)
        assert row["loss_fresh"] == pytest.approx(float(unseen.loss(params)), rel=1e-6)
        gradient = STE().estimate(objective, params, generator=torch.Generator()).gradient
        norm = configs.joined(gradient).norm()
        params = {name: w - 0.1 * gradient[name] / norm for name, w in params.items()}


def test_only_resampling_changes_the_batch(tmp_path: Path) -> None:
    # steps too short to move a float32
    still = configs.run(descent(lr=1e-30, resample=False), tmp_path)
    moving = configs.run(descent(lr=1e-30), tmp_path)
    assert len({row["loss"] for row in still}) == 1
    assert len({row["loss"] for row in moving}) == len(moving) == 9
    assert len({row["loss_fresh"] for row in [*still, *moving]}) == 1
    assert still[0]["loss"] != still[0]["loss_fresh"]


def test_no_batch_serves_twice() -> None:
    seen: list[float] = []
    spaces = [cells.FRESH_BATCHES, cells.FRESH_BATCHES + 1, cells.TRAINING_BATCHES, 0, 1]
    # the last steps of one batch's run and the first of the next one's
    spaces += [cells.TRAJECTORY_BATCHES * (batch + 1) + step
               for batch in (0, 1) for step in (0, 1, 2**20, 2**32 - 1)]  # fmt: skip
    for batch in spaces:
        objective = cells.objective_of(descent(), batch=batch)
        assert isinstance(objective, TeacherStudent)
        seen.append(float(objective.inputs[0, 0]))
    assert len(set(seen)) == len(spaces)


@pytest.mark.parametrize(
    ("estimator", "amount", "steps"),
    [
        (configs.STE, 11, 5),  # one forward and one backward pass each
        (configs.STE, 12, 6),
        (configs.NES, 60, 2),
        (configs.CDG, 150, 2),  # 36 weights, two passes each
        (configs.CDG, 10, 1),  # too dear for one step: it takes one all the same
        (configs.STE, 1000, 8),  # never more than ``steps``
    ],
)
def test_a_budget_of_forward_passes(
    estimator: dict[str, Any], amount: float, steps: int, tmp_path: Path
) -> None:
    rows = configs.run(descent(estimator, budget="forward_passes", amount=amount), tmp_path)
    assert rows[-1]["step"] == steps
    spent = rows[-1]["forward_passes"] + rows[-1]["backward_passes"]
    assert spent == steps * cells.nominal_passes(descent(estimator))
    assert spent <= amount or steps == 1


def test_a_budget_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ticks() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += 2.0

    clock = ticks()
    monkeypatch.setattr(trajectory, "now", lambda: next(clock))
    rows = configs.run(descent(budget="seconds", amount=6), tmp_path)
    assert [row["seconds"] for row in rows] == [0, 2, 4, 6]


def test_steps_shrink_on_schedule(tmp_path: Path) -> None:
    config = descent(configs.CDG, LINEAR, lr=0.5, steps=9, decay_after=3, decay_every=2,
                     decay_factor=0.1)  # fmt: skip
    losses = [row["loss"] for row in configs.run(config, tmp_path)]
    falls = [before - after for before, after in itertools.pairwise(losses)]
    # down a plane every step of length l brings l times the slope
    slope = float(CURVATURE.norm())
    factors = [1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert falls == pytest.approx([0.5 * slope * factor for factor in factors], rel=1e-5)


@pytest.mark.parametrize("decay_width", [True, False])
def test_widths_shrink_with_the_steps_if_asked(
    decay_width: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[float] = []
    original = CDG.estimate

    def noting(self: CDG, *arguments: Any, **options: Any) -> Any:
        widths.append(self.epsilon)
        return original(self, *arguments, **options)

    monkeypatch.setattr(CDG, "estimate", noting)
    config = descent({**configs.CDG, "epsilon": 0.2}, LINEAR, steps=4, decay_after=2,
                     decay_every=1, decay_factor=0.5, decay_width=decay_width)  # fmt: skip
    configs.run(config, tmp_path)
    expected = [0.2, 0.2, 0.1, 0.05] if decay_width else [0.2] * 4
    assert widths == pytest.approx(expected)


def test_sampled_estimators_draw_anew_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[torch.Tensor] = []
    original = NES.estimates

    def noting(self: NES, *arguments: Any, **options: Any) -> Any:
        found = original(self, *arguments, **options)
        gradients.append(found[-1].gradient["x"])
        return found

    monkeypatch.setattr(NES, "estimates", noting)
    configs.run(descent(configs.NES, LINEAR, lr=1e-12, steps=3), tmp_path)
    assert len(gradients) == 3
    assert not torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[1], gradients[2])


@pytest.mark.parametrize("estimator", [configs.CDG, configs.NES, configs.STE])
@pytest.mark.parametrize("points", [1, 1000])
def test_a_run_that_diverges_ends_with_a_row_without_a_loss(
    estimator: dict[str, Any], points: int, tmp_path: Path
) -> None:
    config = descent(estimator, configs.QUADRATIC, normalize="none", lr=1e300, steps=50,
                     points=points)  # fmt: skip
    rows = configs.run(config, tmp_path)
    assert rows[0]["loss"] is not None
    assert rows[-1]["loss"] is rows[-1]["loss_fresh"] is None
    assert 1 <= rows[-1]["step"] < 50
    assert [row["loss"] for row in rows[:-1]].count(None) == 0


def test_rosenbrock_reaches_all_ones(tmp_path: Path) -> None:
    rosenbrock = {"name": "test_function", "function": "rosenbrock", "num_dim": 2}
    config = descent({**configs.CDG, "epsilon": 0.01}, rosenbrock, lr=0.1, steps=3000, points=5,
                     resample=False, decay_after=500, decay_every=500, decay_width=True,
                     decay_factor=0.3, init=1)  # fmt: skip
    rows = configs.run(config, tmp_path)
    assert rows[0]["loss"] > 10
    assert rows[-1]["loss"] < 1e-3
    assert len(rows) <= 7


@given(st.integers(1, 10**6), st.integers(1, 500))
def test_recorded_steps_hold_both_ends_and_are_few(steps: int, points: int) -> None:
    recorded = trajectory._recorded_steps(TrajectorySettings(steps=steps, points=points))
    assert {0, steps} <= recorded
    assert recorded <= set(range(steps + 1)) if steps < 1000 else max(recorded) == steps
    assert len(recorded) <= points + 2


def test_nested_populations_are_refused() -> None:
    config = descent({**configs.NES, "population": [8, 16]})
    with pytest.raises(ValueError, match="give nes one population"):
        studies.create("trajectory").validate(config)


def test_the_estimate_of_work_follows_the_budget() -> None:
    study = studies.create("trajectory")

    def passes(**settings: Any) -> float:
        return study.forward_passes(descent(configs.CDG, **settings))

    more, less = passes(steps=200, points=1), passes(steps=100, points=1)
    assert more == pytest.approx(2 * less, rel=0.01)
    # 72 passes a step by definition: a thousand pay for 13 steps
    few = passes(steps=10**6, budget="forward_passes", amount=1000)
    assert few == pytest.approx(passes(steps=14), rel=0.1)
    assert math.isfinite(passes(budget="seconds", amount=10))


def test_a_converged_student_starts_lower(tmp_path: Path) -> None:
    student = students.canonical({"state": "converged", "steps": 60, "batch_size": 512})
    fresh = configs.run(descent(steps=1), tmp_path)
    converged = configs.run(descent(steps=1, student=student), tmp_path)
    assert converged[0]["loss_fresh"] < 0.7 * fresh[0]["loss_fresh"]
