"""Noise on weights: moments, KL terms, bounds, and the two ways to draw it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradlab.variational.base import sampling
from gradlab.variational.compression import pruned
from gradlab.variational.kl import ard, log_uniform, log_uniform_cubic
from gradlab.variational.methods import REGISTRY
from gradlab.variational.units import HierarchicalA, SparseA, VariationalA
from gradlab.variational.weights import Hierarchical, Sparse, VariationalB
from tests.variational.drop_in import check, group_spread

Z = 5.0  # two-sided, the largest of some hundreds
LEARNED = ("variational_b", "sparse", "hierarchical")
NAMES = ("gaussian_w", *LEARNED)
NOISES = ("preactivations", "weights")
PARAMETERIZATIONS = ("log_sigma2", "log_alpha")


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", NAMES)
def test_a_drop_in_layer(name: str, noise: str) -> None:
    check(REGISTRY.create(name, noise=noise))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", LEARNED)
def test_a_drop_in_layer_with_the_other_options(name: str, noise: str) -> None:
    for parameterization in PARAMETERIZATIONS:
        check(REGISTRY.create(name, noise=noise, parameterization=parameterization))
    check(REGISTRY.create(name, noise=noise, mode="faithful"))


def parameter(layer: Any) -> nn.Parameter:
    """Of a learned α, whichever it is."""
    found = layer.log_sigma2 if layer.log_sigma2 is not None else layer.weight_log_alpha
    assert isinstance(found, nn.Parameter)
    return found


def uneven(name: str, **options: Any) -> list[tuple[Any, Tensor]]:
    """A linear layer and a grouped convolution in float64 with uneven α, and one example each."""
    torch.manual_seed(0)
    method = REGISTRY.create(name, **options)
    linear = method.linear(4, 3, dtype=torch.float64)
    conv = method.conv2d(4, 4, 3, padding=1, groups=2, dtype=torch.float64)
    for layer in (linear, conv):
        if name != "gaussian_w":
            nn.init.uniform_(parameter(layer), -4, 0)
            layer.project()
    return [
        (linear, torch.randn(1, 4, dtype=torch.float64)),
        (conv, torch.randn(1, 4, 3, 3, dtype=torch.float64)),
    ]


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", NAMES)
def test_both_ways_to_draw_have_the_moments_of_the_closed_form(
    name: str, noise: str, parameterization: str
) -> None:
    n = 10_000
    options = {} if name == "gaussian_w" else {"parameterization": parameterization}
    for layer, x in uneven(name, noise=noise, **options):
        with torch.no_grad():
            with sampling(layer.eval(), n):
                out = layer(x.repeat(n, *[1] * (x.dim() - 1)))
            mean = layer(x)[0]
            # σ² = α θ², with the 1e-8 that ln α of σ² has
            alpha = layer.log_alpha().exp()
            square = layer.weight.square() + (1e-8 if options == {
                "parameterization": "log_sigma2"} else 0)  # fmt: skip
            variance = layer.apply_weight(x.square(), alpha * square, None)[0]
        assert ((out.mean(0) - mean) / (variance / n).sqrt()).abs().max() < Z
        # outputs are Gaussian: the sample variance has variance 2σ⁴/(n − 1)
        assert ((out.var(0) / variance - 1) / math.sqrt(2 / (n - 1))).abs().max() < Z


def test_pre_activations_are_independent_and_weights_are_shared() -> None:
    x = torch.randn(1, 4)
    for noise, shared in (("preactivations", False), ("weights", True)):
        torch.manual_seed(0)
        layer = Sparse(noise=noise, initial=-2.0).linear(4, 3)
        within, between = group_spread(layer, x, 4)
        assert between > 1e-3
        assert (within < 1e-5) if shared else (within > 1e-3)


@pytest.mark.parametrize(
    ("name", "divergence"),
    [
        ("variational_b", log_uniform_cubic),
        ("sparse", log_uniform),
        ("hierarchical", ard),
        ("ard", ard),
    ],
)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_kl_is_the_sum_over_all_weights(name: str, divergence: Any, parameterization: str) -> None:
    for layer, _ in uneven(name, parameterization=parameterization):
        raw = parameter(layer)
        if parameterization == "log_sigma2":
            raw = raw - (layer.weight**2 + 1e-8).log()
        torch.testing.assert_close(layer.log_alpha(), raw)
        torch.testing.assert_close(layer.kl(), divergence(raw).sum())


@pytest.mark.parametrize("name", LEARNED)
def test_kl_grows_with_the_layer(name: str) -> None:
    method = REGISTRY.create(name, parameterization="log_alpha")
    one, four = method.linear(10, 10).kl(), method.linear(20, 20).kl()
    torch.testing.assert_close(four, 4 * one)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", LEARNED)
def test_gradients_of_loss_and_kl(name: str, parameterization: str) -> None:
    """Against finite differences in float64, at fixed noise."""
    (layer, x), _ = uneven(name, parameterization=parameterization)
    names, values = zip(*layer.named_parameters(), strict=True)

    def loss(*given: Tensor) -> Tensor:
        torch.manual_seed(1)

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = layer

            def forward(self, inputs: Tensor) -> Tensor:
                return self.layer(inputs).square().sum() + self.layer.kl()

        state = {f"layer.{key}": value for key, value in zip(names, given, strict=True)}
        return torch.func.functional_call(Both(), state, (x.expand(3, -1),))

    assert torch.autograd.gradcheck(loss, [value.detach().requires_grad_() for value in values])


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", LEARNED)
def test_projection_bounds_log_alpha_by_the_variance_alone(
    name: str, parameterization: str
) -> None:
    torch.manual_seed(0)
    largest = 0.0 if name == "variational_b" else 8.0
    layer = REGISTRY.create(name, parameterization=parameterization).linear(30, 20)
    nn.init.uniform_(parameter(layer), -30, 20)
    with torch.no_grad():
        layer.weight[0] = 0.0
    mean, before = layer.weight.clone(), layer.log_alpha().detach()
    layer.project()
    assert torch.equal(layer.weight, mean)
    after = layer.log_alpha().detach()
    inside = (before > -8) & (before < largest)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(after[inside], before[inside])
    torch.testing.assert_close(after, before.clamp(-8, largest), rtol=0, atol=1e-5)
    again = parameter(layer).detach().clone()
    layer.project()
    assert torch.equal(parameter(layer), again)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", LEARNED)
def test_projection_leaves_a_gradient_and_a_clamp_does_not(
    name: str, parameterization: str
) -> None:
    x = torch.randn(50, 3)
    for beyond in (-25.0, 15.0):
        for mode in ("correct", "faithful"):
            torch.manual_seed(0)
            layer = REGISTRY.create(
                name, noise="weights", mode=mode, parameterization=parameterization
            ).linear(3, 2)
            raw = nn.init.constant_(parameter(layer), beyond)
            layer.project()
            (layer(x).square().mean() + layer.kl()).backward()
            assert raw.grad is not None
            if mode == "correct":
                assert (raw.grad != 0).all()
                assert (raw != beyond).all()
            else:
                assert (raw.grad == 0).all()
                assert (raw == beyond).all()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_at_weights_of_zero(name: str, noise: str) -> None:
    for options in ({}, {"parameterization": "log_alpha"}, {"mode": "faithful"}):
        if name == "gaussian_w" and options:
            continue
        layer = REGISTRY.create(name, noise=noise, **options).linear(3, 2)
        nn.init.zeros_(layer.weight)
        layer.project()
        (layer(torch.ones(4, 3)).square().sum() + layer.kl()).backward()
        for key, each in layer.named_parameters():
            assert each.grad is not None, key
            assert torch.isfinite(each.grad).all(), key


def test_a_weight_of_zero_keeps_its_noise_and_can_leave_zero() -> None:
    torch.manual_seed(0)
    layer = Sparse().linear(2, 1)
    with torch.no_grad():
        layer.weight.zero_()
    layer.project()
    assert float(layer.log_alpha().detach().max()) <= 8.00001
    (layer(torch.ones(9, 2)).sum() + layer.kl()).backward()
    assert (layer.weight.grad != 0).all()  # type: ignore[union-attr]
    assert torch.isfinite(layer.log_sigma2.grad).all()


@pytest.mark.parametrize(
    ("method", "twin"),
    [
        (VariationalB(mode="faithful", initial=-1.0), VariationalA("output", -1.0, "faithful")),
        (Sparse(mode="faithful", threshold=2.0), SparseA("output", -3.0, "faithful", 2.0)),
        (Hierarchical(mode="faithful"), HierarchicalA("output", -3.0, "faithful")),
    ],
)
def test_faithful_noise_on_pre_activations_has_one_alpha_and_one_kl_for_each_output(
    method: Any, twin: Any
) -> None:
    layer, other = method.linear(50, 4), twin.linear(10, 4)
    assert layer.method == other.method
    assert layer.log_alpha().shape == (4,)
    assert torch.equal(layer.kl(), other.kl())
    assert method.conv2d(3, 4, 2).log_alpha().shape == (4,)


def test_masks() -> None:
    layer = Sparse(threshold=1.0).linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0.1]]))
        layer.log_sigma2.fill_(0.0)  # ln α is 0 and 4.6
    assert layer.mask().tolist() == [[True, False]]
    assert torch.equal(layer.mean_weight(), layer.weight)
    assert REGISTRY.create("variational_b").linear(2, 1).mask() is None
    assert REGISTRY.create("gaussian_w").linear(2, 1).mask() is None


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("shape", ["linear", "conv2d"])
def test_weights_removed_while_training_take_no_part(
    shape: str, noise: str, parameterization: str
) -> None:
    torch.manual_seed(0)
    options = {"noise": noise, "parameterization": parameterization}
    made = [Sparse(removal=when, **options) for when in ("afterwards", "while_training")]
    sizes, inputs = {"linear": ((6, 4), (50, 6)), "conv2d": ((2, 4, 3), (5, 2, 5, 5))}[shape]
    all_take_part, layer = (getattr(method, shape)(*sizes) for method in made)
    nn.init.uniform_(parameter(layer), -2, 6)
    all_take_part.load_state_dict(layer.state_dict())
    kept = layer.mask()
    assert 0 < int(kept.sum()) < kept.numel()
    with torch.no_grad():  # as good as without noise, where the other has none
        all_take_part.weight.mul_(kept)
        parameter(all_take_part)[~kept] = -60.0
    x = torch.randn(inputs)
    outputs = []
    for each in (layer, all_take_part):
        torch.manual_seed(1)
        outputs.append(each(x))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    outputs[0].square().sum().backward()
    for each in (layer.weight, parameter(layer)):
        assert each.grad is not None
        assert (each.grad[~kept] == 0).all()
        assert (each.grad[kept] != 0).all()
    layer.zero_grad()
    layer.kl().backward()
    raw = parameter(layer).grad
    assert raw is not None
    assert (raw < 0).all(), "descent raises ln α of removed weights too"
    layer.eval()
    mean = layer(x)
    with pruned(layer):
        assert torch.equal(layer(x), mean)


def test_what_the_divergence_alone_moves_stays_removed() -> None:
    torch.manual_seed(0)
    layer = Sparse(removal="while_training").linear(40, 30)
    nn.init.uniform_(layer.log_sigma2, -8, 4)
    removed = ~layer.mask()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    x = torch.randn(64, 40)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x).square().mean() + layer.kl() / 1000).backward()
        optimizer.step()
        layer.project()
    assert int(removed.sum()) > 100
    assert not layer.mask()[removed].any()


def test_a_copy_and_a_plain_network_load() -> None:
    layer = uneven("sparse")[0][0]
    twin = copy.deepcopy(layer)
    nn.init.zeros_(twin.log_sigma2)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.log_alpha(), layer.log_alpha())
    plain = nn.Linear(4, 3)
    missing = layer.load_state_dict(plain.state_dict(), strict=False)
    assert missing.missing_keys == ["log_sigma2"]
    assert not missing.unexpected_keys


@given(
    name=st.sampled_from(NAMES),
    noise=st.sampled_from(NOISES),
    leading=st.lists(st.integers(1, 3), max_size=2),
    samples=st.integers(1, 3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
)
def test_any_shape(
    name: str, noise: str, leading: list[int], samples: int, inputs: int, outputs: int
) -> None:
    layer = REGISTRY.create(name, noise=noise).linear(inputs, outputs)
    x = torch.randn(samples, *leading, inputs)
    with sampling(layer.eval(), samples):
        assert layer(x).shape == (samples, *leading, outputs)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert bool(torch.isfinite(layer.kl()))


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("gaussian_w", {"p": 0}, "p is 0: give a number between 0 and 1"),
        ("sparse", {"noise": "weight"}, "unknown noise 'weight': did you mean 'weights'"),
        ("sparse", {"parameterization": "alpha"}, "did you mean 'log_alpha'"),
        ("ard", {"mode": "faithfull"}, "did you mean 'faithful'"),
        ("sparse", {"initial": math.inf}, "initial is inf: give a finite number"),
        (
            "sparse",
            {"initial": -10.0, "parameterization": "log_alpha"},
            "initial is -10.0: give a log alpha from -8 to 8.",
        ),
        ("variational_b", {"initial": 1.0}, "initial is 1.0: give a log alpha from -8 to 0."),
        ("sparse", {"initial": -10.0, "mode": "faithful"}, "initial is -10.0: give a log alpha"),
        ("hierarchical", {"threshold": "3"}, "threshold is '3': give a finite number"),
        ("sparse", {"removal": "training"}, "did you mean 'while_training'"),
        (
            "sparse",
            {"removal": "while_training", "mode": "faithful"},
            'removal = "while_training" is of weights',
        ),
    ],
)
def test_bad_options_are_refused_in_one_sentence(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        REGISTRY.create(name, **options)
