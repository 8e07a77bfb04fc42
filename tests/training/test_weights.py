"""Weights that say which network they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradlab import models
from gradlab.training.files import FileProblem
from gradlab.training.weights import build, load_weights, save_weights

OPTIONS: dict[str, Any] = {"width": 8, "depth": 1, "input_shape": [1, 6, 6], "num_classes": 3}
FACTS = {"model": {"name": "xnor_mlp", **OPTIONS}, "epoch": 4}


def network(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    model: nn.Module = models.create("xnor_mlp", **{**OPTIONS, **options})
    model(torch.randn(9, 1, 6, 6))  # statistics
    return model


def test_a_network_is_built_again_from_its_file(tmp_path: Path) -> None:
    model = network()
    save_weights(model, tmp_path / "w.safetensors", FACTS)
    same, facts = build(tmp_path / "w.safetensors")
    assert facts == FACTS
    assert not same.training
    images = torch.randn(5, 1, 6, 6)
    assert torch.equal(same(images), model.eval()(images))


def test_weights_are_loaded_into_a_network(tmp_path: Path) -> None:
    save_weights(network(0), tmp_path / "w", FACTS)
    other = network(1)
    assert load_weights(other, tmp_path / "w") == FACTS
    assert all(
        torch.equal(tensor, other.state_dict()[name])
        for name, tensor in network(0).state_dict().items()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [({"width": 16}, r"of another shape: first.weight \(8, 36\) instead of \(16, 36\), .* more"),
     ({"depth": 2}, "missing: hidden.1.linear.weight, hidden.1.norm.bias, .* and 3 more"),
     ({"scaling": "learned"}, "missing: hidden.0.linear.scale")],
)  # fmt: skip
def test_the_weights_of_another_architecture_are_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save_weights(network(), tmp_path / "w", FACTS)
    other = network(**options)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(FileProblem, match=words) as caught:
        load_weights(other, tmp_path / "w")
    assert "create the model with the options it was trained with (name='xnor_mlp'" in str(
        caught.value
    )
    assert all(torch.equal(t, other.state_dict()[name]) for name, t in before.items())


def test_unexpected_weights_are_named(tmp_path: Path) -> None:
    save_weights(network(depth=2), tmp_path / "w", FACTS)
    with pytest.raises(FileProblem, match=r"unexpected: hidden\.1\.linear\.weight"):
        load_weights(network(), tmp_path / "w")


def test_a_folder_stands_for_its_weights(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match=r"holds no weights\.safetensors: its training has not"):
        build(tmp_path)
    save_weights(network(0), tmp_path / "weights.safetensors", FACTS)
    with pytest.raises(FileProblem, match=r"has no averaged weights: train with loop\.ema"):
        build(tmp_path, ema=True)
    save_weights(network(1), tmp_path / "weights-ema.safetensors", FACTS)
    plain, averaged = build(tmp_path)[0], build(tmp_path, ema=True)[0]
    assert torch.equal(plain.head.weight, network(0).head.weight)
    assert torch.equal(averaged.head.weight, network(1).head.weight)


def test_a_file_that_does_not_name_its_model_is_not_built(tmp_path: Path) -> None:
    save_weights(network(), tmp_path / "w", {})
    with pytest.raises(FileProblem, match="does not name its model"):
        build(tmp_path / "w")
    save_weights(network(), tmp_path / "w", {"model": {"name": "xnor_mpl"}})
    with pytest.raises(ValueError, match="unknown model 'xnor_mpl': did you mean 'xnor_mlp'"):
        build(tmp_path / "w")
