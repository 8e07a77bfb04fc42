"""Best loss decrease against an estimator's own scale: ε of CDG, σ of NES and local NES.

Each point is the estimator at its best lr for that scale. Solid lines and filled markers are fresh
students, dotted lines and hollow markers students trained until the loss stopped falling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from matplotlib.figure import Figure

from gradlab.reporting import columns, summaries

from . import _style

TABLES = ("loss_decrease",)
NAMES = {"epsilon": "ε (half-width of the finite difference)", "sigma": "σ (of the Gaussian)"}


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    frame = _style.table(tables, "loss_decrease", ["lr", "loss_decrease"])
    scales = [
        s for s in NAMES
        if s in frame and frame.groupby("estimator")[s].nunique().max() > 1
    ]  # fmt: skip
    if not scales:
        raise ValueError("no estimator has more than one epsilon or sigma in this study.")
    if frame["loss_decrease"].isna().all():
        raise ValueError("every run diverged: there is no loss decrease to draw.")
    if "student" not in frame:
        frame["student"] = "fresh"
    frame["curve"] = columns.name_curves(frame, scales)
    # Conditions other than the student's state get panels of their own.
    frame["panel"] = columns.conditions_apart_from(frame, ["student"])
    num_dims = sorted(frame["num_dim"].unique())
    rows = [(panel, d) for panel in sorted(frame["panel"].unique()) for d in num_dims]
    students = [s for s in columns.STUDENTS if (frame["student"] == s).any()]
    students += sorted(set(frame["student"].dropna()) - set(students))
    everything, keys = [], ["panel", "num_dim", "student", "curve"]

    with _style.theme():
        figure, axes = _style.panels(
            len(rows), len(scales), width=3.1, height=2.3, extra=1.8, sharex="col", sharey="row"
        )
        for column, scale in enumerate(scales):
            scaled = frame[frame[scale].notna()]
            best = summaries.at_best_lr(scaled, [*keys, scale])
            means = summaries.over_inits(best, [*keys, scale], "loss_decrease")
            inits = summaries.replicate_means(best, [*keys, scale], ["loss_decrease"])
            edges = best[[*keys, scale, "lr", "edge"]].drop_duplicates()
            everything.append(
                means.merge(edges, on=[*keys, scale])
                .rename(columns={scale: "scale", "lr": "best_lr"})
                .assign(hyperparameter=scale)
            )
            looks = _style.styles(scaled.assign(method=scaled["curve"]))
            for row, (panel, num_dim) in enumerate(rows):
                ax = axes[row, column]
                ax.axhline(0, color=_style.FAINT, linewidth=0.7)
                for name, look in looks.items():
                    for student in students:
                        key = {
                            "panel": panel,
                            "num_dim": num_dim,
                            "student": student,
                            "curve": name,
                        }
                        here, one = _style.pick(means, **key), _style.pick(inits, **key)
                        if len(here) == 0:
                            continue
                        shown = replace(look, line=":") if student == "converged" else look
                        _style.dots(ax, one[scale], one["loss_decrease"], look)
                        _style.curve(ax, here, scale, shown, hollow=student == "converged")
                _style.log_axis(ax)
                if row == len(rows) - 1:
                    ax.set_xlabel(NAMES[scale])
                for name, look in looks.items():
                    for student in students:
                        hollow = student == "converged"
                        shown = replace(look, line=":") if hollow else look
                        words = f"{name}, {student}" if len(students) > 1 else name
                        ax.plot([], [], label=words, **shown.drawn(hollow))
        for row, (panel, num_dim) in enumerate(rows):
            name = _style.panel_title(panel, num_dim)
            axes[row, 0].set_ylabel(f"{name}\nbest loss decrease (MSE)".lstrip(), linespacing=1.5)
        for ax in axes[-1]:
            _style.legend_below(ax, ncols=2)
        _style.title(figure, "Best loss decrease of one step, by the estimator's own scale")
        drawn = pd.concat(everything)
        edge = drawn[drawn["edge"] != ""]
        notes = [
            _style.interval_note(drawn),
            f"{len(edge)} of {len(drawn)} best lrs lie at the edge of the grid."
            if len(edge)
            else "",
            _style.nested_note(frame),
        ]
        return _style.finish(figure, drawn, notes)
