"""The cost–quality plane: a curve for each estimator, along the sizes that it was measured at.

A row of panels for each kind of estimators (``_style.KINDS``), for too many share the plane to be
told apart in one. A dashed staircase in every panel is the best of all kinds for the cost, so that
rows can be compared. One problem makes a figure as wide as a column of a paper.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import columns
from gradlab.reporting.wording import begin

from . import _notes, _style

PASSES, SECONDS = "passes", "seconds"
BACKWARD = 2.0  # forward passes that a backward pass counts as


@dataclass(frozen=True)
class Plane:
    """What is drawn against what.

    Attributes:
        cost: PASSES or SECONDS, along the x-axis.
        quality: what stands up the y-axis.
        title: the figure's.
        keys: the columns beside ``condition`` and ``num_dim`` that tell problems apart.
        bounded: the quality is a cosine.
    """

    cost: str
    quality: str
    title: str
    keys: tuple[str, ...] = ()
    bounded: bool = False


def curves(frame: pd.DataFrame) -> pd.DataFrame:
    """An annotated table in which all sizes of an estimator share a method.

    ``size`` is the method as it was; options that are sizes are left out where they vary.

    >>> table = columns.annotate(pd.DataFrame({"estimator": "nes", "population": [100, 500],
    ...                                        "label": ["NES 100", "NES 500"]}))
    >>> curves(table)[["method", "size"]].to_numpy().tolist()
    [['NES', 'NES 100'], ['NES', 'NES 500']]
    """
    sizes = [option for option in columns.SIZES if option in frame]
    frame = frame.assign(size=frame["method"])
    frame["method"] = frame["label"] = columns.name_curves(frame, sizes or ["size"])
    for option in sizes:
        several = frame.groupby("method")["size"].transform("nunique") > 1
        frame[option] = frame[option].astype(object).mask(several, None)
    return frame


def draw(
    frame: pd.DataFrame, means: pd.DataFrame, plane: Plane, notes: list[str]
) -> tuple[Figure, pd.DataFrame]:
    """Draw the plane.

    Args:
        frame: a table of :func:`curves`, with ``forward_passes``, ``backward_passes`` and
            ``seconds``.
        means: the quality of every problem and ``size``, as
            :func:`gradlab.reporting.summaries.over_inits` gives it.
        plane: what to draw.
        notes: what else the reader must know.
    """
    frame, dropped = _brief(frame)
    missing = sorted(means.loc[means["mean"].isna(), "size"].astype(str).unique())
    drawn = priced(means.assign(condition=means["condition"].map(dropped)), frame, plane)
    looks, known = _style.styles(frame), columns.methods(frame)
    kinds = {title: list(known.index[known["family"].isin(families)])
             for title, families in _style.KINDS.items()}  # fmt: skip
    kinds = {title: members for title, members in kinds.items() if members}
    across, blocks = _problems(drawn, plane, columns.conditions(frame))
    aside = [words for words, brief in dropped.items() if words != brief]
    rows = [(block, kind) for block in blocks for kind in kinds]
    with _style.theme():
        figure, axes = _style.panels(
            len(rows), len(across), width=1.75, height=1.45 if len(blocks) == 1 else 1.6,
            extra=_style.legend_width(looks, small=True), least=3.5, sharex=True,
            sharey="all" if plane.bounded else "row",
        )  # fmt: skip
        for row, (block, kind) in enumerate(rows):
            for column, keys in enumerate(across):
                ax = axes[row, column]
                here = _style.pick(drawn, **blocks[block], **keys)
                _panel(ax, here, kinds[kind], looks)
                if row == 0 and len(across) > 1:
                    ax.set_title(_words(keys), loc="left")
                if row == len(rows) - 1:
                    ax.set_xlabel(plane.cost)
            first, reference = axes[row, 0], str(blocks[block].get("reference", ""))
            quality = plane.quality.format(reference=columns.reference_name(reference))
            first.set_ylabel("\n".join(textwrap.wrap(quality, 18)))
            name = _words(blocks[block]) if len(blocks) > 1 else ""
            # wider than its panel, a title would take the others' room
            _style.row_title(first, "\n".join(filter(None, [kind, *textwrap.wrap(name, 26)])))
            _style.legend_entries(axes[row, -1], kinds[kind], looks)
            _style.side_legend(axes[row, -1], order=kinds[kind], small=True)
        _limits(axes[0, 0], drawn, plane)
        _style.title(figure, plane.title)
        shared = [_words(keys[0]) for keys in (across, list(blocks.values())) if len(keys) == 1]
        said = ", ".join(filter(None, shared))
        return _style.finish(figure, drawn, [
            f"{said}." if said else "",
            "A backward pass counts as two forward ones." if plane.cost == PASSES else "",
            _notes.interval_note(drawn, drawn="Bands and vertical lines", seeds=False),
            "Dashed: the best of all for the cost. Equal costs are drawn side by side.",
            f"Without a number: {', '.join(missing)}." if missing else "", *notes,
            *(f"{begin(words)}." for words in aside),
        ])  # fmt: skip


Keys = dict[str, object]


def _problems(
    drawn: pd.DataFrame, plane: Plane, conditions: list[str]
) -> tuple[list[Keys], dict[str, Keys]]:
    """What the columns of panels show, and what the blocks of rows: num_dim across if it varies."""
    across = "num_dim" if drawn["num_dim"].nunique() > 1 else "condition"
    down = [*plane.keys, "condition" if across == "num_dim" else "num_dim"]
    order = {condition: place for place, condition in enumerate(conditions)}

    def listed(keys: list[str]) -> list[Keys]:
        rows = drawn[keys].drop_duplicates()
        rows = rows.sort_values(
            keys, key=lambda c: c.map(order) if c.name == "condition" else c, kind="stable"
        )
        return [{str(key): value for key, value in row.items()} for row in rows.to_dict("records")]

    return listed([across]), {str(place): keys for place, keys in enumerate(listed(down))}


def _words(keys: Keys) -> str:
    """A problem, or what is known of it, in words."""
    named = [_notes.panel_title(str(keys.get("condition", "")), int(str(keys.get("num_dim", 0))))]
    return ", ".join(filter(None, named))


def priced(means: pd.DataFrame, frame: pd.DataFrame, plane: Plane) -> pd.DataFrame:
    """Means with ``cost``, ``method`` and whether nothing that costs less is better (``front``).

    A time is the median of all estimates: the first of a process also loads what it needs.
    """
    problem = [*plane.keys, "condition", "num_dim"]
    by = [*problem, "method", "size"]
    if plane.cost == SECONDS:
        cost = frame.groupby(by)["seconds"].median()
    else:
        passes = frame["forward_passes"] + BACKWARD * frame["backward_passes"].fillna(0)
        cost = frame.assign(passes=passes).groupby(by)["passes"].mean()
    means = means.merge(cost.rename("cost").reset_index(), on=[*problem, "size"])
    means = means[means["mean"].notna() & (means["cost"] > 0)]
    means = means.sort_values(["cost", "mean"], ascending=[True, False], ignore_index=True)
    best = means.groupby(problem)["mean"].cummax()
    return means.assign(front=means["mean"] >= best)


def _brief(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Conditions without what stands in brackets, where this leaves them apart: panels are narrow.

    Returns:
        The frame with such conditions, and the new ones by the old.
    """
    full = list(frame["condition"].unique())
    brief = {words: re.sub(r" \([^()]*\)", "", words) for words in full}
    if len(set(brief.values())) < len(full):
        brief = {words: words for words in full}
    return frame.assign(condition=frame["condition"].map(brief)), brief


def _panel(
    ax: Axes, here: pd.DataFrame, members: list[str], looks: dict[str, _style.Style]
) -> None:
    ax.axhline(0, color=_style.FAINT, linewidth=0.7)
    if here.empty:  # a study that is not finished
        return
    front = here[here["front"]].sort_values("cost")
    ends = [*front["cost"], here["cost"].max()]
    ax.step(ends, [*front["mean"], front["mean"].iloc[-1]], where="post", color=_style.FAINT,
            linewidth=0.8, linestyle=(0, (2, 1.5)), zorder=1.5)  # fmt: skip
    shifts = _shifts(here[here["method"].isin(members)])
    for method in members:
        rows = here[here["method"] == method]
        if len(rows):
            rows = rows.assign(cost=rows["cost"] * rows["size"].map(shifts))
            _style.curve(ax, rows, "cost", looks[method])


def _shifts(rows: pd.DataFrame) -> dict[str, float]:
    """A factor near one for each of several estimates at one price, so that none hides another."""
    factors = dict.fromkeys(rows["size"], 1.0)
    for _, same in rows.groupby(rows["cost"].round(9)):
        width = min(0.22, 0.045 * (len(same) - 1))
        places = 10 ** np.linspace(-width, width, len(same))
        factors |= dict(zip(same["size"], places, strict=True))
    return factors


def _limits(ax: Axes, drawn: pd.DataFrame, plane: Plane) -> None:
    low, high = drawn["cost"].min(), drawn["cost"].max()
    ax.set_xlim(low / 2, high * 2)
    _style.log_axis(ax)
    if plane.bounded:
        ax.set_ylim(min(-0.05, drawn["mean"].min() - 0.05), 1.05)
