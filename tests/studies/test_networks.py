"""Studies on networks of images: states of training, columns, and cells of every study."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from gradlab import data, estimators, studies, training
from gradlab.objectives import Network, network_state
from gradlab.studies import cells, networks, students
from gradlab.studies.base import Cell, Row
from gradlab.training import setup
from tests.objectives.images import small_images
from tests.studies import configs
from tests.studies.configs import rows_of

__all__ = ["small_images"]

pytestmark = pytest.mark.usefixtures("small_images")

SMALL: dict[str, Any] = {
    "name": "network", "dataset": "mnist", "model": "xnor_mlp", "width": 6, "depth": 3,
    "batch_size": 16, "layers": [1], "weight": "real",
}  # fmt: skip
RESNET: dict[str, Any] = {
    "name": "network", "dataset": "cifar10", "width": 2, "batch_size": 4, "layers": [0, -2],
    "coordinates": 3,
}  # fmt: skip
TRAINED = {"state": "mid", "epochs": 10, "examples": 64, "batch_size": 16, "lr": 0.01}


def cell(
    study: str,
    estimator: dict[str, Any] = configs.STE,
    objective: dict[str, Any] = SMALL,
    **options: Any,
) -> dict[str, Any]:
    return configs.cell(study, estimator, objective, **options)


def state(name: str, **changes: Any) -> dict[str, Any]:
    return cell("loss_decrease", student={**TRAINED, "state": name, **changes})


def weights_of(config: Cell, scratch: Path) -> dict[str, torch.Tensor]:
    """All parameters and statistics that a cell measures at."""
    objective = cells.objective_of(config, scratch=scratch)
    assert isinstance(objective, Network)
    program = objective.evaluator.program
    return {**program.params, **program.buffers}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How far each call of the training went."""
    found: list[int] = []
    original = training.run

    def counted(spec: Any, folder: Path, *, stop_after: int | None = None) -> Any:
        found.append(stop_after or spec.loop.epochs)
        return original(spec, folder, stop_after=stop_after)

    monkeypatch.setattr(training, "run", counted)
    return found


def test_states_are_those_of_the_training_run(tmp_path: Path, runs: list[int]) -> None:
    found = {name: weights_of(state(name), tmp_path) for name in ("mid", "early", "converged")}
    # one run goes as far as it is asked to; what it passed through needs no other
    assert runs == [5, 10]
    whole = tmp_path / "whole"
    training.run(networks.training_spec(state("converged")), whole)
    for name, epoch in (("early", 1), ("mid", 5), ("converged", 10)):
        module = cells.objective_of(state(name)).architecture.create()
        training.load_weights(module, whole / f"weights-epoch-{epoch:04d}.safetensors")
        for key, tensor in module.state_dict().items():
            assert torch.equal(found[name][key], tensor)
    last = training.load_weights(module, whole)
    assert last is not None
    for key, tensor in module.state_dict().items():
        assert torch.equal(found["converged"][key], tensor)


@pytest.mark.parametrize("objective", [SMALL, RESNET], ids=["mlp", "resnet"])
def test_a_fresh_network_is_the_start_of_its_own_training(
    objective: dict[str, Any], tmp_path: Path
) -> None:
    trained = cell("loss_decrease", objective=objective, student=TRAINED, init=2)
    _, start = setup.prepare(networks.training_spec(trained))
    fresh = weights_of(cell("loss_decrease", objective=objective, init=2), tmp_path)
    for name, tensor in start.model.named_parameters():
        assert torch.equal(fresh[name], tensor)
    other = weights_of(cell("loss_decrease", objective=objective, init=1), tmp_path)
    assert any(not torch.equal(fresh[name], other[name]) for name in fresh)


def test_training_brings_the_loss_down(tmp_path: Path) -> None:
    losses = {}
    for name in ("fresh", "early", "converged"):
        config = state(name) if name != "fresh" else cell("loss_decrease")
        objective = cells.objective_of(config, scratch=tmp_path)
        losses[name] = float(objective.loss(students.student_of(config, tmp_path)))
    assert losses["converged"] < 0.95 * losses["fresh"]
    assert losses["converged"] < losses["early"]


def test_cells_that_need_the_same_network_share_it(tmp_path: Path, runs: list[int]) -> None:
    first = students.student_of(state("early"), tmp_path)
    for other in (
        {"batch": 1}, {"objective": {**SMALL, "batch_size": 8}}, {"estimator": configs.NES}
    ):  # fmt: skip
        config = cell("loss_decrease", student={**TRAINED, "state": "early"}, **other)
        same = students.student_of(config, tmp_path)
        assert all(torch.equal(first[name], same[name]) for name in first)
    layer = cell(
        "loss_decrease", objective={**SMALL, "layers": [0]}, student={**TRAINED, "state": "early"}
    )
    students.student_of(layer, tmp_path)
    assert runs == [1]
    for changed in (
        cell("loss_decrease", student={**TRAINED, "state": "early"}, init=1),
        cell("loss_decrease", student={**TRAINED, "state": "early"}, seed=1),
        cell("loss_decrease", student={**TRAINED, "state": "early", "lr": 0.02}),
        cell("loss_decrease", objective={**SMALL, "width": 4},
             student={**TRAINED, "state": "early"}),
    ):  # fmt: skip
        students.student_of(changed, tmp_path)
    assert runs == [1] * 5


def test_two_workers_never_train_the_same(tmp_path: Path, runs: list[int]) -> None:
    both = threading.Barrier(2, timeout=30)

    def work(_: int) -> Path | None:
        both.wait()
        return networks.trained_weights(state("early"), tmp_path)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert first == second
    assert first is not None
    assert first.is_file()
    assert runs == [1]


def test_a_killed_training_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = networks.trained_weights(state("mid"), tmp_path / "whole")
    assert expected is not None
    original, epochs = training.run, []

    def killed(spec: Any, folder: Path, *, stop_after: int | None = None) -> Any:
        original(spec, folder, stop_after=2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            networks.trained_weights(state("mid"), tmp_path / "killed")

    def counted(spec: Any, folder: Path, *, stop_after: int | None = None) -> Any:
        result = original(spec, folder, stop_after=stop_after)
        epochs.append(result.trained)
        return result

    monkeypatch.setattr(training, "run", counted)
    found = networks.trained_weights(state("mid"), tmp_path / "killed")
    assert found is not None
    assert epochs == [3]
    stored = load_file(expected)
    assert all(torch.equal(stored[name], each) for name, each in load_file(found).items())


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ({}, {"state": "fresh"}),
        ({"state": "fresh", "epochs": 7}, {"state": "fresh"}),
        (
            {"state": "early"},
            {"state": "early", "epochs": 20, "examples": None, "batch_size": 256, "lr": 0.001},
        ),
    ],
)
def test_student_tables(student: dict[str, Any], expected: dict[str, Any]) -> None:
    assert students.canonical(student, "network") == expected


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ({"state": "late"}, "unknown state 'late'.*early"),
        ({"steps": 3}, r"unknown key of \[student\] 'steps'"),
        ({"state": "mid", "epochs": 0}, "student.epochs is 0"),
        ({"state": "mid", "examples": 1.5}, "student.examples is 1.5"),
        ({"state": "mid", "batch_size": True}, "student.batch_size is True"),
        ({"state": "mid", "lr": 0}, "student.lr is 0"),
    ],
)
def test_impossible_students_are_refused(student: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        students.canonical(student, "network")


@pytest.mark.parametrize("estimator", [configs.CDG, configs.STE, configs.NES, configs.LOCAL])
def test_a_cell_is_a_pure_function(estimator: dict[str, Any], tmp_path: Path) -> None:
    config = cell("loss_decrease", estimator, student={**TRAINED, "epochs": 4}, lr=[0.01, 0.1])
    first = configs.run(config, tmp_path / "a")
    torch.manual_seed(1)
    network_state._network_state.cache_clear()
    again = configs.run(config, tmp_path / "b")
    assert configs.without_seconds(first) == configs.without_seconds(again)
    assert all(row["loss_decrease"] is not None for row in first)


def test_a_step_is_that_of_the_whole_network(tmp_path: Path) -> None:
    config = cell("loss_decrease", lr=[1e-3, 0.3], student={**TRAINED, "epochs": 4})
    rows = configs.run(config, tmp_path)
    objective = cells.objective_of(config, scratch=tmp_path)
    fresh = cells.objective_of(config, batch=cells.FRESH_BATCHES, scratch=tmp_path)
    assert isinstance(objective, Network)
    assert isinstance(fresh, Network)
    (name,) = objective.layer_names
    gradient = estimators.create("ste").estimate(
        objective, objective.params, generator=torch.Generator()
    ).gradient[name].double()  # fmt: skip
    for row in rows:
        for column, judge in (("loss_decrease", objective), ("loss_decrease_fresh", fresh)):
            losses = []
            for lr in (0.0, row["lr"]):
                module = judge.architecture.create()
                training.load_weights(module, Path(str(judge.weights)))
                module = module.double().eval()
                with torch.no_grad():
                    module.get_parameter(name).sub_(lr * gradient / (gradient.norm() + 1e-8))
                    outputs = module(judge.inputs.double())
                losses.append(float(F.cross_entropy(outputs, judge.targets)))
            assert row[column] == pytest.approx(losses[0] - losses[1], rel=1e-6, abs=1e-12)
    shared = set(map(str, objective.inputs)) & set(map(str, fresh.inputs))
    assert not shared


def test_gradients_by_depth(tmp_path: Path) -> None:
    config = cell("gradient_quality", objective={**SMALL, "layers": [2, 0]}, repeats=2)
    rows = configs.run(config, tmp_path)
    depths = {row["layer"]: row["depth_index"] for row in rows}
    assert depths == {
        "hidden.0.linear.weight": 0, "hidden.2.linear.weight": 2, "all": None,
    }  # fmt: skip
    objective = cells.objective_of(config)
    params = students.student_of(config, tmp_path)
    gradient = cells.estimator_of(config).estimate(
        objective, params, generator=cells.generator_of(config)
    ).gradient  # fmt: skip
    cdg = estimators.create("cdg").estimate(objective, params, generator=torch.Generator()).gradient
    for name, each in gradient.items():
        (row, _) = rows_of(rows, layer=name)
        assert row["gradient_norm"] == pytest.approx(float(each.double().norm()))
        assert row["reference_norm"] == pytest.approx(float(cdg[name].double().norm()))
        assert row["cosine"] == pytest.approx(estimators.cosine(each, cdg[name]))


def test_a_smoothed_reference_of_a_network(tmp_path: Path) -> None:
    config = cell(
        "gradient_quality", configs.LOCAL, reference="smoothed", reference_passes=8, repeats=1
    )
    studies.create("gradient_quality").validate(config)
    rows = configs.run(config, tmp_path)
    assert all(-1 <= row["reference_split_half_cosine"] <= 1 for row in rows)
    few = cell("gradient_quality", objective={**SMALL, "coordinates": 3}, reference="smoothed")
    with pytest.raises(ValueError, match='use reference = "cdg"'):
        studies.create("gradient_quality").validate(few)


@pytest.mark.parametrize("estimator", [configs.STE, configs.NES])
def test_a_trajectory_moves_the_chosen_layers(estimator: dict[str, Any], tmp_path: Path) -> None:
    config = cell("trajectory", estimator, steps=4, points=4, lr=0.05,
                  student={**TRAINED, "state": "early"})  # fmt: skip
    rows = configs.run(config, tmp_path)
    assert (rows[0]["step"], rows[-1]["step"]) == (0, 4)
    assert len({row["loss"] for row in rows}) == len(rows) > 3
    assert len({row["loss_fresh"] for row in rows}) > 1
    again = configs.run(config, tmp_path)
    assert configs.without_seconds(rows) == configs.without_seconds(again)


def test_key_columns_say_which_network() -> None:
    objective = {**SMALL, "surrogate": {"name": "hardtanh", "threshold": 1.3}, "layers": [0, -2]}
    ste = {**configs.STE, "surrogate": "polynomial"}
    columns = cells.key_columns(cell("gradient_quality", ste, objective, student=TRAINED))
    expected = {
        "objective": "network", "dataset": "mnist", "model": "xnor_mlp", "width": 6, "depth": 3,
        "weight": "real", "batch_size": 16, "network_surrogate": "hardtanh(threshold=1.3)",
        "surrogate": "polynomial", "layers": "layers 0 and -2", "init": 0, "batch": 0,
        "estimator": "ste", "student": "mid (10 epochs, 64 images, 16 a batch, 0.01 lr)",
    }  # fmt: skip
    assert {key: columns[key] for key in expected} == expected
    assert not {"num_dim", "block", "coordinates", "weights", "network_weight_surrogate"} & {
        *columns
    }
    assert all(isinstance(value, str | int | float | bool) for value in columns.values())


MATCHED = {**configs.STE, "surrogate": "matched"}
MOMENTS = {"name": "moment_propagation", "sigma": 0.1}


@pytest.mark.parametrize(
    "estimator", [configs.CDG, configs.STE, configs.NES, configs.LOCAL, MATCHED, MOMENTS]
)
@pytest.mark.parametrize("objective", [SMALL, RESNET], ids=["perceptron", "resnet"])
def test_costs_known_beforehand_are_those_reported(
    estimator: dict[str, Any], objective: dict[str, Any]
) -> None:
    if estimator in (configs.LOCAL, MATCHED, MOMENTS):
        objective = {**objective, "coordinates": None}
    config = cell("loss_decrease", estimator, objective)
    made = cells.objective_of(config)
    assert isinstance(made, Network)
    params = made.params
    assert cells.sizes_of(config) == (len(params), sum(w.numel() for w in params.values()))
    if estimator is not configs.CDG:  # of 19 layers that is for the tests of the objective
        estimate = cells.estimator_of(config).estimate(
            made, params, generator=cells.generator_of(config)
        )
        passes = estimate.forward_passes + estimate.backward_passes
        assert cells.nominal_passes(config) == passes
    assert cells.estimator_work(config) > 0
    assert studies.bytes_needed(config) > 2**28
    assert studies.create("loss_decrease").forward_passes(config) > 0


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            cell("loss_decrease", configs.LOCAL, {**SMALL, "coordinates": 2}),
            "perturbs whole layers",
        ),
        (cell("loss_decrease", step_layers=["hidden"]), "leave settings.step_layers"),
        (
            cell("loss_decrease", objective={**SMALL, "weights": "a.safetensors"}, student=TRAINED),
            "objective.weights",
        ),
        (
            cell("loss_decrease", student={**TRAINED, "examples": 60_001}),
            "60,001|60001",
        ),
    ],
    ids=["local", "step_layers", "weights", "examples"],
)
def test_what_does_not_go_together_is_refused(config: Cell, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        studies.create("loss_decrease").validate(config)
    assert "\n" not in str(caught.value)


def test_missing_images_are_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "splits_here", lambda name, root=None: [])
    for study in ("loss_decrease", "gradient_quality", "trajectory", "training_run"):
        config = cell(study, objective={**SMALL, "layers": None})
        with pytest.raises(ValueError, match="`gradlab data fetch mnist`"):
            studies.create(study).validate(config)


def test_a_resnet_goes_through_every_study(tmp_path: Path) -> None:
    for study, settings in (
        ("loss_decrease", {"lr": [0.1]}),
        ("gradient_quality", {}),
        ("trajectory", {"steps": 1, "points": 1}),
        ("loss_slice", {"points": 5}),
    ):
        config = cell(study, configs.NES, RESNET, **settings)
        studies.create(study).validate(config)
        tables = studies.create(study).run(config, tmp_path)
        rows: list[Row] = [row for table in tables.values() for row in table]
        assert rows
        assert all(row["objective"] == "network" for row in rows)


def test_the_training_spec_is_one_that_training_takes() -> None:
    setup.check(networks.training_spec(state("mid")))
