"""CIFAR is read unpacked or out of its archive, and never from a file that is another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradlab.data import DataError, load
from gradlab.data.cifar import unpack
from gradlab.data.sets import Checksum, ImageSet
from tests.data.tiny import cifar_pickle, cifar_set, packed, sha256, write

Registered = Callable[[ImageSet], ImageSet]


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("split", ["train", "test"])
def test_files_and_archive_hold_the_same(
    registered: Registered, tmp_path: Path, hundred: bool, split: str
) -> None:
    info, contents, archive = cifar_set(hundred)
    registered(info)
    loose = load(info.name, split, root=write(tmp_path / "files", contents))
    tarred = load(info.name, split, root=write(tmp_path / "archive", archive))
    assert loose.images.shape == (dict(info.sizes)[split], 3, 4, 4)
    assert loose.images.equal(tarred.images)
    assert loose.labels.equal(tarred.labels)
    assert loose.labels.bincount().tolist() == [len(loose) // 2] * 2
    assert loose.classes == tarred.classes == ("cat", "dog")
    verified = {each["verified"] for each in loose.record["files"].values()}
    assert verified == {"md5" if hundred else "sha256"}
    assert set(tarred.record["files"]) == set(archive)
    for path, each in loose.record["files"].items():
        assert each["sha256"] == sha256(contents[path])


def test_the_order_of_the_archive_does_not_matter(registered: Registered, tmp_path: Path) -> None:
    info, contents, _ = cifar_set()
    archive = packed(dict(reversed(contents.items())))
    item = replace(info.downloads[0], sha256=sha256(archive), size=len(archive))
    registered(replace(info, downloads=(item,)))
    expected = load("cifar10", root=write(tmp_path / "files", contents))
    found = load("cifar10", root=write(tmp_path / "archive", {item.path: archive}))
    assert found.images.equal(expected.images)


def test_the_training_batches_are_in_order(registered: Registered, tmp_path: Path) -> None:
    info, contents, _ = cifar_set()
    registered(info)
    images = load("cifar10", root=write(tmp_path, contents)).images.numpy()
    for number in range(5):
        content = contents[f"cifar-10-batches-py/data_batch_{number + 1}"]
        assert images[10 * number : 10 * number + 10].tobytes() in content


def test_a_test_batch_in_place_of_a_training_batch_is_named(
    registered: Registered, tmp_path: Path
) -> None:
    info, contents, _ = cifar_set()
    registered(info)
    test = contents["cifar-10-batches-py/test_batch"]
    write(tmp_path, contents | {"cifar-10-batches-py/data_batch_3": test})
    with pytest.raises(DataError) as caught:
        load("cifar10", root=tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "cifar-10-batches-py/data_batch_3"))
    assert "(that of cifar-10-batches-py/test_batch)" in str(caught.value)
    assert f"`gradlab data fetch cifar10 --data {tmp_path}` replaces it" in str(caught.value)
    assert len(load("cifar10", "test", root=tmp_path)) == 10


def test_a_malicious_file_is_refused_by_its_checksum_already(
    registered: Registered, tmp_path: Path
) -> None:
    info, contents, _ = cifar_set()
    registered(info)
    evil = f"cos\nmkdir\n(S'{tmp_path / 'trace'}'\ntR.".encode()
    write(tmp_path, contents | {"cifar-10-batches-py/test_batch": evil})
    with pytest.raises(DataError, match="SHA-256"):
        load("cifar10", "test", root=tmp_path)
    assert not (tmp_path / "trace").exists()


def test_a_damaged_archive_is_refused(registered: Registered, tmp_path: Path) -> None:
    info, _, archive = cifar_set()
    registered(info)
    write(tmp_path, {path: content[:-1] for path, content in archive.items()})
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz is damaged"):
        load("cifar10", root=tmp_path)


def test_missing_files_are_named_with_the_command(registered: Registered, tmp_path: Path) -> None:
    info, contents, _ = cifar_set()
    registered(info)
    some = {path: content for path, content in contents.items() if "batch_2" not in path}
    with pytest.raises(DataError) as caught:
        load("cifar10", root=write(tmp_path, some))
    assert str(caught.value) == (
        f"cifar10: data_batch_2 is missing from {tmp_path / 'cifar-10-batches-py'}: "
        f"`gradlab data fetch cifar10 --data {tmp_path}` downloads what is missing."
    )


def content_of(**entries: object) -> bytes:
    return cifar_pickle({**entries})


IMAGES = np.zeros((10, 48), np.uint8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (content_of(labels=[0] * 10), "holds no array of images of 48 bytes"),
        (content_of(labels=[0] * 10, data=IMAGES[:, :-1]), "holds no array of images of 48"),
        (content_of(data=IMAGES), "holds no list of labels"),
        (content_of(labels=["cat"] * 10, data=IMAGES), "holds no list of labels"),
        (content_of(labels=[0] * 9, data=IMAGES), "holds 10 images and 9 labels"),
        (content_of(label_names=["cat"]), "does not name 2 classes"),
        (content_of(labels=[0] * 9 + [2], data=IMAGES), "labels go from 0 to 2"),
    ],
    ids=["no-images", "size", "no-labels", "text", "count", "classes", "range"],
)
def test_other_content_under_the_right_checksum_is_a_sentence(
    registered: Registered, tmp_path: Path, content: bytes, words: str
) -> None:
    info, contents, _ = cifar_set()
    path = "cifar-10-batches-py/test_batch"
    files = tuple(
        replace(file, checksum=Checksum("sha256", sha256(content))) if file.path == path else file
        for file in info.files
    )
    registered(replace(info, files=files))
    with pytest.raises(ValueError, match=words):
        load("cifar10", "test", root=write(tmp_path, contents | {path: content}))


def test_only_named_members_are_unpacked(tmp_path: Path) -> None:
    info, contents, _ = cifar_set()
    archive = packed({"../outside": b"x", "cifar-10-batches-py/readme.html": b"x", **contents})
    write(tmp_path / "root", {info.downloads[0].path: archive})
    unpack(info, tmp_path / "root")
    found = {str(path.relative_to(tmp_path / "root")) for path in tmp_path.rglob("*/*")
             if path.is_file()}  # fmt: skip
    assert found == {info.downloads[0].path, *contents}
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("change", ["lacks", "damaged"])
def test_an_archive_with_other_members_is_refused(tmp_path: Path, change: str) -> None:
    info, contents, _ = cifar_set()
    path = "cifar-10-batches-py/test_batch"
    if change == "lacks":
        del contents[path]
    else:
        contents[path] += b"x"
    write(tmp_path, {info.downloads[0].path: packed(contents)})
    words = "does not hold" if change == "lacks" else "is damaged or not what its name says"
    with pytest.raises(DataError, match=words):
        unpack(info, tmp_path)
    assert not (tmp_path / path).exists()
