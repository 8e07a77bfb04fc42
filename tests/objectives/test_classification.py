"""Classification of any module: against the module itself, and under the estimators."""

from __future__ import annotations

import copy
import inspect
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab import estimators, objectives
from gradlab.binary import binarize, sign, stochastic_rounding, surrogates
from gradlab.evaluation import GaussianPopulation, Params
from gradlab.evaluation import population as pop
from gradlab.evaluation.mlp import MLPEvaluator
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.models import BinarizedMLP
from gradlab.objectives import Classification


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.two = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = sign(self.norm(self.one(x)))
        return self.head(torch.sign(self.two(x)).mean((2, 3)))


def convnet(size: int = 30, train: bool = False, **options: Any) -> Classification:
    torch.manual_seed(0)
    model = ConvNet().train(train)
    inputs = torch.randn(size, 1, 7, 7)
    labels = (inputs.mean((1, 2, 3)) > 0).long() + (inputs[:, 0, 3, 3] > 0).long()
    return Classification(model, inputs, labels, **options)


def test_weights_have_a_surrogate_of_their_own() -> None:
    class Net(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(sign(x), sign(self.weight), self.bias)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), Net(4, 2))
    objective = Classification(model, torch.randn(8, 3), torch.tensor([0, 1] * 4))
    params = {name: w.detach() for name, w in model.named_parameters()}
    both = objective.surrogate_gradient(params, surrogates.create("identity"))
    zero = surrogates.create("hardtanh", threshold=1e-9)
    apart = objective.surrogate_gradient(params, surrogates.create("identity"), zero)
    assert torch.equal(apart["0.weight"], both["0.weight"])
    assert both["1.weight"].abs().min() > 0
    assert apart["1.weight"].abs().max() == 0
    scaled = objective.surrogate_gradient(
        params, surrogates.create("identity"), surrogates.create("magnitude_aware")
    )
    scale = params["1.weight"].abs().mean(1, keepdim=True)
    torch.testing.assert_close(scaled["1.weight"], both["1.weight"] * scale)
    with pytest.raises(ValueError, match="MagnitudeAware is for weights"):
        objective.surrogate_gradient(params, surrogates.create("magnitude_aware"))


@pytest.mark.parametrize("train", [False, True])
def test_loss_and_gradient_are_those_of_the_module(train: bool) -> None:
    objective = convnet(train=train)
    params = {name: w.detach().clone() for name, w in objective.model.named_parameters()}
    model = copy.deepcopy(objective.model)
    expected = F.cross_entropy(model(objective.inputs).double(), objective.labels)
    torch.testing.assert_close(objective.loss(params), expected.detach(), rtol=1e-6, atol=0.0)

    class Straight(ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            x = binarize(self.norm(self.one(x)), surrogates.create("polynomial"))
            x = binarize(self.two(x), surrogates.create("polynomial"))
            return self.head(x.mean((2, 3)))

    other = Straight().train(train)
    other.load_state_dict(objective.model.state_dict())
    F.cross_entropy(other(objective.inputs), objective.labels).backward()
    gradient = objective.surrogate_gradient(params, surrogates.create("polynomial"))
    for name, weight in other.named_parameters():
        torch.testing.assert_close(gradient[name], weight.grad, rtol=1e-4, atol=1e-6)
        assert gradient[name].abs().max() > 0 or (train and name == "one.bias")
    small = convnet(train=train, memory_bytes=10_000)
    for name, piece in small.surrogate_gradient(params, surrogates.create("polynomial")).items():
        torch.testing.assert_close(piece, gradient[name], rtol=1e-4, atol=1e-6)


def test_the_module_is_left_as_it_was() -> None:
    objective = convnet(train=True)
    model, before = objective.model, copy.deepcopy(objective.model)
    params = objective.initial_params(0)
    random = torch.get_rng_state()
    objective.initial_params(1)
    objective.losses({name: w[None] for name, w in params.items()})
    objective.surrogate_gradient(params, surrogates.create("hardtanh"))
    objective.coordinate_differences(params, 0.1)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    for name, value in before.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert all(w.grad is None and w.requires_grad for w in model.parameters())


def test_stochastic_surrogates_draw() -> None:
    objective = convnet()
    params = objective.initial_params(0)
    gradients = []
    for seed in (0, 0, 1):
        generator = torch.Generator().manual_seed(seed)
        rounding = stochastic_rounding.StochasticRounding(generator)
        gradients.append(objective.surrogate_gradient(params, rounding)["one.weight"])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


def test_the_seed_alone_decides_where_it_starts() -> None:
    first, second = convnet(), convnet(size=9, train=True)
    with torch.no_grad():
        second.model.one.weight.fill_(3)
    for seed in (0, 1):
        one, two = first.initial_params(seed), second.initial_params(seed)
        assert list(one) == [name for name, _ in first.model.named_parameters()]
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert not any(w.requires_grad for w in one.values())
    assert not torch.equal(first.initial_params(0)["one.weight"], one["one.weight"])
    torch.manual_seed(0)
    assert not torch.equal(ConvNet().one.weight, first.initial_params(0)["one.weight"])

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    objective = Classification(Own(), torch.ones(3, 2), torch.zeros(3, dtype=torch.int32))
    assert objective.initial_params(5)["scale"].tolist() == [1.0, 2.0]
    assert objective.labels.dtype == torch.int64
    with pytest.raises(ValueError, match="seed is -1"):
        objective.initial_params(-1)


def test_nan_inputs_make_the_loss_nan() -> None:
    class Net(ConvNet):  # torch.sign makes 0 of NaN, gradlab's does not
        def forward(self, x: Tensor) -> Tensor:
            return self.head(sign(self.two(sign(self.norm(self.one(x))))).mean((2, 3)))

    inputs, labels = torch.zeros(5, 1, 7, 7), torch.zeros(5, dtype=torch.int64)
    params = Classification(Net().eval(), inputs, labels).initial_params(0)
    assert Classification(Net().eval(), inputs, labels).loss(params).isfinite()
    inputs[3, 0, 2, 2] = torch.nan
    spoiled = Classification(Net().eval(), inputs, labels)
    assert spoiled.loss(params).isnan()
    assert spoiled.coordinate_differences(params, 0.1)["head.bias"].isnan().all()


def test_decreases_are_differences_of_losses() -> None:
    objective = convnet()
    params = objective.initial_params(0)
    population = GaussianPopulation(params, 0.2, key=1, start=0, stop=6)
    decreases = objective.decreases(params, population)
    expected = objective.loss(params) - objective.losses(population)
    torch.testing.assert_close(decreases, expected, rtol=0.0, atol=0.05)
    assert decreases.abs().max() > 0.05


STE = [{"name": "ste"}, {"name": "ste", "surrogate": "polynomial"}]
OTHERS = [{"name": "cdg"}, {"name": "nes", "population": 400}]


@pytest.mark.parametrize("options", STE + OTHERS, ids=lambda o: "-".join(map(str, o.values())))
def test_estimators_point_downhill(options: dict[str, Any]) -> None:
    objective = convnet(size=60)
    estimator = estimators.create(**options)
    params = objective.initial_params(3)
    given: Params = {name: w.clone() for name, w in params.items()}
    first = objective.loss(params)
    for step in range(8):
        generator = torch.Generator().manual_seed(step)
        estimate = estimator.estimate(objective, params, generator=generator)
        assert list(estimate.gradient) == list(params)
        for name, gradient in estimate.gradient.items():
            assert gradient.shape == params[name].shape
            assert gradient.isfinite().all()
        norm = pop.flatten(estimate.gradient).norm()
        assert norm > 0
        params = {n: w - 0.3 * estimate.gradient[n].to(w) / norm for n, w in params.items()}
    assert objective.loss(params) < first - 0.1
    assert all(torch.equal(given[name], w) for name, w in objective.initial_params(3).items())


class Layers(nn.Module):
    """BinarizedMLP(num_dim=5, depth=2, ...) as a module."""

    def __init__(self) -> None:
        super().__init__()
        pairs = itertools.pairwise([4, 5, 5, 3])
        self.layers = nn.ModuleList(nn.Linear(n, m, bias=False) for n, m in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = sign(layer(x))
        return self.layers[-1](x)


def test_the_built_in_network_has_its_own_evaluator_and_the_same_numbers() -> None:
    network = BinarizedMLP(num_dim=5, depth=2, num_inputs=4, num_outputs=3)
    torch.manual_seed(0)
    inputs, labels = torch.randn(500, 4), torch.randint(0, 3, (500,))
    built_in = Classification(network, inputs, labels)
    module = Classification(Layers(), inputs, labels)
    assert isinstance(built_in.evaluator, MLPEvaluator)
    params = built_in.initial_params(0)
    assert list(params) == list(module.initial_params(0)) == list(network.layer_names)
    assert built_in.initial_params(1).keys() == params.keys()
    assert not torch.equal(built_in.initial_params(1)["layers.0.weight"], params["layers.0.weight"])
    population = GaussianPopulation(params, 0.3, key=1, start=0, stop=9)
    close = {"rtol": 1e-5, "atol": 1e-6}  # no example here is within rounding of a threshold
    torch.testing.assert_close(built_in.loss(params), module.loss(params), **close)
    torch.testing.assert_close(built_in.losses(population), module.losses(population), **close)
    torch.testing.assert_close(
        built_in.decreases(params, population), module.decreases(params, population), **close
    )
    rule = surrogates.create("polynomial")
    pairs = [
        (built_in.surrogate_gradient(params, rule), module.surrogate_gradient(params, rule)),
        (built_in.coordinate_differences(params, 0.1), module.coordinate_differences(params, 0.1)),
    ]
    for first, second in pairs:
        for name in params:
            torch.testing.assert_close(first[name], second[name], **close)
            assert first[name].abs().max() > 1e-3
    with pytest.raises(ValueError, match="labels go from 0 to 2, and the network has 2 outputs"):
        Classification(BinarizedMLP(4, num_outputs=2), inputs, labels)
    with pytest.raises(ValueError, match="loss is a function"):
        Classification(network, inputs, labels, loss=F.cross_entropy)


def test_names_and_registry() -> None:
    signature = inspect.signature(Classification)
    assert list(signature.parameters) == ["model", "inputs", "labels", "loss", "memory_bytes"]
    assert objectives.Classification is Classification
    assert "classification" not in objectives.names()  # sweeps cannot write a module down
    objective = convnet()
    assert objective.targets is objective.labels
    assert isinstance(objective.evaluator, ModuleEvaluator)
    assert "traced graph" in objective.evaluator.path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(9)}, "labels are torch.float32: give integers"),
        ({"labels": torch.zeros(9, dtype=torch.bool)}, "labels are torch.bool: give integers"),
        ({"labels": torch.zeros(9, 1).long()}, r"labels have shape \(9, 1\)"),
        ({"labels": torch.zeros(8).long()}, "there are 9 inputs and 8 labels"),
        ({"labels": torch.full((9,), 4)}, "labels go from 4 to 4, and the network has 4 outputs"),
        ({"labels": torch.full((9,), -1)}, "labels go from -1 to -1"),
        ({"labels": [0] * 9}, "not both tensors"),
        ({"inputs": torch.zeros(0, 3), "labels": torch.zeros(0).long()}, "no examples"),
        ({"model": nn.Sequential(nn.Linear(3, 4), nn.Dropout())}, "draws random numbers"),
        ({"model": nn.ReLU()}, "no parameters"),
        ({"model": nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))}, "logits"),
        ({"model": nn.Linear(2, 4)}, "fails on these inputs"),
        ({"model": torch.relu}, "give a torch.nn.Module or a BinarizedMLP"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
    ],
)
def test_bad_input_gets_a_sentence(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "model": nn.Linear(3, 4),
        "inputs": torch.randn(9, 3),
        "labels": torch.zeros(9, dtype=torch.int64),
    }
    Classification(**good)
    with pytest.raises(ValueError, match=message) as error:
        Classification(**{**good, **change})
    assert "\n" not in str(error.value)


def test_parameters_that_do_not_fit_are_refused() -> None:
    objective = convnet()
    params = objective.initial_params(0)
    del params["head.bias"]
    for call in (
        objective.loss,
        lambda p: objective.surrogate_gradient(p, surrogates.create("hardtanh")),
        lambda p: objective.coordinate_differences(p, 0.1),
    ):
        with pytest.raises(ValueError, match=r"missing: head\.bias"):
            call(params)
