"""The learning curve of a run: what it draws, and what it says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from gradlab.reporting import drawing


def log(epochs: int = 20, **columns: Any) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    falling = np.exp(-epoch / 5.0)
    return pd.DataFrame({
        "epoch": epoch, "step": epoch * 10, "lr": 1e-3, "gradient": "backpropagation",
        "train_loss": falling, "train_accuracy": 1 - falling, "val_loss": falling + 0.1,
        "val_accuracy": 0.9 - falling, "ema_loss": falling + 0.05, "ema_accuracy": 0.92 - falling,
        "diverged": False, "seconds": 1.0 + epoch, "name": "demo",
    } | columns)  # fmt: skip


def draw(rows: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    figure, numbers = drawing.load_figure("learning_curve").draw({"training": rows})
    figure.draw_without_rendering()  # what does not fit warns, and warnings are errors
    return figure, numbers


def texts(figure: Figure) -> str:
    found = [text.get_text() for ax in figure.axes for text in [ax.title, *ax.texts]]
    found += [ax.get_title(loc="left") for ax in figure.axes]
    found += [t.get_text() for ax in figure.axes for t in ax.get_legend().get_texts()]
    return " | ".join([*found, *(text.get_text() for text in figure.texts)])


def test_the_numbers_are_the_logs_and_the_mean_that_of_the_last_ten() -> None:
    rows = log()
    figure, numbers = draw(rows)
    for curve, key in (("train", "train"), ("evaluated", "val"), ("averaged weights", "ema")):
        for quantity in ("loss", "accuracy"):
            own = numbers[(numbers["curve"] == curve) & (numbers["quantity"] == quantity)]
            column = rows[f"{key}_{quantity}"]
            assert own["value"].tolist() == column.tolist()
            mean = column.tail(10).mean()
            assert own["mean_of_last"].unique().tolist() == pytest.approx([mean])
            assert f"{curve}: {mean:.4g}" in texts(figure)
    assert "Learning curve of demo" in texts(figure)
    assert "mean of the last 10 epochs" in numbers.attrs["note"]


def test_a_run_without_average_or_of_one_epoch_is_drawn() -> None:
    figure, numbers = draw(log(ema_loss=np.nan, ema_accuracy=np.nan))
    assert set(numbers["curve"]) == {"train", "evaluated"}
    assert "averaged weights" not in texts(figure)
    assert "No moving average" in numbers.attrs["note"]
    _, numbers = draw(log(epochs=1))
    assert "mean of the last 1 epochs" in numbers.attrs["note"]


def test_another_estimator_is_marked_and_divergence_is_said() -> None:
    rows = log(gradient=["backpropagation"] * 12 + ["NES 500"] * 8)
    figure, _ = draw(rows)
    assert "NES 500" in texts(figure)
    lines = [line.get_xdata()[0] for ax in figure.axes for line in ax.lines
             if len(set(line.get_xdata())) == 1]  # fmt: skip
    assert lines.count(12.5) == 2
    rows.loc[19, ["train_loss", "val_loss", "train_accuracy", "val_accuracy"]] = np.nan
    rows.loc[19, "diverged"] = True
    assert "demo diverged in epoch 20." in draw(rows)[1].attrs["note"]


def test_several_runs_have_rows_of_their_own() -> None:
    rows = pd.concat([log(width=8), log(epochs=15, width=16)])
    figure, numbers = draw(rows)
    assert set(numbers["run"]) == {"width 8", "width 16"}
    assert len(figure.axes) == 4
    assert "loss, width 16" in texts(figure)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (log().iloc[:0], "no rows in the table 'training'"),
        (log().drop(columns="val_loss"), "no column 'val_loss'"),
        (log(train_loss=np.nan, val_loss=np.nan), "no epoch has a finite loss"),
        (pd.concat([log(), log()]), "several rows for one epoch"),
    ],
    ids=["empty", "column", "nan", "twice"],
)
def test_nothing_to_draw_is_one_sentence(rows: pd.DataFrame, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw(rows)
