"""The command line: quick to start, one sentence for every mistake, help with examples."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gradlab
from gradlab import cli

COMMANDS = ["run", "retry", "plan", "status", "failed", "export", "compare", "figures", "report",
            "list", "bench", "data", "train", "evaluate", "predict", "compress",
            "diagnose"]  # fmt: skip
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Calls the command line in an empty folder; exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


def test_help_names_every_command_and_an_example(call: Call) -> None:
    status, text, errors = call("--help")
    assert (status, errors) == (0, "")
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "Example: gradlab run quickstart" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "..." not in text.partition("Commands:")[2]  # no summary is cut short
    assert call() == (0, text, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_an_example(call: Call, command: str) -> None:
    status, text, errors = call(command, "--help")
    assert (status, errors) == (0, "")
    assert f"Example: gradlab {command} " in text
    assert max(map(len, text.splitlines())) <= 80


def test_version(call: Call) -> None:
    assert call("--version") == (0, f"gradlab {gradlab.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum"], "no such command 'rum'"),
        (["run"], "missing argument"),
        (["run", "quickstart", "--job", "2"], "no such option"),
        (["run", "quickstart", "-j", "0"], "invalid value for '--jobs'"),
        (["run", "quickstart", "-j", "two"], "invalid value for '--jobs'"),
        (["run", "quickstart", "--backend", "ray"], "unknown backend 'ray'"),
        (["run", "quikstart"], "unknown sweep 'quikstart': did you mean 'quickstart'"),
        (["run", "nothing.toml"], "there is no file nothing.toml"),
        (["plan", "quickstart", "seed"], "'seed' is no override: write key=value"),
        (["status", "nothing"], "unknown study in results 'nothing'"),
        (["status", "quickstart"], "holds no results: `gradlab run quickstart` makes them"),
        (["list", "estimator"], "unknown kind 'estimator': did you mean 'estimators'"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_sentence_and_status_2(
    call: Call, arguments: list[str], words: str
) -> None:
    status, text, errors = call(*arguments)
    assert (status, text) == (2, "")
    assert errors.startswith("gradlab: ")
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_debug_adds_the_traceback_wherever_it_stands(call: Call) -> None:
    for arguments in (["--debug", "run", "nothing.toml"], ["run", "nothing.toml", "--debug"]):
        status, _, errors = call(*arguments)
        assert status == 2
        assert errors.startswith("Traceback")
        assert errors.splitlines()[-1].startswith("gradlab: there is no file")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("odd"), "gradlab: RuntimeError: odd (run again with --debug for the"),
        (OSError(28, "No space left on device", "x.csv"), "gradlab: x.csv: no space left on"),
        (ValueError("unknown figure 'x'."), "gradlab: unknown figure 'x'."),
    ],
)
def test_what_nobody_foresaw_is_still_one_sentence(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("gradlab.sweep.read_spec", fail)
    status, _, errors = call("plan", "quickstart")
    assert status == 1
    assert errors.startswith(sentence)
    assert len(errors.splitlines()) == 1


def test_ctrl_c_before_any_work_is_one_sentence(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradlab.sweep.read_spec", interrupt)
    assert call("run", "quickstart") == (1, "", "gradlab: interrupted.\n")


@pytest.mark.parametrize("kind", ["estimators", "surrogates", "objectives", "studies"])
def test_list_names_what_is_registered(call: Call, kind: str) -> None:
    known = {"estimators": "nes", "surrogates": "swish_sign", "objectives": "teacher_student",
             "studies": "loss_decrease"}  # fmt: skip
    status, text, _ = call("list", kind)
    assert status == 0
    assert known[kind] in [line.split()[0] for line in text.splitlines()]


def test_list_shows_options_with_their_defaults(call: Call) -> None:
    _, text, _ = call("list", "estimators")
    (line,) = [line for line in text.splitlines() if line.startswith("cdg ")]
    assert "epsilon=0.1" in line
    assert '"epsilon": 0.1' in call("list", "estimators", "--json")[1]
    (line,) = [x for x in call("list", "objectives")[1].splitlines() if x.startswith("teacher")]
    assert "num_dim=…" in line
    assert "seed" not in line
    listed = call("list", "searches")[1].splitlines()
    (place,) = [i for i, line in enumerate(listed) if line.startswith("snes ")]
    assert "sigma=0.1" in listed[place]
    assert "natural gradient" in listed[place + 1]
    assert "quickstart\n" in call("list", "sweeps")[1]
    assert "best_loss_decrease\n" in call("list", "figures")[1]


def test_help_imports_nothing_heavy() -> None:
    check = """
import sys
from gradlab.cli import main
try:
    main(["run", "--help"])
except SystemExit:
    heavy = {"torch", "pandas", "numpy", "matplotlib", "joblib"} & set(sys.modules)
    sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -m gradlab --help | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout[:6], done.stderr) == ("Usage:", "")
