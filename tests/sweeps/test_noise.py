"""The shipped sweeps of noisy networks are valid, and a tiny version of each small one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradlab import studies, sweep, training
from gradlab.sweep.spec import load, shipped_sweeps
from gradlab.training import spec as trainings
from tests.objectives.images import small_images

__all__ = ["small_images"]

NOISE = sorted(
    name for name in shipped_sweeps() if load(name).study == "variational_run"
)  # fmt: skip
FULL = {
    "bayes_mnist", "bayes_networks", "random_labels", "sparse_lenet5", "sparse_mnist",
    "sparse_parameterization", "sparse_vgg", "variational_cifar10",
}  # fmt: skip
ALONE = {
    "bayes_mnist_tempered", "sparse_lenet_300_100", "sparse_lenet_300_100_shifted",
    "sparse_lenet5_removal", "variational_cifar10_faithful", "variational_cifar10_four",
}  # fmt: skip
TINY = ["inits=1", "objective.batch_size=20", "settings.epochs=1", "settings.pretrain_epochs=0",
        "settings.examples=40", "settings.evaluation_examples=20"]  # fmt: skip


def test_each_has_a_small_version() -> None:
    assert set(NOISE) == {*FULL, *ALONE, *(f"{name}_small" for name in FULL)}


@pytest.mark.parametrize("name", NOISE)
@pytest.mark.usefixtures("small_images")
def test_a_shipped_sweep_is_valid_at_full_size(name: str) -> None:
    spec = sweep.read_spec(name)
    assert spec.name == name
    assert spec.title
    assert "Chance is .1." in " ".join(spec.description.split())
    study = studies.create(spec.study)
    for cell in sweep.expand(spec):
        assert study.forward_passes(cell.config) > 0
        assert studies.bytes_needed(cell.config) < 8 * 2**30


def without_warm_up(config: dict[str, Any]) -> dict[str, Any]:
    """The cell with its KL term on from the start: one epoch is all there is."""
    return {**config, "settings": {**config["settings"], "kl_weight": "constant"}}


@pytest.mark.parametrize("name", sorted(f"{name}_small" for name in FULL))
@pytest.mark.usefixtures("small_images")
def test_a_tiny_version_runs(name: str, tmp_path: Path) -> None:
    spec = sweep.read_spec(name, TINY)
    study = studies.create(spec.study)
    first: dict[str, dict[str, Any]] = {}
    for cell in sweep.expand(spec):
        first.setdefault(cell.config["estimator"]["name"], cell.config)
    for config in first.values():
        tables = study.run(without_warm_up(config), tmp_path)
        (result,) = tables["training_result"]
        assert result["epochs_done"] == 1
        assert not result["diverged"]


@pytest.mark.parametrize("name", [
    name for name in sorted(trainings.shipped_trainings())
    if trainings.load(name).variational is not None or name == "mnist_bop"
])  # fmt: skip
def test_a_shipped_training_is_valid(name: str) -> None:
    spec = training.load(name)
    assert spec.name == name
    assert "Chance is .1." in " ".join(spec.description.split())
    training.check(spec)
