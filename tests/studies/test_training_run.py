"""Training runs as cells, against the same runs by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradlab import studies, training
from gradlab.studies import training_run
from gradlab.studies.base import Row
from tests.objectives.images import small_images
from tests.studies import configs

__all__ = ["small_images"]

pytestmark = pytest.mark.usefixtures("small_images")

NETWORK: dict[str, Any] = {
    "name": "network", "dataset": "mnist", "model": "xnor_mlp", "width": 4, "depth": 1,
    "batch_size": 16,
}  # fmt: skip
SHORT: dict[str, Any] = {"epochs": 3, "lr": 0.01, "evaluation_examples": 50}


def cell(
    estimator: dict[str, Any] = configs.STE,
    objective: dict[str, Any] = NETWORK,
    student: dict[str, Any] | None = None,
    init: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    return configs.cell(
        "training_run", estimator, objective, student=student, init=init, **{**SHORT, **settings}
    )


def run(config: dict[str, Any], scratch: Path) -> tuple[list[Row], Row]:
    study = studies.create("training_run")
    study.validate(config)
    tables = study.run(config, scratch)
    assert list(tables) == ["training", "training_result"]
    (result,) = tables["training_result"]
    return tables["training"], result


TIMES = {"seconds", "images_per_second"}


def measured(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_a_cell_is_the_run_of_its_spec(tmp_path: Path) -> None:
    config = cell(weight_decay=0.1, ema=0.9)
    rows, result = run(config, tmp_path)
    expected = training.run(training_run.spec_of(config), tmp_path / "by hand")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for row, epoch in zip(rows, expected.epochs, strict=True):
        for name in ("lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "ema_loss"):
            assert row[name] == pytest.approx(epoch[name])
        assert row["weight_decay"] == 0.1
        assert row["epochs"] == 3
        assert row["evaluation_examples"] == expected.final["evaluation_examples"] == 50
        assert (row["objective"], row["width"], row["model"]) == ("network", 4, "xnor_mlp")
    # three epochs are fewer than ten: the means are those of all
    for name in ("train_loss", "val_accuracy"):
        assert result[name] == pytest.approx(sum(row[name] for row in rows) / 3)
    assert result["best_val_accuracy"] == max(row["val_accuracy"] for row in rows)
    assert result["seconds"] > 0
    assert not result["diverged"]


@pytest.mark.parametrize(
    "estimator",
    [configs.STE, {**configs.STE, "surrogate": "polynomial"}, {**configs.NES, "population": 4}],
)
def test_a_cell_is_a_pure_function(estimator: dict[str, Any], tmp_path: Path) -> None:
    first, result = run(cell(estimator, epochs=2), tmp_path / "a")
    torch.manual_seed(4)
    again, _ = run(cell(estimator, epochs=2), tmp_path / "b")
    assert measured(first) == measured(again)
    others = [cell(estimator, epochs=2, init=1), cell(estimator, epochs=2, weight_decay=0.5)]
    for other in others:
        assert measured(run(other, tmp_path)[0]) != measured(first)
    assert result["estimator"] == estimator["name"]


def test_the_images_that_are_evaluated_are_counted() -> None:
    whole = {"evaluation_examples": None}
    assert training_run.images_of(cell(**whole)) == (60_000, 10_000)
    assert training_run.images_of(cell(**whole, validation=0.1)) == (54_000, 6_000)
    assert training_run.images_of(cell(examples=500, validation=0.1)) == (500, 50)


def test_estimators_drive_the_run(tmp_path: Path) -> None:
    losses = {
        label: run(cell(estimator, epochs=1), tmp_path)[1]["train_loss"]
        for label, estimator in {
            "hardtanh": configs.STE,
            "steep": {**configs.STE, "surrogate": "steep"},
            "nes": {**configs.NES, "population": 4},
        }.items()
    }
    assert len(set(losses.values())) == 3


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = cell()
    whole, _ = run(config, tmp_path / "whole")
    original = training.run

    def killed(spec: Any, folder: Path) -> Any:
        original(spec, folder, stop_after=2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "killed")
    trained: list[int] = []

    def counted(spec: Any, folder: Path) -> Any:
        result = original(spec, folder)
        trained.append(result.trained)
        return result

    monkeypatch.setattr(training, "run", counted)
    rows, _ = run(config, tmp_path / "killed")
    assert trained == [1]
    assert measured(rows) == measured(whole)
    # what a finished cell needs no more is gone
    assert not [path for path in (tmp_path / "killed").iterdir() if path.is_dir()]


def test_a_run_that_diverges_is_shown(tmp_path: Path) -> None:
    config = cell(optimizer="sgd", lr=3e38, clip=0.0, schedule="constant")
    rows, result = run(config, tmp_path)
    assert result["diverged"]
    assert result["val_accuracy"] is None
    assert rows[-1]["diverged"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (cell(objective=configs.TEACHER), "training_run trains networks on images"),
        (cell(objective={**NETWORK, "layers": [0]}), r"leave out\s+objective.layers"),
        (cell(objective={**NETWORK, "coordinates": 3}), "objective.coordinates"),
        (cell(student={"state": "mid"}), r"leave out \[student\]"),
        (cell({**configs.NES, "population": [2, 4]}), "one population"),
        (cell({**configs.STE, "surrogate": "matched"}), "matched is none"),
        (cell(schedule="cosin"), "did you mean 'cosine'"),
        (cell(optimizer="adamm"), "did you mean 'adam'"),
        (cell(objective={**NETWORK, "surrogate": "ede"}), "objective.surrogate"),
    ],
    ids=["objective", "layers", "coordinates", "student", "nested", "matched", "schedule",
         "optimizer", "surrogate"],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        studies.create("training_run").validate(config)
    assert "\n" not in str(caught.value)


def test_work_known_beforehand() -> None:
    # 60,000 published images, of which a tenth is set aside
    config = cell(epochs=2, validation=0.1)
    assert training_run.steps_of(config) == 2 * (54_000 // 16)
    study = studies.create("training_run")
    assert study.forward_passes(config) == 3 * training_run.steps_of(config)
    assert study.forward_passes(cell(configs.NES)) > study.forward_passes(cell())
    assert studies.seconds_per_step(cell()) > 0
    assert studies.bytes_needed(config) > 2**28
