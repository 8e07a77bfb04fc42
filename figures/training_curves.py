"""Loss and accuracy of training runs by epoch, one colour for each configuration.

Solid lines are the images that are evaluated after every epoch, thin dashed ones the training set
as it was optimized, augmentation included. Runs that differ only in their init are averaged. With
noise on the weights, evaluated images see the mean weights and training images the noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gradlab.reporting import columns, runs, summaries
from gradlab.reporting.problems import phrase, position

from . import _layout, _notes, _series, _style

TABLES = ("training", "training_result")
QUANTITIES = {"loss": "loss (cross-entropy)", "accuracy": "accuracy"}
BY = ["condition", "line", "epoch"]
FIRST = ("weight_decay", "learning_rate", "width")  # what lines differ in, if it varies
DASHES = (0, (4, 1.6))


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw, or the table does not tell its runs apart.
    """
    _style.table(tables, "training", ["epoch", "train_loss", "val_loss"])
    frame = runs.annotated(tables["training"], tables.get("training_result"))
    if frame[["train_loss", "val_loss"]].isna().all(axis=None):
        raise ValueError("no epoch has a finite loss.")
    noisy = "train_nll" in frame and frame["train_nll"].notna().any()
    if noisy:  # what is optimized has a KL term too, which is no cross-entropy
        frame["train_loss"] = frame["train_nll"]
    replicates = [c for c in columns.REPLICATES if c in frame]
    if frame.duplicated(["condition", "method", "epoch", *replicates]).any():
        raise ValueError("the table 'training' has several rows for one epoch of one run.")
    frame, looks = lines(frame)
    panels = columns.conditions(frame)
    shown = [q for q in QUANTITIES if f"val_{q}" in frame and frame[f"val_{q}"].notna().any()]
    bands = _layout.bands(len(panels), len(shown))
    measured = {
        name: summaries.over_inits(frame, BY, name)
        for q in shown
        for name in (f"val_{q}", f"train_{q}")
        if name in frame
    }

    with _style.theme():
        figure, axes = _style.panels(
            bands.height, bands.across, width=2.6, sharex=True, sharey="row",
            height=max(2.1, _style.legend_height([*looks, "evaluated", "training"])),
            extra=_style.legend_width([*looks, "training images"]),
        )  # fmt: skip
        for problem, condition in enumerate(panels):
            for row, quantity in enumerate(shown):
                ax = axes[bands.place(problem, row)]
                for line, look in looks.items():
                    curves = [_style.pick(measured[f"{part}_{quantity}"], condition=condition,
                                          line=line) for part in ("val", "train")]  # fmt: skip
                    _curves(ax, *curves, look)
                _axes(ax, quantity)
                if problem % bands.across == 0:
                    ax.set_ylabel(QUANTITIES[quantity])
                if bands.lowest(problem, row):
                    ax.set_xlabel("epoch")
                    ax.tick_params(labelbottom=True)
            title = _notes.panel_title(condition, 0)
            axes[bands.place(problem, 0)].set_title(title, loc="left")
        _layout.blank(axes, bands.places)
        _legend(axes[0, -1], looks)
        _style.title(figure, "Training runs, epoch by epoch")
        drawn = pd.concat(means.assign(quantity=name) for name, means in measured.items())
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn, seeds=False),
            "The loss of training images is without the KL term." if noisy else "",
            "Curves end where a run diverged." if (drawn["missing"] > 0).any() else "",
        ]
        return _style.finish(figure, drawn, notes)


def lines(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, _style.Style]]:
    """The table with the line of each row and conditions that leave it out; the lines' styles.

    Lines are estimators where there are several, with their own colours; otherwise what varies.
    """
    if frame["method"].nunique() > 1:
        return frame.assign(line=frame["method"]), _style.styles(frame)
    vary = columns.condition_columns(frame)
    chosen = next((c for c in FIRST if c in vary), vary[-1] if vary else None)
    if chosen is None:
        return frame.assign(line="run"), _series.ordered(["run"])
    values = sorted(frame[chosen].unique(), key=lambda value: position(chosen, value))
    names = {value: phrase(chosen, value, network=True) for value in values}
    apart = columns.conditions_apart_from(frame, [chosen])
    frame = frame.assign(line=frame[chosen].map(names), condition=apart)
    return frame, _series.ordered(list(names.values()))


def _curves(ax: Axes, val: pd.DataFrame, train: pd.DataFrame, look: _style.Style) -> None:
    """The evaluated images with their band, and the training set without one."""
    clean = val[val["missing"] == 0]
    if len(clean):
        _style.curve(ax, clean, "epoch", look, markers=False)
        end = clean.sort_values("epoch").iloc[[-1]]
        ax.plot(end["epoch"], end["mean"], **{**look.line_kwargs, "zorder": 4})
    train = train[train["missing"] == 0].sort_values("epoch")
    ax.plot(train["epoch"], train["mean"], color=look.colour, linestyle=DASHES, linewidth=0.8,
            alpha=0.9, zorder=2)  # fmt: skip


def _axes(ax: Axes, quantity: str) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if quantity == "accuracy":
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))


def _legend(ax: Axes, looks: Mapping[str, _style.Style]) -> None:
    """The configurations, and below them what solid and dashed mean."""
    several = {name: look for name, look in looks.items() if len(looks) > 1}
    handles = [Line2D([], [], **look.line_kwargs) for look in several.values()]
    handles += [
        Line2D([], [], color=_style.FAINT, linewidth=1.4),
        Line2D([], [], color=_style.FAINT, linewidth=0.8, linestyle=DASHES),
    ]
    ax.legend(handles, [*several, "evaluated images", "training images"], loc="center left",
              bbox_to_anchor=(1.03, 0.5), borderaxespad=0, handlelength=2.6)  # fmt: skip
