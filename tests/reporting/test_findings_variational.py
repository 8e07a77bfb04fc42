"""Findings of runs with noise: claims that the synthetic truth bears out, and no others."""

from __future__ import annotations

import pandas as pd

from gradlab.reporting import findings
from tests.reporting import synthetic_noise
from tests.reporting.synthetic_noise import ARD, DROPOUT, NONE, SPARSE, Method


def say(sparsity: pd.DataFrame | None = None, *results: pd.DataFrame) -> dict[str, str]:
    tables = {"training_result": pd.concat(results or [synthetic_noise.results()])}
    if sparsity is not None:
        tables["layer_sparsity"] = sparsity
    return {finding.lead: finding.text for finding in findings.write(tables)}


def runs(*methods: Method, **options: object) -> pd.DataFrame:
    return synthetic_noise.results(list(methods), **{"noise": 0.0, **options})


def test_every_judge_names_its_own_winner() -> None:
    text = say()["Best method"]
    assert "by one draw no noise with 98.41 %" in text
    assert "by mean weights Gaussian S with 98.71 %" in text
    assert "by Monte Carlo Bayes by Backprop with 98.57 %" in text
    assert text.count(", resolved") == 3
    assert "(n = 3 inits)" in text
    assert "test images" in text
    aside = say(None, synthetic_noise.results(validation=0.1))["Best method"]
    assert "test images" not in aside


def test_a_lead_that_inits_do_not_agree_on_is_not_resolved() -> None:
    twins = [NONE, {**SPARSE, "mean": NONE["mean"] + 1e-5, "gap": 0.0}]
    text = say(None, runs(*twins, noise=0.01, inits=5))["Best method"]
    assert ", not resolved" in text
    assert ", resolved" not in text
    few = say(None, runs(*twins, inits=2))["Best method"]
    assert "resolved" not in few
    assert "n = 2 inits, too few for an interval" in few


def test_pairs_that_change_places_between_judges_are_named() -> None:
    # one draw: .984 .96 .975; mean weights: .984 .985 .98; Monte Carlo: .984 .9825 .9795
    found = [NONE, {**DROPOUT, "mean": 0.985, "gap": 0.025}, {**ARD, "mean": 0.98, "gap": 0.005}]
    text = say(None, runs(*found))["Ranking by judge"]
    first, second = text.split(" One draw and Monte Carlo ")
    assert "order 1 of 3 pairs of methods alike (Spearman −0.50, Kendall −0.33)" in first
    assert (
        "no noise before Gaussian S by one draw (98.40 % against 96.00 %) and behind it by the "
        "mean weights (98.40 % against 98.50 %, both resolved)"
    ) in first
    assert "hierarchical VD before Gaussian S by one draw" in first
    assert "order 2 of 3 pairs" in second
    assert "no noise before" not in second


def test_equal_means_are_no_change_of_places() -> None:
    same = [dict(NONE, mean=0.3 / 3), dict(SPARSE, mean=0.1, gap=0.0), dict(ARD, gap=0.0)]
    assert "order 3 of 3 pairs" in say(None, runs(*same))["Ranking by judge"]


def test_two_methods_have_no_ranking() -> None:
    assert "Ranking by judge" not in say(None, runs(NONE, SPARSE))


def test_methods_are_held_against_the_network_without_noise() -> None:
    text = say(None, runs(NONE, {**SPARSE, "mean": 0.974}))["Against no noise"]
    assert "sparse VD −1.50 [−1.5, −1.5] by one draw" in text
    assert "−1.00 [−1.0, −1.0] by mean weights" in text
    assert "by one draw 0 (0 resolved) are above the network without noise and 1 (1 res" in text
    assert "Against no noise" not in say(None, runs(SPARSE, ARD))
    many = [{**SPARSE, "initial": float(n), "mean": 0.984 + n / 1000, "gap": 0.0}
            for n in range(-3, 4)]  # fmt: skip
    text = say(None, runs(NONE, *many))["Against no noise"]
    # one is level with it
    assert text.startswith("Of 7 methods by one draw 3 (3 resolved) are above")
    assert "and 3 (3 resolved) below" in text
    assert "the best by mean weights are: sparse VD, initial = 3 +0.30" in text
    assert "initial = −1" not in text
    assert "−0.00" not in text


def test_methods_that_are_level_are_said_to_be() -> None:
    text = say(None, runs(NONE, {**SPARSE, "mean": NONE["mean"], "gap": 0.0}))["Best method"]
    assert text.count(" level with ") == 3
    assert " before " not in text


def test_compression_names_what_nothing_else_beats() -> None:
    text = say(None, runs(NONE, SPARSE, ARD))["Compression"]
    # 266,200 weights over 9,556; hierarchical VD is larger and worse
    assert text.startswith("Sparse VD keeps one weight in 27.9 [27.9, 27.9], with 1.60 % of errors")
    assert "No other of 2 configurations" in text
    better = {**ARD, "mean": 0.99}
    text = say(None, runs(NONE, SPARSE, better))["Compression"]
    assert "hierarchical VD keeps one weight in 8.81" in text
    assert "Compression" not in say(None, runs(NONE, DROPOUT))
    whole = {**SPARSE, "sparsity": (0.0, 0.0, 0.0)}
    assert "Compression" not in say(None, runs(NONE, whole))


def test_dead_layers_are_counted_by_runs() -> None:
    dead = {**SPARSE, "sparsity": (1.0, 0.9, 0.5)}
    sparsity = synthetic_noise.layer_sparsity([dead, ARD])
    alive = (sparsity["init"] == 0) & (sparsity["estimator"] == "sparse")
    sparsity.loc[alive, "kept"] += 1
    text = say(sparsity, runs(dead, ARD))["Dead layers"]
    assert "of sparse VD: layer 1 in 2 of 3 runs." in text
    assert "hierarchical" not in text
    assert "Dead layers" not in say(synthetic_noise.layer_sparsity(), runs(SPARSE))


def test_shuffled_labels_are_told_apart_from_true_ones() -> None:
    shuffled = runs(NONE, {**SPARSE, "mean": 0.1}, random_labels=True)
    nothing = shuffled["estimator"] == "sparse"
    shuffled.loc[nothing, "last_compression"] = None
    said = say(None, runs(NONE, SPARSE), shuffled)
    text = said["Shuffled labels"]
    assert "no noise fits 99.40 %" in text
    assert "sparse VD fits 11.00 %" in text
    assert text.endswith("and keeps no weight.")
    assert "Best method" in said  # of true labels alone: there is one condition
    assert "10.00 %" not in said["Best method"]
    assert "Shuffled labels" not in say(None, runs(NONE, SPARSE))


def test_conditions_are_told_apart() -> None:
    both = [runs(*synthetic_noise.METHODS, hidden=[n]) for n in (20, 40)]
    said = say(None, *both)
    for lead in ("Best method", "Ranking by judge", "Against no noise"):
        assert {f"{lead} (hidden 20)", f"{lead} (hidden 40)"} <= set(said)


def test_diverged_runs_are_counted() -> None:
    rows = synthetic_noise.results()
    lost = (rows["estimator"] == "sparse") & (rows["init"] == 0)
    measured = [c for c in rows if c.startswith("final_") or c.endswith("accuracy")]
    rows.loc[lost, [*measured, "last_compression"]] = None
    said = say(None, rows)
    assert "1 of 15 runs diverged" in said["Diverged"]
    assert "n = 2 inits" in said["Compression"] or "too few" in said["Compression"]
    everything = say(None, rows.assign(**dict.fromkeys(measured)))
    assert everything == {"Nothing to compare": "Every training run diverged."}


def test_published_numbers_are_counted() -> None:
    said = say(synthetic_noise.layer_sparsity())["Published numbers"]
    assert "of 6 numbers agree with Sparse networks on MNIST" in said
