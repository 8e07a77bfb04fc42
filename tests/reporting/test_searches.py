"""Whole searches are told about as trajectories of what was lowest so far."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from gradlab.reporting import columns, findings, summaries, tables
from gradlab.reporting.searches import as_trajectories
from tests.reporting import synthetic


def test_a_search_is_a_trajectory_of_its_best_loss() -> None:
    rows = synthetic.search_run()
    found = as_trajectories(rows)
    assert found["loss"].tolist() == rows["best_loss"].tolist()
    assert found["loss_fresh"].tolist() == rows["best_loss_fresh"].tolist()
    assert set(found["budget"]) == {"forward_passes"}
    assert set(found["lr"]) == {0.0, 0.01, 0.1}
    at_mean = as_trajectories(rows, "loss")
    assert at_mean["loss"].tolist() == rows["loss"].tolist()
    assert at_mean["loss_fresh"].isna().all()


def test_of_a_descent_the_best_lr_is_kept_and_searches_have_none() -> None:
    best = summaries.best_trajectories(as_trajectories(columns.annotate(synthetic.search_run())))
    kept = best.drop_duplicates(["method", "lr"]).set_index("method")["lr"].to_dict()
    assert kept == {"SNES": 0.0, "STE hardtanh descent": 0.1}


def test_findings_name_who_ends_lowest_and_the_unseen_batch() -> None:
    lead, unseen = map(str, findings.write({"search_run": synthetic.search_run()}))
    assert "the lowest final loss is that of STE hardtanh descent at num_dim 8" in lead
    assert "SNES at " in lead
    assert "1.10 times that on the training batch" in unseen


def test_the_summary_has_a_row_for_every_method() -> None:
    summary = tables.summarize({"search_run": synthetic.search_run()})["search_run"]
    assert summary["method"].tolist() == ["STE hardtanh descent", "SNES"]
    assert (summary["final_loss_fresh"] / summary["final_loss"]).tolist() == pytest.approx(
        [1.1] * 2
    )
    assert summary["forward_passes"].tolist() == [10.0, 20.0]


def test_a_search_without_a_finite_loss_says_so() -> None:
    rows = synthetic.search_run().assign(best_loss=math.nan)
    (finding,) = findings.write({"search_run": rows})
    assert finding.lead == "Nothing to compare"


def test_options_of_searches_are_no_settings() -> None:
    rows = pd.concat([synthetic.search_run(), synthetic.search_run(learning_rate=0.5)])
    rows["label"] += rows["learning_rate"].map({0.5: " slow"}).fillna("")
    frame = columns.annotate(rows)
    assert frame["condition"].unique().tolist() == [""]
    assert frame["method"].nunique() == 4
