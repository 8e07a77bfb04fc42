"""The idx reader takes what is right and has a sentence for everything else."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.data import DataError, load
from gradlab.data.idx import parse
from gradlab.data.sets import ImageSet
from tests.data.tiny import idx_file, idx_set, write

IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def complaint(content: bytes) -> str:
    try:
        parse(content, "x")
    except DataError as error:
        return str(error)
    return "none"


def test_arrays_survive() -> None:
    assert (parse(idx_file(IMAGES), "x") == IMAGES).all()
    assert parse(idx_file(IMAGES[:0]), "x").shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "x is not an idx file of unsigned bytes: it begins with nothing"),
        (b"plain", "x is not a complete gzip file"),
        (idx_file(IMAGES)[:-9], "x is not a complete gzip file"),
        (gzip.compress(b"\x00\x00\x0d\x01"), "it begins with 00000d01"),  # floats
        (gzip.compress(b"\x00\x00\x08\x03\x00\x00"), "x ends within its idx header"),
        (gzip.compress(gzip.decompress(idx_file(IMAGES)) + b"?"),
         "x holds 25 bytes of data, and its header says 2 × 3 × 4"),
        (gzip.compress(gzip.decompress(idx_file(IMAGES))[:-1]), "x holds 23 bytes"),
    ],
    ids=["empty", "plain", "cut", "floats", "header", "longer", "shorter"],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(content: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(content, "x")
    assert words in str(caught.value)


@given(st.data())
def test_damage_is_a_sentence_or_an_array(data: st.DataObject) -> None:
    raw = bytearray(idx_file(IMAGES))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert complaint(bytes(raw)).startswith(("x ", "none"))


def test_images_and_labels_that_do_not_match_are_refused(
    registered: Callable[[ImageSet], ImageSet], tmp_path: Path
) -> None:
    """The checksums are right, so that what is known of the set would have to be wrong."""
    info, contents = idx_set()
    write(tmp_path, contents)
    images, _, _, other_labels = info.files
    mixed = (images, replace(other_labels, splits=("train",)))
    for wrong in (replace(info, image_shape=(1, 4, 4)), replace(info, files=mixed)):
        registered(wrong)
        with pytest.raises(DataError, match="do not belong together"):
            load("mnist", root=tmp_path)
