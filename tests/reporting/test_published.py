from __future__ import annotations

import pandas as pd
import pytest

from gradlab.reporting import published
from tests.reporting import synthetic, synthetic_networks

STE = [dict(synthetic.STES[0], quality=1.0)]


def measured(cosine: float, inits: int = 3, **columns: object) -> pd.DataFrame:
    rows = synthetic.gradient_quality(STE, inits=inits, noise=0.0, **columns)
    return rows.assign(cosine=cosine + 0.001 * rows["init"])


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    table = published.compare(frame)
    return dict(zip(table["what"], table["verdict"], strict=True))


def test_the_published_value_passes_and_another_fails() -> None:
    # published for binary activations: .8934 in layer 1, .9629 in layer 3
    found = verdicts(measured(0.8934))
    assert found["cosine of STE to CDG, binary activations, layer 1"] == "PASS"
    assert found["cosine of STE to CDG, binary activations, layer 3"] == "FAIL"


@pytest.mark.parametrize(("cosine", "verdict"), [(0.912, "PASS"), (0.915, "FAIL")])
def test_the_tolerance_is_the_stated_one(cosine: float, verdict: str) -> None:
    found = verdicts(measured(cosine, inits=1))
    assert found["cosine of STE to CDG, binary activations, layer 1"] == verdict


def test_what_was_not_measured_is_not_run() -> None:
    found = verdicts(measured(0.9, activation="ternary"))
    assert found["cosine of STE to CDG, binary activations, layer 1"] == "NOT RUN"
    assert found["cosine of STE to CDG, ternary activations, layer 1"] != "NOT RUN"


def test_every_gain_is_compared_by_itself() -> None:
    rows = pd.concat([measured(0.8934, gain=1.0), measured(0.5, gain=1.7320508)])
    found = verdicts(rows)
    assert found["cosine of STE to CDG, binary activations, layer 1 (gain 1)"] == "PASS"
    assert found["cosine of STE to CDG, binary activations, layer 1 (gain 1.73)"] == "FAIL"


@pytest.mark.parametrize("columns", [{"num_dim": 8}, {"reference": "smoothed"}])
def test_another_network_or_reference_is_not_compared(columns: dict[str, object]) -> None:
    assert published.compare(measured(0.9).assign(**columns)).empty


def test_targets_are_lower_bounds() -> None:
    rows = synthetic.gradient_quality([synthetic.MATCHED], noise=0.0, reference="smoothed")
    rows["cosine"] = 0.99
    found = published.compare(rows)
    reached = found[found["what"].str.contains("matched")]
    assert reached["verdict"].tolist() == ["PASS", "PASS"]
    rows["cosine"] = 0.97
    found = published.compare(rows)
    assert (found.loc[found["what"].str.contains("matched"), "verdict"] == "FAIL").all()


def test_a_target_is_judged_by_its_own_variant_alone() -> None:
    plain = {"estimator": "nes_local", "passes": 2, "sigma": 0.1}
    methods = [
        {**plain, "label": "local NES (2 passes)", "baseline": "noise_free", "quality": 1.0},
        {**plain, "label": "local NES (2 passes) + matched STE", "baseline": "mean_field",
         "quality": 1.0},
    ]  # fmt: skip
    rows = synthetic.gradient_quality(methods, noise=0.0, reference="smoothed_gradient")
    worse = rows["label"] == "local NES (2 passes)"
    table = published.compare(rows.assign(cosine=worse.map({True: 0.7, False: 1.0})))
    first = table[table["what"].str.endswith("local NES, 2 noisy passes, layer 1")]
    assert first["ours"].tolist() == pytest.approx([0.7])
    assert first["verdict"].tolist() == ["FAIL"]


FULL = {"epochs": 200, "train_examples": 50_000}


def trained(**settings: object) -> pd.DataFrame:
    """Runs of width 192 whose accuracies are exactly the published ones."""
    rows = synthetic_networks.training_result(widths=[192], noise=0.0, **{**FULL, **settings})
    for run in published.XNOR_RUNS:
        same = (rows["width"] == run.width) & (rows["weight_decay"] == run.weight_decay)
        for column, value in run.values.items():
            rows.loc[same, column] = value + 0.002 * (rows.loc[same, "init"] - 1)
    return rows


def of_width(table: pd.DataFrame, width: int) -> pd.DataFrame:
    return table[table["what"].str.startswith(f"width {width}")]


def test_a_published_training_run_passes_at_its_own_protocol() -> None:
    table = published.compare_training(trained())
    assert (of_width(table, 192)["verdict"] == "PASS").all()
    assert (of_width(table, 192)["n"] == 3).all()
    assert (of_width(table, 96)["verdict"] == "NOT RUN").all()
    assert len(table) == 3 * len(published.XNOR_RUNS)


@pytest.mark.parametrize(("shift", "verdict"), [(0.011, "PASS"), (0.013, "FAIL")])
def test_a_training_run_is_judged_by_the_stated_tolerance(shift: float, verdict: str) -> None:
    rows = trained()
    rows["val_accuracy"] += shift  # its interval reaches .002 to either side
    table = of_width(published.compare_training(rows), 192)
    judged = table[table["what"].str.endswith("validation accuracy")]
    assert set(judged["verdict"]) == {verdict}


@pytest.mark.parametrize(
    ("settings", "remark"),
    [
        ({"epochs": 20}, "20 of 200 epochs"),
        ({"train_examples": 45_000}, "45,000 of 50,000 images"),
        ({"batch_size": 128}, "batches of 128, not 256"),
        ({"lr": 0.002}, "lr 0.002, not 0.001"),
        ({"surrogate": "hardtanh"}, "surrogate hardtanh, not hardtanh(threshold=1.3)"),
        ({"estimator": "nes"}, "estimator nes, not ste"),
        ({"schedule": "step"}, "schedule step, not cosine"),
    ],
)
def test_a_run_that_was_trained_otherwise_is_not_comparable(
    settings: dict[str, object], remark: str
) -> None:
    table = of_width(published.compare_training(trained(**settings)), 192)
    assert set(table["verdict"]) == {"NOT COMPARABLE"}
    assert set(table["remark"]) == {remark}
    assert table["ours"].notna().all()


def test_among_runs_the_comparable_ones_are_judged() -> None:
    both = pd.concat([trained(), trained(epochs=20).assign(val_accuracy=0.1)])
    table = of_width(published.compare_training(both), 192)
    assert set(table["verdict"]) == {"PASS"}


def test_longer_runs_are_comparable() -> None:
    table = of_width(published.compare_training(trained(epochs=300)), 192)
    assert set(table["verdict"]) == {"PASS"}


@pytest.mark.parametrize(
    "other",
    [{"dataset": "cifar100"}, {"model": "lenet"}, {"block": "bireal"}, {"weight": "real"},
     {"scaling": "none"}],
)  # fmt: skip
def test_another_network_is_not_held_against_this_one(other: dict[str, object]) -> None:
    assert published.compare_training(trained().assign(**other)).empty


def test_two_surrogates_are_compared_one_by_one() -> None:
    own = trained()
    other = own.assign(surrogate="steep", label="STE steep", val_accuracy=0.5)
    table = of_width(published.compare_training(pd.concat([own, other])), 192)
    first = table[table["what"].str.contains("steep")]
    assert set(first["verdict"]) == {"NOT COMPARABLE"}
    assert set(table.drop(first.index)["verdict"]) == {"PASS"}


def test_sentences_count_verdicts_and_rules_name_their_source() -> None:
    table = published.compare_training(trained())
    (said,) = published.sentences(table)
    assert said.startswith("24 of 24 numbers agree with XNOR-ResNet18")
    assert said.endswith("9 were not run.")
    assert published.rules(table) == published.TRAINING_RULE
    duo = published.compare(measured(0.8934))
    assert published.rules(duo) == published.RULE
    assert published.rules(pd.concat([duo, table])).count("PASS") == 2
    assert published.sentences(pd.DataFrame()) == []
