"""Every shipped sweep is valid, and a tiny version of it runs end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gradlab import studies, sweep
from gradlab.studies.base import Row
from gradlab.sweep.spec import load, shipped_sweeps
from tests.objectives.images import small_images

__all__ = ["small_images"]

SMALL = ["inits=1", "batches=1", "objective.num_dim=[2]", "objective.batch_size=256"]
LRS = "settings.lr=[0.01, 0.3]"
# Every estimator: small networks, few samples.
SIZES = [f"estimators.{name}.population=[8, 16]" for name in
         ("spsa", "nes", "guided", "low_rank_nes", "regression_nes", "ste_mean_nes",
          "switching")]  # fmt: skip
ALL = [
    *SMALL,
    "objective.num_dim=4",
    "student.steps=3",
    "student.batch_size=256",
    *SIZES,
    "estimators.random_cdg.coordinates=2",
    "estimators.forward_gradient.directions=[1, 2]",
]
REAL = [*ALL, "estimators.nes_local.passes=[1, 2]", "estimators.moment_nes.passes=1"]
SIGNS = [*ALL, "settings.reference_epsilon=1",
         *(f"estimators.{name}.population=16" for name in
           ("reinforce", "arm", "disarm", "rao_blackwell_nes")),
         *(f"estimators.{name}.samples=2" for name in
           ("local_expectation", "nes_cdg", "gumbel_softmax", "reinmax"))]  # fmt: skip
TINY: dict[str, list[str]] = {
    "activation_bits": [*SMALL, "objective.num_dim=6"],
    **{f"clip_threshold{size}": [*SMALL, LRS, "student.steps=3", "student.batch_size=256"]
       for size in ("", "_small")},
    # of two weights a narrow clip leaves nothing
    **{f"clip_threshold_cosine{size}": [*SMALL, "objective.num_dim=6", "student.steps=3",
                                        "student.batch_size=256", "settings.reference_passes=4"]
       for size in ("", "_small")},
    "cost_quality": [*SMALL, "settings.reference_passes=4", "settings.repeats=2",
                     "estimators.nes.population=[8, 16]", "estimators.nes_local.passes=[1, 2]"],
    **{f"cost_quality_all{size}": [*REAL, "settings.reference_passes=4"]
       for size in ("", "_small")},
    **{f"cost_quality_binary{size}": SIGNS for size in ("", "_small")},
    **{f"cost_decrease_all{size}": [*REAL, LRS] for size in ("", "_small")},
    "epsilon_sigma": [*SMALL, LRS, "student.steps=3", "student.batch_size=256",
                      "estimators.nes.population=[16]", "estimators.nes_local.passes=2"],
    "final_weights": [*SMALL, LRS, "settings.final_samples=3", "estimators.nes.population=[16]"],
    "fitness_shaping": [*SMALL, LRS, "estimators.nes.population=[16]"],
    "lr_by_num_dim": [*SMALL, LRS, "estimators.nes.population=[8, 16]"],
    "lr_refined": [*SMALL, LRS, "estimators.nes.population=[8, 16]"],
    "quickstart": [*SMALL, LRS, "estimators.nes.population=[8, 16]"],
    "rosenbrock": ["inits=1", "objective.num_dim=4", "settings.steps=20", "settings.points=5",
                   "settings.decay_after=5", "settings.decay_every=5"],
    "stochastic_rounding": [*SMALL, LRS, "student.steps=3", "student.batch_size=256"],
    "trajectory": [*SMALL, "student.steps=3", "student.batch_size=256", "settings.steps=3",
                   "settings.lr=[0.01, 0.03]", "estimators.nes.population=16"],
    "update_order": [*SMALL, LRS, "estimators.nes.population=16"],
}  # fmt: skip

# What a row measures; everything else says which row it is.
MEASURED = {
    "loss_before", "loss_after", "loss_decrease", "loss_decrease_fresh", "forward_passes",
    "backward_passes", "seconds", "cosine", "norm_ratio", "sign_agreement", "split_half_cosine",
    "relative_bias", "relative_variance", "reference_split_half_cosine", "loss", "loss_fresh",
}  # fmt: skip


NETWORK = [
    "inits=1",
    "batches=1",
    "objective.device=cpu",
    "objective.width=2",
    "objective.dataset=cifar10",
    "objective.weight=real",
]
STUDENT = [
    "student.state=early",
    "student.epochs=1",
    "student.examples=64",
    "student.batch_size=32",
]
FEW = [*NETWORK, *STUDENT, "objective.batch_size=4"]
NETWORKS: dict[str, list[str]] = {
    "gradient_by_depth": [*FEW, "objective.layers=[0, -1]", "objective.coordinates=1",
                          "estimators.nes.population=4"],
    "layer_local": [*FEW, LRS, "objective.layers=[-2]", "estimators.nes.population=4",
                    "estimators.nes_local.passes=2"],
    "layer_steps": [*FEW, LRS, "objective.layers=[7]", "objective.coordinates=2",
                    "estimators.nes.population=4"],
    "loss_slice": [*FEW, "objective.layers=[-2]", "settings.points=5",
                   "estimators.nes.population=4"],
    "ste_to_nes": [*FEW, "objective.layers=[-2]", "settings.steps=2", "settings.lr=0.1",
                   "estimators.nes.population=4"],
    "width_weight_decay": [*NETWORK, "objective.batch_size=16", "settings.epochs=1",
                           "settings.examples=64", "settings.evaluation_examples=32"],
}  # fmt: skip


def test_every_shipped_sweep_is_here() -> None:
    networks = {version for name in NETWORKS for version in (name, f"{name}_small")}
    # those of noise have tests of their own
    estimators = {name for name in shipped_sweeps() if not load(name).methods}
    assert estimators == {*TINY, *networks}


@pytest.mark.parametrize("version", ["", "_small"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.usefixtures("small_images")
def test_a_tiny_version_of_networks_runs(name: str, version: str, tmp_path: Path) -> None:
    name, tiny = f"{name}{version}", [*NETWORKS[name]]
    if name == "layer_local_small":
        tiny.append("estimators.nes.population=4")
    full, spec = load(name), sweep.read_spec(name, tiny)
    assert full.name == name
    assert full.title
    assert full.description.strip()
    assert {entry["name"] for entry in full.estimators} == {e["name"] for e in spec.estimators}
    study = studies.create(spec.study)
    cells = sweep.expand(spec)
    # one of each estimator: networks take a while
    first = {cell.config["estimator"]["name"]: cell.config for cell in reversed(cells)}
    for config in first.values():
        assert study.forward_passes(config) > 0
        tables = study.run(config, tmp_path)
        assert all(tables.values())


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_shipped_sweep_is_valid_at_full_size(name: str) -> None:
    spec = sweep.read_spec(name)
    assert spec.name == name
    assert spec.title
    assert spec.description.strip()
    cells = [cell.config for cell in sweep.expand(spec)]
    study = studies.create(spec.study)
    assert all(study.forward_passes(cell) > 0 for cell in cells)
    # what is meant for a laptop fits one
    assert all(studies.bytes_needed(cell) < 4 * 2**30 for cell in cells)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_tiny_version_runs(name: str, tmp_path: Path) -> None:
    full, tiny = sweep.read_spec(name), sweep.read_spec(name, TINY[name])
    assert {entry["name"] for entry in full.estimators} == {e["name"] for e in tiny.estimators}
    study = studies.create(tiny.study)
    rows: list[Row] = []
    for cell in sweep.expand(tiny):
        tables = study.run(cell.config, tmp_path)
        assert list(tables) == [tiny.study]
        assert tables[tiny.study]
        rows += tables[tiny.study]
    sizes = [row.get("loss_decrease", row.get("loss", row.get("cosine"))) for row in rows]
    assert sum(size is not None for size in sizes) > 0.9 * len(sizes)
    assert len({identity(row) for row in rows}) == len(rows)


def identity(row: dict[str, Any]) -> str:
    """Everything that tells a row from others."""
    return json.dumps({k: v for k, v in row.items() if k not in MEASURED}, sort_keys=True)
