"""What noisy layers share: one weight or one for each group of samples, and how they show."""

from __future__ import annotations

import pytest
import torch

from gradlab import variational
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer

LAYERS = [
    (LinearMap(6, 4), (6, 6)),
    (Conv2dMap(4, 6, 3, stride=2, padding=1, groups=2), (6, 4, 7, 5)),
    (Conv2dMap(4, 6, 3, padding=1, padding_mode="circular", bias=False), (6, 4, 5, 5)),
]
IDS = ["linear", "grouped", "circular"]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=IDS)
def test_every_group_has_its_weight(layer: StochasticLayer, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(shape), torch.randn(3, *layer.weight.shape)
    found = layer.apply_weights(x, weights, layer.bias)
    parts = zip(x.chunk(3), weights, strict=True)
    expected = [layer.apply_weight(part, weight, layer.bias) for part, weight in parts]
    torch.testing.assert_close(found, torch.cat(expected))


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=IDS)
def test_one_weight_is_applied_as_torch_does(
    layer: StochasticLayer, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn_like(layer.weight)
    # the other way might differ in the last bit, or on another machine
    monkeypatch.setattr(type(layer), "_apply_several", None)
    found = layer.apply_weights(x, weight[None], layer.bias)
    assert torch.equal(found, layer.apply_weight(x, weight, layer.bias))


@pytest.mark.parametrize("name", sorted(set(variational.names()) - {"none"}))
def test_a_layer_shows_its_method(name: str) -> None:
    method = variational.create(name)
    assert repr(method) in repr(method.linear(3, 2))
    assert repr(method.conv2d(1, 2, 3)).startswith(f"{type(method.conv2d(1, 2, 3)).__name__}(1, 2,")
    assert repr(LinearMap(3, 2)) == "LinearMap(in_features=3, out_features=2, bias=True)"
