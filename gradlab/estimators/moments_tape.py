r"""Random values of a network, and a tape of how their deviations reach the outputs.

Every operation gives the mean and the variance of its value, the latter as if its inputs were
independent. The tape keeps its derivative in the inputs, and its own sources of variance. Played
once from the start, with a zero that is differentiated in the place of every source, and backward
once for each output, it gives all slopes of the outputs in the sources, differentiable in the
parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.estimators.moments_sources import Source, apart, of_layer, of_parameter
from gradlab.evaluation.module.layers import Patches

_ZERO = torch.zeros(())  # the variance of what has none: recognized by identity

Map = Callable[[Tensor], Tensor]
Normals = Callable[[int, int], Tensor]
"""Standard normals of every example, ``(B, numbers)``, of a stream and a number of them."""


@dataclass(frozen=True)
class Moments:
    """A value that depends on noise.

    Attributes:
        mean: its mean.
        variance: to be broadcast to it.
        place: where its deviations stand among those that the outputs' covariance follows.
        sample: one draw of it, where one is needed.
        of_batch: it has a row for every example; otherwise it is made of parameters alone.
        signs: its values are ±1.
    """

    mean: Tensor
    variance: Tensor
    place: int | None = None
    sample: Tensor | None = None
    of_batch: bool = True
    signs: bool = False

    @property
    def second(self) -> Tensor:
        """Its second moment."""
        return self.mean.square() + self.variance

    @property
    def known(self) -> bool:
        """It is a constant, or made of parameters that have no noise."""
        return self.variance is _ZERO

    @property
    def spread(self) -> Tensor:
        """Its standard deviation, above zero."""
        return self.variance.clamp_min(1e-24).sqrt()


@dataclass(frozen=True)
class _Step:
    """A random value: how its deviations follow from earlier ones, and those that are its own."""

    maps: tuple[tuple[int | None, Map], ...]
    sources: tuple[Source, ...]
    like: Tensor


class Tape:
    """What happens to one block of examples.

    Args:
        normals: draws for samples.
        shared: positions share the noise of the weights in the outputs' covariance; otherwise each
            has its own.
    """

    def __init__(self, normals: Normals | None, shared: bool) -> None:
        self._normals, self._shared = normals, shared
        self._steps: list[_Step] = []
        self._streams = 0

    def record(
        self,
        mean: Tensor,
        variance: Tensor,
        maps: Iterable[tuple[int | None, Map]],
        sources: Iterable[Source] = (),
        sample: Tensor | None = None,
        signs: bool = False,
    ) -> Moments:
        """A value of the batch, see :class:`Moments`, with its derivatives and own sources."""
        self._steps.append(_Step(tuple(maps), tuple(sources), mean))
        return Moments(mean, variance, len(self._steps) - 1, sample, signs=signs)

    def _normal(self, like: Tensor, numbers: int) -> Tensor:
        assert self._normals is not None
        self._streams += 1
        return self._normals(self._streams, numbers).to(like)

    def covariance(self, outputs: Moments) -> Tensor:
        """Of the outputs of each example to first order, ``(B, K, K)``, differentiable."""
        deviations: list[Tensor | None] = []
        leaves, sources = [], []
        for step in self._steps:
            parts = [(deviations[i], f) for i, f in step.maps if i is not None]
            moved = [f(each) for each, f in parts if each is not None]
            total = sum(moved[1:], moved[0]) if moved else None
            if step.sources:
                leaves.append(torch.zeros_like(step.like, requires_grad=True))
                sources.append(step.sources)
                total = leaves[-1] if total is None else total + leaves[-1]
            deviations.append(total)
        final = None if outputs.place is None else deviations[outputs.place]
        size = len(outputs.mean)
        count = outputs.mean.numel() // size
        covariance = outputs.mean.new_zeros(size, count, count)
        if final is None:
            return covariance
        rows = [
            torch.autograd.grad(
                each.sum(), leaves, create_graph=True, allow_unused=True, retain_graph=True
            )
            for each in final.reshape(size, -1).unbind(1)
        ]
        for index, own in enumerate(sources):
            slopes = [row[index] for row in rows]
            found = [each for each in slopes if each is not None]
            if found:
                zero = torch.zeros_like(found[0])
                stacked = torch.stack([zero if each is None else each for each in slopes])
                for source in own:
                    covariance = covariance + source(stacked)
        return covariance

    def multiplied(
        self, x: Moments, weight: Moments, patches: Patches | None, sampled: bool
    ) -> Moments:
        """A linear layer or convolution without its bias.

        Args:
            x: its inputs.
            weight: ``(out, in)`` or ``(O, C / groups, kh, kw)``.
            patches: of a convolution.
            sampled: a sample is needed.
        """
        shape, noise = weight.mean.shape, weight.variance
        groups = 1 if patches is None else patches.groups

        def times(inputs: Tensor, filters: Tensor) -> Tensor:
            if patches is None:
                return F.linear(inputs, filters)
            padded = patches.pad(inputs)
            return F.conv2d(padded, filters, None, patches.stride, 0, patches.dilation, groups)

        def noisy(squares: Tensor) -> Tensor:
            if noise.dim():
                return times(squares, noise.expand(shape))
            if patches is None:
                return noise * squares.sum(-1, keepdim=True)
            found = noise * times(squares, squares.new_ones(groups, *shape[1:]))
            return found.repeat_interleave(shape[0] // groups, 1) if groups > 1 else found

        def unfolded(inputs: Tensor) -> Tensor:
            if patches is None:
                return inputs.flatten(1, -2).mT[:, None]
            size, padded = (shape[2], shape[3]), patches.pad(inputs)
            columns = F.unfold(padded, size, patches.dilation, 0, patches.stride)
            return columns.reshape(len(columns), groups, -1, columns.shape[2])

        mean = times(x.mean, weight.mean)
        variance = torch.zeros_like(mean)
        if not x.known:
            variance = times(x.variance.expand(x.mean.shape), weight.mean.square())
        positions, known = mean[0].numel() // shape[0], weight.known
        sources: list[Source] = []
        if not known:
            own = noisy(x.second)
            variance = variance + own
            if positions == 1 or not self._shared:
                sources = [apart(own)]
            else:
                sources = [of_layer(unfolded(x.mean), noise, patches is None)]
                if not x.known:
                    sources.append(apart(noisy(x.variance)))
        sample = None
        if sampled:
            given = x.mean if x.sample is None else x.sample
            sample = times(given, weight.mean)
            if known:
                pass
            elif positions == 1:
                spread = noisy(given.square()).clamp_min(1e-24).sqrt()
                sample = sample + spread * self._normal(given, shape[0]).reshape(mean.shape)
            else:
                drawn = self._normal(given, shape.numel()).reshape(-1, *shape) * noise.sqrt()
                columns = unfolded(given)
                drawn = drawn.reshape(len(given), groups, -1, columns.shape[2]) @ columns
                drawn = drawn.flatten(1, 2)
                sample = sample + (drawn.mT if patches is None else drawn).reshape(mean.shape)
        maps: list[tuple[int | None, Map]] = [(x.place, lambda t: times(t, weight.mean))]
        return self.record(mean, variance, maps, sources, sample)

    def shifted(self, x: Moments, y: Moments, sign: float = 1.0, sampled: bool = False) -> Moments:
        """Sum x + sign · y, of independent noise."""
        mean, variance = x.mean + sign * y.mean, x.variance + y.variance
        if not (x.of_batch or y.of_batch):
            return Moments(mean, variance, of_batch=False)
        noisy = [each for each in (x, y) if not (each.of_batch or each.known)]
        sources = [of_parameter(each.mean.shape, each.variance) for each in noisy]
        sample = None
        if sampled or x.sample is not None or y.sample is not None:
            sample = self._sample(x, mean) + sign * self._sample(y, mean)
        maps: list[tuple[int | None, Map]] = [
            (x.place, lambda t: t.expand(mean.shape)),
            (y.place, lambda t: sign * t.expand(mean.shape)),
        ]
        return self.record(mean, variance.expand(mean.shape), maps, sources, sample)

    def scaled(self, x: Moments, y: Moments, sampled: bool = False) -> Moments:
        """Product x · y, of independent noise."""
        mean = x.mean * y.mean
        variance = x.variance * y.mean.square() + x.second * y.variance
        if not (x.of_batch or y.of_batch):
            return Moments(mean, variance, of_batch=False)
        sources = [] if x.known or y.known else [apart(x.variance * y.variance)]
        for one, other in ((x, y), (y, x)):
            if not (one.of_batch or one.known):
                sources.append(of_parameter(one.mean.shape, one.variance, other.mean))
        sample = None
        if sampled or x.sample is not None or y.sample is not None:
            sample = self._sample(x, mean) * self._sample(y, mean)
        maps: list[tuple[int | None, Map]] = [
            (x.place, lambda t: t * y.mean), (y.place, lambda t: t * x.mean)
        ]  # fmt: skip
        return self.record(mean, variance.expand(mean.shape), maps, sources, sample)

    def _sample(self, x: Moments, like: Tensor) -> Tensor:
        """A draw of one side of a sum or product; of parameters, one for every example."""
        if x.sample is not None:
            return x.sample
        if x.of_batch or x.known:
            return x.mean
        drawn = self._normal(like, x.mean.numel()).reshape(-1, *x.mean.shape)
        drawn = drawn.reshape(-1, *[1] * (like.dim() - 1 - x.mean.dim()), *x.mean.shape)
        return x.mean + x.variance.clamp_min(1e-24).sqrt() * drawn


def moments_of(value: Any, of_batch: bool = False) -> Moments:
    """Any value as one that may be random."""
    if isinstance(value, Moments):
        return value
    if not isinstance(value, Tensor):
        value = torch.tensor(0.0 if value is None else float(value), dtype=torch.float64)
    return Moments(value, _ZERO, of_batch=of_batch)


def drawn(x: Moments) -> Tensor:
    """Its sample, or its mean where it has none."""
    return x.mean if x.sample is None else x.sample


def viewed(x: Moments, shape: tuple[int, ...]) -> Moments:
    """A parameter in another shape."""
    variance = x.variance.reshape(shape) if x.variance.dim() else x.variance
    return replace(x, mean=x.mean.reshape(shape), variance=variance)
