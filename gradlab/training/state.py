"""What changes while a network trains, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from gradlab.training.average import WeightAverage

Row = dict[str, Any]

# Streams of random numbers of a run: each derives from (seed, stream, epoch or step).
INIT, ORDER, AUGMENTATION, MODULE, ESTIMATOR, SUBSET, JUDGED, PREDICTED = range(8)


@dataclass
class State:
    """A network in training.

    Attributes:
        model: the network.
        optimizer: of its parameters.
        average: the moving average of its weights, if there is one.
        epoch: epochs done.
        step: steps done.
        rows: one row per epoch.
        norms: gradient norms, one row per epoch and parameter.
        layers: what is kept of each stochastic layer, one row per epoch and layer.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    epoch: int = 0
    step: int = 0
    rows: list[Row] = field(default_factory=list)
    norms: list[Row] = field(default_factory=list)
    layers: list[Row] = field(default_factory=list)


def derived(seed: int, stream: int, counter: int = 0) -> int:
    """A 63-bit seed that the run's seed, a stream and a counter decide.

    >>> derived(0, ORDER, 1) == derived(0, ORDER, 1), derived(0, ORDER, 1) == derived(0, ORDER, 2)
    (True, False)
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(stream, counter))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, stream: int, counter: int = 0) -> torch.Generator:
    """A generator on the processor, fresh for every epoch: a resumed run needs no old state."""
    return torch.Generator().manual_seed(derived(seed, stream, counter))
