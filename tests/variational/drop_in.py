"""What every stochastic layer must do, whatever its method: one battery for all of them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.variational.base import StochasticLayer, kl_divergence, sampling
from gradlab.variational.methods import Method

LINEAR: list[dict[str, Any]] = [{}, {"bias": False}, {"dtype": torch.float64}]
CONV2D: list[dict[str, Any]] = [
    {},
    {"bias": False, "stride": 2},
    {"padding": 1, "dilation": 2, "dtype": torch.float64},
    {"padding": "same", "groups": 2},
    {"padding": (2, 1), "padding_mode": "reflect"},
]


def layers(method: Method) -> list[tuple[StochasticLayer, nn.Module, Tensor]]:
    """A layer for every argument of torch's, torch's own, and an input with five examples."""
    made: list[tuple[StochasticLayer, nn.Module, Tensor]] = []
    for options in LINEAR:
        x = torch.randn(5, 2, 4, dtype=options.get("dtype"))
        made.append((method.linear(4, 6, **options), nn.Linear(4, 6, **options), x))
    for options in CONV2D:
        x = torch.randn(5, 4, 8, 7, dtype=options.get("dtype"))
        made.append((method.conv2d(4, 6, 3, **options), nn.Conv2d(4, 6, 3, **options), x))
    return made


def check(method: Method) -> None:
    """Everything below."""
    torch.manual_seed(0)
    for layer, reference, x in layers(method):
        check_eval(layer, reference, x)
        check_noise(layer, x)
        check_gradients(layer, x)
        check_state(layer, x)
        check_autocast(layer, x)


def check_eval(layer: StochasticLayer, reference: nn.Module, x: Tensor) -> None:
    """Without noise it is torch's layer at the mean weight, also without a batch."""
    layer.eval()
    reference.load_state_dict(
        {"weight": layer.mean_weight().detach()}
        | ({} if layer.bias is None else {"bias": layer.bias.detach()})
    )
    assert torch.equal(layer(x), reference(x))
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x[0]), reference(x[0]))


def check_noise(layer: StochasticLayer, x: Tensor) -> None:
    """Noise in training, of the right shape, different every time, the same from a seed."""
    shape = layer.eval()(x).shape
    layer.train()
    with torch.no_grad():
        torch.manual_seed(1)
        first, second = layer(x), layer(x)
        torch.manual_seed(1)
        assert torch.equal(layer(x), first)
        assert not torch.equal(first, second)
        assert first.shape == shape
        assert layer(x[0]).shape == shape[1:]
        with sampling(layer.eval(), 3):
            assert layer(x.repeat(3, *[1] * (x.dim() - 1))).shape == (15, *shape[1:])
    layer.train()


def check_gradients(layer: StochasticLayer, x: Tensor) -> None:
    """Every parameter gets a finite gradient from loss and KL, also at an input of zeros."""
    for inputs in (x, torch.zeros_like(x)):
        layer.zero_grad()
        (layer(inputs).square().mean() + kl_divergence(layer) / 100).backward()
        for name, parameter in layer.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


def check_state(layer: StochasticLayer, x: Tensor) -> None:
    """A state dict carries all that evaluation and KL depend on; layers can be copied."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) / 10)
    twin = copy.deepcopy(layer)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.eval()(x), layer.eval()(x))
    torch.manual_seed(2)
    ours = layer.kl()
    torch.manual_seed(2)
    assert torch.equal(twin.kl(), ours)
    layer.train()


def check_autocast(layer: StochasticLayer, x: Tensor) -> None:
    """Finite in bfloat16, forwards and backwards."""
    if x.dtype != torch.float32:
        return
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        loss = out.float().square().mean() + kl_divergence(layer) / 100
    loss.backward()
    assert torch.isfinite(out).all()
    assert torch.isfinite(loss)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def group_spread(layer: StochasticLayer, x: Tensor, samples: int) -> tuple[float, float]:
    """Largest difference within and smallest between groups, for one input in every place.

    Args:
        layer: whose.
        x: one example, with a batch of 1.
        samples: groups, of three examples each.
    """
    with torch.no_grad(), sampling(layer.eval(), samples):
        batch = x.repeat(3 * samples, *[1] * (x.dim() - 1))
        out = layer(batch).reshape(samples, 3, -1)
    within = (out - out[:, :1]).abs().max()
    between = min(
        float((out[i, 0] - out[j, 0]).abs().max()) for i in range(samples) for j in range(i)
    )
    return float(within), between


def check_kl_gradient(layer: StochasticLayer) -> None:
    """Autograd's gradient of the KL in all parameters is that of central differences (float64)."""
    names = [f"layer.{name}" for name, _ in layer.named_parameters()]
    values = [value.detach().clone().requires_grad_() for value in layer.parameters()]

    def divergence(*values: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(
            _Divergence(layer), dict(zip(names, values, strict=True))
        )
        return made

    assert torch.autograd.gradcheck(divergence, tuple(values))


class _Divergence(nn.Module):
    def __init__(self, layer: StochasticLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.kl()
