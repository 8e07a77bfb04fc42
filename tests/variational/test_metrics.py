"""Metrics against their definitions, written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gradlab.training import evaluation
from gradlab.variational import metrics


def probabilities(*shape: int, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(shape, generator=generator)).softmax(-1)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


@pytest.mark.parametrize("shape", [(6, 3), (4, 6, 3)], ids=["one", "samples"])
def test_scores_are_their_definitions(shape: tuple[int, ...]) -> None:
    given_ = probabilities(*shape)
    mean = given_.double() if len(shape) == 2 else given_.double().mean(0)
    right = [float(row[label]) for row, label in zip(mean, LABELS, strict=True)]
    hits = [int(row.argmax()) == int(label) for row, label in zip(mean, LABELS, strict=True)]
    squares = [
        sum((float(p) - (k == label)) ** 2 for k, p in enumerate(row))
        for row, label in zip(mean, LABELS.tolist(), strict=True)
    ]
    found = metrics.summary(given_, LABELS)
    assert found["accuracy"] == pytest.approx(sum(hits) / 6)
    likelihoods = [-math.log(p) for p in right]
    assert found["negative_log_likelihood"] == pytest.approx(sum(likelihoods) / 6)
    assert found["brier"] == pytest.approx(sum(squares) / 6)
    entropy = -(mean * mean.log()).sum(1)
    assert found["predictive_entropy"] == pytest.approx(float(entropy.mean()))
    each = -(given_.double() * given_.double().log()).sum(-1).reshape(-1, 6)
    assert found["expected_entropy"] == pytest.approx(float(each.mean()))
    difference = found["predictive_entropy"] - found["expected_entropy"]
    assert found["mutual_information"] == pytest.approx(difference, abs=1e-12)
    confidence, prediction = mean.max(1)
    expected = metrics.calibration_error(confidence, prediction == LABELS)
    assert found["calibration_error"] == expected


def test_mutual_information_is_the_mean_divergence_from_the_mean() -> None:
    given_ = probabilities(5, 20, 4).double()
    divergence = (given_ * (given_ / given_.mean(0)).log()).sum(-1).mean(0)
    torch.testing.assert_close(metrics.mutual_information(given_), divergence)


@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(2, 5), st.integers(0, 99),
    st.sampled_from([1e-6, 1.0, 1e3]),
)  # fmt: skip
def test_mutual_information_lies_between_zero_and_the_entropy(
    samples: int, images: int, classes: int, seed: int, sharpness: float
) -> None:
    given_ = probabilities(samples, images, classes, seed=seed, sharpness=sharpness)
    found = metrics.mutual_information(given_)
    assert bool((found >= 0).all())
    assert bool((found <= metrics.predictive_entropy(given_) + 1e-12).all())
    assert bool((metrics.predictive_entropy(given_) <= math.log(classes) + 1e-6).all())


def test_a_single_prediction_holds_no_mutual_information() -> None:
    assert metrics.mutual_information(probabilities(6, 3)).tolist() == [0.0] * 6


def test_entropy_of_certainty_is_zero_and_a_wrong_certainty_costs_infinitely() -> None:
    sure = torch.eye(3)
    assert metrics.predictive_entropy(sure).tolist() == [0.0] * 3
    assert metrics.negative_log_likelihood(sure, torch.tensor([1, 1, 2])) == math.inf
    assert metrics.brier(sure, torch.tensor([1, 2, 0])) == 2.0


def test_the_calibration_error_of_training_is_the_same_function() -> None:
    assert evaluation.calibration_error is metrics.calibration_error


def naive_auroc(negatives: list[float], positives: list[float]) -> float:
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    return sum(pairs) / len(pairs)


few = st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, math.inf]), min_size=1, max_size=12)


@given(few, few)
def test_auroc_counts_pairs_and_half_of_the_ties(low: list[float], high: list[float]) -> None:
    found = metrics.auroc(torch.tensor(low), torch.tensor(high))
    assert found == pytest.approx(naive_auroc(low, high), abs=1e-15)
    assert metrics.auroc(torch.tensor(high), torch.tensor(low)) == pytest.approx(1 - found)


def test_auroc_without_ties_is_invariant_to_monotone_maps() -> None:
    generator = torch.Generator().manual_seed(0)
    low, high = torch.randn(300, generator=generator), torch.randn(200, generator=generator) + 1
    found = metrics.auroc(low, high)
    assert 0.6 < found < 0.9
    assert found == pytest.approx(naive_auroc(low.tolist(), high.tolist()), abs=1e-15)
    assert metrics.auroc(low.double().exp(), high.double().exp()) == found


def test_disagreement_tells_strangers_that_entropy_does_not() -> None:
    # inside: all samples equally unsure; outside: each is sure, of another class
    inside = torch.full((2, 4, 2), 0.5)
    outside = torch.eye(2)[:, None].expand(2, 4, 2)
    assert metrics.out_of_distribution(inside, outside) == {
        "entropy": 0.5, "mutual_information": 1.0, "max_probability": 0.5
    }  # fmt: skip


def test_mistakes_are_sentences() -> None:
    with pytest.raises(ValueError, match=r"shape \(6,\)"):
        metrics.predictive_entropy(torch.zeros(6))
    with pytest.raises(ValueError, match="one class number from 0 to 2 per image"):
        metrics.accuracy(probabilities(6, 3), LABELS[:5])
    with pytest.raises(ValueError, match="one class number from 0 to 2 per image"):
        metrics.brier(probabilities(6, 3), LABELS + 1)
    with pytest.raises(ValueError, match="positives hold no score, or a NaN"):
        metrics.auroc(torch.zeros(3), torch.tensor([0.0, math.nan]))
