"""Predictions of a noisy network on a data set: at its mean weights, of one draw, of many.

Three numbers that are easily taken for each other: the mean weights without noise, one draw of the
noise (for each image, or where weights are drawn for each few hundred of them), and the mean
prediction over several draws. Comparisons that judge a noisy
method by a single draw, and a plain network without noise, rank the noise and not the method.

>>> from gradlab.data import Dataset
>>> images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
>>> labels = torch.tensor([0, 0, 0, 1])
>>> data = Dataset("tiny", "test", images, labels, ("no", "yes"), (0.5,), (0.25,), {})
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
>>> _ = nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
>>> {kind: found["accuracy"] for kind, found in predictions(model, data, samples=3).items()}
{'mean': 0.75, 'sample': 0.75, 'monte_carlo': 0.75}
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gradlab import variational
from gradlab.data import Dataset
from gradlab.training.state import PREDICTED, derived
from gradlab.variational import metrics

MEAN, SAMPLE, MONTE_CARLO = KINDS = ("mean", "sample", "monte_carlo")
_IMAGES = 2_000


def predictions(
    model: nn.Module, data: Dataset, samples: int, seed: int = 0
) -> dict[str, dict[str, float]]:
    """How good the predictions are, by how they are made.

    Args:
        model: with stochastic layers.
        data: labelled images on its device.
        samples: of the Monte Carlo prediction.
        seed: of the noise.

    Returns:
        For ``mean``, ``sample`` and ``monte_carlo`` (there also ``samples``), everything that
        :func:`gradlab.variational.metrics.summary` says; and where weights are pruned ``pruned``,
        of the mean weights that are kept.
    """
    kinds: dict[str, int | str] = {MEAN: "mean", SAMPLE: 1, MONTE_CARLO: samples}
    found = {
        kind: metrics.summary(probabilities(model, data, number, seed), data.labels)
        for kind, number in kinds.items()
    }
    found[MONTE_CARLO]["samples"] = samples
    if variational.masked(model):
        with variational.pruned(model):
            kept = probabilities(model, data, "mean")
        found["pruned"] = metrics.summary(kept, data.labels)
    return found


def probabilities(
    model: nn.Module, data: Dataset, samples: int | str = "mean", seed: int = 0
) -> Tensor:
    """Class probabilities of every image: ``(N, K)`` at the mean, else ``(samples, N, K)``."""
    parts = []
    for number, start in enumerate(range(0, len(data), _IMAGES)):
        images = data.batch(slice(start, start + _IMAGES))
        own = derived(seed, PREDICTED, number)
        parts.append(variational.predict(model, images, samples, seed=own))
    return torch.cat(parts, dim=-2)


def out_of_distribution(
    model: nn.Module, inside: Dataset, outside: Dataset, samples: int, seed: int = 0
) -> dict[str, float]:
    """How well the network's uncertainty tells images of another set from its own.

    Args:
        model: with stochastic layers.
        inside: images like those it was trained on.
        outside: others, of the same size; they are normalized like the first.
        samples: of the Monte Carlo prediction.
        seed: of the noise.

    Returns:
        AUROCs by score, see :func:`gradlab.variational.metrics.out_of_distribution`.
    """
    return metrics.out_of_distribution(
        probabilities(model, inside, samples, seed), probabilities(model, outside, samples, seed)
    )
