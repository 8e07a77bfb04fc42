"""Sweeps: read a spec, expand it to cells, run what is missing, keep every finished cell.

- :mod:`~gradlab.sweep.spec` reads a TOML spec, with ``key=value`` overrides;
- :mod:`~gradlab.sweep.cells` is the identity of a cell;
- :mod:`~gradlab.sweep.expansion` checks a spec and turns it into cells, every default filled in;
- :mod:`~gradlab.sweep.plan` says what a sweep will cost before it runs;
- :mod:`~gradlab.sweep.run` drives the workers, :mod:`~gradlab.sweep.worker` is what they do;
- :mod:`~gradlab.sweep.store` keeps the results, one SQLite file per study.

Importing this package imports neither torch, pandas nor joblib: ``gradlab status`` and
``gradlab figures`` stay quick.
"""

from __future__ import annotations

from gradlab.sweep.cells import Cell
from gradlab.sweep.expansion import expand, read_spec
from gradlab.sweep.plan import Plan, plan
from gradlab.sweep.run import Summary, run
from gradlab.sweep.spec import Spec, SpecError
from gradlab.sweep.store import Store, StoreError

__all__ = [
    "Cell",
    "Plan",
    "Spec",
    "SpecError",
    "Store",
    "StoreError",
    "Summary",
    "expand",
    "plan",
    "read_spec",
    "run",
]
