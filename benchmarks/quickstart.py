"""How long does the quickstart take from nothing to the report?

``gradlab run quickstart`` in a new process, into an empty folder, with two workers: wall seconds,
and where they went. An estimator's seconds are those of its estimates alone (table
``loss_decrease``, every estimate once; a nested NES population has its share of the one pass that
served all, so the rows of one cell must not be added up); a cell's seconds are everything it did in
its worker. Bar: below 300 seconds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

from gradlab.sweep.store import FILE, Store

QUICK = [
    "inits=1",
    "batches=1",
    "objective.num_dim=[2, 4]",
    "objective.batch_size=2048",
    "estimators.nes.population=[20, 100]",
]


def main() -> int:
    """Measure once: a run of minutes has no need of rounds."""
    parser = _common.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="workers [2]")
    options = parser.parse_args()
    overrides = QUICK if options.quick else []
    overrides = [*overrides, *([f"objective.device={options.device}"] * (options.device != "cpu"))]
    with tempfile.TemporaryDirectory() as folder:
        gradlab = [sys.executable, "-m", "gradlab"]
        place = ["--results", folder]
        clock = time.perf_counter()
        subprocess.run(
            [*gradlab, "run", "quickstart", *overrides, "-j", str(options.jobs), *place],
            check=True,
        )
        wall = time.perf_counter() - clock
        clock = time.perf_counter()
        subprocess.run([*gradlab, "report", "quickstart", *place], check=True)
        report = time.perf_counter() - clock
        with Store(Path(folder) / "quickstart" / FILE) as store:
            results = measured(store)
    results |= {"wall_seconds": wall, "seconds_of_the_report_drawn_again": report}
    print(f"{results['cells']} cells, {wall:.1f} s ({report:.1f} s to draw the report again)")
    for label, seconds in results["estimate_seconds"].items():
        print(f"{seconds:8.1f} s  {label}")
    return _common.finish(
        "quickstart", options, results, [_common.bar("wall seconds", wall, below=300)]
    )


def measured(store: Store) -> dict[str, Any]:
    """Where the time of a finished store went, busiest first."""
    cells = [cell for cell in store.cells() if cell["status"] == "done"]
    by_estimator: dict[str, float] = {}
    by_num_dim: dict[str, float] = {}
    for cell in cells:
        seconds = cell["provenance"]["seconds"]
        name, num_dim = cell["config"]["estimator"]["name"], cell["config"]["objective"]["num_dim"]
        by_estimator[name] = by_estimator.get(name, 0.0) + seconds
        by_num_dim[str(num_dim)] = by_num_dim.get(str(num_dim), 0.0) + seconds
    table = store.table("loss_decrease")
    estimates = table.drop_duplicates(["cell", "label"]).groupby("label")["seconds"].sum()
    return {
        "cells": len(cells),
        "cell_seconds": sum(by_estimator.values()),
        "cell_seconds_by_estimator": _busiest(by_estimator),
        "cell_seconds_by_num_dim": _busiest(by_num_dim),
        "estimate_seconds": _busiest({str(k): float(v) for k, v in estimates.items()}),
    }


def _busiest(seconds: dict[str, float]) -> dict[str, float]:
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


if __name__ == "__main__":
    sys.exit(main())
