"""The weight beta of the divergence in the loss, as a pure function of where training is.

The loss of a step is the mean negative log-likelihood of its batch plus beta · KL / N, with KL the
sum over all weights and N the size of the training set. Times N that is the usual bound, if beta is
1: a batch's mean stands for the whole set's, at every step. So over an epoch of M steps beta sums
to M, however it is spread, or else the prior counts for less (or more) than the model says.

Epochs count from 1, steps within an epoch from 0. ``scale``, an option of all, multiplies the
weight; at 1 the objective is in the end the bound itself, below it the posterior is tempered.

>>> names()
['blundell', 'constant', 'linear', 'soenderby', 'standard']
>>> schedule = create("linear", start=5, length=15)
>>> [round(schedule.weight(epoch, 0, 600, 200), 3) for epoch in (1, 5, 6, 19, 20, 200)]
[0.0, 0.0, 0.067, 0.933, 1.0, 1.0]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from gradlab._registry import Registry, unknown
from gradlab.estimators.base import at_least_zero

_MODES = ("correct", "faithful")


class KLWeight(Protocol):
    """A weight of the divergence for every step."""

    def weight(self, epoch: int, step_in_epoch: int, steps_per_epoch: int, epochs: int) -> float:
        """Beta at a step, at least 0; epochs count from 1, steps within an epoch from 0."""


REGISTRY: Registry[KLWeight] = Registry("KL weight")


def names() -> list[str]:
    """The registered schedules, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> KLWeight:
    """The schedule called ``name``.

    Raises:
        ValueError: unknown name or option, or an option out of range.

    >>> create("linaer")
    Traceback (most recent call last):
    ValueError: unknown KL weight 'linaer': did you mean 'linear'? Valid: blundell, constant, ...
    >>> create("constant", scale=-1)
    Traceback (most recent call last):
    ValueError: scale is -1: give a finite number of at least 0.
    """
    return REGISTRY.create(name, **options)


@dataclass(frozen=True)
class _Scaled:
    """The factor that all schedules share."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        at_least_zero("scale", self.scale)

    def weight(self, epoch: int, step_in_epoch: int, steps_per_epoch: int, epochs: int) -> float:
        """Beta at a step.

        Args:
            epoch: from 1 to ``epochs``.
            step_in_epoch: from 0 to ``steps_per_epoch`` − 1.
            steps_per_epoch: M, the number of batches.
            epochs: of the whole run.

        Raises:
            ValueError: an epoch or step outside the run.
        """
        if not 1 <= epoch <= epochs:
            raise ValueError(f"epoch is {epoch!r} of {epochs!r}: epochs count from 1.")
        if not 0 <= step_in_epoch < steps_per_epoch:
            raise ValueError(
                f"step_in_epoch is {step_in_epoch!r} of {steps_per_epoch!r}: steps count from 0."
            )
        return self.scale * self._share(epoch, step_in_epoch, steps_per_epoch, epochs)

    def _share(self, epoch: int, step: int, steps: int, epochs: int) -> float:
        """Beta for a scale of 1."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Spread(_Scaled):
    """An epoch's weight spread over its steps: M in all, or 1 as its first implementations had."""

    mode: str = "correct"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in _MODES:
            raise ValueError(unknown("mode of a KL weight", self.mode, _MODES))

    def _share(self, epoch: int, step: int, steps: int, epochs: int) -> float:
        total = steps if self.mode == "correct" else 1
        return total * self._part(step, steps)

    def _part(self, step: int, steps: int) -> float:
        """The step's part of its epoch; the parts of an epoch sum to 1."""
        raise NotImplementedError


@REGISTRY.register("constant")
@dataclass(frozen=True)
class Constant(_Scaled):
    """``scale`` at every step.

    Args:
        scale: the weight, at least 0.
    """

    def _share(self, epoch: int, step: int, steps: int, epochs: int) -> float:
        return 1.0


@REGISTRY.register("linear")
@dataclass(frozen=True)
class Linear(_Scaled):
    """0 up to epoch ``start``, a straight line to ``scale`` at ``start + length``, then constant.

    The defaults are those of the authors of sparse variational dropout (Molchanov et al. 2017,
    arXiv 1701.05369), who pretrain in this way: 0 in epochs before 5, (epoch − 5)/15 up to 20.

    Args:
        scale: final weight, at least 0.
        start: the last epoch of weight 0.
        length: epochs from there to the final weight; 0 to jump.
    """

    start: float = 5
    length: float = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_zero("start", self.start)
        at_least_zero("length", self.length)

    def _share(self, epoch: int, step: int, steps: int, epochs: int) -> float:
        since = epoch - self.start
        return min(since / self.length, 1.0) if 0 <= since < self.length else float(since > 0)


@REGISTRY.register("blundell")
@dataclass(frozen=True)
class Blundell(_Spread):
    """Halved at every step of an epoch (Blundell et al. 2015, arXiv 1505.05424, eq. 9).

    Batch i of M = ``steps_per_epoch`` gets M · 2^(−i) / (1 − 2^(−M)), i = 1, …, M: first the prior
    speaks, then the data. That is M times their 2^(M − i) / (2^M − 1), which belongs beside a
    likelihood that is summed over its batch, and overflows from M = 1024 on.

    Args:
        scale: the mean weight over an epoch, at least 0.
        mode: ``"correct"``, or ``"faithful"`` to code that puts the published weights, which sum to
            1, beside a likelihood scaled to the whole training set: the divergence counts M times
            too little.

    >>> schedule = create("blundell")
    >>> [round(schedule.weight(1, step, 4, 10), 3) for step in range(4)]
    [2.133, 1.067, 0.533, 0.267]
    """

    def _part(self, step: int, steps: int) -> float:
        return math.ldexp(1.0, -(step + 1)) / (1 - math.ldexp(1.0, -steps))


@REGISTRY.register("standard")
@dataclass(frozen=True)
class Standard(_Spread):
    """The same at every step (Graves 2011; Blundell et al. 2015, arXiv 1505.05424, eq. 8).

    Args:
        scale: the weight, at least 0.
        mode: ``"correct"``, which is the same as ``"constant"``; or ``"faithful"`` to code that
            takes 1/M beside a likelihood scaled to the whole training set: the divergence counts M
            times too little.

    >>> [create("standard", mode=mode).weight(1, 0, 4, 10) for mode in ("correct", "faithful")]
    [1.0, 0.25]
    """

    def _part(self, step: int, steps: int) -> float:
        return 1 / steps


@REGISTRY.register("soenderby")
@dataclass(frozen=True)
class Soenderby(_Scaled):
    """A straight line over the first quarter of the run, min(epoch / (epochs / 4), 1).

    Warm-up after Sønderby et al. 2016 (arXiv 1602.02282).

    Args:
        scale: final weight, at least 0.

    >>> [create("soenderby").weight(epoch, 0, 600, 16) for epoch in (1, 2, 4, 16)]
    [0.25, 0.5, 1.0, 1.0]
    """

    def _share(self, epoch: int, step: int, steps: int, epochs: int) -> float:
        return min(4 * epoch / epochs, 1.0)
