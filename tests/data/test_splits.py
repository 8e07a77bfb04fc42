"""Splits are stratified, seeded, the same everywhere, and never part identical images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gradlab.data.splits import TEST, VALIDATION, fingerprint, held_out, identical, joined

counts = st.lists(st.integers(10, 60), min_size=1, max_size=4)


def shuffled(sizes: list[int]) -> NDArray[np.int64]:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).permutation(labels).astype(np.int64)


@given(counts, st.floats(0.1, 0.9), st.integers(0, 2**70))
def test_every_class_gives_its_share(sizes: list[int], fraction: float, seed: int) -> None:
    labels = shuffled(sizes)
    chosen = held_out(labels, fraction, seed, TEST)
    assert (np.diff(chosen) > 0).all()
    given_by = np.bincount(labels[chosen], minlength=len(sizes))
    assert np.abs(given_by - fraction * np.array(sizes)).max() <= 0.5
    assert (chosen == held_out(labels, fraction, seed, TEST)).all()


@given(counts, st.floats(0.2, 0.8), st.integers(0, 99), st.data())
def test_groups_stay_together(
    sizes: list[int], fraction: float, seed: int, data: st.DataObject
) -> None:
    labels = shuffled(sizes)
    groups = np.arange(len(labels))
    for _ in range(5):
        first, twin = (data.draw(st.integers(0, len(labels) - 1)) for _ in range(2))
        groups = joined(groups, np.array([first, twin]))
    inside = np.zeros(len(labels), bool)
    inside[held_out(labels, fraction, seed, VALIDATION, groups)] = True
    for group in np.unique(groups):
        assert len(set(inside[groups == group])) == 1


def test_pairs_within_a_class_do_not_change_how_much_it_gives() -> None:
    labels = np.repeat([0, 1], 100)
    groups = np.arange(200)
    groups[1:60:2] = groups[0:60:2]
    for seed in range(20):
        chosen = held_out(labels, 0.25, seed, TEST, groups)
        assert np.bincount(labels[chosen]).tolist() == [25, 25]


def test_seeds_and_streams_and_classes_differ() -> None:
    labels = np.repeat([0, 1], 100)
    splits = [held_out(labels, 0.2, seed, stream) for seed in (0, 1) for stream in (0, 1)]
    assert len({fingerprint(split) for split in splits}) == 4
    assert (splits[0][:20] != splits[0][20:] - 100).any()


def test_every_image_is_as_likely_as_any_other() -> None:
    labels = np.zeros(50, np.int64)
    often = np.zeros(50)
    for seed in range(2000):
        often[held_out(labels, 0.2, seed, TEST)] += 1
    # 2,000 draws at p = .2: z below 4 has probability .997 for all 50 together
    assert np.abs(often - 400).max() / np.sqrt(2000 * 0.2 * 0.8) < 4


def test_a_split_is_the_same_on_every_machine_and_version() -> None:
    labels = np.arange(1000) % 10
    assert fingerprint(held_out(labels, 0.1, 0, VALIDATION)) == (
        "08d0fade0a60169481fb14cce60f306bcdeea70733f6b751eb78f5c62b673d5d"
    )
    assert held_out(labels, 0.1, 2**64 + 1, TEST)[:4].tolist() == [2, 3, 5, 9]


@pytest.mark.parametrize(("fraction", "wanted"), [(0.01, 0), (0.99, 10)])
def test_a_class_needs_an_image_on_each_side(fraction: float, wanted: int) -> None:
    words = f"{wanted} of the 10 images of class 0, and each side needs at least one"
    with pytest.raises(ValueError, match=words):
        held_out(np.zeros(10, np.int64), fraction, 0, TEST)


def test_identical_images_are_found() -> None:
    images = np.random.default_rng(0).integers(0, 2, (300, 1, 2, 3), dtype=np.uint8)
    groups = identical(images)
    for index in range(300):
        same = [j for j in range(300) if (images[j] == images[index]).all()]
        assert groups[index] == same[0]


def test_joining_nothing_changes_nothing() -> None:
    groups = np.array([0, 1, 0])
    assert (joined(groups, np.array([], np.int64)) == groups).all()
