"""Propagated moments of modules: exact where outputs are linear in noise, and close elsewhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import sign
from gradlab.binary.layers import BinaryActivation, BinaryConv2d
from gradlab.estimators import cosine, create, moments_module
from gradlab.estimators.moments_graph import Propagation
from gradlab.estimators.moments_tape import Moments
from gradlab.evaluation import Params
from gradlab.evaluation.module.graph import ModuleGraph
from gradlab.objectives import Classification
from tests.estimators.module_problems import (
    Residual,
    Squares,
    drawn_outputs,
    images,
    layers_as_module,
)

SIGMA = 0.5


def propagated(
    model: nn.Module, inputs: Tensor, names: list[str], sigma: float, shared: bool = True
) -> tuple[Moments, Tensor]:
    state = {n: w.detach().requires_grad_() for n, w in model.named_parameters()}
    propagation = Propagation(
        ModuleGraph(model), {**state, **dict(model.named_buffers())}, names, sigma, "x",
        shared=shared,
    )  # fmt: skip
    found = propagation.run(inputs)
    assert isinstance(found, Moments)
    return found, propagation.tape.covariance(found)


def estimated(objective: Any, params: Params, sigma: float = SIGMA) -> Params:
    estimator = create("moment_propagation", sigma=sigma)
    return estimator.estimate(objective, params, generator=torch.Generator()).gradient


@pytest.mark.parametrize("weight", ["real", "binary"])
@pytest.mark.parametrize("activation", ["binary", "ternary", "2bit", "full"])
def test_of_layers_in_a_row_it_is_what_it_is_without_a_module(activation: str, weight: str) -> None:
    layered, params, module, own = layers_as_module(3, 3, activation, weight)
    wanted, found = estimated(layered, params), estimated(module, own)
    for one, other in zip(wanted.values(), found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


CONVOLUTIONS = [
    {},
    {"padding": 1},
    {"stride": 2, "padding": 2},
    {"dilation": 2},
    {"groups": 2},
    {"groups": 2, "padding": 1, "stride": 2},
    {"padding": 1, "padding_mode": "reflect"},
]  # fmt: skip


def test_noise_of_one_convolution_has_the_covariance_of_its_patches() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(3, 2, 6, 6, dtype=torch.float64)
    for options in CONVOLUTIONS:
        model = nn.Sequential(nn.Conv2d(2, 4, 3, **options), nn.Flatten()).double()
        found, covariance = propagated(model, inputs, ["0.weight", "0.bias"], SIGMA)
        wanted = _covariance(model, inputs, SIGMA)
        torch.testing.assert_close(covariance, wanted)
        torch.testing.assert_close(found.variance, wanted.diagonal(dim1=1, dim2=2))
        torch.testing.assert_close(found.mean, model(inputs))


def _covariance(model: nn.Module, inputs: Tensor, sigma: float) -> Tensor:
    """Of outputs that are linear in the parameters, by their derivatives."""
    params = {name: w.detach() for name, w in model.named_parameters()}

    def outputs(params: Params) -> Tensor:
        found: Tensor = torch.func.functional_call(model, params, (inputs,))
        return found

    slopes = torch.func.jacrev(outputs)(params)
    flat = torch.cat([each.flatten(2) for each in slopes.values()], dim=2)
    return sigma**2 * flat @ flat.mT


def test_linear_layers_share_their_weights_over_rows_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Flatten()).double()
    inputs = torch.randn(3, 5, 4, dtype=torch.float64)
    _, covariance = propagated(model, inputs, ["0.weight", "0.bias"], SIGMA)
    torch.testing.assert_close(covariance, _covariance(model, inputs, SIGMA))


def test_scales_and_shifts_are_shared_by_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten()).double().eval()
    model[0].running_mean.normal_()
    model[0].running_var.uniform_(0.5, 2)
    inputs = torch.randn(3, 2, 3, 3, dtype=torch.float64)
    found, covariance = propagated(model, inputs, ["0.weight", "0.bias"], SIGMA)
    torch.testing.assert_close(covariance, _covariance(model, inputs, SIGMA))
    torch.testing.assert_close(found.variance, covariance.diagonal(dim1=1, dim2=2))


class Behind(nn.Module):
    """One noisy convolution, and behind it all that is linear."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(F.pad(x, (0, 1, 1, 0))))
        x = torch.cat((x, -x), dim=1)
        x = F.avg_pool2d(x + 2 * x.mean((2, 3), keepdim=True), 2, 1).flatten(1)
        outputs: Tensor = self.head(x)
        return outputs


def test_one_noisy_layer_is_exact_if_outputs_are_linear_in_it() -> None:
    torch.manual_seed(0)
    model = Behind(nn.Conv2d(1, 1, 2, bias=False)).double().eval()
    inputs, targets = torch.randn(4, 1, 3, 3).double(), torch.randn(4, 2).double()
    params = {"first.weight": model.first.weight.detach()}
    found = estimated(Squares(model, inputs, targets), params)["first.weight"]
    slopes = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (inputs,)))(params)
    error = (model(inputs) - targets).detach()
    # the noise adds σ²‖J‖², which is a constant
    wanted = torch.einsum("bk,bkocij->ocij", 2 * error / 8, slopes["first.weight"])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("scaling", ["none", "learned"])
def test_binary_weights_by_enumeration(scaling: str) -> None:
    torch.manual_seed(0)
    first = BinaryConv2d(1, 1, 2, scaling=scaling)
    first.padding = 0
    model = Behind(first).double().eval()
    inputs, targets = torch.randn(4, 1, 3, 3).double(), torch.randn(4, 2).double()
    latent = 0.4 * torch.randn(1, 1, 2, 2).double()
    found = estimated(Squares(model, inputs, targets), {"first.weight": latent})["first.weight"]
    leaf = latent.clone().requires_grad_()
    plus = torch.special.ndtr(leaf.flatten() / SIGMA)
    expected: Any = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=4):
        b = torch.tensor(signs).double()
        chance = torch.where(b > 0, plus, 1 - plus).prod()
        moved = {"first.weight": b.reshape(latent.shape)}
        outputs = torch.func.functional_call(model, moved, (inputs,)).detach()
        expected = expected + chance * (outputs - targets).square().mean()
    (wanted,) = torch.autograd.grad(expected, leaf)
    torch.testing.assert_close(found, wanted)


def test_scales_of_binary_weights_follow_the_noise() -> None:
    """The mean size of noisy weights is that of folded normals."""
    model = BinaryConv2d(2, 3, 3)
    inputs = images(2).expand(2, 2, 8, 8)
    found, _ = propagated(model, inputs, ["weight"], 0.3)
    drawn = drawn_outputs(model, inputs, ["weight"], 0.3, 4000)
    mean, spread = drawn.mean(0), drawn.std(0)
    assert ((found.mean.flatten(1) - mean).abs() / spread).max() < 0.12
    assert ((found.variance.sqrt().flatten(1) / spread) - 1).abs().max() < 0.15


def test_cross_entropy_of_normal_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    inputs, labels = 2 * torch.randn(5, 6), torch.randint(4, (5,))
    objective = Classification(model, inputs, labels)
    params = {name: w.detach() for name, w in model.named_parameters()}
    found = estimated(objective, params)
    noise = torch.randn(100_000, 5, 4, generator=torch.Generator().manual_seed(0))
    spread = SIGMA * (inputs.square().sum(1, keepdim=True) + 1).sqrt()
    errors = torch.softmax(model(inputs) + spread * noise, 2).mean(0) - F.one_hot(labels)
    wanted = {"0.weight": (errors.T @ inputs) / 5, "0.bias": errors.mean(0)}
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() < 0.02 * gradient.norm()


def test_a_linear_loss_has_no_curvature() -> None:
    mean = torch.randn(3, 2, requires_grad=True)
    covariance = torch.eye(2).expand(3, 2, 2).clone().requires_grad_()

    def chosen(outputs: Tensor, targets: Tensor) -> Tensor:
        return -outputs.gather(1, targets[:, None])[:, 0]

    targets = torch.tensor([0, 1, 1])
    value = moments_module.expected_loss(chosen, mean, covariance, targets)
    slope, curvature = torch.autograd.grad(value, (mean, covariance))
    assert torch.equal(slope, -F.one_hot(targets).float())
    assert not curvature.any()


class Operations(nn.Module):
    """One function behind a noisy convolution, and a sum of what it gives."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(self.first(x)).mean((2, 3))
        return found


FUNCTIONS = {
    "sign": lambda x: sign(x),
    "torch sign": torch.sign,
    "relu": F.relu,
    "leaky": nn.LeakyReLU(0.2),
    "hardtanh": nn.Hardtanh(-0.5, 1.5),
    "clamp": lambda x: x.clamp(0, 2),
    "relu6": F.relu6,
    "abs": torch.abs,
    "tanh": torch.tanh,
    "silu": F.silu,
    "residual": lambda x: x + 0.3 * sign(x),
    "max of signs": lambda x: F.max_pool2d(sign(x), 2),
    "max": nn.MaxPool2d(2),
    "adaptive": nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_of_every_operation_are_those_of_many_draws(name: str) -> None:
    """To within the error of the draws, but for maxima of positions, which are no independent ones,
    and for the spread of what is far from linear, of which the first order is a part."""
    torch.manual_seed(1)
    model = Operations(FUNCTIONS[name])
    inputs, names = images(6), ["first.weight", "first.bias"]
    found, covariance = propagated(model, inputs, names, 0.2)
    _, apart = propagated(model, inputs, names, 0.2, shared=False)
    drawn = drawn_outputs(model, inputs, names, 0.2, 3000)
    error = (found.mean.detach() - drawn.mean(0)).abs() / drawn.std(0)
    assert error.max() < (1.0 if "max" in name else 0.1)
    first, none = (
        (each.detach().diagonal(dim1=1, dim2=2) / drawn.var(0)).sqrt()
        for each in (covariance, apart)
    )
    far = "sign" in name or name == "abs"
    assert (first - 1).abs().max() < (0.7 if far else 0.25)
    assert (first - 1).square().mean() < (0.9 if far else 0.5) * (none - 1).square().mean()


def test_that_positions_share_weights_is_most_of_the_outputs_variance() -> None:
    model, inputs = Residual().eval(), images(6)
    torch.manual_seed(2)
    model.apply(lambda part: getattr(part, "reset_parameters", lambda: None)())
    names = [name for name, _ in model.named_parameters() if "head" not in name]
    drawn = drawn_outputs(model, inputs, names, 0.1, 2000)
    found, covariance = propagated(model, inputs, names, 0.1)
    _, alone = propagated(model, inputs, names, 0.1, shared=False)
    ratio, before = (
        float(each.detach().diagonal(dim1=1, dim2=2).sum() / drawn.var(0).sum())
        for each in (covariance, alone)
    )
    # the rest is what signs of like patches have in common beyond the first order
    assert 0.7 < ratio < 1.1
    assert before < 0.7 * ratio
    error = (found.mean.detach() - drawn.mean(0)).norm() / drawn.mean(0).norm()
    assert error < 0.08


def test_it_is_the_derivative_of_the_expected_loss() -> None:
    torch.manual_seed(0)
    model = Residual().double().eval()
    inputs, targets = images(3).double(), torch.randn(3, 3).double()
    names = [name for name, _ in model.named_parameters()]
    objective = Squares(model, inputs, targets)
    params = {name: w.detach().clone() for name, w in model.named_parameters()}
    gradient = estimated(objective, params, 0.2)

    def loss(step: float, direction: Params) -> float:
        for name, w in model.named_parameters():
            w.data = params[name] + step * direction[name]
        found, covariance = propagated(model, inputs, names, 0.2)
        squares = (found.mean - targets).square() + covariance.diagonal(dim1=1, dim2=2)
        return float(squares.mean().detach())

    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = {
            n: torch.randn(w.shape, generator=generator).double() for n, w in params.items()
        }
        slope = (loss(1e-5, direction) - loss(-1e-5, direction)) / 2e-5
        wanted = sum(float((gradient[name] * direction[name]).sum()) for name in params)
        assert slope == pytest.approx(wanted, rel=1e-5)


def test_blocks_of_examples_precision_and_nothing_is_changed() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    inputs, labels = images(12), torch.arange(12) % 3
    objective = Classification(model, inputs, labels)
    params = objective.initial_params(0)
    before = {name: w.clone() for name, w in params.items()}
    state = {name: each.clone() for name, each in model.state_dict().items()}
    random = torch.random.get_rng_state()
    estimate = create("moment_propagation").estimate(objective, params, generator=torch.Generator())
    small = Classification(model, inputs, labels, memory_bytes=2**20)
    blocks = estimated(small, params, 0.1)
    wide = Classification(model.double(), inputs.double(), labels)
    exact = estimated(wide, {name: w.double() for name, w in params.items()}, 0.1)
    model.float()
    for name, gradient in estimate.gradient.items():
        assert gradient.dtype == torch.float32
        assert gradient.shape == params[name].shape
        assert exact[name].dtype == torch.float64
        torch.testing.assert_close(blocks[name], gradient, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(exact[name].float(), gradient, rtol=1e-2, atol=1e-4)
        assert torch.equal(params[name], before[name])
    for name, each in model.state_dict().items():
        assert torch.equal(each, state[name])
    assert torch.equal(torch.random.get_rng_state(), random)
    # three products, one of deviations and six of the slopes of three outputs
    assert estimate.forward_passes == estimate.backward_passes == 10


class WithNorm(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.function(self.first(x))
        return found


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (nn.LayerNorm(4), "no rule for layernorm .* use nes_local"),
        (lambda x: torch.cumsum(x, 1), "no rule for cumsum"),
        (lambda x: x.round(), "no rule for round"),
        (lambda x: F.pad(x, (0, 1), value=1.0), "no rule for pad"),
        (lambda x: torch.maximum(x, -x), "no rule for maximum"),
        (lambda x: x[:, :3] if x.sum() > 1e9 else x, "cannot be traced .* use nes_local"),
    ],
    ids=["norm", "cumsum", "round", "pad", "maximum", "branch"],
)
def test_operations_without_a_rule_are_named(function: Any, sentence: str) -> None:
    objective = Classification(WithNorm(function), torch.randn(3, 4), torch.arange(3))
    with pytest.raises(ValueError, match=f"moment_propagation .*{sentence}") as caught:
        estimated(objective, objective.initial_params(0))
    assert "\n" not in str(caught.value)


def test_a_loss_of_ones_own_and_broken_parameters_are_refused() -> None:
    def mistakes(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) != targets).double()

    model, inputs, labels = nn.Sequential(nn.Linear(4, 3)), torch.randn(3, 4), torch.arange(3)
    own = Classification(model, inputs, labels, mistakes)
    with pytest.raises(ValueError, match=r"differentiates the loss twice.* or nes_local"):
        estimated(own, own.initial_params(0))
    objective = Classification(model, inputs, labels)
    with pytest.raises(ValueError, match=r"parameter 0\.bias has NaN"):
        estimated(objective, {**objective.initial_params(0), "0.bias": torch.full((3,), torch.nan)})
    inputs[1] = torch.nan
    poisoned = estimated(Classification(model, inputs, labels), objective.initial_params(0))
    assert all(gradient.isnan().any() for gradient in poisoned.values())


def test_smooth_networks_have_the_gradient_of_many_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, stride=2),
                          nn.Hardtanh(), nn.Flatten(), nn.Linear(16, 3))  # fmt: skip
    inputs, labels = images(64, side=6), torch.arange(64) % 3
    objective = Classification(model, inputs, labels)
    params = {name: w.detach() for name, w in model.named_parameters()}
    found = estimated(objective, params, 0.1)
    generator = torch.Generator().manual_seed(0)
    total = {name: torch.zeros_like(w) for name, w in params.items()}
    for _ in range(400):
        leaves = {
            name: (w + 0.1 * torch.randn(w.shape, generator=generator)).requires_grad_()
            for name, w in params.items()
        }
        loss = F.cross_entropy(torch.func.functional_call(model, leaves, (inputs,)), labels)
        for name, each in zip(
            params, torch.autograd.grad(loss, list(leaves.values())), strict=True
        ):
            total[name] += each
    for name in params:
        assert cosine(found[name], total[name]) > 0.98


class Shuffled(nn.Module):
    """Units in another order, by a buffer or by a list."""

    def __init__(self, by_buffer: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.order: Any = [3, 1, 2, 0]
        if by_buffer:
            del self.order
            self.register_buffer("order", torch.tensor([3, 1, 2, 0]))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.second(torch.sign(self.first(x))[:, self.order])
        return outputs


def test_an_index_in_a_buffer_is_no_summand() -> None:
    torch.manual_seed(0)
    models = [Shuffled(False), Shuffled(True)]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    names, inputs = [name for name, _ in models[0].named_parameters()], torch.randn(5, 3)
    (one, first), (other, second) = (propagated(m, inputs, names, SIGMA) for m in models)
    torch.testing.assert_close(one.variance, other.variance)
    torch.testing.assert_close(first, second)


class Idiom(nn.Module):
    """A sign written as a sum that is there for its derivative, or a product of dependent sides."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.kind = nn.Linear(3, 4), nn.Linear(4, 2), kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "identity":
            x = x + (torch.sign(x) - x).detach()
        elif self.kind == "clipped":
            x = torch.sign(x).detach() - torch.clamp(x, -1, 1).detach() + torch.clamp(x, -1, 1)
        elif self.kind == "squared":
            x = x * torch.tanh(x)
        else:
            return F.linear(x, self.second.weight * self.second.weight)
        outputs: Tensor = self.second(x)
        return outputs


@pytest.mark.parametrize("kind", ["identity", "clipped", "squared", "weights"])
def test_two_functions_of_one_value_are_not_taken_for_independent(kind: str) -> None:
    model = Idiom(kind)
    with pytest.raises(
        ValueError, match=r"functions of one noisy value: write a sign .* nes_local"
    ):
        propagated(model, torch.randn(5, 3), [n for n, _ in model.named_parameters()], SIGMA)


def test_where_there_is_no_noise_functions_have_their_own_values() -> None:
    torch.manual_seed(0)
    inputs = images(4)
    inputs[:, :, :, :4] = 0  # patches of zeros, of which torch's sign is 0 and gradlab's +1
    for function, at_zero in ((torch.sign, 0.0), (BinaryActivation(), 1.0)):
        model = _Elementwise(function)
        found, _ = propagated(model, inputs, ["first.weight"], SIGMA)
        place = (slice(None), slice(None), slice(None), slice(0, 2))
        signs = found.mean.reshape(4, 3, 6, 6)[place]
        assert (signs == at_zero).all()
        assert (found.variance.reshape(4, 3, 6, 6)[place] == 0).all()
        assert (found.variance.reshape(4, 3, 6, 6)[..., 4:] > 0).all()


class _Elementwise(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(1, 3, 3, bias=False), function

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.function(self.first(x)).flatten(1)
        return outputs


@pytest.mark.parametrize(
    "pooling",
    [
        nn.AvgPool2d(2, divisor_override=1),
        nn.AvgPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, padding=1),
    ],
)
def test_unusual_pooling_is_refused(pooling: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), pooling, nn.Flatten())
    with pytest.raises(ValueError, match=r"has no rule for (avg|max)pool2d"):
        propagated(model, images(2), ["0.weight", "0.bias"], SIGMA)


class _Indices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.pooling = nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.pooling(self.first(x))[0].flatten(1)
        return outputs


def test_pooling_that_says_where_is_refused() -> None:
    with pytest.raises(ValueError, match="has no rule for maxpool2d"):
        propagated(_Indices(), images(2), ["first.weight", "first.bias"], SIGMA)


@pytest.mark.parametrize("count", [1, 3, 10, 40])
def test_points_of_the_outputs_are_uncorrelated(count: int) -> None:
    points = moments_module._normal_points(count)
    assert len(points) >= 4 * count
    torch.testing.assert_close(points.mean(0), torch.zeros(count).double(), rtol=0, atol=1e-12)
    found = points.T @ points / len(points)
    torch.testing.assert_close(found, torch.eye(count).double(), rtol=0, atol=1e-10)
    # more than their covariance: E x₁² x₂² is 1, E x⁴ 3
    if count > 1:
        fourth = points[:, :, None].square() * points[:, None].square()
        apart = fourth.mean(0)[~torch.eye(count, dtype=torch.bool)]
        assert abs(float(apart.mean()) - 1) < 0.1
