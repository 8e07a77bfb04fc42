"""How long does the main study take at full size?

``gradlab run lr_by_num_dim`` at num_dim 2 to 16 on two workers: three inits, ten batches of 160,000
examples, NES with 500, 5,000 and 50,000 samples, and all other estimators. The time is that from
the start of the first cell to the end of the last, as the store has it; what is missing of the
sweep is run first (``--results``, as of ``gradlab run``), so run it in one go. num_dim 32 and 64
are predicted from rates measured here (``gradlab plan``), not run. Bar: below 50 minutes.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _common

from gradlab import sweep
from gradlab.sweep.plan import plan
from gradlab.sweep.store import FILE, Store

QUICK = ["inits=1", "batches=1", "objective.batch_size=2048", "estimators.nes.population=[20,100]"]


def main() -> int:
    """Run what is missing, then read the clock of the cells."""
    parser = _common.parser(__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="workers [2]")
    parser.add_argument("--results", type=Path, help="folder of the results [a temporary one]")
    options = parser.parse_args()
    overrides = ["objective.num_dim=[2,4,8,16]", *(QUICK if options.quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        results = options.results or Path(folder)
        command = [sys.executable, "-m", "gradlab", "run", "lr_by_num_dim", *overrides]
        subprocess.run(
            [*command, "-j", str(options.jobs), "--results", str(results), "--no-report"],
            check=True,
        )
        with Store(results / "lr_by_num_dim" / FILE) as store:
            found = measured(store)
        predicted = {}
        for num_dim in (32, 64):
            spec = sweep.read_spec(
                "lr_by_num_dim", [f"objective.num_dim={num_dim}", *overrides[1:]]
            )
            predicted[str(num_dim)] = plan(spec, Path(folder) / "none", options.jobs).seconds
    found["predicted_wall_seconds"] = predicted
    print(f"{found['cells']} cells, {found['wall_seconds'] / 60:.1f} minutes")
    for num_dim, seconds in predicted.items():
        print(f"num_dim {num_dim} would take {seconds / 60:.0f} minutes")
    bar = _common.bar("minutes at num_dim 2 to 16", found["wall_seconds"] / 60, below=50)
    return _common.finish("lr_by_num_dim", options, found, [bar])


def measured(store: Store) -> dict[str, Any]:
    """Wall time from the first start to the last end, and the work by num_dim."""
    starts, ends = [], []
    by_num_dim: dict[str, float] = {}
    code = set()
    for cell in store.cells():
        provenance, num_dim = cell["provenance"], str(cell["config"]["objective"]["num_dim"])
        starts.append(datetime.datetime.fromisoformat(provenance["started"]).timestamp())
        ends.append(starts[-1] + provenance["seconds"])
        by_num_dim[num_dim] = by_num_dim.get(num_dim, 0.0) + provenance["seconds"]
        code.add(provenance["commit"])
    return {
        "cells": len(starts),
        "wall_seconds": max(ends) - min(starts),
        "cell_seconds_by_num_dim": by_num_dim,
        "commits": sorted(code),
    }


if __name__ == "__main__":
    sys.exit(main())
