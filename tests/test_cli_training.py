"""The commands train, evaluate and predict, on images that need no download."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from gradlab import cli, data
from gradlab.cli import training as commands
from gradlab.cli.common import print_json
from gradlab.data import Dataset
from gradlab.training import Moment
from tests.training import tiny

SPEC = """
name = "tiny"
threads = 1

[data]
name = "mnist"
validation = 0.5
crop = 0
flip = false

[model]
name = "xnor_mlp"
width = 12
depth = 1

[optimizer]
name = "adam"
lr = 0.01

[loop]
epochs = 2
batch_size = 32
device = "cpu"
ema = 0.9
"""
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    """Calls the command line in an empty folder where MNIST is tiny."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    splits = {"train": (96, 0), "validation": (60, 1), "test": (30, 2)}

    def load(name: str, split: str = "train", **options: Any) -> Dataset:
        data.find(name)
        made = tiny.images(*splits[split])
        return replace(made, name=name, split=split)

    real = data.find

    def find(name: str) -> data.ImageSet:
        return replace(real(name), image_shape=tiny.SHAPE, num_classes=len(tiny.CLASSES))

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(data, "find", find)
    (tmp_path / "tiny.toml").write_text(SPEC)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


@pytest.fixture
def trained(call: Call) -> Path:
    assert call("train", "tiny.toml")[0] == 0
    return Path("results/tiny")


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_the_help_has_an_example(call: Call, command: str) -> None:
    status, text, errors = call(command, "--help")
    assert (status, errors) == (0, "")
    assert f"Example: gradlab {command} " in text


def test_train_prints_the_means_and_leaves_weights_and_a_figure(call: Call) -> None:
    status, text, errors = call("train", "tiny.toml")
    assert status == 0
    assert "mean of last 2 epochs" in text
    assert "test, averaged weights" in text
    lines = errors.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "images/s" in lines[0]
    assert lines[2].startswith("2 epochs trained")
    folder = Path("results/tiny")
    for name in ("weights.safetensors", "learning_curve.png", "learning_curve.svg"):
        assert (folder / name).stat().st_size > 1000
    drawn = pd.read_csv(folder / "learning_curve.csv")
    log = pd.read_csv(folder / "log.csv")
    points = drawn[(drawn["curve"] == "evaluated") & (drawn["quantity"] == "accuracy")]
    assert points["value"].tolist() == log["val_accuracy"].tolist()
    assert b"Draw it again: gradlab train results/tiny" in (
        folder / "learning_curve.svg").read_bytes()  # fmt: skip


def test_train_goes_on_and_ends(call: Call, trained: Path) -> None:
    before = (trained / "checkpoint.safetensors").read_bytes()
    (trained / "learning_curve.png").unlink()
    for spec in ("tiny.toml", trained):
        status, text, errors = call("train", spec)
        assert status == 0
        assert "All epochs were trained before." in errors
        assert "mean of last 2 epochs" in text
    assert (trained / "learning_curve.png").is_file()
    assert (trained / "checkpoint.safetensors").read_bytes() == before


def test_overrides_name_another_run(call: Call) -> None:
    overrides = ["name=other", "loop.epochs=1"]
    status, text, _ = call(
        "train", "tiny.toml", *overrides, "--results", "there", "--json", "--no-report"
    )
    assert status == 0
    found = json.loads(text)
    assert found["epochs"] == 1
    assert found["folder"] == "there/other"
    assert Path(found["weights"]).is_file()
    assert {"train_accuracy", "val_accuracy", "ema_accuracy", "test", "best"} <= set(found)
    assert not (Path("there/other") / "learning_curve.png").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train", "mnist_mpl"], 2, "unknown training 'mnist_mpl': did you mean 'mnist_mlp'"),
        (["train", "none.toml"], 2, "there is no file none.toml"),
        (["train", "tiny.toml", "loop.epoch=3"], 2, "unknown key in [loop] 'epoch': did you mean"),
        (["train", "tiny.toml", "data.name=minst"], 2, "unknown data set 'minst': did you mean"),
        (["train", "tiny.toml", "model.name=xnor_mpl"], 2, "unknown model 'xnor_mpl'"),
        (["train", "tiny.toml", "model.input_shape=[1,28,28]"], 2, "leave it out"),
        (["train", "tiny.toml", "optimizer.name=adem"], 2, "unknown optimizer 'adem'"),
        (["train", "tiny.toml", "schedule.name=cosin"], 2, "unknown schedule 'cosin'"),
        (["train", "tiny.toml", "loop.precision=half"], 2, "'float32' or 'bfloat16', not 'half'"),
        (["train", "tiny.toml", "loop.device=gpu"], 2, "loop.device is 'gpu'"),
        (["evaluate", "tiny"], 2, "unknown run in results 'tiny'. Valid: (none)"),
        (["evaluate", "tiny", "--device", "gpu"], 2, "unknown run in results"),
        (["predict", "tiny", "a.png"], 2, "unknown run in results 'tiny'"),
        (["predict", "tiny"], 2, "missing argument"),
    ],
)
def test_bad_usage_is_one_sentence(
    call: Call, arguments: list[str], status: int, words: str
) -> None:
    found, text, errors = call(*arguments)
    assert (found, text) == (status, "")
    assert words in errors
    assert len(errors.splitlines()) == 1
    assert not Path("results").exists()


def test_another_spec_in_the_folder_is_refused(call: Call, trained: Path) -> None:
    status, text, errors = call("train", "tiny.toml", "loop.epochs=3")
    assert (status, text) == (1, "")
    assert errors == ("gradlab: results/tiny holds a run of another spec, which differs in "
                      "loop.epochs (2, now 3): to start anew give another name (name=…) or another "
                      "folder, or delete that one.\n")  # fmt: skip


def test_divergence_is_a_failure_with_a_figure_of_what_was(call: Call) -> None:
    status, text, errors = call(
        "train", "tiny.toml", "optimizer={name='sgd', lr=0.01}", "loop.epochs=3",
        "switch=[{epoch=3, lr=1e38}]",
    )  # fmt: skip
    assert (status, text) == (1, "")
    assert "no longer a finite number at step" in errors.splitlines()[-1]
    assert "checkpoint of epoch 2 is in results/tiny/checkpoint.safetensors" in errors
    assert Path("results/tiny/learning_curve.png").is_file()
    log = pd.read_csv("results/tiny/log.csv")
    assert log["diverged"].tolist() == [False, False, True]


def test_an_interruption_says_how_to_go_on(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    show = commands.Display.show

    def interrupted(self: commands.Display, moment: Moment) -> None:
        show(self, moment)
        if moment.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(commands.Display, "show", interrupted)
    status, _, errors = call("train", "tiny.toml")
    assert status == 1
    assert errors.splitlines()[-1] == (
        "gradlab: interrupted: 1 of 2 epochs are kept, the same command continues.")  # fmt: skip
    monkeypatch.undo()
    assert not Path("results/tiny/weights.safetensors").exists()


def test_evaluate_says_accuracy_by_class_and_calibration(call: Call, trained: Path) -> None:
    status, text, errors = call("evaluate", "tiny", "--json")
    assert (status, errors) == (0, "")
    found = json.loads(text)
    assert (found["split"], found["examples"], found["data"]) == ("test", 30, "mnist")
    summary = json.loads((trained / "summary.json").read_text())
    assert found["accuracy"] == summary["test"]["accuracy"]
    assert set(found["class_accuracy"]) == set(tiny.CLASSES)
    averaged = json.loads(call("evaluate", trained, "--ema", "--json")[1])
    assert averaged["accuracy"] == summary["ema_test"]["accuracy"]
    text = call("evaluate", trained / "weights.safetensors", "--split", "validation")[1]
    assert "mnist (validation), 60 images: accuracy " in text
    assert "calibration error" in text


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--device", "gpu"], 2, "device is 'gpu'"),
        (["--data", "minst"], 2, "unknown data set 'minst': did you mean 'mnist'"),
        (["--samples", 5], 2, "--samples is for networks with noise ([variational]), and the one"),
        (["--against", "fashion_mnist"], 2, "--against is for networks with noise"),
    ],
)
def test_evaluate_refuses_in_one_sentence(
    call: Call,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[object],
    status: int,
    words: str,
) -> None:
    monkeypatch.setattr("gradlab.data.load", None)  # before any image is read
    found, text, errors = call("evaluate", trained, *arguments)
    assert (found, text) == (status, "")
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_evaluate_refuses_images_of_another_size(
    call: Call, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = data.find
    monkeypatch.setattr(
        "gradlab.data.find", lambda name: replace(find(name), image_shape=(3, 12, 12))
    )
    monkeypatch.setattr("gradlab.data.load", None)
    status, text, errors = call("evaluate", trained, "--data", "cifar10")
    assert (status, text) == (2, "")
    assert "images of cifar10 are (3, 12, 12) (channels, " in errors
    assert "give --data a set of such images" in errors


def test_predict_names_classes(call: Call, trained: Path, tmp_path: Path) -> None:
    given = tiny.images(30, 2)
    np.save("a.npy", given.images.numpy())
    Image.fromarray(given.images[0, 0].numpy()).save("b.png")
    found = json.loads(call("predict", "tiny", "a.npy", "b.png", "--json")[1])
    assert len(found) == 31
    assert found[0]["probabilities"] == pytest.approx(found[30]["probabilities"], abs=1e-6)
    assert (found[30]["input"], found[30]["index"], found[29]["index"]) == ("b.png", 0, 29)
    right = [entry["class"] == tiny.CLASSES[label]
             for entry, label in zip(found, given.labels.tolist(), strict=False)]  # fmt: skip
    accuracy = json.loads(call("evaluate", "tiny", "--json")[1])["accuracy"]
    assert sum(right) / len(right) == pytest.approx(accuracy)

    rows = list(csv.DictReader(io.StringIO(call("predict", "tiny", "a.npy", "--csv")[1])))
    assert [row["class"] for row in rows] == [entry["class"] for entry in found[:30]]
    assert float(rows[3]["left"]) == found[3]["probabilities"]["left"]
    status, text, errors = call("predict", "tiny", "b.png", "--ema")
    assert (status, errors) == (0, "")
    assert any(name in text for name in tiny.CLASSES)


def test_predict_refuses_in_one_sentence(call: Call, trained: Path) -> None:
    np.save("floats.npy", np.zeros((1, 6, 6)))
    Image.new("L", (8, 8)).save("large.png")
    for name, words in (("floats.npy", "are float64"), ("large.png", "8 × 8 pixels"),
                        ("none.png", "does not exist")):  # fmt: skip
        status, text, errors = call("predict", trained, name)
        assert (status, text) == (1, "")
        assert words in errors
        assert len(errors.splitlines()) == 1
    status, _, errors = call("predict", trained, "large.png", "--csv", "--json")
    assert (status, "exclude each other" in errors) == (2, True)


def test_averaged_weights_are_those_of_a_folder(call: Call, trained: Path) -> None:
    np.save("images.npy", tiny.images(3, 5).images.numpy())
    for command in (("evaluate",), ("predict", "images.npy"), ("compress",)):
        name, *inputs = command
        status, text, errors = call(name, trained / "weights.safetensors", *inputs, "--ema")
        assert (status, text) == (2, "")
        assert "--ema chooses among the weights in a run's folder" in errors


def test_json_has_null_for_what_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": float("inf"), "rows": [float("nan"), 0.5], "path": Path("a")})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"loss": None, "rows": [None, 0.5], "path": "a"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROW = {"train_loss": 0.5, "train_accuracy": 0.8, "val_accuracy": 0.75, "images_per_second": 7600.0}


def moments() -> list[Moment]:
    rows = [None, None, None, ROW]
    return [Moment(1, 4, step, 10, row)
            for step, row in zip((1, 5, 10, 10), rows, strict=True)]  # fmt: skip


def test_a_terminal_gets_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = Terminal()
    with commands.Display(4, stream) as display:
        for moment in moments():
            display.show(moment)
            now[0] += 9.0
        display.show(Moment(2, 4, 0, 10, note="torch.compile failed"))
        now[0] = 118.0
        words = display.words()
    # from the first step to the end of the epoch 18 s for 0.9 epochs: 3 more take 60 s
    assert words == ("epoch 1/4, loss 0.5000, accuracy 0.8000, evaluated 0.7500, 7,600 images/s, "
                     "about 1 min left")  # fmt: skip
    assert "25 %" in stream.getvalue()
    assert "torch.compile failed" in stream.getvalue()


def test_elsewhere_an_epoch_is_a_line() -> None:
    stream = io.StringIO()
    with commands.Display(4, stream) as display:
        assert display.words() == "starting"
        for moment in moments():
            display.show(moment)
        display.show(Moment(2, 4, 0, 10, note="a note."))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/4, loss 0.5000")
    assert lines[1] == "a note."
