"""Batches: every image once per epoch, the same for the same seed, normalized as the set is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gradlab.data import Augmentation
from gradlab.training.batches import Batches
from tests.training import tiny

PLAIN = Augmentation()


def numbered(number: int = 50) -> Batches:
    """Images that say which they are."""
    data = tiny.images(number, 0)
    pixels = data.images.clone()
    pixels[:, 0, 0, 0] = torch.arange(number).to(torch.uint8)
    return Batches(replace(data, images=pixels), PLAIN, 16)


def which(batches: Batches, epoch: int) -> list[int]:
    images = torch.cat([images for images, _ in batches.epoch(epoch)])
    values = images[:, 0, 0, 0] * batches.data.std[0] + batches.data.mean[0]
    return (values * 255).round().long().tolist()


def test_an_epoch_has_no_image_twice_and_another_order_each_time() -> None:
    batches = numbered()
    first, second = which(batches, 1), which(batches, 2)
    assert batches.steps == 3
    assert len(set(first)) == len(first) == 48
    assert first != second
    assert set(first) != set(second)  # another two wait
    assert which(batches, 1) == first
    assert which(replace(batches, seed=1), 1) != first


def test_all_images_come_in_the_long_run() -> None:
    batches = numbered()
    assert {image for epoch in range(20) for image in which(batches, epoch)} == set(range(50))


def test_normalization_is_the_data_sets() -> None:
    data = tiny.images(40, 0, shape=(3, 6, 6))
    data = replace(data, mean=(0.1, 0.2, 0.3), std=(0.2, 0.3, 0.4))
    batches = Batches(data, PLAIN, 40)
    ((images, labels),) = batches.epoch(3)
    order = images.flatten(1).sum(1).argsort()
    expected = data.batch()
    place = expected.flatten(1).sum(1).argsort()
    torch.testing.assert_close(images[order], expected[place], rtol=1e-6, atol=1e-6)
    assert torch.equal(labels[order], data.labels[place])


def test_labels_go_with_their_images() -> None:
    data = tiny.images(60, 0)
    lookup = {tuple(image.flatten().tolist()): int(label)
              for image, label in zip(data.images, data.labels, strict=True)}  # fmt: skip
    for images, labels in Batches(data, PLAIN, 20).epoch(0):
        pixels = ((images * data.std[0] + data.mean[0]) * 255).round().to(torch.uint8)
        found = [lookup[tuple(image.flatten().tolist())] for image in pixels]
        assert found == labels.tolist()


def test_crops_are_padded_with_black_and_holes_have_the_mean_colour() -> None:
    data = replace(tiny.images(40, 0), images=torch.full((40, 1, 6, 6), 200, dtype=torch.uint8))
    black, grey = (0 - 0.3) / 0.25, (200 / 255 - 0.3) / 0.25
    ((cropped, _),) = Batches(data, Augmentation(crop=2), 40).epoch(0)
    ((holes, _),) = Batches(data, Augmentation(cutout=3), 40).epoch(0)
    for images, other in ((cropped, black), (holes, 0.0)):
        values = images.unique().tolist()
        assert values == pytest.approx(sorted([other, grey]), abs=1e-5)


def test_augmentation_is_the_epochs_own() -> None:
    batches = Batches(tiny.images(40, 0), Augmentation(crop=2, flip=True, mixup=0.5), 20)
    first, again, other = (list(batches.epoch(epoch)) for epoch in (1, 1, 2))
    for (images, targets), (same, same_targets) in zip(first, again, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(targets, same_targets)
        assert targets.shape == (20, 3)
        torch.testing.assert_close(targets.sum(1), torch.ones(20))
    assert not torch.equal(first[0][0], other[0][0])


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_is_as_asked(channels_last: bool) -> None:
    data = tiny.images(20, 0, shape=(3, 6, 6))
    ((images, _),) = Batches(data, PLAIN, 20, channels_last=channels_last).epoch(0)
    assert images.is_contiguous(memory_format=torch.channels_last) is channels_last
