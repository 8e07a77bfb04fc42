"""Class probabilities of a noisy network: at the mean weight, or by Monte Carlo.

>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
>>> images = torch.zeros(5, 1, 2, 2)
>>> predict(model, images).shape, predict(model, images, samples=2).shape
(torch.Size([5, 3]), torch.Size([2, 5, 3]))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from gradlab.variational.base import sampling


def predict(
    model: nn.Module,
    images: Tensor,
    samples: int | str = "mean",
    *,
    batch_size: int = 500,
    seed: int = 0,
) -> Tensor:
    """Class probabilities, in float64 so that a right class of tiny probability keeps its log.

    Neither the result nor the model depends on the mode that the model is in: BatchNorm uses its
    running statistics, ordinary dropout is off, and afterwards every module is in its former mode.
    Torch's global generators are as before, too.

    Args:
        model: takes ``(B, …)`` and returns logits (or log probabilities) ``(B, K)``.
        images: ``(N, …)``, on the model's device, normalized as in training.
        samples: ``"mean"``, or n ≥ 1 for samples of the network. The mean over samples is the
            predictive distribution of a Bayesian network.
        batch_size: rows at a time, an image with its n samples being n rows; it bounds memory. At
            the mean it changes the result by rounding alone. Samples are independent between
            batches, so there it belongs to the seed: another size is another draw.
        seed: of the noise.

    Returns:
        ``(N, K)`` at the mean, else ``(n, N, K)``, on the images' device.

    Raises:
        ValueError: no images, or samples or a batch size below one.
    """
    number = _number("samples", 1 if samples == "mean" else samples, ' or "mean"')
    if not len(images):
        raise ValueError("there are no images to predict: give at least one.")
    examples = max(1, _number("batch_size", batch_size) // number)
    noise = nullcontext() if samples == "mean" else sampling(model, number)
    parts = []
    with evaluating(model), seeded(seed, images.device), noise, torch.inference_mode():
        for batch in torch.split(images, examples):
            repeated = batch.repeat(number, *[1] * (batch.ndim - 1))
            shares = model(repeated).double().softmax(-1)
            parts.append(shares.reshape(number, len(batch), -1))
    found = torch.cat(parts, 1)
    return found[0] if samples == "mean" else found


def _number(name: str, value: object, other: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 1{other}.")
    return value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in ``eval()``, and afterwards every module of it in the mode that it was in."""
    # module by module: a frozen BatchNorm may be in another mode than the network around it
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators seeded, those of the device too, and as they were afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield
