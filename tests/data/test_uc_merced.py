"""UC Merced has no published checksum at 64 × 64: its content is checked, its SHA-256 recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradlab.data import DataError, load
from gradlab.data.sets import ImageSet
from gradlab.data.uc_merced import build
from tests.data.tiny import (
    npz,
    sha256,
    uc_merced_archive,
    uc_merced_arrays,
    uc_merced_set,
    write,
)

PATH = "uc_merced/uc_merced_64.npz"
Registered = Callable[[ImageSet], ImageSet]
Arrays = dict[str, NDArray[Any]]


def test_images_are_read_channels_first(registered: Registered, tmp_path: Path) -> None:
    registered(uc_merced_set())
    arrays = uc_merced_arrays()
    content = npz(arrays)
    root = write(tmp_path, {PATH: content})
    train, test = (load("uc_merced", split, root=root) for split in ("train", "test"))
    assert train.classes == ("agricultural", "airplane")
    assert train.images.shape == (160, 3, 64, 64)
    assert train.record["files"] == {PATH: {"sha256": sha256(content), "verified": "content"}}
    everything = {image.tobytes() for image in arrays["images"].transpose(0, 3, 1, 2)}
    parts = [image.numpy().tobytes() for part in (train, test) for image in part.images]
    assert set(parts) == everything
    assert len(parts) == len(everything) == 200


def with_(**changes: Any) -> Arrays:
    return {**uc_merced_arrays(), **changes}


GOOD = uc_merced_arrays()
LABELS, NAMES = GOOD["labels"], GOOD["names"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (with_(images=GOOD["images"][:-1]), r"images are uint8 \(199, 64, 64, 3\), not uint8"),
        (with_(images=GOOD["images"].astype(np.int16)), "images are int16"),
        (with_(labels=LABELS[:-1]), r"labels are uint8 \(199,\)"),
        (with_(labels=LABELS.astype(float)), "labels are float64"),
        (with_(labels=LABELS + 1), "labels go from 1 to 2, not 0 to 1"),
        (with_(labels=np.r_[1, LABELS[1:]].astype(np.uint8)), "not every class has 100 images"),
        (with_(labels=LABELS[::-1]), "names and labels disagree"),
        (with_(names=np.r_[NAMES[1:2], NAMES[1:]]), "names and labels disagree"),
        (with_(names=NAMES[1:]), "2 classes and 199 names, not 2 and 200"),
        (with_(names=np.arange(200)), "names are not text"),
        (with_(names=NAMES.astype(object)), "is damaged or no npz file of this set"),
        ({"images": GOOD["images"]}, "is damaged or no npz file of this set"),
        (with_(class_names=np.zeros(2**23 + 1)), "an array is too large for this set"),
    ],
    ids=["count", "type", "labels", "floats", "range", "balance", "order", "twice", "names",
         "numbers", "pickled", "lacking", "large"],
)  # fmt: skip
def test_another_content_is_one_sentence(
    registered: Registered, tmp_path: Path, arrays: Arrays, words: str
) -> None:
    registered(uc_merced_set())
    root = write(tmp_path, {PATH: npz(arrays)})
    with pytest.raises(DataError, match=words) as caught:
        load("uc_merced", root=root)
    assert str(caught.value).startswith(str(root / PATH))
    assert f"`gradlab data fetch uc_merced --data {root}` makes it anew" in str(caught.value)


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damage_is_noticed(registered: Registered, tmp_path: Path, where: float, how: str) -> None:
    registered(uc_merced_set())
    content = bytearray(npz(GOOD))
    place = int(where * len(content))
    if how == "cut":
        del content[place:]
    else:
        content[place] ^= 0xFF
    root = write(tmp_path, {PATH: bytes(content)})
    with pytest.raises(DataError, match="is damaged or no npz file of this set"):
        load("uc_merced", root=root)


def test_a_missing_file_is_named(registered: Registered, tmp_path: Path) -> None:
    registered(uc_merced_set())
    with pytest.raises(DataError, match=r"uc_merced: uc_merced_64\.npz is missing from"):
        load("uc_merced", root=tmp_path)


@pytest.mark.parametrize("wrong", ["lacking", "zip"])
def test_an_archive_of_something_else_is_refused(tmp_path: Path, wrong: str) -> None:
    arrays = uc_merced_arrays()
    few = {key: array[50:150] for key, array in arrays.items() if key != "class_names"}
    archive = uc_merced_archive(few) if wrong == "lacking" else b"not a zip"
    info = uc_merced_set((), archive)
    write(tmp_path, {info.downloads[0].path: archive})
    words = "is not the UC Merced Land Use set" if wrong == "lacking" else "cannot be unpacked"
    with pytest.raises(DataError, match=words):
        build(info, tmp_path)
    assert not (tmp_path / PATH).exists()


def test_identical_images_stay_together(registered: Registered, tmp_path: Path) -> None:
    """Two by their names, as known of the set; and any others that are the same."""
    registered(uc_merced_set())
    arrays = uc_merced_arrays()
    images = arrays["images"]
    for twin, first in ((7, 3), (90, 3), (150, 140)):
        images[twin] = images[first]
    root = write(tmp_path, {PATH: npz(arrays)})
    flat = images.transpose(0, 3, 1, 2)
    by_name = flat[101].tobytes(), flat[102].tobytes()
    assert by_name[0] != by_name[1]
    sides = set()
    for seed in range(12):
        parts = [
            {image.numpy().tobytes() for image in
             load("uc_merced", split, root=root, validation=0.25, seed=seed).images}
            for split in ("train", "validation", "test")
        ]  # fmt: skip
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        holding = [number for number, part in enumerate(parts) if by_name[0] in part]
        assert [number for number, part in enumerate(parts) if by_name[1] in part] == holding
        sides.update(holding)
    assert len(sides) > 1  # it depends on the seed
