"""The exponential moving average of a network's weights and of its BatchNorm statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    r"""A second network whose weights follow the first one's.

    After step t it moves by :math:`\bar w \leftarrow \beta_t\bar w + (1 - \beta_t) w` with
    :math:`\beta_t = \min(\beta, (1 + t)/(10 + t))`, so that the random start is forgotten soon
    (the ramp of TensorFlow's ``ExponentialMovingAverage``). Statistics of BatchNorm are averaged
    likewise; counters are copied.

    Of binarized networks the latent weights are averaged, and their signs taken afterwards.

    Args:
        model: the network that trains.
        decay: β.

    Attributes:
        model: the averaged network, in evaluation mode.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(model.weight, 0.0)
    >>> average = WeightAverage(model, decay=0.5)
    >>> _ = nn.init.constant_(model.weight, 1.0)
    >>> average.update(step=100)
    >>> float(average.model.weight)
    0.5
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        pairs = list(
            zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        )
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        # state_dict gives the tensors themselves, which training changes in place
        self._moving: tuple[list[Tensor], list[Tensor]] = _apart(moving)
        self._copied: tuple[list[Tensor], list[Tensor]] = _apart(copied)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the network after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        own, others = self._moving
        torch._foreach_lerp_(own, others, 1 - decay)
        for mine, other in zip(*self._copied, strict=True):
            mine.copy_(other)


def _apart(pairs: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    return [first for first, _ in pairs], [second for _, second in pairs]
