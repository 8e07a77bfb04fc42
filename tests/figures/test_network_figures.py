"""Figures of studies on networks: no num_dim, conditions side by side."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import drawing
from tests.figures.test_figures import texts
from tests.reporting import synthetic, synthetic_networks
from tests.reporting.synthetic import CDG, LOCAL, NES, STES

FEW = [CDG, STES[0], *NES[:2]]
LRS = (0.03, 0.1, 0.3)
TWO = ("fresh", "converged (6 epochs, 10000 images)")


def steps(**options: object) -> pd.DataFrame:
    chosen = {"methods": FEW[:3], "lrs": LRS, "students": TWO, **options}
    return synthetic_networks.loss_decrease(**chosen)


def scales(**options: object) -> pd.DataFrame:
    return steps(methods=[*synthetic_networks.thresholds(), STES[1]], **options)


def quality(**options: object) -> pd.DataFrame:
    return synthetic_networks.gradient_quality(FEW[:3], **options)


def descent(**options: object) -> pd.DataFrame:
    return synthetic_networks.trajectory([CDG, STES[0]], **options)


def noises(**options: object) -> pd.DataFrame:
    methods = [dict(LOCAL[0], noise=noise) for noise in ("weights", "positions")]
    return steps(methods=[*methods, STES[0]], **options)


FULL = {
    "loss_decrease_groups": ("loss_decrease", steps),
    "loss_decrease_by_lr": ("loss_decrease", steps),
    "best_loss_decrease": ("loss_decrease", steps),
    "hyperparameter": ("loss_decrease", scales),
    "cosine_by_layer": ("gradient_quality", quality),
    "cosine_by_forward_passes": ("gradient_quality", quality),
    "gradient_by_depth": ("gradient_quality", quality),
    "trajectory": ("trajectory", descent),
    "settings_comparison": ("loss_decrease", noises),
    "training_curves": ("training", lambda: synthetic_networks.training(epochs=4)),
    "accuracy_by_weight_decay": ("training_result", synthetic_networks.training_result),
}
MEASURED = ("loss_decrease", "cosine", "loss", "val_accuracy")


def laid_out(name: str, tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Drawn and laid out: what does not fit warns, and warnings are errors."""
    drawn: tuple[Figure, pd.DataFrame] = drawing.load_figure(name).draw(tables)
    drawn[0].draw_without_rendering()
    return drawn


def shown(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.axison]


def ticks(ax: Axes) -> list[str]:
    return [tick.get_text() for tick in ax.get_xticklabels()]


def titles(figure: Figure) -> list[str]:
    found = [ax.get_title(loc="left").replace("\n", " ") for ax in shown(figure)]
    return [title for title in found if title]


@pytest.mark.parametrize("name", FULL)
def test_a_network_is_drawn_with_its_name_and_without_num_dim(name: str) -> None:
    table, make = FULL[name]
    figure, numbers = laid_out(name, {table: make()})
    assert {"mean", "low", "high", "n"} <= set(numbers)
    assert "num_dim" not in numbers
    assert "num_dim" not in texts(figure)
    assert "XNOR-ResNet18 on CIFAR-10" in numbers.attrs["note"]
    assert "95 % bootstrap CI over inits, n = 3" in numbers.attrs["note"]


@pytest.mark.parametrize("name", FULL)
def test_no_interval_is_claimed_for_two_inits_of_a_network(name: str) -> None:
    table, make = FULL[name]
    rows = make()
    _, numbers = drawing.load_figure(name).draw({table: rows[rows["init"] < 2]})
    assert numbers["low"].isna().all()
    assert "No intervals: n = 2" in numbers.attrs["note"]


@pytest.mark.parametrize("name", FULL)
def test_nothing_to_draw_of_a_network_is_one_sentence(name: str) -> None:
    table, make = FULL[name]
    rows = make()
    lost = {column: np.nan for column in (*MEASURED, "train_loss", "val_loss") if column in rows}
    for empty in (rows.iloc[:0], rows.assign(**lost)):
        with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
            drawing.load_figure(name).draw({table: empty})


def test_layers_stand_along_the_axis_and_students_side_by_side() -> None:
    shuffled = steps().sample(frac=1, random_state=0)
    figure, numbers = laid_out("best_loss_decrease", {"loss_decrease": shuffled})
    assert titles(figure) == ["fresh", "converged"]
    assert ticks(shown(figure)[-1]) == ["first", "7", "−2"]
    assert set(numbers["layers"]) == {"first", "7", "−2"}
    assert "Training: 6 epochs, 10000 images." in numbers.attrs["note"]


def test_without_layers_or_students_to_compare_the_groups_of_methods_come_back() -> None:
    one = steps(layers=["layer 7"], students=["fresh"])
    figure, numbers = laid_out("best_loss_decrease", {"loss_decrease": one})
    assert titles(figure)[0] == "NES against CDG"
    assert ticks(shown(figure)[-1]) == []
    assert "layer 7, fresh" in numbers.attrs["note"]


def test_students_of_a_network_have_axes_of_their_own() -> None:
    figure, _ = laid_out("loss_decrease_by_lr", {"loss_decrease": steps()})
    tops = [ax.get_ylim()[1] for ax in shown(figure)]
    assert tops[0] > 10 * tops[1]
    assert len(tops) == 6  # three layers, two students


def test_a_combination_that_was_not_measured_is_an_empty_place() -> None:
    rows = steps()
    rows = rows[(rows["layers"] != "layer 7") | (rows["student"] == "fresh")]
    for name in ("best_loss_decrease", "loss_decrease_groups"):
        drawing.load_figure(name).draw({"loss_decrease": rows})
    figure, _ = laid_out("loss_decrease_by_lr", {"loss_decrease": rows})
    assert len(shown(figure)) == 5


def test_the_threshold_of_a_clip_is_a_scale() -> None:
    figure, numbers = laid_out("hyperparameter", {"loss_decrease": scales()})
    clipped = numbers[numbers["hyperparameter"] == "threshold"]
    assert sorted(clipped["scale"].unique()) == [0.25, 0.5, 1.0, 1.3, 2.0]
    assert clipped["curve"].unique().tolist() == ["STE hardtanh"]
    best = clipped.sort_values("mean").groupby("condition")["scale"].last()
    assert (best == 1.0).all()
    assert numbers.loc[numbers["hyperparameter"] == "none", "curve"].unique() == ["STE steep"]
    assert "clip threshold" in texts(figure)


def test_three_thresholds_are_a_scale_and_two_a_comparison() -> None:
    rows = scales()
    _, numbers = laid_out("best_loss_decrease", {"loss_decrease": rows})
    assert set(numbers["method"]) == {"STE hardtanh", "STE steep"}
    assert "threshold = 1 is shown" in numbers.attrs["note"]
    two = rows[rows["surrogate"].isin(["hardtanh", "hardtanh(threshold=0.5)"])]
    _, numbers = laid_out("best_loss_decrease", {"loss_decrease": two})
    assert set(numbers["method"]) == {"STE hardtanh", "STE hardtanh(threshold=0.5)"}


def test_several_scales_have_a_column_each() -> None:
    methods = [dict(CDG, epsilon=e, label=f"CDG ε={e}") for e in (0.01, 0.1)]
    rows = steps(methods=[*methods, *synthetic_networks.thresholds()])
    figure, numbers = laid_out("hyperparameter", {"loss_decrease": rows})
    assert set(numbers["hyperparameter"]) == {"epsilon", "threshold"}
    assert len(shown(figure)) == 2 * 6
    heads = [ax.texts[0].get_text() for ax in shown(figure)[::2]]
    assert heads[:2] == ["first layer, fresh", "first layer, converged"]


def test_a_choice_is_compared_for_every_layer_with_students_side_by_side() -> None:
    figure, numbers = laid_out("settings_comparison", {"loss_decrease": noises()})
    assert titles(figure) == ["fresh", "converged"]
    assert len(shown(figure)) == 6
    assert set(numbers["choice"]) == {"weights", "positions"}
    assert set(numbers["method"]) == {"local NES (2 passes)"}


def test_a_descent_of_a_network_is_judged_on_the_held_out_batch_from_its_start() -> None:
    rows = descent(layers=["layer 7"])
    rows["loss_fresh"] = 2 * rows["loss"]
    figure, numbers = laid_out("trajectory", {"trajectory": rows})
    assert "held-out batch" in shown(figure)[0].get_ylabel()
    end = numbers[numbers["budget"] == "forward_passes"].sort_values("x").groupby("method").last()
    last = rows[(rows["budget"] == "forward_passes") & (rows["step"] == rows["step"].max())]
    assert end.loc["CDG", "mean"] == pytest.approx(
        last.loc[last["estimator"] == "cdg", "loss_fresh"].mean()
    )
    level = [line.get_ydata()[0] for line in shown(figure)[0].lines if line.get_linestyle() == ":"]
    assert level == [pytest.approx(rows.loc[rows["step"] == 0, "loss_fresh"].mean())]
    assert "Dotted: the loss at the start" in numbers.attrs["note"]


def test_descents_of_many_networks_stand_side_by_side_by_their_students() -> None:
    figure, numbers = laid_out("trajectory", {"trajectory": descent(students=TWO)})
    assert len(shown(figure)) == 6
    assert titles(figure) == ["fresh", "converged"]
    assert numbers["budget"].unique().tolist() == ["forward_passes"]
    few = descent(layers=["layer 7"], students=TWO)
    assert titles(laid_out("trajectory", {"trajectory": few})[0])[0] == "budget of passes"


def test_depth_runs_from_input_to_output_with_one_curve_per_estimator() -> None:
    figure, numbers = laid_out("gradient_by_depth", {"gradient_quality": quality(noise=0.0)})
    assert titles(figure) == ["fresh", "converged"]
    norms = numbers[(numbers["quantity"] == "norm of the gradient") & (numbers["method"] == "CDG")]
    fresh = norms[norms["condition"] == "fresh"].sort_values("depth_index")
    assert fresh["depth_index"].tolist() == list(range(19))
    own = numbers[(numbers["method"] == "the reference") & (numbers["condition"] == "fresh")]
    exact = 0.01 * np.exp(-0.15 * np.arange(19))
    np.testing.assert_allclose(own.sort_values("depth_index")["mean"], exact)
    assert "The reference is CDG (ε = 0.1)" in numbers.attrs["note"]
    assert "whole layers" in numbers.attrs["note"]
    assert shown(figure)[2].get_yscale() == "log"


def test_norms_of_a_few_coordinates_are_not_called_those_of_whole_layers() -> None:
    note = laid_out("gradient_by_depth", {"gradient_quality": quality(coordinates=6)})[1].attrs
    assert "Norms are over 6 weights of each layer" in note["note"]


def test_layers_measured_in_cells_of_their_own_are_one_curve() -> None:
    rows = quality(students=["fresh"], depth=3)
    single = rows[rows["layer"] != "all"]
    alone = pd.concat([single, single.assign(layer="all", depth_index=None)])
    alone["layers"] = "layer " + single["depth_index"].astype(int).astype(str)
    for name in ("gradient_by_depth", "cosine_by_layer", "cosine_by_forward_passes"):
        figure, numbers = laid_out(name, {"gradient_quality": alone})
        assert set(numbers["condition"]) == {""}, name
        assert "layer" not in numbers or "all" not in set(numbers["layer"]), name
    assert len(shown(figure)) == 3


@pytest.mark.parametrize(("problems", "across"), [(4, 4), (20, 4), (36, 8)])
def test_many_problems_do_not_make_an_endless_figure(problems: int, across: int) -> None:
    one = quality(students=["fresh"], depth=2, inits=1)
    rows = pd.concat([one.assign(width=width) for width in range(1, problems + 1)])
    figure, _ = drawing.load_figure("gradient_by_depth").draw({"gradient_quality": rows})
    panels = shown(figure)
    assert len(panels) == 2 * problems
    assert len({ax.get_subplotspec().colspan.start for ax in panels}) == across
    assert figure.get_size_inches()[1] == pytest.approx(5.1 if problems == 4 else 20.9)


def test_one_layer_or_no_depth_has_no_figure_by_depth() -> None:
    draw = drawing.load_figure("gradient_by_depth").draw
    with pytest.raises(ValueError, match="two layers at least"):
        draw({"gradient_quality": quality(depth=1)})
    with pytest.raises(ValueError, match="no column 'depth_index'"):
        draw({"gradient_quality": synthetic.gradient_quality(FEW)})


def test_many_conditions_are_wrapped_into_bands() -> None:
    students = (*synthetic_networks.STUDENTS, "converged (50 epochs)")
    rows = synthetic_networks.gradient_quality(FEW[:2], students=students, depth=3)
    figure, _ = laid_out("gradient_by_depth", {"gradient_quality": rows})
    assert len(shown(figure)) == 10
    assert [ax.get_xlabel() != "" for ax in shown(figure)].count(True) == 3


def test_of_a_deep_network_some_layers_are_shown_and_the_note_says_so() -> None:
    figure, numbers = laid_out("cosine_by_forward_passes", {"gradient_quality": quality()})
    assert titles(figure) == ["layer 0", "layer 4", "layer 9", "layer 14", "layer 18", "all layers"]
    assert "5 of 19 layers" in numbers.attrs["note"]


def test_weight_decays_are_evenly_spaced_with_zero_first() -> None:
    figure, numbers = laid_out(
        "accuracy_by_weight_decay", {"training_result": synthetic_networks.training_result()}
    )
    assert ticks(shown(figure)[0])[:2] == ["0", "1e-06"]
    legend = [text.get_text() for text in shown(figure)[-1].get_legend().get_texts()]
    assert legend == ["width 8", "width 16", "width 192", "published"]
    mean = numbers.query("quantity == 'val_accuracy' and line == 'width 8'").dropna(subset="mean")
    assert mean.set_index("weight_decay")["mean"].idxmax() == 1e-5


def test_published_marks_stand_where_width_and_weight_decay_agree() -> None:
    rows = synthetic_networks.training_result()
    _, numbers = laid_out("accuracy_by_weight_decay", {"training_result": rows})
    theirs = numbers.dropna(subset="published")
    assert theirs["line"].unique().tolist() == ["width 192"]
    one = theirs[(theirs["weight_decay"] == 5e-6) & (theirs["quantity"] == "val_accuracy")]
    assert one["published"].tolist() == [0.9178]
    note = numbers.attrs["note"]
    assert "not to be held against them: 20 of 200 epochs, 5,000 of 50,000 images" in note
    full = rows.assign(epochs=200, train_examples=50_000)
    note = laid_out("accuracy_by_weight_decay", {"training_result": full})[1].attrs["note"]
    assert "Hollow" in note
    assert "held against" not in note
    thin = rows[rows["width"] < 100]
    assert "Hollow" not in laid_out("accuracy_by_weight_decay", {"training_result": thin})[1].attrs[
        "note"
    ]  # fmt: skip


def test_one_weight_decay_has_no_figure() -> None:
    rows = synthetic_networks.training_result(decays=[0.0])
    with pytest.raises(ValueError, match="needs two of them"):
        drawing.load_figure("accuracy_by_weight_decay").draw({"training_result": rows})


def test_runs_are_lines_by_weight_decay_and_panels_by_width() -> None:
    rows = synthetic_networks.training(epochs=4)
    figure, numbers = laid_out("training_curves", {"training": rows})
    assert titles(figure) == ["width 8", "width 16"]
    assert set(numbers["line"]) == {"weight decay 0", "weight decay 1e-05", "weight decay 0.0001"}
    true = rows[(rows["width"] == 8) & (rows["weight_decay"] == 0) & (rows["epoch"] == 4)]
    drawn = numbers.query(
        "quantity == 'val_loss' and condition == 'width 8' and line == 'weight decay 0'"
    )
    assert drawn.loc[drawn["epoch"] == 4, "mean"].item() == pytest.approx(true["val_loss"].mean())


def test_estimators_keep_their_colours_in_training_curves() -> None:
    rows = synthetic_networks.training(widths=[8], decays=[0.0], epochs=3)
    other = rows.assign(estimator="nes", label="NES 500", surrogate=None, population=500.0)
    figure, numbers = laid_out("training_curves", {"training": pd.concat([rows, other])})
    assert set(numbers["line"]) == {"STE hardtanh(threshold=1.3)", "NES 500"}
    assert "NES 500" in texts(figure)


def test_runs_that_differ_in_their_learning_rate_alone_are_told_apart_by_their_results() -> None:
    parts = [synthetic_networks.training(widths=[8], decays=[0.0], inits=1, epochs=3).assign(cell=c)
             for c in ("a", "b")]  # fmt: skip
    epochs = pd.concat(parts)
    results = pd.DataFrame({"cell": ["a", "b"], "lr": [0.001, 0.002]})
    with pytest.raises(ValueError, match="several rows for one epoch"):
        drawing.load_figure("training_curves").draw({"training": epochs})
    tables = {"training": epochs, "training_result": results}
    _, numbers = laid_out("training_curves", tables)
    assert set(numbers["line"]) == {"lr 0.001", "lr 0.002"}


def test_a_diverged_run_ends_its_curve_and_is_noted() -> None:
    rows = synthetic_networks.training(widths=[8], decays=[0.0], epochs=4)
    lost = (rows["epoch"] == 4) & (rows["init"] == 0)
    rows.loc[lost, ["val_loss", "train_loss", "val_accuracy", "train_accuracy"]] = np.nan
    figure, numbers = laid_out("training_curves", {"training": rows})
    assert "Curves end where a run diverged" in numbers.attrs["note"]
    longest = max(len(line.get_xdata()) for line in shown(figure)[0].lines)
    assert longest == 3


def test_a_slice_is_a_staircase_with_every_estimators_slope() -> None:
    tables = synthetic_networks.loss_slice()
    figure, numbers = laid_out("loss_slice", tables)
    assert titles(figure) == ["fresh", "converged"]
    assert len(shown(figure)) == 6
    assert shown(figure)[0].get_ylabel().startswith("first layer (cells.0.first)")
    change = numbers[numbers["quantity"] == "change of the loss"]
    assert (change.loc[change["offset"].abs() < 1e-9, "value"] == 0).all()
    assert change.groupby(["row", "column"]).size().unique().tolist() == [101]
    slopes = numbers[numbers["quantity"] == "slope"]
    first = tables["loss_slice_slopes"].iloc[0]
    same = slopes.query(
        "row == 'first layer (cells.0.first)' and column == 'fresh' and method == @first['label']"
    )
    assert same["value"].tolist() == [first["slope"]]
    assert "no intervals" in numbers.attrs["note"]


def test_a_slice_says_what_it_goes_along() -> None:
    weights = synthetic_networks.loss_slice(inits=1, coordinates=1)
    layers = {name: rows.assign(along="ste", coordinate=-1) for name, rows in weights.items()}
    both = {name: pd.concat([rows.assign(along="coordinate"), layers[name]])
            for name, rows in weights.items()}  # fmt: skip
    expected = {"change of one weight": weights, "distance along the STE gradient": layers,
                "offset along the line": both}  # fmt: skip
    for label, tables in expected.items():
        figure, numbers = laid_out("loss_slice", tables)
        assert {ax.get_xlabel() for ax in shown(figure)} - {""} == {label}
        assert ("One weight of" in numbers.attrs["note"]) == (tables is weights)
    # beside each other, rows say which is which, and each in its own place
    rows = shown(figure)[::2]
    named = [ax.get_ylabel().partition(",")[0] for ax in rows]
    assert named == ["along coordinate"] * 3 + ["along ste"] * 3
    places = [ax.yaxis.label.get_window_extent() for ax in rows]
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(places))


def test_a_tangent_has_the_slope_and_stays_inside_its_panel() -> None:
    tables = synthetic_networks.loss_slice(
        methods=[STES[0]], students=["fresh"], layers=["first layer"], inits=1, coordinates=1
    )
    for slope, steep in ((0.05, False), (50.0, True)):
        tables["loss_slice_slopes"]["slope"] = slope
        figure, numbers = laid_out("loss_slice", tables)
        ax = figure.axes[0]
        (line,) = [line for line in ax.lines if line.get_label() == "STE hardtanh"]
        x, y = line.get_xdata(), line.get_ydata()
        np.testing.assert_allclose(y, slope * np.asarray(x))
        assert min(x) < 0 < max(x)
        assert (min(x) > -0.5) == steep
        assert ax.get_ylim()[0] <= min(y)
        assert max(y) <= ax.get_ylim()[1]
        assert ("steeper than their panel" in numbers.attrs["note"]) == steep


def test_a_legend_keeps_the_order_of_methods_that_its_own_panel_lacks() -> None:
    tables = synthetic_networks.loss_slice(methods=[CDG, STES[0]], inits=1, coordinates=1)
    for name, rows in tables.items():
        tables[name] = rows[(rows["estimator"] != "cdg") | (rows["student"] == "fresh")]
    figure, _ = laid_out("loss_slice", tables)
    legend = figure.axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["CDG", "STE hardtanh"]


def test_a_slice_without_a_finite_loss_is_one_sentence() -> None:
    tables = synthetic_networks.loss_slice(inits=1, coordinates=1)
    tables["loss_slice"]["loss"] = np.nan
    with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
        drawing.load_figure("loss_slice").draw(tables)
