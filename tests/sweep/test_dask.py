"""A sweep on Dask workers gives the same numbers as one here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gradlab import sweep
from gradlab.sweep.store import FILE, Store

pytest.importorskip("distributed", reason="needs the extra gradlab[dask]")
# distributed and tornado deprecate at their own pace
pytestmark = pytest.mark.filterwarnings("ignore")


def test_dask_workers_give_the_same_numbers(
    write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec = sweep.read_spec(write_spec(), ["inits=1"])
    tables = []
    for backend in ("loky", "dask"):
        sweep.run(spec, tmp_path / backend, jobs=1, backend=backend, progress=False)
        with Store(tmp_path / backend / "tiny" / FILE) as store:
            tables.append(store.table("loss").drop(columns="seconds"))
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_a_cell_that_always_kills_its_dask_worker_fails_and_the_others_finish(
    write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec = sweep.read_spec(
        write_spec(), ["settings.fault=kill", "objective.num_dim=2", "batches=1", "inits=3",
                       'estimators=[{name = "cdg"}]'],
    )  # fmt: skip
    summary = sweep.run(spec, tmp_path, jobs=2, backend="dask", progress=False)
    assert (summary.done, summary.failed) == (2, 1)
    with Store(tmp_path / "tiny" / FILE) as store:
        (failure,) = store.failures()
    assert failure["config"]["init"] == 0
    assert "died 3 times" in failure["traceback"]
