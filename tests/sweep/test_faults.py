"""What a sweep survives: killed workers, Ctrl-C, SIGKILL, a full disk, a second run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gradlab import sweep
from gradlab.sweep.store import FILE, Store, StoreError, exists, lock
from tests.sweep.conftest import command

UNREPEATABLE = ["seconds"]


def numbers(folder: Path, table: str = "loss") -> pd.DataFrame:
    with Store(folder / FILE) as store:
        return store.table(table).drop(columns=UNREPEATABLE, errors="ignore")


def wait_for_cells(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until ``count`` cells are stored."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if exists(folder / FILE):
            with Store(folder / FILE) as store:
                if len(store.finished()) >= count:
                    return
        time.sleep(0.05)
    raise AssertionError("no cell finished in time")


@pytest.fixture
def interrupted_run(write_spec: Callable[..., Path], tmp_path: Path):
    """Starts a slow run, sends it a signal once two cells are stored; its stderr and status."""

    def run(signal_number: int, jobs: int) -> tuple[str, int]:
        write_spec()
        process = subprocess.Popen(
            command("run", "tiny.toml", "-j", jobs, "--no-report"), cwd=tmp_path, text=True,
            stderr=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "FAKE_STUDY_SECONDS": "0.3"},
            # A background job's children inherit a SIGINT that is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            wait_for_cells(tmp_path / "results" / "tiny", 2, process)
            # Ctrl-C on a terminal reaches the whole process group.
            if signal_number == signal.SIGINT:
                os.killpg(process.pid, signal_number)
            else:
                process.send_signal(signal_number)
            _, errors = process.communicate(timeout=60)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        return errors, process.returncode

    return run


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_finished_cells_and_says_so_in_one_sentence(
    interrupted_run, tmp_path: Path, jobs: int
) -> None:
    errors, status = interrupted_run(signal.SIGINT, jobs)
    assert status == 1
    # (A slow machine may have written how far it was.)
    lines = [line for line in errors.splitlines() if " left" not in line]
    assert len(lines) == 1, errors
    (line,) = lines
    assert line.startswith("gradlab: interrupted: ")
    assert line.endswith("of 24 cells are done and kept, the same command continues.")
    with Store(tmp_path / "results" / "tiny" / FILE) as store:
        assert 2 <= len(store.finished()) < 24
        assert not store.failed()


def test_ctrl_c_while_a_cell_is_being_stored_is_no_different(
    write_spec: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    keep = Store.save

    def save(self: Store, *arguments: object) -> None:
        keep(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save", save)
    monkeypatch.setenv("FAKE_STUDY_SECONDS", "0.1")
    spec = sweep.read_spec(write_spec())
    with pytest.raises(KeyboardInterrupt, match="interrupted: 1 of 24 cells are done"):
        sweep.run(spec, tmp_path, jobs=2)
    assert capfd.readouterr().err == ""


def test_sigkill_half_way_then_the_next_run_continues_to_equal_tables(
    interrupted_run, write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    _, status = interrupted_run(signal.SIGKILL, 2)
    assert status == -signal.SIGKILL
    folder = tmp_path / "results" / "tiny"
    with Store(folder / FILE) as store:
        before = store.finished()
    time.sleep(1)  # its workers see that the driver is gone
    spec = sweep.read_spec(tmp_path / "tiny.toml")
    summary = sweep.run(spec, tmp_path / "results", jobs=1, progress=False)
    assert summary.done == summary.total == 24
    assert summary.ran == 24 - len(before)
    sweep.run(spec, tmp_path / "whole", jobs=1, progress=False)
    pd.testing.assert_frame_equal(numbers(folder), numbers(tmp_path / "whole" / "tiny"))
    ran = next(folder.glob("scratch/*/ran.txt")).read_text().splitlines()
    assert len(ran) <= 24 + 2  # only the two cells in flight ran twice


def test_only_the_cell_that_always_kills_its_worker_fails(
    write_spec: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = sweep.read_spec(
        write_spec(), ['settings.fault=["kill_once", "kill"]', "objective.num_dim=2", "batches=1",
                       "inits=3", 'estimators=[{name = "cdg"}]'],
    )  # fmt: skip
    summary = sweep.run(spec, tmp_path, jobs=2)
    assert (summary.done, summary.failed) == (5, 1)
    with Store(tmp_path / "tiny" / FILE) as store:
        (failure,) = store.failures()
    assert (failure["config"]["init"], failure["config"]["settings"]["fault"]) == (0, "kill")
    assert "died 3 times" in failure["traceback"]
    assert "a worker died" in capfd.readouterr().err
    ran = next(tmp_path.glob("tiny/scratch/*/ran.txt")).read_text().splitlines()
    # in flight beside the other, it may be stopped before it has written its line
    assert ran.count("0-0-kill") in (2, 3)
    assert ran.count("0-0-kill_once") in (2, 3)  # once more if it was in flight beside the other


def test_the_second_of_two_runs_at_once_is_refused(
    write_spec: Callable[..., Path], tmp_path: Path
) -> None:
    spec = sweep.read_spec(write_spec())
    (tmp_path / "tiny").mkdir()
    with (
        lock(tmp_path / "tiny"),
        pytest.raises(StoreError, match="another `gradlab run` is writing"),
    ):
        sweep.run(spec, tmp_path, jobs=1, progress=False)
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).done == 24


def test_the_lock_of_a_killed_run_dies_with_it(tmp_path: Path) -> None:
    hold = f"""
import time
from pathlib import Path
from gradlab.sweep.store import lock
with lock(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([*command()[:1], "-c", hold], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StoreError), lock(tmp_path):
        pass
    process.kill()
    process.communicate()
    with lock(tmp_path):
        pass


def test_a_disk_that_fills_up_in_mid_run_keeps_the_finished_cells(
    write_spec: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = sweep.read_spec(write_spec())
    keep = Store.save
    saved = []

    def save(self: Store, *arguments: object) -> None:
        keep(self, *arguments)  # type: ignore[arg-type]
        saved.append(arguments[0])
        if len(saved) == 3:  # SQLite itself then says that the disk is full
            (pages,) = self._db.execute("PRAGMA page_count").fetchone()
            self._db.execute(f"PRAGMA max_page_count = {pages}")

    monkeypatch.setattr(Store, "save", save)
    with pytest.raises(StoreError, match=r"no space left for .*cells finished so far are kept"):
        sweep.run(spec, tmp_path, jobs=1, progress=False)
    with Store(tmp_path / "tiny" / FILE) as store:
        assert store.finished() == set(saved)
        assert len(saved) < 24
    monkeypatch.undo()
    assert sweep.run(spec, tmp_path, jobs=1, progress=False).done == 24
