"""Noisy training runs as cells, against the same runs by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradlab import studies, sweep, training, variational
from gradlab.studies import variational_run
from gradlab.studies.base import Tables
from tests.objectives.images import small_images
from tests.studies import configs

__all__ = ["small_images"]

pytestmark = pytest.mark.usefixtures("small_images")

NETWORK: dict[str, Any] = {
    "name": "classifier", "dataset": "mnist", "batch_size": 16,
    "model": {"name": "fully_connected", "hidden": [6]},
}  # fmt: skip
SHORT: dict[str, Any] = {"epochs": 3, "lr": 0.01, "evaluation_examples": 50}
SPARSE = {"name": "sparse", "threshold": 1.0, "initial": -3.5}


def cell(
    method: dict[str, Any] = SPARSE,
    objective: dict[str, Any] = NETWORK,
    student: dict[str, Any] | None = None,
    init: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    return configs.cell("variational_run", method, objective, student=student, init=init,
                        **{**SHORT, **settings})  # fmt: skip


def run(config: dict[str, Any], scratch: Path) -> Tables:
    study = studies.create("variational_run")
    study.validate(config)
    return study.run(config, scratch)


def test_a_cell_is_the_run_of_its_spec(tmp_path: Path) -> None:
    config = cell(kl_weight={"name": "linear", "start": 1, "length": 2}, record_every=2)
    tables = run(config, tmp_path)
    expected = training.run(variational_run.spec_of(config), tmp_path / "by hand")
    (result,) = tables["training_result"]
    for row, epoch in zip(tables["training"], expected.epochs, strict=True):
        for name in ("train_nll", "kl", "kl_weight_now", "val_accuracy", "sample_loss",
                     "pruned_accuracy", "compression"):  # fmt: skip
            assert row[name] == pytest.approx(epoch[name])
    for name in ("val_accuracy", "sample_accuracy", "pruned_accuracy"):
        assert result[f"last_{name}"] == expected.epochs[-1][name]
        assert result[f"best_{name}"] == max(epoch[name] for epoch in expected.epochs)
    final = expected.final["predictions"]
    for kind in ("mean", "sample", "monte_carlo", "pruned"):
        assert result[f"final_{kind}_accuracy"] == final[kind]["accuracy"]
    model, _ = training.build(expected.weights)
    assert result["last_compression"] == pytest.approx(variational.compression(model))
    layers = tables["layer_sparsity"]
    assert [row["epoch"] for row in layers] == [2, 2, 3, 3]
    assert [row["kept"] for row in layers[2:]] == [
        row["kept"] for row in variational.layer_rows(model)
    ]
    assert sum(row["kept"] for row in tables["kept_inputs"]) == layers[2]["kept"]
    assert sum(row["count"] for row in tables["log_alpha"]) == 784 * 6 + 6 * 10
    assert (result["model"], result["hidden"], result["label"]) == (
        "fully_connected", "[6]", "sparse VD")  # fmt: skip
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "by hand"]


def test_methods_share_their_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    original = training.run

    def counted(spec: Any, folder: Path) -> Any:
        result = original(spec, folder)
        if result.trained:
            trained.append("plain" if spec.variational is None else "noisy")
        return result

    monkeypatch.setattr(training, "run", counted)
    first = run(cell(pretrain_epochs=2), tmp_path)
    run(cell({"name": "bernoulli"}, pretrain_epochs=2), tmp_path)
    assert trained == ["plain", "noisy", "noisy"]
    without = run(cell(), tmp_path)
    assert first["training"][0]["train_nll"] != without["training"][0]["train_nll"]


def test_a_run_that_diverges_is_shown(tmp_path: Path) -> None:
    tables = run(cell(optimizer="sgd", lr=3e38), tmp_path)
    (result,) = tables["training_result"]
    assert result["diverged"]
    assert tables["training"][-1]["diverged"]


@pytest.mark.parametrize(("config", "words"), [
    (cell(objective={"name": "network"}), 'use name = "classifier"'),
    (cell(objective={**NETWORK, "weights": "a"}), "leave out objective.weights"),
    (cell(student={"state": "converged"}), r"leave out \[student\]"),
    (cell(examples=60_001), "settings.examples is 60,001"),
    (cell(kl_weight="linaer"), "did you mean 'linear'"),
    (cell(optimizer="adm"), "did you mean 'adam'"),
])  # fmt: skip
def test_what_cannot_run_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        studies.create("variational_run").validate(config)


SPEC = """
name = "noise"
study = "variational_run"
[objective]
name = "classifier"
dataset = "mnist"
model = [{name = "fully_connected", hidden = [4]}, {name = "fully_connected", hidden = [6, 5]}]
batch_size = 20
[settings]
epochs = 1
lr = 1e-3
kl_weight = {name = "linear", start = 1, length = 2}
[[methods]]
name = "bernoulli"
p = [0.2, 0.5]
[[methods]]
name = "none"
"""


def test_a_sweep_lists_methods_in_place_of_estimators(tmp_path: Path) -> None:
    path = tmp_path / "noise.toml"
    path.write_text(SPEC)
    spec = sweep.read_spec(path, ["methods.bernoulli.p=0.3"])
    found = [(c.config["estimator"]["name"], c.config["objective"]["model"]["hidden"])
             for c in sweep.expand(spec)]  # fmt: skip
    assert found == [("bernoulli", [4]), ("none", [4]), ("bernoulli", [6, 5]), ("none", [6, 5])]
    for before, after, words in (
        ("[[methods]]", "[[estimators]]", r"compares methods: write \[\[methods\]\]"),
        ('"variational_run"', '"loss_decrease"', r"compares estimators: write \[\[estimators\]\]"),
        ('"bernoulli"', '"bernouli"', "did you mean 'bernoulli'"),
        ("p = [0.2, 0.5]", "q = 0.5", "unknown option of methods.bernoulli 'q'"),
        ("p = [0.2, 0.5]", "p = 1.5", "methods.bernoulli: p is 1.5"),
        ("[[methods]]", '[[estimators]]\nname = "ste"\n[[methods]]', "not both"),
    ):
        path.write_text(SPEC.replace(before, after, 1 if "ste" in after else -1))
        with pytest.raises(sweep.SpecError, match=words):
            sweep.read_spec(path)
