"""Evaluation against numbers by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradlab import models
from gradlab.data import Dataset
from gradlab.training.evaluation import calibration_error, evaluate, predict
from tests.training import tiny


def network() -> nn.Module:
    torch.manual_seed(0)
    model = models.create("xnor_mlp", width=8, depth=1, num_classes=3, input_shape=tiny.SHAPE)
    for images in torch.randn(5, 32, *tiny.SHAPE):
        model(images)
    return model


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_loss_and_accuracy_are_those_of_all_images_at_once(batch_size: int) -> None:
    model, data = network(), tiny.images(50, 3)
    found = evaluate(model, data, batch_size, details=True)
    assert model.training  # the mode it was in
    model.eval()
    logits = model(data.batch()).detach()
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, data.labels)), rel=1e-5)
    hits = logits.argmax(1) == data.labels
    assert found["accuracy"] == pytest.approx(float(hits.double().mean()))
    assert found["examples"] == 50
    for number, name in enumerate(data.classes):
        expected = float(hits[data.labels == number].double().mean())
        assert found["class_accuracy"][name] == pytest.approx(expected)


def test_statistics_of_batchnorm_stay_what_they_are() -> None:
    model, data = network(), tiny.images(50, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, data)
    predict(model, data)
    assert tiny.same(before, model.state_dict())


def test_predictions_are_probabilities_in_order() -> None:
    model, data = network(), tiny.images(50, 3)
    found = predict(model, data, batch_size=8)
    torch.testing.assert_close(found.sum(1), torch.ones(50))
    expected = model.eval()(data.batch()).softmax(1).detach()
    torch.testing.assert_close(found, expected)


@given(
    confidence=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=40),
    seed=st.integers(0, 1000),
)
def test_calibration_error_is_its_definition(confidence: list[float], seed: int) -> None:
    shares = np.array(confidence)
    right = np.random.default_rng(seed).integers(0, 2, len(shares)).astype(float)
    expected = 0.0
    for low in range(15):
        inside = (shares > low / 15) & (shares <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - shares[inside].mean())
    # a share within rounding of an edge may fall on either side of it
    edges = np.abs(shares * 15 - np.round(shares * 15)) < 1e-5
    if not edges.any():
        found = calibration_error(torch.tensor(shares), torch.tensor(right))
        assert found == pytest.approx(expected, abs=1e-9)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not() -> None:
    sure = torch.ones(4)
    assert calibration_error(sure, torch.ones(4)) == 0.0
    assert calibration_error(sure, torch.zeros(4)) == 1.0


def test_what_does_not_fit_is_one_sentence() -> None:
    model = network()
    with pytest.raises(ValueError, match="images are 1 × 8 × 8, and the network takes 1 × 6 × 6"):
        evaluate(model, tiny.images(4, 0, shape=(1, 8, 8)))
    with pytest.raises(ValueError, match="has no images: there is nothing to evaluate"):
        evaluate(model, tiny.images(0, 0))
    data = tiny.images(4, 0)
    more = replace(data, classes=("a", "b", "c", "d"))
    with pytest.raises(ValueError, match="tiny has 4 classes, and the network 3 outputs"):
        evaluate(model, more)


def test_a_class_without_images_has_no_accuracy() -> None:
    data = tiny.images(30, 3)
    some = data.subset(data.labels != 1)
    found = evaluate(network(), some, details=True)
    assert found["class_accuracy"]["left"] is None


def test_a_frozen_part_comes_back_frozen() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)).train()
    model[0].eval()
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    data = Dataset("tiny", "test", images, labels, ("no", "yes"), (0.5,), (0.25,), {})
    evaluate(model, data)
    assert [module.training for module in model] == [False, True, True]
