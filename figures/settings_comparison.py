"""Best loss decrease of one step under each choice of a categorical setting or option.

Fitness shaping, the order of updates, how the final weights are quantized: whatever the study
varied and is not a number. Each estimator takes its best lr under each choice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries
from gradlab.reporting.facets import grid
from gradlab.reporting.problems import is_network
from gradlab.reporting.wording import word

from . import _layout, _notes, _style

TABLES = ("loss_decrease",)


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    choices = columns.categorical_choices(frame)
    if not choices:
        raise ValueError("no categorical setting or option has more than one value in this study.")
    parts = {choice: concerned(frame, choice) for choice in choices}
    grids = {choice: grid(part, choice) for choice, part in parts.items()}
    rows = [(choice, i) for choice in choices for i in range(len(grids[choice].rows))]
    width = max(len(found.columns) for found in grids.values())
    everything = []
    places = {}

    with _style.theme():
        figure, axes = _style.panels(
            len(rows),
            width,
            width=2.4,
            height=2.5,
            extra=_style.legend_width(frame["method"]),
            sharey=False if is_network(frame) else "row",
            sharex="row",
        )
        for row, (choice, which) in enumerate(rows):
            found = grids[choice]
            own = {column: keys for (i, column), keys in found.panels.items() if i == which}
            shown = pd.concat(_style.pick(parts[choice], **keys) for keys in own.values())
            looks = _style.styles(shown)
            keys = ["condition", "num_dim", "choice", "method"]
            best = summaries.at_best_lr(shown, keys)
            means = summaries.over_inits(best, keys, "loss_decrease")
            inits = summaries.replicate_means(best, keys, ["loss_decrease"])
            lrs = best[[*keys, "lr", "edge"]].drop_duplicates().rename(columns={"lr": "best_lr"})
            everything.append(means.merge(lrs, on=keys).assign(setting=choice))
            values = list(dict.fromkeys(shown["choice"]))
            place = {value: i for i, value in enumerate(values)}
            shift = dict(zip(looks, _spread(len(looks)), strict=True))
            for column, where in own.items():
                ax = axes[row, column]
                places[row, column] = choice
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for method, look in looks.items():
                    here = _style.pick(means, **where, method=method)
                    one = _style.pick(inits, **where, method=method)
                    x = here["choice"].map(place) + shift[method]
                    _style.dots(ax, one["choice"].map(place) + shift[method],
                                one["loss_decrease"], look)  # fmt: skip
                    ax.vlines(x, here["low"], here["high"], color=look.colour, linewidth=1.2)
                    ax.plot(x, here["mean"], label=method, zorder=3,
                            **{**look.line_kwargs, "linestyle": "none"})  # fmt: skip
                ax.set_xticks(list(place.values()), values)
                if max(map(len, values)) * len(values) > 24:
                    ax.tick_params(axis="x", labelrotation=35)
                    for label in ax.get_xticklabels():
                        label.set_horizontalalignment("right")
                ax.set_xlim(-0.6, len(values) - 0.4)
                ax.grid(axis="x", visible=False)
                if row == 0:
                    ax.set_title(found.columns[column], loc="left")
            name = "\n".join(filter(None, [choice.replace("_", " "), found.rows[which]]))
            axes[row, 0].set_ylabel(
                f"{name}\nbest loss decrease{_notes.loss_unit(frame)}", linespacing=1.5
            )
            _style.legend_entries(axes[row, -1], looks, looks)
            _style.side_legend(axes[row, -1])
        _layout.blank(axes, places)
        _style.title(figure, "Best loss decrease of one step, setting by setting")
        drawn = pd.concat(everything)
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn, drawn="Vertical lines"),
            "Choices are compared on the same inits and batches, so their errors are correlated.",
            _notes.edge_note(drawn),
        ]
        return _style.finish(figure, drawn, notes)


def concerned(frame: pd.DataFrame, choice: str) -> pd.DataFrame:
    """The rows of estimators that have the choice, with conditions and methods that leave it out.

    A curve that takes one value only has nothing to compare, unless all do.
    """
    frame = frame.assign(condition=columns.conditions_apart_from(frame, [choice]))
    rows = frame[frame[choice].notna()]
    rows = rows.assign(choice=rows[choice].map(word), method=columns.name_curves(rows, [choice]))
    several = rows.groupby(["condition", "method"])["choice"].transform("nunique") > 1
    return rows[several] if several.any() else rows


def _spread(count: int) -> np.ndarray:
    width = min(0.5, 0.11 * (count - 1))
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(1)
