"""Loss and accuracy of a training run by epoch.

Dashed: the training set, as it was optimized, augmentation and smoothed labels included; solid: the
images that are evaluated after every epoch; dotted: the same with the moving average of the
weights. A network with noise is evaluated at its mean weights, by one draw of the noise, and where
weights are pruned by those that are kept. The level piece at the end is the mean of the last ten
epochs, which is the number to compare: a best epoch is picked by its luck. An upright line marks
the epoch from which another estimator makes the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import columns

from . import _style

TABLES = ("training",)
LAST = 10
CURVES = {
    "train": ("train_{}", "#8c7853", (0, (4, 1.6)), "o"),
    "evaluated": ("val_{}", "#2f80d6", "-", "s"),
    "averaged weights": ("ema_{}", "#672bab", (0, (1, 1.4)), "^"),
    "one draw": ("sample_{}", "#c2571a", (0, (1, 1.4)), "v"),
    "kept weights": ("pruned_{}", "#1b8a5a", (0, (5, 1, 1, 1)), "D"),
}
# What tells one run from another, where a table has several, is none of these.
NOT_A_KEY = {"gradient", "diverged", *columns.MEASUREMENTS}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = checked(tables)
    runs = frame.groupby("run", sort=False)
    names = list(runs.groups)
    numbers = pd.concat([long(rows, name) for name, rows in runs], ignore_index=True)
    shown = [curve for curve in CURVES if curve in set(numbers["curve"])]

    with _style.theme():
        figure, axes = _style.panels(len(names), 2, width=3.6, height=2.6, sharex=True)
        for row, (name, rows) in enumerate(runs):
            own = numbers[numbers["run"] == name]
            for ax, quantity in zip(axes[row], ("loss", "accuracy"), strict=True):
                panel(ax, own[own["quantity"] == quantity], shown)
                mark_switches(ax, rows, label=quantity == "loss")
                ax.set_title(quantity if len(names) == 1 else f"{quantity}, {name}", loc="left")
            for ax in axes[row]:
                ax.set_xlabel("epoch" if row == len(names) - 1 else "")
        _style.title(figure, title(names))
        return _style.finish(figure, numbers, notes(frame, numbers))


def checked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The table with the name of each row's run."""
    if "training" not in tables or tables["training"].empty:
        raise ValueError("this study has stored no rows in the table 'training'.")
    frame = tables["training"].copy()
    for column in ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        if column not in frame:
            raise ValueError(f"the table 'training' has no column '{column}'.")
    if "train_nll" in frame:
        frame["train_loss"] = frame["train_nll"]
    measured = [name for name in frame.columns if name.endswith(("_loss", "_accuracy"))]
    frame[measured] = frame[measured].apply(pd.to_numeric, errors="coerce").astype(float)
    if frame[["train_loss", "val_loss"]].isna().all(axis=None):
        raise ValueError("no epoch has a finite loss.")
    keys = [
        column for column in frame.columns
        if column not in NOT_A_KEY and column not in measured
    ]  # fmt: skip
    varying = [column for column in keys if frame[column].nunique(dropna=False) > 1]
    if varying:
        words = [frame[column].astype(str).radd(f"{column} ") for column in varying]
        frame["run"] = words[0].str.cat(words[1:], sep=", ")
    else:
        named = "name" in frame
        frame["run"] = frame["name"].astype(str) if named else "run"
    if frame.duplicated(["run", "epoch"]).any():
        raise ValueError("the table 'training' has several rows for one epoch of one run.")
    return frame


def long(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """One row per point that is drawn: the epochs, and the mean of the last ten."""
    found = []
    for curve, (column, *_) in CURVES.items():
        for quantity in ("loss", "accuracy"):
            key = column.format(quantity)
            if key not in rows or rows[key].isna().all():
                continue
            points = rows[["epoch", key]].rename(columns={key: "value"}).sort_values("epoch")
            last = points["value"].dropna().tail(LAST)
            found.append(points.assign(run=name, quantity=quantity, curve=curve,
                                       mean_of_last=last.mean(), n=len(last)))  # fmt: skip
    return pd.concat(found)[["run", "quantity", "curve", "epoch", "value", "mean_of_last", "n"]]


def panel(ax: Axes, numbers: pd.DataFrame, shown: list[str]) -> None:
    """The curves of one quantity."""
    count = 0
    for curve in shown:
        _, colour, line, marker = CURVES[curve]
        points = numbers[numbers["curve"] == curve]
        end = points.dropna(subset="value").tail(LAST)
        if end.empty:
            continue
        mean, count = end["mean_of_last"].iloc[0], len(end)
        few = len(points) <= 30
        ax.plot(points["epoch"], points["value"], color=colour, linestyle=line, linewidth=1.3,
                marker=marker if few else "", markersize=3,
                label=f"{curve}: {mean:.4g}")  # fmt: skip
        ax.plot([end["epoch"].iloc[0], end["epoch"].iloc[-1]], [mean, mean], color=colour,
                linewidth=3.2, alpha=0.3, solid_capstyle="butt", zorder=1)  # fmt: skip
    falls = (numbers["quantity"] == "loss").any()
    ax.legend(loc="upper right" if falls else "lower right", title=f"mean of the last {count}",
              title_fontsize=7, fontsize=7, alignment="left", handlelength=2.6, frameon=True,
              edgecolor="none", framealpha=0.85)  # fmt: skip
    values = numbers["value"].dropna()
    if falls and 0 < 20 * values.min() < values.max():
        _style.log_axis(ax, "y")
    ax.xaxis.get_major_locator().set_params(integer=True)


def mark_switches(ax: Axes, rows: pd.DataFrame, label: bool) -> None:
    """An upright line where another estimator takes over."""
    if "gradient" not in rows:
        return
    ordered = rows.sort_values("epoch")
    changed = ordered["gradient"] != ordered["gradient"].shift()
    for epoch, name in ordered.loc[changed, ["epoch", "gradient"]].iloc[1:].to_numpy():
        ax.axvline(epoch - 0.5, color=_style.FAINT, linewidth=0.8)
        if label:
            ax.annotate(str(name), (epoch - 0.5, 0.02), xycoords=("data", "axes fraction"),
                        xytext=(-2, 0), textcoords="offset points", rotation=90, ha="right",
                        fontsize=6.5, color=_style.FAINT)  # fmt: skip


def title(names: list[str]) -> str:
    """The figure's title."""
    return f"Learning curve of {names[0]}" if len(names) == 1 else "Learning curves"


def notes(frame: pd.DataFrame, numbers: pd.DataFrame) -> list[str]:
    """What the marks mean."""
    lengths = sorted({int(n) for n in numbers["n"]})
    words = f"{lengths[-1]} epochs" if len(lengths) == 1 else f"up to {lengths[-1]} epochs"
    found = [f"The level pieces, and the numbers: mean of the last {words}. One run each, so no "
             "interval."]  # fmt: skip
    if "diverged" in frame:
        ended = frame[frame["diverged"].astype(str).str.lower() == "true"]
        found += [f"{row.run} diverged in epoch {row.epoch}." for row in ended.itertuples()]
    if "train_nll" in frame:
        return [*found, "Training loss without its KL term; evaluated are the mean weights."]
    if not np.isin(["averaged weights"], numbers["curve"]).all():
        found.append("No moving average of the weights was kept.")
    return found
