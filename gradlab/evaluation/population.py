r"""Populations: many parameter dicts evaluated together.

A population is one of

- a plain ``dict[str, Tensor]`` whose tensors have a leading dimension ``P``;
- a :class:`GaussianPopulation`, members :math:`\mu + \sigma\varepsilon_i` regenerated on demand;
- a :class:`LinePopulation`, members :math:`w - \eta_i g` for many learning rates :math:`\eta_i`.

The last two are never held in memory: 50,000 members at num_dim 32 would be 621 MB.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor

from gradlab.evaluation import noise

Params: TypeAlias = dict[str, Tensor]

LARGEST_ROUNDING = 0.01
"""Of sigma: a population that bfloat16 would move further is refused."""


def num_coordinates(params: Mapping[str, Tensor]) -> int:
    """Number of scalars in a parameter dict.

    >>> num_coordinates({"a": torch.zeros(2, 3), "b": torch.zeros(4)})
    10
    """
    return sum(tensor.numel() for tensor in params.values())


def coordinate_ranges(params: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """The half-open range of flat coordinates of each tensor, in the dict's order.

    >>> coordinate_ranges({"a": torch.zeros(2, 3), "b": torch.zeros(4)})
    {'a': (0, 6), 'b': (6, 10)}
    """
    ranges, start = {}, 0
    for name, tensor in params.items():
        ranges[name] = (start, start + tensor.numel())
        start += tensor.numel()
    return ranges


def flatten(params: Mapping[str, Tensor], batch_dims: int = 0) -> Tensor:
    """All tensors flattened and joined, ``(..., d)``, keeping ``batch_dims`` leading dimensions."""
    return torch.cat([t.flatten(batch_dims) for t in params.values()], dim=-1)


def unflatten(flat: Tensor, like: Mapping[str, Tensor]) -> Params:
    """The inverse of :func:`flatten`: ``(..., d)`` back to a dict shaped like ``like``.

    >>> params = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    >>> back = unflatten(flatten(params), params)
    >>> all(torch.equal(back[name], params[name]) for name in params)
    True
    """
    lead = flat.shape[:-1]
    return {
        name: flat[..., start:stop].reshape(*lead, *like[name].shape)
        for name, (start, stop) in coordinate_ranges(like).items()
    }


@dataclass(frozen=True)
class GaussianPopulation:
    r"""Members :math:`\mu + \sigma\varepsilon_i`, :math:`i` = ``start`` … ``stop - 1``.

    With ``antithetic`` members ``2k`` and ``2k + 1`` are :math:`\mu \pm \sigma\varepsilon_k`.

    Args:
        mean: parameters :math:`\mu`.
        sigma: standard deviation, above zero, one for all coordinates.
        key: 64-bit noise key, see :func:`gradlab.evaluation.noise.draw_key`.
        start: index of the first member.
        stop: index after the last member.
        antithetic: mirrored pairs.
        rounded: members are rounded to bfloat16, which processors and GPUs with units for it
            multiply several times as fast. (Triton kernels round the hidden layers alone, and of
            mirrored pairs' first layer the noise.)

    Raises:
        ValueError: sigma is not finite and above zero, the range is empty, or rounding would move
            members by more than a hundredth of sigma.

    >>> mean = {"w": torch.zeros(3)}
    >>> whole = GaussianPopulation(mean, 0.1, key=5, start=0, stop=4).members()
    >>> part = GaussianPopulation(mean, 0.1, key=5, start=2, stop=4).members()
    >>> torch.equal(whole["w"][2:], part["w"])
    True
    """

    mean: Params
    sigma: float
    key: int
    start: int
    stop: int
    antithetic: bool = False
    rounded: bool = False
    _part: bool = field(default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"sigma is {self.sigma}: give a finite number above 0.")
        if not 0 <= self.start < self.stop:
            raise ValueError(
                f"members {self.start} to {self.stop} are an empty population: give stop > start."
            )
        if self.rounded and not self._part and self.rounding > LARGEST_ROUNDING:
            raise ValueError(
                f"rounding to bfloat16 would move members by {100 * self.rounding:.2g} % of sigma "
                f"= {self.sigma:g}: use a larger sigma, or exact members (rounded = false)."
            )

    @functools.cached_property
    def rounding(self) -> float:
        """Root mean square change by rounding members to bfloat16, in units of sigma.

        A number is rounded by up to half of 2⁻⁷ of the power of two below it, evenly; the mean is
        taken over the search distribution, from its first members.

        >>> population = GaussianPopulation({"w": torch.full((1000,), 0.15)}, 0.1, 1, 0, 8)
        >>> 0.001 < population.rounding < 0.01
        True
        """
        exact = replace(self, start=0, stop=8, rounded=False).members()
        moved = [(w - w.bfloat16().to(w.dtype)).double().square().sum() for w in exact.values()]
        return math.sqrt(float(sum(moved)) / num_coordinates(exact)) / self.sigma

    def __len__(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> GaussianPopulation:
        """Members ``start`` … ``stop - 1`` counted from this population's first."""
        return replace(self, start=self.start + start, stop=self.start + stop, _part=True)

    def noise(self, coordinates: tuple[int, int] | None = None) -> Tensor:
        r""":math:`\pm\varepsilon_i` of every member, ``(P, d)``, float32.

        Args:
            coordinates: half-open range of flat coordinates; all when left out.
        """
        device = next(iter(self.mean.values())).device
        coordinates = coordinates or (0, num_coordinates(self.mean))
        if not self.antithetic:
            return noise.normal(self.key, (self.start, self.stop), coordinates, device=device)
        first, last = self.start // 2, -(-self.stop // 2)
        pairs = noise.normal(self.key, (first, last), coordinates, device=device)
        both = torch.stack((pairs, -pairs), dim=1).flatten(0, 1)
        return both[self.start - 2 * first : self.stop - 2 * first]

    def members(self) -> Params:
        """The members as a dict of tensors ``(P, ...)``."""
        mean = flatten(self.mean)
        drawn = mean + self.sigma * self.noise().to(mean.dtype)
        return unflatten(drawn.bfloat16().to(mean.dtype) if self.rounded else drawn, self.mean)


@dataclass(frozen=True)
class LinePopulation:
    r"""Members :math:`w - \eta_i g`: one direction, many step lengths.

    Args:
        origin: parameters :math:`w`.
        direction: :math:`g`, same keys and shapes.
        steps: the step lengths :math:`\eta_i`.

    >>> line = LinePopulation({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 0.0])}, (0.0, 0.5))
    >>> line.members()["w"].tolist()
    [[1.0, 1.0], [0.5, 1.0]]
    """

    origin: Params
    direction: Params
    steps: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ValueError("a line population has no steps: give at least one step length.")

    def __len__(self) -> int:
        return len(self.steps)

    def part(self, start: int, stop: int) -> LinePopulation:
        """Members ``start`` … ``stop - 1``."""
        return replace(self, steps=self.steps[start:stop])

    def members(self) -> Params:
        """The members as a dict of tensors ``(P, ...)``."""
        out = {}
        for name, tensor in self.origin.items():
            steps = torch.tensor(self.steps, dtype=tensor.dtype, device=tensor.device)
            steps = steps.reshape(-1, *[1] * tensor.dim())
            out[name] = tensor - steps * self.direction[name]
        return out


Population: TypeAlias = GaussianPopulation | LinePopulation | Params


def size(population: Population) -> int:
    """Number of members.

    >>> size({"w": torch.zeros(5, 2)})
    5
    """
    if isinstance(population, dict):
        return next(iter(population.values())).shape[0]
    return len(population)


def part(population: Population, start: int, stop: int) -> Population:
    """Members ``start`` … ``stop - 1`` of any kind of population."""
    if isinstance(population, dict):
        return {name: tensor[start:stop] for name, tensor in population.items()}
    return population.part(start, stop)


def members(population: Population) -> Params:
    """Any kind of population as a dict of tensors ``(P, ...)``."""
    return population if isinstance(population, dict) else population.members()


def chunks(total: int, length: int) -> Sequence[tuple[int, int]]:
    """Half-open ranges of at most ``length`` that cover ``range(total)``.

    >>> list(chunks(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    length = max(1, length)
    return [(start, min(start + length, total)) for start in range(0, total, length)]
