from __future__ import annotations

import pandas as pd

from gradlab.reporting import columns, layers
from tests.reporting import synthetic


def test_a_plain_study_has_one_condition_and_labels_for_methods() -> None:
    frame = columns.annotate(synthetic.loss_decrease(num_dims=[2], inits=1, batches=1, lrs=[0.1]))
    assert frame["condition"].unique().tolist() == [""]
    assert set(frame["method"]) == {method["label"] for method in synthetic.METHODS}


def test_methods_are_listed_in_one_order_everywhere() -> None:
    frame = synthetic.loss_decrease(num_dims=[2], inits=1, batches=1, lrs=[0.1])
    shuffled = columns.annotate(frame.sample(frac=1, random_state=0))
    assert columns.methods(shuffled).index.tolist() == [
        "CDG", "STE hardtanh", "STE steep", "STE swish_sign", "STE polynomial", "matched STE",
        "local NES (2 passes)", "local NES (8 passes)", "NES 500", "NES 5,000", "NES 50,000",
    ]  # fmt: skip


def test_options_that_labels_hide_are_added_to_the_name() -> None:
    methods = [dict(synthetic.NES[0], fitness=fitness) for fitness in ("raw", "centered")]
    frame = columns.annotate(synthetic.loss_decrease(methods, [2], 1, 1, [0.1]))
    assert set(frame["method"]) == {"NES 500, fitness = raw", "NES 500, fitness = centered"}


def test_curves_along_an_option_take_what_their_labels_share() -> None:
    methods = [
        dict(nes, sigma=sigma, label=f"NES {nes['population']}" + end)
        for nes in synthetic.NES[:2]
        for sigma, end in [(0.1, ""), (0.01, " σ=0.01")]
    ]
    frame = columns.annotate(synthetic.loss_decrease(methods, [2], 1, 1, [0.1]))
    assert set(frame["method"]) == {method["label"] for method in methods}
    assert set(columns.name_curves(frame, ["sigma"])) == {"NES 500", "NES 5000"}


def test_whatever_else_varies_is_the_condition() -> None:
    small = synthetic.loss_decrease([synthetic.CDG], [2], 1, 1, [0.1])
    frame = pd.concat(
        [small.assign(student=student, normalize=normalize)
         for student in ("converged", "fresh") for normalize in ("tensor", "global")]
    )  # fmt: skip
    # fresh first; settings in the order in which they were run
    assert columns.conditions(columns.annotate(frame)) == [
        "fresh student, normalize tensor",
        "fresh student, normalize global",
        "converged student, normalize tensor",
        "converged student, normalize global",
    ]


def test_an_unknown_option_of_one_estimator_is_an_option_and_no_setting() -> None:
    frame = synthetic.loss_decrease([synthetic.CDG, synthetic.STES[0]], [2], 1, 1, [0.1])
    frame["wobble"] = frame["estimator"].map({"cdg": None, "ste": 3})
    assert "wobble" in columns.option_columns(frame)
    assert "wobble" not in columns.setting_columns(frame)


def test_a_row_that_is_older_than_a_column_says_nothing_about_it() -> None:
    rows = synthetic.loss_decrease([synthetic.CDG, synthetic.STES[0]], [2], 1, 1, [0.1])
    newer = rows["estimator"] == "ste"
    mixed = rows.assign(evaluation_examples=newer.map({True: 2000.0, False: None}))
    assert columns.annotate(mixed)["condition"].unique().tolist() == [""]
    assert "evaluation_examples" in columns.setting_columns(mixed)
    sizes = pd.concat([rows.assign(evaluation_examples=size) for size in (500, 2000)])
    assert columns.conditions(columns.annotate(sizes)) == [
        "500 evaluated images", "2,000 evaluated images",
    ]  # fmt: skip


def test_an_unknown_measurement_is_neither() -> None:
    frame = synthetic.loss_decrease(num_dims=[2], inits=3, batches=1)
    frame["curvature"] = [i * 0.1 for i in range(len(frame))]
    assert "curvature" not in columns.option_columns(frame) + columns.setting_columns(frame)


def test_objectives_without_num_dim_and_columns_of_lists_are_read() -> None:
    frame = synthetic.loss_decrease([synthetic.CDG], [2], 1, 1, [0.1]).drop(columns="num_dim")
    frame["layers"] = [["layers.0.weight"]] * len(frame)
    annotated = columns.annotate(frame)
    assert annotated["num_dim"].tolist() == [0]
    assert annotated["method"].tolist() == ["CDG"]


def test_layers_come_in_order_with_all_of_them_last() -> None:
    names = ["all", "layers.10.weight", "hidden", "layers.2.weight", "layers.0.weight"]
    frame = pd.DataFrame({"layer": names})
    order = layers.layer_order(frame)
    assert [layers.layer_name(layer) for layer in order] == ["1", "3", "11", "hidden", "all"]
    assert layers.single_layers(frame) == order[:3]


def test_the_reference_is_the_cdg_of_the_default_width() -> None:
    methods = [dict(synthetic.CDG, epsilon=e, label=f"CDG ε={e}") for e in (0.01, 0.1, 1.0)]
    frame = columns.annotate(synthetic.loss_decrease(methods, [2], 1, 1, [0.1]))
    assert columns.reference_method(columns.methods(frame)) == "CDG ε=0.1"
    ste = columns.annotate(synthetic.loss_decrease(synthetic.STES, [2], 1, 1, [0.1]))
    assert columns.reference_method(columns.methods(ste)) is None
