"""The study of gradient variance: its statistics by hand, and its cells on small networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab import studies, training
from gradlab.studies import cells, gradient_variance, noise_gradients
from gradlab.studies.base import Row
from gradlab.studies.gradient_variance import BLOCKS, Products
from gradlab.sweep import rates
from tests.objectives.images import small_images
from tests.studies import configs

__all__ = ["small_images"]

NETWORK: dict[str, Any] = {
    "name": "classifier", "dataset": "mnist", "batch_size": 16,
    "model": {"name": "fully_connected", "hidden": [5], "activation": "tanh"},
}  # fmt: skip
CONVOLUTIONS = {"name": "lenet5_caffe", "filters": [2, 3], "hidden": [4]}
PATHWISE = {"name": "pathwise"}
SHORT: dict[str, Any] = {"repeats": 8, "reference_passes": 64}


def cell(
    method: dict[str, Any] = PATHWISE,
    objective: dict[str, Any] = NETWORK,
    student: dict[str, Any] | None = None,
    init: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    return configs.cell("gradient_variance", method, objective, student=student, init=init,
                        **{**SHORT, **settings})  # fmt: skip


def measured(config: dict[str, Any], scratch: Path) -> dict[str, Row]:
    """The rows of a cell by layer."""
    studies.create("gradient_variance").validate(config)
    return {row["layer"]: row for row in configs.run(config, scratch)}


def products(
    repeats: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0, length: int = 400
) -> tuple[Products, Tensor, Tensor]:
    """Estimates around a known gradient plus a known bias, and blocks of a reference around it."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.ones(length).double()
    noise = torch.randn(repeats + BLOCKS, length, generator=generator).double()
    x = truth + shift + scale * noise[:repeats]
    y = truth + 0.3 * noise[repeats:]
    rows = torch.cat([x, y])
    return Products(rows @ rows.T, BLOCKS), x, y


def test_a_row_by_hand() -> None:
    found, x, y = products(12, shift=0.5)
    row = found.row(passes=3.0)
    variance = float(x.var(dim=0).sum())
    pairs = [float(y[i] @ y[j]) for i in range(BLOCKS) for j in range(BLOCKS) if i != j]
    square = sum(pairs) / len(pairs)
    mean = y.mean(0)
    cosines = [float(g @ mean / (g.norm() * mean.norm())) for g in x]
    halves = y[:4].mean(0), y[4:].mean(0)
    assert row["gradient_variance"] == pytest.approx(variance)
    assert row["reference_norm"] == pytest.approx(math.sqrt(square))
    assert row["relative_variance"] == pytest.approx(variance / square)
    assert row["relative_variance_per_pass"] == pytest.approx(3 * variance / square)
    assert row["signal_to_noise"] == pytest.approx(math.sqrt(square / variance))
    assert row["cosine"] == pytest.approx(sum(cosines) / len(cosines))
    assert row["reference_split_half_cosine"] == pytest.approx(
        float(torch.cosine_similarity(*halves, dim=0))
    )
    assert row["relative_bias"] == pytest.approx(0.5, rel=0.1)
    assert row["bias_z"] > 20


def test_z_is_standard_normal_without_bias() -> None:
    scores = []
    for seed in range(300):
        distance, error = products(8, seed=seed, length=100)[0].bias
        scores.append(distance / error)
    z = torch.tensor(scores)
    assert abs(float(z.mean())) < 4 / math.sqrt(300)
    assert float(z.std()) == pytest.approx(1, abs=0.2)


def test_a_squared_covariance_is_unbiased_whatever_the_distribution() -> None:
    scales = torch.linspace(0.2, 1.5, 20).double()
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(2000):
        # products of normal numbers: heavy tails, variance 1
        x = torch.randn(2, 5, 20, generator=generator).double().prod(0) * scales + 3
        found.append(gradient_variance._squared_covariance(x @ x.T))
    values = torch.tensor(found)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - float(scales.pow(4).sum())) < 4 * error


def test_a_reference_that_is_all_noise_has_no_relative_numbers() -> None:
    vectors = torch.eye(12).double()
    row = Products(vectors - 0.05, BLOCKS).row(1.0)
    assert row["reference_norm"] == 0
    assert row["relative_variance"] is None
    assert row["relative_bias"] is None


@pytest.mark.usefixtures("small_images")
class TestCells:
    def test_rows_hold_what_sources_draw(self, tmp_path: Path) -> None:
        config = cell()
        rows = measured(config, tmp_path)
        names = ["classifier.0.weight", "classifier.2.weight"]
        assert [*rows] == [*names, "all"]
        assert [row["depth_index"] for row in rows.values()] == [0, 1, None]
        objective: Any = cells.objective_of(config)
        draw = noise_gradients.Pathwise().prepare(objective, objective.params)
        drawn = [draw(cells.generator_of(config, repeat)).gradient for repeat in range(8)]
        for name in names:
            gradients = torch.stack([g[name].double().flatten() for g in drawn])
            assert rows[name]["gradient_variance"] == pytest.approx(
                float(gradients.var(dim=0).sum()), rel=1e-5
            )
        row = rows["all"]
        assert row["gradient_variance"] == pytest.approx(
            sum(rows[name]["gradient_variance"] for name in names)
        )
        assert row["relative_variance_per_pass"] == pytest.approx(2 * row["relative_variance"])
        assert (row["label"], row["reference"], row["student"]) == (
            "pathwise on weights", "pathwise on pre-activations", "fresh")  # fmt: skip
        assert (row["noise"], row["sigma"], row["hidden"]) == ("weights", 0.1, "[5]")

    @pytest.mark.parametrize("method", [
        PATHWISE | {"noise": "flipout"},
        PATHWISE | {"noise": "preactivations", "noise_scale": "multiplicative", "sigma": 1.0},
        {"name": "score_function", "population": 20},
        {"name": "score_function", "noise": "preactivations"},
    ], ids=["flipout", "multiplicative", "nes", "local nes"])  # fmt: skip
    def test_nothing_is_biased(self, method: dict[str, Any], tmp_path: Path) -> None:
        rows = measured(cell(method, repeats=40, reference_passes=256), tmp_path)
        assert all(-4 < row["bias_z"] < 5 for row in rows.values())
        assert rows["all"]["reference_split_half_cosine"] > 0.8

    def test_another_sigma_is_told_from_this_one(self, tmp_path: Path) -> None:
        """The z-test sees a wrong reference."""
        config = cell(PATHWISE | {"noise": "preactivations", "sigma": 0.02}, repeats=40)
        objective: Any = cells.objective_of(config)
        params = objective.params
        wrong = noise_gradients.Pathwise("preactivations", sigma=0.3)
        settings = gradient_variance.GradientVarianceSettings(reference_passes=256)
        blocks = gradient_variance._reference(config, settings, wrong, objective, params, tmp_path)
        draw = noise_gradients.Pathwise("preactivations", sigma=0.02).prepare(objective, params)
        drawn = [draw(cells.generator_of(config, repeat)).gradient for repeat in range(40)]
        gram = gradient_variance.gram(drawn, blocks, "classifier.2.weight")
        assert Products(gram, BLOCKS).row(1.0)["bias_z"] > 8

    def test_convolutions_have_a_reference_for_each_smoothing(self, tmp_path: Path) -> None:
        objective = NETWORK | {"model": CONVOLUTIONS, "batch_size": 4}
        found = {
            noise: measured(cell(PATHWISE | {"noise": noise}, objective), tmp_path)["all"]
            for noise in ("weights", "preactivations")
        }
        assert found["weights"]["reference"] == "pathwise with flipout"
        assert found["preactivations"]["reference"] == "pathwise on pre-activations"
        assert len([*tmp_path.glob("smoothed-*")]) == 2

    def test_a_cell_gives_the_same_bits_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(gradient_variance.TRAINING, "batch_size", 20)
        config = cell({"name": "score_function", "population": 6}, train_epochs=1)
        first, again = (configs.run(config, tmp_path / place) for place in "ab")
        shared = configs.run(config, tmp_path / "b")
        assert configs.without_seconds(first) == configs.without_seconds(again)
        assert configs.without_seconds(first) == configs.without_seconds(shared)
        other = configs.run(cell({"name": "score_function", "population": 6}, init=1), tmp_path)
        assert other[0]["relative_variance"] != first[0]["relative_variance"]

    def test_methods_share_the_training_and_the_reference(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(gradient_variance.TRAINING, "batch_size", 20)
        trained: list[Path] = []
        original = training.run

        def counted(spec: Any, folder: Path) -> Any:
            result = original(spec, folder)
            if result.trained:
                trained.append(folder)
            return result

        monkeypatch.setattr(training, "run", counted)
        first = measured(cell(train_epochs=1), tmp_path)
        second = measured(cell(PATHWISE | {"noise": "flipout"}, train_epochs=1), tmp_path)
        fresh = measured(cell(), tmp_path)
        assert len(trained) == 1
        assert len([*tmp_path.glob("smoothed-*")]) == 2
        assert first["all"]["student"] == "trained (1 epoch)"
        norms = [rows["all"]["reference_norm"] for rows in (first, second, fresh)]
        assert norms[0] == norms[1] != norms[2]
        assert str(tmp_path) not in str(first)

    @pytest.mark.parametrize(("config", "words"), [
        (cell(objective={"name": "network"}), 'use name = "classifier"'),
        (cell(student={"state": "converged"}), r"leave out \[student\]"),
        (cell(objective=NETWORK | {"weights": "a"}, train_epochs=1), "leave out one of them"),
        (cell(PATHWISE | {"noise": "flipout", "noise_scale": "multiplicative"}),
         'use noise_scale = "relative"'),
        (cell(objective=NETWORK | {"model": "lenet"}), "only torch.nn.Linear"),
    ], ids=["objective", "student", "weights", "flipout", "binary layers"])  # fmt: skip
    def test_what_cannot_run_is_refused(self, config: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            studies.create("gradient_variance").validate(config)

    def test_work_is_counted_by_hand(self) -> None:
        score = {"name": "score_function", "population": 10}
        config = cell(score, objective=NETWORK | {"model": CONVOLUTIONS}, train_epochs=2)
        found = {each.kind: each for each in rates.work(config)}
        assert {kind: each.count for kind, each in found.items()} == {
            "batch": 1, "member": 90, "estimate": 16, "network": 1200,
        }  # fmt: skip
        assert found["estimate"].cell["estimator"]["noise"] == "flipout"
        assert found["estimate"].once_per == ("init", "batch")
        assert all(seconds > 0 for _, seconds in rates.Rates().costs(cell(score)))
        assert studies.bytes_needed(config) > 0
