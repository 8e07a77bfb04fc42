"""`gradlab diagnose`: a network from a file, its table in 80 columns, its folder, its errors."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gradlab import cli

Call = Callable[..., tuple[int, str, str]]

NETWORK = """
import torch
from torch import nn
from beside import WIDTH


class Sign(nn.Module):
    def forward(self, x):
        return torch.sign(x)


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, WIDTH), Sign(), nn.Linear(WIDTH, 3)).eval()
    inputs = torch.randn(48, 4)
    return model, nn.CrossEntropyLoss(), (inputs, inputs[:, :3].argmax(1))


def smooth():
    model, loss, batch = build()
    return nn.Sequential(model[0], model[2]), loss, batch


def failing():
    raise KeyError("no such file")


def short():
    return build()[:2]


WORD = "build"
"""
QUICK = ("--passes", 400, "--seconds", 600, "--coordinates", 12)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Calls the command line beside a network; exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("network.py").write_text(NETWORK)
    Path("beside.py").write_text("WIDTH = 6\n")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["diagnose", *(str(argument) for argument in arguments)])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        sys.modules.pop("beside", None)
        return exit_.value.code, printed.out, printed.err

    return run


def test_help_has_an_example_and_fits(call: Call) -> None:
    status, text, errors = call("--help")
    assert (status, errors) == (0, "")
    assert "Example: gradlab diagnose network.py:build" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_network_gets_its_table_its_words_and_its_folder(call: Call) -> None:
    path = list(sys.path)
    status, text, errors = call("network.py:build", *QUICK, "--estimator", "own", "--estimator",
                                "hardtanh")  # fmt: skip
    assert status == 0
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["layer,", "estimator", "cos", "CDG", "cos", "smoothed", "norm",
                                "decrease", "passes"]  # fmt: skip
    layers = [line.strip() for line in lines if re.fullmatch(r"\d( \(exact\))? *", line)]
    assert layers == ["0", "2 (exact)"]
    assert "  own backward" in text
    assert "Judged on one batch of 48 examples." in " ".join(text.split())
    folder = Path("diagnosis")
    assert errors.split() == [str(folder / name) for name in
                              ("table.csv", "diagnosis.png", "recommendation.txt")]  # fmt: skip
    table = pd.read_csv(folder / "table.csv")
    assert list(table["estimator"].unique()) == ["own backward", "STE hardtanh"]
    cosine = table.query("reference == 'cdg' and layer == '0.weight'")["cosine"].iloc[1]
    assert f"{cosine:.2f} ±" in text
    assert (folder / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    words = (folder / "recommendation.txt").read_text()
    assert " ".join(words.split()) in " ".join(text.split())
    assert sys.path == path


def test_json_and_another_batch_and_folder(call: Call) -> None:
    inputs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    np.savez("other.npz", inputs=inputs, targets=np.arange(20) % 3)
    status, text, _ = call("network.py:short", *QUICK, "--estimator", "own", "--batch",
                           "other.npz", "--out", "x/y", "--layer", "0", "--json")  # fmt: skip
    assert status == 0
    found = json.loads(text)
    assert found["settings"]["examples"] == 20
    assert {row["layer"] for row in found["table"]} == {"0.weight"}
    zero = found["table"][0]
    assert zero["cosine"] is None
    assert zero["status"].startswith("the estimate is zero")
    assert found["files"][0] == str(Path("x/y/table.csv"))
    assert Path("x/y/table.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["network.py"], 2, "network.py names no function: write FILE:FUNCTION"),
        (["nothing.py:build"], 2, "there is no file nothing.py"),
        (["network.py:biuld"], 2, "unknown function in network.py 'biuld': did you mean 'build'"),
        (["network.py:WORD"], 2, "unknown function in network.py 'WORD'"),
        (["network.py:short"], 2, "network.py:short returns tuple: return (model, loss_fn, batch)"),
        (["network.py:failing"], 1, "network.py:failing fails (KeyError: no such file)"),
        (["broken.py:build"], 1, "broken.py fails when imported (ZeroDivisionError: division"),
        (["notes.txt:build"], 2, "notes.txt is no Python file"),
        (["network.py:smooth"], 2, "the model has no binary operation that depends on"),
        (["network.py:build", "--layer", "1"], 2, "the layer '1' has no weight of two or more"),
        (["network.py:build", "--layer", "9"], 2, "unknown layer '9'"),
        (["network.py:build", "--estimator", "sle"], 2, "unknown estimator 'sle'"),
        (["network.py:build", "--seconds", "0"], 2, "max_seconds is 0.0: give a finite number"),
        (["network.py:build", "--batch", "none.npz"], 2, "--batch: none.npz cannot be read"),
        (["network.py:build", "--batch", "notes.txt"], 2, "does not hold the arrays inputs and"),
        (["network.py:build", "--batch", "half.npz"], 2, "does not hold the arrays inputs and"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(
    call: Call, arguments: list[str], status: int, words: str
) -> None:
    Path("broken.py").write_text("1 / 0\n")
    Path("notes.txt").write_text("nothing\n")
    np.savez("half.npz", inputs=np.zeros(3))
    found, text, errors = call(*arguments)
    assert (found, text) == (status, "")
    assert errors.startswith("gradlab: ")
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert not Path("diagnosis").exists()
