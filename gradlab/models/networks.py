"""What trainable networks have in common, and the checks of their options."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gradlab.binary.layers import BinaryConv2d, BinaryLinear, set_progress
from gradlab.models.mlp import positive_integer


class Network(nn.Module):
    """A classifier of images with binarized layers.

    Attributes:
        input_shape: of one image, ``(C, H, W)``.
        num_classes: number of logits.
    """

    input_shape: tuple[int, int, int]
    num_classes: int

    def latent_weights(self) -> dict[str, nn.Parameter]:
        """Weights whose sign is used, by name: what training clamps to [−1, 1]."""
        return {name: layer.weight for name, layer in self._binarized() if layer.binary}

    def layers(self) -> tuple[str, ...]:
        """Names of the weights of all binarized layers, from input to output.

        Binarized are layers with binary inputs, whether their weights are binary or real.
        """
        return tuple(name for name, _ in self._binarized())

    def surrogate_progress(self, progress: float) -> None:
        """Tell scheduled surrogates which fraction of training, in [0, 1], is done."""
        set_progress(self, progress)

    def check(self, images: Tensor) -> Tensor:
        """The images; a ``ValueError`` where they are not ``(B, C, H, W)`` of this network."""
        if tuple(images.shape[1:]) != self.input_shape:
            raise ValueError(
                f"images have shape {tuple(images.shape[1:])}, and the network takes "
                f"{self.input_shape}: give another data set, or the model input_shape = "
                f"{list(images.shape[1:])}."
            )
        return images

    def _binarized(self) -> list[tuple[str, BinaryConv2d | BinaryLinear]]:
        return [
            (f"{name}.weight", layer)
            for name, layer in self.named_modules()
            if isinstance(layer, BinaryConv2d | BinaryLinear)
        ]


def image_shape(given: Sequence[int]) -> tuple[int, int, int]:
    """A shape ``(C, H, W)``; anything else is refused in one sentence."""
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in given)
    if len(given) != 3 or not whole:
        raise ValueError(
            f"input_shape is {list(given)!r}: give channels, height and width, such as [3, 32, 32]."
        )
    channels, height, width = given
    return channels, height, width


def check_sizes(**sizes: int) -> None:
    """Refuse sizes that are no whole numbers above zero."""
    for name, size in sizes.items():
        positive_integer(name, size)
