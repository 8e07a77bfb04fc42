"""How near does local NES come to the smoothed gradient, layer by layer, and for how many passes?

The numbers are those of the shipped sweep ``cost_quality`` (num_dim 32, three sign layers, 160,000
examples, σ = 0.1 on every weight, five inits × five repeats), read from its store, so that they and
the figures are one measurement; what is missing of the sweep is run first. The reference is the
mean of two independent local-NES estimates of 48 passes each, and their cosine its own agreement.

"2 passes" are two noisy passes; the noise-free baseline is one more, and ``forward_passes`` counts
it. Bars: the reference's split-half cosine at least .99 in every layer of every init; mean cosines
of local NES at least .80/.90/.98/.995 with 2 passes and .93 in every layer with 8; the matched STE
at least .98 in layers 1 and 2; |cosine| of weight-space NES 500 below .15 in layer 1.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _common

from gradlab.sweep.run import stale_cells
from gradlab.sweep.store import FILE, Store

if TYPE_CHECKING:
    import pandas as pd

SWEEP = "cost_quality"
QUICK = [
    "inits=2",
    "objective.num_dim=8",
    "objective.batch_size=2048",
    "settings.repeats=2",
    "settings.reference_passes=16",
    "estimators.nes.population=[100, 500]",
]
LAYERS = [f"layers.{layer}.weight" for layer in range(4)]
SHOWN = [
    "local NES (1 pass)",
    "local NES (2 passes)",
    "local NES (8 passes)",
    "matched STE",
    "NES 500",
]


def main() -> int:
    """Run what is missing of the sweep, then read its store."""
    parser = _common.parser(__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="as of gradlab run")
    parser.add_argument("--jobs", "-j", type=int, help="workers [one per core]")
    options = parser.parse_args()
    overrides = [f"threads={options.threads}"] if options.threads != 1 else []
    if options.device != "cpu":
        overrides.append(f"objective.device={options.device}")
    if not options.quick:
        return judge(options, options.results, overrides)
    with tempfile.TemporaryDirectory() as folder:
        return judge(options, Path(folder), [*overrides, *QUICK])


def judge(options: Any, results: Path, overrides: list[str]) -> int:
    """Print every shown estimator and every bar."""
    command = [sys.executable, "-m", "gradlab", "run", SWEEP, *overrides]
    command += ["--results", str(results), "--no-report"]
    command += ["-j", str(options.jobs)] if options.jobs else []
    subprocess.run(command, check=True)
    with Store(results / SWEEP / FILE) as store:
        table = store.table("gradient_quality")
        stale = len(stale_cells(store))
    if stale:
        print(f"note: {stale} cells were made by other code; gradlab retry {SWEEP} --stale")
    reference = agreement(table)
    rows = [summary(table, label) for label in table["label"].unique()]
    print("reference, split-half cosine:", *(f"{reference[layer]:.4f}" for layer in LAYERS))
    for row in rows:
        if row["label"] in SHOWN:
            pairs = zip(row["mean"], row["sd"], strict=True)
            cosines = "  ".join(f"{mean:6.3f} ± {sd:.3f}" for mean, sd in pairs)
            print(f"{row['label']:22s} {row['forward_passes']:4g} forward passes  {cosines}")
    record = {"reference_split_half_cosine": reference, "stale_cells": stale, "estimators": rows}
    return _common.finish("local_nes", options, record, bars(reference, rows))


def agreement(table: pd.DataFrame) -> dict[str, float]:
    """The reference's own split-half cosine, the worst of the inits, per layer."""
    column = table.groupby("layer")["reference_split_half_cosine"]
    if column.apply(lambda values: values.isna().any()).loc[LAYERS].any():
        raise SystemExit("the reference has a layer without a split-half cosine: run it again.")
    return {layer: float(column.min()[layer]) for layer in LAYERS}


def summary(table: pd.DataFrame, label: str) -> dict[str, Any]:
    """Mean and standard deviation of the cosine over inits and repeats, per layer."""
    rows = table[table["label"] == label]
    cosine = rows.groupby("layer")["cosine"]
    absolute = rows["cosine"].abs().groupby(rows["layer"])
    return {
        "label": label,
        "forward_passes": float(rows["forward_passes"].iloc[0]),
        "backward_passes": float(rows["backward_passes"].iloc[0]),
        "inits": int(rows["init"].nunique()),
        "estimates": int(cosine.count()[LAYERS[0]]),
        "layers": LAYERS,
        "mean": [float(cosine.mean()[layer]) for layer in LAYERS],
        "sd": [float(cosine.std()[layer]) for layer in LAYERS],
        "mean_absolute": [float(absolute.mean()[layer]) for layer in LAYERS],
        "seconds_per_estimate": float(rows["seconds"].median()),
    }


def bars(reference: dict[str, float], rows: list[dict[str, Any]]) -> list[_common.Bar]:
    """Every bar of the module's docstring."""
    by_label = {row["label"]: row for row in rows}
    two, eight = by_label["local NES (2 passes)"], by_label["local NES (8 passes)"]
    matched, nes = by_label["matched STE"], by_label["NES 500"]
    found = [
        _common.bar(f"reference, layer {i + 1}, worst init", reference[layer], at_least=0.99)
        for i, layer in enumerate(LAYERS)
    ]
    for i, limit in enumerate((0.80, 0.90, 0.98, 0.995)):
        what = f"local NES, 2 passes, layer {i + 1}"
        found.append(_common.bar(what, two["mean"][i], at_least=limit))
    for i, mean in enumerate(eight["mean"]):
        found.append(_common.bar(f"local NES, 8 passes, layer {i + 1}", mean, at_least=0.93))
    for i in range(2):
        what = f"matched STE, layer {i + 1}"
        found.append(_common.bar(what, matched["mean"][i], at_least=0.98))
    found.append(_common.bar("|NES 500|, layer 1", nes["mean_absolute"][0], below=0.15))
    return found


if __name__ == "__main__":
    sys.exit(main())
