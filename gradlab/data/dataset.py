"""A whole set of images on one device, ready to be cut into batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradlab.data.splits import fingerprint


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels of one split, with what is needed to normalize and to cite them.

    The images stay bytes, a quarter of the memory of floats; :meth:`batch` normalizes.

    Attributes:
        name: the set.
        split: ``train``, ``validation`` or ``test``.
        images: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64, on the same device, from 0 to the number of classes − 1.
        classes: the names of the classes.
        mean: per channel, of the training images in [0, 1].
        std: likewise.
        record: where the images come from: the SHA-256 of every file read, the seed and the
            SHA-256 of the sorted indices of the split. Can be written as JSON.

    Raises:
        ValueError: shapes, types, devices or labels that do not fit each other.

    >>> images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    >>> data = Dataset("tiny", "test", images, labels, ("no", "yes"), (0.5,), (0.25,), {})
    >>> len(data), data.image_shape, data.num_classes, float(data.batch()[0, 0, 0, 0])
    (2, (1, 4, 4), 2, -2.0)
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    record: dict[str, Any]

    def __post_init__(self) -> None:
        mistake = self._mistake()
        if mistake:
            raise ValueError(f"{self.name} ({self.split}): {mistake}.")

    def _mistake(self) -> str | None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4:
            return (f"images are {images.dtype} of shape {tuple(images.shape)}: give uint8 of "
                    "shape (N, C, H, W)")  # fmt: skip
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            return (f"labels are {labels.dtype} of shape {tuple(labels.shape)}: give int64 of "
                    f"shape ({len(images)},), one per image")  # fmt: skip
        if labels.device != images.device:
            return f"images are on {images.device} and labels on {labels.device}: move one of them"
        channels = images.shape[1]
        if len(self.mean) != channels or len(self.std) != channels:
            return (f"{channels} channels, {len(self.mean)} means and {len(self.std)} standard "
                    "deviations: give one of each per channel")  # fmt: skip
        if min(self.std, default=1.0) <= 0:
            return f"a standard deviation is {min(self.std)}: give positive ones"
        if len(labels):
            low, high = (int(bound) for bound in torch.aminmax(labels))
            if low < 0 or high >= len(self.classes):
                return (f"labels go from {low} to {high}, and the {len(self.classes)} classes are "
                        f"numbered from 0 to {len(self.classes) - 1}")  # fmt: skip
        return None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(
        self, index: Tensor | slice | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Images scaled to [0, 1] and normalized by mean and standard deviation.

        Args:
            index: which images: whole numbers, booleans or a slice; ``None`` for all.
            dtype: a floating-point type.

        Returns:
            ``(B, C, H, W)``.
        """
        return normalized(self._chosen(self.images, index), self.mean, self.std, dtype)

    def subset(self, index: Tensor | slice) -> Dataset:
        """The chosen images with their labels; the record says which they are."""
        positions = self._chosen(torch.arange(len(self), device=self.images.device), index).cpu()
        chosen = {"size": len(positions), "indices_sha256": fingerprint(positions.numpy())}
        return replace(
            self,
            images=self._chosen(self.images, index),
            labels=self._chosen(self.labels, index),
            record={**self.record, "subset": [*self.record.get("subset", []), chosen]},
        )

    def _chosen(self, tensor: Tensor, index: Tensor | slice | None) -> Tensor:
        if index is None:
            return tensor
        if isinstance(index, Tensor):
            if index.ndim != 1 or index.is_floating_point() or index.is_complex():
                raise ValueError(f"the index is {index.dtype} of shape {tuple(index.shape)}: give "
                                 "whole numbers or booleans in one dimension.")  # fmt: skip
            # A byte would be taken for a boolean.
            index = index if index.dtype == torch.bool else index.long()
        return tensor[index]


def normalized(
    images: Tensor, mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype
) -> Tensor:
    """``(images / 255 − mean) / std`` per channel.

    Args:
        images: ``(B, C, H, W)``, uint8.
        mean: ``C`` of them.
        std: ``C`` of them.
        dtype: of the result; the constants are rounded to it, not the other way round.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}: give a floating-point type, such as torch.float32.")
    constants = torch.tensor([mean, std], dtype=torch.float64).view(2, -1, 1, 1)
    scale = (1 / (255 * constants[1])).to(images.device, dtype)
    shift = (-constants[0] / constants[1]).to(images.device, dtype)
    return images.to(dtype).mul_(scale).add_(shift)
