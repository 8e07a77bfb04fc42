"""Seconds of the coordinate discrete gradient of one convolution of a real network.

The first binarized layer of an XNOR-ResNet18 of width 8 (8 × 8 × 3 × 3 = 576 weights, real, binary
activations), 256 images of 32 × 32 pixels, ε = 0.1. ``followed`` is ``module_differences``: what
comes before the layer is computed once, one changed weight adds to one channel, and pairs of a
weight and an image that change anything go through the rest of the network in batches. ``members``
is the population evaluator with the same cached prefix, two members per weight, on a subset of the
weights and extrapolated. Images are noise, statistics of BatchNorm are theirs.

Bar: 60 seconds on two cores.
"""

from __future__ import annotations

import sys
import time

import _common
import torch

from gradlab import models
from gradlab.evaluation.module import DifferenceStats, ModuleEvaluator, module_differences


def main() -> int:
    """Measure and write the result; 1 if the bar is missed."""
    parser = _common.parser(__doc__)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.set_defaults(threads=2, rounds=1)
    options = parser.parse_args()
    _common.start(options)
    width, batch = (2, 8) if options.quick else (options.width, options.batch_size)
    torch.manual_seed(0)
    network = models.create("xnor_resnet18", width=width, weight="real").to(options.device)
    images = torch.randn(batch, 3, 32, 32).to(options.device)
    labels = torch.randint(0, 10, (batch,)).to(options.device)
    with torch.no_grad():
        network.train()(images)
    evaluator = ModuleEvaluator(network.eval(), images, labels)
    params, name, epsilon = evaluator.params, network.layers()[0], 0.1
    count = params[name].numel()
    base = {other: w for other, w in params.items() if other != name}
    some = torch.linspace(0, count - 1, 4 if options.quick else 12).long()
    steps = torch.zeros(len(some), count)
    steps[torch.arange(len(some)), some] = epsilon
    flat = params[name].flatten()
    steps = steps.to(options.device)
    both = torch.cat((flat + steps, flat - steps)).reshape(-1, *params[name].shape)
    stats = DifferenceStats()
    found = {}

    def followed() -> None:
        found["followed"] = module_differences(evaluator, params, epsilon, [name], stats)[name]

    def members() -> None:
        losses = evaluator.losses({name: both}, base)
        found["members"] = losses[: len(some)] - losses[len(some) :]

    # without the usual warm-up, which would take as long as what is measured
    seconds: dict[str, list[float]] = {"followed": [], "members": []}
    members()
    for _ in range(options.rounds):
        for case, run in (("members", members), ("followed", followed)):
            _common.synchronize(options.device)
            clock = time.perf_counter()
            run()
            _common.synchronize(options.device)
            seconds[case].append(time.perf_counter() - clock)
    seconds["members"] = [value * count / len(some) for value in seconds["members"]]
    here = found["followed"].flatten()[some.to(options.device)]
    result = {
        "width": width,
        "batch_size": batch,
        "weights": count,
        "seconds": {case: _common.spread(values) for case, values in seconds.items()},
        "times_faster": _common.ratio(seconds["members"], seconds["followed"]),
        "largest_difference": float((here - found["members"]).abs().max()),
        "pairs": stats.layers[name].pairs,
        "evaluated": stats.layers[name].evaluated,
    }
    print(result)
    bar = _common.bar("seconds, 576 weights, batch 256", min(seconds["followed"]), at_most=60)
    return _common.finish("network_cdg", options, result, [bar])


if __name__ == "__main__":
    sys.exit(main())
