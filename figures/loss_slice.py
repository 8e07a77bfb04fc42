"""The loss along one weight, a staircase, with the slope that each estimator gives it at zero.

Moving one latent weight changes the loss in steps: each is a sign that flips somewhere. Its true
derivative is zero almost everywhere; the straight lines are what each estimator calls the slope.
Where a study slices along straight-through gradients, the weights of a layer move together, along
the direction of the hardtanh STE, which expects the loss to rise to the right. The change of the
loss is drawn, so that panels compare; a faint line is the same slice on an unseen batch.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradlab.reporting import columns
from gradlab.reporting.layers import layer_order, layer_title
from gradlab.reporting.problems import is_network, layers_words, phrase, position

from . import _layout, _notes, _style

TABLES = ("loss_slice", "loss_slice_slopes")
GREY = "#9aa0a6"
LONGEST = 34  # characters that stand beside one panel
# What a slice goes along: in a title, under an axis, and in the note.
LINES = {
    "coordinate": ("one weight", "change of one weight", "One weight of one network"),
    "ste": ("an STE gradient", "distance along the STE gradient", "One layer of one network"),
}
BOTH = ("a line", "offset along the line", "One line of one network")


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    slices = _style.table(tables, "loss_slice", ["layer", "coordinate", "offset", "loss"])
    slopes = _style.table(tables, "loss_slice_slopes", ["layer", "coordinate", "slope"])
    slices = slices.dropna(subset=["loss", "offset"])
    if slices.empty:
        raise ValueError("no loss along a coordinate is finite.")
    slices, slopes = named(slices), named(slopes)
    looks = _style.styles(slopes)
    rows, across = order(slices)
    line, offset, one = words(slices)
    drawn: list[pd.DataFrame] = []
    places: dict[tuple[int, int], str] = {}
    cut = False

    with _style.theme():
        figure, axes = _style.panels(
            len(rows), len(across), width=2.7, height=2.0, extra=_style.legend_width(looks),
            sharex=True,
        )  # fmt: skip
        for place in np.ndindex(axes.shape):
            keys = {"row": rows[place[0]], "column": across[place[1]]}
            found = _style.pick(slices, **keys)
            if found.empty:
                continue
            places[place] = keys["row"]
            # One weight of one network: a mean of staircases would be no staircase.
            chosen = {c: found[c].min() for c in ("init", "batch", "coordinate") if c in found}
            curve = _style.pick(found, **chosen).drop_duplicates("offset").sort_values("offset")
            tangents = _style.pick(slopes, **keys, **chosen)
            numbers, steep = panel(axes[place], curve, tangents, looks)
            drawn.append(numbers)
            cut |= steep
            if place[0] == 0:
                axes[place].set_title(keys["column"], loc="left")
            if place[0] == len(rows) - 1:
                axes[place].set_xlabel(offset)
        for row, name in enumerate(rows):
            name = textwrap.fill(name, LONGEST)
            axes[row, 0].set_ylabel(f"{name}\nchange of the loss".lstrip(), linespacing=1.5)
        _layout.blank(axes, places)
        _style.legend_entries(axes[0, -1], looks, looks)
        _style.side_legend(axes[0, -1], order=looks)
        _style.title(figure, f"The loss along {line}, and what estimators call its slope")
        many = slices.groupby(["row", "column"])["coordinate"].nunique().max() > 1
        notes = [
            _notes.problem_note(slices),
            f"{one} per panel, the first that was measured"
            f"{'; the others stand in the table' if many else ''}: no intervals.",
            "Lines that end at a border are steeper than their panel." if cut else "",
        ]
        return _style.finish(figure, pd.concat(drawn), notes)


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows with the titles of their panels: the student across, layer and the rest down."""
    students = frame["student"] if "student" in frame else pd.Series("", index=frame.index)
    network = is_network(frame)
    across = [phrase("student", student, network) if student else "" for student in students]
    apart = columns.conditions_apart_from(frame, ["student", "layers"])
    sizes = "num_dim = " + frame["num_dim"].astype(str)
    apart = apart.where(frame["num_dim"] == 0, sizes.where(apart == "", sizes + ", " + apart))
    titles = frame["layer"].map(layer_title)
    if network and columns.varying(frame, ["layers"]):
        chosen = frame["layers"].map(layers_words)
        titles = titles.where(titles == chosen, chosen + " (" + titles + ")")
    return frame.assign(column=across, row=titles.where(apart == "", apart + ", " + titles))


def words(frame: pd.DataFrame) -> tuple[str, str, str]:
    """What the slices go along, as :data:`LINES` says it; tables without a word have weights."""
    known = frame["along"].fillna("coordinate").unique() if "along" in frame else ["coordinate"]
    return LINES[known[0]] if len(known) == 1 else BOTH


def order(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Rows from input to output, columns by training."""
    depth = {layer: i for i, layer in enumerate(layer_order(frame))}
    first = frame.assign(depth=frame["layer"].map(depth))
    first = first.assign(rest=columns.conditions_apart_from(frame, ["student", "layers"]))
    rows = first.sort_values(["rest", "depth"], kind="stable")["row"]
    students = first.drop_duplicates("column")
    if "student" in students:
        places = students["student"].map(lambda student: position("student", student)[0])
        students = students.assign(place=places).sort_values("place")
    return list(dict.fromkeys(rows)), list(students["column"])


def panel(
    ax: Axes, curve: pd.DataFrame, tangents: pd.DataFrame, looks: Mapping[str, _style.Style]
) -> tuple[pd.DataFrame, bool]:
    """One staircase with its tangents.

    Returns:
        What was drawn, which is the change of the loss at every offset and every estimator's slope;
        and whether a tangent is too steep for the panel.
    """
    offset = curve["offset"].to_numpy(float)
    middle = int(np.argmin(np.abs(offset)))
    change = curve["loss"].to_numpy(float)
    change = change - change[middle]
    parts = [curve.assign(quantity="change of the loss", value=change)]
    if "loss_fresh" in curve and curve["loss_fresh"].notna().all():
        fresh = curve["loss_fresh"].to_numpy(float)
        fresh = fresh - fresh[middle]
        ax.plot(offset, fresh, color=GREY, linewidth=0.8, zorder=1, drawstyle="steps-mid")
        parts.append(curve.assign(quantity="change on an unseen batch", value=fresh))
        change = np.concatenate([change, fresh])
    ax.plot(offset, parts[0]["value"], color=_style.INK, linewidth=1.3, zorder=3,
            drawstyle="steps-mid")  # fmt: skip
    low, high = float(change.min()), float(change.max())
    margin = 0.25 * ((high - low) or 1e-6)
    ax.set_ylim(low - margin, high + margin)
    ax.axvline(0, color=_style.RULE, linewidth=0.7, zorder=0)
    means = tangents.groupby("method", sort=False)["slope"].mean()
    steep = [
        _tangent(ax, float(means[method]), offset, look, method)
        for method, look in looks.items()
        if method in means and np.isfinite(means[method])
    ]
    found = means.rename("value").reset_index().assign(quantity="slope")
    kept = [c for c in ("row", "column", "init", "batch", "layer", "coordinate") if c in curve]
    drawn = pd.concat([*parts, found.assign(**dict(curve[kept].iloc[0]))])
    return drawn[[*kept, "quantity", "method", "offset", "value"]], any(steep)


def _tangent(ax: Axes, slope: float, offset: np.ndarray, look: _style.Style, method: str) -> bool:
    """A straight line through zero, as far as it stays inside the panel, a marker at each end.

    Returns:
        Whether it ends before the slice does.
    """
    low, high = ax.get_ylim()
    ends, steep = [], False
    for reach in (float(offset.min()), float(offset.max())):
        rise = slope * reach
        limit = 0.97 * (high if rise > 0 else low)
        ends.append(reach if abs(rise) <= abs(limit) else limit / slope)
        steep |= ends[-1] != reach
    style = {**look.line_kwargs, "linewidth": 1.2, "zorder": 4}
    ax.plot(ends, [slope * end for end in ends], label=method, **style)
    return steep
