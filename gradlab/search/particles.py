r"""A particle filter over weights: a sample is led from the prior to the weights of low loss.

The targets, and the constants that normalize them, are

.. math:: \pi_t(w) = \frac{p(w)\,e^{-\beta_t f(w)}}{Z_t}, \qquad
    Z_t = E_{p}\,e^{-\beta_t f(w)}, \qquad 0 = \beta_0 < \beta_1 < \dots < \beta_n = 1/T

with the loss f and the prior p of :mod:`gradlab.search.walk`. A sequential Monte Carlo sampler (Del
Moral, Doucet and Jasra, "Sequential Monte Carlo samplers", JRSS B 68, 2006) draws P particles from
the prior, and at every stage

1. multiplies their weights by :math:`e^{-(\beta_t - \beta_{t-1}) f(w)}`; the weighted mean of these
   factors estimates :math:`Z_t/Z_{t-1}`;
2. where the effective sample size :math:`1/\sum_i W_i^2` of the weights W has fallen below
   ``resample_below`` of P, copies each particle about :math:`P W_i` times and makes the weights
   equal again, by systematic resampling (Douc and Cappé, "Comparison of resampling schemes for
   particle filtering", ISPA 2005, compare it with others);
3. moves every particle ``moves`` times by a random walk that leaves :math:`\pi_t` as it is.

For any number of particles the estimate of :math:`Z_n` is unbiased, and so is its product with the
weighted mean of any function for that function's integral; the weighted mean alone is biased by
O(1/P). Its logarithm, ``log_normalizer``, is minus the free energy: what Bayesian model comparison
asks for, and Metropolis chains do not give.

Stage t has :math:`\beta_t = (t/n)^{\mathrm{power}}/T`: a power above one spends more stages at
small β, where the target changes most. All points are held in memory, P times the number of
weights.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=2)  # curvatures 1 and 10
>>> method = Particles(population=5000, temperature=0.5, prior_sigma=1.0, sigma=0.3, stages=10)
>>> origin, generator = {"x": torch.zeros(2).double()}, torch.Generator().manual_seed(0)
>>> state = method.initial(origin, generator=generator)
>>> for _ in range(method.generations):
...     state = method.tell(state, objective.losses(method.ask(state)))
>>> exact = -0.5 * (math.log(1 + 1 / 0.5) + math.log(1 + 10 / 0.5))
>>> round(method.log_normalizer(state), 1), round(exact, 1)
(-2.1, -2.1)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradlab.estimators.base import above_zero
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.search.losses import told
from gradlab.search.noise import rows
from gradlab.search.state import SearchState, as_params
from gradlab.search.walk import CHOOSE, RandomWalk, first_losses, uniform


@dataclass(frozen=True, kw_only=True)
class Particles(RandomWalk):
    """A sequential Monte Carlo sampler with annealed targets.

    It is done after :attr:`generations`; later ones keep moving the particles at the last target.
    ``state.mean`` is the particles' weighted mean.

    Args:
        population: number of particles.
        temperature: T of the last target, in units of the loss.
        stages: number n of targets after the prior.
        power: how the inverse temperature grows: as the stage to this power.
        moves: of each particle per stage; with real and binary weights better two or more, which
            take turns.
        resample_below: the least effective sample size, as a part of the population; 0 never
            resamples.
        sigma: standard deviation of a move of real weights, in units of the weights.
        prior_sigma: standard deviation of the prior of real weights around the parameters given to
            :meth:`initial`.
        binary_weights: names of the parameters of which only the sign enters the loss.
        flips: the most signs that a move of binary weights flips.

    Raises:
        ValueError: an option out of range.
    """

    prior_sigma: float | None = 1.0
    population: int = 100
    temperature: float = 0.01
    stages: int = 20
    power: float = 2.0
    moves: int = 1
    resample_below: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_sigma is None:
            raise ValueError(
                "prior_sigma is None: particles are drawn from the prior, give it a width above 0."
            )
        for name in ("population", "stages", "moves"):
            positive_integer(name, getattr(self, name))
        for name in ("temperature", "power"):
            above_zero(name, getattr(self, name))
        least = self.resample_below
        if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1:
            raise ValueError(f"resample_below is {least!r}: give a number from 0 to 1.")

    @property
    def generations(self) -> int:
        """How many it takes: the prior's, and the moves of all stages."""
        return 1 + self.stages * self.moves

    def size(self, state: SearchState) -> int:
        """Number of particles."""
        return self.population

    def beta(self, stage: int) -> float:
        """The inverse temperature of a stage; 0 is the prior."""
        return float((min(stage, self.stages) / self.stages) ** self.power) / self.temperature

    def _candidates(self, state: SearchState, start: int, stop: int) -> Tensor:
        if state.generation:
            return self._proposed(state, state.extra["points"][start:stop], start)
        noise = rows(state, (0, len(state.mean)))(start, stop)
        width = self.prior_sigma or math.nan
        signs = torch.where(noise < 0, -state.mean, state.mean)
        return torch.where(self._binary(state), signs, state.mean + width * noise)

    def tell(self, state: SearchState, losses: Tensor) -> SearchState:
        """The state after a generation.

        Args:
            state: what :meth:`ask` was given.
            losses: of the points that it returned, in their order; what is NaN or infinite has no
                weight and is not accepted.

        Raises:
            ValueError: another number of losses, or none of the first generation's is finite.
        """
        after, losses = told(state, losses, self.population, lambda *part: self.ask(state, *part))
        stage, moves = divmod(state.generation, self.moves)
        if not state.generation:
            points, losses = self._candidates(state, 0, self.population), first_losses(losses)
            extra = {
                "start": state.mean,
                "accepted": torch.zeros_like(losses),
                "log_weights": torch.full_like(losses, -math.log(self.population)),
                "log_normalizer": losses.new_zeros(()),
            }
        else:
            inverse = losses.new_tensor(self.beta(-(-state.generation // self.moves)))
            points, losses, accepted = self._walked(state, losses.nan_to_num(nan=math.inf), inverse)
            extra = state.extra | {"accepted": accepted.double()}
        if not moves and stage < self.stages:
            grown = extra["log_weights"] - (self.beta(stage + 1) - self.beta(stage)) * losses
            growth = grown.logsumexp(0)
            extra["log_weights"] = grown - growth
            extra["log_normalizer"] = extra["log_normalizer"] + growth
            if effective_size(extra["log_weights"]) < self.resample_below * self.population:
                place = float(uniform(state, (0, 1), CHOOSE))
                chosen = systematic(extra["log_weights"].exp(), place)
                points, losses = points[chosen], losses[chosen]
                extra["log_weights"] = torch.full_like(losses, -math.log(self.population))
        extra |= {"points": points, "losses": losses}
        return replace(after, mean=extra["log_weights"].exp() @ points, extra=extra,
                       drawn=state.drawn + self.population,
                       generation=state.generation + 1)  # fmt: skip

    def samples(self, state: SearchState) -> Params:
        """Where the particles are, a dict of ``(P, ...)`` tensors."""
        return as_params(self._extra(state, "points"), state.best)

    def weights(self, state: SearchState) -> Tensor:
        """Their weights ``(P,)`` float64, of sum one."""
        return self._extra(state, "log_weights").exp()

    def effective_size(self, state: SearchState) -> float:
        """How many particles of equal weight are worth as much."""
        return effective_size(self._extra(state, "log_weights"))

    def log_normalizer(self, state: SearchState) -> float:
        """Logarithm of the estimate of Z at the present stage."""
        return float(self._extra(state, "log_normalizer"))

    def acceptance_rate(self, state: SearchState) -> float:
        """The part of the last generation's proposals that was accepted; 0 after the first."""
        return float(self._extra(state, "accepted").mean())


def effective_size(log_weights: Tensor) -> float:
    """One over the sum of squared weights, given as logarithms that are normalized.

    >>> round(effective_size(torch.tensor([0.5, 0.5, 0.0]).log()), 6)
    2.0
    """
    return math.exp(-float((2 * log_weights).logsumexp(0)))


def systematic(weights: Tensor, place: float) -> Tensor:
    """Indices of as many particles as there are, each about as often as its weight says.

    A comb of P evenly spaced teeth, the first at ``place``/P, falls on the weights laid end to end:
    each particle comes ⌊P·weight⌋ or ⌈P·weight⌉ times, P·weight times in the mean over a uniform
    place.

    Args:
        weights: ``(P,)``, at least zero, of any positive sum.
        place: from 0 to below 1.

    >>> systematic(torch.tensor([0.5, 0.0, 0.3, 0.2]), 0.3).tolist()
    [0, 0, 2, 3]
    """
    ends = weights.double().cumsum(0)
    size = len(weights)
    teeth = (torch.arange(size, dtype=torch.float64, device=weights.device) + place) / size
    # the first end beyond a tooth; rounding may leave the last tooth on the last end
    return torch.searchsorted(ends / ends[-1], teeth, right=True).clamp_max(size - 1)
