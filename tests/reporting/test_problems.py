"""Networks have no num_dim: what their conditions are called, and in which order they come."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.reporting import columns, facets, layers, problems
from tests.reporting import synthetic, synthetic_networks
from tests.reporting.synthetic import CDG, STES

LRS = (0.1,)


def steps(**options: object) -> pd.DataFrame:
    rows = synthetic_networks.loss_decrease(**{"methods": [CDG], "inits": 1, "lrs": LRS, **options})
    return columns.annotate(rows)


def test_a_condition_of_a_network_names_width_layer_and_training() -> None:
    frame = steps(widths=[16], layers=["layer 7", "layer -2"], students=["fresh", "converged"])
    assert columns.conditions(frame) == [
        "layer 7, fresh", "layer 7, converged", "layer −2, fresh", "layer −2, converged",
    ]  # fmt: skip
    assert "width 16, layer 7, converged" in columns.conditions(steps(widths=[8, 16]))


def test_conditions_come_by_width_depth_and_training_whatever_the_order_of_the_rows() -> None:
    expected = columns.conditions(steps(widths=[4, 16]))
    assert expected[:4] == [
        f"width 4, first layer, {state}"
        for state in ("fresh", "early in training", "mid-training", "converged")
    ]
    shuffled = steps(widths=[16, 4]).sample(frac=1, random_state=1)
    assert columns.conditions(shuffled) == expected


def test_words_about_training_that_all_students_share_are_said_once() -> None:
    frame = steps(layers=["layer 7"])
    assert columns.conditions(frame)[-1] == "converged"
    assert frame["student_training"].unique().tolist() == ["6 epochs, 10000 images"]
    several = steps(layers=["layer 7"], students=["mid (6 epochs)", "mid (9 epochs)", "mid"])
    assert columns.conditions(several) == [
        "mid-training (6 epochs)", "mid-training (9 epochs)", "mid-training",
    ]  # fmt: skip


def test_layers_are_the_networks_and_no_option_of_an_estimator() -> None:
    frame = steps(methods=[CDG, STES[0]])
    assert "layers" not in columns.option_columns(frame)
    assert set(frame["method"]) == {"CDG", "STE hardtanh"}
    own = synthetic.loss_decrease([CDG], [2], 1, 1, LRS).assign(layers="first")
    assert "layers" in columns.option_columns(own)


def test_a_network_without_chosen_layers_steps_in_all_of_them() -> None:
    rows = synthetic_networks.loss_decrease([CDG], layers=["layer 7"], students=["fresh"])
    both = pd.concat([rows, rows.assign(layers=None)])
    assert columns.conditions(columns.annotate(both)) == ["layer 7", "all layers"]


def test_a_settings_number_orders_training_runs() -> None:
    frame = columns.annotate(synthetic_networks.training_result(widths=[8], decays=[1e-4, 0, 1e-5]))
    assert columns.conditions(frame) == [
        "weight decay 0", "weight decay 1e-05", "weight decay 0.0001",
    ]  # fmt: skip


@given(st.permutations(["first layer", "layer 3", "layer 12", "layer -2", "last layer", "all"]))
def test_layers_come_by_depth(names: list[str]) -> None:
    order = sorted(names, key=lambda name: problems.position("layers", name))
    assert order == ["first layer", "layer 3", "layer 12", "layer -2", "last layer", "all"]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("dataset", "uc_merced", "UC Merced"),
        ("model", "xnor_resnet18", "XNOR-ResNet18"),
        ("block", "bireal", "Bi-Real blocks"),
        ("coordinates", 16.0, "16 coordinates of each layer"),
        ("coordinates", 1, "1 coordinate of each layer"),
        ("coordinates", None, "every weight"),
        ("network_surrogate", "ede", "trained with ede"),
        ("scaling", None, "default scaling"),
        ("student", "converged (9 epochs, 64 a batch)", "converged (9 epochs, 64 a batch)"),
        ("learning_rate", 0.002, "lr 0.002"),
    ],
)
def test_columns_of_networks_have_words(column: str, value: object, words: str) -> None:
    assert problems.phrase(column, value, network=True) == words


def test_a_teachers_student_is_called_one() -> None:
    assert problems.phrase("student", "mid (9 epochs)") == "mid student (9 epochs)"


def test_layers_take_the_place_of_num_dim_along_the_axis() -> None:
    frame, axis = facets.along(steps(widths=[8, 16]))
    assert (axis.column, axis.values) == ("layers", ["first", "7", "−2"])
    assert set(frame["condition"]) == {
        f"{width}, {state}"
        for width, state in itertools.product(
            ["width 8", "width 16"], ["fresh", "early in training", "mid-training", "converged"]
        )
    }
    _, axis = facets.along(steps(widths=[16, 8], layers=["layer 7"]))
    assert (axis.column, axis.values) == ("width", ["8", "16"])
    _, axis = facets.along(steps(layers=["layer 7"]))
    assert (axis.column, axis.values) == ("student", ["fresh", "early", "mid", "converged"])
    _, axis = facets.along(steps(layers=["layer 7"], students=["fresh"]))
    assert (axis.column, axis.label) == ("num_dim", "")


def test_num_dim_keeps_its_axis() -> None:
    rows = columns.annotate(synthetic.loss_decrease([CDG], [8, 2], 1, 1, LRS))
    frame, axis = facets.along(rows)
    assert (axis.column, axis.values) == ("num_dim", [2, 8])
    found = facets.grid(frame)
    assert found.columns == ["num_dim = 2", "num_dim = 8"]
    assert found.panels[0, 1] == {"condition": "", "num_dim": 8}


def test_students_stand_side_by_side_and_the_rest_below() -> None:
    frame = steps(widths=[8, 16], layers=["layer 7"])
    found = facets.grid(frame)
    assert found.rows == ["width 8", "width 16"]
    assert found.columns == ["fresh", "early in training", "mid-training", "converged"]
    assert found.panels[1, 3] == {"condition": "width 16, converged"}
    missing = frame[frame["condition"] != "width 16, converged"]
    assert (1, 3) not in facets.grid(missing).panels


def test_what_stands_along_the_axis_is_not_in_the_rows() -> None:
    frame, axis = facets.along(steps(widths=[8, 16]))
    assert facets.grid(frame, axis.column).rows == ["width 8", "width 16"]
    frame, axis = facets.along(steps(students=["fresh"]))
    assert facets.grid(frame, axis.column).columns == [""]


def test_num_dim_is_dropped_where_there_is_none() -> None:
    network = steps()
    assert "num_dim" not in facets.without_num_dim(network)
    rows = columns.annotate(synthetic.loss_decrease([CDG], [8], 1, 1, LRS))
    assert "num_dim" in facets.without_num_dim(rows)


def test_depth_orders_layers_whose_names_do_not() -> None:
    frame = pd.DataFrame(
        {"layer": ["classifier.0.weight", "features.4.weight", "all"], "depth_index": [1, 0, None]}
    )
    assert layers.layer_order(frame) == ["features.4.weight", "classifier.0.weight", "all"]
    assert layers.tick_names(frame) == {
        "features.4.weight": "0", "classifier.0.weight": "1", "all": "all",
    }  # fmt: skip
    by_name = layers.layer_order(frame.drop(columns="depth_index"))
    assert by_name[0] == "classifier.0.weight"


def test_cells_of_single_layers_become_one_network() -> None:
    rows = synthetic_networks.gradient_quality([CDG], students=["fresh"], depth=3, inits=1)
    alone = rows.assign(layers=rows["layer"])
    frame = columns.annotate(alone)
    assert frame["condition"].nunique() > 1
    joined = facets.whole_depth(frame)
    assert joined["condition"].unique().tolist() == [""]
    assert "all" not in set(joined["layer"])
    whole = columns.annotate(rows)
    assert "all" in set(facets.whole_depth(whole)["layer"])


@given(st.integers(1, 40), st.integers(1, 10), st.booleans())
def test_spread_keeps_the_ends_the_order_and_the_groups(count: int, most: int, group: bool) -> None:
    names = [f"cells.{i}" for i in range(count)] + (["all"] if group else [])
    shown = layers.spread(names, most)
    assert [name for name in names if name in shown] == shown
    assert len(shown) <= max(most, 1 + group)
    assert shown[0] == names[0]
    assert not group or shown[-1] == "all"
    if most - group >= 2:
        assert names[count - 1] in shown
