"""A data set refuses what does not fit together, and normalizes what it cuts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradlab.data import Dataset
from gradlab.data.splits import fingerprint


def dataset(**changes: Any) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    parts: dict[str, Any] = {
        "name": "tiny",
        "split": "train",
        "images": torch.randint(0, 256, (6, 3, 5, 4), generator=generator).to(torch.uint8),
        "labels": torch.tensor([0, 1, 2, 0, 1, 2]),
        "classes": ("a", "b", "c"),
        "mean": (0.4, 0.5, 0.6),
        "std": (0.1, 0.2, 0.3),
        "record": {"files": {}},
    }
    return Dataset(**(parts | changes))


BYTES = torch.zeros(6, 3, 5, 4, dtype=torch.uint8)
ZEROS = torch.zeros(6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": BYTES.float()}, r"images are torch\.float32 of shape \(6, 3, 5, 4\): give"),
        ({"images": BYTES[:, 0]}, r"of shape \(6, 5, 4\): give uint8 of shape \(N, C, H, W\)"),
        ({"images": BYTES[:5]}, r"give int64 of shape \(5,\), one per image"),
        ({"labels": torch.zeros(6)}, r"labels are torch\.float32"),
        ({"labels": ZEROS[:, None]}, r"labels are torch\.int64 of shape \(6, 1\)"),
        ({"labels": torch.tensor([0, 1, 2, 3, 0, 0])}, "labels go from 0 to 3, and the 3 classes"),
        ({"labels": torch.tensor([0, 1, 2, -1, 0, 0])}, "labels go from -1 to 2"),
        ({"images": BYTES[:, :1]}, "1 channels, 3 means and 3 standard deviations"),
        ({"std": (0.1, 0.2)}, "3 channels, 3 means and 2 standard deviations"),
        ({"std": (0.1, 0.0, 0.2)}, "a standard deviation is 0.0: give positive ones"),
        ({"labels": ZEROS.to("meta")}, "images are on cpu and labels on meta"),
    ],
    ids=["floats", "dimensions", "count", "label-type", "label-shape", "high", "low", "channels",
         "deviations", "zero", "device"],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        dataset(**changes)
    assert str(caught.value).startswith("tiny (train): ")


def test_what_a_data_set_says_of_itself() -> None:
    data = dataset()
    assert (len(data), data.num_classes, data.image_shape) == (6, 3, (3, 5, 4))
    assert len(dataset(images=BYTES[:0], labels=torch.zeros(0, dtype=torch.int64))) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_batches_are_normalized(dtype: torch.dtype) -> None:
    data = dataset()
    found = data.batch(dtype=dtype)
    mean, std = (torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (data.mean, data.std))
    expected = (data.images.double() / 255 - mean) / std
    assert found.dtype == dtype
    # three roundings of numbers up to 10, each half a unit in the last place
    assert (found.double() - expected).abs().max() <= 3 * 10 * torch.finfo(dtype).eps
    assert data.images.dtype == torch.uint8


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([4, 1]),
        torch.tensor([4, 1], dtype=torch.uint8),
        torch.tensor([False, True, False, False, True, True]),
        slice(1, 5, 2),
        torch.tensor([], dtype=torch.int64),
    ],
    ids=["numbers", "bytes", "booleans", "slice", "empty"],
)
def test_the_chosen_images_with_their_labels(index: torch.Tensor | slice) -> None:
    data = dataset()
    if isinstance(index, slice):
        positions = list(range(6))[index]
    elif index.dtype == torch.bool:
        positions = [position for position in range(6) if index[position]]
    else:
        positions = index.tolist()
    part = data.subset(index)
    assert part.labels.tolist() == [data.labels[position] for position in positions]
    assert part.images.equal(data.images[positions])
    assert data.batch(index).equal(data.batch()[positions])
    record = part.record["subset"]
    assert record == [
        {"size": len(positions),
         "indices_sha256": fingerprint(torch.tensor(positions, dtype=torch.int64).numpy())}
    ]  # fmt: skip
    assert "subset" not in data.record


def test_a_subset_of_a_subset_remembers_both() -> None:
    part = dataset().subset(slice(0, 4)).subset(torch.tensor([3, 0]))
    assert part.labels.tolist() == [0, 0]
    assert [each["size"] for each in part.record["subset"]] == [4, 2]
    json.dumps(part.record)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda data: data.batch(torch.tensor([0.0])), r"the index is torch\.float32"),
        (lambda data: data.batch(torch.tensor([[0]])), r"of shape \(1, 1\): give whole numbers"),
        (lambda data: data.batch(dtype=torch.int32), r"dtype is torch\.int32: give a floating"),
    ],
    ids=["float", "matrix", "dtype"],
)
def test_a_bad_batch_is_one_sentence(call: Callable[[Dataset], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(dataset())
