"""How many images a second does training take in, against a plain loop over the same model?

Both train the XNOR-ResNet18 of one width on the same random images, crop and flip included, batch
256, with Adam and a clipped gradient:

- ``plain``: eager PyTorch in float32, contiguous memory, torch's own defaults.
- ``gradlab_float32``: gradlab's loop in float32: channels last, compiled signs, fused Adam (on a
  GPU the whole backpropagation compiled).
- ``gradlab``: the same with convolutions in bfloat16, as the shipped specs for CIFAR-10 have it.

Interleaved in one run. Bars: 1.3 times the plain loop on a processor, 3 times on a GPU, and 30,000
images a second at width 64 on an H200.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import _common
import torch
import torch.nn.functional as F
from torch import nn

from gradlab import models, training
from gradlab.data import Augmentation, Dataset
from gradlab.training import loop, setup
from gradlab.training.batches import Batches

BATCH = 256


def images(number: int, device: str) -> Dataset:
    """Random images in ten classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (number,), generator=generator)
    return Dataset(
        "noise", "train", pixels.to(device), labels.to(device), tuple("0123456789"),
        (0.5, 0.5, 0.5), (0.29, 0.29, 0.29), {},
    )  # fmt: skip


def spec(width: int, precision: str, device: str) -> training.TrainingSpec:
    """What gradlab trains."""
    return training.from_dict({
        "name": "throughput",
        "data": {"name": "cifar10"},
        "model": {"name": "xnor_resnet18", "width": width},
        "optimizer": {"name": "adam", "lr": 1e-3},
        "loop": {"epochs": 100, "batch_size": BATCH, "precision": precision, "clip": 5.0,
                 "device": device},
    })  # fmt: skip


def plain(data: Dataset, width: int, device: str) -> Callable[[], None]:
    """A step as one writes it."""
    torch.manual_seed(0)
    network: nn.Module = models.create("xnor_resnet18", width=width).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    batches = _endless(Batches(data, Augmentation(crop=4, flip=True), BATCH))
    latent = network.latent_weights().values()

    def step() -> None:
        pixels, labels = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(pixels), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            for weight in latent:
                weight.clamp_(-1, 1)

    return step


def _endless(batches: Batches) -> Iterator[Any]:
    for epoch in itertools.count(1):
        yield from batches.epoch(epoch)


def gradlab(data: Dataset, width: int, precision: str, device: str) -> Callable[[], None]:
    """A step of gradlab's own loop."""
    datasets = training.Datasets(data, data)
    prepared, state = setup.prepare(spec(width, precision, device), datasets)
    gradients = prepared.gradients(None, state.model, print)
    batches = _endless(prepared.batches)
    latent = [weight.data for weight in state.model.latent_weights().values()]
    tally = loop.empty_tally(state.model, prepared)
    return lambda: loop.take_step(state, prepared, gradients, next(batches), latent, (tally, 0))


def main() -> int:
    """Measure and write the result; 1 if a bar is missed."""
    parser = _common.parser(__doc__)
    parser.add_argument("--widths", type=int, nargs="+", help="[8 16, on a GPU 64 96]")
    parser.add_argument("--steps", type=int, help="steps in a row [3, on a GPU 50]")
    parser.set_defaults(threads=2)
    options = parser.parse_args()
    _common.start(options)
    on_gpu = options.device != "cpu"
    widths = options.widths or ([2] if options.quick else [64, 96] if on_gpu else [8, 16])
    steps = options.steps or (1 if options.quick else 50 if on_gpu else 3)
    data = images(2 * BATCH if options.quick else 40 * BATCH, options.device)
    rows, bars = [], []
    for width in widths:
        one = {
            "plain": plain(data, width, options.device),
            "gradlab_float32": gradlab(data, width, "float32", options.device),
            "gradlab": gradlab(data, width, "bfloat16", options.device),
        }
        cases = {name: _repeated(step, steps) for name, step in one.items()}
        seconds = _common.interleaved(cases, options.rounds, options.device)
        rate = {name: _common.spread([steps * BATCH / s for s in values])
                for name, values in seconds.items()}  # fmt: skip
        faster = {name: _common.ratio(seconds["plain"], values) for name, values in seconds.items()}
        rows.append({"width": width, "images_per_second": rate, "times_plain": faster})
        bars.append(_common.bar(f"times the plain loop, width {width}",
                                faster["gradlab"]["median"],
                                at_least=3.0 if on_gpu else 1.3))  # fmt: skip
        if on_gpu and width == 64:
            bars.append(_common.bar("images a second, width 64",
                                    rate["gradlab"]["median"], at_least=30_000))  # fmt: skip
        print(width, rate, faster, flush=True)
    return _common.finish("training", options, {"batch_size": BATCH, "rows": rows}, bars)


def _repeated(step: Callable[[], Any], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


if __name__ == "__main__":
    sys.exit(main())
