"""`gradlab compare`: a table of estimators in one setting, or where two studies differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from gradlab import cli, estimators
from gradlab.estimators.about import ABOUT

Call = Callable[..., tuple[int, str, str]]
QUICK = ("--num-dim", 2, "--inits", 3, "objective.batch_size=64", "objective.depth=2",
         "settings.reference_passes=4")  # fmt: skip


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Calls the command in an empty folder; exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["compare", *(str(argument) for argument in arguments)])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


def table(text: str) -> list[list[str]]:
    """The words of the lines of the first table."""
    lines = text.partition("\n\n")[0].splitlines()
    return [line.split() for line in lines[3:]]


def test_a_narrow_table_fits_and_explains_its_letters(call: Call) -> None:
    status, text, errors = call(*QUICK, "--estimators", "ste,nes:population=20,cdg")
    assert status == 0
    assert errors == ""
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("Hidden layers:\n")
    assert {row[0] for row in table(text)} == {"STE", "NES", "CDG"}
    words = " ".join(text.split())
    for name in ("ste", "nes", "cdg"):
        assert ABOUT[name].unbiased_for in words
    assert "smoothed gradient (σ = 0.1): num_dim 2, depth 2, batches of 64, real" in words
    assert "n = 3 inits" in words


def test_a_wide_table_has_the_words_in_its_lines(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, text, _ = call(*QUICK, "--estimators", "spsa:population=20")
    assert "unbiased for" in text.splitlines()[1]
    assert f"SPSA 20     {ABOUT['spsa'].unbiased_for} " in text
    assert "Unbiased for (a)" not in text


def test_the_numbers_are_those_of_a_sweep(call: Call, tmp_path: Path) -> None:
    from gradlab import sweep

    status, text, _ = call(*QUICK, "--estimators", "ste,cdg", "--json")
    assert status == 0
    found = json.loads(text)
    assert found["setting"]["objective"]["num_dim"] == 2
    assert found["left_out"] == {}
    (tmp_path / "own.toml").write_text("""
name = "own"
study = "gradient_quality"
inits = 3
[objective]
name = "teacher_student"
num_dim = 2
batch_size = 64
depth = 2
[settings]
reference = "smoothed"
reference_passes = 4
[[estimators]]
name = "ste"
""")
    summary = sweep.run(sweep.read_spec("own.toml"), tmp_path, jobs=1)
    with sweep.Store(summary.folder / "store.sqlite") as store:
        rows = store.table("gradient_quality")
    for layer, group in rows.groupby("layer"):
        (row,) = [r for r in found["table"] if (r["estimator"], r["layer"]) == ("ste", layer)]
        assert row["cosine"] == pytest.approx(group["cosine"].mean(), abs=1e-12)
        assert row["low"] == pytest.approx(group["cosine"].min(), abs=1e-12)  # of three inits
        assert row["norm_ratio"] == pytest.approx(group["norm_ratio"].mean())
        assert (row["forward_passes"], row["backward_passes"], row["n"]) == (1, 1, 3)


def test_rows_come_best_or_cheapest_first(call: Call) -> None:
    chosen = "nes:population=[20,40],cdg,ste"
    _, text, _ = call(*QUICK, "--estimators", chosen, "--json")
    values = [r["cosine"] for r in json.loads(text)["table"]]
    assert values == sorted(values, reverse=True)
    assert len(values) == 4 * 5  # five groups of layers
    _, text, _ = call(*QUICK, "--estimators", chosen, "--sort", "passes", "--json")
    passes = [r["forward_passes"] for r in json.loads(text)["table"]]
    assert passes == sorted(passes)
    assert passes[0] == 1


def test_each_layer_has_a_table_and_the_file_has_all(call: Call) -> None:
    status, text, errors = call(*QUICK, "--estimators", "ste", "--layer", "each", "--csv", "t.csv")
    assert status == 0
    assert errors == "t.csv\n"
    titles = [line for line in text.splitlines() if line.startswith(("Layer", "Hidden", "All"))]
    assert titles == ["Layer 1:", "Layer 2:", "Layer 3:", "Hidden layers:", "All layers:"]
    written = pd.read_csv("t.csv")
    assert sorted(written["layer"]) == ["all", "hidden", *(f"layers.{i}.weight" for i in range(3))]
    assert set(written["unbiased_for"]) == {ABOUT["ste"].unbiased_for}
    _, text, _ = call(*QUICK, "--estimators", "ste", "--layer", "2")
    assert text.startswith("Layer 2:\n")


@pytest.mark.parametrize("weight", ["real", "binary"])
def test_all_estimators_are_compared_or_said_to_be_left_out(call: Call, weight: str) -> None:
    arguments = [each for each in QUICK if each != "settings.reference_passes=4"]
    status, text, _ = call(*arguments, "--inits", 1, "--weight", weight, "--json")
    assert status == 0
    found = json.loads(text)
    measured = {row["estimator"] for row in found["table"]}
    left_out = {name.split()[0] for name in found["left_out"]}
    assert measured | left_out == set(estimators.names())
    assert ("disarm" in measured) == (weight == "binary")
    assert ("nes_local" in measured) == (weight == "real")
    assert (
        found["setting"]["settings"]["reference"] == {"real": "smoothed", "binary": "cdg"}[weight]
    )
    assert all(row["low"] is None for row in found["table"])  # one init has no interval


def test_a_converged_student_is_trained_first(call: Call) -> None:
    found = [
        json.loads(call(*QUICK, "--estimators", "ste", "--student", state, "student.steps=3",
                        "student.batch_size=32", "--json")[1])
        for state in ("fresh", "converged")
    ]  # fmt: skip
    assert found[1]["setting"]["student"]["steps"] == 3
    assert found[0]["table"][0]["cosine"] != found[1]["table"][0]["cosine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--estimators", "stee"], "unknown estimator 'stee': did you mean 'ste'?"),
        (["--estimators", "nes:popluation=3"], "did you mean 'population'?"),
        (["--estimators", "nes:population"], "write key=value"),
        (["--estimators", "nes:population=0"], "estimators.nes: population"),
        (["--estimators", "ste,arm"], "arm draws the signs of binary weights"),
        (["--num-dim", "0"], "invalid value for '--num-dim'"),
        (["--num-dim", "5000"], "invalid value for '--num-dim'"),
        (["--inits", "0"], "invalid value for '--inits'"),
        (["objective.batch_size=0"], "batch_size is 0"),
        (["--weight", "binry"], "did you mean 'binary'?"),
        (["--student", "mid"], "unknown state 'mid'"),
        (["--layer", "9"], "unknown layer '9'. Valid: 1, 2, 3, 4, all, each, hidden."),
        (["--sort", "price"], "unknown order 'price'. Valid: cosine, passes, seconds."),
        (["objective.num_dim=[2,4]", "--estimators", "ste"], "measures in one setting"),
        (["objective=x"], "objective should be"),
        (["study=loss_decrease"], "unknown key in [settings] 'reference'"),
        (["one"], "compare takes two studies, or none"),
        (["one", "two", "three"], "compare takes two studies, or none"),
        (["one", "inits=2"], "compare takes two studies, or none"),
        (["one", "two", "--num-dim", "4"], "--num-dim is for comparing estimators"),
        (["--tolerance", "0.1"], "--tolerance is for comparing two studies"),
        (["one", "two"], "unknown study in results 'one'"),
    ],
)
def test_mistakes_are_one_sentence(call: Call, arguments: list[str], words: str) -> None:
    status, text, errors = call(*arguments)
    assert (status, text) == (2, "")
    assert len(errors.splitlines()) == 1
    assert errors.startswith("gradlab: ")
    assert words in errors


def test_other_objectives_are_referred_elsewhere(call: Call) -> None:
    status, _, errors = call("--estimators", "ste", "study=trajectory", "settings={steps=1}")
    assert status == 2
    assert "write a sweep for another study" in errors
