"""Batches of a training set that lies on its device as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradlab.data import Augmentation, Dataset
from gradlab.training.state import AUGMENTATION, ORDER, generator


@dataclass(frozen=True)
class Batches:
    """The batches of every epoch, as pure functions of the seed and the epoch.

    Crops and flips are made on bytes (what lies outside an image is black), holes and mixtures on
    normalized images (a hole has the mean colour). Every batch has ``batch_size`` images; what is
    left at the end of an epoch waits for the permutation of another one. So all steps weigh the
    same, and a compiled network meets one shape.

    Attributes:
        data: the training set, on the device that trains.
        augmentation: what is done to images.
        batch_size: images of a batch.
        seed: of the run.
        channels_last: memory format of the images.

    Raises:
        ValueError: fewer images than a batch has, or a crop as large as an image.
    """

    data: Dataset
    augmentation: Augmentation
    batch_size: int
    seed: int = 0
    channels_last: bool = False

    def __post_init__(self) -> None:
        if len(self.data) < self.batch_size:
            raise ValueError(
                f"loop.batch_size is {self.batch_size}, and there are {len(self.data)} images to "
                "train on: give a smaller one."
            )
        side = min(self.data.image_shape[1:])
        if self.augmentation.crop >= side:
            raise ValueError(
                f"data.crop is {self.augmentation.crop} for images of {side} pixels: give less."
            )

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self.data) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch.

        Returns:
            Normalized images ``(B, C, H, W)`` with labels ``(B,)``, or with soft targets ``(B, K)``
            where images are mixed.
        """
        data, augmentation = self.data, self.augmentation
        device = data.images.device
        order = torch.randperm(len(data), generator=generator(self.seed, ORDER, epoch)).to(device)
        drawn = generator(self.seed, AUGMENTATION, epoch)
        moved, holes = replace(augmentation, cutout=0), Augmentation(cutout=augmentation.cutout)
        # once per epoch: a constant made for every batch would be a copy to the device each time
        mean = torch.tensor(data.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(data.std, dtype=torch.float64).view(-1, 1, 1)
        scale = (1 / (255 * std)).to(device, torch.float32)
        shift = (-mean / std).to(device, torch.float32)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        for step in range(self.steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            images, targets = data.images[chosen], data.labels[chosen]
            images = moved.apply(images, drawn).to(torch.float32).mul_(scale).add_(shift)
            images = holes.apply(images, drawn)
            if augmentation.mixup:
                images, targets = augmentation.mix(images, targets, data.num_classes, drawn)
            yield images.contiguous(memory_format=layout), targets
