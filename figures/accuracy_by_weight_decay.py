"""Accuracy and training loss of trained networks against weight decay, one line per width.

Each point is the mean of the last ten epochs of a run, then over inits. Hollow diamonds are the
published values of the same width and weight decay, where there are some.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from gradlab.reporting import columns, published, runs, summaries
from gradlab.reporting.problems import phrase, position

from . import _notes, _series, _style

TABLES = ("training_result",)
BY = ["line", "weight_decay"]
QUANTITIES = {
    "val_accuracy": "validation accuracy",
    "train_accuracy": "train accuracy",
    "train_loss": "train loss (cross-entropy)",
}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    _style.table(tables, "training_result", ["weight_decay", "val_accuracy"])
    frame = runs.annotated(tables["training_result"])
    if frame["val_accuracy"].isna().all():
        raise ValueError("every training run diverged: there is no accuracy to draw.")
    if frame["weight_decay"].nunique() < 2:
        raise ValueError("a figure against weight decay needs two of them: this study has one.")
    frame["line"] = lines(frame)
    looks = _series.ordered(list(dict.fromkeys(in_order(frame)["line"])))
    values = sorted(frame["weight_decay"].unique())
    place = {value: i for i, value in enumerate(values)}
    shown = [q for q in QUANTITIES if q in frame and frame[q].notna().any()]
    theirs = published_points(frame)
    everything = [theirs]

    with _style.theme():
        figure, axes = _style.panels(
            1, len(shown), width=3.0, height=2.9, extra=_style.legend_width([*looks, "published"])
        )
        for ax, quantity in zip(axes[0], shown, strict=True):
            means = summaries.over_inits(frame, BY, quantity)
            inits = summaries.replicate_means(frame, BY, [quantity])
            everything.append(means.assign(quantity=quantity))
            for line, look in looks.items():
                here, one = _style.pick(means, line=line), _style.pick(inits, line=line)
                x = one["weight_decay"].map(place)
                _style.dots(ax, x, one[quantity], look)
                here = here.assign(place=here["weight_decay"].map(place)).dropna(subset="mean")
                _style.curve(ax, here, "place", look, label=line, interval="bars")
                other = _style.pick(theirs, line=line, quantity=quantity)
                ax.plot(other["weight_decay"].map(place), other["published"], "D",
                        color=look.colour, markersize=6.5, markerfacecolor="none",
                        markeredgewidth=1.2, linestyle="none", zorder=4)  # fmt: skip
            drawn_here = _style.pick(theirs, quantity=quantity)["published"]
            _axes(ax, quantity, values, pd.concat([means["mean"], drawn_here]))
        last = axes[0, -1]
        if len(theirs):
            last.plot([], [], "D", color=_style.INK, markersize=6.5, markerfacecolor="none",
                      markeredgewidth=1.2, linestyle="none", label="published")  # fmt: skip
        _style.side_legend(last)
        _style.title(figure, "Trained networks, by weight decay")
        drawn = pd.concat(everything)
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn.dropna(subset="n"), drawn="Vertical lines"),
            comparable_note(theirs),
            _notes.run_note(frame),
        ]
        return _style.finish(figure, drawn, notes)


def lines(frame: pd.DataFrame) -> pd.Series:
    """The line that each run belongs to: its width, and whatever else varies beside the decay."""
    apart = columns.conditions_apart_from(frame, ["weight_decay"])
    if frame["method"].nunique() > 1:
        apart = (apart + ", " + frame["method"]).str.removeprefix(", ")
    only = phrase("width", frame["width"].iloc[0]) if "width" in frame else "our runs"
    return apart.where(apart != "", only)


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs from narrow to wide."""
    if "width" not in frame:
        return frame
    return frame.sort_values("width", kind="stable", key=lambda column: column.map(
        lambda width: position("width", width)[0]))  # fmt: skip


def published_points(frame: pd.DataFrame) -> pd.DataFrame:
    """The published values of the widths and weight decays that were trained here."""
    found = []
    ours = published.of_published_network(frame)
    for run in published.XNOR_RUNS:
        same = ours[(ours["width"] == run.width) & (ours["weight_decay"] == run.weight_decay)]
        for line, rows in same.groupby("line", sort=False):
            remarks = {published.differences(row, run) for row in rows.to_dict("records")}
            remark = "" if "" in remarks else sorted(remarks)[0]
            found += [{"line": line, "weight_decay": run.weight_decay, "quantity": quantity,
                       "published": value, "remark": remark}
                      for quantity, value in run.values.items()]  # fmt: skip
    return pd.DataFrame(found, columns=["line", "weight_decay", "quantity", "published", "remark"])


def comparable_note(theirs: pd.DataFrame) -> str:
    """What the hollow marks are, and how our runs differ from those."""
    if theirs.empty:
        return ""
    remarks = [remark for remark in theirs["remark"].unique() if remark]
    said = "Hollow: published values of the same width and weight decay (200 epochs, 50,000 images)"
    if remarks:
        said += f". Ours are other runs, not to be held against them: {'; '.join(remarks)}"
    return said + "."


def _axes(ax: Axes, quantity: str, values: list[float], losses: pd.Series) -> None:
    ax.set_title(QUANTITIES[quantity], loc="left")
    ax.set_xlabel("weight decay")
    ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    if len(values) > 4:
        ax.tick_params(axis="x", labelrotation=35)
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.grid(axis="x", visible=False)
    if quantity.endswith("accuracy"):
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        return
    if 0 < 20 * losses.min() < losses.max():
        _style.log_axis(ax, "y")
