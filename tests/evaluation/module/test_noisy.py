"""Noisy passes of modules, against exact integrals of networks with a few signs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import binarize, sign, surrogates
from gradlab.evaluation import Params
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.footprint import Footprint
from gradlab.evaluation.module.noisy import NoisyPasses
from tests.estimators import referees
from tests.estimators.referees import distribution

SIGMA = 0.5
KEYS = 40
# A coordinate of an unbiased estimator exceeds it, by t with 39 degrees of freedom, with
# probability 6e-5; there are about 300 coordinates in this file, and the keys are fixed.
LIMIT = 4.5


class Net(nn.Module):
    """Layers and a forward pass given as a function of self and x."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def evaluator_of(
    model: nn.Module, inputs: Tensor, targets: Tensor, copies: int = 1, **options: Any
) -> ModuleEvaluator:
    """Every example ``copies`` times: the same mean loss, with more noise to average over."""
    repeat = [copies] + [1] * (inputs.dim() - 1)
    targets = targets.repeat([copies] + [1] * (targets.dim() - 1))
    return ModuleEvaluator(
        model.eval(), inputs.repeat(repeat), targets, **{"loss": "mse"} | options
    )


def samples(passes: NoisyPasses, count: int = 2, keys: int = KEYS, **options: Any) -> list[Params]:
    """Independent estimates of the gradient of the mean loss."""
    found = [passes.gradient(key, count, **options) for key in range(keys)]
    return [{name: g / passes.size for name, g in each.items()} for each in found]


def assert_unbiased(
    gradients: list[Params], exact: Mapping[str, Tensor], error: float = 0.1
) -> None:
    gradients = [{name: each[name] for name in exact} for each in gradients]
    assert referees.z_scores(gradients, exact).abs().max() < LIMIT
    # known well enough to show a bias
    assert referees.relative_standard_error(gradients, exact) < error


def gradients_of(loss: Callable[[Params], Tensor], params: Params) -> Params:
    """Of an exact smoothed loss, float64."""
    leaves = {name: w.detach().double().requires_grad_() for name, w in params.items()}
    gradients = torch.autograd.grad(loss(leaves), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def params_of(model: nn.Module) -> Params:
    return {name: w.detach().clone() for name, w in model.named_parameters()}


def signs_of(count: int) -> Tensor:
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=count))).double()


def by_independent_signs(mean: Tensor, spread: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """E of a loss of independent signs: (examples, n) means and spreads, n small."""
    patterns = signs_of(mean.shape[1])
    chance = distribution(patterns[:, None] * (mean / spread)).prod(dim=2)
    return (chance * torch.stack([loss(pattern) for pattern in patterns])).sum(dim=0).mean()


def by_angle(
    center: Tensor, forms: Tensor, loss: Callable[[Tensor], Tensor], nodes: int = 60
) -> Tensor:
    """E of a loss of the signs of ``forms (P, 2)`` times a point of N(center, I), exactly.

    The signs depend on the point's direction alone, whose density is that of a projected normal:
    arcs between the forms' zeros are integrated by Gauss and Legendre.
    """
    zeros = torch.atan2(forms[:, 0], -forms[:, 1])
    edges = torch.cat((zeros, zeros + math.pi)) % (2 * math.pi)
    edges = torch.cat((edges, torch.tensor([0.0, 2 * math.pi]).double())).sort().values
    x, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(nodes))
    total = torch.zeros((), dtype=torch.float64)
    for low, high in itertools.pairwise(edges.tolist()):
        angle = low + (high - low) * (x + 1) / 2
        along = torch.stack((angle.cos(), angle.sin())).T @ center
        density = (-center @ center / 2).exp() / (2 * math.pi) + along * distribution(along) * (
            (along**2 - center @ center) / 2
        ).exp() / math.sqrt(2 * math.pi)
        middle = torch.tensor([math.cos((low + high) / 2), math.sin((low + high) / 2)]).double()
        signs = torch.where(forms @ middle >= 0, 1.0, -1.0).double()
        total = total + (high - low) / 2 * (weights * density).sum() * loss(signs)
    return total


# ---------------------------------------------------------------- one layer, closed form


def threshold(z: Tensor) -> Tensor:
    """A sign that does not look like one."""
    return 2 * (z >= 0).to(z.dtype) - 1


@pytest.mark.parametrize("noise", ["weights", "positions"])
@pytest.mark.parametrize("names", [["layer.weight", "layer.bias"], ["layer.weight"]])
@pytest.mark.parametrize("activation", [torch.sign, threshold])
def test_one_layer_of_signs_has_the_gradient_of_its_closed_form(
    noise: str, names: list[str], activation: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    model = Net(lambda self, x: activation(self.layer(x)), layer=nn.Linear(3, 2))
    inputs, targets = torch.randn(5, 3), torch.randn(5, 2)
    params = params_of(model)
    passes = NoisyPasses(
        evaluator_of(model, inputs, targets, 200), params, names, sigma=SIGMA, noise=noise
    )

    def smoothed(w: Params) -> Tensor:
        x, t = inputs.double(), targets.double()
        norm = (x.square().sum(1, keepdim=True) + ("layer.bias" in names)).sqrt()
        mean = torch.erf((x @ w["layer.weight"].T + w["layer.bias"]) / (SIGMA * norm * 2**0.5))
        return (1 - 2 * t * mean + t**2).mean()

    exact = {name: g for name, g in gradients_of(smoothed, params).items() if name in names}
    found = samples(passes)
    assert set(found[0]) == set(names)
    assert_unbiased(found, exact)
    # the score of a sign is conditioned on it; that of anything else is odd, and needs no baseline
    assert passes.baseline_matters(2, antithetic=True) == (activation is torch.sign)
    assert passes.baseline_matters(3, antithetic=True)
    assert_unbiased(samples(passes, 1, antithetic=False, baseline=False), exact, error=0.2)
    assert_unbiased(samples(passes, 3), exact)


def test_conditioning_on_signs_lowers_the_variance_and_odd_scores_cancel_the_baseline() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(20, 3), torch.randn(20, 2)

    def variance(activation: Any, baseline: bool = True) -> float:
        torch.manual_seed(1)
        model = Net(lambda self, x: activation(self.layer(x)), layer=nn.Linear(3, 2))
        passes = NoisyPasses(evaluator_of(model, inputs, targets), params_of(model), sigma=0.2)
        found = samples(passes, baseline=baseline)
        return float(torch.stack([referees.flat(each) for each in found]).var(dim=0).sum())

    assert variance(torch.sign) < 0.8 * variance(threshold)
    assert variance(threshold, baseline=False) == variance(threshold)
    assert variance(torch.sign) < variance(torch.sign, baseline=False)


def test_conditioning_on_the_signs_of_weights_lowers_the_variance() -> None:
    inputs, targets = torch.randn(30, 6), torch.randn(30, 2)

    def variance(rule: Any) -> float:
        torch.manual_seed(1)
        model = Net(
            lambda self, x: threshold(F.linear(x, rule(self.layer.weight))),
            layer=nn.Linear(6, 2, bias=False),
        )
        passes = NoisyPasses(evaluator_of(model, inputs, targets), params_of(model), sigma=0.1)
        found = samples(passes)
        return float(torch.stack([referees.flat(each) for each in found]).var(dim=0).sum())

    assert variance(torch.sign) < 0.5 * variance(threshold)


@pytest.mark.parametrize(
    "activation",
    [
        lambda z: sign(z),
        torch.sign,
        lambda z: binarize(z, surrogates.create("hardtanh")),
        lambda z: z.sign(),
    ],
)
def test_signs_by_any_name_are_recognized(activation: Callable[[Tensor], Tensor]) -> None:
    model = Net(
        lambda self, x: activation(F.linear(activation(self.one(x)), activation(self.two.weight))),
        one=nn.Linear(3, 2),
        two=nn.Linear(2, 2, bias=False),
    )
    passes = NoisyPasses(
        evaluator_of(model, torch.randn(4, 3), torch.zeros(4, 2)), params_of(model)
    )
    (layer,) = passes._plan.layers
    assert layer.conditioned
    assert passes._plan.conditioned == {"two.weight"}


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: (lambda z: torch.sign(z) + z)(self.one(x)),
        lambda self, x: torch.sign(self.one(x) - 1),
        lambda self, x: self.one(x),
        lambda self, x: torch.sign(self.one(x) - self.one(x).mean(1, keepdim=True)),
    ],
)
def test_what_shows_more_than_a_sign_is_not_conditioned(body: Any) -> None:
    model = Net(body, one=nn.Linear(3, 3))
    passes = NoisyPasses(
        evaluator_of(model, torch.randn(4, 3), torch.zeros(4, 3)), params_of(model)
    )
    assert not any(layer.conditioned for layer in passes._plan.layers)
    assert not passes._plan.conditioned


# ---------------------------------------------------------------- convolutions


def conv_of_two_weights(body: Callable[[Any, Tensor], Tensor]) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(3)
    model = Net(body, conv=nn.Conv2d(1, 1, (1, 2), bias=False), head=nn.Linear(3, 1, bias=False))
    model.head.weight.data = torch.tensor([[0.7, -1.1, 0.4]])
    model.conv.weight.data = torch.tensor([0.4, -0.3]).reshape(1, 1, 1, 2)
    return model, torch.randn(3, 1, 1, 4), torch.randn(3, 1)


def conv_sign_head(self: Any, x: Tensor) -> Tensor:
    return self.head(sign(self.conv(x)).flatten(1))


def patches_of(inputs: Tensor) -> Tensor:
    """``(examples, positions, 2)`` of a (1, 2) kernel."""
    return inputs.double()[:, 0, 0].unfold(1, 2, 1)


def head_loss(head: Tensor, target: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda signs: (head.double() @ signs - target.double()).square().sum()


def shared(model: Net, inputs: Tensor, targets: Tensor) -> Callable[[Params], Tensor]:
    """The smoothed loss of :func:`conv_of_two_weights`, positions sharing their noise."""

    def smoothed(w: Params) -> Tensor:
        center = w["conv.weight"].flatten() / SIGMA
        each = [
            by_angle(center, forms, head_loss(model.head.weight, target))
            for forms, target in zip(patches_of(inputs), targets, strict=True)
        ]
        return torch.stack(each).mean()

    return smoothed


def apart(model: Net, inputs: Tensor, targets: Tensor) -> Callable[[Params], Tensor]:
    """The same with noise of every position's own."""

    def smoothed(w: Params) -> Tensor:
        patches = patches_of(inputs)
        mean = patches @ w["conv.weight"].flatten()
        errors = lambda s: (s @ model.head.weight.double().T - targets.double())[:, 0].square()  # noqa: E731
        return by_independent_signs(mean, SIGMA * patches.norm(dim=2), errors)

    return smoothed


def test_convolution_whose_positions_share_noise_has_the_gradient_of_its_integral() -> None:
    model, inputs, targets = conv_of_two_weights(conv_sign_head)
    params = {"conv.weight": params_of(model)["conv.weight"]}
    base = {"head.weight": params_of(model)["head.weight"]}
    passes = NoisyPasses(evaluator_of(model, inputs, targets, 200), params, sigma=SIGMA, base=base)
    assert passes._plan.weights == ("conv.weight",)
    exact = gradients_of(shared(model, inputs, targets), params)
    assert_unbiased(samples(passes, 4), exact)
    assert_unbiased(samples(passes, 1, antithetic=False), exact)


def test_noise_of_every_position_is_another_smoothing_with_a_gradient_of_its_own() -> None:
    model, inputs, targets = conv_of_two_weights(conv_sign_head)
    params, names = params_of(model), ["conv.weight"]
    evaluator = evaluator_of(model, inputs, targets, 200)
    own, other = (
        gradients_of(smoothed(model, inputs, targets), {"conv.weight": params["conv.weight"]})
        for smoothed in (apart, shared)
    )
    found = samples(NoisyPasses(evaluator, params, names, sigma=SIGMA, noise="positions"))
    assert_unbiased(found, own)
    assert referees.z_scores(found, other).abs().max() > 10
    found = samples(NoisyPasses(evaluator, params, names, sigma=SIGMA))
    assert referees.z_scores(found, own).abs().max() > 10


def test_two_smoothings_of_opposite_patches_have_nothing_in_common() -> None:
    # The signs at x and -x always differ under one weight: the loss is constant, its gradient zero.
    model = Net(
        lambda self, x: sign(self.conv(x)).sum((1, 2, 3))[:, None],
        conv=nn.Conv2d(1, 1, 1, bias=False),
    )
    model.conv.weight.data.fill_(0.4)
    inputs, targets = torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2), torch.zeros(1, 1)
    evaluator, params = evaluator_of(model, inputs, targets, 300), params_of(model)
    together = samples(NoisyPasses(evaluator, params, sigma=SIGMA))
    assert max(float(each["conv.weight"].abs().max()) for each in together) == 0

    def smoothed(w: Params) -> Tensor:  # (s₁ + s₂)² is 4 where they agree
        p = distribution(w["conv.weight"].sum() / SIGMA)
        return 8 * p * (1 - p)

    exact = gradients_of(smoothed, params)
    assert exact["conv.weight"].abs().max() > 1
    assert_unbiased(samples(NoisyPasses(evaluator, params, sigma=SIGMA, noise="positions")), exact)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1, "dilation": 2}])
def test_two_positions_of_many_weights_have_their_noise_behind_the_layer(
    bias: bool, options: dict[str, Any]
) -> None:
    torch.manual_seed(5)
    conv = nn.Conv2d(3, 1, 2, bias=bias, **options)
    shape = {"": (2, 3), "stride": (2, 4), "padding": (2, 3)}[next(iter(options), "")]
    model = Net(conv_sign_head, conv=conv, head=nn.Linear(2, 1, bias=False))
    if "padding" in options:
        model.body = lambda self, x: self.head(sign(self.conv(x))[:, :, 1, :2].flatten(1))
    inputs, targets = torch.randn(3, 3, *shape), torch.randn(3, 1)
    params = params_of(model)
    names = ["conv.weight", "conv.bias"] if bias else ["conv.weight"]
    passes = NoisyPasses(evaluator_of(model, inputs, targets, 100), params, names, sigma=SIGMA)
    assert [layer.joint for layer in passes._plan.layers] == [True]
    assert set(passes._plan.layers[0].names) == set(names)
    unfolded = F.unfold(inputs, 2, **options).mT.double()
    if "padding" in options:
        columns = model.conv(inputs).shape[-1]
        unfolded = unfolded[:, columns : columns + 2]
    if bias:
        unfolded = torch.cat((unfolded, torch.ones_like(unfolded[..., :1])), 2)

    def smoothed(w: Params) -> Tensor:
        flat = torch.cat([w[name].flatten() for name in names])
        each = []
        for patches, target in zip(unfolded, targets, strict=True):
            factor = torch.linalg.cholesky(patches @ patches.T)
            center = torch.linalg.solve_triangular(factor, (patches @ flat)[:, None], upper=False)
            each.append(
                by_angle(center[:, 0] / SIGMA, factor, head_loss(model.head.weight, target))
            )
        return torch.stack(each).mean()

    exact = gradients_of(smoothed, {name: params[name] for name in names})
    assert_unbiased(samples(passes, 4), exact)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: nn.Conv2d(2, 3, (2, 3)), (2, 3, 3)),
        (lambda: nn.Conv2d(2, 3, 3, padding=(0, 1), stride=2, bias=False), (2, 3, 5)),
        (lambda: nn.Linear(6, 3), (3, 6)),
        (lambda: nn.Linear(6, 3), (3, 1, 6)),
    ],
    ids=["conv", "stride", "rows", "more rows"],
)
def test_quadratic_loss_of_positions_that_share_noise_has_the_gradient_without_noise(
    layer: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    # the smoothing adds to it the variance of the outputs, which does not depend on the weights
    torch.manual_seed(0)
    made, inputs, targets = layer(), torch.randn(2, *shape), torch.randn(2, 1)
    size = made(inputs)[0].numel()
    model = Net(
        lambda self, x: self.head(self.layer(x).flatten(1)), layer=made, head=nn.Linear(size, 1)
    )
    params = params_of(model)
    names = [name for name in params if name.startswith("layer")]
    passes = NoisyPasses(evaluator_of(model, inputs, targets, 100), params, names)
    assert [each.joint for each in passes._plan.layers] == [True]

    def loss(w: Params) -> Tensor:
        w = {name: tensor.float() for name, tensor in ({**params, **w}).items()}
        outputs = torch.func.functional_call(model, w, (inputs,))
        return (outputs - targets).square().mean().double()

    exact = gradients_of(loss, {name: params[name] for name in names})
    assert_unbiased(samples(passes), exact)


def test_positions_with_groups_strides_padding_and_bias() -> None:
    torch.manual_seed(7)
    conv = nn.Conv2d(2, 2, (1, 3), stride=(1, 2), padding=(0, 1), groups=2)
    model = Net(conv_sign_head, conv=conv, head=nn.Linear(6, 1))
    inputs, targets = torch.randn(4, 2, 1, 6), torch.randn(4, 1)
    params = params_of(model)
    head, offset = (params[f"head.{name}"].double() for name in ("weight", "bias"))
    evaluator = evaluator_of(model, inputs, targets, 100)
    options: dict[str, Any] = {"stride": (1, 2), "padding": (0, 1), "groups": 2}
    for names in (["conv.weight"], ["conv.bias"], ["conv.weight", "conv.bias"]):
        noisy = {name: torch.full_like(params[name], name in names).double() for name in params}

        def smoothed(w: Params, noisy: Params = noisy) -> Tensor:
            x = inputs.double()
            z = F.conv2d(x, w["conv.weight"], w["conv.bias"], **options)
            squares = F.conv2d(x**2, noisy["conv.weight"], noisy["conv.bias"], **options)
            errors = lambda s: (s @ head.T + offset - targets.double())[:, 0].square()  # noqa: E731
            return by_independent_signs(z.flatten(1), SIGMA * squares.flatten(1).sqrt(), errors)

        exact = gradients_of(smoothed, {n: params[n] for n in ("conv.weight", "conv.bias")})
        passes = NoisyPasses(evaluator, params, names, sigma=SIGMA, noise="positions")
        assert passes._plan.layers[0].conditioned
        assert_unbiased(samples(passes), {name: exact[name] for name in names})


def test_padding_by_name_is_understood() -> None:
    inputs = torch.randn(4, 2, 5, 5)
    found = []
    for padding in ("same", (1, 2)):
        torch.manual_seed(0)
        model = Net(
            lambda self, x: threshold(self.conv(x)).mean((2, 3)),
            conv=nn.Conv2d(2, 3, (3, 5), padding=padding),
        )
        evaluator = evaluator_of(model, inputs, torch.zeros(4, 3))
        passes = NoisyPasses(evaluator, params_of(model), noise="positions")
        found.append(passes.gradient(0, 2)["conv.weight"])
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1])


# ---------------------------------------------------------------- whole networks


def weight_enumeration(model: Net, inputs: Tensor, targets: Tensor, scale: bool) -> Any:
    """The smoothed loss of a convolution of sign(W), by all patterns of its weights."""

    def smoothed(w: Params) -> Tensor:
        patterns = signs_of(w["conv.weight"].numel())
        chance = distribution(patterns * w["conv.weight"].flatten() / SIGMA).prod(1)
        total = torch.zeros((), dtype=torch.float64)
        for pattern, p in zip(patterns, chance, strict=True):
            z = F.conv2d(inputs.double(), pattern.reshape(w["conv.weight"].shape))
            outputs = sign(z).flatten(1) @ model.head.weight.double().T
            total = total + p * (outputs - targets.double()).square().mean()
        return total

    return smoothed


@pytest.mark.parametrize("rule", ["sign", "where"])
def test_binary_weights_have_the_gradient_of_their_enumeration(rule: str) -> None:
    binary = torch.sign if rule == "sign" else threshold
    torch.manual_seed(2)
    model = Net(
        lambda self, x: self.head(torch.sign(F.conv2d(x, binary(self.conv.weight))).flatten(1)),
        conv=nn.Conv2d(1, 2, (1, 3), bias=False),
        head=nn.Linear(6, 1, bias=False),
    )
    inputs, targets = torch.randn(4, 1, 1, 5), torch.randn(4, 1)
    params = params_of(model)
    evaluator = evaluator_of(model, inputs, targets, 100)
    passes = NoisyPasses(evaluator, params, ["conv.weight"], sigma=SIGMA)
    assert passes._plan.conditioned == ({"conv.weight"} if rule == "sign" else set())
    chosen = {"conv.weight": params["conv.weight"]}
    exact = gradients_of(weight_enumeration(model, inputs, targets, False), chosen)
    assert_unbiased(samples(passes), exact)
    with pytest.raises(ValueError, match=r"conv.weight is not itself .* use noise = \"weights\""):
        NoisyPasses(evaluator, params, ["conv.weight"], noise="positions")


def small_conv_net(scaled: bool) -> tuple[Net, Tensor, Tensor]:
    torch.manual_seed(4)

    def body(self: Any, x: Tensor) -> Tensor:
        x = sign(self.norm(self.one(x)))
        weight = self.two.weight
        if scaled:
            weight = weight.abs().mean((1, 2, 3), keepdim=True) * sign(weight)
        x = torch.relu(F.conv2d(x, weight) + x[:, :, 1:, 1:])
        x = sign(self.three(x) - 0.1)
        return self.head(x.mean((2, 3)))

    model = Net(
        body,
        one=nn.Conv2d(1, 2, 2, bias=False),
        norm=nn.BatchNorm2d(2),
        two=nn.Conv2d(2, 2, 2, bias=False),
        three=nn.Conv2d(2, 2, 2),
        head=nn.Linear(2, 3),
    )
    return model, torch.randn(8, 1, 4, 4), torch.randint(0, 3, (8,))


@pytest.mark.parametrize("scaled", [False, True])
def test_all_parameters_of_a_conv_net_at_once_agree_with_noise_that_the_batch_shares(
    scaled: bool,
) -> None:
    model, inputs, targets = small_conv_net(scaled)
    params = params_of(model)
    evaluator = evaluator_of(model, inputs, targets, 100, loss="cross_entropy")
    passes = NoisyPasses(evaluator, params, sigma=SIGMA)
    kinds = {layer.weight: (layer.joint, layer.is_output) for layer in passes._plan.layers}
    # the third convolution has one position, the second (2 × 2, of 8 weights) noise behind it
    assert kinds == {
        "three.weight": (False, False),
        "head.weight": (False, True),
        **({} if scaled else {"two.weight": (True, False)}),
    }
    assert passes._plan.problem == ""
    local = samples(passes, 2)
    # antithetic weight-space noise, one draw for the whole batch: its own mean and spread
    few = evaluator_of(model, inputs, targets, 1, loss="cross_entropy")
    generator = torch.Generator().manual_seed(0)
    shared: list[Params] = []
    for _ in range(20):
        noise = {n: torch.randn(1000, *w.shape, generator=generator) for n, w in params.items()}
        up, down = (
            few.losses({n: params[n] + s * SIGMA * e for n, e in noise.items()}) for s in (1, -1)
        )
        half = ((up - down) / (2 * SIGMA * 1000)).float()
        shared.append({n: torch.tensordot(half, e, 1) for n, e in noise.items()})
    one, other = (torch.stack([referees.flat(g) for g in found]) for found in (local, shared))
    error = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
    assert ((one.mean(0) - other.mean(0)) / error).abs().max() < LIMIT
    for found in (one, other):  # both known well enough to show a bias
        assert found.std(0).norm() / len(found) ** 0.5 < 0.25 * found.mean(0).norm()


def test_linear_layers_have_the_gradient_and_the_variance_of_the_layered_estimator() -> None:
    from gradlab import estimators

    objective, params = referees.problem(2, 2)
    copies = objective.repeated(200)
    model = Net(
        lambda self, x: self.layers[2](sign(self.layers[1](sign(self.layers[0](x))))),
        layers=nn.ModuleList(nn.Linear(2, m, bias=False) for m in (2, 2, 1)),
    )
    names = list(params)
    evaluator = evaluator_of(model, copies.inputs, copies.targets)
    found = samples(NoisyPasses(evaluator, params, sigma=SIGMA))
    exact, _ = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)
    assert_unbiased(found, exact)
    estimator = estimators.create("nes_local", sigma=SIGMA, condition_last=False, layers=names[:2])
    known = [each.gradient for each in referees.repeated_estimates(estimator, copies, params, KEYS)]
    hidden = samples(NoisyPasses(evaluator, params, names[:2], sigma=SIGMA))
    for name in names[:2]:
        first, second = (
            float(torch.stack([each[name].double() for each in every]).var(dim=0).sum())
            for every in (known, hidden)
        )
        # of 4 coordinates in 40 samples each: the ratio's standard deviation is about .16
        assert 0.5 < first / second < 2


def test_output_layer_is_differentiated_on_noisy_passes_if_the_loss_is_smooth() -> None:
    torch.manual_seed(0)
    model = Net(
        lambda self, x: self.two(sign(self.one(x))), one=nn.Linear(3, 4), two=nn.Linear(4, 2)
    )
    inputs, labels = torch.randn(30, 3), torch.randint(0, 2, (30,))
    params, names = params_of(model), ["two.weight", "two.bias"]

    def squared(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets).square()

    def variance(**options: Any) -> float:
        passes = NoisyPasses(evaluator, params, names, sigma=0.1, **options)
        found = torch.stack([referees.flat(each) for each in samples(passes)])
        exact[passes.pathwise] = found.mean(dim=0)
        return float(found.var(dim=0).sum())

    evaluator = evaluator_of(model, inputs, labels, loss=squared)
    exact: dict[float, Tensor] = {}
    assert variance(smooth_loss=True) < 0.2 * variance()
    smooth, plain = exact[0.5], exact[0.0]  # half of the network's layers
    assert float((smooth - plain).norm() / smooth.norm()) < 0.3


def test_fewer_positions_than_weights_have_less_variance_behind_the_layer() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(50, 8, 4, 4), torch.randn(50, 1)
    variances = []
    for scale in (1.0, 2.0):  # by 2 is by nothing, but the weight no longer multiplies itself
        torch.manual_seed(1)
        model = Net(
            lambda self, x, scale=scale: (
                sign(F.conv2d(x, self.conv.weight if scale == 1 else self.conv.weight * scale))
                .mean((1, 2, 3))
                .unsqueeze(1)
            ),
            conv=nn.Conv2d(8, 2, 3, bias=False),
        )
        passes = NoisyPasses(evaluator_of(model, inputs, targets), params_of(model))
        assert len(passes._plan.layers) == (scale == 1)
        found = torch.stack([referees.flat(each) for each in samples(passes)])
        variances.append(float(found.var(dim=0).sum()))
    # 4 positions of 72 weights
    assert variances[0] < 0.1 * variances[1]


# ---------------------------------------------------------------- how it is done


def test_block_sizes_and_ranges_of_examples_change_nothing_but_rounding() -> None:
    model, inputs, targets = small_conv_net(scaled=True)
    params, found = params_of(model), []
    for memory in (1, 2**14, 2**28):
        evaluator = evaluator_of(
            model, inputs, targets, 4, loss="cross_entropy", memory_bytes=memory
        )
        passes = NoisyPasses(evaluator, params)
        found.append((passes._plan.examples, passes.gradient(3, 3)))
        parts = [passes.gradient(3, 3, examples=part) for part in ((0, 7), (7, 32))]
        for name, whole in found[-1][1].items():
            torch.testing.assert_close(parts[0][name] + parts[1][name], whole, rtol=1e-4, atol=1e-4)
    sizes = [size for size, _ in found]
    assert sizes[0] == 1 < sizes[1] < sizes[2] == 32
    for _, gradient in found[:2]:
        for name, whole in found[2][1].items():
            torch.testing.assert_close(gradient[name], whole, rtol=1e-4, atol=1e-4)


def test_memory_stays_within_its_bound() -> None:
    model, inputs, targets = small_conv_net(scaled=True)
    bound = 2**20
    evaluator = evaluator_of(model, inputs, targets, 200, loss="cross_entropy", memory_bytes=bound)
    passes = NoisyPasses(evaluator, params_of(model))
    assert 50 < passes._plan.examples < 1600
    with Footprint() as footprint:
        passes.gradient(0, 2)
    assert 0.2 * bound < footprint.peak < bound


def test_the_key_alone_decides_and_nothing_is_changed() -> None:
    model, inputs, targets = small_conv_net(scaled=True)
    evaluator = evaluator_of(model, inputs, targets, loss="cross_entropy")
    params = params_of(model)
    before = {name: each.clone() for name, each in {**params, **model.state_dict()}.items()}
    state = torch.random.get_rng_state()
    passes = NoisyPasses(evaluator, params)
    first = passes.gradient(1, 2)
    again = NoisyPasses(evaluator, params).gradient(1, 2)
    other = passes.gradient(2, 2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    after = {**params, **model.state_dict()}
    assert all(torch.equal(before[name], after[name]) for name in before)
    # the second pass of a pair mirrors the first, and pairs differ
    once = passes.gradient(1, 1, baseline=False)
    assert all(not torch.equal(once[name], first[name]) for name in once)


def test_a_batch_that_the_module_sees_next_has_the_same_plan_and_its_own_gradient() -> None:
    model, inputs, targets = small_conv_net(scaled=False)
    evaluator = evaluator_of(model, inputs, targets, loss="cross_entropy")
    params = params_of(model)
    passes = NoisyPasses(evaluator, params)
    moved = evaluator.on(inputs.flip(0), targets.flip(0))
    again = NoisyPasses(moved, params)
    assert again._plan is passes._plan
    fresh = evaluator_of(model, inputs.flip(0), targets.flip(0), loss="cross_entropy")
    expected = NoisyPasses(fresh, params).gradient(0, 2)
    for name, gradient in again.gradient(0, 2).items():
        torch.testing.assert_close(gradient, expected[name])


def awkward(self: Any, x: Tensor) -> Tensor:
    x = self.one(x)
    if x.sum() > 1e9:  # no graph, and no vmap
        x = x + 1
    return self.two(threshold(x))


def counting(self: Any, x: Tensor) -> Tensor:
    n, features = x.shape
    x = threshold(self.one(x)).view(n, 2, features // 2)
    first, second = x.chunk(2, dim=1)
    return self.two(torch.cat((first, second), 1).reshape(n, features) * (0.0 * n + 1.0))


class OwnSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def untraceable(self: Any, x: Tensor) -> Tensor:
    if x.shape[0] < 0:
        return x
    return self.two(OwnSign.apply(self.one(x)))


def plain(self: Any, x: Tensor) -> Tensor:
    return self.two(threshold(self.one(x)))


@pytest.mark.parametrize("noisy", [["one.weight"], ["two.weight", "two.bias"], None])
@pytest.mark.parametrize(
    ("body", "problem"),
    [(awkward, "data-dependent control flow"), (counting, ""), (untraceable, "")],
)
def test_modules_that_resist_tracing_or_batching_give_the_same(
    body: Any, problem: str, noisy: list[str] | None
) -> None:
    def scaled(each: Any) -> Any:
        # by 1 is by nothing, but noise has to be on the weights
        def forward(self: Any, x: Tensor) -> Tensor:
            return each(self, x) + 0.0 * (self.one.weight.sum() + self.two.weight.sum())

        return forward

    inputs, targets, found = torch.randn(6, 4), torch.randint(0, 3, (6,)), []
    for each in (body, plain):
        torch.manual_seed(0)
        model = Net(scaled(each), one=nn.Linear(4, 4), two=nn.Linear(4, 3))
        evaluator = evaluator_of(model, inputs, targets, loss="cross_entropy")
        passes = NoisyPasses(evaluator, params_of(model), noisy)
        found.append((passes, passes.gradient(0, 2)))
    assert problem in found[0][0]._plan.problem
    assert ("one example at a time" in found[0][0].path) == bool(problem)
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(found[0][1][name], gradient, rtol=1e-4, atol=1e-5)


def test_shared_weights_and_rows_that_are_no_examples_have_noise_on_the_weights() -> None:
    layer = nn.Linear(2, 2, bias=False)
    model = Net(lambda self, x: self.two(sign(self.one(x))), one=layer, two=layer)
    evaluator = evaluator_of(model, torch.randn(4, 2), torch.zeros(4, 2))
    assert NoisyPasses(evaluator, params_of(model))._plan.weights == ("one.weight",)
    rows = Net(lambda self, x: self.one(x.reshape(-1, 2)).reshape(len(x), -1), one=nn.Linear(2, 2))
    evaluator = evaluator_of(rows, torch.randn(4, 6), torch.zeros(4, 6))
    passes = NoisyPasses(evaluator, params_of(rows))
    assert passes._plan.weights == ("one.weight", "one.bias")
    assert "on the weights, examples batched: one.weight, one.bias" in passes.path


def test_layers_are_told_by_what_multiplies() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        features = self.grouped.weight.shape[0]
        x = threshold(self.grouped(x)).reshape(-1, features, 2)
        return self.two(x[:, :, 0]) + self.one.bias

    layers = {"grouped": nn.Conv2d(4, 4, 3, groups=2), "two": nn.Linear(4, 2)}
    model = Net(body, **layers, one=nn.Linear(1, 2))
    evaluator = evaluator_of(model, torch.randn(4, 4, 3, 4), torch.zeros(4, 2))
    names = ["grouped.weight", "two.weight", "two.bias", "one.bias"]
    passes = NoisyPasses(evaluator, params_of(model), names)
    # two positions of 18 weights, but in groups; and a bias that no layer adds
    assert passes._plan.weights == ("grouped.weight", "one.bias")
    positions = NoisyPasses(evaluator, params_of(model), ["grouped.weight"], noise="positions")
    assert [layer.name for layer in positions._plan.layers] == ["grouped.weight"]


def test_nan_losses_give_nan() -> None:
    model, inputs, targets = small_conv_net(scaled=False)
    inputs[2, 0, 1, 1] = torch.nan
    evaluator = evaluator_of(model, inputs, targets, loss="cross_entropy")
    passes = NoisyPasses(evaluator, params_of(model))
    assert all(each.isnan().any() for each in passes.gradient(0, 2).values())
    fine = passes.gradient(0, 2, examples=(3, 8))
    assert all(each.isfinite().all() for each in fine.values())


def test_what_cannot_be_is_refused_in_one_sentence() -> None:
    model, inputs, targets = small_conv_net(scaled=False)
    params = params_of(model)
    evaluator = evaluator_of(model, inputs, targets, loss="cross_entropy")
    with pytest.raises(ValueError, match=r"unknown layer 'one.weigth': did you mean 'one.weight'"):
        NoisyPasses(evaluator, params, ["one.weigth"])
    with pytest.raises(ValueError, match=r"unknown noise 'position': did you mean 'positions'"):
        NoisyPasses(evaluator, params, noise="position")
    with pytest.raises(ValueError, match=r"missing: head.bias"):
        NoisyPasses(evaluator, {n: w for n, w in params.items() if n != "head.bias"})
    with pytest.raises(ValueError, match=r"norm.weight is not itself .* or leave it out of layers"):
        NoisyPasses(evaluator, params, noise="positions")
    training = ModuleEvaluator(model.train(), inputs, targets)
    with pytest.raises(
        ValueError, match=r"couples the examples .* call model.eval\(\), or use nes"
    ):
        NoisyPasses(training, params)
