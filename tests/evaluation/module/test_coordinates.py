"""Followed changes of single weights against two whole evaluations for every coordinate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import binarize, sign, surrogates
from gradlab.evaluation import Params
from gradlab.evaluation.module import following
from gradlab.evaluation.module.coordinates import DifferenceStats, module_differences
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.footprint import Footprint


class OwnSign(torch.autograd.Function):
    """A straight-through sign as users write it, without support for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class NotElementwise(torch.autograd.Function):
    """Subtracts each example's mean: looks like an activation, and mixes channels."""

    @staticmethod
    def forward(ctx, x):
        return x - x.flatten(1).mean(1).reshape(-1, *[1] * (x.dim() - 1))

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class BinaryConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, sign(self.weight), self.bias, self.stride, self.padding)


class ScaledConv(nn.Conv2d):
    def forward(self, x):
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, torch.sign(self.weight) * scale, None, self.stride, self.padding)


class LayerScaledConv(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, torch.sign(self.weight) * self.weight.abs().mean())


class Net(nn.Module):
    """conv, BatchNorm, sign, strided conv, residual add, sign, Linear, sign, Linear."""

    def __init__(self, activation: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.shortcut = nn.Conv2d(2, 4, 1, stride=2)
        self.prelu = nn.PReLU(4)
        self.third = nn.Linear(16, 5)
        self.head = nn.Linear(5, 3)
        self.own = activation

    def activation(self, x: Tensor) -> Tensor:
        return sign(x) if self.own is None else self.own(x)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[0]  # a number of examples from before every layer
        y = self.activation(self.norm(self.first(x)))
        y = self.second(y)
        y += self.shortcut(x)
        y = F.max_pool2d(self.prelu(y), 1)
        y = self.activation(y)
        y = self.activation(self.third(y.reshape(size, -1)))
        return self.head(y)


class Residual(nn.Module):
    """A real-valued shortcut around every sign, and dilated grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
        self.one = nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, (3, 1), padding=(1, 0))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.norm(self.one(sign(x)))
        y = y + self.two(sign(y))
        return self.head(F.relu(y).mean((2, 3)))


class Binary(nn.Module):
    """Binary weights, scaled and not, gradlab's binarize, weights through functions."""

    def __init__(self) -> None:
        super().__init__()
        self.one = BinaryConv(2, 3, 3, padding=1)
        self.two = ScaledConv(3, 4, 3, stride=2, bias=False)
        self.matrix = nn.Parameter(torch.randn(3, 4) / 3)
        self.offset = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = binarize(self.one(x), surrogates.create("hardtanh"))
        x = torch.sign(self.two(x)).amax((2, 3))
        return F.linear(x, self.matrix.clamp(-0.5, 0.5), self.offset)


class Scaled(nn.Module):
    """Binary weights with a scale: per output, learned, of the whole layer; grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.one = ScaledConv(2, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.two = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.three = LayerScaledConv(4, 3, 1, bias=False)
        self.four = nn.Parameter(torch.randn(3, 1, 1, 1))
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x + F.conv2d(x.sign(), self.two.sign() * self.scale, padding=1)[:, :3]
        x = self.three(torch.cat((x, x[:, :1]), 1)).sign()
        four = self.four.sign() * self.four.abs().mean((1, 2, 3), keepdim=True)
        x = F.conv2d(x, four, groups=3).mean((2, 3))
        return F.linear(x, self.matrix.sign() * self.matrix.abs().mean(1, keepdim=True))


class Sequence(nn.Module):
    """Linear layers on (B, T, n) inputs, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 4)
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(2).transpose(1, 2)).sign()
        x = self.shared(self.shared(x).sign()).sign()
        return self.head(x.mean(1))


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 3, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = NotElementwise.apply(self.one(x))
        return self.head(OwnSign.apply(x).mean((2, 3)))


def prepared(
    model: nn.Module, batch: int = 6, seed: int = 0, **options: object
) -> tuple[ModuleEvaluator, Params]:
    """A float64 evaluator; statistics, weights and inputs drawn, so that nothing is special."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double() * 0.4)
    inputs = torch.randn(batch, 2, 4, 4, generator=generator).double()
    labels = torch.randint(0, 3, (batch,), generator=generator)
    evaluator = ModuleEvaluator(model, inputs, labels, **options)  # type: ignore[arg-type]
    return evaluator, dict(model.named_parameters())


def brute_force(evaluator: ModuleEvaluator, params: Params, epsilon: float) -> Params:
    """L(w + ε e_i) − L(w − ε e_i) from the definition, by the user's own module."""
    out = {}
    for name, tensor in params.items():
        differences = torch.zeros(tensor.numel(), dtype=torch.float64)
        for index in range(tensor.numel()):
            losses = []
            for step in (epsilon, -epsilon):
                moved = {k: w.detach().clone() for k, w in params.items()}
                moved[name].view(-1)[index] += step
                outputs = torch.func.functional_call(evaluator.model, moved, evaluator.inputs)
                losses.append(F.cross_entropy(outputs.double(), evaluator.targets))
            differences[index] = losses[0] - losses[1]
        out[name] = differences.reshape(tensor.shape).detach()
    return out


@pytest.mark.parametrize("epsilon", [0.001, 0.1, 1.0])
@pytest.mark.parametrize(
    ("make", "population"),
    [
        (Net, {"prelu.weight", "norm.weight", "norm.bias"}),
        (lambda: Net(torch.sign), {"prelu.weight", "norm.weight", "norm.bias"}),
        (lambda: Net(OwnSign.apply), {"prelu.weight", "norm.weight", "norm.bias"}),
        (lambda: Net(torch.tanh), {"prelu.weight", "norm.weight", "norm.bias"}),
        (Residual, {"norm.weight", "norm.bias"}),
        (Binary, set()),
        (Sequence, {"shared.weight", "shared.bias"}),
        (Mixing, set()),
        # sign behind an attribute cannot be traced
        (lambda: Net(sign), {name for name, _ in Net().named_parameters()}),
    ],
)
def test_differences_are_those_of_whole_evaluations(
    make: Callable[[], nn.Module], population: set[str], epsilon: float
) -> None:
    evaluator, params = prepared(make())
    stats = DifferenceStats()
    got = module_differences(evaluator, params, epsilon, stats=stats)
    expected = brute_force(evaluator, params, epsilon)
    for name in params:
        assert got[name].dtype == torch.float64
        assert got[name].shape == params[name].shape
        torch.testing.assert_close(got[name], expected[name], rtol=1e-8, atol=1e-13)
    assert any(difference.abs().max() > 1e-4 for difference in expected.values())
    methods = {name: layer.method for name, layer in stats.layers.items()}
    assert {name for name, method in methods.items() if method == "population"} == population


@pytest.mark.parametrize("make", [Net, Residual, Binary, Scaled, Sequence, Mixing])
def test_chosen_coordinates_are_those_of_all(make: Callable[[], nn.Module]) -> None:
    evaluator, params = prepared(make())
    whole = module_differences(evaluator, params, 0.1)
    generator = torch.Generator().manual_seed(1)
    chosen = {
        name: torch.randperm(w.numel(), generator=generator)[:3] for name, w in params.items()
    }
    left_out = next(iter(params))
    del chosen[left_out]
    stats = DifferenceStats()
    got = module_differences(evaluator, params, 0.1, stats=stats, coordinates=chosen)
    for name, index in chosen.items():
        assert got[name].shape == (len(index),)
        torch.testing.assert_close(got[name], whole[name].flatten()[index], rtol=1e-8, atol=1e-13)
        # no more is evaluated than asked for
        assert stats.layers[name].evaluated <= 2 * len(index) * len(evaluator.inputs)
    assert got[left_out].shape == params[left_out].shape


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_scaled_weights_are_followed_by_rows(epsilon: float) -> None:
    evaluator, params = prepared(Scaled())
    stats = DifferenceStats()
    got = module_differences(evaluator, params, epsilon, stats=stats)
    expected = brute_force(evaluator, params, epsilon)
    for name in params:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-8, atol=1e-13)
    methods = {name: layer.method for name, layer in stats.layers.items()}
    # a scale of the whole layer moves all rows; groups and learned scales are no rows of weights
    others = {"three.weight", "four", "scale", "one.bias"}
    assert {name for name, method in methods.items() if method == "channel"} >= {
        "one.weight", "two", "matrix",
    }  # fmt: skip
    assert {name for name, method in methods.items() if method == "population"} <= others


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_weights_that_keep_their_sign_move_a_scale_alike(dtype: torch.dtype) -> None:
    evaluator, params = prepared(Scaled())
    params["one.weight"] = params["one.weight"].detach().sign() * 0.4  # farther from 0 than epsilon
    params = {name: w.detach().to(dtype) for name, w in params.items()}
    evaluator = ModuleEvaluator(
        evaluator.model.to(dtype), evaluator.inputs.to(dtype), evaluator.targets
    )
    stats = DifferenceStats()
    got = module_differences(evaluator, params, 0.1, ["one.weight"], stats)["one.weight"]
    # three filters, each with one larger and one smaller scale
    assert stats.layers["one.weight"].evaluated <= 3 * 2 * len(evaluator.inputs)
    for row, difference in zip(params["one.weight"], got, strict=True):
        for side in (row > 0, row < 0):
            assert len(torch.unique(difference[side])) == 1
        assert torch.unique(difference[row > 0]) == -torch.unique(difference[row < 0])


def test_examples_without_a_flip_are_skipped() -> None:
    evaluator, params = prepared(Net(), batch=200)
    stats = DifferenceStats()
    names = ["first.weight", "second.weight", "third.weight", "head.weight"]
    got = module_differences(evaluator, params, 0.02, names, stats)
    assert list(got) == list(stats.layers) == names
    for name in names:
        layer = stats.layers[name]
        assert layer.pairs == 2 * params[name].numel() * 200
        assert layer.skipped == layer.pairs - layer.evaluated
        assert 0 < layer.evaluated <= layer.changed <= layer.pairs
    for name in names[:3]:
        assert stats.layers[name].evaluated < 0.2 * stats.layers[name].pairs
    # all weights of one neuron of a linear layer flip the same activations
    assert stats.layers["third.weight"].evaluated < 0.5 * stats.layers["third.weight"].changed
    # a real-valued output changes always, but where its input is zero
    assert stats.layers["head.weight"].evaluated == stats.layers["head.weight"].pairs


def test_a_shortcut_leaves_nothing_to_skip() -> None:
    evaluator, params = prepared(Residual())
    stats = DifferenceStats()
    module_differences(evaluator, params, 0.01, ["one.weight"], stats)
    layer = stats.layers["one.weight"]
    assert layer.method == "channel"
    assert layer.evaluated > 0.9 * layer.pairs


@pytest.mark.parametrize("make", [Net, Residual, Sequence])
def test_differences_do_not_depend_on_memory(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, params = prepared(make(), batch=7)
    whole = module_differences(evaluator, params, 0.1)
    for room in (1, 20_000):
        monkeypatch.setattr(following, "_CPU_BYTES", room)
        pieces = module_differences(evaluator, params, 0.1)
        for name in params:
            torch.testing.assert_close(whole[name], pieces[name], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Net, ["first.weight", "third.weight", "head.weight"]),
        (Residual, ["stem.weight", "head.weight"]),
        (Sequence, ["embed.weight", "head.weight"]),
    ],
)
def test_memory_stays_within_its_bound(make: Callable[[], nn.Module], names: list[str]) -> None:
    memory = 300_000
    evaluator, params = prepared(make(), batch=80, memory_bytes=memory)
    for name in names:
        stats = DifferenceStats()
        with Footprint() as footprint:
            module_differences(evaluator, params, 0.1, [name], stats)
        assert stats.layers[name].method == "channel"
        assert memory / 20 < footprint.peak <= memory


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_few_examples(batch: int) -> None:
    evaluator, params = prepared(Net(), batch)
    got = module_differences(evaluator, params, 0.3)
    expected = brute_force(evaluator, params, 0.3)
    for name in params:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-8, atol=1e-13)


def test_batchnorm_in_training_mode_is_left_to_populations() -> None:
    evaluator, params = prepared(Net())
    module = evaluator.model.train()
    evaluator = ModuleEvaluator(module, evaluator.inputs, evaluator.targets)
    assert evaluator.couples
    stats = DifferenceStats()
    names = ["first.bias", "second.weight", "head.bias"]
    got = module_differences(evaluator, params, 0.1, names, stats)
    assert {layer.method for layer in stats.layers.values()} == {"population"}
    expected = brute_force(evaluator, params, 0.1)
    for name in names:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-8, atol=1e-12)


def test_nan_reaches_every_difference() -> None:
    evaluator, params = prepared(Net())
    inputs = evaluator.inputs.clone()
    inputs[2, 1, 0, 0] = torch.nan
    spoiled = ModuleEvaluator(evaluator.model, inputs, evaluator.targets)
    for difference in module_differences(spoiled, params, 0.1).values():
        assert difference.isnan().all()


def test_float32_differs_by_no_more_than_its_boundary_examples() -> None:
    evaluator, params = prepared(Net(), batch=200)
    wide = module_differences(evaluator, params, 0.1)
    narrow = ModuleEvaluator(evaluator.model.float(), evaluator.inputs.float(), evaluator.targets)
    got = module_differences(narrow, {k: w.detach().float() for k, w in params.items()}, 0.1)
    for name in params:
        difference = (got[name] - wide[name]).abs()
        # an example of 200 on the other side of a threshold moves a weight by 1e-3 or so
        assert int((difference > 1e-5).sum()) <= 2
        assert wide[name].abs().max() > 1e-3 or name == "prelu.weight"  # which no sign sees


def test_unknown_names_are_refused() -> None:
    evaluator, params = prepared(Net())
    with pytest.raises(ValueError, match="no parameters frist"):
        module_differences(evaluator, params, 0.1, ["frist.weight"])
    del params["head.bias"]
    with pytest.raises(ValueError, match=r"missing: head\.bias"):
        module_differences(evaluator, params, 0.1)
