"""train, evaluate, predict and compress of a noisy network, on images that need no download."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradlab import data, training, variational
from gradlab.training import uncertainty
from gradlab.training.images import read_images
from tests.test_cli_training import Call, call
from tests.training import tiny

__all__ = ["call"]

SPEC = """
name = "noisy"
threads = 1

[data]
name = "mnist"
crop = 0
flip = false

[model]
name = "fully_connected"
hidden = [8]

[optimizer]
name = "adam"
lr = 0.01

[loop]
epochs = 2
batch_size = 32
device = "cpu"

[variational]
method = { name = "sparse", initial = -3.5, threshold = 1.0 }
"""


METHOD = "variational.method="
OTHERS = {
    "noise": [METHOD + "{name='gaussian_w'}"],
    "gates": [METHOD + "{name='l0', groups='weights', droprate_init=0.999}"],
    "signs": ["model={name='xnor_mlp', width=8, depth=1}"],
}


@pytest.fixture
def noisy(call: Call) -> Path:
    Path("noisy.toml").write_text(SPEC)
    assert call("train", "noisy.toml")[0] == 0
    return Path("results/noisy")


@pytest.fixture
def plain(call: Call) -> Path:
    Path("plain.toml").write_text(SPEC.partition("[variational]")[0].replace("noisy", "plain"))
    assert call("train", "plain.toml")[0] == 0
    return Path("results/plain")


def test_train_tells_the_predictions_apart(noisy: Path, call: Call) -> None:
    status, text, errors = call("train", "noisy.toml")
    assert status == 0
    for words in ("mean weights", "one draw  ", "10 draws", "kept weights"):
        assert words in text
    assert "times fewer weights" in errors
    layers = pd.read_csv(noisy / "layers.csv")
    assert layers[["epoch", "position"]].to_numpy().tolist() == [[1, 0], [1, 1], [2, 0], [2, 1]]
    curves = set(pd.read_csv(noisy / "learning_curve.csv")["curve"])
    assert curves == {"train", "evaluated", "one draw", "kept weights"}


def test_evaluate_says_how_sure_it_is(noisy: Path, call: Call) -> None:
    asked = ("evaluate", "noisy", "--samples", 3, "--against", "fashion_mnist")
    status, text, _ = call(*asked)
    assert status == 0
    assert "mutual" in text
    assert "fashion_mnist told apart, AUROC by score: entropy" in text
    found = json.loads(call(*asked, "--json")[1])
    assert set(found["predictions"]) == {"mean", "sample", "monte_carlo", "pruned"}
    assert found["predictions"]["monte_carlo"]["samples"] == 3
    assert found["predictions"]["mean"]["accuracy"] == found["accuracy"]
    # the very same images cannot be told apart
    assert found["out_of_distribution"]["auroc"]["max_probability"] == pytest.approx(0.5, abs=0.2)


def test_evaluate_gives_the_numbers_of_the_summary(call: Call) -> None:
    Path("noisy.toml").write_text(SPEC)
    assert call("train", "noisy.toml", "seed=7", "data.validation=0.5", "--no-report")[0] == 0
    summary = json.loads(Path("results/noisy/summary.json").read_text())
    found = json.loads(call("evaluate", "noisy", "--json")[1])
    assert found["predictions"] == summary["predictions"]


def test_tables_fit_eighty_columns(
    noisy: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for text in (call("evaluate", "noisy")[1], call("train", "noisy.toml")[1]):
        rows = [line for line in text.splitlines() if line.startswith(("one draw", "kept weights"))]
        assert len(rows) == 2
        assert max(map(len, text.splitlines())) <= 80
        assert all(float(row.split()[2]) > 0 for row in rows)


def test_predict_averages_draws(noisy: Path, call: Call) -> None:
    np.save("images.npy", tiny.images(3, 5).images.numpy())
    mean = json.loads(call("predict", "noisy", "images.npy", "--json")[1])
    drawn = json.loads(call("predict", "noisy", "images.npy", "--json", "--samples", 4)[1])
    again = json.loads(call("predict", "noisy", "images.npy", "--json", "--samples", 4)[1])
    assert drawn == again
    assert [entry["probabilities"] for entry in drawn] != [entry["probabilities"] for entry in mean]
    assert sum(drawn[0]["probabilities"].values()) == pytest.approx(1)
    assert call("train", "noisy.toml", "name=other", "seed=1", "--no-report")[0] == 0
    model, facts = training.build("results/other")
    images = read_images([Path("images.npy")], facts).data
    expected = uncertainty.probabilities(model, images, 4, seed=1).mean(0)
    other = json.loads(call("predict", "other", "images.npy", "--json", "--samples", 4)[1])
    assert list(other[0]["probabilities"].values()) == expected[0].tolist()


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_compress_writes_a_network_that_predicts_the_same(
    kind: str, noisy: Path, call: Call
) -> None:
    status, text, errors = call("compress", "noisy", "--format", kind, "--threshold", 0.5)
    assert status == 0
    assert "classifier.0" in text
    assert "times fewer weights" in errors
    path = noisy / f"compressed-{kind}.safetensors"
    model, _ = training.build(noisy)
    masked = variational.export(model, format="masked", threshold=0.5)
    images = tiny.images(20, 7).batch()
    assert torch.equal(variational.load_exported(path)(images), masked(images))
    found = json.loads(call("compress", "noisy", "--format", kind, "--json")[1])
    assert found["compression"] == pytest.approx(variational.compression(model))
    assert found["bytes"] == path.stat().st_size


def test_a_compressed_file_predicts_like_a_run(noisy: Path, call: Call) -> None:
    assert call("compress", "noisy", "--threshold", 0.5)[0] == 0
    path = noisy / "compressed-csr.safetensors"
    model, facts = training.build(noisy)
    exported = variational.load_exported(path)
    assert exported.facts == {"name": "noisy", "data": facts["data"]}
    found = json.loads(call("evaluate", path, "--json")[1])
    with variational.pruned(model, 0.5):
        expected = training.evaluate(model, tiny.images(30, 2), details=True)
    assert found["accuracy"] == expected["accuracy"]
    assert found["class_accuracy"] == expected["class_accuracy"]
    for key in ("loss", "calibration_error"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)
    assert "predictions" not in found
    np.save("images.npy", tiny.images(3, 5).images.numpy())
    shares = json.loads(call("predict", path, "images.npy", "--json")[1])
    wanted = exported(tiny.images(3, 5).batch()).softmax(1)
    assert [list(each["probabilities"].values()) for each in shares] == wanted.tolist()


def test_a_compressed_network_stays_on_the_processor(
    noisy: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("compress", "noisy", "--threshold", 0.5)[0] == 0
    monkeypatch.setattr("gradlab.training.setup.resolve_device", lambda device: "cuda")
    path = noisy / "compressed-csr.safetensors"
    assert call("evaluate", path)[0] == 0
    status, _, errors = call("evaluate", path, "--device", "cuda")
    assert (status, "predicts on the processor: leave out --device" in errors) == (2, True)


def test_averaged_weights_are_compressed(call: Call) -> None:
    Path("noisy.toml").write_text(SPEC)
    assert call("train", "noisy.toml", "loop.ema=0.5", "--no-report")[0] == 0
    found = json.loads(call("compress", "noisy", "--ema", "--json")[1])
    model, _ = training.build("results/noisy", ema=True)
    assert found["path"] == "results/noisy/compressed-csr-ema.safetensors"
    assert found["compression"] == variational.compression(model)
    masked, images = variational.export(model, format="masked"), tiny.images(20, 7).batch()
    assert torch.equal(variational.load_exported(found["path"])(images), masked(images))


def test_a_network_of_which_nothing_is_left(call: Call) -> None:
    Path("empty.toml").write_text(SPEC.replace("noisy", "empty"))
    removed = "variational.method.threshold=-1000"
    for _ in range(2):  # trained now, and before: what JSON calls null
        status, _, errors = call("train", "empty.toml", removed)
        assert status == 0
        assert "no weight is kept" in errors
        assert "inf" not in errors
    status, text, errors = call("compress", "empty", "--json")
    assert status == 0
    assert errors == ("no weight of classifier.0, classifier.2 is kept: every image gets the same "
                      "prediction.\n")  # fmt: skip
    assert json.loads(text, parse_constant=pytest.fail)["compression"] is None
    errors = call("compress", "empty")[2]
    assert "every image gets the same prediction" in errors
    assert "no weight is kept; " in errors


def test_another_set_is_checked_before_any_image_is_read(
    noisy: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = data.find
    shapes = {"cifar10": (3, 12, 12)}
    monkeypatch.setattr(data, "load", None)
    monkeypatch.setattr(
        data, "find", lambda name: replace(find(name), image_shape=shapes.get(name, tiny.SHAPE))
    )
    for name, words in (
        ("mnst", "unknown data set 'mnst': did you mean 'mnist'"),
        ("cifar10", "images of cifar10 are (3, 12, 12)"),
    ):
        status, text, errors = call("evaluate", "noisy", "--against", name)
        assert (status, text) == (2, "")
        assert words in errors


def test_mistakes_are_told_in_one_sentence(noisy: Path, plain: Path, call: Call) -> None:
    assert call("compress", "noisy", "--threshold", 0.5)[0] == 0
    small = noisy / "compressed-csr.safetensors"
    for name, changes in OTHERS.items():
        assert call("train", "noisy.toml", f"name={name}", *changes, "--no-report")[0] == 0
    mistakes: list[tuple[tuple[Any, ...], str]] = [
        (("compress", "plain"), "nothing of the network in results/plain/weights.safetensors can"),
        (("compress", "plain"), "trained without noise that prunes ([variational] with a method"),
        (("compress", "noise"), "trained without noise that prunes"),
        (("compress", "gates", "--threshold", 1), "(method L0): leave the threshold out"),
        (("compress", "signs"), "layer hidden.0.sign (BinaryActivation) cannot be exported: use"),
        (("evaluate", "plain", "--against", "fashion_mnist"), "--against is for networks with"),
        (("evaluate", "plain", "--samples", 5), "the one in results/plain has none: leave it out"),
        (("predict", "plain", "images.npy", "--samples", 2), "--samples is for networks with"),
        (("compress", small), "can be left out: it was compressed before"),
        (("evaluate", small, "--samples", 5), "--samples is for networks with noise"),
        (("evaluate", small, "--against", "fashion_mnist"), "--against is for networks with"),
        (("predict", small, "images.npy", "--samples", 2), "--samples is for networks with"),
        (("evaluate", small, "--device", "gpu"), "device is 'gpu'"),
        (("train", "noisy.toml", f"init={{weights='{small}'}}", "name=b"), "compressed network"),
        (("evaluate", "noisy", "--against", "fashion_mnst"), "did you mean 'fashion_mnist'"),
        (("compress", "noisy", "--format", "cs"), "unknown format 'cs': did you mean 'csr'"),
        (("compress", "noisy", "--threshold", "nan"), "threshold is nan"),
        (("compress", "noisy", "--threshold", 100), "nothing|no weight|kept"),
        (("compress", "nosy"), "did you mean 'noisy'"),
        (("compress", "noisy", "--out", noisy / "weights.safetensors"), "the weights themselves"),
        (("train", "noisy.toml", "variational.method.threshold=nan"), "threshold is nan"),
        (("train", "noisy.toml", "variational.kl_weight.scale=-1", "name=b"), "kl_weight"),
    ]
    np.save("images.npy", tiny.images(3, 5).images.numpy())
    for arguments, words in mistakes:
        status, text, errors = call(*arguments)
        assert (status, text) == (2, ""), arguments
        assert len(errors.strip().splitlines()) == 1, errors
        assert any(word in errors for word in words.split("|")), errors
