"""Loading: the right files for a split, recorded; a sentence for every bad argument."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradlab.data import DataError, load
from gradlab.data.sets import ImageSet
from gradlab.data.splits import fingerprint
from tests.data.tiny import idx_file, idx_set, npz, sha256, uc_merced_arrays, uc_merced_set, write

Registered = Callable[[ImageSet], ImageSet]


@pytest.fixture
def root(registered: Registered, tmp_path: Path) -> Path:
    """A folder with a tiny mnist."""
    info, contents = idx_set()
    registered(info)
    return write(tmp_path, contents)


def test_a_split_is_whole_and_recorded(root: Path) -> None:
    for split, count, prefix in (("train", 40, "train"), ("test", 20, "t10k")):
        data = load("mnist", split, root=root)
        assert (data.name, data.split, len(data)) == ("mnist", split, count)
        assert data.images.dtype == torch.uint8
        assert data.image_shape == (1, 5, 4)
        assert data.labels.tolist() == [0, 1] * (count // 2)
        assert data.classes == ("even", "odd")
        files = [f"mnist/{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")]
        assert data.record == {
            "set": "mnist", "split": split, "size": count,
            "indices_sha256": fingerprint(np.arange(count)),
            "files": {path: {"sha256": sha256((root / path).read_bytes()), "verified": "sha256"}
                      for path in files},
        }  # fmt: skip


def test_the_folder_may_come_from_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADLAB_DATA", str(root))
    assert load("mnist").images.equal(load("mnist", root=root).images)


def test_the_data_can_be_written_to(root: Path) -> None:
    data = load("mnist", root=root)
    before = int(data.images[0, 0, 0, 0])
    data.images[0, 0, 0, 0] += 1
    assert int(load("mnist", root=root).images[0, 0, 0, 0]) == before


def test_validation_takes_its_share_of_train(root: Path) -> None:
    whole = load("mnist", root=root)
    train = load("mnist", root=root, validation=0.2, seed=3)
    held = load("mnist", "validation", root=root, validation=0.2, seed=3)
    assert held.labels.bincount().tolist() == [4, 4]
    assert train.labels.bincount().tolist() == [16, 16]
    everything = {image.numpy().tobytes() for image in whole.images}
    parts = [{image.numpy().tobytes() for image in data.images} for data in (train, held)]
    assert parts[0] | parts[1] == everything
    assert not parts[0] & parts[1]
    for data in (train, held):
        assert (data.record["seed"], data.record["validation"]) == (3, 0.2)
        json.dumps(data.record)
    positions = [i for i, image in enumerate(whole.images) if image.numpy().tobytes() in parts[1]]
    assert held.record["indices_sha256"] == fingerprint(np.array(positions))
    same = load("mnist", "validation", root=root, validation=0.2, seed=np.int64(3))
    assert json.dumps(same.record) == json.dumps(held.record)
    other = load("mnist", "validation", root=root, validation=0.2, seed=4)
    assert other.record["indices_sha256"] != held.record["indices_sha256"]


def test_the_test_set_knows_nothing_of_validation(root: Path) -> None:
    plain = load("mnist", "test", root=root)
    other = load("mnist", "test", root=root, validation=0.5, seed=9)
    assert other.images.equal(plain.images)
    assert other.record == plain.record


def test_uc_merced_has_its_splits_recorded(registered: Registered, tmp_path: Path) -> None:
    registered(uc_merced_set())
    root = write(tmp_path, {"uc_merced/uc_merced_64.npz": npz(uc_merced_arrays())})
    kinds = ("train", "validation", "test")
    parts = {k: load("uc_merced", k, root=root, validation=0.25, seed=5) for k in kinds}
    assert {k: part.labels.bincount().tolist() for k, part in parts.items()} == {
        "train": [60, 60], "validation": [20, 20], "test": [20, 20],
    }  # fmt: skip
    assert all(part.record["test_fraction"] == 0.2 for part in parts.values())
    assert all(part.record["seed"] == 5 for part in parts.values())
    assert "validation" not in parts["test"].record
    again = load("uc_merced", "test", root=root, validation=0.5, seed=5)
    assert again.record == parts["test"].record  # whatever is held out for validation
    other = load("uc_merced", "test", root=root, seed=6)
    assert other.record["indices_sha256"] != again.record["indices_sha256"]


def test_one_split_does_not_need_the_files_of_another(root: Path) -> None:
    for path in (root / "mnist").glob("train-*"):
        path.unlink()
    assert len(load("mnist", "test", root=root)) == 20
    with pytest.raises(DataError) as caught:
        load("mnist", root=root)
    assert str(caught.value) == (
        "mnist: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz are missing from "
        f"{root / 'mnist'}: `gradlab data fetch mnist --data {root}` downloads what is missing."
    )


def test_the_command_is_short_where_the_folder_is_the_usual_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADLAB_DATA", str(root))
    (root / "mnist/t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r": `gradlab data fetch mnist` downloads"):
        load("mnist", "test")


def test_interchanged_files_are_recognized(root: Path) -> None:
    train, test = (root / f"mnist/{kind}-images-idx3-ubyte.gz" for kind in ("train", "t10k"))
    content = train.read_bytes()
    train.write_bytes(test.read_bytes())
    test.write_bytes(content)
    with pytest.raises(DataError, match=r"\(that of mnist/t10k-images-idx3-ubyte\.gz\)"):
        load("mnist", root=root)
    with pytest.raises(DataError, match=r"\(that of mnist/train-images-idx3-ubyte\.gz\)"):
        load("mnist", "test", root=root)


@pytest.mark.parametrize("change", ["cut", "flipped", "other"])
def test_a_damaged_file_is_refused_before_it_is_parsed(
    root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = root / "mnist/train-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    path.write_bytes({
        "cut": content[:-5],
        "flipped": content[:30] + bytes([content[30] ^ 4]) + content[31:],
        "other": idx_file(np.zeros(40, np.uint8)),
    }[change])  # fmt: skip
    with pytest.raises(DataError) as caught:
        load("mnist", root=root)
    assert str(caught.value).startswith(f"{path} is damaged")
    assert sha256(content) in str(caught.value)
    assert sha256(path.read_bytes()) in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "minst"}, "unknown data set 'minst': did you mean 'mnist'"),
        ({"split": "valid"}, "unknown split 'valid': did you mean 'validation'"),
        ({"split": "validation"}, "the validation split is empty: give validation=0.1"),
        ({"validation": 1.0}, "validation is 1.0: give a fraction of the training set"),
        ({"validation": -0.1}, "validation is -0.1"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"validation": "0.1"}, "validation is '0.1'"),
        ({"validation": True}, "validation is True"),
        ({"validation": 0.001}, "a part of 0.001 is 0 of the 20 images of class 0"),
        ({"seed": -1}, "seed is -1: give a whole number"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": True}, "seed is True"),
        ({"device": "gpu"}, "device is 'gpu': give cpu, or cuda"),
    ],
    ids=["name", "split", "empty", "one", "negative", "nan", "text", "truth", "small", "seed",
         "half", "bool", "device"],
)  # fmt: skip
def test_a_bad_argument_is_one_sentence(root: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load(**({"name": "mnist", "root": root} | arguments))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_one_sentence(root: Path) -> None:
    with pytest.raises(ValueError, match="torch sees no GPU here: give cpu"):
        load("mnist", root=root, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_everything_is_on_the_device(root: Path) -> None:
    data = load("mnist", root=root, device="cuda")
    assert data.images.device == data.labels.device == data.batch().device
    assert data.images.is_cuda
    assert data.batch(torch.tensor([3, 1])).cpu().equal(load("mnist", root=root).batch()[[3, 1]])
    assert data.subset(torch.tensor([3, 1])).labels.tolist() == [1, 1]
