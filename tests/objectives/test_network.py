"""The loss of a network in chosen layers, against its own module evaluated whole."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gradlab import data, estimators, models, objectives
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.population import GaussianPopulation, LinePopulation, Params
from gradlab.objectives import Network, network_state
from gradlab.objectives.network_state import HELD_OUT, batch_indices
from tests.objectives.images import small_images

__all__ = ["small_images"]

pytestmark = pytest.mark.usefixtures("small_images")

RESNET: dict[str, Any] = {"dataset": "cifar10", "model": "xnor_resnet18", "width": 2}
LENET: dict[str, Any] = {"dataset": "mnist", "model": "lenet", "width": 2}
PERCEPTRON: dict[str, Any] = {"dataset": "mnist", "model": "xnor_mlp", "width": 6, "depth": 2}
# at this seed no activation lies within the rounding of float32 of a threshold
SMALL = {"batch_size": 8, "seed": 5}


def network(options: dict[str, Any], **more: Any) -> Network:
    return Network(**{**SMALL, **options, **more})


def whole_module(objective: Network, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network of an objective as a plain module, in evaluation mode."""
    return copy.deepcopy(objective._state.evaluator.program.module).to(dtype).eval()


def whole_loss(objective: Network, changed: Params, dtype: torch.dtype = torch.float64) -> Tensor:
    """The loss of the whole module with some of its weights replaced."""
    module = whole_module(objective, dtype)
    with torch.no_grad():
        for name, tensor in changed.items():
            dict(module.named_parameters())[name].copy_(tensor)
        outputs = module(objective.inputs.to(dtype))
    return F.cross_entropy(outputs.double(), objective.targets)


def brute_force(objective: Network, name: str, epsilon: float) -> Tensor:
    """L(w + ε e_i) − L(w − ε e_i) of a layer's chosen weights, in float64, by definition."""
    weight = dict(whole_module(objective).named_parameters())[name].detach()
    chosen = range(weight.numel())
    if objective._index is not None:
        chosen = objective._index[name].tolist()
    found = []
    for index in chosen:
        losses = []
        for step in (epsilon, -epsilon):
            moved = weight.clone()
            moved.view(-1)[index] += step
            losses.append(whole_loss(objective, {name: moved}))
        found.append(losses[0] - losses[1])
    return torch.stack(found).reshape(objective.params[name].shape)


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        (RESNET, 0),
        (RESNET | {"weight": "real"}, -2),
        (RESNET | {"block": "bireal"}, "cells.7.convolution2.weight"),
        (LENET | {"scaling": "learned"}, 0),
        (PERCEPTRON | {"scaling": "channel"}, 1),
        (PERCEPTRON, "head.weight"),
    ],
    ids=["resnet", "resnet_real", "bireal", "lenet", "perceptron", "head"],
)
def test_central_differences_are_those_of_whole_evaluations(
    options: dict[str, Any], layer: int | str
) -> None:
    objective = network(options, layers=[layer], batch_size=4)
    (name,) = objective.layer_names
    if objective.architecture.shapes[name].numel() > 80:
        objective = network(options, layers=[layer], batch_size=4, coordinates=12)
    found = objective.coordinate_differences(objective.params, 0.2)[name]
    expected = brute_force(objective, name, 0.2)
    assert found.dtype == torch.float64
    # in float32; no activation lies within its rounding of a threshold
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("options", [RESNET, LENET, PERCEPTRON], ids=["resnet", "lenet", "mlp"])
def test_chosen_coordinates_are_those_of_whole_layers(options: dict[str, Any]) -> None:
    layers = [0, -1]
    whole = network(options, layers=layers)
    few = network(options, layers=layers, coordinates=5)
    assert few._index is not None
    assert [w.shape for w in few.params.values()] == [(5,), (5,)]
    surrogate = estimators.create("ste", surrogate="polynomial")
    generator = torch.Generator()
    for name, index in few._index.items():
        assert len(torch.unique(index)) == 5
        assert torch.equal(few.params[name], whole.params[name].flatten()[index])
    gradient = surrogate.estimate(whole, whole.params, generator=generator).gradient
    parts = surrogate.estimate(few, few.params, generator=generator).gradient
    for name, index in few._index.items():
        assert torch.equal(parts[name], gradient[name].flatten()[index])
    differences = few.coordinate_differences(few.params, 0.1)
    alone = network(options, layers=[-1], coordinates=5)
    assert alone._index is not None
    (last,) = alone.layer_names
    # a layer's coordinates do not depend on which other layers are chosen
    assert torch.equal(alone._index[last], few._index[last])
    torch.testing.assert_close(
        alone.coordinate_differences(alone.params, 0.1)[last], differences[last]
    )


def test_a_population_of_coordinates_moves_nothing_else() -> None:
    few = network(LENET, layers=[0, 1], coordinates=4)
    assert few._index is not None
    population = GaussianPopulation(few.params, 0.5, key=7, start=0, stop=6)
    members = population.members()
    expected = []
    for member in range(6):
        changed = {}
        for name, index in few._index.items():
            weight = dict(whole_module(few, torch.float32).named_parameters())[name].detach()
            weight = weight.clone()
            weight.view(-1)[index] = members[name][member]
            changed[name] = weight
        expected.append(whole_loss(few, changed, torch.float32))
    torch.testing.assert_close(few.losses(population), torch.stack(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(few.losses(members), few.losses(population))
    start = few.loss(few.params)
    decreases = few.decreases(few.params, population)
    torch.testing.assert_close(decreases, start - torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coordinates", [None, 6])
def test_small_steps_are_signal(coordinates: int | None) -> None:
    objective = network(RESNET | {"weight": "real"}, layers=[3], coordinates=coordinates)
    (name,) = objective.layer_names
    params = objective.params
    direction = {name: torch.ones_like(params[name])}
    steps = (1e-6, 1e-3)
    decreases = objective.decreases(params, LinePopulation(params, direction, steps))
    whole = dict(whole_module(objective).named_parameters())[name].detach()
    before = whole_loss(objective, {})
    for step, decrease in zip(steps, decreases.tolist(), strict=True):
        moved = whole.clone()
        index = slice(None) if objective._index is None else objective._index[name]
        moved.view(-1)[index] -= step
        expected = float(before - whole_loss(objective, {name: moved}))
        assert decrease == pytest.approx(expected, rel=1e-6, abs=1e-13)
        assert decrease != 0


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        (RESNET, None),
        (RESNET | {"scaling": "learned"}, [0, 7, -2]),
        (RESNET | {"weight": "real"}, [2]),
        (LENET, None),
        (PERCEPTRON, ["hidden.1.linear", "head.bias"]),
    ],
    ids=["resnet", "learned", "real", "lenet", "perceptron"],
)
@pytest.mark.parametrize("threshold", [0.3, 1.0])
def test_backpropagation_is_that_of_the_whole_network(
    options: dict[str, Any], layers: list[int | str] | None, threshold: float
) -> None:
    surrogate = {"name": "hardtanh", "threshold": threshold}
    # the network is told one derivative, and measured with another
    objective = network(options | {"surrogate": "polynomial"}, layers=layers)
    ste = estimators.create("ste", surrogate=surrogate)
    found = ste.estimate(objective, objective.params, generator=torch.Generator()).gradient
    assert tuple(found) == objective.layer_names
    told = network(options | {"surrogate": surrogate}, layers=layers)
    module = whole_module(told, torch.float32)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    F.cross_entropy(module(objective.inputs), objective.targets).backward()
    for name, gradient in found.items():
        expected = dict(module.named_parameters())[name].grad
        assert expected is not None
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        assert expected.abs().max() > 0


def test_backpropagation_in_blocks_is_that_of_the_batch() -> None:
    objective = network(RESNET, layers=[0])
    whole = estimators.create("ste").estimate(
        objective, objective.params, generator=torch.Generator()
    )
    objective._block = 3
    parts = estimators.create("ste").estimate(
        objective, objective.params, generator=torch.Generator()
    )
    for name, gradient in whole.gradient.items():
        torch.testing.assert_close(parts.gradient[name], gradient, rtol=1e-4, atol=1e-7)


def test_local_noise_finds_the_smoothed_gradient() -> None:
    objective = network(PERCEPTRON | {"weight": "real"}, layers=[1], batch_size=40)
    (name,) = objective.layer_names
    local = estimators.create("nes_local", sigma=0.3, passes=400)
    plain = estimators.create("nes", sigma=0.3, population=20000)
    found = [
        each.estimate(objective, objective.params, generator=torch.Generator().manual_seed(0))
        for each in (local, plain)
    ]
    assert estimators.cosine(found[0].gradient[name], found[1].gradient[name]) > 0.95
    few = network(PERCEPTRON, layers=[1], coordinates=3)
    with pytest.raises(ValueError, match="perturbs whole layers"):
        local.estimate(few, few.params, generator=torch.Generator())


def test_only_what_is_chosen_is_a_parameter() -> None:
    objective = network(RESNET, layers=[0, -2])
    assert objective.layer_names == (
        "cells.0.first.convolution.weight",
        "cells.7.first.convolution.weight",
    )
    own = objective.initial_params(objective.seed)
    assert list(objective.params) == list(own) == [*objective.layer_names]
    for name, weight in own.items():
        assert torch.equal(weight, objective.params[name])
        assert not torch.equal(weight, objective.initial_params(4)[name])
    assert network(RESNET).layer_names == network(RESNET).architecture.layers
    # in the order of the network, whatever the order asked for
    assert network(RESNET, layers=[-2, 0]).layer_names == objective.layer_names
    named = network(RESNET, layers=["cells.0.first.convolution", "stem_norm.bias"])
    assert named.layer_names == ("stem_norm.bias", "cells.0.first.convolution.weight")
    with pytest.raises(ValueError, match="missing: cells"):
        objective.loss({})
    objective.params[objective.layer_names[0]].zero_()
    assert objective.params[objective.layer_names[0]].abs().max() > 0


def test_the_same_options_give_the_same_bits() -> None:
    first = network(RESNET, layers=[4])
    value = first.loss(first.params)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    network_state._images.cache_clear()
    network_state._network_state.cache_clear()
    again = network(RESNET, layers=[4])
    assert float(again.loss(again.params)) == float(value)
    assert torch.equal(torch.get_rng_state(), before)
    for other in ({"seed": 4}, {"batch": 1}, {"batch_size": 9}, {"width": 4}, {"block": "bmxnet"}):
        different = network({**RESNET, **other}, layers=[4], **other)
        assert float(different.loss(different.params)) != float(value)


def test_a_new_batch_costs_no_new_network(
    monkeypatch: pytest.MonkeyPatch, small_images: list[str]
) -> None:
    made: list[int] = []
    original = ModuleEvaluator.__post_init__
    monkeypatch.setattr(
        ModuleEvaluator, "__post_init__", lambda self: made.append(1) or original(self)
    )
    losses = set()
    for batch in (0, 1, 2, HELD_OUT):
        objective = network(LENET, batch=batch, layers=[0])
        losses.add(float(objective.loss(objective.params)))
        other_layer = network(LENET, batch=batch, layers=[1])
        # another layer of the same network: the same loss at its own weights
        assert float(other_layer.loss(other_layer.params)) in losses
    assert len(losses) == 4
    assert made == [1]
    assert small_images == ["mnist train"]


def test_a_split_made_here_goes_by_the_seed(small_images: list[str]) -> None:
    for name, times in (("cifar10", 1), ("uc_merced", 2)):
        for seed in (1, 2, 1):
            network_state.images(name, "cpu", seed)
        assert small_images.count(f"{name} train") == times


def test_making_one_reads_nothing(small_images: list[str]) -> None:
    network(RESNET, layers=[0], coordinates=3, batch_size=25_000)
    assert small_images == []


@pytest.mark.parametrize("total", [40, 1000])
@pytest.mark.parametrize("batch", [0, 1, 2**40 + 5])
def test_batches_are_random_and_judges_are_unseen(total: int, batch: int) -> None:
    first = batch_indices(total, 10, 3, batch)
    assert len(torch.unique(first)) == 10
    assert 0 <= int(first.min()) <= int(first.max()) < total
    assert torch.equal(first, batch_indices(total, 10, 3, batch))
    for other in (batch_indices(total, 10, 4, batch), batch_indices(total, 10, 3, batch + 1)):
        assert sorted(first.tolist()) != sorted(other.tolist())
    unseen = {int(i) for n in range(50) for i in batch_indices(total, 10, 3, HELD_OUT + n)}
    seen = {int(i) for n in range(50) for i in batch_indices(total, 10, 3, 2**33 + n)}
    assert not unseen & seen
    assert len(seen) > 0.3 * total
    assert len(unseen) > 0.9 * max(10, total // 10)


def test_fresh_statistics_are_those_of_the_images() -> None:
    objective = network(RESNET)
    module = whole_module(objective)
    images = network_state.images("cifar10", "cpu", 0)
    stem = module.stem(images.batch().double())
    # all 80 images are fewer than calibration takes
    mean, variance = stem.mean((0, 2, 3)), stem.transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(module.stem_norm.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.stem_norm.running_var, variance, rtol=1e-4, atol=1e-5)
    assert module.stem_norm.momentum == 0.1
    assert not any(part.training for part in module.modules())


def test_statistics_hold_still() -> None:
    objective = network(RESNET, layers=[0])
    before = {name: b.clone() for name, b in objective.evaluator.program.buffers.items()}
    estimators.create("ste").estimate(objective, objective.params, generator=torch.Generator())
    objective.losses(GaussianPopulation(objective.params, 0.1, key=1, start=0, stop=2))
    objective.coordinate_differences(network(RESNET, layers=[0]).params, 0.1)
    for name, buffer in objective.evaluator.program.buffers.items():
        assert torch.equal(buffer, before[name])


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A file of weights that are no fresh network's."""
    torch.manual_seed(5)
    module = models.create("lenet", width=2, num_classes=10, input_shape=[1, 28, 28])
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape) * 0.1)
    path = tmp_path / "weights.safetensors"
    save_file(network_state.module_state(module), path)
    return path


def test_weights_and_statistics_come_from_a_file(trained: Path) -> None:
    objective = network(LENET, weights=str(trained))
    other_seed = network(LENET, weights=str(trained), seed=8)
    module = models.create("lenet", width=2)
    module.load_state_dict(load_file(trained))
    with torch.no_grad():
        outputs = module.eval()(objective.inputs)
    expected = F.cross_entropy(outputs, objective.targets)
    assert float(objective.loss(objective.params)) == pytest.approx(float(expected), rel=1e-6)
    for name, weight in objective.params.items():
        assert torch.equal(weight, module.get_parameter(name))
        assert torch.equal(weight, other_seed.params[name])
        assert not torch.equal(weight, objective.initial_params(objective.seed)[name])


def test_a_file_that_changes_is_read_again(trained: Path) -> None:
    first = network(LENET, weights=str(trained)).params
    doubled = {
        name: 2 * tensor if tensor.is_floating_point() else tensor
        for name, tensor in network_state._loaded(network(LENET).architecture, str(trained))
        .state_dict()
        .items()
    }
    save_file(doubled, trained)
    os.utime(trained, ns=(1, 1))
    second = network(LENET, weights=str(trained)).params
    assert all(torch.equal(2 * first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 4}, "is of another network than this lenet .*differ"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors cannot be read"),
        ({"weights": __file__}, "is no safetensors file"),
    ],
)
def test_other_weights_are_refused(options: dict[str, Any], sentence: str, trained: Path) -> None:
    objective = network({**LENET, "weights": str(trained)} | options)
    with pytest.raises(ValueError, match=sentence) as caught:
        objective.loss(objective.params)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": "cifar11"}, "unknown data set 'cifar11': did you mean 'cifar10'"),
        ({"model": "xnor_resnet"}, "unknown model 'xnor_resnet': did you mean 'xnor_resnet18'"),
        ({"model": "mlp"}, "unknown model 'mlp'.* Valid: lenet, xnor_mlp, xnor_resnet18"),
        ({"width": 0}, "width is 0"),
        ({"depth": 2}, "unknown option of model xnor_resnet18 'depth'"),
        ({"block": "xnr"}, "unknown block 'xnr': did you mean 'xnor'"),
        ({"surrogate": "hardtan"}, "unknown surrogate 'hardtan'"),
        ({"layers": [19]}, "layer 19 is not there: this network has 19 binarized layers, 0 to 18"),
        ({"layers": [0, -19]}, "name cells.0.first.convolution.weight twice"),
        ({"layers": []}, "layers is an empty list"),
        ({"layers": ["steem"]}, "unknown layer 'steem'.* Valid: cells.0"),
        ({"layers": [True]}, "unknown layer 'True'"),
        ({"coordinates": 0}, "coordinates is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 25_001}, "batch_size is 25001, and there are 50,000 training images"),
        ({"seed": -1}, "seed is -1"),
        ({"batch": 0.5}, "batch is 0.5"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"weights": 3}, "weights is 3"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        objectives.create("network", **{**RESNET, **SMALL, **options})


def test_fewer_images_than_published_are_noticed() -> None:
    objective = network(LENET, batch_size=41)
    with pytest.raises(ValueError, match="batch_size is 41, and there are 80 training images"):
        objective.loss(objective.params)


def test_missing_images_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    network_state.require_images("cifar10")
    monkeypatch.setattr(data, "splits_here", lambda name, root=None: ["test"])
    with pytest.raises(ValueError, match="`gradlab data fetch cifar10` downloads them"):
        network_state.require_images("cifar10")
