"""Running a sweep: only what is missing, the same numbers for any number of workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gradlab import sweep
from gradlab.sweep import provenance
from gradlab.sweep.run import retry, stale_cells
from gradlab.sweep.spec import SpecError
from gradlab.sweep.store import FILE, Store, StoreError
from gradlab.sweep.worker import run_cell


@pytest.fixture
def spec(write_spec: Callable[..., Path]) -> sweep.Spec:
    return sweep.read_spec(write_spec())


def ran(folder: Path) -> int:
    return len(next(folder.glob("tiny/scratch/*/ran.txt")).read_text().splitlines())


def table(folder: Path) -> pd.DataFrame:
    with Store(folder / "tiny" / FILE) as store:
        return store.table("loss").drop(columns="seconds")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_numbers_are_the_same_for_one_worker_and_for_two(
    write_spec: Callable[..., Path], tmp_path: Path, threads: int
) -> None:
    spec = sweep.read_spec(write_spec(), [f"threads={threads}", "batches=1", "inits=1"])
    for jobs in (1, 2):
        sweep.run(spec, tmp_path / str(jobs), jobs=jobs, progress=False)
    one, two = table(tmp_path / "1"), table(tmp_path / "2")
    pd.testing.assert_frame_equal(one, two, check_exact=True)
    assert set(one["threads"]) == {threads}


def test_the_number_of_torch_threads_comes_back(spec: sweep.Spec, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cell = sweep.expand(spec)[0]
        assert run_cell(cell.hash, cell.config, str(tmp_path)).tables["loss"][0]["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_running_again_does_only_what_is_missing(spec: sweep.Spec, tmp_path: Path) -> None:
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).ran == 24
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).ran == 0
    spec.inits = 3
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).ran == 12
    assert ran(tmp_path) == 36


def test_tables_hold_the_cells_of_the_last_spec_in_its_order(
    spec: sweep.Spec, tmp_path: Path
) -> None:
    sweep.run(spec, tmp_path, jobs=2, progress=False)
    whole = table(tmp_path)
    cells = [cell.hash[:12] for cell in sweep.expand(spec)]
    assert list(dict.fromkeys(whole["cell"])) == cells
    spec.inits = 1
    sweep.run(spec, tmp_path, jobs=1, progress=False)
    part = table(tmp_path)
    pd.testing.assert_frame_equal(part, whole[whole["init"] == 0].reset_index(drop=True))


def test_a_failed_cell_keeps_its_traceback_and_runs_again_only_when_asked(
    write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec = sweep.read_spec(write_spec(), ["settings.fault=raise", "settings.fault_init=1"])
    summary = sweep.run(spec, tmp_path, jobs=1, progress=False)
    assert (summary.ran, summary.done, summary.failed) == (12, 12, 12)
    with Store(tmp_path / "tiny" / FILE) as store:
        failures = store.failures()
    assert all("this cell fails on purpose" in failure["traceback"] for failure in failures)
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).ran == 0
    assert ran(tmp_path) == 24
    retry(tmp_path / "tiny", [failures[0]["hash"][:12]], jobs=1, progress=False)
    assert ran(tmp_path) == 25
    assert retry(tmp_path / "tiny", jobs=1, progress=False).failed == 12
    assert ran(tmp_path) == 37
    with pytest.raises(SpecError, match="'zz' fits no cell of this study"):
        retry(tmp_path / "tiny", ["zz"], jobs=1, progress=False)


def test_a_retry_that_succeeds_replaces_the_failure(spec: sweep.Spec, tmp_path: Path) -> None:
    cell = sweep.expand(spec)[0]
    sweep.run(spec, tmp_path, jobs=1, progress=False)
    with Store(tmp_path / "tiny" / FILE, writable=True) as store:
        whole = store.table("loss")
        store.save_failure(cell.hash, cell.config, "made up")
        assert len(store.table("loss")) == len(whole) - 2
    summary = retry(tmp_path / "tiny", jobs=1, progress=False)
    assert (summary.ran, summary.done, summary.failed) == (1, 24, 0)
    assert len(table(tmp_path)) == len(whole)


def test_a_library_that_calls_exit_is_a_failure_not_the_end(
    write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec = sweep.read_spec(write_spec(), ["settings.fault=exit"])
    summary = sweep.run(spec, tmp_path, jobs=1, progress=False)
    assert (summary.done, summary.failed) == (12, 12)


def test_warnings_are_counted_and_kept_but_never_printed(
    write_spec: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = sweep.read_spec(write_spec(), ["settings.fault=warn"])
    summary = sweep.run(spec, tmp_path, jobs=1)
    assert summary.warnings == {"RuntimeWarning: overflow in a made-up place": 12}
    assert "overflow" not in capfd.readouterr().err


def test_numbers_that_are_not_finite_are_stored_as_missing(
    write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec = sweep.read_spec(write_spec(), ["settings.fault=infinite"])
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).failed == 0
    assert table(tmp_path)["loss_decrease"].isna().all()


def test_provenance_names_the_code_and_not_the_host(spec: sweep.Spec, tmp_path: Path) -> None:
    import platform

    sweep.run(spec, tmp_path, jobs=1, progress=False)
    with Store(tmp_path / "tiny" / FILE) as store:
        cells = store.cells()
        assert stale_cells(store) == []
    facts = cells[0]["provenance"]
    assert {"gradlab", "code", "commit", "torch", "python", "machine", "started", "seconds"} <= set(
        facts
    )
    environment = (tmp_path / "tiny" / "environment.json").read_text()
    assert json.loads(environment)["code"] == facts["code"]
    host = platform.node()
    assert not host or host not in json.dumps(cells) + environment


def test_cells_of_other_code_are_stale_and_still_count(
    spec: sweep.Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep.run(spec, tmp_path, jobs=1, progress=False)
    monkeypatch.setattr("gradlab.sweep.provenance.code_digest", lambda: "other")
    with Store(tmp_path / "tiny" / FILE) as store:
        assert len(stale_cells(store)) == 24
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).ran == 0
    assert retry(tmp_path / "tiny", stale=True, jobs=1, progress=False).ran == 24


def test_results_in_an_impossible_place_are_refused_before_any_work(
    spec: sweep.Spec, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"results cannot be written to .*choose another folder"):
        sweep.run(spec, tmp_path / "file", jobs=1, progress=False)


def test_dask_without_distributed_says_what_to_install(
    spec: sweep.Spec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SpecError, match=r"pip install 'gradlab\[dask\]'"):
        sweep.run(spec, tmp_path, jobs=2, backend="dask", progress=False)


def test_finished_cells_of_other_code_are_counted(
    write_spec: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = sweep.read_spec(write_spec(), ["inits=1"])
    first = sweep.run(spec, tmp_path, jobs=1, progress=False)
    assert first.stale == 0
    monkeypatch.setattr(provenance, "code_digest", lambda: "0" * 12)
    second = sweep.run(spec, tmp_path, jobs=1, progress=False)
    assert (second.ran, second.stale) == (0, first.total)
