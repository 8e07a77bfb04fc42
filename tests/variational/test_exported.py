"""Exported networks as modules and as files."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gradlab.variational.export import FORMATS, export
from gradlab.variational.exported import Exported, is_exported, load_exported
from tests.variational.pruning import PrunedConv2d, PrunedLinear, equal_bits, prune


def network() -> nn.Module:
    torch.manual_seed(0)
    return prune(nn.Sequential(
        PrunedConv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.Softplus(beta=2.0),
        nn.MaxPool2d(2), nn.Flatten(), PrunedLinear(6 * 4, 20), nn.Tanh(), PrunedLinear(20, 4),
        nn.LogSoftmax(1),
    ), 0.8)  # fmt: skip


IMAGES = torch.randn(41, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_predicts_what_was_written(format: str, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    expected = export(network(), path, format)(IMAGES)
    loaded = load_exported(path)
    assert equal_bits(loaded(IMAGES), expected)
    assert loaded.description["format"] == format
    assert isinstance(loaded, nn.Module)
    loaded.save(again := tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == [again.name, path.name]


def test_sparse_files_are_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prune(nn.Sequential(PrunedLinear(300, 200), nn.ReLU(), PrunedLinear(200, 10)), 0.97)
    sizes = {}
    for format in FORMATS:
        export(model, path := tmp_path / format, format)
        sizes[format] = path.stat().st_size
    assert 4 * 62_000 < sizes["masked"] < 4 * 62_000 + 4_000
    # six bytes for each of 3 % of the weights, and biases, lengths and the header
    assert sizes["csr"] < 6 * 62_000 * 0.04 + 4_000
    assert sizes["csr"] < sizes["dense"] < sizes["masked"]


@pytest.mark.parametrize("format", FORMATS)
def test_batches_change_no_bit(format: str) -> None:
    exported = export(network(), format=format)
    whole = exported(IMAGES)
    assert equal_bits(torch.cat([exported(IMAGES[:7]), exported(IMAGES[7:])]), whole)
    assert equal_bits(torch.cat([exported(image[None]) for image in IMAGES]), whole)


def test_inputs_are_not_written_to() -> None:
    model = prune(nn.Sequential(nn.ReLU(), PrunedLinear(6, 2)), 0.5)
    for x in (torch.randn(1, 6), torch.randn(6, 1).t(), torch.randn(5, 6)):
        before = x.clone()
        assert export(model)(x).is_contiguous()
        assert torch.equal(x, before)


def test_features_may_come_in_any_shape_of_as_many() -> None:
    model = prune(nn.Sequential(nn.Flatten(), PrunedLinear(12, 2)), 0.5)
    x, small = torch.randn(5, 3, 2, 2), export(model)
    assert equal_bits(small(x), small(x.flatten(1)))


def test_unsuitable_inputs_are_named() -> None:
    images, features = export(network()), export(prune(PrunedLinear(6, 2), 0.5))
    with pytest.raises(ValueError, match=r"shape \(41, 2, 8, 8\): give .* of \(3 channels, height"):
        images(IMAGES[:, :2])
    with pytest.raises(ValueError, match=r"shape \(41, 3, 64\)"):
        images(IMAGES.flatten(2))
    with pytest.raises(ValueError, match=r"shape \(4, 5\): give .* of \(6 features\)"):
        features(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"shape \(0, 6\)"):
        features(torch.zeros(0, 6))
    with pytest.raises(ValueError, match="as large as in training"):
        images(torch.zeros(2, 3, 12, 12))
    with pytest.raises(ValueError, match="takes float32 on the processor"):
        features(torch.zeros(4, 6, dtype=torch.float64))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="inputs hold NaN or infinity"):
            features(torch.full((1, 6), bad))


def damaged(path: Path, change: str) -> None:
    content = bytearray(path.read_bytes())
    if change == "cut":
        content = content[:-5]
    elif change == "bit":
        content[-3] ^= 1
    elif change == "header":
        content = content.replace(b"csr", b"csv", 1)
    elif change == "json":
        content = content.replace(b"description", b"description'", 1)
    elif change == "pickle":
        content = bytearray(pickle.dumps({"a": 1}))
    else:
        content = bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("change", ["cut", "bit", "header", "json", "pickle", "empty"])
def test_damage_is_one_sentence(change: str, tmp_path: Path) -> None:
    export(network(), path := tmp_path / "network", "csr")
    damaged(path, change)
    with pytest.raises(ValueError, match=r"network is damaged.*: export it again\.$"):
        load_exported(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="is no exported network"):
        load_exported(tmp_path / "foreign")
    with pytest.raises(ValueError, match="there is no file"):
        load_exported(tmp_path / "none")


def test_a_file_is_known_by_its_header(tmp_path: Path) -> None:
    export(network(), path := tmp_path / "network")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign", metadata={"gradlab": "{}"})
    (tmp_path / "text").write_text("no tensors")
    assert is_exported(path)
    assert not any(is_exported(tmp_path / name) for name in ("foreign", "text", "none", "."))


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be written \(No such file or directory\)"):
        export(network(), tmp_path / "no" / "folder")


def test_the_header_says_what_the_network_is(tmp_path: Path) -> None:
    export(network(), path := tmp_path / "network", "csr")
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["gradlab-exported"])["description"]
    kinds = [step["kind"] for step in description["steps"]]
    assert kinds == [
        "conv2d", "affine", "softplus", "max_pool", "flatten", "linear", "tanh", "linear",
        "log_softmax",
    ]  # fmt: skip
    assert (description["entry"], description["inputs"]) == ("maps", 3)


def without(facts: dict[str, Any], tensors: dict[str, Tensor], change: str) -> None:
    if change == "version":
        facts["version"] = 99
    elif change == "kind":
        facts["steps"][1]["kind"] = "gelu"
    elif change == "facts":
        facts["facts"] = "of 2020"
    elif change == "missing":
        del tensors["0.columns"]
    elif change == "column":
        tensors["0.columns"] = tensors["0.columns"] + 1
    elif change == "negative":
        tensors["0.columns"] = tensors["0.columns"] - 1
    elif change == "lengths":
        tensors["0.lengths"] = tensors["0.lengths"] + 1
    elif change == "bias":
        tensors["0.bias"] = tensors["0.bias"][1:]
    elif change == "weight":
        tensors["0.weight"] = tensors["0.weight"].double()
    else:
        tensors["inputs"] = torch.tensor([0, 3], dtype=torch.int16)


@pytest.mark.parametrize("change", [
    "version", "kind", "facts", "missing", "column", "negative", "lengths", "bias", "weight",
    "inputs",
])  # fmt: skip
def test_no_description_makes_the_kernel_read_elsewhere(change: str) -> None:
    model = prune(nn.Sequential(PrunedLinear(3, 9), nn.ReLU(), PrunedLinear(9, 2)), 0.0)
    model[0].keep[0, 1] = False
    small = export(model, format="csr")
    facts = json.loads(json.dumps(small.description))
    tensors = dict(small.tensors)
    Exported(facts, tensors)
    without(facts, tensors, change)
    with pytest.raises(ValueError, match="this is no description of an exported network"):
        Exported(facts, tensors)
