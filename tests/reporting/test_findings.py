from __future__ import annotations

import numpy as np
import pandas as pd

from gradlab.reporting import findings
from tests.reporting import synthetic

LRS = [0.01, 0.03, 0.1, 0.3]


def say(**tables: pd.DataFrame) -> dict[str, str]:
    return {finding.lead: finding.text for finding in findings.write(tables)}


def exact(**options: object) -> pd.DataFrame:
    """STE hardtanh gains exactly .9 of CDG on every init, NES 500 exactly a quarter."""
    return synthetic.loss_decrease(**{"noise": 0.0, "lrs": LRS, "num_dims": [2, 32], **options})


def test_shares_of_cdg_are_the_true_ones_with_their_intervals() -> None:
    said = say(loss_decrease=exact())
    assert (
        "At num_dim 2 they range from 86.0 % [86.0, 86.0] with STE steep"
        in said["Straight-through"]
    )
    assert "90.0 % [90.0, 90.0] with STE hardtanh" in said["Straight-through"]
    assert "25.0 % [25.0, 25.0] with NES 500" in said["NES"]
    assert "correlated" in said["NES"]
    assert "n = 3 inits" in said["NES"]


def test_the_best_estimator_is_named_with_its_gain() -> None:
    text = say(loss_decrease=exact())["Best estimator"]
    # height · (2u − u²) at u = 1, num_dim 32
    assert "that of CDG at num_dim 2 and 32. CDG gains 0.250 [0.250, 0.250] at num_dim 32" in text
    assert "resolved everywhere" in text


def test_local_nes_is_told_what_it_is_worth_in_passes() -> None:
    text = say(loss_decrease=exact())["Local noise"]
    assert "With 2 forward passes, local NES (2 passes) goes further than NES 50,000" in text


def test_differences_that_the_data_do_not_resolve_are_named() -> None:
    twin = dict(synthetic.STES[0], quality=1.0)
    rows = synthetic.loss_decrease([synthetic.CDG, twin], [8], inits=5, lrs=LRS, noise=0.1)
    said = say(loss_decrease=rows)
    assert "includes zero for STE hardtanh at num_dim 8 (n = 5 inits)" in said["Not resolved"]
    assert "not resolved by these data" in said["Best estimator"]
    certain = synthetic.loss_decrease([synthetic.CDG, synthetic.NES[0]], [8], lrs=LRS)
    assert say(loss_decrease=certain)["Resolved"].startswith("Every estimator's difference")


def test_the_edge_of_the_lr_grid_is_warned_of() -> None:
    text = say(loss_decrease=exact(lrs=[0.01, 0.03]))["Learning rate"]
    assert "edge of the grid" in text
    assert "widen the grid" in text
    inside = say(loss_decrease=exact())["Learning rate"]
    assert inside == "The best lr is 0.1 for every estimator, on a grid of 4 from 0.01 to 0.3."


def test_the_unseen_batch_tells_of_overfitting() -> None:
    said = say(loss_decrease=exact())
    assert "keep 98.0 % [98.0, 98.0] of their decrease (n = 3 inits" in said["Unseen batch"]


def test_two_inits_give_numbers_without_intervals_and_say_so() -> None:
    said = say(loss_decrease=exact(inits=2))
    everything = " ".join(said.values())
    assert "[" not in everything
    assert "n = 2 inits, too few for an interval" in said["Best estimator"]
    assert "Not resolved" not in said
    assert "Resolved" not in said
    assert "one observation" in findings.caution(2)


def test_three_inits_are_said_to_be_few() -> None:
    assert "75 %" in findings.caution(3)
    assert "75 %" not in findings.caution(20)


def test_without_cdg_nothing_is_compared_with_it() -> None:
    rows = synthetic.loss_decrease([synthetic.STES[0], synthetic.NES[0]], [8], lrs=LRS)
    said = say(loss_decrease=rows)
    assert "CDG" not in " ".join(said.values())
    assert "STE hardtanh" in said["Best estimator"]


def test_one_row_is_enough_for_honest_findings() -> None:
    said = say(loss_decrease=synthetic.loss_decrease([synthetic.STES[0]], [8], 1, 1, [0.1]))
    assert "n = 1 init," in said["Best estimator"]
    assert said["Learning rate"].startswith("Only lr = 0.1")


def test_diverged_steps_are_counted_and_an_all_diverged_study_says_so() -> None:
    rows = exact()
    rows.loc[rows["lr"] == 0.3, "loss_decrease"] = np.nan
    text = say(loss_decrease=rows)["Diverged"]
    assert "smallest at lr = 0.3" in text
    rows["loss_decrease"] = np.nan
    assert say(loss_decrease=rows) == {"Nothing to compare": "Every run diverged."}


def test_a_missing_cdg_at_the_largest_num_dim_moves_the_comparison_down() -> None:
    rows = exact()
    rows = rows[(rows["estimator"] != "cdg") | (rows["num_dim"] < 32)]
    assert "at num_dim 2," in say(loss_decrease=rows)["Straight-through"]


def test_the_effect_of_a_setting_is_told_with_its_size() -> None:
    methods = [
        dict(synthetic.NES[0], fitness=fitness, quality=quality)
        for fitness, quality in [("raw", 0.1), ("centered", 0.2), ("z_score", 0.2)]
    ]
    rows = synthetic.loss_decrease(methods, [8], lrs=LRS, noise=0.0)
    text = say(loss_decrease=rows)["Effect of fitness"]
    assert "goes furthest (not resolved from" in text
    assert "raw reaches 50.0 % [50.0, 50.0] of it for NES 500 (n = 3 inits" in text


def test_the_best_scale_is_named_for_each_kind_of_student() -> None:
    def study(best: float, student: str) -> pd.DataFrame:
        methods = [
            dict(synthetic.CDG, epsilon=e, quality=1.0 if e == best else 0.5)
            for e in (0.01, 0.1, 1.0)
        ]
        return synthetic.loss_decrease(methods, [8], lrs=LRS, noise=0.0, student=student)

    rows = pd.concat([study(0.1, "fresh"), study(1.0, "converged")])
    text = say(loss_decrease=rows)["Choice of ε"]
    assert "0.1 for CDG (fresh student)" in text
    assert "1, the edge of the grid, for CDG (converged student)" in text


def test_gradient_findings_name_reference_direction_and_published_numbers() -> None:
    said = say(gradient_quality=synthetic.gradient_quality(noise=0.0))
    assert "two halves agree to .995 or better" in said["Reference"]
    assert "The first layer is the worst one for 10 of 10" in said["Depth"]
    assert "matched STE (1 forward pass) .78/.92/.95/.97" in said["Direction"]
    assert "BinaryDuo" in said["Published numbers"]


def test_a_noisy_reference_is_warned_of() -> None:
    rows = synthetic.gradient_quality(reference_split_half_cosine=0.8)
    assert "understated" in say(gradient_quality=rows)["Reference"]


def test_a_random_direction_is_called_one() -> None:
    rows = synthetic.gradient_quality([synthetic.NES[0]], inits=6)
    first = rows["layer"] == "layers.0.weight"
    rows.loc[first, "cosine"] = [0.02, -0.02] * (first.sum() // 2)
    rows.loc[first, "cosine"] += rows.loc[first, "init"] * 0.01 - 0.025
    text = say(gradient_quality=rows)["Near zero"]
    assert "cannot be told from a random one for NES 500 (.00 [" in text


def test_more_activation_bits_are_compared() -> None:
    rows = pd.concat(
        synthetic.gradient_quality([dict(synthetic.STES[0], quality=q)], noise=0.0, activation=a)
        for a, q in [("full", 1.0), ("binary", 0.9), ("ternary", 0.97)]
    )
    text = say(gradient_quality=rows)["Activation bits"]
    assert "binary .90 [.90, .90], ternary .97 [.97, .97] and full 1 [1, 1]" in text


def test_trajectories_are_compared_under_each_budget() -> None:
    methods = [synthetic.CDG, synthetic.NES[0]]
    said = say(trajectory=synthetic.trajectory(methods, [8, 32]))
    assert "that of CDG at num_dim 8 and 32" in said["Budget of passes"]
    assert "At num_dim 32, CDG ends at" in said["Budget of seconds"]
    assert "after 248,320 passes" in said["Budget of seconds"]
    assert "not resolved" not in said["Budget of seconds"]


def test_a_diverged_trajectory_never_ends_lowest() -> None:
    rows = synthetic.trajectory([synthetic.CDG, synthetic.NES[0]], [8], budgets=["steps"])
    last = rows["step"] == rows["step"].max()
    rows.loc[last & (rows["estimator"] == "cdg") & (rows["init"] == 0), "loss"] = np.nan
    assert "that of NES 500 at num_dim 8" in say(trajectory=rows)["Budget of steps"]


def test_an_estimator_that_never_descends_is_named() -> None:
    lost = dict(synthetic.NES[0], quality=-1.0)
    rows = synthetic.loss_decrease([synthetic.CDG, lost], [8], lrs=LRS[:3])
    text = say(loss_decrease=rows)["No descent"]
    assert (
        text
        == "At no lr is a decrease of the loss resolved for NES 500 at num_dim 8 (n = 3 inits)."
    )
    assert "No descent" not in say(loss_decrease=exact())


def test_further_conditions_get_a_finding_each() -> None:
    hidden = exact(step_layers="hidden")
    hidden["loss_decrease"] *= np.where(hidden["estimator"] == "nes", 0.1, 0.5)
    said = say(loss_decrease=pd.concat([exact(step_layers="all"), hidden]))
    assert said["Which condition"].endswith("this case: all layers step.")
    assert "25.0 % [25.0, 25.0] with NES 500" in said["NES"]
    assert "5.0 % [5.0, 5.0] with NES 500" in said["Hidden layers step"]


def test_tables_of_an_unknown_kind_are_passed_over() -> None:
    assert say(diagnostics=pd.DataFrame({"quantity": ["a"], "value": [1.0]})) == {}
