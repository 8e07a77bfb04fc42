from __future__ import annotations

import pandas as pd
import pytest

from gradlab.reporting import published, published_ranking, published_variational, tables
from tests.reporting import synthetic_networks, synthetic_noise
from tests.reporting.synthetic_noise import ARD, BAYES, DROPOUT, NONE, SPARSE

ORIGINAL = {
    "dataset": "cifar10", "model": "conv_net", "hidden": None, "scale": 1.0, "epochs": 100,
    "batch_size": 1_000, "schedule": "constant", "kl_weight": "constant", "convert": "auto",
    "pixels": "symmetric", "train_examples": 50_000,
}  # fmt: skip
FAITHFUL = {"mode": "faithful", "gap": 0.0}
ON_W = {**ARD, **FAITHFUL, "noise": "weights", "mean": 0.5541}
ON_B = {**ARD, **FAITHFUL, "noise": "preactivations", "mean": 0.6068}
DENSE = {**NONE, "mean": 0.5709}
BEFORE = {**DROPOUT, "estimator": "bernoulli", "label": "Bernoulli", "mean": 0.5567, "gap": 0.0}
AFTER = {**BEFORE, "side": "output", "mean": 0.5496}
AUTHORS = {"epochs": 200}


def comparison(*methods: dict[str, object], **changes: object) -> pd.DataFrame:
    rows = synthetic_noise.results(list(methods), noise=0.0, **{**ORIGINAL, **changes})
    return rows.assign(best_sample_accuracy=rows["final_sample_accuracy"])


def verdicts(table: pd.DataFrame, words: str = "") -> dict[str, str]:
    chosen = table[table["what"].str.contains(words, regex=False)]
    return dict(zip(chosen["what"], chosen["verdict"], strict=True))


def test_all_published_tables_are_there() -> None:
    numbers = published_variational.NUMBERS
    by_source = pd.Series([number.published.source for number in numbers]).value_counts()
    # 12 rows at 3 scales, best and last, in either code
    assert by_source[published.CIFAR_FIRST] == by_source[published.CIFAR_NEW] == 72
    names = [(number.published.source, number.published.what) for number in numbers]
    assert len(set(names)) == len(names)
    values = {number.published.what: number.published.value for number in numbers}
    assert values["VariationalSparseB on B, scale 2: best test accuracy"] == 0.6328
    assert values["VariationalSparseB on B, scale 2: last test accuracy"] == 0.6238
    assert values["LeNet-5-Caffe, sparse VD, paper: sparsity of layer 3"] == 0.998
    assert values["800-800, mixture prior (Blundell et al.): error"] == 0.0134


def test_a_row_of_the_comparison_is_judged_by_one_draw() -> None:
    rows = comparison(ON_W, ON_B, DENSE, BEFORE, AFTER)
    found = verdicts(published_variational.compare(rows), "scale 1: last")
    assert found["NoDropout, scale 1: last test accuracy"] == "PASS"
    assert found["VariationalHierarchical B on B, scale 1: last test accuracy"] == "PASS"
    assert found["VariationalHierarchical B on W, scale 1: last test accuracy"] == "PASS"
    assert found["Bernoulli after the conv, scale 1: last test accuracy"] == "PASS"
    assert found["VariationalSparse B on W, scale 1: last test accuracy"] == "NOT RUN"
    # the mean weights may be as good as they like
    better = verdicts(published_variational.compare(rows.assign(final_mean_accuracy=0.9)))
    assert better["NoDropout, scale 1: last test accuracy"] == "PASS"
    worse = rows.assign(last_sample_accuracy=rows["last_sample_accuracy"] - 0.011)
    found = verdicts(published_variational.compare(worse), "scale 1: last")
    assert found["NoDropout, scale 1: last test accuracy"] == "FAIL"


def test_sides_and_scales_are_told_apart() -> None:
    found = verdicts(published_variational.compare(comparison(BEFORE)), "last")
    assert found["Bernoulli before the FC, scale 1: last test accuracy"] == "PASS"
    assert found["Bernoulli after the conv, scale 1: last test accuracy"] == "NOT RUN"
    assert found["Bernoulli before the FC, scale 2: last test accuracy"] == "NOT RUN"
    everywhere = comparison(BEFORE, convert="all")
    assert published_variational.compare(everywhere).empty


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"epochs": 20}, "20 of 100 epochs"),
        ({"train_examples": 10_000}, "10,000 of 50,000 images"),
        ({"batch_size": 250}, "batches of 250, not 1,000"),
        ({"kl_weight": "linear(start=5)"}, "KL weight linear(start=5), not constant"),
        ({"pixels": "standardized"}, "pixels standardized, not symmetric"),
        ({"validation": 0.1, "evaluation_examples": 5_000},
         "judged by images set aside, not by the test set"),
        ({"random_labels": True}, "shuffled labels"),
    ],
)  # fmt: skip
def test_a_run_that_was_trained_otherwise_is_not_comparable(
    changes: dict[str, object], remark: str
) -> None:
    table = published_variational.compare(comparison(DENSE, **changes))
    ours = table[table["verdict"] != "NOT RUN"]
    assert set(ours["verdict"]) == {"NOT COMPARABLE"}
    assert set(ours["remark"]) == {remark}


def test_the_correct_mode_is_another_method_than_the_original() -> None:
    correct = {**ON_B, "mode": "correct"}
    table = published_variational.compare(comparison(correct))
    ours = table[table["verdict"] != "NOT RUN"]
    assert set(ours["remark"]) == {"mode correct, not faithful"}
    # among runs the comparable ones are judged
    both = published_variational.compare(comparison(correct, ON_B))
    assert "NOT COMPARABLE" not in set(both["verdict"])


def test_every_comparable_configuration_is_judged_by_itself() -> None:
    methods = [{**ON_B, "initial": value} for value in (-3.0, -8.0)]
    table = published_variational.compare(comparison(*methods))
    name = (
        "VariationalHierarchical B on B, scale 1: last test accuracy (hierarchical VD, initial = "
    )
    found = verdicts(table, name)
    assert {what.removeprefix(name) for what in found} == {"-3)", "-8)"}
    assert set(found.values()) == {"PASS"}


def test_a_sparse_network_is_judged_pruned_and_layer_by_layer() -> None:
    rows = synthetic_noise.results([SPARSE], **AUTHORS).assign(
        final_pruned_accuracy=0.9808, last_compression=68.0
    )
    layers = synthetic_noise.layer_sparsity([{**SPARSE, "sparsity": (0.989, 0.972, 0.7)}])
    layers["epochs"] = 200
    found = verdicts(published_variational.compare(rows, layers), "sparse VD, paper")
    name = "LeNet-300-100, sparse VD, paper: "
    assert {what.removeprefix(name): said for what, said in found.items() if name in what} == {
        "error": "PASS", "compression": "PASS", "sparsity of layer 1": "PASS",
        "sparsity of layer 2": "PASS", "sparsity of layer 3": "FAIL",
    }  # fmt: skip
    assert found["LeNet-5-Caffe, sparse VD, paper: error"] == "NOT RUN"
    # without a table of layers nothing is known of them
    bare = verdicts(published_variational.compare(rows), "sparse VD, paper: sparsity")
    assert set(bare.values()) == {"NOT RUN"}


def test_what_a_model_takes_by_default_is_the_published_network() -> None:
    rows = synthetic_noise.results([SPARSE], **AUTHORS).drop(columns="hidden")
    found = verdicts(published_variational.compare(rows), "LeNet-300-100, sparse VD, paper: error")
    assert list(found.values()) != ["NOT RUN"]
    other = synthetic_noise.results([SPARSE], **AUTHORS, hidden=[100])
    assert published_variational.compare(other).empty


def test_bayes_by_backprop_is_judged_by_several_draws() -> None:
    rows = synthetic_noise.results([BAYES], hidden=[400, 400], batch_size=128, epochs=600)
    rows["final_monte_carlo_accuracy"] = 1 - 0.0182
    table = published_variational.compare(rows)
    assert verdicts(table)["400-400, gaussian prior (Blundell et al.): error"] == "PASS"
    assert verdicts(table)["400-400, mixture prior (Blundell et al.): error"] == "NOT RUN"
    assert set(table["source"]) == {published.BAYES_MNIST}
    assert "a tenth of a compression" in published.rules(table)


def test_nothing_is_compared_where_nothing_was_trained() -> None:
    assert published_variational.compare(synthetic_noise.results(dataset="uc_merced")).empty
    assert published_variational.compare(synthetic_networks.training_result()).empty
    found = tables.summarize({"training_result": synthetic_noise.results(hidden=[7])})
    assert set(found) == {"training_result"}


# Of the rows Bernoulli before (.5567), GaussianS (.4899) and NoDropout (.5709) in the first code.
NOISY = [
    {**BEFORE, "mean": 0.60, "gap": 0.03},
    {**DROPOUT, "mean": 0.59, "gap": 0.10},
    {**DENSE, "mean": 0.58},
]


def ranked(methods: list[dict[str, object]] = NOISY, **changes: object) -> pd.DataFrame:
    table = published_ranking.ranking(comparison(*methods, **changes))
    return table[table["source"] == published.CIFAR_FIRST].set_index("row")


def test_a_ranking_that_one_draw_made_does_not_survive_without_noise() -> None:
    table = ranked()
    assert table["published_rank"].to_dict() == {
        "Bernoulli before the FC": 2, "GaussianS": 3, "NoDropout": 1,
    }  # fmt: skip
    assert table["sample_rank"].tolist() == [2, 3, 1]
    assert table["mean_rank"].tolist() == [1, 2, 3]
    assert table["sample_kept"].tolist() == [2, 2, 2]
    assert table["mean_kept"].tolist() == [1, 1, 0]
    # several draws: .597, .58, .58, where a tie is no order at all
    assert table["monte_carlo_kept"].tolist() == [1, 1, 0]
    assert table.loc["GaussianS", "statement"] == (
        "Of its 2 pairs 2 by one draw, 1 by the mean weights and 1 by Monte Carlo are kept. By the "
        "mean weights it passes NoDropout."
    )
    assert (
        "falls behind Bernoulli before the FC and GaussianS"
        in (table.loc["NoDropout", "statement"])
    )
    text = published_ranking.sentences(table.reset_index())
    assert "Of 3 pairs of rows" in text[0]
    assert "in 3 judged by one draw, 1 judged by the mean weights and 1 judged by Mo" in text[0]


def test_rows_that_are_level_pass_nobody() -> None:
    table = ranked([dict(method, gap=0.0, mean=0.5) for method in NOISY])
    assert table["mean_rank"].tolist() == [1, 1, 1]
    assert not table["statement"].str.contains("passes|falls behind").any()
    assert table.loc["GaussianS", "statement"] == (
        "Of its 2 pairs 0 by one draw, 0 by the mean weights and 0 by Monte Carlo are kept."
    )


def test_a_ranking_that_survives_says_so() -> None:
    table = ranked([dict(method, gap=0.0, mean=mean)
                    for method, mean in zip(NOISY, (0.55, 0.5, 0.57), strict=True)])  # fmt: skip
    assert set(table["statement"]) == {"Survives: every judge keeps its 2 pairs."}


def test_a_ranking_tells_how_ours_was_trained_otherwise() -> None:
    table = ranked(epochs=8)
    assert set(table["remark"]) == {"8 of 100 epochs"}
    assert "trained otherwise" in published_ranking.sentences(table.reset_index())[0]
    assert published_ranking.ranking(comparison(DENSE)).empty


def test_a_diverged_init_is_left_out_of_the_ranking() -> None:
    rows = comparison(*NOISY)
    finals = [f"final_{kind}_accuracy" for kind in ("mean", "sample", "monte_carlo")]
    rows.loc[(rows["estimator"] == "none") & (rows["init"] == 0), finals] = None
    table = published_ranking.ranking(rows)
    assert table.set_index("row")["n"].to_dict()["NoDropout"] == 2
    rows.loc[rows["estimator"] == "none", finals] = None
    assert "NoDropout" not in set(published_ranking.ranking(rows)["row"])
