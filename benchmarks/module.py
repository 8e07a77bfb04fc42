"""How fast are populations and central differences of somebody's own module?

The module is a thin ResNet of width 8 with binary activations and weights (BatchNorm, sign,
convolution with sign(W), real-valued shortcuts) on 32 × 32 images. Interleaved:

1. Losses of a population that perturbs one convolution in the middle of the network:
   ``prefix_cached`` is ``ModuleEvaluator`` given that one weight, ``everything_varies`` the same
   members with all other weights repeated, so that nothing can be kept, and ``loop`` one
   ``functional_call`` of the module after the other.
2. The coordinate discrete gradient of the two convolutions of the first block (8 × 8 × 3 × 3
   weights each): ``followed`` is ``module_differences`` over all of them; ``prefix_cached``
   evaluates members with one weight changed, on a subset of the coordinates, its time extrapolated
   to all. BatchNorm and sign follow ``conv1``, so that an example may go unchanged; a real-valued
   shortcut is added to ``conv2``, so that none does. The weights are real here, since sign(W)
   hardly ever moves.
"""

from __future__ import annotations

import sys
from typing import Any

import _common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import sign
from gradlab.evaluation import Params
from gradlab.evaluation.module.coordinates import DifferenceStats, module_differences
from gradlab.evaluation.module.evaluator import ModuleEvaluator

_CLASSES = 10


class Convolution(nn.Conv2d):
    """3 × 3, without bias, of binary inputs and, where asked for, binary weights."""

    def __init__(self, inputs: int, outputs: int, stride: int, binary_weights: bool) -> None:
        super().__init__(inputs, outputs, 3, stride, 1, bias=False)
        self.binary_weights = binary_weights

    def forward(self, x: Tensor) -> Tensor:
        """Convolve sign(x)."""
        weight = sign(self.weight) if self.binary_weights else self.weight
        return F.conv2d(sign(x), weight, None, self.stride, self.padding)


class Block(nn.Module):
    """Twice BatchNorm, sign and convolution, and a shortcut around both."""

    def __init__(self, inputs: int, outputs: int, stride: int, binary_weights: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = Convolution(inputs, outputs, stride, binary_weights)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = Convolution(outputs, outputs, 1, binary_weights)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False)
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return y + self.shortcut(x)


class Network(nn.Module):
    """A stem, four stages of two blocks, and a linear head."""

    def __init__(self, width: int, binary_weights: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        blocks, inputs = [], width
        for stage in range(4):
            for number in range(2):
                outputs, stride = width * 2**stage, 2 if stage and not number else 1
                blocks.append(Block(inputs, outputs, stride, binary_weights))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.blocks(self.norm(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1))


def main() -> int:
    """The population, then the differences."""
    parser = _common.parser(__doc__)
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    _common.start(options)
    width, size, batch, members = (2, 8, 16, 4) if options.quick else (8, 32, 256, 32)
    results: dict[str, Any] = {"population": population(width, size, batch, members, options)}
    row = results["population"]
    print(
        f"population of {members}, batch {batch}: prefix-cached in "
        f"{_common.words(row['milliseconds']['prefix_cached'])} ms, "
        f"{_common.words(row['times_faster']['everything_varies'])} times faster than without "
        f"prefixes and {_common.words(row['times_faster']['loop'])} than a loop; largest "
        f"difference {row['largest_difference']:.1e}"
    )
    results["differences"] = []
    for layer in ("conv1", "conv2"):
        for epsilon in (0.001, 0.1):
            row = differences(width, size, batch // 4, layer, epsilon, options)
            results["differences"].append(row)
            print(
                f"{layer}, epsilon {epsilon:g}: all "
                f"{row['coordinates']} differences in "
                f"{_common.words(row['seconds']['followed'])} s, "
                f"{_common.words(row['times_faster'])} times faster than prefix-cached; "
                f"{100 * row['skipped']:.0f} % of the evaluations skipped; largest difference "
                f"{row['largest_difference']:.1e}"
            )
    return _common.finish("module", options, results)


def prepared(
    network: Network, size: int, batch: int, device: str
) -> tuple[nn.Module, Tensor, Tensor]:
    """The network in evaluation mode, with the statistics of its batch, images and labels."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, size, size, generator=generator).to(device)
    labels = torch.randint(0, _CLASSES, (batch,), generator=generator).to(device)
    network = network.to(device)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the average over batches, of which there is one
    with torch.no_grad():
        network.train()(inputs)
    return network.eval(), inputs, labels


def population(width: int, size: int, batch: int, members: int, options: Any) -> dict[str, Any]:
    """Milliseconds of the three ways to the losses of a population."""
    torch.manual_seed(0)
    model, inputs, labels = prepared(Network(width), size, batch, options.device)
    evaluator = ModuleEvaluator(model, inputs, labels)
    name, params = "blocks.3.conv1.weight", evaluator.params
    noise = torch.randn(members, *params[name].shape).to(options.device)
    varying: Params = {name: params[name] + 0.1 * noise}
    base = {other: tensor for other, tensor in params.items() if other != name}
    everything = {k: w.expand(members, *w.shape) for k, w in base.items()} | varying

    def loop() -> Tensor:
        losses = []
        with torch.no_grad():
            for weight in varying[name]:
                outputs = torch.func.functional_call(model, {**base, name: weight}, (inputs,))
                losses.append(F.cross_entropy(outputs.double(), labels))
        return torch.stack(losses)

    cases = {
        "prefix_cached": lambda: evaluator.losses(varying, base),
        "everything_varies": lambda: evaluator.losses(everything),
        "loop": loop,
    }
    found = {case: run() for case, run in cases.items()}
    seconds = _common.interleaved(cases, options.rounds, options.device)
    others = ("everything_varies", "loop")
    return {
        "width": width,
        "image_size": size,
        "batch_size": batch,
        "members": members,
        "path": evaluator.path,
        "milliseconds": {
            case: _common.spread([1000 * value for value in values])
            for case, values in seconds.items()
        },
        "times_faster": {
            case: _common.ratio(seconds[case], seconds["prefix_cached"]) for case in others
        },
        "largest_difference": max(
            float((found[case] - found["prefix_cached"]).abs().max()) for case in others
        ),
    }


def differences(
    width: int, size: int, batch: int, layer: str, epsilon: float, options: Any
) -> dict[str, Any]:
    """Seconds of the two ways to the central differences of one layer."""
    torch.manual_seed(0)
    network = Network(width, binary_weights=False)
    model, inputs, labels = prepared(network, size, batch, options.device)
    evaluator = ModuleEvaluator(model, inputs, labels)
    name, params = f"blocks.0.{layer}.weight", evaluator.params
    base = {other: tensor for other, tensor in params.items() if other != name}
    count = params[name].numel()
    subset = torch.linspace(0, count - 1, min(count, 16)).long().to(options.device)
    flat = params[name].flatten()
    steps = torch.zeros(len(subset), count, device=options.device)
    steps[torch.arange(len(subset), device=options.device), subset] = epsilon
    members: Params = {
        name: torch.cat((flat + steps, flat - steps)).reshape(-1, *params[name].shape)
    }

    def prefix_cached() -> Tensor:
        losses = evaluator.losses(members, base)
        return losses[: len(subset)] - losses[len(subset) :]

    def followed(stats: DifferenceStats | None = None) -> Tensor:
        return module_differences(evaluator, params, epsilon, [name], stats)[name].flatten()

    stats = DifferenceStats()
    found, expected = followed(stats), prefix_cached()
    seconds = _common.interleaved(
        {"followed": followed, "prefix_cached": prefix_cached}, options.rounds, options.device
    )
    seconds["prefix_cached"] = [value * count / len(subset) for value in seconds["prefix_cached"]]
    work = stats.layers[name]
    return {
        "width": width,
        "image_size": size,
        "batch_size": batch,
        "layer": layer,
        "epsilon": epsilon,
        "coordinates": count,
        "measured_coordinates_of_prefix_cached": len(subset),
        "seconds": {case: _common.spread(values) for case, values in seconds.items()},
        "times_faster": _common.ratio(seconds["prefix_cached"], seconds["followed"]),
        "skipped": work.skipped / work.pairs,
        "changed": work.changed / work.pairs,
        "largest_difference": float((found[subset] - expected).abs().max()),
    }


if __name__ == "__main__":
    sys.exit(main())
