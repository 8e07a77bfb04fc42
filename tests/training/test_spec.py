"""Every mistake in a training spec is one sentence that names the key, the mistake and the fix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gradlab import training
from gradlab.data import find
from gradlab.training.setup import prepare
from gradlab.training.spec import SpecError, differences, shipped_trainings
from tests.training import tiny

TEXT = """
name = "tiny"

[data]
name = "mnist"
crop = 0

[model]
name = "xnor_mlp"
width = 12

[optimizer]
name = "adam"
lr = 0.01

[schedule]
name = "cosine"

[loop]
epochs = 3
"""

# What is wrong: (text of the spec, what stands there instead, words of the complaint)
SHAPES = {
    "not TOML": ("width = 12", "width 12", "is not TOML: .*line"),
    "unknown table": ("[model]", "[modle]", "unknown key 'modle': did you mean 'model'"),
    "unknown key of a table": (
        "epochs = 3", "epochs = 3\nbatchsize = 2",
        r"unknown key in \[loop\] 'batchsize': did you mean 'batch_size'"),
    "no data": ('[data]\nname = "mnist"\ncrop = 0\n', "", r"'data' is missing: .*\[data\] with"),
    "no epochs": ("epochs = 3", "", "'loop.epochs' is missing: write for example epochs = 20"),
    "no model name": ('name = "xnor_mlp"\n', "", "model has no name: write for example model ="),
    "epochs as text": ("epochs = 3", 'epochs = "3"', "loop.epochs should be .*integer, not '3'"),
    "no epochs at all": ("epochs = 3", "epochs = 0", "loop.epochs should be greater than or equal"),
    "unknown precision": (
        "epochs = 3", 'epochs = 3\nprecision = "float16"',
        "loop.precision should be 'float32' or 'bfloat16', not 'float16'"),
    "NaN": ("lr = 0.01", "lr = nan", "optimizer.lr is nan: give a finite number"),
    "infinite clip": ("epochs = 3", "epochs = 3\nclip = inf", "loop.clip is inf: give a finite"),
    "validation of all": ("crop = 0", "validation = 1.0", "data.validation should be less than 1"),
    "a table that is a number": ("[loop]\nepochs = 3", "[[loop]]", "loop should be .*not"),
    "late switch": (
        "epochs = 3", "epochs = 3\n[[switch]]\nepoch = 4", "switch.epoch 4 comes too late: .*to 3"),
    "switches out of order": (
        "epochs = 3", "epochs = 3\n[[switch]]\nepoch = 3\n[[switch]]\nepoch = 2",
        "switch.epoch 2 comes too early"),
    "keep beyond the end": (
        "epochs = 3", "epochs = 3\n[checkpoint]\nkeep = [9]", "checkpoint.keep lists epoch 9"),
    "a name that is a path": ('"tiny"', '"../tiny"', "name should be letters"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", sorted(SHAPES))
def test_a_mistake_in_the_shape_is_one_sentence(mistake: str, tmp_path: Path) -> None:
    before, after, words = SHAPES[mistake]
    assert before in TEXT
    path = tmp_path / "tiny.toml"
    path.write_text(TEXT.replace(before, after, 1))
    with pytest.raises(SpecError, match=words) as caught:
        training.load(path)
    sentence = str(caught.value)
    assert sentence.startswith(str(path))
    assert "\n" not in sentence
    assert sentence.endswith(".")


# What is wrong: (changes of the tiny spec, words of the complaint)
PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model": ({"model": {"name": "xnor_mpl"}}, "unknown model .*did you mean 'xnor_mlp'"),
    "unknown option of the model": (
        {"model": {"widht": 3}}, "unknown option of model xnor_mlp 'widht': did you mean 'width'"),
    "model out of range": ({"model": {"width": 0}}, "width is 0: give a whole number"),
    "a model that is no module": (
        {"model": {"name": "mlp", "num_dim": 4}}, "train xnor_mlp instead"),
    "too few outputs": (
        {"model": {"num_classes": 2}}, "labels from 0 to 2, and model.num_classes is 2: leave"),
    "wrong image size": (
        {"model": {"input_shape": [1, 28, 28]}}, r"images of .* are \(1, 6, 6\).*leave it out"),
    "unknown optimizer": (
        {"optimizer": {"name": "adem"}}, "unknown optimizer 'adem': did you mean"),
    "unknown option of the optimizer": (
        {"optimizer": {"weight_deacy": 0.1}}, "unknown option of optimizer adam 'weight_deacy'"),
    "an option that torch refuses": (
        {"optimizer": {"weight_decay": -1.0}}, "[Ii]nvalid weight_decay"),
    "no lr": ({"optimizer": {"lr": None}}, "optimizer.lr is missing: write for example lr = 1e-3"),
    "negative lr": ({"optimizer": {"lr": -1.0}}, "optimizer.lr is -1.0: give a number above 0"),
    "lr as text": ({"optimizer": {"lr": "high"}}, "optimizer.lr is 'high': give a number above 0"),
    "unknown schedule": ({"schedule": {"name": "cosin"}}, "unknown schedule 'cosin': did you mean"),
    "unknown option of the schedule": (
        {"schedule": {"name": "cosine", "warmup": 1}},
        "unknown option of schedule cosine 'warmup'"),
    "a long warm-up": (
        {"schedule": {"name": "cosine", "warmup_epochs": 3}}, "warmup_epochs is 3 in a run of 3"),
    "a late milestone": (
        {"schedule": {"name": "step", "milestones": [1, 9]}}, "milestone 9 lies behind the end"),
    "unknown estimator": (
        {"estimator": {"name": "ness"}}, "unknown estimator 'ness': did you mean"),
    "unknown estimator behind a switch": (
        {"switch": [{"epoch": 2, "estimator": {"name": "nss"}}]}, "unknown estimator 'nss'"),
    "mixup with an estimator": (
        {"estimator": {"name": "nes"}, "data": {"mixup": 0.2}}, "data.mixup makes soft targets"),
    "bfloat16 with an estimator": (
        {"estimator": {"name": "nes"}, "loop": {"precision": "bfloat16"}}, "evaluate in float32"),
    "unknown padding": ({"data": {"padding": "mirror"}}, "unknown padding 'mirror'"),
    "a large crop": ({"data": {"crop": 6}}, "data.crop is 6 for images of 6 pixels: give less"),
    "unknown device": (
        {"loop": {"device": "gpu"}}, "loop.device is 'gpu': give auto, cpu, or cuda"),
    "a large batch": ({"loop": {"batch_size": 97}}, "batch_size is 97, and there are 96 images"),
    "too many examples": (
        {"data": {"examples": 97}}, "data.examples is 97, and there are 96 images"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", sorted(PARTS))
def test_parts_that_do_not_fit_are_one_sentence(mistake: str) -> None:
    changes, words = PARTS[mistake]
    merged = {
        key: {k: v for k, v in {**tiny.RAW.get(key, {}), **value}.items() if v is not None}
        if isinstance(value, dict) and "name" not in value else value
        for key, value in changes.items()
    }  # fmt: skip
    if "optimizer" in merged and "lr" not in merged["optimizer"] and mistake != "no lr":
        merged["optimizer"]["lr"] = 0.01
    spec = training.from_dict({**tiny.RAW, **merged}, source="tiny.toml")
    with pytest.raises(SpecError, match=words) as caught:
        prepare(spec, tiny.datasets())
    sentence = str(caught.value)
    assert sentence.startswith("tiny.toml: ")
    assert "\n" not in sentence


def test_an_unknown_data_set_is_found_before_anything_is_read() -> None:
    spec = tiny.spec(data={"name": "minst"})
    with pytest.raises(SpecError, match="unknown data set 'minst': did you mean 'mnist'"):
        prepare(spec)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("epochs", "'epochs' is no override: write key=value"),
        ("lop.epochs=3", "unknown key 'lop': did you mean 'loop'"),
        ("loop.epochs=", "nothing is no value"),
        ("seed.x=3", "'seed' holds no keys of its own"),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, words: str) -> None:
    overrides = ["seed=1", override]
    with pytest.raises(SpecError, match=words):
        training.load("mnist_mlp", overrides)


def test_overrides_reach_every_table() -> None:
    spec = training.load(
        "mnist_mlp",
        ["loop.epochs=2", "model.width=8", "optimizer.name=sgd", "init.weights=a/b", "seed=3",
         "estimator={name = 'nes', population = 10}"],
    )  # fmt: skip
    assert (spec.loop.epochs, spec.model["width"], spec.optimizer["name"]) == (2, 8, "sgd")
    assert spec.init is not None
    assert spec.init.weights == "a/b"
    assert spec.estimator == {"name": "nes", "population": 10}
    assert spec.source.endswith("with loop.epochs=2, model.width=8, optimizer.name=sgd, "
                                "init.weights=a/b, seed=3, "
                                "estimator={name = 'nes', population = 10}")  # fmt: skip


def test_words_are_no_part_of_what_a_run_is() -> None:
    spec = tiny.spec()
    assert tiny.spec(title="other", name="b", description="x").digest() == spec.digest()
    assert tiny.spec(seed=1).digest() != spec.digest()
    assert tiny.spec(loop={"epochs": 4}).digest() != spec.digest()
    assert differences(spec.identity(), tiny.spec(loop={"clip": 5.0}, seed=1).identity()) == [
        "seed (0, now 1)", "loop.clip (none, now 5.0)"]  # fmt: skip


def test_the_stored_spec_of_a_run_is_read_back_the_same(tmp_path: Path) -> None:
    spec = tiny.spec(switch=[{"epoch": 2}], loop={"clip": 5.0})
    (tmp_path / "spec.json").write_text(json.dumps(spec.model_dump(mode="json")))
    assert training.load(tmp_path).digest() == spec.digest()
    assert training.load(tmp_path, ["seed=4"]).seed == 4
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(SpecError, match=r"spec\.json cannot be read"):
        training.load(tmp_path)


def test_an_unknown_training_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown training 'mnist_mpl': did you mean 'mnist_mlp'"):
        training.load("mnist_mpl")
    with pytest.raises(SpecError, match="is a folder: give the TOML file of a training spec"):
        training.load(tmp_path)
    with pytest.raises(SpecError, match=r"there is no file none\.toml"):
        training.load("none.toml")


@pytest.mark.parametrize("name", sorted(shipped_trainings()))
def test_a_shipped_training_is_valid(name: str) -> None:
    spec = training.load(name, ["loop.device=cpu", "threads=1"])
    assert spec.name == name
    assert spec.title
    assert re.search(r"\w[.?]$", spec.description.strip())
    data = tiny.datasets(number=300, shape=find(spec.data.name).image_shape)
    whole = spec.data.model_copy(update={"examples": None, "evaluation_examples": None})
    setup, state = prepare(spec.model_copy(update={"data": whole}), data)
    assert setup.batches.steps >= 1
    real = spec.model.get("weight") == "real" or spec.variational is not None
    assert state.model.latent_weights() or real
