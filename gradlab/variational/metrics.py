"""How good, how sure and how honest predicted probabilities are.

Everything takes class probabilities ``(N, K)``, or ``(n, N, K)`` of n Monte Carlo samples, as
:func:`gradlab.variational.prediction.predict` returns them. Logarithms are natural: entropies and
mutual information are in nats.

The predictive entropy of a sampled network has two parts: what is uncertain under every sample
(the expected entropy: noise in the data) and how much the samples disagree (the mutual information
between prediction and weights: what more data would resolve). Houlsby et al. 2011, "Bayesian active
learning for classification and preference learning", arXiv 1112.5745, equation 2.

>>> sure = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # two samples that disagree about one image
>>> round(float(predictive_entropy(sure)), 4), float(expected_entropy(sure))
(0.6931, 0.0)
>>> round(float(mutual_information(sure)), 4)
0.6931
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 15


def predictive(probabilities: Tensor) -> Tensor:
    """The mean over samples, ``(N, K)`` in float64.

    Raises:
        ValueError: neither ``(N, K)`` nor ``(n, N, K)``, or nothing in it.
    """
    if probabilities.ndim not in (2, 3) or not probabilities.numel():
        raise ValueError(
            f"probabilities have shape {tuple(probabilities.shape)}: give (images, classes), or "
            "(samples, images, classes), with at least one of each."
        )
    return probabilities.double() if probabilities.ndim == 2 else probabilities.double().mean(0)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """The fraction of images whose likeliest class is right.

    >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
    0.5
    """
    mean = _judged(probabilities, labels)
    return float((mean.argmax(1) == labels).double().mean())


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> float:
    """Mean −ln p of the right class; infinite if one of them is 0.

    >>> round(negative_log_likelihood(torch.tensor([[0.5, 0.5]]), torch.tensor([1])), 4)
    0.6931
    """
    mean = _judged(probabilities, labels)
    return float(-mean.gather(1, labels[:, None]).log().mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean squared distance to the one-hot label, from 0 to 2 (Brier 1950).

    >>> brier(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    1.0
    """
    mean = _judged(probabilities, labels)
    truth = torch.nn.functional.one_hot(labels, mean.shape[1])
    return float((mean - truth).square().sum(1).mean())


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """:func:`calibration_error` of the likeliest class.

    >>> round(expected_calibration_error(torch.tensor([[0.75, 0.25]]), torch.tensor([0])), 4)
    0.25
    """
    confidence, prediction = _judged(probabilities, labels).max(1)
    return calibration_error(confidence, (prediction == labels).double(), bins)


def calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: mean |accuracy − confidence| over bins, weighted by their size.

    Guo et al. 2017, "On calibration of modern neural networks", arXiv 1706.04599, equation 3.

    Args:
        confidence: ``(N,)``, the probability of the predicted class.
        correct: ``(N,)``, 1 where it was right.
        bins: equal parts of (0, 1].

    >>> shares, right = torch.tensor([0.85, 0.85, 0.65]), torch.tensor([1.0, 0.0, 1.0])
    >>> round(calibration_error(shares, right, bins=10), 4)
    0.35
    """
    place = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.scatter_add_(0, place, correct.double() - confidence.double())
    return float(gap.abs().sum()) / len(confidence)


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Entropy of the mean prediction, ``(N,)`` nats."""
    return _entropy(predictive(probabilities))


def expected_entropy(probabilities: Tensor) -> Tensor:
    """Mean over samples of their entropies, ``(N,)`` nats."""
    predictive(probabilities)  # for its check
    entropies = _entropy(probabilities.double())
    return entropies if probabilities.ndim == 2 else entropies.mean(0)


def mutual_information(probabilities: Tensor) -> Tensor:
    """Predictive minus expected entropy, ``(N,)`` nats; 0 for a single prediction.

    By Jensen's inequality it is never negative; what rounding takes below 0 is set to 0.
    """
    found = predictive_entropy(probabilities) - expected_entropy(probabilities)
    return found.clamp_min(0.0)


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Area under the ROC curve: P(positive > negative) + ½ P(they are equal), over all pairs.

    Counted exactly, in integers, from sorted scores (Mann and Whitney 1947).

    Args:
        negatives: scores ``(N,)`` that should be low.
        positives: scores ``(M,)`` that should be high.

    Raises:
        ValueError: no scores on one side, or a NaN.

    >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
    0.875
    """
    for name, scores in (("negatives", negatives), ("positives", positives)):
        if not scores.numel() or bool(scores.isnan().any()):
            raise ValueError(f"{name} hold no score, or a NaN: give numbers that have an order.")
    below, above = torch.sort(negatives.flatten()).values, positives.flatten()
    smaller = torch.searchsorted(below, above, right=False)
    not_larger = torch.searchsorted(below, above, right=True)
    return int((smaller + not_larger).sum()) / (2 * below.numel() * above.numel())


def out_of_distribution(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """How well uncertainty tells images of another set from those of the set trained on.

    With a network trained on MNIST, for example, ``inside`` are its predictions for the test images
    of MNIST and ``outside`` those for Fashion-MNIST, normalized like MNIST (Hendrycks & Gimpel
    2017, arXiv 1610.02136).

    Args:
        inside: probabilities for images like those of the training set.
        outside: probabilities for others.

    Returns:
        The AUROC of three scores: ``entropy`` (predictive), ``mutual_information`` (.5 for a single
        prediction, where it is 0 everywhere) and ``max_probability`` (the lower, the stranger). 1
        is perfect, .5 is chance.

    >>> sure, unsure = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.6, 0.4]])
    >>> out_of_distribution(sure, unsure)
    {'entropy': 1.0, 'mutual_information': 0.5, 'max_probability': 1.0}
    """
    scores = {
        "entropy": predictive_entropy,
        "mutual_information": mutual_information,
        "max_probability": _doubt,
    }
    return {name: auroc(score(inside), score(outside)) for name, score in scores.items()}


def summary(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """All numbers of a labelled set; entropies and mutual information as means over images.

    >>> summary(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))["accuracy"]
    1.0
    """
    return {
        "accuracy": accuracy(probabilities, labels),
        "negative_log_likelihood": negative_log_likelihood(probabilities, labels),
        "brier": brier(probabilities, labels),
        "calibration_error": expected_calibration_error(probabilities, labels),
        "predictive_entropy": float(predictive_entropy(probabilities).mean()),
        "expected_entropy": float(expected_entropy(probabilities).mean()),
        "mutual_information": float(mutual_information(probabilities).mean()),
    }


def _entropy(probabilities: Tensor) -> Tensor:
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)


def _doubt(probabilities: Tensor) -> Tensor:
    return -predictive(probabilities).amax(1)


def _judged(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The mean prediction, where there is a label for each image."""
    mean = predictive(probabilities)
    images, classes = mean.shape
    if labels.shape != (images,) or int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(
            f"{images} predictions over {classes} classes do not go with labels of shape "
            f"{tuple(labels.shape)}: give one class number from 0 to {classes - 1} per image."
        )
    return mean
