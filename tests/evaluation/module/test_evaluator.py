"""Populations of modules against a loop over members, by the user's own module, in float64."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import sign
from gradlab.evaluation import GaussianPopulation, LinePopulation, Params
from gradlab.evaluation import population as pop
from gradlab.evaluation.module.coordinates import module_differences
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.footprint import Footprint


class OldSign(torch.autograd.Function):
    """A straight-through sign as users write it, without support for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sign(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        y = self.conv(sign(self.norm(x)))
        y += x
        y = self.relu(y)
        return y * 2 if double else y


class ConvNet(nn.Module):
    """A shared block that is called twice, buffers that change, in-place operations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, stride=2, padding=1)
        self.block = Block(3)
        self.other = Block(3)
        self.head = nn.Linear(3, 4)
        self.gain = nn.Parameter(torch.ones(3, 1, 1))
        self.register_buffer("seen", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.add_(1)
        x = self.block(self.block(self.stem(x)))
        x = OldSign.apply(x - 0.3) * self.gain + self.other(x)
        return self.head(F.relu(x, inplace=True).mean((2, 3)))


class Tied(nn.Module):
    """Two names for one weight, and another through a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4, bias=False)
        self.two = nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight
        self.out = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.one(x.flatten(1)[:, :4]))
        return F.linear(torch.sign(self.two(x)), torch.sign(self.out))


class Branching(nn.Module):
    """Python code that depends on values: neither traced nor batched."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x.flatten(1)[:, :4])
        return y if float(self.one.weight.sum()) > 0 else -y


class ShapeDependent(nn.Module):
    """Python code that depends on shapes: not traced, but batched."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            x = x[None]
        return OldSign.apply(self.conv(x)[:, :, 0, 0]) + self.conv(x)[:, :, 0, 1]


NETWORKS: list[Callable[[], nn.Module]] = [ConvNet, Tied, Branching, ShapeDependent]
PATHS = {
    ConvNet: "traced graph, prefixes cached, members batched",
    Tied: "traced graph, prefixes cached, members batched",
    Branching: "one member at a time",
    ShapeDependent: "whole forward pass (",
}


def network(make: Callable[[], nn.Module], train: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = make().double().train(train)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return model


def batch(size: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, 2, 6, 6, generator=generator).double()
    return inputs, torch.randint(0, 4, (size,), generator=generator)


def parameters(model: nn.Module) -> Params:
    return {name: w.detach().clone() for name, w in model.named_parameters()}


def reference(
    model: nn.Module, params: Params, members: Params, inputs: Tensor, labels: Tensor
) -> Tensor:
    """Per-example losses (P, B) of the user's own module, one member after the other."""
    model = copy.deepcopy(model)
    rows = []
    for index in range(pop.size(members)):
        own = {name: w[index] for name, w in members.items()}
        state = {**params, **own, **{n: b.clone() for n, b in model.named_buffers()}}
        with torch.no_grad():
            outputs = torch.func.functional_call(model, state, (inputs,))
        rows.append(F.cross_entropy(outputs, labels, reduction="none"))
    return torch.stack(rows)


def subsets(params: Params) -> list[list[str]]:
    return [list(params), *[[name] for name in params], list(params)[-2:]]


@pytest.mark.parametrize("memory", [2**28, 20_000])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", NETWORKS)
def test_losses_are_those_of_a_loop(
    make: Callable[[], nn.Module], train: bool, memory: int
) -> None:
    model, (inputs, labels) = network(make, train), batch()
    params = parameters(model)
    evaluator = ModuleEvaluator(model, inputs, labels, memory_bytes=memory)
    assert evaluator.couples == (train and make is ConvNet)
    for names in subsets(params):
        mean = {name: params[name] for name in names}
        base = {name: w for name, w in params.items() if name not in names}
        line = LinePopulation(mean, {n: torch.ones_like(w) for n, w in mean.items()}, (0.0, 0.3))
        gaussian = GaussianPopulation(mean, 0.3, key=3, start=1, stop=6, antithetic=True)
        for population in (gaussian, line, gaussian.members()):
            members = pop.members(population)
            expected = reference(model, params, members, inputs, labels)
            got = evaluator.losses(population, base)
            assert got.dtype == torch.float64
            torch.testing.assert_close(got, expected.mean(1), rtol=1e-10, atol=1e-12)
            origin = reference(model, params, {k: w[None] for k, w in mean.items()}, inputs, labels)
            decreases = evaluator.decreases(params, population)
            torch.testing.assert_close(
                decreases, (origin - expected).mean(1), rtol=1e-9, atol=1e-13
            )
            if population is line:
                assert decreases[0] == 0


@pytest.mark.parametrize("make", NETWORKS)
def test_the_path_is_told(make: Callable[[], nn.Module]) -> None:
    evaluator = ModuleEvaluator(network(make), *batch())
    assert PATHS[make] in evaluator.path  # type: ignore[index]
    assert "\n" not in evaluator.path
    with pytest.raises(AttributeError):
        evaluator.path = "other"  # type: ignore[misc]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("make", NETWORKS)
def test_the_module_is_left_as_it_was(make: Callable[[], nn.Module], train: bool) -> None:
    model, (inputs, labels) = network(make, train), batch()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    before, grads = copy.deepcopy(model), [w.grad for w in model.parameters()]
    given = inputs.clone()
    random = torch.get_rng_state()
    evaluator = ModuleEvaluator(model, inputs, labels)
    params = parameters(model)
    population = GaussianPopulation(params, 0.3, key=3, start=0, stop=4)
    evaluator.losses(population)
    evaluator.decreases(params, population)
    evaluator.outputs(params)
    assert torch.equal(inputs, given)
    assert torch.equal(torch.get_rng_state(), random)
    assert getattr(model, "calls", 0) == 0
    for old, new in zip(before.modules(), model.modules(), strict=True):
        assert old.training == new.training
    for name, buffer in before.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))
    for name, parameter in before.named_parameters():
        other = model.get_parameter(name)
        assert torch.equal(parameter, other)
        assert other.requires_grad
    assert [w.grad for w in model.parameters()] == grads  # the first is ones, the others None
    assert torch.equal(grads[0], torch.ones_like(grads[0]))


@pytest.mark.parametrize("traced", [False, True])
def test_every_pass_starts_from_the_buffers_as_they_were(traced: bool) -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.register_buffer("count", torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            if not traced and len(x) == 0:
                return x
            self.count.add_(1)
            return super().forward(x) * self.count

    model = Counting()
    evaluator = ModuleEvaluator(model, torch.randn(9, 3), torch.zeros(9, dtype=torch.int64))
    assert ("traced graph" in evaluator.path) == traced
    params = parameters(model)
    expected = F.linear(evaluator.inputs, params["weight"], params["bias"]) * 2
    for _ in range(2):
        torch.testing.assert_close(evaluator.outputs(params), expected)


def test_later_changes_to_the_module_are_not_seen() -> None:
    model, examples = network(ConvNet), batch()
    evaluator = ModuleEvaluator(model, *examples)
    params = parameters(model)
    first = evaluator.outputs(params)
    model.other.norm.running_mean.fill_(5)
    model.train()
    assert torch.equal(evaluator.outputs(params), first)
    model = network(ConvNet)
    with torch.no_grad():
        torch.testing.assert_close(first, model(examples[0]), rtol=1e-12, atol=1e-12)
    assert list(evaluator.params) == list(params)


def test_what_does_not_vary_is_computed_once() -> None:
    calls = {"first": 0, "second": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, name):
            calls[name] += 1
            return x * 2

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = Counted.apply(self.one(x), "first")
            return Counted.apply(self.two(x), "second")

    model = Net()
    evaluator = ModuleEvaluator(model, torch.randn(5, 3), torch.zeros(5, 3), "mse")
    params = parameters(model)
    members = {"two.weight": torch.randn(50, 3, 3)}
    base = {name: w for name, w in params.items() if name != "two.weight"}
    evaluator.losses(members, base)
    calls.update(first=0, second=0)
    object.__setattr__(evaluator, "memory_bytes", 2000)
    chunks = evaluator.chunks(members)
    assert 1 <= chunks.members < 50
    evaluator.losses(members, base)
    blocks, groups = -(-5 // chunks.examples), -(-50 // chunks.members)
    assert calls["first"] == blocks
    assert calls["second"] in (blocks * groups, blocks * 50)


@pytest.mark.parametrize("names", [None, ["other.conv.weight"], ["head.weight"]])
@pytest.mark.parametrize("memory", [200_000, 2_000_000])
def test_memory_stays_within_its_bound(names: list[str] | None, memory: int) -> None:
    model = network(ConvNet)
    inputs, labels = batch(300)
    evaluator = ModuleEvaluator(model, inputs, labels, memory_bytes=memory)
    params = parameters(model)
    names = names or list(params)
    mean = {name: params[name] for name in names}
    base = {name: w for name, w in params.items() if name not in names}
    for population in (
        GaussianPopulation(mean, 0.1, 0, 0, 40),
        GaussianPopulation(mean, 0.1, 0, 0, 40).members(),
    ):
        expected = ModuleEvaluator(model, inputs, labels).losses(population, base)
        evaluator.losses(pop.part(population, 0, 2), base)
        with Footprint() as footprint:
            got = evaluator.losses(population, base)
        assert footprint.peak <= memory
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_parameters_that_nothing_reads_change_nothing() -> None:
    model = nn.Linear(3, 4)
    model.register_parameter("spare", nn.Parameter(torch.zeros(2)))
    evaluator = ModuleEvaluator(model, torch.randn(9, 3), torch.zeros(9, dtype=torch.int64))
    losses = evaluator.losses({"spare": torch.randn(5, 2)}, parameters(model))
    assert losses.shape == (5,)
    assert len(set(losses.tolist())) == 1
    differences = module_differences(evaluator, parameters(model), 0.1, ["spare"])
    assert differences["spare"].tolist() == [0.0, 0.0]


def test_pooling_is_batched_without_a_warning_and_an_operation_without_a_rule_is_not() -> None:
    pooled = nn.Sequential(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    evaluator = ModuleEvaluator(pooled.double(), *batch())
    assert "members batched" in evaluator.path
    params = parameters(pooled)
    population = GaussianPopulation(params, 0.3, key=3, start=0, stop=4)
    expected = reference(pooled, params, population.members(), *batch()).mean(1)
    torch.testing.assert_close(evaluator.losses(population), expected, rtol=1e-10, atol=1e-12)

    class Without(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.renorm(super().forward(x.flatten(1)), 2, 0, 1.0)

    model = Without(72, 4).double()
    evaluator = ModuleEvaluator(model, *batch())
    assert "one member at a time" in evaluator.path
    population = GaussianPopulation(parameters(model), 0.3, key=3, start=0, stop=4)
    expected = reference(model, parameters(model), population.members(), *batch()).mean(1)
    torch.testing.assert_close(evaluator.losses(population), expected, rtol=1e-10, atol=1e-12)


def test_a_module_that_cannot_be_copied_is_refused() -> None:
    model = nn.Linear(3, 4)
    model.cache = model.weight * 2  # a tensor with a graph
    with pytest.raises(ValueError, match="the module cannot be copied"):
        ModuleEvaluator(model, torch.randn(9, 3), torch.zeros(9, dtype=torch.int64))


def test_small_steps_are_signal_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 50), nn.Tanh(), nn.Linear(50, 3))
    inputs, labels = torch.randn(64, 5), torch.randint(0, 3, (64,))
    params = parameters(model)
    direction = {name: torch.randn_like(w) for name, w in params.items()}
    line = LinePopulation(params, direction, (0.0, 1e-7, 2e-7))
    decreases = ModuleEvaluator(model, inputs, labels).decreases(params, line)
    assert decreases[0] == 0
    torch.testing.assert_close(decreases[2], 2 * decreases[1], rtol=1e-5, atol=0.0)


def test_a_module_that_insists_on_float32_keeps_it() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x.float() @ self.weight.view(torch.int32).view(torch.float32)

    model = Narrow()
    evaluator = ModuleEvaluator(model, torch.ones(4, 3), torch.zeros(4, 2), "mse")
    step = {"weight": torch.ones(3, 2)}
    line = LinePopulation(parameters(model), step, (0.0, 1.0))
    assert evaluator.decreases(parameters(model), line).tolist() == [0.0, 9.0]


def test_nan_stays_nan() -> None:
    model, (inputs, labels) = network(ConvNet), batch()
    params = parameters(model)
    members = {"head.bias": torch.zeros(2, 4).double()}
    members["head.bias"][1, 0] = torch.nan
    evaluator = ModuleEvaluator(model, inputs, labels)
    losses = evaluator.losses(members, params)
    assert losses.isnan().tolist() == [False, True]
    inputs[0, 0, 0, 0] = torch.nan
    assert ModuleEvaluator(model, inputs, labels).losses(members, params).isnan().all()


def test_a_loss_of_ones_own() -> None:
    model = nn.Linear(3, 2)
    inputs, targets = torch.randn(6, 3), torch.randn(6, 2)
    weights = torch.tensor([1.0, 3.0])  # float32, as users have them

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.linear((outputs - targets).abs().to(weights.dtype), weights)

    members = {name: w[None].repeat(3, *[1] * w.dim()) for name, w in parameters(model).items()}
    got = ModuleEvaluator(model, inputs, targets, loss).losses(members)
    expected = loss(model(inputs).detach(), targets).mean()
    torch.testing.assert_close(got.float(), expected.expand(3))


@pytest.mark.parametrize("probability", [0.5, 0.01])
def test_randomness_is_refused(probability: float) -> None:
    inputs, labels = torch.randn(9, 3), torch.zeros(9, dtype=torch.int64)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(probability))
    with pytest.raises(ValueError, match=r"draws random numbers .* call model\.eval\(\)"):
        ModuleEvaluator(model, inputs, labels)
    ModuleEvaluator(model.eval(), inputs, labels)

    class Drifting(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Drifting.calls += 1
            return super().forward(x) + Drifting.calls

    with pytest.raises(ValueError, match="two forward passes of the module"):
        ModuleEvaluator(Drifting(3, 4), inputs, labels)


class Pair(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return x, super().forward(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "model is int: give a torch.nn.Module"),
        ({"model": nn.ReLU()}, "has no parameters"),
        ({"model": Pair(3, 4)}, "something else than one tensor"),
        ({"model": nn.Linear(5, 4)}, "the module fails on these inputs"),
        ({"inputs": [1.0]}, "not both tensors"),
        ({"inputs": torch.zeros(0, 3), "targets": torch.zeros(0).long()}, "no examples"),
        ({"inputs": torch.zeros(8, 3)}, "inputs have 8 examples and targets 9"),
        ({"targets": torch.zeros(9)}, r"the loss fails on outputs \(4, 4\)"),
        ({"loss": "mse"}, r"outputs have shape \(4, 4\) and targets \(4,\)"),
        ({"loss": "cross_entropi"}, "did you mean 'cross_entropy'"),
        ({"loss": lambda o, t: o.sum()}, r"the loss of 4 examples has shape \(\)"),
        ({"memory_bytes": 0}, "memory_bytes is 0"),
        ({"memory_bytes": 1.5}, "memory_bytes is 1.5"),
    ],
)
def test_bad_input_gets_a_sentence(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "model": nn.Linear(3, 4),
        "inputs": torch.randn(9, 3),
        "targets": torch.zeros(9, dtype=torch.int64),
    }
    ModuleEvaluator(**good)
    with pytest.raises(ValueError, match=message) as error:
        ModuleEvaluator(**{**good, **change})
    assert "\n" not in str(error.value)


def test_members_that_do_not_fit_are_refused() -> None:
    model = nn.Linear(3, 4)
    evaluator = ModuleEvaluator(model, torch.randn(9, 3), torch.zeros(9, dtype=torch.int64))
    params = parameters(model)
    weight = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match="the members have no bias"):
        evaluator.losses({"weight": weight})
    with pytest.raises(ValueError, match="unknown: wait"):
        evaluator.losses({"wait": weight}, params)
    with pytest.raises(ValueError, match=r"weight has shape \(3, 4\), not \(4, 3\)"):
        evaluator.losses({"weight": torch.zeros(2, 3, 4)}, params)
    with pytest.raises(ValueError, match="missing: bias"):
        evaluator.decreases({"weight": params["weight"]}, {"weight": weight})
    assert len(evaluator.losses({"weight": weight}, {"bias": params["bias"]})) == 2


def test_the_names_that_others_rely_on() -> None:
    signature = inspect.signature(ModuleEvaluator)
    assert list(signature.parameters) == ["model", "inputs", "targets", "loss", "memory_bytes"]
    assert signature.parameters["loss"].default == "cross_entropy"
    assert signature.parameters["memory_bytes"].default == 2**28
