"""Findings of studies on networks: claims that the synthetic truth bears out, and no others."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gradlab.reporting import findings
from tests.reporting import synthetic, synthetic_networks
from tests.reporting.synthetic import CDG, NES, STES

LRS = (0.01, 0.03, 0.1, 0.3)
FEW = [CDG, STES[0], NES[1]]


def say(**tables: pd.DataFrame) -> dict[str, str]:
    return {finding.lead: finding.text for finding in findings.write(tables)}


def everything(**tables: pd.DataFrame) -> str:
    return " ".join(map(str, findings.write(tables)))


def steps(**options: object) -> pd.DataFrame:
    fixed = {"methods": FEW, "lrs": LRS, "students": ("fresh", "converged"), "noise": 0.0}
    return synthetic_networks.loss_decrease(**{**fixed, **options})


def stuck(student: str, straight: float = -0.5, inits: int = 3) -> pd.DataFrame:
    """A student that no straight-through step improves, while NES does."""
    methods = [dict(m, quality=straight) if m["estimator"] == "ste" else m for m in FEW]
    return steps(methods=methods, students=[student], inits=inits, lrs=(0.03, 0.1))


def test_every_state_of_training_has_a_finding_layer_by_layer() -> None:
    said = say(loss_decrease=steps())
    # height · (2u − u²) at u = 1, width 8: 0.1 · 0.8
    assert (
        "CDG, 0.0800 [0.0800, 0.0800] before 0.0720 of STE hardtanh (first layer)"
        in (said["Fresh"])
    )
    assert "CDG, 0.00160 [0.00160, 0.00160] before" in said["Converged"]
    assert "(n = 3 inits)" in said["Fresh"]
    assert "(layer −2)" in said["Converged"]


def test_num_dim_is_never_spoken_of() -> None:
    said = everything(
        loss_decrease=steps(),
        gradient_quality=synthetic_networks.gradient_quality(FEW),
        training_result=synthetic_networks.training_result(),
        **synthetic_networks.loss_slice(),
    )
    assert "num_dim" not in said


def test_a_lead_that_is_not_resolved_is_said_to_be_none() -> None:
    twin = dict(STES[0], quality=1.0)
    rows = steps(methods=[CDG, twin], noise=0.1, inits=5, students=["fresh"])
    assert "not resolved" in say(loss_decrease=rows)["Best estimator"]


def test_nes_is_credited_where_straight_through_does_not_descend() -> None:
    rows = pd.concat([steps(students=["fresh"]), stuck("converged")])
    text = say(loss_decrease=rows)["From straight-through to NES"]
    assert "resolvably brings the loss down in 3 of 6 cases, the best of NES in 6" in text
    assert "NES still does in 3 of 3: first layer, converged (STE hardtanh −" in text
    assert "(n = 3 inits)." in text


def test_nes_is_not_credited_where_it_does_not_descend_either() -> None:
    flat = [dict(m, quality=-0.5) if m["estimator"] != "cdg" else m for m in FEW]
    text = say(loss_decrease=steps(methods=flat, lrs=(0.03, 0.1)))["From straight-through to NES"]
    assert "in 0 of 6 cases, the best of NES in 0" in text
    assert "NES still does in 0 of 6." in text
    assert "Neither gains for first layer, fresh" in text


def test_the_reverse_is_told_too() -> None:
    worse = [dict(m, quality=-0.5) if m["estimator"] == "nes" else m for m in FEW]
    text = say(loss_decrease=steps(methods=worse, lrs=(0.03, 0.1)))["From straight-through to NES"]
    assert "The reverse holds for first layer, fresh" in text


def test_a_decrease_that_includes_zero_is_not_a_descent() -> None:
    rows = stuck("converged", straight=0.5)
    sign = np.where((rows["estimator"] == "ste") & (rows["init"] == 0), -1, 1)
    rows["loss_decrease"] *= sign
    text = say(loss_decrease=rows)["From straight-through to NES"]
    assert "in 0 of 3 cases, the best of NES in 3" in text


def test_two_inits_of_a_network_carry_no_interval() -> None:
    rows = pd.concat([steps(students=["fresh"], inits=2), stuck("converged", inits=2)])
    said = everything(loss_decrease=rows)
    assert "[" not in said
    assert "resolv" not in said
    assert "too few for an interval" in said


def test_many_cases_are_tallied() -> None:
    text = say(loss_decrease=steps(widths=[4, 8, 16], students=["fresh"]))["Best estimator"]
    assert text.count("CDG, ") == 6
    assert "over all 9 cases the first is CDG 9 times" in text


def test_a_threshold_is_a_scale_with_a_best_value() -> None:
    rows = steps(methods=[CDG, *synthetic_networks.thresholds()], students=["fresh"])
    said = say(loss_decrease=rows)
    assert said["Which scale"].endswith("it is about threshold = 1.")
    assert "is 1 for STE hardtanh" in said["Choice of threshold"]
    everywhere = say(loss_decrease=steps(methods=[CDG, *synthetic_networks.thresholds()]))
    assert "is 1 for STE hardtanh in 6 of 6 cases" in everywhere["Choice of threshold"]


def test_two_values_of_a_scale_have_no_edge() -> None:
    rows = steps(methods=[CDG, *synthetic_networks.thresholds((0.5, 1.0))], students=["fresh"])
    assert "edge" not in say(loss_decrease=rows)["Choice of threshold"]


def test_the_unseen_batch_is_judged_over_all_cases() -> None:
    text = say(loss_decrease=steps())["Unseen batch"]
    assert "the best step of every case keeps 98.0 % [98.0, 98.0] of its decrease" in text


def test_a_gradient_larger_near_the_input_is_found_with_its_ratio() -> None:
    rows = synthetic_networks.gradient_quality(FEW, noise=0.0, students=["fresh", "converged"])
    text = say(gradient_quality=rows)["Gradient by depth"]
    # exp(.15 · 18) = 14.88
    assert "The norm of CDG is 14.9 times [14.9, 14.9] as large in layer 0 as in layer 18" in text
    assert "rank correlation with depth −1.00 (fresh)" in text
    assert "here it is resolvably so in 2 of 2 cases" in text
    assert "whole layers" in text


def test_a_gradient_smaller_near_the_input_is_not_called_larger() -> None:
    rows = synthetic_networks.gradient_quality(FEW, slope=0.1, students=["fresh"])
    text = say(gradient_quality=rows)["Gradient by depth"]
    assert "6.05 times [6.05, 6.05] as large in layer 18 as in layer 0" in text
    assert "resolvably so in 0 of 1 case." in text


def test_a_ratio_that_is_not_resolved_is_called_so() -> None:
    rows = synthetic_networks.gradient_quality(FEW, slope=0.0, students=["fresh"])
    factor = {0: 3.0, 1: 0.5, 2: 1.0}
    first = rows["depth_index"] == 0
    rows.loc[first, "reference_norm"] *= rows.loc[first, "init"].map(factor)
    text = say(gradient_quality=rows)["Gradient by depth"]
    assert "which is not resolved" in text
    assert "resolvably so in 0 of 1 case" in text


def test_two_inits_give_norms_without_an_interval() -> None:
    rows = synthetic_networks.gradient_quality(FEW, inits=2, students=["fresh"])
    text = say(gradient_quality=rows)["Gradient by depth"]
    assert "[" not in text
    assert "without an interval, so in 1 of 1 case" in text


def test_without_a_reference_norm_an_estimators_own_is_taken() -> None:
    rows = synthetic_networks.gradient_quality([STES[0]], students=["fresh"])
    text = say(gradient_quality=rows.drop(columns="reference_norm"))["Gradient by depth"]
    assert text.startswith("The norm of STE hardtanh is")


def test_a_teacher_student_study_has_no_depth_finding() -> None:
    assert "Gradient by depth" not in say(gradient_quality=synthetic.gradient_quality(FEW))


def test_of_a_deep_network_a_few_layers_are_named() -> None:
    text = say(gradient_quality=synthetic_networks.gradient_quality(FEW))["Direction"]
    assert "Cosines in layers 0, 4, 9, 14 and 18 of 19 (fresh)" in text
    assert text.count("/") == 3 * 4


def test_the_best_weight_decay_of_every_width() -> None:
    said = say(training_result=synthetic_networks.training_result(noise=0.0))
    text = said["Weight decay"]
    exact = [f"{100 * synthetic_networks.accuracy(w, 1e-5):.2f} %" for w in (8, 16, 192)]
    for value, width in zip(exact, (8, 16, 192), strict=True):
        assert value in text
        assert f"(width {width})" in text
    assert text.index("(width 8)") < text.index("(width 192)")
    assert "1e-05 with" in text
    assert "n = 3 inits, paired" in text
    best = said["Best accuracy"]
    assert f"is {exact[2]}" in best
    assert "width 192, weight decay 1e-05" in best
    assert "the lead is resolved" in best
    assert "measured on the test set" in best


def test_a_weight_decay_that_is_not_resolved_and_one_at_the_edge_are_called_so() -> None:
    noisy = synthetic_networks.training_result(widths=[8], noise=0.05, inits=4)
    assert "not resolved from" in say(training_result=noisy)["Weight decay"]
    rows = synthetic_networks.training_result(widths=[8], decays=[1e-5, 1e-4, 5e-4])
    assert "an end of the grid" in say(training_result=rows)["Weight decay"]


def test_one_run_each_is_told_without_intervals() -> None:
    said = everything(training_result=synthetic_networks.training_result(inits=1))
    assert "[" not in said
    assert "resolved" not in said
    assert "n = 1 init, too few for an interval" in said


def test_small_runs_are_not_held_against_published_ones() -> None:
    text = say(training_result=synthetic_networks.training_result())["Published numbers"]
    assert text.startswith("None of our runs can be held against XNOR-ResNet18 on CIFAR-10")
    assert "24 belong to runs that were trained otherwise" in text
    assert "9 were not run" in text


def test_diverged_runs_are_counted_and_never_best() -> None:
    rows = synthetic_networks.training_result(widths=[8], decays=[0.0, 1e-5])
    lost = (rows["weight_decay"] == 1e-5) & (rows["init"] == 0)
    rows.loc[lost, ["val_accuracy", "train_accuracy", "train_loss"]] = np.nan
    assert "1 of 6 runs diverged" in say(training_result=rows)["Diverged"]
    rows["val_accuracy"] = np.nan
    assert say(training_result=rows) == {"Nothing to compare": "Every training run diverged."}


def test_slopes_are_compared_with_the_slice_by_their_sign() -> None:
    tables = synthetic_networks.loss_slice(methods=[STES[0], NES[1]], students=["fresh"])
    slopes = tables["loss_slice_slopes"]
    slopes["slope"] = np.where(slopes["estimator"] == "ste", 1.0, -1.0) * slopes["chord_slope"]
    text = say(loss_slice_slopes=slopes)["Slope along one weight"]
    assert "STE hardtanh in 12 of 12 slices and NES 5,000 in 0 of 12 slices" in text
    assert "n = 2 inits" in text
    assert say(loss_slice_slopes=slopes.assign(chord_slope=0.0)) == {}
    assert list(say(loss_slice_slopes=slopes.assign(along="coordinate"))) == [
        "Slope along one weight"
    ]
    assert list(say(loss_slice_slopes=slopes.assign(along="ste"))) == [
        "Slope along an STE gradient"
    ]


def descents(straight: float = 1.0, **options: object) -> pd.DataFrame:
    """Descents in which the held-out loss of straight-through training rises or falls."""
    rows = synthetic_networks.trajectory(
        [STES[0], NES[1]], **{"students": ["converged"], "budgets": ["steps"], **options}
    )
    fall = rows["step"] * rows["estimator"].map({"ste": straight, "nes": 1.0})
    return rows.assign(loss_fresh=2.0 - 0.01 * fall - 0.001 * rows["init"] * rows["step"])


def test_descents_that_rise_on_the_held_out_batch_are_told_from_those_that_fall() -> None:
    said = say(trajectory=descents(straight=-2.0))
    text = said["From straight-through to NES"]
    assert "best straight-through descent resolvably brings the loss down in 0 of 3 cases" in text
    assert "NES still does in 3 of 3" in text
    # five steps of .01, and of .001 for every init
    assert (
        "NES 5,000, 0.0550 [0.0500, 0.0600] before −0.0950 of STE hardtanh"
        in (said["Best estimator"])
    )
    assert "held-out batch" in said["Judged"]
    assert "num_dim" not in " ".join(said.values())


def test_descents_take_the_lr_that_ends_lowest_and_never_a_diverged_one() -> None:
    good, bad = descents(), descents()
    bad["loss_fresh"] = bad["loss_fresh"] - bad["step"]
    bad.loc[(bad["step"] == 5) & (bad["init"] == 0), ["loss", "loss_fresh"]] = np.nan
    both = pd.concat([good.assign(lr=0.1), bad.assign(lr=1.0)])
    assert "0.0550 [0.0500, 0.0600] before" in say(trajectory=both)["Best estimator"]
    lost = bad.assign(loss=np.nan, loss_fresh=np.nan)
    assert say(trajectory=lost) == {"Nothing to compare": "Every trajectory diverged."}


def test_without_a_held_out_batch_the_training_loss_is_taken() -> None:
    rows = descents().drop(columns="loss_fresh")
    said = say(trajectory=rows)
    assert "Judged" not in said
    assert "in 3 of 3 cases, the best of NES in 3" in said["From straight-through to NES"]


def test_budgets_are_told_apart() -> None:
    said = say(trajectory=descents(budgets=["steps", "seconds"]))
    assert {"Best estimator (budget of steps)", "Best estimator (budget of seconds)"} <= set(said)
