from __future__ import annotations

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gradlab.reporting import drawing
from tests.reporting import synthetic
from tests.reporting.synthetic import CDG, LOCAL, MATCHED, NES, STES

LRS = [0.01, 0.1, 1.0]
KIN = [
    {"estimator": "disarm", "label": f"DisARM {p}", "population": p, "quality": p / 2_000}
    for p in (100, 1_000)
]
FEW = [CDG, STES[0], MATCHED, LOCAL[0], *NES[:2]]


def scales() -> pd.DataFrame:
    methods = [
        dict(m, **{o: v}) for m, o in [(CDG, "epsilon"), (NES[0], "sigma")] for v in (0.1, 1)
    ]
    fresh, trained = (
        synthetic.loss_decrease(methods, [8], 3, 1, LRS, student=student)
        for student in ("fresh", "converged")
    )
    return pd.concat([fresh, trained])


def thresholds() -> pd.DataFrame:
    clips = ["hardtanh", *(f"hardtanh(threshold={t})" for t in (0.25, 4.0)), "identity"]
    methods = [
        {"estimator": "ste", "label": f"STE {clip}", "surrogate": clip, "quality": 0.9 - 0.1 * i}
        for i, clip in enumerate(clips)
    ]
    return pd.concat(
        synthetic.gradient_quality(methods, [8, 32], student=student)
        for student in ("fresh", "converged")
    )


def fitness() -> pd.DataFrame:
    methods = [dict(NES[0], fitness=f) for f in ("raw", "centered", "z_score")]
    return synthetic.loss_decrease(methods, [2, 8], 3, 1, LRS)


def falls(methods: list[synthetic.Method] = FEW, **options: object) -> pd.DataFrame:
    return synthetic.loss_decrease(methods, **{"num_dims": [2, 8], "lrs": LRS, **options})


FULL = {
    "loss_decrease_groups": falls, "loss_decrease_by_lr": falls, "best_loss_decrease": falls,
    "cosine_by_layer": lambda: synthetic.gradient_quality(FEW),
    "cosine_by_forward_passes": lambda: synthetic.gradient_quality(FEW),
    "cost_quality": lambda: synthetic.gradient_quality([*FEW, *KIN]),
    "cost_quality_seconds": lambda: synthetic.gradient_quality([*FEW, *KIN]),
    "cost_decrease": falls,
    "trajectory": lambda: synthetic.trajectory([CDG, STES[0]], [8], steps=10),
    "search_progress": synthetic.search_run, "cosine_by_scale": thresholds,
    "hyperparameter": scales, "settings_comparison": fitness,
}  # fmt: skip
FALLS = ["loss_decrease_groups", "loss_decrease_by_lr", "best_loss_decrease"]


def module(name: str) -> ModuleType:
    return drawing.load_figure(name)


def draw(name: str, rows: pd.DataFrame, **options: object) -> tuple[Figure, pd.DataFrame]:
    figure = module(name)
    drawn: tuple[Figure, pd.DataFrame] = figure.draw({figure.TABLES[0]: rows}, **options)
    return drawn


def laid_out(name: str, rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Drawn and laid out: what does not fit warns, and warnings are errors."""
    figure, numbers = draw(name, rows)
    figure.draw_without_rendering()
    return figure, numbers


def texts(figure: Figure) -> str:
    found = [
        text.get_text() for ax in figure.axes for text in (ax.title, ax.xaxis.label, ax.yaxis.label)
    ]
    legends = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    found += [text.get_text() for legend in legends for text in legend.get_texts()]
    return " | ".join([*found, *[text.get_text() for text in figure.texts]])


def test_every_shipped_figure_is_tested_here() -> None:
    elsewhere = {"learning_curve"}  # test_learning_curve.py: a run has no inits
    # test_network_figures.py
    elsewhere |= {"gradient_by_depth", "accuracy_by_weight_decay", "training_curves", "loss_slice"}
    elsewhere |= set(drawing.BY_KIND["variational_run"])  # test_noise_figures.py
    elsewhere |= {"gradient_variance"}  # test_gradient_variance.py
    elsewhere |= {"diagnosis"}  # tests/diagnosis/test_figure.py
    assert set(FULL) | elsewhere == set(drawing.names())


@pytest.mark.parametrize("name", FULL)
def test_a_full_table_is_drawn_with_its_numbers_and_its_note(name: str) -> None:
    figure, numbers = laid_out(name, FULL[name]())
    assert {"mean", "low", "high", "n"} <= set(numbers)
    assert "95 % bootstrap CI over inits, n = 3" in numbers.attrs["note"]
    assert figure.get_suptitle()


@pytest.mark.parametrize("name", FULL)
def test_no_interval_is_claimed_for_two_inits(name: str) -> None:
    rows = FULL[name]()
    _, numbers = draw(name, rows[rows["init"] < 2])
    assert numbers["low"].isna().all()
    assert "No intervals: n = 2" in numbers.attrs["note"]


@pytest.mark.parametrize("name", FALLS)
@pytest.mark.parametrize("inits", [1, 3])
def test_one_num_dim_and_one_estimator_are_enough(name: str, inits: int) -> None:
    rows = falls([STES[0]], num_dims=[8], inits=inits, batches=1)
    figure, numbers = laid_out(name, rows)
    assert "STE hardtanh" in texts(figure)
    assert set(numbers["method"]) == {"STE hardtanh"}


@pytest.mark.parametrize("name", FALLS)
def test_missing_combinations_and_single_divergences_are_drawn_around(name: str) -> None:
    rows = falls()
    rows = rows[(rows["estimator"] != "cdg") | (rows["num_dim"] == 2)].reset_index(drop=True)
    rows.loc[(rows["lr"] == 0.1) & (rows["init"] == 0), "loss_decrease"] = np.nan
    _, numbers = draw(name, rows)
    drawn = numbers[["num_dim", "method"]].drop_duplicates()
    assert (8, "CDG") not in list(drawn.itertuples(index=False, name=None))


@pytest.mark.parametrize("name", FULL)
def test_nothing_to_draw_is_one_sentence(name: str) -> None:
    rows = FULL[name]()
    column = next(c for c in ("loss_decrease", "cosine", "loss") if c in rows)
    for empty in (rows.iloc[:0], rows.assign(**{column: np.nan})):
        with pytest.raises(ValueError, match=r"^[^\n]+\.$"):
            draw(name, empty)


def test_the_shown_lr_is_the_nearest_of_the_grid() -> None:
    figure, numbers = draw("loss_decrease_groups", falls(), lr=0.012)
    assert numbers["lr"].unique().tolist() == [0.01]
    assert "lr = 0.01" in figure.get_suptitle()


def test_by_default_the_lr_is_the_best_one_for_most() -> None:
    _, numbers = draw("loss_decrease_groups", falls())
    assert numbers["lr"].unique().tolist() == [0.1]


def test_by_lr_the_numbers_are_the_means_and_the_best_is_marked() -> None:
    rows = falls(noise=0.0)
    _, numbers = draw("loss_decrease_by_lr", rows)
    one = numbers[(numbers["method"] == "CDG") & (numbers["num_dim"] == 8)].set_index("lr")
    true = rows[(rows["label"] == "CDG") & (rows["num_dim"] == 8)].groupby("lr")["loss_decrease"]
    pd.testing.assert_series_equal(one["mean"], true.mean(), check_names=False)
    assert one.index[one["best"]].tolist() == [0.1]


def test_steps_far_below_the_axis_and_diverged_ones_are_marked_and_explained() -> None:
    rows = falls()
    assert "Triangles" in draw("loss_decrease_by_lr", rows)[1].attrs["note"]
    rows.loc[rows["lr"] == 1.0, "loss_decrease"] = np.nan
    note = draw("loss_decrease_by_lr", rows)[1].attrs["note"]
    assert "Triangles" not in note
    assert "Crosses" in note


def test_a_best_lr_at_the_edge_is_noted_under_the_figure() -> None:
    rows = falls([CDG], lrs=[0.001, 0.01], num_dims=[8])
    for name in ("loss_decrease_by_lr", "best_loss_decrease"):
        assert "edge of the grid" in draw(name, rows)[1].attrs["note"]


def test_one_lr_has_no_figure_against_lr() -> None:
    with pytest.raises(ValueError, match="at least two lrs"):
        draw("loss_decrease_by_lr", falls(lrs=[0.1]))


def test_shares_of_cdg_are_exact_where_the_truth_is() -> None:
    _, numbers = draw("best_loss_decrease", falls(noise=0.0))
    shares = numbers[numbers["quantity"].str.startswith("share")]
    ste = shares[shares["method"] == "STE hardtanh"]
    np.testing.assert_allclose(ste["mean"], 0.9)


def test_without_cdg_there_is_no_share_of_it() -> None:
    _, numbers = draw("best_loss_decrease", falls([STES[0], NES[0]]))
    assert numbers["quantity"].unique().tolist() == ["loss decrease (MSE)"]


def test_conditions_get_panels_of_their_own() -> None:
    states = ("fresh", "converged (500 steps, 1000 examples)")
    rows = pd.concat([falls([CDG], student=state) for state in states])
    figure, _ = laid_out("best_loss_decrease", rows)
    assert len(figure.axes) == 4  # two students, absolute and relative


def test_conditions_of_one_size_share_the_axis_and_small_ones_keep_their_own() -> None:
    size = {"all": 1.0, "hidden": 0.6, "output": 0.01}
    rows = pd.concat(
        falls([dict(CDG, quality=q)], num_dims=[8], noise=0.0, step_layers=layers)
        for layers, q in size.items()
    )
    figure, _ = draw("loss_decrease_by_lr", rows)
    tops = [ax.get_ylim()[1] for ax in figure.axes]
    assert tops[0] > 10 * tops[2]
    near = rows[rows["step_layers"] != "output"]
    figure, _ = draw("loss_decrease_by_lr", near)
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_nested_sizes_are_said_to_be_correlated() -> None:
    assert "correlated" in draw("best_loss_decrease", falls())[1].attrs["note"]
    assert "correlated" not in draw("best_loss_decrease", falls([CDG, NES[0]]))[1].attrs["note"]


def test_layers_are_counted_from_one_with_all_apart() -> None:
    figure, _ = draw("cosine_by_layer", synthetic.gradient_quality([STES[0]]))
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels == ["1", "2", "3", "4", "hidden", "all"]


def test_activation_bits_are_panels() -> None:
    rows = pd.concat(
        synthetic.gradient_quality([STES[0]], activation=a) for a in ("full", "binary", "ternary")
    )
    figure, _ = draw("cosine_by_layer", rows)
    titles = [ax.get_title(loc="left").replace("\n", " ") for ax in figure.axes]
    assert titles == [
        f"num_dim = 32, {activation} activations" for activation in ("binary", "ternary", "full")
    ]


def test_cost_is_forward_passes_and_ste_stands_at_one() -> None:
    figure, numbers = draw("cosine_by_forward_passes", synthetic.gradient_quality(FEW))
    cost = numbers.drop_duplicates("method").set_index("method")["forward_passes"]
    assert cost["STE hardtanh"] == 1
    assert cost["NES 5,000"] == 5_000
    assert "1 forward and 1 backward" in numbers.attrs["note"]
    assert figure.axes[0].get_xscale() == "log"


def test_the_plane_joins_the_sizes_of_an_estimator_and_sorts_by_kind() -> None:
    figure, numbers = laid_out("cost_quality", synthetic.gradient_quality([*FEW, *KIN]))
    assert set(numbers["method"]) == {
        "CDG", "STE hardtanh", "matched STE", "local NES (2 passes)", "NES", "DisARM",
    }  # fmt: skip
    assert set(numbers.loc[numbers["method"] == "NES", "size"]) == {"NES 500", "NES 5,000"}
    titles = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert titles == [
        "Finite differences", "Straight-through", "Evolution strategies", "Sampled binary weights",
    ]  # fmt: skip
    legends = [ax.get_legend().get_texts() for ax in figure.axes]
    listed = [[text.get_text() for text in legend] for legend in legends]
    assert listed[2:] == [["local NES (2 passes)", "NES"], ["DisARM"]]


def test_the_planes_cost_is_passes_with_backward_ones_twice_or_seconds() -> None:
    rows = synthetic.gradient_quality([STES[0], NES[0]])
    for name, ste, nes in (
        ("cost_quality", 1 + 2 * 1, 500),
        ("cost_quality_seconds", 0.002, 0.002 * 500),
    ):
        _, numbers = draw(name, rows)
        cost = numbers.set_index("method")["cost"]
        assert cost["STE hardtanh"] == pytest.approx(ste)
        assert cost["NES 500"] == pytest.approx(nes)
    assert "counts as two" in draw("cost_quality", rows)[1].attrs["note"]


def test_the_planes_means_are_those_of_the_hidden_layers() -> None:
    rows = synthetic.gradient_quality([STES[0]])
    _, numbers = draw("cost_quality", rows)
    hidden = rows[rows["layer"] == "hidden"]["cosine"].mean()
    assert numbers["mean"].tolist() == [pytest.approx(hidden)]


def test_the_front_is_what_nothing_cheaper_surpasses() -> None:
    # STE .9 at 3 passes, local NES .88 at 2, NES .25 at 500 and .6 at 5,000, CDG 1 at 6,208
    rows = synthetic.gradient_quality([STES[0], LOCAL[0], *NES[:2], CDG], noise=0.0)
    _, numbers = draw("cost_quality", rows)
    assert set(numbers.loc[numbers["front"], "size"]) == {
        "local NES (2 passes)", "STE hardtanh", "CDG",
    }  # fmt: skip


def test_the_plane_has_panels_for_students_and_num_dims() -> None:
    rows = pd.concat(
        synthetic.gradient_quality([CDG, STES[0]], num_dims=[8, 32], student=student)
        for student in ("fresh", "converged (60 steps, 4096 examples)")
    )
    figure, numbers = laid_out("cost_quality", rows)
    assert len(figure.axes) == 2 * 2 * 2  # kinds, students, num_dims
    assert "Straight-through\nconverged student" in [
        t.get_text() for a in figure.axes for t in a.texts
    ]
    assert "60 steps" in numbers.attrs["note"]  # and not in titles
    figure, _ = laid_out("cost_quality", rows[rows["num_dim"] == 8])
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == [
        "fresh student", "converged student",
    ]  # fmt: skip


def test_decreases_are_shares_of_cdgs_where_there_is_one() -> None:
    figure, numbers = draw("cost_decrease", falls(noise=0.0))
    share = numbers[numbers["num_dim"] == 8].set_index("size")["mean"]
    assert share["STE hardtanh"] == pytest.approx(0.9)
    assert "share of CDG" in figure.axes[0].get_ylabel()
    rows = falls([STES[0]], noise=0.0, num_dims=[8])
    figure, numbers = draw("cost_decrease", rows)
    assert numbers["mean"].tolist() == [pytest.approx(rows["loss_decrease_fresh"].max())]
    assert "(MSE)" in figure.axes[0].get_ylabel()


def test_a_trajectory_shows_the_last_loss_within_each_budget() -> None:
    rows = synthetic.trajectory([CDG], [8], inits=3, steps=5, budgets=["seconds"])
    budget = drawing.load_figure("trajectory")
    grid = budget.on_common_grid(rows.assign(condition="", method="CDG"), "seconds")
    for init, run in rows.groupby("init"):
        here = grid[grid["init"] == init]
        for x, loss in zip(here["x"], here["loss"], strict=True):
            reached = run[run["seconds"] <= x * (1 + 1e-6)]
            if len(reached):
                assert loss == reached["loss"].iloc[-1]


def test_each_budget_is_drawn_from_its_own_runs() -> None:
    rows = synthetic.trajectory([CDG], [8])
    rows.loc[rows["budget"] == "seconds", "loss"] *= 2
    _, numbers = draw("trajectory", rows)
    ends = numbers.sort_values("x").groupby("budget")["mean"].last()
    assert ends["seconds"] > 1.5 * ends["forward_passes"]


def test_scales_are_drawn_for_fresh_and_converged_students() -> None:
    figure, numbers = draw("hyperparameter", scales())
    measured = numbers[numbers["hyperparameter"] != "none"]
    assert set(measured["hyperparameter"]) == {"epsilon", "sigma"}
    assert set(measured["scale"]) == {0.1, 1.0}
    assert [ax.texts[0].get_text() for ax in figure.axes[::2]] == [
        "num_dim = 8, fresh student", "num_dim = 8, converged student",
    ]  # fmt: skip


def test_an_estimator_without_a_scale_is_a_level_line() -> None:
    rows = pd.concat([scales(), synthetic.loss_decrease([STES[0]], [8], 3, 1, LRS)])
    figure, numbers = draw("hyperparameter", rows)
    assert numbers.loc[numbers["hyperparameter"] == "none", "curve"].tolist() == ["STE hardtanh"]
    assert "STE hardtanh" in texts(figure)


@pytest.mark.parametrize("name", FALLS)
def test_of_several_scales_the_other_figures_show_the_default_one(name: str) -> None:
    _, numbers = draw(name, scales())
    assert set(numbers["method"]) == {"CDG", "NES 500"}
    assert "ε = 0.1 and σ = 0.1 is shown" in numbers.attrs["note"]


def test_settings_keep_the_order_of_the_study() -> None:
    figure, _ = draw("settings_comparison", fitness())
    labels = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert labels == ["raw", "centered", "z_score"]


def test_a_setting_of_the_study_is_compared_like_an_option() -> None:
    rows = pd.concat([falls([CDG, STES[0]], normalize=n) for n in ("tensor", "global")])
    _, numbers = draw("settings_comparison", rows)
    assert set(numbers["choice"]) == {"tensor", "global"}
    assert set(numbers["method"]) == {"CDG", "STE hardtanh"}


def test_of_a_descent_the_best_lr_is_drawn() -> None:
    figure, numbers = draw("search_progress", synthetic.search_run())
    assert set(numbers["followed"]) == {"best_loss", "loss"}
    ends = numbers[numbers["x"] == 20].set_index(["followed", "method"])["mean"]
    # at lr 0.1 it has fallen by exp(-0.2 0.9 10), and passes backwards are counted
    assert ends["best_loss", "STE hardtanh descent"] == pytest.approx(1.1 * np.exp(-1.8))
    assert ends["loss", "STE hardtanh descent"] == pytest.approx(1.2 * 1.1 * np.exp(-1.8))
    assert ends["best_loss", "SNES"] == pytest.approx(1.1 * np.exp(-1.2))
    assert "passes, forward + backward" in texts(figure)


def test_cosines_are_drawn_against_thresholds_with_a_line_without_a_clip() -> None:
    figure, numbers = laid_out("cosine_by_scale", thresholds())
    clipped = numbers[numbers["curve"] == "STE hardtanh"]
    assert set(clipped["scale"]) == {0.25, 1.0, 4.0}
    assert set(numbers["layer"]) == {"layers.0.weight", "layers.1.weight", "layers.2.weight",
                                     "hidden"}  # fmt: skip
    assert numbers[numbers["curve"] == "STE identity"]["scale"].isna().all()
    assert "Dashed: without a scale." in numbers.attrs["note"]
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["num_dim = 8", "num_dim = 32"]
    labels = [text.get_text() for text in figure.axes[2].get_xticklabels()]
    assert labels == [".25", "1", "4"]


def test_several_scales_are_no_figure_of_cosines() -> None:
    both = [dict(CDG, epsilon=e) for e in (0.1, 1.0)] + [dict(NES[0], sigma=s) for s in (0.1, 1.0)]
    with pytest.raises(ValueError, match="varies 2 of epsilon, sigma and threshold"):
        draw("cosine_by_scale", synthetic.gradient_quality(both))
    with pytest.raises(ValueError, match="varies 0 of"):
        draw("cosine_by_scale", synthetic.gradient_quality(FEW))
