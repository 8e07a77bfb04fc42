"""Predictions at the mean and by samples: modes, seeds, batches, and what is left untouched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gradlab.variational.base import LinearMap, sampling, stochastic_layers
from gradlab.variational.prediction import predict
from tests.variational.pruning import PrunedConv2d, PrunedLinear, prune


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        PrunedConv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        PrunedLinear(4 * 16, 3),
    )  # fmt: skip


IMAGES = torch.randn(23, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [True, False])
def test_the_mean_is_the_softmax_in_eval_mode(training: bool) -> None:
    model = prune(network(), 0.5)
    expected = model(IMAGES).detach().double().softmax(1)
    found = predict(model.train(training), IMAGES)
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float64
    assert found.sum(1) == pytest.approx(torch.ones(23))


def test_the_mean_draws_nothing() -> None:
    model = network()
    assert torch.equal(predict(model, IMAGES, seed=0), predict(model, IMAGES, seed=1))


@pytest.mark.parametrize("batch_size", [1, 4, 23, 1000])
def test_the_batch_size_changes_the_mean_by_rounding_alone(batch_size: int) -> None:
    model = network()
    found, expected = predict(model, IMAGES, batch_size=batch_size), predict(model, IMAGES)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("training", [True, False])
def test_samples_follow_the_seed_and_not_the_mode(training: bool) -> None:
    model = network().train(training)
    first = predict(model, IMAGES, 4, seed=7)
    assert first.shape == (4, 23, 3)
    assert torch.equal(predict(model.train(not training), IMAGES, 4, seed=7), first)
    assert not torch.equal(predict(model, IMAGES, 4, seed=8), first)
    assert len({tuple(sample.flatten().tolist()) for sample in first}) == 4


def test_samples_are_those_of_the_repeated_batch() -> None:
    model = network().eval()
    found = predict(model, IMAGES, 3, seed=5)
    torch.manual_seed(5)
    with sampling(model, 3):
        expected = model(IMAGES.repeat(3, 1, 1, 1)).detach().double().softmax(1)
    torch.testing.assert_close(found, expected.reshape(3, 23, 3))


class Counting(LinearMap):
    """Counts rows, and adds to its outputs what identifies the group of samples."""

    rows: list[int]

    def noisy_forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        group = torch.arange(self.samples).repeat_interleave(len(x) // self.samples)
        return self.mean_forward(x) + group[:, None] * torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("batch_size", [1, 7, 12, 1000])
def test_memory_is_bounded_and_batches_lose_no_image(batch_size: int) -> None:
    layer = Counting(2, 2)
    layer.rows = []
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    found = predict(layer, x, 3, batch_size=batch_size)
    assert max(layer.rows) <= max(batch_size, 3)
    assert sum(layer.rows) == 30
    logits = layer.mean_forward(x).detach() + torch.tensor([[[0.0, 0]], [[1, 0]], [[2, 0]]])
    torch.testing.assert_close(found, logits.double().softmax(-1))


def test_the_model_and_the_generator_are_left_as_they_were() -> None:
    model = network().train()
    frozen = model[1].eval()  # a BatchNorm that training leaves alone
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    for samples in ("mean", 3):
        predict(model, IMAGES, samples)
    assert torch.equal(torch.rand(2), expected)
    assert model.training
    assert model[0].training
    assert not frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for layer in stochastic_layers(model).values():
        assert (layer.sampling, layer.samples) == (False, 1)


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = network().train()
    with pytest.raises(RuntimeError):
        predict(model, IMAGES[..., :5], 2)
    assert all(module.training for module in model.modules())
    assert not any(layer.sampling for layer in stochastic_layers(model).values())


def test_tiny_probabilities_keep_their_logarithm() -> None:
    layer = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [-300.0]]))
    found = predict(layer, torch.ones(1, 1))
    assert float(found[0, 1].log()) == pytest.approx(-300)


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, "means", None])
def test_samples_must_be_a_number_or_the_mean(samples: object) -> None:
    with pytest.raises(ValueError, match=r"samples is .*: give a whole number of at least 1 or"):
        predict(network(), IMAGES, samples)  # type: ignore[arg-type]


def test_no_images_and_no_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no images"):
        predict(network(), IMAGES[:0])
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict(network(), IMAGES, batch_size=0)
