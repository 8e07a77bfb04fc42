"""The figure of gradient variance: what is drawn are the numbers of its table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gradlab.reporting import drawing
from tests.reporting.synthetic_variance import METHODS, gradient_variance


def draw(table: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    found: tuple[Figure, pd.DataFrame] = drawing.load_figure("gradient_variance").draw(
        {"gradient_variance": table}
    )
    return found


def test_panels_hold_every_method_and_three_groups_of_layers() -> None:
    table = gradient_variance()
    figure, numbers = draw(table)
    figure.draw_without_rendering()
    assert len(figure.axes) == 4
    for row, ax in enumerate(figure.axes):
        assert ax.get_xscale() == "log"
        if row % 2:  # names stand at the left
            continue
        assert [label.get_text() for label in ax.get_yticklabels()] == [
            method["label"] for method in METHODS
        ]
    assert set(numbers["group"]) == {"first layer", "last layer", "all layers"}
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "first layer", "last layer", "all layers"]  # fmt: skip
    # by depth and not by name: "features" comes before "classifier"
    here = numbers[(numbers["quantity"] == "relative_variance")
                   & (numbers["condition"] == "fresh")]  # fmt: skip
    for method in METHODS:
        rows = table[(table["label"] == method["label"]) & (table["student"] == "fresh")]
        for group, layer in (("first layer", "features.0.weight"), ("all layers", "all")):
            drawn = here[(here["method"] == method["label"]) & (here["group"] == group)]
            assert float(drawn["mean"].iloc[0]) == pytest.approx(
                rows.loc[rows["layer"] == layer, "relative_variance"].mean()
            )
    assert "two passes" in str(numbers.attrs["note"])
    assert "Training: 2 epochs" in str(numbers.attrs["note"])


def test_means_stand_beside_their_methods() -> None:
    figure, numbers = draw(gradient_variance(students=["fresh"], inits=2))
    left = figure.axes[0]
    drawn = {
        (round(float(x), 6), round(float(y)))
        for line in left.get_lines() if line.get_marker() in ("o", "s", "^")
        for x, y in zip(np.ravel(line.get_xdata()), np.ravel(line.get_ydata()), strict=True)
    }  # fmt: skip
    rows = numbers[numbers["quantity"] == "relative_variance"]
    place = {method["label"]: row for row, method in enumerate(METHODS)}
    for row in rows.to_dict("records"):
        assert (round(row["mean"], 6), place[row["method"]]) in drawn


def test_without_a_reference_there_is_nothing_to_draw() -> None:
    table = gradient_variance().assign(relative_variance=np.nan)
    with pytest.raises(ValueError, match="above its own noise"):
        draw(table)
