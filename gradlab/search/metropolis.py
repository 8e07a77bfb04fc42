r"""Metropolis chains: samples of the weights by how low their loss is.

Several chains walk side by side (:mod:`gradlab.search.walk` has the rule and its sources), one
proposal of each per generation, so that a generation is one population to evaluate. Once they have
forgotten where they began, the chains' points are a sample of

.. math:: \pi(w) \propto p(w)\,e^{-f(w)/T}

which at a low temperature T stays near minima and at a high one follows the prior p. If f is a mean
over B examples of squared errors with noise of variance s², the Bayesian posterior has T = 2s²/B;
if f is a mean of cross-entropies, T = 1/B.

With a list of temperatures, ascending, every chain becomes a ladder of replicas, and after each
move neighbours on the ladder, in turn the even and the odd pairs, exchange their points with the
probability

.. math:: \min\left(1, e^{(1/T_i - 1/T_j)(f(w_i) - f(w_j))}\right)

which leaves every replica's own target as it is (Geyer, "Markov chain Monte Carlo maximum
likelihood", 1991; Hukushima and Nemoto, "Exchange Monte Carlo method and application to spin glass
simulations", J. Phys. Soc. Japan 65, 1996). The hot ones cross what the cold ones cannot; the
first temperature is the one that is sampled, at as many evaluations as there are replicas.

The chains begin one proposal away from the parameters given, or where another one does, if the loss
fails there. How long they need to forget that is nothing that an algorithm knows: compare the
chains with each other. An acceptance rate near a
quarter is about right for Gaussian proposals in many dimensions (Roberts, Gelman and Gilks, "Weak
convergence and optimal scaling of random walk Metropolis algorithms", Ann. Appl. Probab. 7, 1997);
much above it ``sigma`` is too small, much below too large.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=2)  # curvatures 1 and 10
>>> method = Metropolis(chains=2000, temperature=0.5, sigma=0.5)
>>> state = method.initial(objective.initial_params(0), generator=torch.Generator().manual_seed(0))
>>> for _ in range(100):
...     state = method.tell(state, objective.losses(method.ask(state)))
>>> variances = method.samples(state)["x"].var(dim=0)  # of N(0, T / curvature)
>>> [round(float(v), 2) for v in variances]
[0.5, 0.05]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradlab.estimators.base import above_zero
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.search.losses import told
from gradlab.search.state import SearchState, as_params
from gradlab.search.walk import CHOOSE, RandomWalk, first_losses, uniform


@dataclass(frozen=True, kw_only=True)
class Metropolis(RandomWalk):
    """Metropolis chains, with replicas at higher temperatures where several are given.

    ``state.mean`` is the mean of the chains' present points, a sample's and not the posterior's:
    collect :meth:`samples` over generations for that.

    Args:
        chains: how many independent ones.
        temperature: T, in units of the loss, or an ascending list, whose first is sampled.
        sigma: standard deviation of a move of real weights, in units of the weights.
        prior_sigma: standard deviation of the prior of real weights around the parameters given to
            :meth:`initial`; None for a flat one.
        binary_weights: names of the parameters of which only the sign enters the loss.
        flips: the most signs that a move of binary weights flips.

    Raises:
        ValueError: an option out of range.
    """

    chains: int = 8
    temperature: float | Sequence[float] = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_integer("chains", self.chains)
        for value in self.temperatures:
            above_zero("temperature", value)
        if not self.temperatures or list(self.temperatures) != sorted(set(self.temperatures)):
            raise ValueError(
                f"temperature is {self.temperature!r}: give one number, or different numbers in "
                "ascending order."
            )

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the replicas of a chain, coldest first."""
        given: Any = self.temperature
        return tuple(given) if isinstance(given, list | tuple) else (given,)

    def size(self, state: SearchState) -> int:
        """How many points walk: all replicas of the first chain, all of the second, and so on."""
        return self.chains * len(self.temperatures)

    def _candidates(self, state: SearchState, start: int, stop: int) -> Tensor:
        points = state.extra.get("points")
        if points is None:
            return self._proposed(state, state.mean.repeat(stop - start, 1), start)
        return self._proposed(state, points[start:stop], start)

    def tell(self, state: SearchState, losses: Tensor) -> SearchState:
        """The state after a generation.

        Args:
            state: what :meth:`ask` was given.
            losses: of the points that it returned, in their order; what is NaN or infinite is not
                accepted.

        Raises:
            ValueError: another number of losses, or none of the first generation's is finite.
        """
        size, rungs = self.size(state), len(self.temperatures)
        after, losses = told(state, losses, size, lambda *part: self.ask(state, *part))
        if not state.generation:
            losses = first_losses(losses)
            # where the loss fails a chain might stay for ever: it begins where another does
            sound = losses.isfinite()
            order = torch.arange(size, device=losses.device)
            order = torch.where(sound, order, order[sound][order % sound.sum()])
            extra = {
                "start": state.mean,
                "points": self._candidates(state, 0, size)[order],
                "losses": losses[order],
                "accepted": losses.new_zeros(rungs),
                "exchanged": losses.new_zeros(rungs - 1),
            }
        else:
            inverse = 1 / losses.new_tensor(self.temperatures)
            points, losses, accepted = self._walked(
                state, losses.nan_to_num(nan=math.inf), inverse.repeat(self.chains)
            )
            chance = uniform(state, (0, size), CHOOSE).reshape(self.chains, rungs)
            order, exchanged = exchange(
                losses.reshape(self.chains, rungs), inverse, state.generation % 2, chance
            )
            extra = {
                "start": state.extra["start"],
                "points": points[order],
                "losses": losses[order],
                "accepted": state.extra["accepted"] + accepted.reshape(-1, rungs).double().sum(0),
                "exchanged": state.extra["exchanged"] + exchanged,
            }
        return replace(after, mean=extra["points"][::rungs].mean(0), extra=extra,
                       drawn=state.drawn + size, generation=state.generation + 1)  # fmt: skip

    def samples(self, state: SearchState) -> Params:
        """Where the chains are at the first temperature, a dict of ``(chains, ...)`` tensors.

        Raises:
            ValueError: no generation was told yet.
        """
        return as_params(self._extra(state, "points")[:: len(self.temperatures)], state.best)

    def acceptance_rate(self, state: SearchState) -> list[float]:
        """The part of all proposals so far that was accepted, for each temperature.

        NaN before the second generation: the first has no choice.
        """
        proposed = self.chains * (state.generation - 1)
        accepted = self._extra(state, "accepted").tolist()
        return [each / proposed if proposed else math.nan for each in accepted]

    def exchange_rate(self, state: SearchState) -> list[float]:
        """The part of all exchanges so far that took place, for each pair of neighbours."""
        counts = self._extra(state, "exchanged").tolist()
        # even pairs are offered in even generations, odd pairs in odd ones, none in the first
        offered = [self.chains * ((state.generation - 1 + i % 2) // 2) for i in range(len(counts))]
        return [n / total if total else math.nan for n, total in zip(counts, offered, strict=True)]


def exchange(losses: Tensor, inverse: Tensor, first: int, chance: Tensor) -> tuple[Tensor, Tensor]:
    """Who takes whose place on the ladders of replicas.

    Args:
        losses: ``(chains, rungs)``.
        inverse: 1/T of each rung.
        first: lower rung of the first pair; the next pair is two rungs above it.
        chance: a uniform number for each rung of each chain; a pair uses its lower rung's.

    Returns:
        For each place of the flattened losses which one comes there, and how many exchanges of
        each pair took place ``(rungs - 1,)``, zero for those that had no turn.

    >>> losses, sure = torch.tensor([[2.0, 1.0, 3.0]]), torch.full((1, 3), 0.999)
    >>> order, exchanged = exchange(losses, torch.tensor([4.0, 2.0, 1.0]), 0, sure)
    >>> order.tolist(), exchanged.tolist()
    ([1, 0, 2], [1.0, 0.0])
    """
    chains, rungs = losses.shape
    order = torch.arange(chains * rungs, device=losses.device).reshape(chains, rungs)
    exchanged = torch.zeros(rungs - 1, dtype=torch.float64, device=losses.device)
    for low in range(first, rungs - 1, 2):
        gain = (inverse[low] - inverse[low + 1]) * (losses[:, low] - losses[:, low + 1])
        swapped = chance[:, low].log() < gain
        pair = order[:, low : low + 2]
        order[:, low : low + 2] = torch.where(swapped[:, None], pair.flip(1), pair)
        exchanged[low] = swapped.sum()
    return order.flatten(), exchanged
