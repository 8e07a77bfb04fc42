"""The real sets: counts, published channel statistics, first labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradlab.data import Dataset, check, find, load, splits_here
from gradlab.data.pickles import parse


def loaded(name: str, split: str, root: Path) -> Dataset:
    if split not in splits_here(name, root):
        pytest.skip(f"real data: {name} ({split}) is not in {root}")
    return load(name, split, root=root)


def statistics(*parts: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per channel, in [0, 1], exactly from counts of bytes."""
    images = torch.cat([part.images for part in parts])
    channels = [images[:, channel].flatten() for channel in range(images.shape[1])]
    counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
    value = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ value
    return mean, (share @ value**2 - mean**2).sqrt()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mnist"])
def test_the_channel_statistics_are_the_published_ones(name: str, real_data: Path) -> None:
    mean, std = statistics(loaded(name, "train", real_data))
    info = find(name)
    # published with four digits, some of them cut off and not rounded
    assert (mean - torch.tensor(info.mean, dtype=torch.float64)).abs().max() < 1e-4
    assert (std - torch.tensor(info.std, dtype=torch.float64)).abs().max() < 1e-4


def test_the_channel_statistics_of_uc_merced_are_those_of_all_images(real_data: Path) -> None:
    mean, std = statistics(*(loaded("uc_merced", x, real_data) for x in ("train", "test")))
    info = find("uc_merced")
    # copies differ: some were made of JPEG files, and by several versions of Pillow
    assert (mean - torch.tensor(info.mean, dtype=torch.float64)).abs().max() < 1e-3
    assert (std - torch.tensor(info.std, dtype=torch.float64)).abs().max() < 1e-3


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mnist", "uc_merced"])
def test_counts_and_classes(name: str, split: str, real_data: Path) -> None:
    data = loaded(name, split, real_data)
    info = find(name)
    assert len(data) == dict(info.sizes)[split]
    assert data.image_shape == info.image_shape
    assert data.num_classes == len(set(data.classes)) == info.num_classes
    counts = data.labels.bincount()
    if name != "mnist":  # which is not balanced
        assert counts.unique().tolist() == [len(data) // info.num_classes]


@pytest.mark.parametrize(
    ("name", "split", "labels"),
    [
        ("cifar10", "train", ["frog", "truck", "truck", "deer", "automobile"]),
        ("cifar10", "test", ["cat", "ship", "ship", "airplane", "frog"]),
        ("fashion_mnist", "test", ["Ankle boot", "Pullover", "Trouser", "Trouser", "Shirt"]),
        ("mnist", "train", list("50419")),
        ("mnist", "test", list("72104")),
    ],
    ids=["cifar10-train", "cifar10-test", "fashion-test", "mnist-train", "mnist-test"],
)
def test_the_first_images_are_what_everybody_knows(
    name: str, split: str, labels: list[str], real_data: Path
) -> None:
    data = loaded(name, split, real_data)
    assert [data.classes[label] for label in data.labels[:5]] == labels


def test_a_batch_of_cifar_holds_the_bytes_that_its_pickle_holds(real_data: Path) -> None:
    loaded("cifar10", "test", real_data)
    content = (real_data / "cifar-10-batches-py/test_batch").read_bytes()
    found = parse(content, "test_batch")
    # an opcode of its own, T and four bytes of length, carries all pixels at once
    size = 10_000 * 3072
    start = content.index(b"T" + size.to_bytes(4, "little")) + 5
    assert found["data"].tobytes() == content[start : start + size]
    assert len(found["filenames"]) == len(found["labels"]) == 10_000
    assert found["batch_label"] == b"testing batch 1 of 1"


def test_the_identical_pair_of_uc_merced_is_never_parted(real_data: Path) -> None:
    loaded("uc_merced", "train", real_data)
    for seed in range(3):
        parts = [
            [image.numpy().tobytes() for image in
             load("uc_merced", split, root=real_data, validation=0.1, seed=seed).images]
            for split in ("train", "validation", "test")
        ]  # fmt: skip
        assert sum(map(len, parts)) == 2_100
        assert sum(len(set(part)) for part in parts) == 2_099  # one pair, on one side
        assert len(set().union(*parts)) == 2_099


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mnist", "uc_merced"])
def test_what_is_here_is_intact(name: str, real_data: Path) -> None:
    states = check(name, real_data)
    assert all(state.state != "damaged" for state in states)
