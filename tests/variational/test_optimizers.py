"""BayesBiNN and Bop: their steps by hand, and the best of all binary weights on a toy."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab import models
from gradlab.binary.layers import BinaryConv2d, BinaryLinear
from gradlab.variational.base import sampling
from gradlab.variational.binary_weights import BayesBiNNConv2d, BayesBiNNLinear, BayesBiNNWeights
from gradlab.variational.optimizers import BayesBiNN, Bop, groups_for


def parameter(*values: float, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=dtype))


def test_three_steps_of_bayes_binn_by_hand() -> None:
    lr, size, beta, prior, kappa = 0.1, 50, 0.9, 0.25, 0.5
    weight = parameter(0.3, -1.2, dtype=torch.float64)
    optimizer = BayesBiNN(
        [weight], lr, train_size=size, momentum=beta, prior=prior, kl_weight=kappa
    )
    lam, average = [0.3, -1.2], [0.0, 0.0]
    for step, grads in enumerate([(0.02, -0.01), (0.05, 0.0), (-0.3, 0.1)], start=1):
        weight.grad = torch.tensor(grads, dtype=torch.float64)
        optimizer.step()
        for i, grad in enumerate(grads):
            natural = size * grad / (1 - math.tanh(lam[i]) ** 2 + 1e-10)
            natural += kappa * (lam[i] - prior)
            average[i] = beta * average[i] + (1 - beta) * natural
            lam[i] -= lr * average[i] / (1 - beta**step)
        torch.testing.assert_close(weight.tolist(), lam, rtol=1e-12, atol=0)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("temperature", [1.0, 1e-10])
def test_layer_and_optimizer_together_make_the_papers_step(
    samples: int, temperature: float
) -> None:
    torch.manual_seed(0)
    size, lr, batch = 40, 0.02, 5
    layer = BayesBiNNWeights(temperature).linear(4, 1, bias=False, dtype=torch.float64)
    layer.weight.data = torch.tensor([[0.5, -0.2, 1.5, -2.0]], dtype=torch.float64)
    lam = layer.weight.detach().clone()
    x = torch.randn(batch, 4, dtype=torch.float64)
    y = torch.randn(batch, 1, dtype=torch.float64)

    torch.manual_seed(1)
    with sampling(layer, samples):
        loss = (layer(x.repeat(samples, 1)) - y.repeat(samples, 1)).square().mean()
    optimizer = BayesBiNN(layer.parameters(), lr, train_size=size)
    loss.backward()
    optimizer.step()

    torch.manual_seed(1)
    u = torch.rand(samples, 1, 4, dtype=torch.float64)
    scaled = torch.zeros_like(lam)
    for each in u:
        w = torch.tanh((lam + torch.log(each / (1 - each)) / 2) / temperature)
        w.requires_grad_()
        (g,) = torch.autograd.grad((x @ w.T - y).square().mean(), w)
        s = (1 - w * w + 1e-10) / (temperature * (1 - torch.tanh(lam) ** 2 + 1e-10))
        scaled += (s * g).detach() / samples
    expected = lam - lr * (size * scaled + lam)
    torch.testing.assert_close(layer.weight.detach(), expected)


def test_in_float32_a_certain_weight_steps_as_the_authors_does() -> None:
    # tanh(10) is 1 in float32: the factor is 1e10, not the 1.2e8 of exact arithmetic
    weight = parameter(10.0)
    optimizer = BayesBiNN([weight], 1e-4, train_size=100)
    weight.grad = torch.tensor([2e-5])
    optimizer.step()
    assert weight.item() == pytest.approx(10 - 1e-4 * (100 * 2e-5 * 1e10 + 10), rel=1e-6)


def test_it_finds_the_exact_posterior_where_there_is_one() -> None:
    # a likelihood exp(−N c·w) times a coin exp(λ₀ w) is the coin λ₀ − N c; .grad of λ is then the
    # derivative of c·tanh λ
    c, size, prior = torch.tensor([0.01, -0.004]), 100, 0.2
    weight = parameter(0.0, 0.0)
    optimizer = BayesBiNN([weight], 0.1, train_size=size, prior=prior, momentum=0.5)
    for _ in range(300):
        weight.grad = c * (1 - torch.tanh(weight.detach()).square())
        optimizer.step()
    torch.testing.assert_close(weight.detach(), prior - size * c, rtol=1e-4, atol=1e-4)


def test_three_steps_of_bop_by_hand() -> None:
    weight = parameter(1.0, -1.0, 1.0, -1.0)
    optimizer = Bop([weight], 0.1, gamma=0.5, threshold=0.25)
    rows = [  # gradients, their average, weights: the third ties at first, and stays
        ([1.0, 1.0, 0.5, -0.25], [0.5, 0.5, 0.25, -0.125], [-1.0, -1.0, 1.0, -1.0]),
        ([0.0, -2.0, 0.5, 0.0], [0.25, -0.75, 0.375, -0.0625], [-1.0, 1.0, -1.0, -1.0]),
        ([-1.0, 0.0, 0.0, -9.0], [-0.375, -0.375, 0.1875, -4.53125], [1.0, 1.0, -1.0, 1.0]),
    ]
    for grads, average, weights in rows:
        weight.grad = torch.tensor(grads)
        optimizer.step()
        assert optimizer.state[weight]["average"].tolist() == average
        assert weight.tolist() == weights


def test_the_first_step_makes_latent_weights_binary() -> None:
    weight = parameter(0.3, -0.02, 0.0, float("nan"))
    optimizer = Bop([weight], 0.1, threshold=1e9)
    weight.grad = torch.zeros(4)
    optimizer.step()
    assert weight[:3].tolist() == [1.0, -1.0, 1.0]
    assert weight[3].isnan()


def test_gamma_follows_the_learning_rate_if_told_to() -> None:
    averages = []
    for follows in (False, True):
        weight = parameter(1.0)
        optimizer = Bop([weight], 0.4, gamma=0.5, gamma_follows_lr=follows)
        optimizer.param_groups[0]["lr"] = 0.1
        weight.grad = torch.tensor([1.0])
        optimizer.step()
        averages.append(optimizer.state[weight]["average"].item())
    assert averages == [0.5, 0.125]


def test_a_schedule_moves_both_learning_rates() -> None:
    weights = [parameter(0.5), parameter(0.5)]
    optimizer = BayesBiNN(
        [{"params": weights[:1]}, {"params": weights[1:], "binary": False}],
        lr=1e-3, train_size=1, adam_lr=0.2,
    )  # fmt: skip
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 / 4
    for weight in weights:
        weight.grad = torch.tensor([1.0])
    optimizer.step()
    natural = 1 / (1 - math.tanh(0.5) ** 2) + 0.5
    assert weights[0].item() == pytest.approx(0.5 - 1e-3 / 4 * natural)
    assert weights[1].item() == pytest.approx(0.5 - 0.2 / 4)  # Adam's first step is its lr


def regression(seed: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets, and the best of all 256 binary weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 8, generator=generator)
    truth = torch.randn(8, generator=generator).sign()
    y = x @ truth + noise * torch.randn(64, generator=generator)
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)))
    losses = (x @ every.T - y[:, None]).square().mean(0)
    return x, y, every[losses.argmin()]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["bop", "bayes_binn", "bayes_binn_cold"])
def test_they_reach_the_best_of_all_binary_weights(name: str, seed: int) -> None:
    # Where the best binary weight has a gradient, the authors' temperature is a straight-through
    # estimator that leaves it now and again, as long as it is trained: no noise there.
    x, y, best = regression(seed, noise=0.0 if name == "bayes_binn_cold" else 1.0)
    torch.manual_seed(seed)
    if name == "bop":
        # w flips for the better where w·gradient exceeds 2·mean(x²) = 2, here halved for safety
        layer: Any = BinaryLinear(8, 1, scaling="none")
        optimizer: Any = Bop(layer.parameters(), 0.1, gamma=0.2, threshold=1.0)
    elif name == "bayes_binn":
        # small steps: for certain weights the derivative of the relaxation has heavy tails
        layer = BayesBiNNWeights(temperature=1.0, initial=0.5).linear(8, 1, bias=False)
        optimizer = BayesBiNN(layer.parameters(), 3e-4, train_size=64)
    else:
        layer = BayesBiNNLinear(8, 1, bias=False)
        optimizer = BayesBiNN(layer.parameters(), 1e-3, train_size=64)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x)[:, 0] - y).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.weight.detach().sign()[0], best)


@pytest.mark.parametrize("name", ["bop", "bayes_binn"])
def test_convolutions_find_the_weights_that_made_the_targets(name: str) -> None:
    torch.manual_seed(0)
    target: Any = BinaryConv2d(2, 3, scaling="none")
    x = torch.randn(50, 2, 6, 6)
    y = target(x).detach()
    if name == "bop":
        layer: Any = BinaryConv2d(2, 3, scaling="none")
        optimizer: Any = Bop(layer.parameters(), 0.1, gamma=0.2, threshold=0.1)
    else:
        layer = BayesBiNNConv2d(2, 3, 3, padding=1, bias=False)
        optimizer = BayesBiNN(layer.parameters(), 1e-2, train_size=50)
    for _ in range(200):
        optimizer.zero_grad()
        (layer(x) - y).square().mean().backward()
        optimizer.step()
    assert torch.equal(layer.weight.sign(), target.weight.sign())


@pytest.mark.parametrize("surrogate", ["hardtanh", "identity"])
def test_gradients_pass_at_the_weights_that_bop_keeps(surrogate: str) -> None:
    layer = BinaryLinear(3, 2, scaling="none", surrogate=surrogate)
    layer.weight.data.sign_()
    layer(torch.ones(1, 3)).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0] * 3] * 2
    assert groups_for(Bop, layer) == [{"params": [layer.weight], "binary": True}]


def test_surrogates_that_are_zero_there_are_refused() -> None:
    model = models.create("xnor_mlp", width=4, depth=1, weight_surrogate="polynomial")
    with pytest.raises(ValueError, match=r"Polynomial.* lets no gradient pass at ±1") as caught:
        groups_for(Bop, model)
    assert str(caught.value).count("\n") == 0


def test_models_are_taken_apart_into_binary_weights_and_others() -> None:
    model = models.create("lenet", width=2)
    binary, others = groups_for(Bop, model)
    assert [id(w) for w in binary["params"]] == [id(w) for w in model.latent_weights().values()]
    assert len(binary["params"]) + len(others["params"]) == len(list(model.parameters()))
    relaxed = nn.Sequential(BayesBiNNLinear(3, 4), nn.BatchNorm1d(4), BayesBiNNLinear(4, 2))
    binary, others = groups_for(BayesBiNN, relaxed)
    assert [id(w) for w in binary["params"]] == [id(relaxed[0].weight), id(relaxed[2].weight)]
    assert len(others["params"]) == 4  # two biases, and two of BatchNorm


@pytest.mark.parametrize("optimizer", [Bop, BayesBiNN])
def test_models_without_binary_weights_are_refused(optimizer: Any) -> None:
    real = models.create("xnor_mlp", width=4, depth=1, weight="real")
    with pytest.raises(ValueError, match="the model has none"):
        groups_for(optimizer, real)


def both() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(BinaryLinear(4, 3), nn.Linear(3, 1))
    return model, Bop(groups_for(Bop, model), 0.01, gamma=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def test_a_copy_goes_on_alike() -> None:
    model, optimizer = both()
    train(model, optimizer, 0)
    other, its_optimizer = copy.deepcopy((model, optimizer))
    for seed in (1, 2):
        train(model, optimizer, seed)
        train(other, its_optimizer, seed)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = parameter(1.0, 1.0)
    optimizer = Bop([weight], 0.1, gamma=1.0)

    def closure() -> Any:
        loss = weight.sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert weight.tolist() == [-1.0, -1.0]


def test_what_has_no_gradient_stays() -> None:
    weight = parameter(0.5)
    Bop([weight], 0.1).step()
    BayesBiNN([weight], 0.1, train_size=1).step()
    assert weight.item() == 0.5


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Bop, {"lr": 0.0}, "lr is 0.0: give a finite number above 0"),
        (Bop, {"gamma": 0.0}, "gamma is 0.0"),
        (Bop, {"gamma": 1.5}, "gamma is 1.5: give a share of at most 1"),
        (Bop, {"threshold": -1.0}, "threshold is -1.0: give a finite number of at least 0"),
        (Bop, {"gamma_follows_lr": "yes"}, "gamma_follows_lr is 'yes': give true or false"),
        (BayesBiNN, {"momentum": 1.0}, "momentum is 1.0: give a number from 0 to below 1"),
        (BayesBiNN, {"train_size": 0}, "train_size is 0"),
        (BayesBiNN, {"prior": math.nan}, "prior is nan: give a finite number"),
        (BayesBiNN, {"kl_weight": -1.0}, "kl_weight is -1.0: give a finite number of at least 0"),
        (BayesBiNN, {"adam_lr": -1.0}, "adam_lr is -1.0: give a finite number above 0"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_wrong_options_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    given = {"lr": 0.1, **({"train_size": 10} if make is BayesBiNN else {}), **options}
    with pytest.raises(ValueError, match=message):
        make([parameter(1.0)], **given)
