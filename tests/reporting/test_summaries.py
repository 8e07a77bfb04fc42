from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gradlab.reporting import columns, summaries
from tests.reporting import synthetic

BY = ["condition", "num_dim", "method"]


def test_up_to_five_inits_every_resample_is_enumerated_once() -> None:
    weights = summaries.resampling_weights(4)
    assert weights.shape == (4**4, 4)
    # by symmetry every init is drawn equally often
    np.testing.assert_allclose(weights.mean(axis=0), 0.25)


def test_the_interval_of_three_inits_is_their_range() -> None:
    low, high = summaries.mean_interval([[3.0, 1.0, 2.0], [5.0, 5.0, 9.0]])
    assert low.tolist() == [1.0, 5.0]
    assert high.tolist() == [3.0, 9.0]


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [1.0, 2.0, np.nan]])
def test_fewer_than_three_inits_have_no_interval(values: list[float]) -> None:
    low, high = summaries.mean_interval(values)
    assert np.isnan(low)
    assert np.isnan(high)


def test_absent_inits_do_not_change_the_interval_of_the_others() -> None:
    values = np.arange(8.0) ** 2
    padded = np.insert(values, [0, 3, 8], np.nan)
    assert summaries.mean_interval(padded) == summaries.mean_interval(values)


def test_large_samples_agree_with_scipy() -> None:
    values = np.random.default_rng(0).gamma(2.0, size=40)
    low, high = summaries.mean_interval(values)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.02)
    assert high == pytest.approx(expected.high, abs=0.02)


def test_ninety_five_percent_intervals_cover_about_that_often() -> None:
    draws = np.random.default_rng(0).normal(size=(2_000, 30))
    low, high = summaries.mean_interval(draws)
    covered = np.mean((low < 0) & (high > 0))
    # the percentile bootstrap of 30 values is known to fall a little short
    assert 0.92 < covered < 0.955


def test_three_inits_cover_three_times_in_four_as_the_documentation_says() -> None:
    draws = np.random.default_rng(0).normal(size=(20_000, 3))
    low, high = summaries.mean_interval(draws)
    assert np.mean((low < 0) & (high > 0)) == pytest.approx(0.75, abs=0.01)


@given(
    st.lists(st.floats(-100, 100), min_size=3, max_size=8),
    st.floats(0.1, 10),
    st.floats(-100, 100),
)
def test_intervals_move_and_stretch_with_their_values(
    values: list[float], scale: float, shift: float
) -> None:
    low, high = summaries.mean_interval(values)
    moved = summaries.mean_interval(np.array(values) * scale + shift)
    assert low <= high
    np.testing.assert_allclose(moved, (low * scale + shift, high * scale + shift), atol=1e-9)


def test_batches_are_averaged_before_inits() -> None:
    frame = pd.DataFrame(
        {"group": "a", "init": [0, 0, 0, 1], "batch": [0, 1, 2, 0], "x": [1.0, 2.0, 3.0, 10.0]}
    )
    summary = summaries.over_inits(frame, ["group"], "x").iloc[0]
    assert summary["mean"] == 6.0  # (2 + 10) / 2, not 16 / 4
    assert summary["n"] == 2


def test_a_diverged_batch_takes_its_init_out_and_is_counted() -> None:
    frame = pd.DataFrame({"group": "a", "init": [0, 0, 1, 2, 3], "x": [1.0, np.nan, 4.0, 5.0, 6.0]})
    summary = summaries.over_inits(frame, ["group"], "x").iloc[0]
    assert summary["mean"] == 5.0
    assert summary["n"] == 3
    assert summary["missing"] == 1


def test_the_best_lr_maximizes_the_mean_and_skips_diverged_ones() -> None:
    frame = pd.DataFrame(
        {
            "method": "a", "init": [0, 1] * 3, "lr": [0.01] * 2 + [0.1] * 2 + [1.0] * 2,
            "loss_decrease": [1.0, 1.0, 5.0, 0.0, 9.0, np.nan],
        }
    )  # fmt: skip
    best = summaries.best_lr(frame, ["method"]).iloc[0]
    assert best["lr"] == 0.1
    assert best["edge"] == ""


@pytest.mark.parametrize(
    ("falls", "edge"),
    [([3.0, 2.0, 1.0], "lowest"), ([1.0, 2.0, 3.0], "highest"), ([1.0, 3.0, 2.0], "")],
)
def test_a_best_lr_at_the_end_of_the_grid_is_flagged(falls: list[float], edge: str) -> None:
    frame = pd.DataFrame({"method": "a", "init": 0, "lr": [0.1, 1.0, 10.0], "loss_decrease": falls})
    assert summaries.best_lr(frame, ["method"])["edge"].tolist() == [edge]


def test_one_lr_is_no_grid_and_has_no_edge() -> None:
    frame = pd.DataFrame({"method": "a", "init": 0, "lr": [0.1], "loss_decrease": [1.0]})
    assert summaries.best_lr(frame, ["method"])["edge"].tolist() == [""]


def test_ratios_are_paired_so_what_an_init_has_in_common_cancels() -> None:
    base = np.array([1.0, 10.0, 100.0])
    result = summaries.ratio(0.9 * base, base)
    assert [result[key] for key in ("ratio", "low", "high")] == pytest.approx([0.9] * 3)
    assert result["n"] == 3


def test_ratios_by_hand() -> None:
    result = summaries.ratio([2.0, 2.0, 5.0], [1.0, 2.0, 3.0])
    assert result["ratio"] == 9 / 6
    # the extreme resamples draw one init three times
    assert (result["low"], result["high"]) == (1.0, 2.0)


@pytest.mark.parametrize("base", [[-1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [np.nan] * 3])
def test_there_is_no_ratio_to_something_that_may_be_zero(base: list[float]) -> None:
    assert np.isnan(summaries.ratio([1.0, 1.0, 1.0], base)["ratio"])


def test_differences_use_only_inits_that_both_have() -> None:
    result = summaries.difference([1.0, 2.0, np.nan, 4.0], [0.0, np.nan, 5.0, 1.0])
    assert result["difference"] == 2.0
    assert result["n"] == 2
    assert not summaries.resolved(result)


def test_a_difference_is_resolved_where_its_interval_leaves_zero_out() -> None:
    zeros = np.zeros(4)
    assert summaries.resolved(summaries.difference([1.0, 2.0, 1.0, 3.0], zeros))
    assert summaries.resolved(summaries.difference([-1.0, -2.0, -1.0, -3.0], zeros))
    assert not summaries.resolved(summaries.difference([1.0, -2.0, 1.0, 3.0], zeros))


def test_the_best_table_recovers_the_truth_of_the_synthetic_study() -> None:
    frame = columns.annotate(synthetic.loss_decrease(noise=0.0, lrs=[0.01, 0.1, 1.0]))
    table = summaries.best_table(frame).set_index(["num_dim", "method"])
    assert (table["best_lr"] == 0.1).all()
    cdg = table.xs("CDG", level="method")["loss_decrease"]
    ste = table.xs("STE hardtanh", level="method")
    pd.testing.assert_series_equal(ste["loss_decrease"], 0.9 * cdg, check_names=False)
    pd.testing.assert_series_equal(ste["fresh"], 0.98 * ste["loss_decrease"], check_names=False)
    assert (table["n"] == 3).all()
    assert table.loc[(8, "NES 500"), "forward_passes"] == 500


def test_the_common_lr_is_best_for_most() -> None:
    rows = [("a", 0.1), ("b", 0.1), ("c", 1.0)]
    frame = pd.DataFrame(
        [
            {"condition": "", "num_dim": 8, "method": method, "init": 0, "lr": lr,
             "loss_decrease": float(lr == best)}
            for method, best in rows
            for lr in (0.01, 0.1, 1.0)
        ]
    )  # fmt: skip
    assert summaries.common_lr(frame) == 0.1


def test_trajectories_are_taken_at_the_lr_that_ends_lowest() -> None:
    parts = [
        synthetic.trajectory(inits=2, num_dims=[8], lr=lr).assign(
            loss=lambda t, lr=lr: t["loss"] * (1 if lr == 0.1 else 2)
        )
        for lr in (0.01, 0.1)
    ]
    best = summaries.best_trajectories(columns.annotate(pd.concat(parts)))
    assert best["lr"].unique().tolist() == [0.1]
    assert len(best) == len(parts[0])
