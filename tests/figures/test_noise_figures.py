"""Figures of training runs with noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from figures import _style
from gradlab.reporting import columns, drawing, noise, runs
from tests.figures.test_figures import texts
from tests.figures.test_network_figures import laid_out, shown, titles
from tests.figures.test_style import SIMULATED, lab
from tests.reporting import synthetic_noise
from tests.reporting.synthetic_noise import ARD, DROPOUT, NONE, SPARSE

FIGURES = [name for name in drawing.BY_KIND["variational_run"] if name != "training_curves"]
MEASURED = ("sparsity", "kept", "count", "last_compression", "val_accuracy", "final_mean_accuracy",
            "final_pruned_accuracy")  # fmt: skip


def tables(inits: int = 3, **changes: object) -> dict[str, pd.DataFrame]:
    made = {
        "training_result": synthetic_noise.results, "training": synthetic_noise.training,
        "layer_sparsity": synthetic_noise.layer_sparsity, "log_alpha": synthetic_noise.log_alpha,
        "kept_inputs": synthetic_noise.kept_inputs,
    }  # fmt: skip
    return {name: make(inits=inits, **changes) for name, make in made.items()}


def drawn(name: str, given: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    return laid_out(name, {table: given[table] for table in drawing.load_figure(name).TABLES})


@pytest.mark.parametrize("name", [*FIGURES, "training_curves"])
def test_a_figure_says_which_network_it_is_of(name: str) -> None:
    figure, numbers = drawn(name, tables())
    note = numbers.attrs["note"]
    assert note.startswith("fully connected network on MNIST, hidden 300-100, batches of 100.")
    assert "num_dim" not in numbers
    ticks = [tick.get_text() for tick in shown(figure)[0].get_yticklabels()]
    assert "sparse VD" in " ".join([texts(figure), *titles(figure), *ticks])


@pytest.mark.parametrize("name", ["accuracy_by_method", "sparsity", "error_by_compression"])
def test_no_interval_is_claimed_for_two_inits(name: str) -> None:
    _, numbers = drawn(name, tables(inits=2))
    assert numbers["low"].isna().all()
    assert "No intervals: n = 2" in numbers.attrs["note"]
    _, numbers = drawn(name, tables())
    assert "95 % bootstrap CI over inits, n = 3" in numbers.attrs["note"]


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_to_draw_is_one_sentence(name: str) -> None:
    module, given = drawing.load_figure(name), tables()
    lost = {}
    for table, rows in given.items():
        numbers = {column: 0 if column == "count" else np.nan for column in MEASURED
                   if column in rows}  # fmt: skip
        lost[table] = rows.assign(**numbers)
    without = {table: lost[table] for table in module.TABLES}
    empty = {table: given[table].iloc[:0] for table in module.TABLES}
    for bad in (without, empty) if name != "kept_inputs" else (empty,):
        with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
            module.draw(bad)


@pytest.mark.parametrize("name", FIGURES)
def test_conditions_have_panels_of_their_own(name: str) -> None:
    parts = [tables(hidden=[n]) for n in (20, 40)]
    both = {table: pd.concat([part[table] for part in parts]) for table in parts[0]}
    figure, numbers = drawn(name, both)
    assert set(numbers["condition"]) == {"hidden 20", "hidden 40"}
    found = " ".join(titles(figure))
    assert "hidden 20" in found
    assert "hidden 40" in found


def test_accuracies_stand_in_the_rows_of_their_methods() -> None:
    given = tables()
    figure, numbers = drawn("accuracy_by_method", given)
    ax = shown(figure)[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        "no noise", "Gaussian S", "sparse VD", "hierarchical VD", "Bayes by Backprop",
    ]  # fmt: skip
    legend = ax.get_legend() or figure.axes[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        "mean weights", "Monte Carlo", "one draw", "pruned",
    ]  # fmt: skip
    rows = given["training_result"]
    own = rows[rows["estimator"] == "gaussian_s"]
    for judge in ("mean", "sample", "monte_carlo"):
        chosen = numbers[(numbers["judge"] == judge) & (numbers["method"] == "Gaussian S")]
        expected = own[noise.final(judge)].mean()
        assert chosen["mean"].tolist() == pytest.approx([expected])
        # drawn where the row says, in a lane of its own
        marks = [(x, y) for line in ax.lines if line.get_markersize() > 3
                 for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]  # fmt: skip
        assert any(x == pytest.approx(expected) and abs(y - 1) < 0.5 for x, y in marks)


def test_published_accuracies_are_hollow_and_say_how_ours_differ() -> None:
    changes = {"dataset": "cifar10", "model": "conv_net", "hidden": None, "scale": 1.5,
               "epochs": 8, "batch_size": 1_000, "schedule": "constant", "kl_weight": "constant",
               "train_examples": 50_000}  # fmt: skip
    rows = synthetic_noise.results([NONE, {**DROPOUT, "side": "output"}], **changes)
    figure, numbers = drawn("accuracy_by_method", {"training_result": rows})
    theirs = numbers[numbers["judge"] == "published (one draw)"]
    assert theirs[theirs["method"] == "no noise"]["published"].tolist() == [0.5551]
    assert "Hollow: published accuracies of one draw" in numbers.attrs["note"]
    assert "trained otherwise: 8 of 100 epochs" in numbers.attrs["note"]
    hollow = [line for line in shown(figure)[0].lines if line.get_markerfacecolor() == "none"]
    assert 0.5551 in [x for line in hollow for x in line.get_xdata()]


def test_sparsity_has_a_line_per_layer_and_only_methods_that_prune() -> None:
    figure, numbers = drawn("sparsity", tables())
    assert titles(figure) == ["sparse VD", "hierarchical VD"]
    assert len(shown(figure)) == 6
    ends = numbers[(numbers["quantity"] == "sparsity") & (numbers["epoch"] == 12)]
    by_layer = ends[ends["method"] == "sparse VD"].set_index("name")["mean"]
    assert by_layer.to_dict() == pytest.approx({"layer 1": 0.97, "layer 2": 0.93, "layer 3": 0.6})
    whole = numbers[(numbers["quantity"] == "compression") & (numbers["epoch"] == 12)]
    # 266,200 weights over 7,056 + 2,100 + 400
    assert whole.set_index("method")["mean"]["sparse VD"] == pytest.approx(266_200 / 9_556)
    errors = numbers[(numbers["quantity"] == "error") & (numbers["name"] == "pruned")]
    assert set(errors["method"]) == {"sparse VD", "hierarchical VD"}


def test_sparsity_of_networks_without_a_weight_left_is_said() -> None:
    dead = tables()
    dead["layer_sparsity"] = dead["layer_sparsity"].assign(kept=0, sparsity=1.0)
    figure, numbers = drawn("sparsity", dead)
    assert numbers[numbers["quantity"] == "compression"]["mean"].isna().all()
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert words.count("no weight is left") == len(titles(figure)) > 0
    figure.canvas.draw()


def test_many_sparse_methods_end_the_figure_and_are_counted() -> None:
    methods = [{**SPARSE, "initial": float(n)} for n in range(-10, 8)]
    given = {
        "layer_sparsity": synthetic_noise.layer_sparsity(methods, inits=1),
        "training": synthetic_noise.training(methods, inits=1),
        "training_result": synthetic_noise.results(methods, inits=1),
    }
    figure, numbers = drawn("sparsity", given)
    assert len(titles(figure)) == 16
    assert "2 more configurations stand in the table" in numbers.attrs["note"]


def test_histograms_are_shares_and_have_the_threshold_of_their_method() -> None:
    given = synthetic_noise.log_alpha([SPARSE, {**ARD, "threshold": 2.0}])
    figure, numbers = drawn("log_alpha", {"log_alpha": given})
    sums = numbers.groupby(["method", "layer"])["share"].sum()
    assert sums.to_numpy() == pytest.approx(np.ones(6))
    removed = numbers[(numbers["low"] >= 3) & (numbers["layer"] == "layers.2")]
    shares = removed.groupby("method")["share"].sum()
    assert shares["sparse VD"] == pytest.approx(0.6)
    lines = [sorted({x for line in ax.lines for x in line.get_xdata()}) for ax in shown(figure)]
    assert lines == [[3.0], [2.0]]
    plain = given.drop(columns="threshold")
    figure, _ = drawn("log_alpha", {"log_alpha": plain})
    assert "threshold" not in texts(figure)


def test_layers_come_in_the_order_of_the_network_and_fixed_noise_is_left_out() -> None:
    ours = synthetic_noise.log_alpha([SPARSE])
    some = synthetic_noise.log_alpha([{**ARD, "estimator": "sparse_a", "label": "sparse VD A"}])
    fixed = synthetic_noise.log_alpha(
        [{**SPARSE, "estimator": "gaussian_s", "label": "Gaussian S"}]
    )
    fixed["count"] = (fixed["low"] == 0).astype(int)
    given = pd.concat([some[some["layer"] == "layers.2"], fixed, ours])
    figure, _ = drawn("log_alpha", {"log_alpha": given})
    assert titles(figure) == ["sparse VD A", "sparse VD"]
    assert [text.get_text() for text in figure.axes[-1].get_legend().get_texts()] == [
        "layer 1", "layer 2", "layer 3", "threshold",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="has learned"):
        drawn("log_alpha", {"log_alpha": fixed})


def test_a_long_legend_leaves_room_for_its_panels() -> None:
    methods = [{**SPARSE, "initial": float(n)} for n in range(-10, 8)]
    given = synthetic_noise.training(methods, inits=1, epochs=3)
    figure, _ = laid_out("training_curves", {"training": given})
    legend = figure.axes[0].get_legend().get_window_extent()
    above, below = (ax.get_window_extent() for ax in figure.axes)
    assert above.height > 0.8 * legend.height
    assert above.y0 - below.y1 < 0.3 * above.height


def test_bins_without_edges_are_not_drawn() -> None:
    given = synthetic_noise.log_alpha()
    nans = given.iloc[[0]].assign(low=None, high=None, count=7)
    _, numbers = drawn("log_alpha", {"log_alpha": pd.concat([given, nans])})
    assert numbers["low"].notna().all()


def test_pixels_are_added_up_over_channels_and_averaged_over_inits() -> None:
    given = synthetic_noise.kept_inputs([SPARSE], inits=2, side=8, channels=3)
    given.loc[given["init"] == 1, "kept"] = 0
    figure, numbers = drawn("kept_inputs", {"kept_inputs": given})
    middle = given[(given["init"] == 0) & (given["row"] == 4) & (given["column"] == 4)]
    found = numbers[(numbers["row"] == 4) & (numbers["column"] == 4)]["kept"]
    assert found.tolist() == [middle["kept"].sum() / 2]
    grid = shown(figure)[0].images[0].get_array()
    assert grid.shape == (8, 8)
    assert "% unseen" in titles(figure)[0]


def test_error_by_compression_shows_the_dense_network_and_published_ones() -> None:
    figure, numbers = drawn("error_by_compression", tables())
    assert "without noise, whole" in texts(figure)
    theirs = numbers[numbers["name"].notna()].set_index("name")
    paper = theirs.loc["LeNet-300-100, sparse VD, paper"]
    assert (paper["compression"], paper["published"]) == (68, 0.0192)
    ours = numbers[numbers["method"] == "sparse VD"].iloc[0]
    assert ours["compression"] == pytest.approx(266_200 / 9_556)
    assert ours["mean"] == pytest.approx(0.0162, abs=2e-3)
    dense = numbers[(numbers["method"] == "no noise")]["mean"].iloc[0]
    dashed = [line for line in shown(figure)[0].lines if line.get_linestyle() == "--"]
    assert dense in [y for line in dashed for y in line.get_ydata()]


def test_training_loss_is_drawn_without_the_kl_term() -> None:
    given = tables()
    _, numbers = drawn("training_curves", given)
    rows = given["training"]
    own = rows[(rows["estimator"] == "sparse") & (rows["epoch"] == 12)]
    last = numbers[(numbers["quantity"] == "train_loss") & (numbers["epoch"] == 12)]
    found = last.set_index("line")["mean"]
    assert found["sparse VD"] == pytest.approx(own["train_nll"].mean())
    assert "without the KL term" in numbers.attrs["note"]


def looks() -> dict[str, _style.Style]:
    every = [{"estimator": name, "label": name, "mean": 0.9, "gap": 0.0}
             for name in columns.NOISES if name != "ard"]  # fmt: skip
    return _style.styles(runs.annotated(synthetic_noise.results(every, inits=1)))


def test_every_method_has_a_look_of_its_own() -> None:
    found = list(looks().values())
    assert len({(look.colour, look.marker) for look in found}) == len(found)
    assert len({look.colour for look in found}) == len(found)


@pytest.mark.parametrize("vision", SIMULATED)
def test_methods_of_one_hue_have_markers_of_their_own(vision: str) -> None:
    for (_, one), (_, other) in itertools.combinations(looks().items(), 2):
        apart = np.linalg.norm(lab(one.colour, SIMULATED[vision]) -
                               lab(other.colour, SIMULATED[vision]))  # fmt: skip
        assert apart > 12 or one.marker != other.marker
        assert to_rgb(one.colour) != to_rgb(other.colour)
