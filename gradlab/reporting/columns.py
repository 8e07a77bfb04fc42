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

from gradlab.reporting.problems import (
    NETWORK,
    OF_SOME_MODELS,
    PROBLEM,
    is_network,
    phrase,
    position,
    problem_columns,
)
from gradlab.reporting.wording import listed, word

REPLICATES = ("init", "batch", "repeat")
PREDICTIONS = {
    "mean": "mean weights", "sample": "one draw", "monte_carlo": "Monte Carlo", "pruned": "pruned",
}  # fmt: skip
"""How a network with noise predicts, in words; ``final_<kind>_<measure>`` is of the last epoch."""
PREDICTED = (
    "accuracy", "negative_log_likelihood", "calibration_error", "predictive_entropy",
    "mutual_information",
)  # fmt: skip
NOT_A_SETTING = {
    *REPLICATES, *PROBLEM, *NETWORK, "num_dim", "schema", "study", "seed", "threads", "device",
    "student_training", "hash", "cell", "estimator", "label", "method", "condition", "layer",
    "reference", "budget", "quantity", "curve", "panel", "choice", "edge", "diverged",
}  # fmt: skip
MEASUREMENTS = {
    "lr", "loss_before", "loss_after", "loss_decrease", "loss_decrease_fresh", "forward_passes",
    "backward_passes", "seconds", "step", "loss", "loss_fresh", "cosine", "norm_ratio",
    "sign_agreement", "split_half_cosine", "relative_bias", "relative_variance", "value",
    "reference_split_half_cosine", "gradient_norm", "step_norm", "reference_norm", "depth_index",
    "epoch", "epochs_done", "test_loss", "test_accuracy", "train_loss", "train_accuracy",
    "val_loss", "val_accuracy", "best_val_accuracy", "ema_loss", "ema_accuracy", "flip_ratio",
    "images_per_second", "coordinate", "offset", "slope", "chord_slope", "train_nll", "kl",
    "kl_weight_now", "sample_loss", "sample_accuracy", "pruned_loss", "pruned_accuracy",
    "relative_variance_per_pass", "signal_to_noise", "bias_z", "gradient_variance",
    "compression", "last_val_accuracy", "last_val_loss", "last_sample_accuracy",
    "last_pruned_accuracy", "last_compression", "best_sample_accuracy", "best_pruned_accuracy",
    "best_loss", "best_loss_fresh", "width_mean", "width_min", "width_max", "acceptance_rate",
    *(f"final_{kind}_{measure}" for kind in PREDICTIONS for measure in PREDICTED),
}  # fmt: skip
OPTIONS = {
    "surrogate", "epsilon", "population", "sigma", "fitness", "gradient", "antithetic", "passes",
    "layers", "noise", "condition_last", "baseline", "ridge", "beta", "threshold", "temperature",
    "samples", "sigma_gradient", "weight_surrogate",
    "noise_scale",  # of gradient sources
    # of searches
    "learning_rate_sigma", "learning_rate_shape", "importance_mixing",
    "adaptation_sampling", "block_size", "baseline_decay", "normalized", "max_change",
    "binary_weights", "chains", "stages", "power", "moves", "resample_below", "flips",
    "descent_estimator",
    # of variational methods
    "p", "side", "mode", "parameterization", "removal", "initial", "prior", "prior_sigma", "pi",
    "sigma1", "sigma2", "initial_mean", "initial_rho", "bias_noise", "groups", "penalty",
    "droprate_init", "length_scale", "weight_regularizer", "dropout_regularizer",
    "largest_variance", "prediction", "bayes_by_backprop_estimator", "l0_weight_decay",
}  # fmt: skip
LATER = {"evaluation_examples"}
"""Settings that the first tables have no column for: a row without one says nothing about it."""
SYMBOLS = {
    "sigma": "σ", "epsilon": "ε", "beta": "β", "population": "P",
    "bayes_by_backprop_estimator": "noise", "l0_weight_decay": "weight decay",
    "prior_sigma": "prior σ",
}  # fmt: skip
SCALES = {"epsilon": 0.1, "sigma": 0.1, "threshold": 1.0}
"""The scales of estimators, with the value that is shown where a figure has room for one."""
THRESHOLD = re.compile(r"\(threshold=([\d.eE+-]+)\)")
NOISES = (
    "none", "bernoulli", "gaussian_s", "gaussian_w", "variational_a", "variational_b", "sparse_a",
    "sparse", "hierarchical_a", "hierarchical", "ard", "concrete", "l0", "normal_jeffreys",
    "bayes_by_backprop", "bernoulli_weights", "bayes_binn",
)  # fmt: skip
"""Variational methods in the order in which they are listed, among what is no estimator."""
STE_ORDER = ("hardtanh", "steep", "swish_sign", "polynomial", "identity", "relu")
FAMILIES = {
    "cdg": ("cdg",),
    "differences": ("random_cdg", "spsa", "greedy_discrete"),
    "ste": ("ste", "descent"),
    "rounding": ("sr_ste",),
    "matched": ("psa", "moment_propagation"),
    "backward": ("multi_step_ste", "forward_gradient"),
    "local": ("nes_local", "moment_nes"),
    "nes": ("nes",),
    "directions": ("guided", "low_rank_nes", "regression_nes", "ste_mean_nes", "switching"),
    "signs": ("reinforce", "arm", "disarm", "rao_blackwell_nes", "local_expectation", "nes_cdg"),
    "relaxed": ("gumbel_softmax", "reinmax"),
    "search": ("snes", "xnes", "pgpe", "gaussian_es", "metropolis", "particles"),
    "other": (),
}
"""The families of estimators, and the estimators of each, in the order in which they are listed."""
SIZES = ("population", "passes", "samples", "directions", "coordinates", "steps")
"""Options that buy a better estimate of the same kind with more passes."""


def varying(frame: pd.DataFrame, columns: list[str]) -> list[str]:
    """Those of ``columns`` that take more than one value.

    Missing counts as a value, but not of settings that came ``LATER``.
    """
    return [c for c in columns if c in frame and frame[c].nunique(dropna=c in LATER) > 1]


def option_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold options of estimators.

    Known options, and every other setting-like column that some estimator does not have at all
    (an option that a third party's estimator brings along).
    """
    found = []
    network = is_network(frame)
    for column in frame.columns:
        # A network's layers are part of the problem, and so is how it is trained; those of an
        # estimator are named otherwise.
        if network:
            option = column in OPTIONS and column not in NETWORK
        else:
            option = column in OPTIONS or column == "learning_rate"
        if option:
            found.append(column)
        elif column not in LATER and _like_a_setting(frame, column) and "estimator" in frame:
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
    return varying(frame, [*problem_columns(frame), *setting_columns(frame)])


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
    for column in ("estimator", "surrogate", "population"):
        if column not in frame:
            frame[column] = None
    frame["estimator"] = frame["estimator"].astype(object).fillna("backpropagation")
    if "label" not in frame:
        frame["label"] = frame["estimator"]
    frame["label"] = frame["label"].fillna(frame["estimator"]).astype(str)
    for column in frame.columns[frame.dtypes.astype(str) == "object"]:
        frame[column] = [str(v) if isinstance(v, (list, dict)) else v for v in frame[column]]
    for column in frame.columns.intersection(list(MEASUREMENTS)):
        frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    if is_network(frame):
        if "student" in frame:
            frame["student"], frame["student_training"] = _plain_students(frame["student"])
        if "layers" in frame:
            frame["layers"] = frame["layers"].astype(object).fillna("all")
    if frame["surrogate"].astype(str).str.contains("(threshold=", regex=False).any():
        frame["threshold"] = thresholds(frame["surrogate"])
    frame["method"] = name_curves(frame)
    frame["condition"] = conditions_apart_from(frame, ())
    return frame


def thresholds(surrogates: pd.Series) -> pd.Series:
    """The clip threshold that each surrogate's label names; hardtanh's own is 1.

    >>> thresholds(pd.Series(["hardtanh", "hardtanh(threshold=0.5)", "steep"])).tolist()
    [1.0, 0.5, nan]
    """
    named = surrogates.astype(str)
    found = named.str.extract(THRESHOLD, expand=False).astype(float)
    return found.mask(named == "hardtanh", 1.0)


def _plain_students(students: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Students without the words about their training where all share them, and these words."""
    words = students.astype(str).str.extract(r"^(\S+)\s*(.*)$")
    how = words[1][words[1] != ""]
    # A fresh student has no training to speak of.
    trained = words[0][words[0] != "fresh"]
    if how.nunique() != 1 or len(how) < len(trained):
        return students, pd.Series("", index=students.index)
    plain = words[0].where(students.notna(), None)
    return plain, pd.Series(how.iloc[0].strip("()"), index=students.index)


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
    if "threshold" in apart_from:
        frame = frame.assign(
            surrogate=frame["surrogate"].astype(object).replace(THRESHOLD, "", regex=True),
            label=frame["label"].replace(THRESHOLD, "", regex=True),
        )
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
                extra = [f"{SYMBOLS.get(c, c)} = {word(row[c])}" for c in differing
                         if word(row[c]) != "–"]  # fmt: skip
                result[curve] = ", ".join([name, *extra])
    return number.map(result)


def _common_words(labels: list[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    words = [label.split() for label in labels]
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False))
    return " ".join(column[0] for column in shared).rstrip(" ,;:(")


def one_scale_each(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Of an estimator measured at several scales, the rows at the usual one (or the nearest).

    Thresholds are a scale from three on: two are a comparison.

    Args:
        frame: an annotated table.

    Returns:
        The rows, their methods named without the scale; and the scales that were chosen, in
        words, empty where there was nothing to choose.
    """
    several = varied_scales(frame)
    if "threshold" in several and frame["threshold"].nunique() < 3:
        several.remove("threshold")
    if not several:
        return frame, ""
    kept, words = frame.assign(curve=name_curves(frame, several)), []
    for scale in several:
        shown = {curve: _nearest(values, SCALES[scale])
                 for curve, values in kept.groupby("curve")[scale]}  # fmt: skip
        chosen = kept["curve"].map(shown)
        kept = kept[kept[scale].isna() | (kept[scale] == chosen)]
        named = " or ".join(f"{value:g}" for value in sorted(set(shown.values())) if value == value)
        words.append(f"{SYMBOLS.get(scale, scale)} = {named}")
    # The scale is said once, and not again in every name.
    return kept.assign(method=kept["curve"]), listed(words)


def _nearest(values: pd.Series, usual: float) -> float:
    """The value that is nearest to the usual one by ratio; NaN where there is none."""
    known = values.dropna().to_numpy(float)
    return float(known[np.abs(np.log(known / usual)).argmin()]) if len(known) else math.nan


def varied_scales(frame: pd.DataFrame) -> list[str]:
    """The scales at which some curve was measured more than once."""
    present = [scale for scale in SCALES if scale in frame and frame[scale].notna().any()]
    found = []
    for scale in present:
        by_curve = frame.groupby(name_curves(frame, present))[scale]
        if by_curve.nunique().max() > 1:
            found.append(scale)
    return found


def categorical_choices(frame: pd.DataFrame) -> list[str]:
    """Settings and options that vary and are not numbers: fitness, update order and the like."""
    own = {"surrogate", "population", "layers", "passes", *SCALES}
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
    network = is_network(frame)
    names = {group: ", ".join(phrase(c, row[c], network) for c in kept
                              if c not in OF_SOME_MODELS or pd.notna(row[c]))
             for group, row in first.iterrows()}  # fmt: skip
    return groups.ngroup().map(names)


def as_float(value: object) -> float:
    """A number as a float; NaN for whatever is missing or no number.

    >>> as_float("500"), as_float(None), as_float(pd.NA)
    (500.0, nan, nan)
    """
    number = pd.to_numeric(value, errors="coerce")  # type: ignore[call-overload]
    return math.nan if pd.isna(number) else float(number)


def reference_name(reference: str) -> str:
    """The reference gradient in words.

    >>> reference_name("cdg"), reference_name("smoothed")
    ('CDG', 'the smoothed gradient')
    """
    names = {"cdg": "CDG", "smoothed": "the smoothed gradient", "reference": "the reference"}
    return names.get(str(reference), str(reference).replace("_", " "))


def family(estimator: str, surrogate: object, label: str) -> str:
    """The family an estimator is drawn and talked about in.

    cdg, differences (finite ones, along some coordinates or directions), ste, rounding (stochastic
    rounding), matched (analytic: the smoothing's own derivative), backward (other ways to use a
    surrogate), local, nes, directions (NES that chooses its directions, or where or when it
    samples), signs (score functions and differences of sampled
    binary weights), relaxed (backpropagation through them), search (a whole one) or other: whatever
    FAMILIES does not know, such as an installed package's.

    >>> family("ste", "matched", "matched STE"), family("nes_local", None, "local NES (2 passes)")
    ('matched', 'local')
    >>> family("ste_mean_nes", "matched", "NES ahead of the STE"), family("wobble", None, "wobble")
    ('directions', 'other')
    """
    name = str(estimator).lower()
    if name == "ste" and "matched" in f"{surrogate} {label}".lower():
        return "matched"
    return next((kind for kind, members in FAMILIES.items() if name in members), "other")


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
    ranks = {name: rank for rank, name in enumerate(FAMILIES)}

    def position(method: str) -> tuple[Any, ...]:
        row: dict[str, Any] = dict(table.loc[method])
        surrogate = str(row["surrogate"]).partition("(")[0]
        ste = STE_ORDER.index(surrogate) if surrogate in STE_ORDER else len(STE_ORDER)
        name = str(row["estimator"])
        noise = NOISES.index(name) if name in NOISES else len(NOISES)
        kin = FAMILIES[row["family"]]
        place = kin.index(name) if name in kin else -1
        size = as_float(row["population"])
        natural = [(1, float(p), "") if re.fullmatch(r"[\d.]*\d", p) else (0, 0.0, p)
                   for p in re.split(r"(\d[\d.]*)", method.replace(",", ""))]  # fmt: skip
        known_size = 0.0 if math.isnan(size) else size
        return ranks[row["family"]], noise, place, ste, known_size, natural

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
    """The conditions of an annotated table, in order.

    Networks are ordered by their problem columns, as :data:`problems.NETWORK` lists them, and by
    numeric settings; everything else by student, moved layers and activation. Students come by
    their training, layers by depth, activations by their bits, numbers by size; for the rest the
    first rows decide.
    """
    known = ["student", "step_layers", "activation"]
    if is_network(frame):
        known = [c for c in condition_columns(frame) if c not in known[:1]] + known[:1]
    known = [c for c in known if c in frame]
    by_condition = frame.groupby("condition", sort=False)
    # A column that has been put elsewhere (on the x-axis, side by side) decides nothing.
    alike = [c for c in known if by_condition[c].nunique(dropna=False).max() == 1]
    first = frame.drop_duplicates("condition").set_index("condition")[alike]
    places = {
        str(name): tuple(position(c, row[c]) for c in alike) for name, row in first.iterrows()
    }
    return sorted(places, key=lambda name: places[name])
