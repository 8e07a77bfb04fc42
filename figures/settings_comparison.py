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
from gradlab.reporting.wording import word

from . import _notes, _style

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
    num_dims = sorted(frame["num_dim"].unique())
    panels = {c: list(columns.conditions_apart_from(frame, [c]).unique()) for c in choices}
    rows = [(choice, panel) for choice in choices for panel in panels[choice]]
    everything = []

    with _style.theme():
        figure, axes = _style.panels(
            len(rows),
            len(num_dims),
            width=2.4,
            height=2.5,
            extra=_style.legend_width(frame["method"]),
            sharey="row",
            sharex="row",
        )
        for row, (choice, panel) in enumerate(rows):
            here = columns.conditions_apart_from(frame, [choice]) == panel
            concerned = frame[here & frame[choice].notna()]
            concerned = concerned.assign(choice=concerned[choice].map(word))
            concerned["method"] = columns.name_curves(concerned, [choice])
            # A curve that takes one value only has nothing to compare.
            several = concerned.groupby("method")["choice"].transform("nunique") > 1
            concerned = concerned[several] if several.any() else concerned
            looks = _style.styles(concerned)
            keys = ["num_dim", "choice", "method"]
            best = summaries.at_best_lr(concerned, keys)
            means = summaries.over_inits(best, keys, "loss_decrease")
            inits = summaries.replicate_means(best, keys, ["loss_decrease"])
            lrs = best[[*keys, "lr", "edge"]].drop_duplicates().rename(columns={"lr": "best_lr"})
            everything.append(means.merge(lrs, on=keys).assign(setting=choice, condition=panel))
            values = list(dict.fromkeys(concerned["choice"]))
            place = {value: i for i, value in enumerate(values)}
            shift = dict(zip(looks, _spread(len(looks)), strict=True))
            for column, num_dim in enumerate(num_dims):
                ax = axes[row, column]
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for method, look in looks.items():
                    here = _style.pick(means, num_dim=num_dim, method=method)
                    one = _style.pick(inits, num_dim=num_dim, method=method)
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
                if row == 0 and num_dim > 0:
                    ax.set_title(f"num_dim = {num_dim}", loc="left")
            name = "\n".join(filter(None, [choice.replace("_", " "), panel]))
            axes[row, 0].set_ylabel(
                f"{name}\nbest loss decrease{_notes.loss_unit(frame)}", linespacing=1.5
            )
            _style.legend_entries(axes[row, -1], looks, looks)
            _style.side_legend(axes[row, -1])
        _style.title(figure, "Best loss decrease of one step, setting by setting")
        drawn = pd.concat(everything)
        notes = [
            _notes.problem_note(frame),
            _notes.interval_note(drawn, drawn="Vertical lines"),
            "Choices are compared on the same inits and batches, so their errors are correlated.",
            _notes.edge_note(drawn),
        ]
        return _style.finish(figure, drawn, notes)


def _spread(count: int) -> np.ndarray:
    width = min(0.5, 0.11 * (count - 1))
    return np.linspace(-width / 2, width / 2, count) if count > 1 else np.zeros(1)
