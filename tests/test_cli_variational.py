"""train, evaluate, predict and compress of a noisy network, on images that need no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from gradlab import training, variational
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
    for words in ("mean weights", "one draw of the noise", "mean of 10 draws", "kept weights"):
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


def test_predict_averages_draws(noisy: Path, call: Call) -> None:
    np.save("images.npy", tiny.images(3, 5).images.numpy())
    mean = json.loads(call("predict", "noisy", "images.npy", "--json")[1])
    drawn = json.loads(call("predict", "noisy", "images.npy", "--json", "--samples", 4)[1])
    again = json.loads(call("predict", "noisy", "images.npy", "--json", "--samples", 4)[1])
    assert drawn == again
    assert [entry["probabilities"] for entry in drawn] != [entry["probabilities"] for entry in mean]
    assert sum(drawn[0]["probabilities"].values()) == pytest.approx(1)


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


def test_mistakes_are_told_in_one_sentence(noisy: Path, plain: Path, call: Call) -> None:
    mistakes: list[tuple[tuple[Any, ...], str]] = [
        (("compress", "plain"), "compress is for networks trained with noise"),
        (("evaluate", "plain", "--against", "fashion_mnist"), "--against is for networks trained"),
        (("predict", "plain", "images.npy", "--samples", 2), "--samples is for networks trained"),
        (("evaluate", "noisy", "--against", "fashion_mnst"), "did you mean 'fashion_mnist'"),
        (("compress", "noisy", "--format", "cs"), "unknown format 'cs': did you mean 'csr'"),
        (("compress", "noisy", "--threshold", "nan"), "threshold is nan"),
        (("compress", "noisy", "--threshold", 100), "nothing|no weight|kept"),
        (("compress", "nosy"), "did you mean 'noisy'"),
        (("train", "noisy.toml", "variational.method.threshold=nan"), "threshold is nan"),
        (("train", "noisy.toml", "variational.kl_weight.scale=-1", "name=b"), "kl_weight"),
    ]
    np.save("images.npy", tiny.images(3, 5).images.numpy())
    for arguments, words in mistakes:
        status, text, errors = call(*arguments)
        assert (status, text) == (2, ""), arguments
        assert len(errors.strip().splitlines()) == 1, errors
        assert any(word in errors for word in words.split("|")), errors
