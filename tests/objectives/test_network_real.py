"""The objective on the real CIFAR-10."""

from __future__ import annotations

import os

import pytest
import torch

from gradlab import data, estimators
from gradlab.objectives import Network


@pytest.mark.skipif(
    not os.environ.get("GRADLAB_DATA") or "train" not in data.splits_here("cifar10"),
    reason="needs CIFAR-10 below $GRADLAB_DATA",
)
def test_a_fresh_network_is_no_better_than_chance_and_can_be_measured() -> None:
    objective = Network(width=2, layers=[0, -2], coordinates=4, batch_size=32)
    params = objective.params
    # ln 10 = 2.3 without a clue; a random head adds something
    assert 2.0 < float(objective.loss(params)) < 4.0
    assert len(torch.unique(objective.targets)) > 5
    assert abs(float(objective.inputs.mean())) < 0.3
    for name, options in (("cdg", {}), ("ste", {}), ("nes", {"population": 4})):
        estimate = estimators.create(name, **options).estimate(
            objective, params, generator=torch.Generator().manual_seed(0)
        )
        for layer, gradient in estimate.gradient.items():
            assert gradient.shape == params[layer].shape
            assert gradient.abs().max() > 0
