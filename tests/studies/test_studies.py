"""The studies as a sweep sees them: by name, with their settings, time and memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gradlab import studies, sweep
from gradlab.studies.base import number
from tests.studies import configs

SPEC = """
name = "bad"
study = "{study}"
[objective]
name = "teacher_student"
num_dim = 2
batch_size = 64
{more}
[settings]
{settings}
[[estimators]]
{estimator}
"""


def test_names_and_suggestions() -> None:
    assert {"gradient_quality", "loss_decrease", "trajectory"} <= set(studies.names())
    assert studies.create("loss_decrease").name == "loss_decrease"
    with pytest.raises(ValueError, match="did you mean 'loss_decrease'"):
        studies.create("los_decrease")


@pytest.mark.parametrize("value", [1.5, -3, 0.0, 1e308])
def test_finite_numbers_are_stored_as_they_are(value: float) -> None:
    assert number(value) == value


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_other_numbers_are_stored_as_missing(value: float) -> None:
    assert number(value) is None


@pytest.mark.parametrize("study", ["gradient_quality", "loss_decrease", "trajectory"])
def test_a_cell_and_its_rows_are_json(study: str, tmp_path: Path) -> None:
    options = {"steps": 2} if study == "trajectory" else {}
    config = configs.cell(study, configs.STE, **options)
    # as the store gives it back, with whole numbers for whole floats
    stored = json.loads(json.dumps(config))
    first, second = configs.run(config, tmp_path), configs.run(stored, tmp_path)
    assert configs.without_seconds(first) == configs.without_seconds(second)
    for row in first:
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert list(row) == list(first[0])


def test_memory_grows_with_the_problem() -> None:
    def needed(estimator: dict[str, Any] = configs.STE, **objective: Any) -> int:
        return studies.bytes_needed(
            configs.cell("loss_decrease", estimator, {**configs.TEACHER, **objective})
        )

    assert needed() > 2**28  # a process with torch
    big = {"num_dim": 32, "batch_size": 160_000}
    # inputs and their transposes on both batches, and the cached layers of CDG
    assert 8 < (needed(**big) - needed()) / (4 * 32 * 160_000) < 20
    assert needed({"name": "sr_ste"}, **big) > needed(**big)
    assert needed(activation="full", **big) > needed(**big)
    assert studies.bytes_needed(configs.cell("loss_decrease", configs.CDG, configs.QUADRATIC)) > 0


@pytest.mark.parametrize("objective", [configs.TEACHER, configs.QUADRATIC])
def test_the_time_of_a_forward_pass(objective: dict[str, Any]) -> None:
    threads = torch.get_num_threads()
    seconds = studies.seconds_per_forward_pass(configs.cell("loss_decrease", objective=objective))
    assert 0 < seconds < 1
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("study", "settings", "sentence"),
    [
        ("loss_decrease", "lr = [0.1, 0]", "settings.lr should be greater than 0, not 0"),
        ("loss_decrease", "lr = -1.0", "settings.lr should be greater than 0, not -1.0"),
        ("loss_decrease", "lr = [nan]", "settings.lr is nan: give a finite number"),
        ("loss_decrease", "lr = inf", "settings.lr is inf: give a finite number"),
        ("loss_decrease", "lr = []", "settings.lr is an empty list"),
        ("loss_decrease", 'lr = ["a"]', "settings.lr should be a valid number, not 'a'"),
        ("loss_decrease", "lrs = [0.1]", r"unknown key in \[settings\] 'lrs': did you mean 'lr'"),
        ("loss_decrease", 'normalize = "tensr"', "settings.normalize should be 'tensor', 'global'"),
        ("loss_decrease", 'update = "jointly"', "settings.update should be 'joint'"),
        ("loss_decrease", "final_samples = 0", "settings.final_samples should be greater"),
        ("loss_decrease", "final_sigma = 0.0", "settings.final_sigma should be greater than 0"),
        ("loss_decrease", 'step_layers = ["hiden"]', "settings.step_layers should be 'all'"),
        ("gradient_quality", "repeats = 0", "settings.repeats should be greater"),
        ("gradient_quality", "reference_passes = 3", "settings.reference_passes should be"),
        ("gradient_quality", "reference_passes = 6", "multiple of 4, not 6"),
        ("gradient_quality", 'reference = "stes"', "settings.reference should be 'cdg'"),
        ("gradient_quality", "reference_epsilon = -0.1", "settings.reference_epsilon should be"),
        ("trajectory", "lr = 0.0", "settings.lr should be greater than 0"),
        ("trajectory", "steps = 0", "settings.steps should be greater"),
        ("trajectory", 'budget = "time"', "settings.budget should be 'steps', 'forward_passes'"),
        ("trajectory", "amount = -1.0", "settings.amount should be greater than 0"),
        ("trajectory", "decay_after = -1", "settings.decay_after should be"),
    ],
)
def test_bad_settings_are_one_sentence(
    study: str, settings: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SPEC.format(study=study, settings=settings, more="", estimator='name = "ste"'))
    with pytest.raises(ValueError, match=sentence) as caught:
        sweep.read_spec(path)
    text = str(caught.value).removeprefix(str(path))
    assert text.endswith(".")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("study", "more", "settings", "estimator", "sentence"),
    [
        ("trajectory", "", "", 'name = "nes"\npopulation = [8, 16]', "one population"),
        ("loss_decrease", "", 'update = "layerwise"', 'name = "nes"\npopulation = [8, 16]',
         "one population"),
        ("trajectory", 'weight = "binary"', "", 'name = "nes_local"', "needs real weights"),
        ("trajectory", "", "", 'name = "ste"\nsurogate = "relu"', "did you mean 'surrogate'"),
        ("loss_decrease", "", "", 'name = "nes"\npopulation = 0', "population"),
        ("loss_decrease", "", "", 'name = "nes"\nsigma = 0', "sigma"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_its_file(
    study: str, more: str, settings: str, estimator: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SPEC.format(study=study, settings=settings, more=more, estimator=estimator))
    with pytest.raises(ValueError, match=sentence) as caught:
        sweep.read_spec(path)
    assert str(caught.value).startswith(f"{path}: ")
