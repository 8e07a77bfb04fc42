"""No file is read before its checksum is verified, and none is hashed twice."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from gradlab.data import DataError, data_root, files
from gradlab.data.sets import SETS, Checksum
from tests.data.tiny import sha256

FIX = "`gradlab data fetch set`"


def test_the_data_folder_is_given_or_from_the_environment_or_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRADLAB_DATA", str(tmp_path))
    assert data_root() == tmp_path
    assert data_root("/else") == Path("/else").absolute()
    assert data_root("~/data") == Path.home() / "data"
    monkeypatch.setenv("GRADLAB_DATA", "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "gradlab" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root() == Path.home() / ".cache" / "gradlab" / "data"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert data_root() == Path.home() / "Library" / "Caches" / "gradlab" / "data"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert data_root() == tmp_path / "local" / "gradlab" / "data"


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_an_intact_file_is_read_with_its_record(tmp_path: Path, algorithm: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    published = Checksum(algorithm, hashlib.new(algorithm, b"content").hexdigest())  # type: ignore[arg-type]
    content, record = files.read_verified(path, published, FIX)
    assert content == b"content"
    assert record == {"sha256": sha256(b"content"), "verified": algorithm}
    assert files.is_intact(path, published)


def test_another_content_is_one_sentence_with_both_checksums_and_the_fix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"damaged")
    with pytest.raises(DataError) as caught:
        files.read_verified(path, Checksum("sha256", sha256(b"content")), FIX)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path} is damaged or not what its name says: its SHA-256 should ")
    assert sha256(b"content") in sentence
    assert sha256(b"damaged") in sentence
    assert sentence.endswith(f"{FIX} replaces it.")
    assert len(sentence.splitlines()) == 1


def test_a_swapped_file_is_recognized() -> None:
    train, _, test, _ = SETS["mnist"].files
    assert train.checksum is not None
    assert test.checksum is not None
    error = files.mismatch(Path("train.gz"), train.checksum, test.checksum.value, FIX)
    assert "(that of mnist/t10k-images-idx3-ubyte.gz)" in str(error)


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    published = Checksum("sha256", sha256(b"content"))
    files.read_verified(path, published, FIX)
    with monkeypatch.context() as patched:
        patched.setattr(files, "_new", None)  # hashing would fail
        files.read_verified(path, published, FIX)
        assert files.digest(path) == published.value
    path.write_bytes(b"CONTENT")
    os.utime(path, ns=(0, 0))
    with pytest.raises(DataError):
        files.read_verified(path, published, FIX)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        files.read_verified(tmp_path, Checksum("sha256", ""), FIX)
