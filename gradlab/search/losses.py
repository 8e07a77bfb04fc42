"""What a population's losses say: which member is best, and which of them can be ranked."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradlab.evaluation.population import Params
from gradlab.search.noise import chunk
from gradlab.search.state import SearchState

RANKED = ("centered_rank", "utilities")


def told(
    state: SearchState, losses: Tensor, size: int, ask: Callable[[int, int], Params]
) -> tuple[SearchState, Tensor]:
    """The state with these evaluations counted and its best kept, and the losses in float64.

    Losses that are not finite become NaN; the first of a search are warned about.

    Args:
        state: before.
        losses: ``(size,)``.
        size: how many members were asked for.
        ask: members from one index to another, as they were asked for.

    Raises:
        ValueError: another number of losses than of members.
    """
    losses = losses.detach().double().to(state.mean.device)
    if losses.shape != (size,):
        raise ValueError(
            f"losses has shape {tuple(losses.shape)}: give one loss for each of the {size} members "
            "of ask(state)."
        )
    losses = torch.where(losses.isfinite(), losses, math.nan)
    failed = int(losses.isnan().sum())
    if failed and not state.failed:
        warnings.warn(
            f"the losses of {failed} of {size} members are NaN or infinite: such members rank last "
            "(said once per search).",
            RuntimeWarning,
            stacklevel=3,
        )
    state = replace(state, evaluations=state.evaluations + size, failed=state.failed + failed)
    if failed == size:
        return state, losses
    smallest, index = losses.nan_to_num(nan=math.inf).min(dim=0)
    # judged by the loss itself: weights by rank know only this generation
    if bool(smallest < state.best_loss):
        # with its neighbours, since a product of matrices may round a lone row otherwise
        length, place = chunk(len(state.mean)), int(index)
        start = place // length * length
        part = ask(start, min(start + length, size))
        best = {name: tensor[place - start].clone() for name, tensor in part.items()}
        state = replace(state, best=best, best_loss=smallest)
    return state, losses


def comparable(losses: Tensor, fitness: str) -> Tensor:
    """Losses with NaN replaced by something that ranks last, or is as bad as the worst.

    Raises:
        ValueError: all are NaN.

    >>> comparable(torch.tensor([1.0, math.nan, 3.0]), "utilities").tolist()
    [1.0, inf, 3.0]
    >>> comparable(torch.tensor([1.0, math.nan, 3.0]), "centered").tolist()
    [1.0, 3.0, 3.0]
    """
    known = losses[~losses.isnan()]
    if not len(known):
        raise ValueError(
            f"the losses of all {len(losses)} members are NaN or infinite, so none is better than "
            "another: start from parameters with a finite loss, or choose a smaller sigma."
        )
    return losses.nan_to_num(nan=math.inf if fitness in RANKED else float(known.max()))
