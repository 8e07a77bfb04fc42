"""The look of every figure: one colour, marker and line per estimator, everywhere.

CDG is black and other differences are grey. Straight-through estimators are warm (red, gold, wine,
pink), analytic ones violet, other ways to use a surrogate grey-green. Local NES is green and
weight-space NES blue, darker with more samples; NES along chosen directions is plum. What samples
binary weights is olive, what relaxes them lilac; whole searches are blue and green, or yellow and
magenta where they sample. Within a family and among those that share a panel
(``KINDS``) colours stay apart under simulated deuteranopia, protanopia and tritanopia
(tests/figures measures it), and marker, line style and lightness tell them apart in greyscale.
Statistics live in ``gradlab.reporting.summaries``; here there is only drawing.
"""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from gradlab.reporting import columns
from gradlab.reporting.facets import without_num_dim

DASHED, DASHDOT = (0, (4, 1.6)), (0, (5, 1.5, 1, 1.5))


@dataclass(frozen=True)
class Style:
    """How one method is drawn."""

    colour: str
    marker: str
    line: str = "-"
    width: float = 1.4

    @property
    def size(self) -> float:
        """Marker size in points: crosses and stars look smaller than discs, so they are larger."""
        return {"P": 5.4, "X": 5.4, "*": 7.2, "d": 5.0}.get(self.marker, 4.2)

    @property
    def line_kwargs(self) -> dict[str, object]:
        """The keyword arguments of ``Axes.plot``."""
        dashes = {"nes": DASHED, "local": DASHDOT}.get(self.line, self.line)
        return {"color": self.colour, "marker": self.marker, "linestyle": dashes,
                "linewidth": self.width, "markersize": self.size, "markeredgecolor": "white",
                "markeredgewidth": 0.35}  # fmt: skip

    def drawn(self, hollow: bool = False) -> dict[str, object]:
        """``line_kwargs``, with the marker's face white if ``hollow``."""
        face = {"markerfacecolor": "white", "markeredgecolor": self.colour, "markeredgewidth": 0.9}
        return {**self.line_kwargs, **(face if hollow else {})}


INK, FAINT, RULE = "#1a1a1a", "#5f6368", "#d5d8dc"
STE = {
    "hardtanh": Style("#e2300c", "o"),
    "steep": Style("#e3b015", "D"),
    "swish_sign": Style("#71100d", "^"),
    "polynomial": Style("#c46494", "v"),
    "identity": Style("#f08a5d", "h"),
    "relu": Style("#a0522d", "p"),
}
MATCHED = Style("#672bab", "*")
CDG = Style("#000000", "s", "-", 1.8)
# (log10 of the population, colour) and (log2 of the passes, colour): shades in between are blended.
NES_SHADES = [(1.0, "#b9d9ef"), (2.7, "#8cc0e6"), (3.7, "#2f80d6"), (4.7, "#0e2f78")]
LOCAL_SHADES = [(0.0, "#8be0bb"), (1.0, "#39c68b"), (3.0, "#12644a"), (5.0, "#06281d")]
ROUNDING_SHADES = [(0.0, "#d9b98a"), (3.4, "#6b4a1b")]  # log2 of the samples
NES_CURVE = Style("#2f80d6", "d", "nes")  # all its sizes as one curve
KIN = {
    "random_cdg": Style("#4a4a4a", "D", "nes"),
    "spsa": Style("#7f7f7f", "o", "nes"),
    "greedy_discrete": Style("#b9b9b9", "^", "nes"),
    "psa": Style("#a98be8", "8"),
    "moment_propagation": Style("#2b1d52", "P"),
    "multi_step_ste": Style("#55685f", "<", "nes"),
    "forward_gradient": Style("#a9c0bd", ">", "nes"),
    "moment_nes": Style("#7fb800", "H", "local"),
    "guided": Style("#400d29", "^", "local"),
    "low_rank_nes": Style("#7a2459", "v", "local"),
    "regression_nes": Style("#b04a86", "s", "local"),
    "ste_mean_nes": Style("#d47fb0", "o", "local"),
    "switching": Style("#f0b7d4", "X", "local"),
    "reinforce": Style("#20270a", "o"),
    "arm": Style("#414e10", "v"),
    "disarm": Style("#66781c", "^"),
    "rao_blackwell_nes": Style("#8c9f2e", "D"),
    "local_expectation": Style("#b3c24f", "s"),
    "nes_cdg": Style("#d3dd86", "p"),
    "gumbel_softmax": Style("#6d3fa3", "<", "nes"),
    "reinmax": Style("#bb8fe0", ">", "nes"),
    "snes": Style("#2f80d6", "o"),
    "xnes": Style("#0e2f78", "D"),
    "pgpe": Style("#12a27a", "^"),
    "gaussian_es": Style("#8cc0e6", "d", "nes"),
    "metropolis": Style("#a03a8c", "v", "local"),
    "particles": Style("#e3b015", "s", "local"),
}
"""Estimators that are drawn alike whatever their options; the families that they belong to are in
:data:`gradlab.reporting.columns.FAMILIES`."""
KINDS = {
    "Finite differences": ("cdg", "differences"),
    "Straight-through": ("ste", "rounding", "matched", "backward"),
    "Evolution strategies": ("local", "nes", "directions"),
    "Sampled binary weights": ("signs", "relaxed"),
    "Whole searches": ("search",),
    "Others": ("other",),
}
"""Families that share a panel where there are too many for one."""
_RELATIVES = {
    "Other differences": ("differences",),
    "Other uses of surrogates": ("backward",),
    "NES along directions": ("directions",),
    "Sampled binary weights": ("signs", "relaxed"),
    "Other estimators": ("other",),
}
NES_MARKERS = {500: "<", 5_000: ">", 50_000: "d"}
LOCAL_MARKERS = {1: "p", 2: "P", 8: "X", 20: "H"}
# Methods with noise: colour, marker and line. Dropout is warm, what prunes is blue or green.
NOISES = {
    "none": ("#000000", "s"),
    "bernoulli": ("#e2300c", "o"),
    "gaussian_s": ("#f0a03c", "v"),
    "gaussian_w": ("#8a1d12", "^"),
    "variational_a": ("#d184c8", "D", "nes"),
    "variational_b": ("#672bab", "*", "nes"),
    "sparse_a": ("#8cc0e6", "<", "local"),
    "sparse": ("#1f5fc0", ">", "local"),
    "hierarchical_a": ("#7fd6ae", "p", "local"),
    "hierarchical": ("#12644a", "P", "local"),
    "ard": ("#12644a", "P", "local"),
    "concrete": ("#e3b015", "h", "nes"),
    "l0": ("#5aa3a8", "X", "local"),
    "normal_jeffreys": ("#4d5b66", "8", "local"),
    "bayes_by_backprop": ("#b0487f", "d", "nes"),
    "bernoulli_weights": ("#8c7853", "H"),
    "bayes_binn": ("#3d2f1e", "h"),
}
SPARE_COLOURS = ("#8c7853", "#4d5b66", "#5aa3a8", "#b08a3e", "#9a8fbf", "#7a4b3a")
SPARE_MARKERS = ("8", "h", "p", "H", "P", "X")

RC = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 8,
    "axes.titlesize": 8.5, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7.5, "legend.frameon": False, "figure.titlesize": 10.5,
    "figure.titleweight": "bold", "axes.linewidth": 0.7, "xtick.major.width": 0.7,
    "ytick.major.width": 0.7, "xtick.major.size": 3, "ytick.major.size": 3, "axes.edgecolor": FAINT,
    "axes.grid": True, "grid.color": "#eceef0", "grid.linewidth": 0.6, "axes.axisbelow": True,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT,
    "lines.markersize": 4.2, "figure.facecolor": "white", "axes.facecolor": "white",
    "figure.constrained_layout.w_pad": 0.08, "figure.constrained_layout.h_pad": 0.06,
    "axes.unicode_minus": True, "xtick.minor.size": 1.6, "ytick.minor.size": 1.6,
    "xtick.minor.width": 0.5, "ytick.minor.width": 0.5,
}  # fmt: skip


@contextmanager
def theme() -> Iterator[None]:
    """Draw inside this context."""
    base = {**sns.axes_style("ticks"), **sns.plotting_context("paper")}
    with mpl.rc_context({**base, **RC}):
        yield


def shade(position: float, stops: Sequence[tuple[float, str]]) -> str:
    """A colour between stops."""
    points = [p for p, _ in stops]
    channels = np.array([to_rgb(c) for _, c in stops])
    return to_hex([float(np.interp(position, points, channels[:, i])) for i in range(3)])


def style(estimator: str, surrogate: object = None, population: object = None,
          label: str = "", passes: object = None) -> Style:  # fmt: skip
    """The one style of an estimator; what we do not know gets a stable one from its label."""
    family = columns.family(estimator, surrogate, label)
    size, visits = columns.as_float(population), columns.as_float(passes)
    if str(estimator) in KIN:
        return KIN[str(estimator)]
    if family == "cdg":
        return CDG
    if family == "matched":
        return MATCHED
    if family == "nes":
        if not size > 0:
            return NES_CURVE
        marker = NES_MARKERS.get(int(size), "<>d"[int(np.log10(size)) % 3])
        return Style(shade(np.log10(size), NES_SHADES), marker, "nes")
    if family == "local":
        visits = visits if visits > 0 else 2.0
        marker = LOCAL_MARKERS.get(int(visits), "PXHp"[int(visits) % 4])
        return Style(shade(np.log2(visits), LOCAL_SHADES), marker, "local")
    if family == "rounding":
        marker = "hpH8"[int(np.log2(max(1.0, visits if visits > 0 else 1.0))) % 4]
        return Style(shade(np.log2(max(1.0, visits)), ROUNDING_SHADES), marker, "local")
    if str(estimator) in NOISES:
        return Style(*NOISES[str(estimator)])
    name = str(surrogate).partition("(")[0]
    if family == "ste" and name in STE:
        return STE[name]
    pick = zlib.crc32(f"{estimator} {surrogate} {label}".encode())
    spare = SPARE_COLOURS[pick % len(SPARE_COLOURS)]
    return Style(spare, SPARE_MARKERS[(pick // 7) % len(SPARE_MARKERS)], "nes")


def styles(frame: pd.DataFrame) -> dict[str, Style]:
    """The style of each method of an annotated table, in listing order.

    Methods that share a style (one estimator at several sigmas) go from darker to lighter shades of
    its colour, with markers of their own.
    """
    table = columns.methods(frame)
    found = {
        method: style(row["estimator"], row["surrogate"], row["population"], row["label"],
                      row.get("passes") if pd.notna(row.get("passes")) else _passes(row["label"]))
        for method, row in table.iterrows()
    }  # fmt: skip
    for shared in dict.fromkeys(found.values()):
        twins = [method for method, value in found.items() if value == shared]
        for place, method in enumerate(twins if len(twins) > 1 else []):
            shade = 2 * place / (len(twins) - 1) - 1  # from darker to lighter
            if max(to_rgb(shared.colour)) < 0.3:  # nothing is darker than black
                shade = (shade + 1) / 2
            target, amount = (0.0, 0.5) if shade < 0 else (1.0, 0.6)
            mixed = [c + amount * abs(shade) * (target - c) for c in to_rgb(shared.colour)]
            marker = ("osD^vPX<>*"[place % 10]) if place else shared.marker
            found[method] = replace(shared, colour=to_hex(mixed), marker=marker)
    return found


def _passes(label: str) -> float | None:
    digits = [word.strip("(),") for word in str(label).replace(",", "").split()]
    numbers = [float(word) for word in digits if word.isdigit()]
    return numbers[0] if numbers else None


def table(tables: Mapping[str, pd.DataFrame], name: str, needed: Iterable[str]) -> pd.DataFrame:
    """The annotated table ``name``.

    Raises:
        ValueError: the study has no such table, it is empty, or it lacks a column.
    """
    if name not in tables or tables[name].empty:
        raise ValueError(f"this study has stored no rows in the table '{name}'.")
    missing = [column for column in needed if column not in tables[name]]
    if missing:
        raise ValueError(f"the table '{name}' has no column '{missing[0]}'.")
    return columns.annotate(tables[name])


def pick(frame: pd.DataFrame, **keys: object) -> pd.DataFrame:
    """The rows whose columns have these values."""
    chosen = np.ones(len(frame), dtype=bool)
    for column, value in keys.items():
        chosen &= (frame[column] == value).to_numpy()
    return frame[chosen]


def groupings(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """The three comparisons of the original study, each against CDG, and those of all others.

    The sampled estimators; the straight-through surrogates; the contenders, one of each family;
    then their relatives, family by family, and whatever fits nowhere. Groups without a member
    beside CDG are left out.
    """
    known = columns.methods(frame)
    of = {name: list(known.index[known["family"] == name]) for name in known["family"].unique()}
    cdg, nes = of.get("cdg", []), of.get("nes", [])
    ste = [*of.get("ste", []), *of.get("rounding", [])]
    size = known["population"].map(columns.as_float)
    largest = [m for m in nes if size[m] == size[nes].max()]
    picked = known["surrogate"].astype(str).isin(["hardtanh", "swish_sign"])
    chosen_ste = [m for m in ste if picked[m]] or ste[:2]
    contenders = [*chosen_ste, *of.get("matched", []), *of.get("local", []), *largest]
    against = " against CDG" if cdg else ""
    groups = [
        (f"NES{against}", [*cdg, *nes]),
        (f"Straight-through{against}", [*cdg, *ste]),
        ("Contenders", [*cdg, *contenders]),
        *((f"{title}{against}", [*cdg, *(m for kind in kinds for m in of.get(kind, []))])
          for title, kinds in _RELATIVES.items()),
    ]  # fmt: skip
    listed = list(known.index)
    groups = [(title, sorted(set(members), key=listed.index)) for title, members in groups]
    kept = [(title, members) for title, members in groups if set(members) - set(cdg)]
    # One family alone makes the contenders a copy of another group.
    unique = [g for i, g in enumerate(kept) if g[1] not in [other[1] for other in kept[:i]]]
    return unique or [("Estimators", listed)]


def panels(
    rows: int,
    cols: int,
    *,
    width: float = 2.3,
    height: float = 1.9,
    extra: float = 0.0,
    foot: float = 0.0,
    least: float = 4.6,
    sharex: bool | str = False,
    sharey: bool | str = False,
) -> tuple[Figure, np.ndarray]:
    """A figure of panels and the 2-d array of their axes.

    Args:
        rows: rows of panels.
        cols: columns of panels.
        width: inches of one panel with its labels.
        height: likewise.
        extra: inches on the right, for a legend.
        foot: inches at the bottom, for a legend.
        least: inches that the figure is wide at least.
        sharex: as matplotlib's ``subplots`` takes it.
        sharey: likewise.
    """
    size = (max(least, cols * width + extra), max(2.6, rows * height + foot + 0.9))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, cols, squeeze=False, sharex=sharex, sharey=sharey)
    sns.despine(figure)
    return figure, axes


def curve(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    look: Style,
    *,
    label: str | None = None,
    interval: str = "band",
    markers: bool = True,
    hollow: bool = False,
) -> None:
    """A line through the means, with their intervals where there are some.

    Args:
        ax: where to draw.
        rows: ``x, mean, low, high`` as :func:`gradlab.reporting.summaries.over_inits` gives them.
        x: the column along the x-axis.
        look: colour, marker and line.
        label: the legend entry.
        interval: "band", or "bars" where many curves overlap; a single point always has a bar.
        markers: draw the markers on the line; the legend shows them anyway.
        hollow: draw hollow markers.
    """
    rows = rows.sort_values(x)
    places, mean = rows[x].to_numpy(float), rows["mean"].to_numpy(float)
    if markers:
        ax.plot(places, mean, label=label, zorder=3, **look.drawn(hollow))
    else:
        ax.plot(places, mean, zorder=3, **{**look.line_kwargs, "marker": ""})
        ax.plot([], [], label=label, **look.line_kwargs)
    low, high = rows["low"].to_numpy(float), rows["high"].to_numpy(float)
    known = np.isfinite(low)
    if interval == "bars" or known.sum() == 1:
        ax.vlines(
            places[known], low[known], high[known], color=look.colour, linewidth=1.1, zorder=2
        )
    elif known.any():
        # A hairline around a faint band stays readable where several bands overlap.
        colour = to_rgb(look.colour)
        ax.fill_between(places, low, high, facecolor=(*colour, 0.06), edgecolor=(*colour, 0.4),
                        linewidth=0.4, zorder=1)  # fmt: skip


def dodged(rows: pd.DataFrame, x: str, members: Sequence[str], method: str) -> pd.DataFrame:
    """``rows`` with ``x`` (on a log2 axis) moved a little, so that methods stand side by side."""
    count = len(members)
    width = min(0.5, 0.09 * (count - 1))
    shift = np.linspace(-width / 2, width / 2, count)[list(members).index(method)]
    return rows.assign(**{x: rows[x].astype(float) * 2.0**shift})


def dots(ax: Axes, x: object, y: object, look: Style) -> None:
    """One small dot per init."""
    ax.plot(x, y, linestyle="none", marker="o", markersize=2.9, color=look.colour, alpha=0.75,
            markeredgewidth=0.35, markeredgecolor="white", zorder=2.5)  # fmt: skip


def num_dim_axis(ax: Axes, num_dims: Sequence[int], label: bool = True) -> None:
    """num_dim on a logarithmic axis with one tick per value."""
    present = sorted({int(n) for n in num_dims})
    if present and present[0] > 0:
        ax.set_xscale("log", base=2)
        ax.set_xlim(present[0] / 2**0.4, present[-1] * 2**0.4)
    ax.xaxis.set_major_locator(FixedLocator(present))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    if label:
        ax.set_xlabel("num_dim (units per layer)")


def log_axis(ax: Axes, axis: str = "x") -> None:
    """A logarithmic axis whose ticks read 0.001, 0.1, 100 rather than powers.

    Where there is nothing above zero to draw, its limits are 1 and 10.
    """
    (ax.set_xscale if axis == "x" else ax.set_yscale)("log")
    target = ax.xaxis if axis == "x" else ax.yaxis
    target.set_major_formatter(FuncFormatter(lambda v, _: plain(v)))
    low, high = ax.get_xlim() if axis == "x" else ax.get_ylim()
    if low <= 0:
        low, high = 1.0, 10.0
        (ax.set_xlim if axis == "x" else ax.set_ylim)(low, high)
    if high < 30 * low:  # one or two powers of ten are too few labels
        target.set_major_locator(LogLocator(subs=(1, 2, 5)))
    target.set_minor_formatter(FuncFormatter(lambda v, _: ""))


def scale_axis(ax: Axes, scale: str, values: Iterable[float]) -> None:
    """A logarithmic axis of an estimator's scale; thresholds are few enough to be named each."""
    log_axis(ax)
    if scale == "threshold":
        ax.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}".removeprefix("0")))


def plain(value: float) -> str:
    """A tick label: powers of ten as powers where they are long.

    >>> plain(0.01), plain(500), plain(1e-5), plain(50000)
    ('0.01', '500', '$10^{-5}$', '50k')
    """
    if value == 0:
        return "0"
    exponent = int(np.floor(np.log10(abs(value)) + 1e-9))
    if 3 <= exponent <= 5:
        return f"{value / 1000:g}k"
    if -3 <= exponent <= 2:
        return f"{value:g}"
    digits = value / 10.0**exponent
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(digits - 1) < 1e-6 else f"${digits:g}\\cdot {power}$"


def row_title(ax: Axes, words: str) -> None:
    """A title above a row of panels, over the titles of its panels if they have some."""
    above = 16 if ax.get_title(loc="left") else 4
    ax.annotate(words, xy=(0, 1), xytext=(0, above), xycoords="axes fraction", va="bottom",
                textcoords="offset points", ha="left", fontsize=8.5, fontweight="bold")  # fmt: skip


def side_legend(ax: Axes, title: str | None = None, order: Iterable[str] = (),
                small: bool = False) -> None:  # fmt: skip
    """The legend right of the last panel of a row; what ``order`` does not name comes last.

    Args:
        ax: the panel.
        title: the legend's.
        order: its entries.
        small: for a low panel, or one that shares a column of a paper with its legend.
    """
    handles, labels = ax.get_legend_handles_labels()
    first = {name: place for place, name in enumerate(order)}
    ranked = sorted(range(len(labels)), key=lambda i: first.get(labels[i], len(first)))
    handles, labels = [handles[i] for i in ranked], [labels[i] for i in ranked]
    if handles:
        title = "\n".join(textwrap.wrap(title, 26)) if title else None
        ax.legend(handles, labels, loc="center left", bbox_to_anchor=(1.03, 0.5), title=title,
                  title_fontproperties={"weight": "bold", "size": 7.5},
                  borderaxespad=0, handlelength=2.6, alignment="left",
                  **({"fontsize": 6.4, "labelspacing": 0.3} if small else {}))  # fmt: skip


def legend_entries(ax: Axes, methods: Iterable[str], looks: Mapping[str, Style]) -> None:
    """Empty lines, so that a legend lists methods this panel happens not to have."""
    _, have = ax.get_legend_handles_labels()
    for method in methods:
        if method not in have:
            ax.plot([], [], label=method, **looks[method].line_kwargs)


def title(figure: Figure, words: str) -> None:
    """The figure's title, left-aligned."""
    width = int(figure.get_size_inches()[0] * 10)
    figure.suptitle("\n".join(textwrap.wrap(words, width)), x=0.012, ha="left")


def finish(
    figure: Figure, frame: pd.DataFrame, notes: Iterable[str]
) -> tuple[Figure, pd.DataFrame]:
    """Write the notes under the figure and keep them beside the numbers for the caption."""
    note = " ".join(note for note in notes if note)
    width = int(figure.get_size_inches()[0] * 19.5)
    figure.supxlabel("\n".join(textwrap.wrap(note, width)), x=0.012, ha="left", fontsize=6.8,
                     color=FAINT, gid="note")  # fmt: skip
    frame = without_num_dim(frame).reset_index(drop=True)
    frame.attrs["note"] = note
    return figure, frame


def legend_width(labels: Iterable[str], small: bool = False) -> float:
    """Inches that a legend beside a panel takes."""
    return 0.65 + (0.046 if small else 0.062) * max(map(len, labels))


def legend_height(labels: Sequence[str], ncols: int = 1) -> float:
    """Inches that a legend takes."""
    return 0.165 * -(-len(labels) // ncols)


def legend_columns(labels: Sequence[str]) -> int:
    """How many columns of a legend fit under a panel."""
    return 2 if max(map(len, labels)) <= 21 else 1


def legend_below(ax: Axes, members: Sequence[str], looks: Mapping[str, Style]) -> None:
    """The legend of a column of panels, a fixed distance below its axis."""
    legend_entries(ax, members, looks)
    handles, labels = ax.get_legend_handles_labels()
    place = ax.transAxes + ScaledTranslation(0, -32 / 72, ax.figure.dpi_scale_trans)
    ax.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=place,
              ncols=legend_columns(labels), borderaxespad=0, handlelength=2.4,
              columnspacing=1.2)  # fmt: skip
