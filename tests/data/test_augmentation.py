"""Each image is its own crop, mirror or hole, and the generator decides everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.data import Augmentation

DTYPES = [torch.float32, torch.uint8, torch.float64, torch.bfloat16]
shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(2, 7), st.integers(2, 7))
seeds = st.integers(0, 2**32)
paddings = st.sampled_from(["zero", "reflect"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distinct(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images in which no pixel is zero and, in floats, no two are equal."""
    count = torch.Size(shape).numel()
    if dtype == torch.uint8:
        return (torch.arange(count) % 255 + 1).to(dtype).view(shape)
    return torch.randperm(count, generator=seeded(1)).to(dtype).add(1).view(shape)


def padded(images: Tensor, margin: int, padding: str) -> Tensor:
    """The padded batch by its definition, pixel by pixel."""
    count, channels, height, width = images.shape
    result = images.new_zeros(count, channels, height + 2 * margin, width + 2 * margin)
    for y in range(-margin, height + margin):
        for x in range(-margin, width + margin):
            if padding == "reflect":
                inside = [
                    min(abs(p), 2 * (side - 1) - abs(p)) for p, side in ((y, height), (x, width))
                ]
                result[:, :, y + margin, x + margin] = images[:, :, inside[0], inside[1]]
            elif 0 <= y < height and 0 <= x < width:
                result[:, :, y + margin, x + margin] = images[:, :, y, x]
    return result


def windows_of(image: Tensor, height: int, width: int) -> list[Tensor]:
    """All contiguous windows of one padded image."""
    return [
        image[:, y : y + height, x : x + width]
        for y in range(image.shape[1] - height + 1)
        for x in range(image.shape[2] - width + 1)
    ]


@given(shapes, seeds, st.integers(1, 3), paddings, st.sampled_from(DTYPES))
def test_each_crop_is_a_window_of_its_padded_image(
    shape: tuple[int, ...], seed: int, crop: int, padding: str, dtype: torch.dtype
) -> None:
    crop = min(crop, min(shape[2:]) - 1)
    images = distinct(*shape, dtype=dtype)
    found = Augmentation(crop=crop, padding=padding).apply(images, seeded(seed))
    assert found.shape == images.shape
    assert found.dtype == dtype
    for image, source in zip(found, padded(images, crop, padding), strict=True):
        assert any(image.equal(window) for window in windows_of(source, *shape[2:]))


def test_every_window_occurs_equally_often_and_for_each_image_by_itself() -> None:
    images = distinct(1, 1, 4, 4).expand(20_000, 1, 4, 4)
    found = Augmentation(crop=1).apply(images, seeded())
    windows = windows_of(padded(images[:1], 1, "zero")[0], 4, 4)
    often = torch.tensor([(found == window).all(dim=(1, 2, 3)).sum() for window in windows])
    assert often.sum() == 20_000
    # nine windows at p = 1/9: |z| below 4 has probability .9995 for all together
    assert (often - 20_000 / 9).abs().max() / (20_000 * 8 / 81) ** 0.5 < 4


@given(shapes, seeds, st.sampled_from(DTYPES))
def test_flips_mirror_or_leave(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> None:
    images = distinct(*shape, dtype=dtype)
    found = Augmentation(flip=True).apply(images, seeded(seed))
    same = (found == images).flatten(1).all(1)
    mirrored = (found == images.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()


def test_half_of_the_images_are_flipped() -> None:
    images = distinct(10_000, 1, 1, 2)
    changed = (Augmentation(flip=True).apply(images, seeded()) != images).flatten(1).any(1)
    assert abs(int(changed.sum()) - 5_000) / 50 < 4  # z below 4: probability .9999


@given(shapes, seeds, st.integers(1, 10), st.sampled_from(DTYPES))
def test_cutout_clears_a_square_that_the_border_may_clip(
    shape: tuple[int, ...], seed: int, side: int, dtype: torch.dtype
) -> None:
    images = distinct(*shape, dtype=dtype)
    found = Augmentation(cutout=side).apply(images, seeded(seed))
    hole = found == 0
    assert (found[~hole] == images[~hole]).all()
    assert (hole == hole[:, :1]).all()  # the same in every channel
    for one in hole[:, 0]:
        rows, columns = (one.any(dim).nonzero()[:, 0] for dim in (1, 0))
        assert one.sum() == len(rows) * len(columns)  # a rectangle
        for places, length in ((rows, shape[2]), (columns, shape[3])):
            assert (places.diff() == 1).all()
            assert min(length, side - side // 2) <= len(places) <= min(length, side)
            if len(places) < min(length, side):
                assert places[0] == 0 or places[-1] == length - 1  # clipped


def test_the_centre_of_a_hole_is_any_pixel() -> None:
    images = distinct(1, 1, 3, 5).expand(15_000, 1, 3, 5)
    often = (Augmentation(cutout=1).apply(images, seeded()) == 0).sum(0).flatten()
    assert often.sum() == 15_000
    assert (often - 1_000).abs().max() / (15_000 * 14 / 225) ** 0.5 < 4  # as for the windows


@given(shapes, seeds)
def test_nothing_asked_is_the_identity(shape: tuple[int, ...], seed: int) -> None:
    images = distinct(*shape)
    generator = seeded(seed)
    before = generator.get_state()
    assert Augmentation().apply(images, generator).equal(images)
    assert generator.get_state().equal(before)


ALL = Augmentation(crop=1, flip=True, cutout=2, mixup=0.5)


@given(shapes, seeds, paddings)
def test_the_state_of_the_generator_decides(
    shape: tuple[int, ...], seed: int, padding: str
) -> None:
    images, labels = distinct(*shape), torch.arange(shape[0]) % 2
    augmentation = Augmentation(crop=1, flip=True, cutout=2, mixup=0.5, padding=padding)
    copies = images.clone(), labels.clone()

    def run() -> tuple[Tensor, ...]:
        generator = seeded(seed)
        torch.manual_seed(int(torch.randint(1 << 30, ())))  # the global one has no part in it
        cropped = augmentation.apply(images, generator)
        mixed = augmentation.mix(cropped, labels, 2, generator)
        return cropped, *mixed, generator.get_state()

    assert all(a.equal(b) for a, b in zip(run(), run(), strict=True))
    assert images.equal(copies[0])  # the input is not modified
    assert labels.equal(copies[1])


def test_other_states_give_other_augmentations() -> None:
    images = distinct(8, 3, 8, 8)
    found = {ALL.apply(images, seeded(seed)).numpy().tobytes() for seed in range(50)}
    assert len(found) == 50


def test_the_layout_in_memory_does_not_matter() -> None:
    images = distinct(6, 3, 5, 5)
    expected = ALL.apply(images, seeded())
    for same in (
        images.contiguous(memory_format=torch.channels_last),
        images.transpose(2, 3).contiguous().transpose(2, 3),
        torch.cat([images, images], dim=3)[..., :5],
    ):
        assert ALL.apply(same, seeded()).equal(expected)


def test_an_empty_batch_stays_empty() -> None:
    assert ALL.apply(torch.zeros(0, 3, 8, 8), seeded()).shape == (0, 3, 8, 8)


@given(shapes, seeds, st.floats(0.05, 5.0), st.integers(1, 6))
def test_mixup_mixes_images_and_targets_alike(
    shape: tuple[int, ...], seed: int, alpha: float, num_classes: int
) -> None:
    count = shape[0]
    # one-hot images: what is mixed can be read off
    images = torch.eye(count, dtype=torch.float64).view(count, count, 1, 1)
    labels = torch.arange(count) % num_classes
    mixed, targets = Augmentation(mixup=alpha).mix(images, labels, num_classes, seeded(seed))
    weights = mixed.view(count, count)
    assert targets.shape == (count, num_classes)
    torch.testing.assert_close(targets.sum(1), torch.ones(count))
    torch.testing.assert_close(weights.sum(1), torch.ones(count, dtype=torch.float64))
    one_hot = torch.nn.functional.one_hot(labels, num_classes).double()
    torch.testing.assert_close(targets.double(), weights @ one_hot, rtol=0, atol=1e-6)
    # λ for itself and 1 − λ for one other (or itself), the same λ for the whole batch
    shares = {round(float(share), 9) for share in weights.flatten()} - {0.0, 1.0}
    assert len(shares) <= 2
    assert not shares or sum(shares) in (pytest.approx(1), pytest.approx(0.5))
    assert weights.sum(0).tolist() == pytest.approx([1.0] * count)  # a permutation


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_share_of_mixup_has_the_moments_of_its_beta(alpha: float) -> None:
    images = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    labels = torch.tensor([0, 1])
    generator = seeded()
    augmentation = Augmentation(mixup=alpha)
    shares = torch.tensor(
        [float(augmentation.mix(images, labels, 2, generator)[0][0]) for _ in range(4_000)]
    )
    # Where the permutation leaves both in place, 0 stays 0: half of the time.
    shares = shares[shares != 0]
    assert abs(len(shares) - 2_000) / 31.6 < 4
    variance = 1 / (4 * (2 * alpha + 1))
    error = (variance / len(shares)) ** 0.5
    assert abs(float(shares.mean()) - 0.5) < 4 * error
    # the fourth central moment is below 1/16, so this is a bound on the error of the variance
    assert abs(float(shares.var()) - variance) < 4 * (1 / 16 / len(shares)) ** 0.5


def test_without_mixup_targets_are_one_hot_and_nothing_is_drawn() -> None:
    generator = seeded()
    before = generator.get_state()
    images = distinct(3, 1, 2, 2)
    same, targets = Augmentation().mix(images, torch.tensor([2, 0, 1]), 3, generator)
    assert same is images
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert generator.get_state().equal(before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": -1}, "crop is -1: give a number of pixels"),
        ({"crop": 1.5}, "crop is 1.5"),
        ({"cutout": True}, "cutout is True"),
        ({"flip": 1}, "flip is 1: give true or false"),
        ({"mixup": -0.1}, "mixup is -0.1: give a finite number"),
        ({"mixup": float("inf")}, "mixup is inf"),
        ({"mixup": "0.2"}, "mixup is '0.2': give a number"),
        ({"padding": "reflct"}, "unknown padding 'reflct': did you mean 'reflect'"),
    ],
    ids=["negative", "half", "truth", "flip", "mixup", "infinite", "text", "padding"],
)
def test_a_bad_option_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Augmentation(**options)


IMAGES = distinct(2, 1, 4, 3)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Augmentation(crop=3).apply(IMAGES, seeded()), "crop is 3 for images of 4 × 3"),
        (lambda: ALL.apply(IMAGES[0], seeded()), r"images have shape \(1, 4, 3\)"),
        (lambda: ALL.mix(IMAGES.byte(), LABELS, 2, seeded()), r"torch\.uint8, which cannot be"),
        (lambda: ALL.mix(IMAGES, LABELS[:1], 2, seeded()), r"2 images and labels of shape \(1,\)"),
    ],
    ids=["crop", "dimensions", "bytes", "labels"],
)
def test_a_bad_batch_is_one_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("padding", ["zero", "reflect"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_generator_on_the_processor_serves_a_gpu(padding: str, dtype: torch.dtype) -> None:
    images, labels = distinct(16, 3, 8, 8, dtype=dtype), torch.arange(16) % 4
    augmentation = Augmentation(crop=2, flip=True, cutout=3, mixup=0.5, padding=padding)
    here = augmentation.apply(images, seeded())
    there = augmentation.apply(images.cuda(), seeded())
    assert there.is_cuda
    assert there.cpu().equal(here)
    expected = augmentation.mix(here.float(), labels, 4, seeded(1))
    found = augmentation.mix(there.float(), labels.cuda(), 4, seeded(1))
    assert all(x.is_cuda for x in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other)
    own = torch.Generator("cuda").manual_seed(0)
    assert augmentation.apply(images.cuda(), own).shape == images.shape
    assert augmentation.mix(there.float(), labels.cuda(), 4, own)[1].shape == (16, 4)
