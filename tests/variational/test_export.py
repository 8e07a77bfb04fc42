"""Exported networks equal the masked one bit for bit, torch up to rounding, and are small."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradlab import data, models, variational
from gradlab.data import DataError
from gradlab.variational.compression import layer_rows, pruned
from gradlab.variational.export import FORMATS, export
from gradlab.variational.exported import load_exported
from gradlab.variational.normal_jeffreys import NormalJeffreys
from tests.variational.pruning import PrunedConv2d, PrunedLinear, equal_bits, prune

EPSILON = 2.0**-24


def perceptron(widths: list[int], act: Callable[[], nn.Module], bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [PrunedLinear(inputs, outputs, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def with_error(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The network in float64, and how far a float32 evaluation in any order may be from it.

    A sum of n products errs by at most (n + 2) ε Σ|x||w| to first order, for which 1 % is added; an
    error of the inputs passes through a layer by |w|; no activation here is steeper than 1.
    """
    error = torch.zeros_like(x, dtype=torch.float64)
    x = x.double()
    for module in model:
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.mean_weight().detach()
            weight = weight.double() if module.mask() is None else weight.double() * module.mask()
            size, absolute = weight[0].numel() + 2, copy.deepcopy(module).double()
            absolute.bias = None if module.bias is None else nn.Parameter(absolute.bias.abs())
            passed = absolute.apply_weight(error, weight.abs(), None)
            error = passed + 1.01 * size * EPSILON * absolute.apply_weight(
                x.abs(), weight.abs(), absolute.bias
            )
            bias = None if module.bias is None else module.bias.double()
            x = module.apply_weight(x, weight, bias)
        elif isinstance(module, nn.MaxPool2d):
            x, error = module(x), module(error)
        elif isinstance(module, nn.AvgPool2d):
            n = module.kernel_size**2 + 2
            x, error = module(x), module(error) + n * EPSILON * module(x.abs())
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            over = (-1, *[1] * (x.ndim - 2))
            scale = module.weight.double() / (module.running_var.double() + module.eps).sqrt()
            shift = module.bias.double() - module.running_mean.double() * scale
            scale, shift = scale.reshape(over), shift.reshape(over)
            rounded = 8 * EPSILON * ((x * scale).abs() + shift.abs() + (shift - x * scale).abs())
            x, error = x * scale + shift, error * scale.abs() + rounded
        elif isinstance(module, nn.Flatten):
            x, error = module(x), module(error)
        else:
            x, error = module(x), error + 4 * EPSILON * (1 + module(x).abs())
    return x.detach(), error.detach()


def check(model: nn.Module, x: Tensor) -> None:
    """All formats against each other, torch and float64."""
    found = {format: export(model, format=format)(x) for format in FORMATS}
    assert equal_bits(found["dense"], found["masked"])
    assert equal_bits(found["csr"], found["masked"])
    with pruned(model), torch.no_grad():
        torchs = model.eval()(x)
    exact, error = with_error(model, x)
    for each in (found["masked"], torchs):
        assert bool(((each.double() - exact).abs() <= error).all())


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=4), st.floats(0.3, 1.0), st.booleans(),
    st.sampled_from([nn.ReLU, nn.Softplus, nn.Tanh]), st.integers(1, 200), st.integers(0, 999),
)  # fmt: skip
def test_perceptrons_are_equal_bit_for_bit(
    widths: list[int], sparsity: float, bias: bool, act: Callable[[], nn.Module], images: int,
    seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    model = prune(perceptron(widths, act, bias), sparsity, seed)
    model[1].keep[0, 0] = False  # something is pruned
    check(model, torch.randn(images, 1, 1, widths[0]))


windows = st.fixed_dictionaries(
    {
        "kernel_size": st.sampled_from([1, 2, 3, (3, 1), (2, 3)]),
        "stride": st.sampled_from([1, 2, (1, 2)]),
        "padding": st.sampled_from([0, 1, (0, 2), (2, 1)]),
        "dilation": st.sampled_from([1, 2, (1, 2)]),
        "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
        "bias": st.booleans(),
        "groups": st.sampled_from([1, 2, 4]),
    }
)


@settings(max_examples=60)
@given(windows, st.floats(0.2, 1.0), st.integers(1, 20), st.integers(0, 999))
def test_convolutions_are_equal_bit_for_bit(
    window: dict[str, object], sparsity: float, images: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(images, 4, 7, 6)
    first = PrunedConv2d(4, 8, **window)
    second = PrunedConv2d(8, 4, (3, 1), padding="same", dilation=2, groups=window["groups"])
    features = nn.Sequential(first, nn.Tanh(), second, nn.ReLU())
    inputs = features(x).flatten(1).shape[1]
    model = nn.Sequential(*features, nn.Flatten(), PrunedLinear(inputs, 3))
    prune(model, sparsity, seed)
    first.keep.view(-1)[0] = False
    check(model, x)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        PrunedConv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Softplus(), nn.MaxPool2d(2),
        PrunedConv2d(6, 8, 3), nn.ReLU(), nn.Dropout2d(), nn.AvgPool2d(2, padding=1), nn.Flatten(),
        nn.BatchNorm1d(8 * 9), nn.Dropout(), PrunedLinear(8 * 9, 16), nn.BatchNorm1d(16), nn.Tanh(),
        PrunedLinear(16, 5),
    )  # fmt: skip


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.97, 1.1])
def test_whole_networks_are_equal_bit_for_bit(sparsity: float) -> None:
    check(prune(convolutional(), sparsity), torch.randn(37, 2, 12, 12))


@pytest.mark.parametrize("options", [
    {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True},
    {"kernel_size": (2, 3), "stride": (2, 1)},
], ids=["overlapping", "oblong"])  # fmt: skip
def test_pools_have_their_options(options: dict[str, object]) -> None:
    for pool in (nn.MaxPool2d(**options), nn.AvgPool2d(**options)):
        if isinstance(pool, nn.AvgPool2d):
            pool.count_include_pad, pool.divisor_override = False, 3
        model = nn.Sequential(pool, PrunedConv2d(3, 4, 2))
        found = export(prune(model, 0.6))(x := torch.randn(5, 3, 9, 8))
        with pruned(model):
            torch.testing.assert_close(found, model(x).detach(), rtol=1e-5, atol=1e-6)


def test_units_without_outgoing_weights_vanish_and_constant_ones_stay() -> None:
    torch.manual_seed(0)
    model = prune(perceptron([6, 5, 4, 3], nn.Softplus), 0.0)
    first, second, last = model[1], model[3], model[5]
    last.keep[:, 1] = False  # unit 1 of the second hidden layer is asked by nobody
    second.keep[:, :] = False
    second.keep[0, 2] = second.keep[1, 3] = True  # and alone asks unit 3 of the first
    first.keep[:, 4:] = False
    first.keep[3, 5] = True  # which alone looks at pixel 5
    small = export(model)
    steps = [step["blocks"] for step in small.description["steps"] if "blocks" in step]
    assert steps == [[[1, 4]], [[3, 1]], [[3, 3]]]  # units 2 and 3 of the middle are constants
    assert small.tensors["inputs"].tolist() == [0, 1, 2, 3]
    assert small.tensors["2.bias"].tolist() == second.bias[[0, 2, 3]].tolist()
    check(model, torch.randn(50, 6))


def test_channels_vanish_through_pools_norms_and_flatten() -> None:
    model = prune(convolutional(), 0.5)
    model[4].keep[:, [0, 3, 4]] = False  # of six channels three are asked
    model[11].keep.unflatten(1, (8, 9))[:, [1, 2, 5, 6, 7]] = False  # and of eight another three
    small = export(model)
    facts = {n: step for n, step in enumerate(small.description["steps"]) if "blocks" in step}
    assert facts[0]["blocks"] == [[3, 18]]
    assert facts[4]["blocks"] == [[3, 27]]
    assert list(facts.values())[2]["blocks"][0][1] == 27
    assert len(small.tensors["1.scale"]) == 3
    check(model, torch.randn(5, 2, 12, 12))


def test_groups_shrink_each_by_itself() -> None:
    torch.manual_seed(0)
    model = prune(nn.Sequential(
        PrunedConv2d(4, 4, 1), PrunedConv2d(4, 6, 1, groups=2), PrunedConv2d(6, 2, 1)), 0.0
    )  # fmt: skip
    model[2].keep[:, 1:3] = False
    model[1].keep[3:, 1] = False
    small = export(model)
    assert [step["blocks"] for step in small.description["steps"]] == [
        [[3, 4]], [[1, 2], [3, 1]], [[2, 4]]
    ]  # fmt: skip
    check(model, torch.randn(3, 4, 5, 5))


def test_sparse_rows_hold_the_kept_weights_and_short_indices() -> None:
    model = prune(perceptron([40, 30, 10], nn.ReLU), 0.9)
    found = export(model, format="csr")
    kept = sum(row["kept"] for row in layer_rows(model))
    left = [found.tensors[f"{step}.weight"] for step in (0, 2)]
    assert sum(len(each) for each in left) <= kept
    assert torch.equal(left[1], model[3].weight.detach()[model[3].keep])
    assert found.tensors["0.columns"].dtype == torch.int16
    wide = prune(perceptron([70_000, 2], nn.ReLU), 0.5)
    assert export(wide, format="csr").tensors["0.columns"].dtype == torch.int32
    check(wide, torch.randn(2, 70_000))


def test_a_negative_zero_in_a_bias_changes_no_bit() -> None:
    model = prune(nn.Sequential(PrunedLinear(4, 3), PrunedLinear(3, 3, bias=False)), 1.1)
    nn.init.constant_(model[0].bias, -0.0)
    model[1].keep.fill_(True)
    nn.init.constant_(model[1].weight, -0.0)
    check(model, torch.ones(2, 4))
    check(model[:1], torch.ones(2, 4))


def test_log_softmax_ends_a_network() -> None:
    model = prune(nn.Sequential(PrunedLinear(6, 4), nn.LogSoftmax(1)), 0.5)
    found = export(model)(x := torch.randn(9, 6))
    with pruned(model):
        torch.testing.assert_close(found, model(x).detach())
    assert found.exp().sum(1) == pytest.approx(torch.ones(9))


METHODS = {
    "sparse": {}, "sparse_log_alpha": {"parameterization": "log_alpha"}, "hierarchical": {},
    "sparse_a_input": {"side": "input"}, "hierarchical_a_output": {"side": "output"},
    "normal_jeffreys": {}, "l0_weights": {"groups": "weights"}, "l0_inputs": {"groups": "inputs"},
    "l0_outputs": {"groups": "outputs"},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize("case", METHODS)
def test_layers_of_methods_are_exported(case: str, kind: str) -> None:
    name = next(each for each in reversed(variational.names()) if case.startswith(each))
    method = variational.create(name, **METHODS[case])
    torch.manual_seed(0)
    size = (4, 6) if kind == "linear" else (4, 6, 3)
    make = getattr(method, kind)
    model = nn.Sequential(make(*size), nn.ReLU(), make(size[1], 3, *size[2:]))
    for path, parameter in model.named_parameters():
        if path.endswith(("log_sigma2", "log_alpha", "log_odds", "z_log_variance")):
            nn.init.normal_(parameter, mean=0 if path.endswith("odds") else 2, std=4.0)
    x = torch.randn(5, *((4,) if kind == "linear" else (4, 8, 8)))
    assert any(0 < row["kept"] < row["weights"] for row in layer_rows(model))
    check(model, x)


def test_methods_without_a_mask_are_refused() -> None:
    method = variational.create("gaussian_w")
    model = variational.to_variational(nn.Sequential(nn.Linear(4, 3)), method)
    with pytest.raises(ValueError, match="no layer of the model can be pruned"):
        export(model)


@pytest.mark.parametrize("name", ["fully_connected", "lenet5_caffe", "conv_net", "vgg"])
def test_registered_models_are_exported(name: str) -> None:
    torch.manual_seed(0)
    options = {"vgg": {"width": 4}, "lenet5_caffe": {"filters": [3, 5], "hidden": [20]}}
    model = models.create(name, **options.get(name, {}))
    model = variational.to_variational(model, variational.create("sparse"))
    for path, parameter in model.named_parameters():
        if path.endswith("log_sigma2"):
            nn.init.normal_(parameter, std=4.0)
    x = torch.randn(3, *model.input_shape)
    found = {format: export(model, format=format)(x) for format in FORMATS}
    assert equal_bits(found["dense"], found["masked"])
    assert equal_bits(found["csr"], found["masked"])
    with pruned(model), torch.no_grad():
        torch.testing.assert_close(found["csr"], model.eval()(x), rtol=1e-3, atol=1e-5)


def test_a_threshold_prunes_more() -> None:
    layer = NormalJeffreys(initial=0.0).linear(6, 3)
    with torch.no_grad():
        layer.z_log_variance.copy_(torch.tensor([-3.0, -2, -1, 0, 1, 4]))
    sizes = {t: export(layer, threshold=t).description["steps"][0]["blocks"] for t in (None, -0.5)}
    assert sizes == {None: [[3, 5]], -0.5: [[3, 3]]}


def test_a_threshold_that_nothing_is_pruned_by_is_refused() -> None:
    gates = variational.create("l0", groups="weights").linear(6, 3)
    with torch.no_grad():
        gates.log_odds[:, :4] = -4.0
    with pytest.raises(ValueError, match=r"no layer .* by a threshold .*\(method L0\): leave"):
        export(gates, threshold=1.0)
    sparse = variational.create("sparse", threshold=2.0).linear(3, 2)
    mixed = nn.Sequential(gates, sparse)  # one of them has a threshold
    assert export(mixed, threshold=1.0).description["steps"][0]["blocks"] == [[3, 2]]


def test_facts_are_kept(tmp_path: Path) -> None:
    model = prune(perceptron([4, 3], nn.ReLU), 0.5)
    facts = {"name": "run", "data": {"classes": ["no", "yes"], "mean": [0.25]}}
    path = tmp_path / "network.safetensors"
    assert export(model, path, facts=facts).facts == facts
    assert load_exported(path).facts == facts
    assert export(model).facts == {}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = PrunedLinear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(x)


class Functional(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


class Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Strange(PrunedLinear):
    def mean_forward(self, x: Tensor) -> Tensor:
        return super().mean_forward(x) + 1


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("xnor_mlp", {"width": 8}, r"layer hidden\.0\.sign \(BinaryActivation\)"),
        ("lenet", {}, r"layer features\.3 \(BinaryActivation\)"),
    ],
)
def test_the_first_binarized_layer_is_named(name: str, options: dict[str, int], words: str) -> None:
    model = variational.to_variational(models.create(name, **options), "sparse", initial=9.0)
    with pytest.raises(ValueError, match=words + " cannot be exported: use AvgPool2d, .*Linear"):
        export(model)


@pytest.mark.parametrize(("model", "words"), [
    (nn.Sequential(PrunedLinear(4, 4), nn.GELU()), r"layer 1 \(GELU\) cannot be exported: use Avg"),
    (nn.Sequential(Strange(4, 4)), r"layer 0 \(Strange\) cannot be exported"),
    (nn.Sequential(nn.Sequential(), PrunedLinear(4, 4), Sign()),
     r"layer 2 \(Sign\) cannot be exported: use Avg"),
    (Residual(), "more than call one layer after the other"),
    (Functional(), r"at relu\)"),
    (Branching(), "forward pass cannot be followed"),
    (nn.Sequential(PrunedConv2d(1, 2, 3), PrunedLinear(4, 4)), "takes features, and gets maps"),
    (nn.Sequential(nn.Flatten(2), PrunedLinear(4, 4)), "flattens other dimensions"),
    (nn.Sequential(nn.LogSoftmax(0), PrunedLinear(4, 4)), "not over classes"),
    (nn.Sequential(nn.LogSoftmax(1), PrunedLinear(4, 4)), "layer 1 .* comes after LogSoftmax"),
    (nn.Sequential(PrunedLinear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
     "no running statistics"),
    (PrunedLinear(4, 4).double(), "is in torch.float64: export takes a model in float32"),
    (nn.Sequential(nn.Linear(4, 4)), "no layer of the model can be pruned"),
    (nn.Sequential(nn.Linear(4, 4), PrunedLinear(4, 4)), "no weight of the model is pruned"),
], ids=["unknown", "overridden", "untraceable", "residual", "functional", "branching",
        "unflattened", "flatten", "log_softmax", "early", "batch_norm", "float64", "unmasked",
        "unpruned"])  # fmt: skip
def test_what_cannot_be_exported_is_named(model: nn.Module, words: str) -> None:
    for module in model.modules():
        if isinstance(module, PrunedLinear) and "no weight" not in words:
            module.keep[0] = False
    with pytest.raises(ValueError, match=words):
        export(model)


def test_unknown_formats_and_thresholds_are_refused() -> None:
    model = prune(perceptron([4, 3], nn.ReLU), 0.5)
    with pytest.raises(ValueError, match="unknown format 'cst': did you mean 'csr'"):
        export(model, format="cst")
    with pytest.raises(ValueError, match="threshold is nan"):
        export(model, threshold=math.nan)


def test_the_model_is_left_as_it_was() -> None:
    model = prune(convolutional(), 0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_digits_are_classified_as_by_torch() -> None:
    """LeNet-300-100, trained for a second, of which the largest weights are kept."""
    if not os.environ.get("GRADLAB_DATA"):
        pytest.skip("real images are needed: set GRADLAB_DATA to their folder")
    try:
        digits = data.load("mnist", "test")
    except DataError as error:
        pytest.skip(f"MNIST is not in $GRADLAB_DATA: {error}")
    torch.manual_seed(0)
    model = models.create("fully_connected")
    sparsities = {0: 0.9, 2: 0.9, 4: 0.6}
    for place in sparsities:
        old = model.classifier[place]
        layer = PrunedLinear(old.in_features, old.out_features)
        layer.load_state_dict(old.state_dict(), strict=False)
        model.classifier[place] = layer
    optimizer = torch.optim.Adam(model.parameters())
    for start in range(0, 5_000, 100):
        here = slice(start, start + 100)
        loss = F.cross_entropy(model(digits.batch(here)), digits.labels[here])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for place, sparsity in sparsities.items():
        layer = model.classifier[place]
        size = layer.weight.detach().abs()
        layer.keep.copy_(size > size.flatten().kthvalue(int(sparsity * size.numel())).values)
    images = digits.batch()
    found = {format: export(model, format=format)(images) for format in FORMATS}
    assert equal_bits(found["dense"], found["masked"])
    assert equal_bits(found["csr"], found["masked"])
    with pruned(model), torch.no_grad():
        torchs = model.eval()(images)
    assert torch.equal(found["csr"].argmax(1), torchs.argmax(1))
    torch.testing.assert_close(found["csr"], torchs, rtol=1e-4, atol=1e-4)
    assert float((torchs.argmax(1) == digits.labels).double().mean()) > 0.7
