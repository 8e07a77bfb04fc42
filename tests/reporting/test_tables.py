from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from gradlab import reporting
from gradlab.reporting import tables
from tests.reporting import synthetic, synthetic_networks


def test_export_writes_every_row_and_a_summary(tmp_path: Path) -> None:
    rows = synthetic.loss_decrease(
        [synthetic.CDG, synthetic.NES[0]], [2, 4], 3, 1, [0.03, 0.1, 0.3]
    )
    folder = synthetic.store(tmp_path / "s", {"loss_decrease": rows})
    written = {path.name: path for path in reporting.export(folder)}
    assert set(written) == {
        "loss_decrease.csv", "loss_decrease.parquet", "summary_loss_decrease.csv",
    }  # fmt: skip
    assert len(pd.read_csv(written["loss_decrease.csv"])) == len(rows)
    summary = pd.read_csv(written["summary_loss_decrease.csv"])
    assert summary[["num_dim", "method"]].to_numpy().tolist() == [
        [2, "CDG"], [2, "NES 500"], [4, "CDG"], [4, "NES 500"],
    ]  # fmt: skip
    assert summary["best_lr"].tolist() == [0.1] * 4


def test_gradient_summaries_keep_layers_in_order() -> None:
    summary = tables.gradient_quality(synthetic.gradient_quality([synthetic.CDG], noise=0.0))
    layers = [f"layers.{i}.weight" for i in range(4)]
    assert summary["layer"].tolist() == [*layers, "hidden", "all"]
    assert summary["cosine"].tolist() == pytest.approx([1.0] * 6)
    assert summary["forward_passes"].tolist() == [6208.0] * 6


def test_trajectory_summaries_take_the_last_loss() -> None:
    rows = synthetic.trajectory([synthetic.CDG], [8], inits=3, budgets=["seconds"])
    summary = tables.trajectory(rows).iloc[0]
    last = rows[rows["step"] == rows["step"].max()]
    assert summary["final_loss"] == pytest.approx(last["loss"].mean())
    assert summary["seconds"] == pytest.approx(last["seconds"].mean())
    assert summary["diverged"] == 0


def test_published_numbers_are_a_table_of_their_own() -> None:
    found = tables.summarize({"gradient_quality": synthetic.gradient_quality()})
    assert set(found) == {"gradient_quality", "published"}


def test_a_study_where_every_run_diverged_has_no_summary() -> None:
    rows = synthetic.loss_decrease([synthetic.CDG], [8], 3, 1, [0.1, 1.0])
    assert tables.summarize({"loss_decrease": rows.assign(loss_decrease=None)}) == {}
    ends = synthetic.trajectory([synthetic.CDG], [8], steps=3).assign(loss=None)
    assert tables.summarize({"trajectory": ends})["trajectory"]["diverged"].tolist() == [3, 3]


def test_tables_of_networks_have_no_num_dim() -> None:
    found = tables.summarize(
        {
            "loss_decrease": synthetic_networks.loss_decrease([synthetic.CDG], lrs=[0.1]),
            "gradient_quality": synthetic_networks.gradient_quality([synthetic.CDG]),
            "training_result": synthetic_networks.training_result(),
        }
    )
    assert set(found) == {"loss_decrease", "gradient_quality", "training_result", "published"}
    assert not any("num_dim" in frame for frame in found.values())
    layers = found["gradient_quality"].query("condition == 'fresh'")["depth_index"]
    assert layers.dropna().tolist() == list(range(19))
    assert found["loss_decrease"]["condition"].tolist()[:2] == [
        "first layer, fresh", "first layer, early in training",
    ]  # fmt: skip


def test_training_summaries_are_means_over_inits_with_their_intervals() -> None:
    rows = synthetic_networks.training_result(widths=[8], decays=[0.0, 1e-5])
    rows.loc[(rows["weight_decay"] == 0) & (rows["init"] == 2), "val_accuracy"] = None
    summary = tables.training_result(rows).set_index("condition")
    one = summary.loc["weight decay 1e-05"]
    own = rows.loc[rows["weight_decay"] == 1e-5, "val_accuracy"]
    assert one["val_accuracy"] == pytest.approx(own.mean())
    assert (one["val_accuracy_low"], one["val_accuracy_high"]) == (own.min(), own.max())
    lost = summary.loc["weight decay 0"]
    assert (lost["n"], lost["diverged"]) == (2, 1)
    assert pd.isna(lost["val_accuracy_low"])
