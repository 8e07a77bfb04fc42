"""The loss along single weights, against the same written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradlab import estimators, studies
from gradlab.binary import surrogates
from gradlab.objectives import TeacherStudent
from gradlab.studies import cells
from gradlab.studies.base import Row
from tests.objectives.images import small_images
from tests.studies import configs
from tests.studies.configs import rows_of

__all__ = ["small_images"]

NETWORK: dict[str, Any] = {
    "name": "network", "dataset": "mnist", "model": "xnor_mlp", "width": 6, "depth": 2,
    "batch_size": 16, "layers": [0, 1], "coordinates": 2,
}  # fmt: skip
TEACHER = {**configs.TEACHER, "num_dim": 2, "depth": 2}


def tables(config: dict[str, Any], scratch: Path) -> dict[str, list[Row]]:
    study = studies.create("loss_slice")
    study.validate(config)
    return study.run(config, scratch)


def test_the_curve_is_the_loss_along_one_weight(tmp_path: Path) -> None:
    config = configs.cell("loss_slice", configs.CDG, TEACHER, reach=0.4, points=9)
    found = tables(config, tmp_path)
    objective = cells.objective_of(config)
    fresh = cells.objective_of(config, batch=cells.FRESH_BATCHES)
    assert isinstance(objective, TeacherStudent)
    assert isinstance(fresh, TeacherStudent)
    params = objective.initial_params(cells.derived_seed(config, 0, 0))
    rows = rows_of(found["loss_slice"], layer="layers.1.weight", coordinate=3)
    assert [row["offset"] for row in rows] == pytest.approx(
        [-0.4, -0.3, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.4]
    )
    assert rows[4]["offset"] == 0
    for row in rows:
        moved = {name: w.clone().double() for name, w in params.items()}
        moved["layers.1.weight"][1, 1] += row["offset"]
        for column, judge in (("loss", objective), ("loss_fresh", fresh)):
            expected = float(configs.loss64(judge, moved))
            assert row[column] == pytest.approx(expected, rel=1e-5)
    count = sum(w.numel() for w in params.values())
    assert len(found["loss_slice"]) == 9 * count
    assert len(found["loss_slice_slopes"]) == count


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize("estimator", [configs.STE, configs.CDG, configs.NES])
def test_slopes_are_the_estimators(estimator: dict[str, Any], tmp_path: Path) -> None:
    config = configs.cell("loss_slice", estimator, NETWORK, points=5, reach=0.1)
    found = tables(config, tmp_path)
    objective = cells.objective_of(config)
    params: Any = objective.params  # type: ignore[attr-defined]
    gradient = cells.estimator_of(config).estimate(
        objective, params, generator=cells.generator_of(config)
    ).gradient  # fmt: skip
    differences = estimators.create("cdg", epsilon=0.1).estimate(
        objective, params, generator=torch.Generator()
    ).gradient  # fmt: skip
    slopes = found["loss_slice_slopes"]
    assert len(slopes) == 4
    for row in slopes:
        place = row["layer"], row["coordinate"]
        assert row["slope"] == pytest.approx(float(gradient[place[0]][place[1]]))
        # the chord over the whole slice is the central difference of its reach
        chord = float(differences[place[0]][place[1]])
        assert row["chord_slope"] == pytest.approx(chord, rel=1e-4, abs=1e-6)
        (middle,) = rows_of(found["loss_slice"], layer=place[0], coordinate=place[1], offset=0.0)
        assert middle["loss"] == row["loss"]
        assert row["label"] == cells.estimator_of(config).label()
    again = tables(config, tmp_path)
    for name, rows in found.items():
        assert configs.without_seconds(rows) == configs.without_seconds(again[name])


@pytest.mark.usefixtures("small_images")
def test_a_slice_along_the_straight_through_gradient(tmp_path: Path) -> None:
    objective = {**NETWORK, "coordinates": None, "weight": "real"}
    config = configs.cell("loss_slice", configs.STE, objective, points=3, reach=0.2, along="ste")
    found = tables(config, tmp_path)
    network: Any = cells.objective_of(config)
    gradient = network.surrogate_gradient(network.params, surrogates.create("hardtanh"))
    assert [row["layer"] for row in found["loss_slice_slopes"]] == list(gradient)
    for row in found["loss_slice_slopes"]:
        assert row["coordinate"] == -1
        # of the gradient itself the component is its length
        assert row["slope"] == pytest.approx(float(gradient[row["layer"]].norm()), rel=1e-5)
    for row in found["loss_slice"]:
        moved = dict(network.params)
        step = gradient[row["layer"]] / gradient[row["layer"]].norm()
        moved[row["layer"]] = moved[row["layer"]] + row["offset"] * step
        assert row["loss"] == pytest.approx(float(network.loss(moved)), rel=1e-4)
    assert {row["along"] for row in found["loss_slice"]} == {"ste"}


@pytest.mark.usefixtures("small_images")
def test_curves_of_estimators_are_the_same(tmp_path: Path) -> None:
    curves = []
    for estimator in (configs.STE, configs.NES):
        config = configs.cell("loss_slice", estimator, NETWORK, points=3, fresh=False)
        rows = tables(config, tmp_path)["loss_slice"]
        curves.append([(row["layer"], row["coordinate"], row["loss"]) for row in rows])
        assert all(row["loss_fresh"] is None for row in rows)
    assert curves[0] == curves[1]


@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize(
    ("estimator", "objective", "settings", "sentence"),
    [
        (configs.STE, {**NETWORK, "coordinates": None}, {}, "objective.coordinates = 1, for"),
        ({**configs.NES, "population": [4, 8]}, NETWORK, {}, "one population"),
        (configs.LOCAL, NETWORK, {}, "perturbs whole layers"),
        (configs.STE, NETWORK, {"points": 4}, "odd number of points"),
        (configs.STE, configs.TEACHER | {"num_dim": 32}, {}, "64 are the most"),
    ],
    ids=["whole", "nested", "local", "even", "many"],
)
def test_what_is_no_slice_is_refused(
    estimator: dict[str, Any], objective: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        studies.create("loss_slice").validate(
            configs.cell("loss_slice", estimator, objective, **settings)
        )


def test_more_points_are_more_work() -> None:
    def passes(**settings: Any) -> float:
        config = configs.cell("loss_slice", configs.STE, TEACHER, **settings)
        return studies.create("loss_slice").forward_passes(config)

    assert passes(points=101) > passes(points=11) > passes(points=11, fresh=False)
