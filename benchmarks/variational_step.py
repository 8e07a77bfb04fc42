"""What does a training step with noisy weights cost, against the same step without noise?

LeNet-300-100 (784-300-100-10, ReLU, random images, batches of 100 and of 1,000), a step being the
loss, its gradient and fused Adam; for gradlab's methods also ``project``, and for all methods the
KL term, where they have one. ``plain`` is ``torch.nn.Linear``. What is done once for each weight,
the KL term above all, is shared by the images of a batch, so that ratios fall with the batch.
Peers are measured if they are installed:

- cplxmodule's ``LinearVD`` (sparse variational dropout) and ``LinearARD``;
- bayesian-torch's ``LinearReparameterization`` and ``LinearFlipout`` (Bayes by Backprop).

``--peers`` names a folder that holds them (``pip install --no-deps --target peers cplxmodule
bayesian-torch``); what cannot be imported is named and left out. Interleaved in one run. Bars:
gradlab's sparse variational dropout costs at most 2.2 times the plain step, and each of its layers
less than the peer's nearest.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import _common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.variational import kl_divergence, project, to_variational

WIDTHS = (784, 300, 100, 10)
BATCHES, IMAGES = (100, 1_000), 60_000
GRADLAB: dict[str, tuple[str, dict[str, Any]]] = {
    "gradlab sparse": ("sparse", {}),
    "gradlab sparse, log alpha": ("sparse", {"parameterization": "log_alpha"}),
    "gradlab hierarchical": ("hierarchical", {}),
    "gradlab variational_b": ("variational_b", {}),
    "gradlab bayes_by_backprop, weights": ("bayes_by_backprop", {"estimator": "weights"}),
    "gradlab bayes_by_backprop, local": ("bayes_by_backprop", {"estimator": "local"}),
    "gradlab bayes_by_backprop, flipout": ("bayes_by_backprop", {"estimator": "flipout"}),
}
# name, package, module, class, how its KL is asked for
PEERS = [
    ("cplxmodule LinearVD", "cplxmodule", "cplxmodule.nn.relevance", "LinearVD"),
    ("cplxmodule LinearARD", "cplxmodule", "cplxmodule.nn.relevance", "LinearARD"),
    ("bayesian-torch LinearReparameterization", "bayesian-torch", "bayesian_torch.layers",
     "LinearReparameterization"),
    ("bayesian-torch LinearFlipout", "bayesian-torch", "bayesian_torch.layers", "LinearFlipout"),
]  # fmt: skip
NEAREST = {
    "cplxmodule LinearVD": "gradlab sparse",
    "cplxmodule LinearARD": "gradlab hierarchical",
    "bayesian-torch LinearReparameterization": "gradlab bayes_by_backprop, weights",
    "bayesian-torch LinearFlipout": "gradlab bayes_by_backprop, flipout",
}
Step = Callable[[], None]


def network(linear: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """LeNet-300-100 of the given layers."""
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(WIDTHS):
        modules += [linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def a_step(
    model: nn.Module,
    divergence: Callable[[], Tensor] | None,
    afterwards: Callable[[], None],
    batch: tuple[Tensor, Tensor],
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Step:
    """One step of training, to be called again and again."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    run = forward or model
    images, labels = batch

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(run(images), labels)
        if divergence is not None:
            loss = loss + divergence() / IMAGES
        loss.backward()
        optimizer.step()
        afterwards()

    return step


def peer(package: str, module: str, kind: str, batch: tuple[Tensor, Tensor]) -> Step:
    """The step of a peer; ``ImportError`` where it is not installed."""
    layer = getattr(importlib.import_module(module), kind)
    model = network(layer).to(batch[0].device)
    if package == "cplxmodule":
        penalties = importlib.import_module(module).penalties
        return a_step(model, lambda: torch.stack([*penalties(model)]).sum(), lambda: None, batch)
    terms: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        terms.clear()
        for each in model:
            if isinstance(each, nn.ReLU):
                x = F.relu(x)
            else:
                x, term = each(x)
                terms.append(term)
        return x

    return a_step(model, lambda: torch.stack(terms).sum(), lambda: None, batch, forward)


def cases(device: str, size: int) -> tuple[dict[str, Step], dict[str, str], list[str]]:
    """The steps with batches of ``size``, versions of the peers that are there, what is missing."""
    torch.manual_seed(0)
    batch = torch.rand(size, WIDTHS[0]).to(device), torch.randint(0, 10, (size,)).to(device)
    found = {"plain": a_step(network(nn.Linear).to(device), None, lambda: None, batch)}
    for name, (method, options) in GRADLAB.items():
        model = to_variational(network(nn.Linear).to(device), method, **options)
        found[name] = a_step(
            model, lambda m=model: kl_divergence(m), lambda m=model: project(m), batch
        )
    versions, missing = {}, []
    for name, package, module, kind in PEERS:
        try:
            found[name] = peer(package, module, kind, batch)
            versions[package] = version(package)
        except (ImportError, AttributeError) as error:
            missing.append(f"{name} ({error})")
    return found, versions, missing


def main() -> int:
    """Measure and write the result; 1 if the bar is missed."""
    parser = _common.parser(__doc__)
    parser.add_argument("--peers", type=Path, help="folder with installed peers")
    parser.add_argument("--steps", type=int, default=50, help="steps in a row [50]")
    parser.set_defaults(rounds=9)
    options = parser.parse_args()
    _common.start(options)
    if options.quick:
        options.steps, options.rounds = 2, 2
    if options.peers is not None:
        sys.path.append(str(options.peers))
    results: dict[str, Any] = {"widths": WIDTHS, "batches": {}}
    bars = []
    for size in BATCHES:
        found, versions, missing = cases(options.device, size)
        results |= {"peers": versions, "left_out": missing}
        for words in missing if size == BATCHES[0] else []:
            print(f"left out: {words}")
        steps = max(1, options.steps * BATCHES[0] // size)
        print(f"batch {size:,}, {steps} steps in a row", flush=True)
        rows, over_peers = measured(found, steps, options)
        results["batches"][size] = rows
        bars.append(_common.bar(
            f"batch {size:,}: sparse variational dropout over the plain step",
            rows["gradlab sparse"]["times_plain"]["median"], at_most=2.2,
        ))  # fmt: skip
        bars += [
            _common.bar(f"batch {size:,}: {ours} over {theirs}", ratio, at_most=1.0)
            for (ours, theirs), ratio in over_peers.items()
        ]
    return _common.finish("variational_step", options, results, bars)


def measured(
    found: dict[str, Step], steps: int, options: Any
) -> tuple[dict[str, Any], dict[tuple[str, str], float]]:
    """Milliseconds of a step and times the plain one; ours over the peer's nearest."""

    def repeated(step: Step) -> Step:
        def run() -> None:
            for _ in range(steps):
                step()

        return run

    seconds = _common.interleaved(
        {name: repeated(step) for name, step in found.items()}, options.rounds, options.device
    )
    rows = {}
    for name, values in seconds.items():
        milliseconds = _common.spread([1000 * value / steps for value in values])
        times_plain = _common.ratio(values, seconds["plain"])
        rows[name] = {"milliseconds": milliseconds, "times_plain": times_plain}
        print(f"{name:42s} {_common.words(milliseconds):22s} ms, "
              f"{_common.words(times_plain)} times plain", flush=True)  # fmt: skip
    over_peers = {
        (ours, theirs): _common.ratio(seconds[ours], seconds[theirs])["median"]
        for theirs, ours in NEAREST.items()
        if theirs in seconds
    }
    return rows, over_peers


if __name__ == "__main__":
    sys.exit(main())
