"""A small set of images in place of a real one, for tests of networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradlab import data
from gradlab.data import Dataset
from gradlab.objectives import network_state


def fake(name: str, split: str, number: int) -> Dataset:
    """Noise with a little of its class in it."""
    info = data.find(name)
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.randint(0, info.num_classes, (number,), generator=generator)
    noise = torch.randint(0, 200, (number, *info.image_shape), generator=generator)
    images = (noise + 5 * labels[:, None, None, None]).clamp(max=255).to(torch.uint8)
    classes = tuple(str(each) for each in range(info.num_classes))
    return Dataset(name, split, images, labels, classes, info.mean, info.std, {"fake": number})


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every data set has 80 training and 210 test images; the splits read are listed."""
    read: list[str] = []

    def load(name: str, split: str = "train", **options: Any) -> Dataset:
        read.append(f"{name} {split}")
        return fake(name, split, 80 if split == "train" else 210)

    def forget() -> None:
        network_state._images.cache_clear()
        network_state._network_state.cache_clear()

    monkeypatch.setattr(data, "load", load)
    monkeypatch.setattr(data, "splits_here", lambda name, root=None: ["train", "test"])
    forget()
    yield read
    forget()
