"""What one says of a run: means over its last epochs, and its best one.

A single epoch is noisy, and the best one is chosen by its luck on the evaluated images. The number
to compare is the mean over the last ten epochs (all of them in a shorter run); the best epoch is
given beside it, and says what it was chosen by.
"""

from __future__ import annotations

from typing import Any

from gradlab.training.setup import Setup
from gradlab.training.state import Row

LAST = 10
_AVERAGED = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "ema_loss", "ema_accuracy")
_NOISY = ("train_nll", "kl", "sample_loss", "sample_accuracy", "pruned_loss", "pruned_accuracy",
          "compression")  # fmt: skip


def summarize(rows: list[Row], setup: Setup) -> dict[str, Any]:
    """The summary of a run so far.

    Returns:
        ``epochs``, ``averaged_epochs`` and the means over them of losses and accuracies;
        ``evaluated_on`` (the split that ``val_*`` are of); ``best`` (epoch and accuracy, of the
        weights and of their moving average); sizes of network and data; ``seconds`` and
        ``images_per_second``; with noise also the means of its columns, and ``last``, the row of
        the last epoch.
    """
    good = [row for row in rows if not row["diverged"]]
    last = good[-LAST:]
    evaluation = setup.datasets.evaluation
    noisy: dict[str, Any] = {
        key: mean([row[key] for row in last]) for key in _NOISY if last and key in last[-1]
    }
    if noisy:
        noisy["last"] = last[-1]
    return {
        "name": setup.spec.name,
        "model": setup.model,
        "data": evaluation.name,
        "evaluated_on": evaluation.split,
        "train_examples": len(setup.datasets.train),
        "evaluation_examples": len(evaluation),
        "epochs": len(good),
        "averaged_epochs": len(last),
        **{key: mean([row[key] for row in last]) for key in _AVERAGED},
        **noisy,
        "best": {key: best(good, key) for key in ("val_accuracy", "ema_accuracy")},
        "flip_ratio": mean([row["flip_ratio"] for row in last]),
        "forward_passes": sum(row["forward_passes"] for row in good),
        "backward_passes": sum(row["backward_passes"] for row in good),
        "seconds": sum(row["seconds"] for row in good),
        "images_per_second": mean([row["images_per_second"] for row in good]),
    }


def mean(values: list[float | None]) -> float | None:
    """The mean, ``None`` where a value is missing or there is none.

    >>> mean([1.0, 2.0]), mean([1.0, None]), mean([])
    (1.5, None, None)
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def best(rows: list[Row], key: str) -> dict[str, float] | None:
    """The first epoch with the highest value.

    >>> best([{"epoch": 1, "accuracy": 0.5}, {"epoch": 2, "accuracy": 0.7}], "accuracy")
    {'epoch': 2, 'accuracy': 0.7}
    """
    known = [row for row in rows if row.get(key) is not None]
    if not known:
        return None
    row = max(known, key=lambda each: (each[key], -each["epoch"]))
    return {"epoch": row["epoch"], key: row[key]}
