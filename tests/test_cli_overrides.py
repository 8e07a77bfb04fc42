"""evaluate and predict with the noise of trained weights drawn in another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradlab import models, training, variational
from gradlab.training import SpecError, uncertainty
from gradlab.training.images import read_images
from tests.test_cli_training import Call, call
from tests.test_cli_variational import SPEC
from tests.training import tiny

__all__ = ["call"]

METHODS = {
    "bayes": "{ name = 'bayes_by_backprop', initial_rho = -1.0 }",
    "dropped": "{ name = 'bernoulli', p = 0.2, side = 'input' }",
    "signs": "{ name = 'bernoulli_weights' }",
    "pruned": "{ name = 'sparse', threshold = 1.0 }",
}
LOCAL = "variational.method.estimator=local"
DRAWS = "variational.evaluation_samples"
CHANGED = 'variational.method.estimator ("weights", now "local")'


def train(name: str, call: Call) -> Path:
    head = SPEC.partition("[variational]")[0].replace("noisy", name)
    noise = f"[variational]\nmethod = {METHODS.get(name)}\nevaluation_samples = 4\n"
    Path(f"{name}.toml").write_text(head + noise * (name in METHODS))
    assert call("train", f"{name}.toml", "loop.epochs=1", "--no-report")[0] == 0
    return Path("results") / name


@pytest.fixture
def bayes(call: Call) -> Path:
    return train("bayes", call)


@pytest.fixture
def image(call: Call) -> str:
    np.save("images.npy", tiny.images(3, 5).images.numpy())
    return "images.npy"


def local(path: Path) -> torch.nn.Module:
    """The network of a run of Bayes by Backprop, made by hand."""
    trained, facts = training.build(path)
    options = {key: value for key, value in facts["model"].items() if key != "name"}
    network = variational.to_variational(
        models.create("fully_connected", **options),
        "bayes_by_backprop", estimator="local",
    )  # fmt: skip
    network.load_state_dict(trained.state_dict())
    return network.eval()


def test_weights_are_evaluated_in_local_reparameterization(bayes: Path, call: Call) -> None:
    status, text, errors = call("evaluate", "bayes", LOCAL, "--json")
    assert (status, errors) == (0, "")
    found = json.loads(text)
    assert found["changed"] == [CHANGED]
    assert found["predictions"] == uncertainty.predictions(local(bayes), tiny.images(30, 2), 4)
    before = json.loads(call("evaluate", "bayes", "--json")[1])
    assert "changed" not in before
    assert found["predictions"]["mean"] == before["predictions"]["mean"]
    assert found["predictions"]["sample"] != before["predictions"]["sample"]
    assert f"Changed: {CHANGED}." in call("evaluate", bayes / "weights.safetensors", LOCAL)[1]
    same = call("evaluate", "bayes", "variational.method.estimator=weights")[1]
    assert "Changed: nothing, for the weights say the same." in same
    assert "Changed" not in call("evaluate", "bayes")[1]


def test_the_run_says_how_many_draws(bayes: Path, call: Call) -> None:
    for asked, number in ((), 4), ((f"{DRAWS}=3",), 3), (("--samples", 2), 2):
        found = json.loads(call("evaluate", "bayes", *asked, "--json")[1])
        assert found["predictions"]["monte_carlo"]["samples"] == number
        assert f"{number} draws" in call("evaluate", "bayes", *asked)[1]
    status, text, errors = call("evaluate", "bayes", f"{DRAWS}=3", "--samples", 2)
    assert (status, text) == (2, "")
    assert f"--samples and {DRAWS} both say how many draws: give one of them." in errors


def test_predict_draws_as_overrides_say(bayes: Path, call: Call, image: str) -> None:
    images = read_images([Path(image)], training.build(bayes)[1]).data
    expected = uncertainty.probabilities(local(bayes), images, 3).mean(0).tolist()
    for asked in ((LOCAL, f"{DRAWS}=3", image), (LOCAL, image, "--samples", 3)):
        found = json.loads(call("predict", "bayes", *asked, "--json")[1])
        assert [list(entry["probabilities"].values()) for entry in found] == expected
        assert found[0]["changed"][0] == CHANGED
    mean = json.loads(call("predict", "bayes", image, "--json")[1])
    moved = json.loads(call("predict", "bayes", LOCAL, image, "--json")[1])
    assert [{**entry, "changed": [CHANGED]} for entry in mean] == moved
    assert f"Changed: {CHANGED}." in call("predict", "bayes", LOCAL, image)[1]
    _, rows, told = call("predict", "bayes", LOCAL, image, "--csv")
    assert (len(rows.splitlines()), told) == (4, f"Changed: {CHANGED}.\n")


def test_a_file_with_an_equals_sign_is_a_picture(bayes: Path, call: Call, image: str) -> None:
    Path(image).rename("digit=3.npy")
    assert json.loads(call("predict", "bayes", "digit=3.npy", "--json")[1])[2]["index"] == 2
    status, text, errors = call("predict", "bayes", LOCAL)
    assert (status, text) == (2, "")
    assert "there is nothing to classify: give pictures" in errors


def test_another_method_leaves_behind_what_it_has_not(call: Call) -> None:
    train("dropped", call)
    found = json.loads(
        call("evaluate", "dropped", "variational.method.name=gaussian_w",
             "variational.method.p=0.7", "--json")[1]
    )  # fmt: skip
    assert "variational.method.p (0.2, now 0.7)" in found["changed"]
    assert 'variational.method.side ("input", now none)' in found["changed"]


def test_mistakes_are_told_before_any_image_is_read(
    bayes: Path, call: Call, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dropped", "signs", "pruned", "plain"):
        train(name, call)
    assert call("compress", "pruned")[0] == 0
    small = "results/pruned/compressed-csr.safetensors"
    monkeypatch.setattr("gradlab.data.load", None)
    monkeypatch.setattr("gradlab.training.images.read_images", None)
    method = "variational.method"
    what = ("is nothing that can be changed in trained weights: give variational.method, "
            "variational.layers or variational.evaluation_samples, for example "
            "variational.evaluation_samples=50.")  # fmt: skip
    unfit = "the stored weights are no parameters of such a network ("
    mistakes: list[tuple[Any, str, str]] = [
        ("bayes", "model.width=8", f"'model.width=8' {what}"),
        ("bayes", "seed=1", f"'seed=1' {what}"),
        ("bayes", "variational.samples=5", what),
        ("bayes", "variational.kl_weight.scale=2", what),
        ("bayes", "variational={}", what),
        ("bayes", f"{method}.estimater=local", "'estimater': did you mean 'estimator'"),
        ("bayes", f"{method}.estimator=locl", "unknown estimator 'locl': did you mean"),
        ("bayes", f"{method}.name=bayes", "unknown variational method 'bayes'"),
        ("bayes", f"{method}.name=sparse", f"{unfit}missing: classifier.0.log_sigma2"),
        ("bayes", f"{method}={{name='bernoulli'}}", f"{unfit}unexpected: classifier.0.rho"),
        ("bayes", f"{method}={{estimator='local'}}", "variational.method has no name"),
        ("bayes", f"{method}=sparse", "variational.method should be"),
        ("bayes", f"{method}.bias_noise=true", f"{unfit}missing: classifier.0.bias_rho"),
        ("bayes", f"{method}.prior_sigma=nan", "variational.method.prior_sigma is nan"),
        ("dropped", f"{method}.p.x=1", "'p' holds no keys of its own"),
        ("dropped", f"{method}.p=half", "p is 'half'"),
        ("bayes", "variational.layers=conv", "no layer of type torch.nn.Conv2d"),
        ("bayes", f"{DRAWS}=0", "variational.evaluation_samples should be"),
        ("dropped", f"{method}={{name='bernoulli_weights'}}", f"{unfit}a natural parameter"),
        ("signs", f"{method}={{name='bayes_binn'}}", f"{unfit}a natural parameter"),
        ("plain", LOCAL, f"'{LOCAL}' is for networks with noise ([variational]), and the one in"),
        (small, LOCAL, f"'{LOCAL}' changes noise, and the compressed network in {small} has none"),
    ]  # fmt: skip
    for run, override, words in mistakes:
        for command in (("evaluate", run, override), ("predict", run, override, image)):
            status, text, errors = call(*command)
            assert (status, text) == (2, ""), command
            assert len(errors.strip().splitlines()) == 1, errors
            assert words in errors, errors
    status, text, errors = call("evaluate", "bayes", "local")
    assert (status, text) == (2, "")
    assert f"'local' {what}" in errors


def test_python_has_the_same_overrides(bayes: Path) -> None:
    network, facts = training.build(bayes, overrides=[LOCAL])
    layers: list[Any] = list(variational.stochastic_layers(network).values())
    assert {layer.method.estimator for layer in layers} == {"local"}
    assert facts["variational"]["method"]["estimator"] == "local"
    with pytest.raises(SpecError, match="nothing that can be changed"):
        training.build(bayes, overrides=["seed=1"])


def test_weights_go_on_in_local_reparameterization(bayes: Path, call: Call) -> None:
    onwards = ("name=onwards", f"init={{weights='{bayes}'}}", LOCAL, "optimizer.lr=1e-9")
    assert call("train", "bayes.toml", *onwards, "--no-report")[0] == 0
    found = json.loads(call("evaluate", "onwards", "--json")[1])["predictions"]
    loaded = json.loads(call("evaluate", "bayes", LOCAL, "--json")[1])["predictions"]
    for kind, numbers in loaded.items():
        assert found[kind] == pytest.approx(numbers, abs=1e-4)
