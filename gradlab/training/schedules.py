"""Learning rates as pure functions of the step.

Every schedule begins with a linear warm-up over ``warmup_epochs`` (its last step has the full lr)
and then follows its own curve to the last step. Nothing has a state, so a run that is resumed goes
on where it was.

>>> names()
['constant', 'cosine', 'exponential', 'linear', 'one_cycle', 'step']
>>> schedule = create("cosine", warmup_epochs=1)
>>> [round(schedule.rate(0.1, step, 2, 4), 4) for step in range(8)]
[0.05, 0.1, 0.1, 0.0933, 0.075, 0.05, 0.025, 0.0067]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradlab._registry import Registry


class Schedule(Protocol):
    """A learning rate for every step."""

    def check(self, epochs: int) -> None:
        """Refuse what does not fit into a run of so many epochs."""

    def rate(self, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""


REGISTRY: Registry[Schedule] = Registry("schedule", group="gradlab.schedules")


def names() -> list[str]:
    """The registered schedules, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> Schedule:
    """The schedule called ``name``.

    Raises:
        ValueError: unknown name or option, or an option out of range.

    >>> create("cosin")
    Traceback (most recent call last):
    ValueError: unknown schedule 'cosin': did you mean 'cosine'? Valid: constant, cosine, ...
    """
    return REGISTRY.create(name, **options)


def _number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Refuse anything but a finite number in [low, high]."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and low <= number <= high):
        end = f" to {high:g}" if math.isfinite(high) else " on"
        raise ValueError(f"{name} is {value!r}: give a number from {low:g}{end}.")


@dataclass(frozen=True)
class _Warm:
    """The warm-up that all schedules share."""

    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        _number("warmup_epochs", self.warmup_epochs, 0)

    def check(self, epochs: int) -> None:
        """Refuse a warm-up as long as the run."""
        if self.warmup_epochs >= epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g} in a run of {epochs}: give fewer."
            )

    def rate(self, lr: float, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        warm = round(self.warmup_epochs * steps_per_epoch)
        if step < warm:
            return lr * (step + 1) / warm
        total = epochs * steps_per_epoch
        return self._after(lr, (step - warm) / max(total - warm, 1), step / steps_per_epoch)

    def _after(self, lr: float, progress: float, epoch: float) -> float:
        """The rate at a fraction of the steps behind the warm-up, in [0, 1)."""
        raise NotImplementedError


@REGISTRY.register("constant")
@dataclass(frozen=True)
class Constant(_Warm):
    """The same rate throughout.

    Args:
        warmup_epochs: epochs of linear warm-up; fractions count.
    """

    def _after(self, lr: float, progress: float, epoch: float) -> float:
        return lr


@REGISTRY.register("cosine")
@dataclass(frozen=True)
class Cosine(_Warm):
    """Half a cosine from lr to ``final_lr`` (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5).

    Args:
        warmup_epochs: epochs of linear warm-up; fractions count.
        final_lr: where the curve would arrive one step behind the last.
    """

    final_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("final_lr", self.final_lr, 0)

    def _after(self, lr: float, progress: float, epoch: float) -> float:
        return self.final_lr + (lr - self.final_lr) * (1 + math.cos(math.pi * progress)) / 2


@REGISTRY.register("linear")
@dataclass(frozen=True)
class Linear(_Warm):
    """Constant for a while, then a straight line from lr to ``final_lr``.

    Args:
        warmup_epochs: epochs of linear warm-up; fractions count.
        hold: fraction of the steps behind the warm-up that keep the full lr.
        final_lr: where the line would arrive one step behind the last.
    """

    hold: float = 0.0
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("hold", self.hold, 0, 1)
        _number("final_lr", self.final_lr, 0)

    def _after(self, lr: float, progress: float, epoch: float) -> float:
        if progress <= self.hold:
            return lr
        return lr + (self.final_lr - lr) * (progress - self.hold) / (1 - self.hold)


@REGISTRY.register("exponential")
@dataclass(frozen=True)
class Exponential(_Warm):
    """Multiplied by ``gamma`` after every epoch.

    Args:
        warmup_epochs: epochs of linear warm-up; fractions count.
        gamma: the factor.
    """

    gamma: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("gamma", self.gamma, 0, 1)

    def _after(self, lr: float, progress: float, epoch: float) -> float:
        return lr * self.gamma ** math.floor(epoch)


@REGISTRY.register("step")
@dataclass(frozen=True)
class Step(_Warm):
    """Multiplied by ``gamma`` at each milestone.

    Args:
        warmup_epochs: epochs of linear warm-up; fractions count.
        milestones: numbers of epochs done, rising.
        gamma: the factor.
    """

    milestones: Sequence[float] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("gamma", self.gamma, 0, 1)
        if not isinstance(self.milestones, list | tuple) or not self.milestones:
            raise ValueError(
                f"milestones is {self.milestones!r}: give the epochs at which the rate falls, such "
                "as [100, 150]."
            )
        for milestone in self.milestones:
            _number("a milestone", milestone, 0)

    def check(self, epochs: int) -> None:
        """Refuse a warm-up as long as the run, and milestones behind its end."""
        super().check(epochs)
        late = [milestone for milestone in self.milestones if milestone >= epochs]
        if late:
            raise ValueError(
                f"milestone {late[0]:g} lies behind the end of a run of {epochs} epochs: leave it "
                "out."
            )

    def _after(self, lr: float, progress: float, epoch: float) -> float:
        return lr * self.gamma ** sum(epoch >= milestone for milestone in self.milestones)


@REGISTRY.register("one_cycle")
@dataclass(frozen=True)
class OneCycle(_Warm):
    """Up to lr and down to ``final_lr``, both by half a cosine (Smith and Topin 2019, 1708.07120).

    Args:
        warmup_epochs: epochs of linear warm-up before the cycle; fractions count.
        rise: fraction of the cycle that goes up.
        start_factor: the cycle starts at lr times this.
        final_lr: where the curve would arrive one step behind the last.
    """

    rise: float = 0.3
    start_factor: float = 0.04
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _number("rise", self.rise, 0, 1)
        _number("start_factor", self.start_factor, 0, 1)
        _number("final_lr", self.final_lr, 0)

    def _after(self, lr: float, progress: float, epoch: float) -> float:
        if progress < self.rise:
            low, share = lr * self.start_factor, progress / self.rise
            return low + (lr - low) * (1 - math.cos(math.pi * share)) / 2
        share = (progress - self.rise) / max(1 - self.rise, 1e-12)
        return self.final_lr + (lr - self.final_lr) * (1 + math.cos(math.pi * share)) / 2
