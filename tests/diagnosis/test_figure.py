"""The figure of a diagnosis: it draws the table's numbers and says what is unknown."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from gradlab.diagnosis import Diagnosis
from gradlab.reporting import drawing


def table(layers: int = 3) -> pd.DataFrame:
    rows = []
    for place in range(layers):
        for number, name in enumerate(["own backward", "STE hardtanh", "NES 500"]):
            for reference in ("cdg", "smoothed"):
                cosine, status = 0.2 + 0.1 * number + 0.01 * place, "ok"
                low, high = cosine - 0.1, cosine + 0.1
                if place == 0 and reference == "smoothed":
                    low = high = cosine = math.nan
                    status = "unknown: noise"
                elif name == "own backward" and place < layers - 1:
                    low = high = cosine = math.nan
                    status = "the estimate is zero: no gradient reaches this layer"
                elif name == "NES 500" and place == 0:
                    low, high, cosine, status = -0.2, 0.2, math.nan, "noise: too few"
                rows.append({
                    "estimator": name, "layer": f"part.{place}.weight", "reference": reference,
                    "cosine": cosine, "cosine_low": low, "cosine_high": high, "status": status,
                    "loss_decrease": 0.1 * (number + 1), "exact": place == layers - 1,
                })  # fmt: skip
    return pd.DataFrame(rows)


def test_every_number_is_drawn_and_the_unknown_is_named() -> None:
    rows = table()
    figure = Diagnosis(rows, "").figure()
    figure.draw_without_rendering()
    cdg, smoothed, steps = figure.axes
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "central differences (CDG)", "smoothed gradient", "best step of the layer"]  # fmt: skip
    drawn = sorted(float(x) for line in cdg.get_lines() if line.get_marker() not in ("", "None")
                   for x in line.get_xdata() if math.isfinite(x) and x != 0)  # fmt: skip
    known = rows[(rows["reference"] == "cdg") & rows["cosine"].notna()]
    assert drawn == pytest.approx(sorted(known["cosine"]))
    assert [t.get_text() for t in smoothed.texts] == ["unknown within\nthe budget"]
    assert not cdg.texts
    assert [t.get_text() for t in cdg.get_yticklabels()] == ["part.0", "part.1", "part.2"]
    legend = steps.get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == [
        "own backward", "STE hardtanh", "NES 500"]  # fmt: skip


def test_the_frame_holds_what_is_drawn_and_the_note_what_marks_mean() -> None:
    _, numbers = drawing.load_figure("diagnosis").draw({"diagnosis": table()})
    assert {"mean", "low", "high", "share_of_best"} <= set(numbers)
    assert numbers.loc[numbers["estimator"] == "STE hardtanh", "share_of_best"].iloc[0] == (
        pytest.approx(2 / 3))  # fmt: skip
    note = numbers.attrs["note"]
    for words in ("bootstrap intervals", "Dotted lines", "Hollow marks", "exact", "Steps are"):
        assert words in note


def test_many_layers_fit_and_many_estimators_differ() -> None:
    rows = table(20)
    more = [rows.assign(estimator=rows["estimator"] + f" {i}") for i in range(5)]
    module = drawing.load_figure("diagnosis")
    figure, _ = module.draw({"diagnosis": pd.concat(more)})
    figure.draw_without_rendering()
    assert figure.get_size_inches()[1] < 15
    looks = module.styles([f"STE {n}" for n in ("hardtanh", "ede", "reste")] + ["own backward"])
    assert len({(each.colour, each.marker) for each in looks.values()}) == 4


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (pd.DataFrame(), "the diagnosis has no rows"),
        (table().drop(columns="cosine_low"), "the table 'diagnosis' has no column 'cosine_low'"),
    ],
)
def test_nothing_to_draw_is_said(rows: pd.DataFrame, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        drawing.load_figure("diagnosis").draw({"diagnosis": rows})
