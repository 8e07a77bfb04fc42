"""What is said of the sets is complete and consistent."""

from __future__ import annotations

import re

import pytest

from gradlab.data.sets import SETS, find, names


@pytest.mark.parametrize("name", names())
def test_every_set_says_where_its_files_come_from_and_how_they_are_verified(name: str) -> None:
    info = SETS[name]
    assert info.name == name
    assert info.splits == ("train", "test")
    assert len(info.mean) == len(info.std) == info.image_shape[0]
    assert info.classes == () or len(info.classes) == info.num_classes
    assert info.terms
    assert re.search(r"\b(19|20)\d\d\b", info.citation)
    for item in info.downloads:
        assert re.fullmatch(r"[0-9a-f]{64}", item.sha256)
        assert len(item.urls) >= 2
        assert all(url.rpartition("/")[2] == item.path.rpartition("/")[2] for url in item.urls)
    for file in info.files:
        assert file.path.startswith(f"{info.folder}/")
        if file.checksum is not None:
            digits = {"sha256": 64, "md5": 32}[file.checksum.algorithm]
            assert re.fullmatch(f"[0-9a-f]{{{digits}}}", file.checksum.value)
    assert all(info.needed(split) for split in info.splits)


def test_no_two_files_have_one_checksum() -> None:
    values = [file.checksum.value for info in SETS.values() for file in info.files if file.checksum]
    assert len(set(values)) == len(values)


def test_an_unknown_set_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"unknown data set 'cifar': did you mean 'cifar10'"):
        find("cifar")
