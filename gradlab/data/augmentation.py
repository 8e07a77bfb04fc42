"""Random crops, flips, cutout and mixup of whole batches, on their device.

No loop runs over images. Every random number comes from the generator that is given, which may
stay on the processor while the images are on a GPU; the same state gives the same augmentation on
either. Cropping reads rows of the padded batch as one table of overlapping windows, so that each
row of the result is one copy of adjacent pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab._registry import unknown

PADDINGS = ("zero", "reflect")


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch, in this order.

    Random crops of padded images and horizontal flips are the usual augmentation of CIFAR (Lee et
    al., "Deeply-supervised nets", AISTATS 2015; He et al., "Deep residual learning for image
    recognition", CVPR 2016, section 4.2). Cutout: DeVries and Taylor, "Improved regularization of
    convolutional neural networks with cutout", arXiv:1708.04552, 2017. Mixup: Zhang, Cisse,
    Dauphin and Lopez-Paz, "mixup: beyond empirical risk minimization", ICLR 2018.

    Attributes:
        crop: pad by so many pixels on each side, then crop back at an offset of its own for each
            image.
        flip: mirror each image with probability 1/2.
        cutout: side of a square around a random pixel that is set to zero, in each image; what
            lies beyond the border is lost, so that smaller holes occur.
        mixup: α of Beta(α, α), for :meth:`mix`; 0 leaves batches unmixed.
        padding: ``zero`` or ``reflect`` (mirrored at the border, without repeating it). Zero is
            the mean colour of normalized images, and black in bytes.

    Raises:
        ValueError: a value out of range.

    >>> images = torch.arange(18.0).view(2, 1, 3, 3)
    >>> Augmentation(flip=True).apply(images, torch.Generator().manual_seed(0))[0, 0]
    tensor([[0., 1., 2.],
            [3., 4., 5.],
            [6., 7., 8.]])
    """

    crop: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    padding: str = "zero"

    def __post_init__(self) -> None:
        for name in ("crop", "cutout"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} is {value!r}: give a number of pixels, 0 for none.")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip is {self.flip!r}: give true or false.")
        alpha = self.mixup
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
            raise ValueError(f"mixup is {alpha!r}: give a number, 0 for none.")
        if not math.isfinite(alpha) or alpha < 0:
            raise ValueError(f"mixup is {alpha!r}: give a finite number of at least 0.")
        if self.padding not in PADDINGS:
            raise ValueError(unknown("padding", self.padding, PADDINGS))

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Crop, flip and cut out.

        Args:
            images: ``(B, C, H, W)``, bytes or floats; they are not changed.
            generator: on the processor or on the images' device.

        Returns:
            ``(B, C, H, W)`` of the same type; the images themselves where nothing is asked for.

        Raises:
            ValueError: another number of dimensions, or a crop that is not smaller than the image.
        """
        if images.ndim != 4:
            raise ValueError(f"images have shape {tuple(images.shape)}: give (B, C, H, W).")
        if self.crop >= min(images.shape[2:]):
            raise ValueError(f"crop is {self.crop} for images of {images.shape[2]} × "
                             f"{images.shape[3]}: give less than a side.")  # fmt: skip
        if not images.numel() or not (self.crop or self.flip or self.cutout):
            return images
        if self.crop:
            result = _cropped(images, self.crop, self.padding, generator)
        else:
            result = images.clone()
        if self.flip:
            _flip(result, generator)
        if self.cutout:
            result.mul_(_outside_squares(result, self.cutout, generator))
        return result

    def mix(
        self, images: Tensor, labels: Tensor, num_classes: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Mix each image with another one of the batch, and their labels alike.

        One λ ~ Beta(α, α) serves the whole batch, as in the authors' implementation: x̃ =
        λ·xᵢ + (1 − λ)·xⱼ and ỹ likewise (equation 1 of the paper), with j a random permutation.

        Args:
            images: ``(B, C, H, W)``, floats; they are not changed.
            labels: ``(B,)``, int64.
            num_classes: number of classes ``K``.
            generator: on the processor or on the images' device.

        Returns:
            Images ``(B, C, H, W)``, and target probabilities ``(B, K)`` in float32. Where mixup is
            0, the images themselves and one-hot targets, without a random number drawn.

        Raises:
            ValueError: images that are not floats, or another number of labels.
        """
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, which cannot be mixed: give floats.")
        if labels.shape != images.shape[:1]:
            raise ValueError(f"{len(images)} images and labels of shape {tuple(labels.shape)}: "
                             "give one label per image.")  # fmt: skip
        targets = torch.zeros(len(labels), num_classes, device=labels.device)
        targets.scatter_(1, labels[:, None], 1.0)
        if not self.mixup:
            return images, targets
        share = _beta(self.mixup, generator)
        other = torch.randperm(len(images), generator=generator, device=generator.device)
        other = _sent(other, images)
        return images.lerp(images[other], 1 - share), targets.lerp(targets[other], 1 - share)


def _sent(small: Tensor, images: Tensor) -> Tensor:
    """A few numbers on the images' device, without waiting for what the device has still to do."""
    return small.to(images.device, non_blocking=True)


def _draw(high: int, shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers below ``high`` on the images' device."""
    drawn = torch.randint(high, shape, generator=generator, device=generator.device)
    return _sent(drawn, images)


def _cropped(images: Tensor, margin: int, padding: str, generator: torch.Generator) -> Tensor:
    """A window of the padded image, at an offset of its own for each image."""
    count, channels, height, width = images.shape
    padded = _padded(images, margin, padding)
    across = width + 2 * margin
    down, right = _draw(2 * margin + 1, (2, count), images, generator)
    plane = torch.arange(count * channels, device=images.device).view(count, channels, 1)
    row = torch.arange(height, device=images.device)
    first = (plane * (height + 2 * margin) + down[:, None, None] + row) * across
    first = first + right[:, None, None]
    flat = padded.view(-1)
    windows = flat.as_strided((flat.numel() - width + 1, width), (1, 1))
    return windows.index_select(0, first.view(-1)).view(images.shape)


def _padded(images: Tensor, margin: int, padding: str) -> Tensor:
    if padding == "zero":
        return F.pad(images, (margin,) * 4).contiguous()
    # torch's own reflection does not take bytes
    count, channels, height, width = images.shape
    padded = images.new_empty(count, channels, height + 2 * margin, width + 2 * margin)
    rows = padded[:, :, margin:-margin]
    rows[..., margin:-margin] = images
    rows[..., :margin] = images[..., 1 : margin + 1].flip(-1)
    rows[..., -margin:] = images[..., -margin - 1 : -1].flip(-1)
    padded[:, :, :margin] = rows[:, :, 1 : margin + 1].flip(-2)
    padded[:, :, -margin:] = rows[:, :, -margin - 1 : -1].flip(-2)
    return padded


def _flip(images: Tensor, generator: torch.Generator) -> None:
    """Mirror about half of the images left to right, in place."""
    chosen = torch.randint(2, (len(images),), generator=generator, device=generator.device)
    which = _sent(chosen.nonzero()[:, 0], images)
    images.index_copy_(0, which, images.index_select(0, which).flip(-1))


def _outside_squares(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """``(B, 1, H, W)``, false in a square around a random pixel of each image."""
    count, _, height, width = images.shape
    inside = []
    for length in (height, width):
        first = _draw(length, (count, 1), images, generator) - side // 2
        position = torch.arange(length, device=images.device)
        inside.append((position >= first) & (position < first + side))
    rows, columns = inside
    return ~(rows[:, None, :, None] & columns[:, None, None, :])


def _beta(alpha: float, generator: torch.Generator) -> float:
    # torch's Beta takes no generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return float(np.random.default_rng(int(seed)).beta(alpha, alpha))
