"""The moving average against its formula, statistics of BatchNorm included."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gradlab.training.average import WeightAverage


def test_it_follows_its_formula() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = WeightAverage(model, decay=0.6)
    generator = torch.Generator().manual_seed(0)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(20):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 3, generator=generator))
        model(torch.randn(8, 3, generator=generator))
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            moved = decay * expected[name] + (1 - decay) * tensor
            expected[name] = moved if tensor.is_floating_point() else tensor.clone()
    found = average.model.state_dict()
    assert int(found["1.num_batches_tracked"]) == 20
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found["1.running_mean"], model.state_dict()["1.running_mean"])


def test_it_is_a_network_of_its_own_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    average = WeightAverage(model, decay=0.9)
    assert model.training
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    before = model[0].weight.detach().clone()
    average.update(0)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("step", [0, 10_000])
def test_the_start_is_forgotten_soon(step: int) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, decay=0.999)
    nn.init.ones_(model.weight)
    average.update(step)
    assert float(average.model.weight.detach()) == pytest.approx(0.9 if step == 0 else 0.001)
