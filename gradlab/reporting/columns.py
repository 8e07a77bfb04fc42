"""What the columns of a study's tidy tables mean, and how one curve is told from another.

Every stored table has one row per measurement. Its columns fall into five kinds:

- *problem*: what is being solved (``num_dim``, ``depth``, ``activation``, ``student``, …);
- *replicate*: ``init``, ``batch``, ``repeat``. Only the init (a teacher with its student) is
  independent: batches and repeats of one init are averaged before anything is resampled;
- *estimator*: ``estimator``, its display ``label`` and its options (``sigma``, ``population``, …);
- *setting*: how the study measured (``normalize``, …);
- *measurement*: everything else.

:func:`annotate` condenses them into two words per row. ``method`` names one curve (an estimator
with its options) and ``condition`` names everything else that varies, except ``num_dim``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

REPLICATES = ("init", "batch", "repeat")
PROBLEM = (
    "objective", "function", "depth", "activation", "weight", "gain", "batch_size", "student",
    "step_layers",
)  # fmt: skip
NOT_A_SETTING = {
    *REPLICATES, *PROBLEM, "num_dim", "schema", "study", "seed", "threads", "device", "hash",
    "cell", "estimator", "label", "method", "condition", "layer", "reference", "budget",
    "quantity", "curve", "panel", "choice", "edge",
}  # fmt: skip
MEASUREMENTS = {
    "lr", "loss_before", "loss_after", "loss_decrease", "loss_decrease_fresh", "forward_passes",
    "backward_passes", "seconds", "step", "loss", "loss_fresh", "cosine", "norm_ratio",
    "sign_agreement", "split_half_cosine", "relative_bias", "relative_variance", "value",
    "reference_split_half_cosine", "gradient_norm", "step_norm",
}  # fmt: skip
OPTIONS = {
    "surrogate", "epsilon", "population", "sigma", "fitness", "gradient", "antithetic", "passes",
    "layers", "condition_last", "baseline", "ridge", "beta", "threshold", "temperature", "samples",
    "sigma_gradient", "weight_surrogate",
}  # fmt: skip
STUDENTS = ("fresh", "converged")
STEP_LAYERS = ("all", "hidden", "output")
JOINED = ("hidden", "all")  # what gradient_quality calls groups of layers
ACTIVATIONS = ("binary", "ternary", "2bit", "full")
SYMBOLS = {"sigma": "σ", "epsilon": "ε", "beta": "β", "population": "P"}
STE_ORDER = ("hardtanh", "steep", "swish_sign", "polynomial", "identity", "relu")


def varying(frame: pd.DataFrame, columns: list[str]) -> list[str]:
    """Those of ``columns`` that take more than one value (missing counts as a value)."""
    return [c for c in columns if c in frame and frame[c].nunique(dropna=False) > 1]


def option_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold options of estimators.

    Known options, and every other setting-like column that some estimator does not have at all
    (an option that a third party's estimator brings along).
    """
    found = []
    for column in frame.columns:
        if column in OPTIONS:
            found.append(column)
        elif _like_a_setting(frame, column) and "estimator" in frame:
            absent = frame[column].isna().groupby(frame["estimator"]).all()
            if absent.any() and not absent.all():
                found.append(column)
    return found


def setting_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold settings of the study (``normalize`` and its like)."""
    options = set(option_columns(frame))
    return [c for c in frame.columns if c not in options and _like_a_setting(frame, c)]


def condition_columns(frame: pd.DataFrame) -> list[str]:
    """What varies in this table beside ``num_dim``, the estimator, the lr and the replicates."""
    return varying(frame, [*PROBLEM, *setting_columns(frame)])


def _like_a_setting(frame: pd.DataFrame, column: str) -> bool:
    if column in NOT_A_SETTING or column in MEASUREMENTS or column in OPTIONS:
        return False
    # A measurement that nobody told us about takes as many values as there are rows.
    return not pd.api.types.is_float_dtype(frame[column]) or frame[column].nunique() <= 12


def annotate(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy with ``method``, ``condition`` and, where it was missing, ``num_dim`` = 0.

    ``method`` is the label, with the options that tell two estimators of one label apart.
    ``condition`` is empty where nothing else varies.

    >>> table = pd.DataFrame({"estimator": ["nes", "nes"], "label": ["NES 500", "NES 500"],
    ...                       "sigma": [0.1, 0.01], "num_dim": [8, 8], "init": [0, 0]})
    >>> annotate(table)["method"].tolist()
    ['NES 500, σ = 0.1', 'NES 500, σ = 0.01']
    """
    frame = frame.copy()
    if "num_dim" not in frame:
        frame["num_dim"] = 0
    frame["num_dim"] = frame["num_dim"].fillna(0).astype(int)
    for column in ("surrogate", "population"):
        if column not in frame:
            frame[column] = None
    if "label" not in frame:
        frame["label"] = frame["estimator"]
    frame["label"] = frame["label"].fillna(frame["estimator"]).astype(str)
    for column in frame.columns[frame.dtypes.astype(str) == "object"]:
        frame[column] = [str(v) if isinstance(v, (list, dict)) else v for v in frame[column]]
    for column in frame.columns.intersection(list(MEASUREMENTS)):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    frame["method"] = name_curves(frame)
    frame["condition"] = conditions_apart_from(frame, ())
    return frame


def name_curves(frame: pd.DataFrame, apart_from: Sequence[str] = ()) -> pd.Series:
    """One name per row that is shared by exactly those rows that belong on one curve.

    Two rows are on one curve where estimator and options agree, ``apart_from`` left aside (the
    option along the x-axis). The name is the label, or what the labels of the curve have in
    common; options are added where names would collide.

    >>> table = pd.DataFrame({"estimator": "nes", "label": ["NES 500 σ=0.1", "NES 500 σ=1"],
    ...                       "sigma": [0.1, 1.0]})
    >>> name_curves(table, apart_from=["sigma"]).tolist()
    ['NES 500', 'NES 500']
    """
    options = [c for c in option_columns(frame) if c not in apart_from]
    keys = ["estimator", *options] + ([] if apart_from else ["label"])
    groups = frame.groupby(keys, dropna=False, sort=False)
    number = groups.ngroup()
    curves = frame.assign(_curve=number).drop_duplicates("_curve").set_index("_curve")
    labels = frame.groupby(number)["label"].unique()
    estimators = curves["estimator"].to_dict()
    names = {curve: _common_words(list(found)) or str(estimators[curve])
             for curve, found in labels.items()}  # fmt: skip
    result = dict(names)
    for name in set(names.values()):
        same = curves.loc[[curve for curve in names if names[curve] == name]]
        if len(same) > 1:
            differing = varying(same, options)
            for curve, row in same.iterrows():
                extra = [f"{SYMBOLS.get(c, c)} = {text(row[c])}" for c in differing
                         if text(row[c]) != "–"]  # fmt: skip
                result[curve] = ", ".join([name, *extra])
    return number.map(result)


def _common_words(labels: list[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    words = [label.split() for label in labels]
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    return " ".join(column[0] for column in shared).rstrip(" ,;:(")


def one_scale_each(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of an estimator measured at several sigmas or epsilons, the rows at 0.1 (or the first).

    Args:
        frame: an annotated table.

    Returns:
        The rows, their methods named without the scale; and the scales that were chosen, in
        words, empty where there was nothing to choose.
    """
    kept, words = frame.assign(curve=name_curves(frame, ["sigma", "epsilon"])), []
    for scale in ("epsilon", "sigma"):
        if scale not in kept or kept.groupby("curve")[scale].nunique().max() <= 1:
            continue
        by_curve = kept.groupby("curve")[scale]
        default = by_curve.transform(lambda values: (values == 0.1).any())
        chosen = by_curve.transform("first").where(~default.astype(bool), 0.1)
        kept = kept[kept[scale].isna() | (kept[scale] == chosen)]
        words.append(f"{SYMBOLS[scale]} = 0.1")
    if not words:
        return frame, ""
    # The scale is said once, and not again in every name.
    return kept.assign(method=kept["curve"]), " and ".join(words)


def categorical_choices(frame: pd.DataFrame) -> list[str]:
    """Settings and options that vary and are not numbers: fitness, update order and the like."""
    own = {"surrogate", "population", "layers", "sigma", "epsilon", "passes"}
    names = [*setting_columns(frame), *option_columns(frame)]
    return [c for c in names if c not in own and _is_choice(frame[c])]


def _is_choice(values: pd.Series) -> bool:
    known = values.dropna().unique()
    return len(known) > 1 and all(isinstance(value, (str, bool, np.bool_)) for value in known)


def conditions_apart_from(frame: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """The condition of every row in words, ``columns`` left aside."""
    kept = [c for c in condition_columns(frame) if c not in columns]
    if not kept:
        return pd.Series("", index=frame.index)
    groups = frame.groupby(kept, dropna=False, sort=False)
    first = frame.assign(_group=groups.ngroup()).drop_duplicates("_group").set_index("_group")
    names = {group: ", ".join(phrase(c, row[c]) for c in kept) for group, row in first.iterrows()}
    return groups.ngroup().map(names)


def as_float(value: object) -> float:
    """A number as a float; NaN for whatever is missing or no number.

    >>> as_float("500"), as_float(None), as_float(pd.NA)
    (500.0, nan, nan)
    """
    number = pd.to_numeric(value, errors="coerce")  # type: ignore[call-overload]
    return math.nan if pd.isna(number) else float(number)


def text(value: object) -> str:
    """A value as a short word.

    >>> text(0.1), text(5000.0), text("raw"), text(None), text(True)
    ('0.1', '5,000', 'raw', '–', 'yes')
    """
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) or hasattr(value, "dtype"):
        number = float(value)  # type: ignore[arg-type]
        return f"{number:,.0f}" if number == int(number) else f"{number:.3g}"
    return str(value)


def phrase(column: str, value: object) -> str:
    """A condition in the words of the field.

    >>> phrase("student", "fresh"), phrase("activation", "binary"), phrase("normalize", "global")
    ('fresh student', 'binary activations', 'normalize global')
    >>> phrase("student", "converged (500 steps, 1000 examples)")
    'converged student (500 steps of 1000 examples)'
    """
    if column == "step_layers":
        return {"all": "all layers step", "hidden": "hidden layers step",
                "output": "output layer steps"}.get(str(value), f"{value} step")  # fmt: skip
    if column == "student":
        state, _, how = text(value).partition(" ")
        return f"{state} student {how.replace(',', ' of')}".rstrip()
    forms = {
        "activation": "{} activations",
        "weight": "{} weights",
        "batch_size": "batches of {}",
        "objective": "{}",
        "function": "{}",
    }
    return forms.get(column, column.replace("_", " ") + " {}").format(text(value))


def layer_name(layer: str) -> str:
    """``layers.0.weight`` as ``1``, the way papers count; other names unchanged.

    >>> layer_name("layers.0.weight"), layer_name("all")
    ('1', 'all')
    """
    match = re.fullmatch(r"layers\.(\d+)\.weight", str(layer))
    return str(int(match[1]) + 1) if match else str(layer)


def layer_order(layers: pd.Series) -> list[str]:
    """The distinct layers, first to last, then the groups ``hidden`` and ``all``."""

    def position(layer: str) -> tuple[int, list[tuple[int, str]]]:
        parts = [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", layer)]
        return JOINED.index(layer) + 1 if layer in JOINED else 0, parts

    return sorted(layers.dropna().astype(str).unique(), key=position)


def single_layers(layers: pd.Series) -> list[str]:
    """The distinct layers without the groups of layers."""
    return [layer for layer in layer_order(layers) if layer not in JOINED]


def layer_title(layer: str) -> str:
    """A layer as the title of a panel or column.

    >>> [layer_title(layer) for layer in ("layers.0.weight", "hidden", "all")]
    ['layer 1', 'hidden layers', 'all layers']
    """
    return f"{layer} layers" if layer in JOINED else f"layer {layer_name(layer)}"


def reference_name(reference: str) -> str:
    """The reference gradient in words.

    >>> reference_name("cdg"), reference_name("smoothed")
    ('CDG', 'the smoothed gradient')
    """
    names = {"cdg": "CDG", "smoothed": "the smoothed gradient", "reference": "the reference"}
    return names.get(str(reference), str(reference).replace("_", " "))


def family(estimator: str, surrogate: object, label: str) -> str:
    """The family an estimator is drawn and talked about in.

    One of cdg, ste, rounding (stochastic rounding), matched, local, nes, other.

    >>> family("ste", "matched", "matched STE"), family("nes_local", None, "local NES (2 passes)")
    ('matched', 'local')
    """
    name, words = str(estimator).lower(), f"{surrogate} {label}".lower()
    # Local NES first: with the matched STE as control variate its label names both.
    if "local" in name:
        return "local"
    if "matched" in words or "matched" in name:
        return "matched"
    if name == "sr_ste":
        return "rounding"
    for prefix in ("cdg", "nes", "ste"):
        if name == prefix or name.startswith(prefix + "_"):
            return prefix
    return "other"


def methods(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per method of an annotated table, in the order in which they are always listed.

    Returns:
        A frame indexed by ``method`` with ``estimator, label, family, surrogate, population`` and
        the options sigma, epsilon and passes where the table has them.
    """
    options = [c for c in ("sigma", "epsilon", "passes") if c in frame]
    columns = ["method", "estimator", "label", "surrogate", "population", *options]
    table = frame[columns].drop_duplicates("method").set_index("method")
    kinds = zip(table["estimator"], table["surrogate"], table["label"], strict=True)
    table["family"] = [family(*kind) for kind in kinds]
    families = ("cdg", "ste", "rounding", "matched", "local", "nes", "other")
    ranks = {name: rank for rank, name in enumerate(families)}

    def position(method: str) -> tuple[Any, ...]:
        row: dict[str, Any] = dict(table.loc[method])
        surrogate = str(row["surrogate"])
        ste = STE_ORDER.index(surrogate) if surrogate in STE_ORDER else len(STE_ORDER)
        size = as_float(row["population"])
        natural = [(1, float(p), "") if re.fullmatch(r"[\d.]*\d", p) else (0, 0.0, p)
                   for p in re.split(r"(\d[\d.]*)", method.replace(",", ""))]  # fmt: skip
        return ranks[row["family"]], ste, 0.0 if math.isnan(size) else size, natural

    return table.loc[sorted(table.index, key=position)]


def reference_method(known: pd.DataFrame) -> str | None:
    """The CDG that others are compared with: ε = 0.1 where there are several, None without one.

    Args:
        known: as :func:`methods` gives it.
    """
    cdg = known[known["family"] == "cdg"]
    if cdg.empty:
        return None
    if len(cdg) > 1 and "epsilon" in cdg and (cdg["epsilon"] == 0.1).any():
        return str(cdg.index[cdg["epsilon"] == 0.1][0])
    return str(cdg.index[0])


def conditions(frame: pd.DataFrame) -> list[str]:
    """The conditions of an annotated table, in the order of their first rows.

    Fresh students come before converged ones, steps of all layers before those of hidden ones,
    binary activations before full ones.
    """
    moved = [phrase("step_layers", layers) for layers in STEP_LAYERS]
    orders = (
        [phrase("student", student) for student in STUDENTS],
        moved,
        [phrase("activation", activation) for activation in ACTIVATIONS],
    )

    def position(condition: str) -> tuple[int, ...]:
        return tuple(
            next((i for i, words in enumerate(order) if words in condition), len(order))
            for order in orders
        )

    return sorted(frame["condition"].unique(), key=position)
