"""Sparsity, thresholds, pruned forward passes, histograms and the pixels that are seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradlab.variational.compression import (
    compression,
    kept_inputs,
    layer_rows,
    log_alpha_histogram,
    masked,
    pruned,
)
from gradlab.variational.l0 import L0
from gradlab.variational.normal_jeffreys import NormalJeffreys
from tests.variational.pruning import PrunedConv2d, PrunedLinear, prune


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = PrunedConv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), PrunedLinear(4, 2)
    return prune(nn.Sequential(*layers), 0.7)


def test_rows_count_weights_and_no_biases() -> None:
    model = network()
    kept = [int(model[0].keep.sum()), 48, int(model[4].keep.sum())]
    assert layer_rows(model) == [
        {"layer": name, "weights": size, "kept": left, "sparsity": pytest.approx(1 - left / size)}
        for name, size, left in zip(("0", "3", "4"), (54, 48, 8), kept, strict=True)
    ]
    assert compression(model) == pytest.approx(110 / sum(kept))
    assert masked(model)
    assert not masked(nn.Sequential(nn.Linear(2, 2)))


def test_compression_is_infinite_where_nothing_is_kept() -> None:
    assert compression(prune(nn.Sequential(PrunedLinear(3, 2)), 1.1)) == math.inf


def test_a_threshold_replaces_the_layers_own_for_once() -> None:
    layer = NormalJeffreys(initial=-4.0).linear(6, 2)
    with torch.no_grad():
        layer.z_log_variance.copy_(torch.tensor([-4.0, -1, 0, 2, 4, 6]))
    model = nn.Sequential(layer)
    for threshold, kept in ((None, 4), (-2.0, 1), (0.5, 3), (5.0, 5), (7.0, 6)):
        assert layer_rows(model, threshold)[0]["kept"] == 2 * kept
        assert compression(model, threshold) == pytest.approx(6 / kept)
    assert layer.method.threshold == 3.0


def test_a_threshold_leaves_gates_alone() -> None:
    layer = L0(groups="weights").linear(3, 2)
    with torch.no_grad():
        layer.log_odds[0].fill_(-4.0)
    assert [layer_rows(layer, threshold)[0]["kept"] for threshold in (None, -9.0, 9.0)] == [3] * 3


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_a_threshold_is_a_number(threshold: float) -> None:
    for function in (layer_rows, compression):
        with pytest.raises(ValueError, match=r"threshold is (nan|inf): give a finite bound"):
            function(network(), threshold)


def test_pruned_layers_compute_with_what_is_kept() -> None:
    model, x = network(), torch.randn(5, 2, 4, 4)
    before = model(x)
    hidden = F.conv2d(x, model[0].weight * model[0].keep, model[0].bias).relu().flatten(1)
    expected = F.linear(model[3](hidden), model[4].weight * model[4].keep, model[4].bias)
    with pruned(model):
        torch.testing.assert_close(model(x), expected)
        with pruned(model):
            torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(model(x), expected)
    assert torch.equal(model(x), before)
    assert not torch.allclose(before, expected)


def test_pruned_takes_a_threshold_and_gives_the_layer_back_after_an_error() -> None:
    layer = NormalJeffreys(initial=0.0).linear(4, 2).eval()
    x = torch.randn(3, 4)
    before = layer(x)
    with pruned(layer, -1.0):
        torch.testing.assert_close(layer(x), layer.bias.expand(3, 2))
    with pytest.raises(RuntimeError), pruned(layer, -1.0):
        layer(x[:, :1])
    assert torch.equal(layer(x), before)


class Spread(PrunedLinear):
    def log_alpha(self) -> torch.Tensor:
        return self.values


def test_histograms_count_everything_once() -> None:
    layer = Spread(4, 2)
    layer.values = torch.tensor([-50.0, -10, -9.99, 0, 9.99, 10, 50, math.nan])
    rows = log_alpha_histogram(nn.Sequential(nn.Linear(3, 4), layer), bins=4)
    assert [(row["low"], row["high"], row["count"]) for row in rows] == [
        (-10, -5, 3), (-5, 0, 0), (0, 5, 1), (5, 10, 3), (None, None, 1)
    ]  # fmt: skip
    assert {row["layer"] for row in rows} == {"1"}


def test_histograms_agree_with_numpy() -> None:
    layer = Spread(50, 40)
    layer.values = 4 * torch.randn(40, 50, generator=torch.Generator().manual_seed(0))
    rows = log_alpha_histogram(layer, bins=17, low=-6.0, high=7.5)
    inside = layer.values.double().clamp(-6, 7.5).numpy()
    counts, edges = np.histogram(inside, 17, (-6, 7.5))
    assert [row["count"] for row in rows] == counts.tolist()
    assert [row["low"] for row in rows] == pytest.approx(edges[:-1].tolist())


@pytest.mark.parametrize("options", [{"bins": 0}, {"low": 1.0, "high": 1.0}, {"high": math.inf}])
def test_a_histogram_without_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="make no histogram"):
        log_alpha_histogram(network(), **options)  # type: ignore[arg-type]


def test_kept_inputs_count_outgoing_weights_of_each_pixel() -> None:
    model = prune(nn.Sequential(nn.Flatten(), PrunedLinear(2 * 3 * 4, 5)), 0.6)
    rows = kept_inputs(model, (2, 3, 4))
    expected = model[1].keep.sum(0).reshape(2, 3, 4)
    assert len(rows) == 24
    for row in rows:
        assert row["kept"] == expected[row["channel"], row["row"], row["column"]]
    model.input_shape = (2, 3, 4)
    assert kept_inputs(model) == rows
    with pytest.raises(ValueError, match="have not the 24 pixels"):
        kept_inputs(model, (1, 28, 28))


def test_kept_inputs_of_other_networks_are_no_rows() -> None:
    assert kept_inputs(network()) == []
    assert kept_inputs(nn.Sequential(nn.Linear(4, 2))) == []
