"""The commands that run sweeps and read their results, on the fake study."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gradlab import cli
from gradlab.sweep.store import FILE, Store

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    write_spec: Callable[..., Path],
) -> Call:
    """Calls the command line in a folder with tiny.toml; exit status, stdout and stderr."""
    write_spec()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


def test_run_stores_tables_and_says_where_they_are(call: Call, tmp_path: Path) -> None:
    status, text, errors = call("run", "tiny.toml", "-j", 1, "--no-report")
    assert (status, text) == (0, "")
    assert "24 cells run in " in errors
    assert "24 of 24 done." in errors
    assert f"tables:  {Path('results/tiny/tables')}" in errors
    csv = pd.read_csv(tmp_path / "results/tiny/tables/loss.csv")
    parquet = pd.read_parquet(tmp_path / "results/tiny/tables/loss.parquet")
    assert len(csv) == len(parquet) == 48
    assert csv["loss_decrease"].tolist() == parquet["loss_decrease"].tolist()
    status, _, errors = call("run", "tiny.toml", "-j", 1, "--no-report")
    assert status == 0
    assert errors.startswith("0 cells run")


def test_run_writes_the_report_of_what_the_store_holds(call: Call, tmp_path: Path) -> None:
    status, _, errors = call("run", "tiny.toml", "inits=1", "-j", 1)
    assert status == 0
    page = Path("results/tiny/report.html")
    assert f"report:  {page}\n" in errors
    assert "<html" in (tmp_path / page).read_text()
    assert (tmp_path / "results/tiny/environment.json").is_file()
    (tmp_path / page).unlink()
    assert call("report", "tiny")[0] == 0
    assert (tmp_path / page).is_file()


def test_plan_before_and_after(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlab.studies.seconds_per_forward_pass", lambda cell: 45.0)
    status, text, _ = call("plan", "tiny.toml", "-j", 2)
    assert status == 0
    assert max(map(len, text.splitlines())) <= 80
    # 24 cells of two passes of 45 s each, on two workers that take three seconds to start
    assert "24 cells to run: about 18 min 3 s on 2 workers, about " in text
    assert not Path("results").exists()
    call("run", "tiny.toml", "-j", 1, "--no-report")
    _, text, _ = call("plan", "tiny.toml", "inits=3", "--json", "-j", 1)
    planned = json.loads(text)
    assert sum(group["missing"] for group in planned["groups"]) == 12
    assert sum(group["done"] for group in planned["groups"]) == 24
    assert 0 < planned["seconds"] < 60  # the store's own seconds, not 45 per pass
    assert call("plan", "tiny.toml")[1].endswith("Nothing is missing.\n")


def test_status_failed_and_retry(call: Call, tmp_path: Path) -> None:
    status, _, errors = call(
        "run", "tiny.toml", "settings.fault=raise", "-j", 1, "--no-report", "--results", "there"
    )
    study = Path("there/tiny")
    assert status == 1
    assert errors.splitlines()[-1] == (
        f"gradlab: 12 cells failed: `gradlab failed {study}` shows why, `gradlab retry {study}` "
        "runs them again."
    )
    _, text, _ = call("status", "tiny", "--results", "there")
    assert text.splitlines()[-1].split() == ["total", "24", "12", "12", "0"]
    assert sum(g["failed"] for g in json.loads(call("status", study, "--json")[1])) == 12
    _, text, _ = call("failed", study)
    assert text.count("RuntimeError: this cell fails on purpose") == 12
    command = next(line for line in text.splitlines() if line.startswith("Run it again: "))
    words = command.removeprefix("Run it again: gradlab ").split()
    status, _, errors = call(*words, "-j", 1, "--no-report")
    assert status == 1
    assert errors.startswith("0 cells run")
    (ran,) = (tmp_path / study).glob("scratch/*/ran.txt")
    assert len(ran.read_text().splitlines()) == 25
    assert len(json.loads(call("failed", study, "--json")[1])) == 12


def test_status_lists_cells_of_other_code(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    call("run", "tiny.toml", "inits=1", "batches=1", "-j", 1, "--no-report")
    assert call("status", "tiny", "--stale")[1] == (
        "0 of the finished cells were made by other code.\n"
    )
    monkeypatch.setattr("gradlab.sweep.provenance.code_digest", lambda: "other")
    _, text, _ = call("status", "tiny.toml", "--stale")
    assert len(text.splitlines()) == 7
    assert "ste surrogate=steep" in text


def test_compare_says_what_differs_and_by_how_much(call: Call, tmp_path: Path) -> None:
    for results in ("one", "two"):
        call("run", "tiny.toml", "inits=1", "-j", 1, "--no-report", "--results", results)
    assert call("compare", "one/tiny", "two/tiny") == (0, "36 rows in both, all the same.\n", "")
    with Store(tmp_path / "two/tiny" / FILE, writable=True) as store:
        cell = store.cells()[0]
        rows = store.table("loss", [cell["hash"]]).drop(columns="cell").to_dict("records")
        rows[1]["loss_decrease"] *= 1 + 1e-6
        store.save(cell["hash"], cell["config"], {"loss": rows}, cell["provenance"])
    status, text, _ = call("compare", "one/tiny", "two/tiny")
    assert status == 1
    assert "diagnostics.number of rows: 1 of 12 rows differ\n" in text
    assert "loss.loss_decrease: 1 of 24 rows differ by at most " in text
    assert (
        "(relative 1e-06), for example at num_dim=2, init=0, batch=0, estimator=ste, lr=1" in text
    )
    found = json.loads(call("compare", "one/tiny", "two/tiny", "--json")[1])
    assert found["same"] is False
    assert found["differences"][1]["relative"] == pytest.approx(1e-6, rel=1e-3)
    _, text, _ = call("compare", "one/tiny", "two/tiny", "--tolerance", 1e-5)
    assert "loss.loss_decrease" not in text
    call("run", "tiny.toml", "-j", 1, "--no-report", "--results", "two")
    status, text, _ = call("compare", "one/tiny", "two/tiny")
    assert status == 1
    assert f"12 cells only in {Path('two/tiny')}" in text


def test_damaged_results_are_named_in_one_sentence(call: Call, tmp_path: Path) -> None:
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny" / FILE).write_text("no database at all " * 100)
    for command in ("run", "plan", "status"):
        status, _, errors = call(command, "tiny.toml")
        assert status == 1
        assert "store.sqlite is not a store of gradlab: move it away" in errors
        assert len(errors.splitlines()) == 1


def test_results_in_the_way_of_a_file(call: Call, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    status, _, errors = call("run", "tiny.toml")
    assert status == 1
    assert "results cannot be written to results" in errors
    assert len(errors.splitlines()) == 1


def test_reading_results_never_imports_torch(call: Call, tmp_path: Path) -> None:
    call("run", "tiny.toml", "inits=1", "-j", 1, "--no-report")
    check = """
import sys
from gradlab.cli import main
for command in ("status", "failed", "export", "figures", "report"):
    try:
        main([command, "tiny"])
    except SystemExit as done:
        if done.code or "torch" in sys.modules:
            sys.exit(f"{command}: {done.code}, torch {'torch' in sys.modules}")
"""
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
