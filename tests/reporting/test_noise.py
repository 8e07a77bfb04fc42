"""Tables of training runs with noise: how runs are named, summarized and shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gradlab.reporting import columns, noise, page, page_tables, runs, tables
from gradlab.reporting.stored import StoredStudy
from tests.reporting import synthetic_networks, synthetic_noise
from tests.reporting.synthetic_noise import ARD, NONE, SPARSE


def stored() -> dict[str, pd.DataFrame]:
    return {
        "training_result": synthetic_noise.results(),
        "layer_sparsity": synthetic_noise.layer_sparsity(),
    }


def texts(grid: page_tables.Grid) -> list[list[str]]:
    return [[entry.text for entry in row] for row in grid.rows]


def test_reporting_of_noise_never_imports_torch() -> None:
    modules = ["findings_variational", "noise", "published_ranking", "published_variational"]
    lines = [f"import gradlab.reporting.{module}" for module in modules]
    lines += ["import sys", "assert 'torch' not in sys.modules"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_a_table_of_networks_without_noise_is_not_one_of_noise() -> None:
    assert noise.is_noisy(synthetic_noise.results())
    assert not noise.is_noisy(synthetic_networks.training_result())
    lost = synthetic_noise.results().assign(final_mean_accuracy=None)
    assert not noise.is_noisy(lost)


def test_methods_are_listed_as_they_grew_out_of_each_other() -> None:
    shuffled = synthetic_noise.results().sample(frac=1, random_state=0)
    assert list(columns.methods(runs.annotated(shuffled)).index) == [
        "no noise", "Gaussian S", "sparse VD", "hierarchical VD", "Bayes by Backprop",
    ]  # fmt: skip


def test_every_measured_column_is_known_as_one() -> None:
    rows = synthetic_noise.results(inits=30)  # more values than a setting would take
    frame = runs.annotated(rows)
    assert frame["condition"].unique().tolist() == [""]
    assert frame["method"].nunique() == len(synthetic_noise.METHODS)
    assert runs.annotated(synthetic_noise.training(inits=1))["condition"].unique().tolist() == [""]


def test_options_of_models_are_conditions_and_missing_ones_go_unsaid() -> None:
    both = pd.concat([
        synthetic_noise.results(hidden=[20]),
        synthetic_noise.results(hidden=None, model="conv_net", scale=1.5, dataset="cifar10"),
    ])  # fmt: skip
    assert runs.annotated(both)["condition"].unique().tolist() == [
        "MNIST, fully connected network, hidden 20", "CIFAR-10, ConvNet, scale 1.5",
    ]  # fmt: skip


def test_the_number_of_weights_is_not_taken_for_the_file_they_come_from() -> None:
    frame = noise.layers(synthetic_noise.layer_sparsity(inits=1))
    assert frame["condition"].unique().tolist() == [""]
    assert sorted(frame["weights"].unique()) == [1_000, 30_000, 235_200]


def test_layers_are_numbered_in_the_networks_order_and_not_by_name() -> None:
    names = ["features.0", "features.10", "classifier.0"]
    table = synthetic_noise.layer_sparsity([SPARSE], layers=names)
    numbered = noise.layers(table).drop_duplicates("layer").set_index("layer")["place"]
    assert numbered.to_dict() == {"features.0": 0, "features.10": 1, "classifier.0": 2}
    # where a table says the position, it counts
    turned = table.assign(position=table["layer"].map(names[::-1].index))
    numbered = noise.layers(turned).drop_duplicates("layer").set_index("layer")["place"]
    assert numbered["classifier.0"] == 0
    (grid,) = page_tables.grids(tables.summarize({"layer_sparsity": table}))
    assert [heading.partition(" ")[0] for heading, _ in grid.header[1:4]] == names


def test_sparsity_is_that_of_every_runs_last_epoch() -> None:
    table = synthetic_noise.layer_sparsity([SPARSE, NONE])
    summary = tables.layer_sparsity(table)
    assert summary["method"].unique().tolist() == ["sparse VD"]
    assert summary["sparsity"].tolist() == pytest.approx([0.97, 0.93, 0.6])
    assert summary["kept"].tolist() == [7_056, 2_100, 400]
    assert (summary["n"] == 3).all()
    assert tables.layer_sparsity(synthetic_noise.layer_sparsity([NONE])).empty


def test_results_are_summarized_by_every_judge() -> None:
    rows = synthetic_noise.results()
    summary = tables.training_result(rows).set_index("method")
    own = rows[rows["estimator"] == "sparse"]
    for column in ("final_sample_accuracy", "final_pruned_accuracy", "last_compression"):
        found = summary.loc["sparse VD", [column, f"{column}_low", f"{column}_high"]]
        expected = [own[column].mean(), own[column].min(), own[column].max()]
        assert found.tolist() == pytest.approx(expected)
    assert np.isnan(summary.loc["no noise", "last_compression"])
    column = "final_monte_carlo_calibration_error"
    assert summary.loc["no noise", column] == pytest.approx(0.01)


def test_the_page_shows_every_judge_and_marks_the_best_of_each() -> None:
    summary = tables.summarize(stored())
    trained = page_tables.grids({"training_result": summary["training_result"]})[0]
    headings = [heading for heading, _ in trained.header]
    assert headings[:6] == ["method", "mean weights", "one draw", "Monte Carlo", "pruned",
                            "compression"]  # fmt: skip
    best = {headings[i]: row[0].text for row in trained.rows for i, entry in enumerate(row)
            if entry.style == "best"}  # fmt: skip
    assert best == {"mean weights": "Gaussian S", "one draw": "no noise",
                    "Monte Carlo": "Bayes by Backprop", "pruned": "sparse VD"}  # fmt: skip
    assert texts(trained)[0][4:6] == ["–", "–"]


def test_the_page_has_a_table_of_layers_for_each_kind_of_network() -> None:
    parts = [
        synthetic_noise.layer_sparsity([SPARSE, ARD]),
        synthetic_noise.layer_sparsity([SPARSE, ARD], layers=["features.0", "classifier.0", "c"],
                                       model="lenet5_caffe", hidden=None),
    ]  # fmt: skip
    summary = tables.summarize({"layer_sparsity": pd.concat(parts)})
    found = page_tables.grids(summary)
    assert [grid.title for grid in found] == ["Sparsity of each layer"] * 2
    by_first = {grid.header[2][0]: texts(grid) for grid in found}
    assert by_first["layer 1 (235,200)"][0][1:3] == ["sparse VD", "97.00 [97.00, 97.00]"]
    assert len(by_first["features.0 (235,200)"]) == 2


def test_a_report_of_runs_with_noise_is_whole(tmp_path: Path) -> None:
    model = {"name": "fully_connected", "hidden": [300, 100]}
    spec = {"study": "variational_run", "name": "noise", "settings": {"epochs": 20},
            "objective": {"name": "classifier", "model": model}}  # fmt: skip
    html = page.render(StoredStudy(tmp_path, spec, stored()), [])
    assert "model = fully_connected (hidden = 300, 100)" in html
    for words in ("Ranking by judge", "Sparsity of each layer", "Sparse networks on MNIST",
                  "a tenth of a compression"):  # fmt: skip
        assert words in html
    assert "agrees" not in html
