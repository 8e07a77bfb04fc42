"""How fast are central differences by sparse flips?

Ways to the same coordinate discrete gradient of a network with two sign layers, interleaved:

- ``sparse``: gradlab's own, one suffix evaluation per neuron on the examples near its threshold;
- ``prefix_cached``: the layers below the changed weight are computed once, the changed layer's
  activations and all layers above it for a batch of coordinates at a time, on all examples;
- ``rank_one``: the same, but what the changed neuron does to the next layer is added to that
  layer's stored pre-activations, one multiplication where ``prefix_cached`` has a matrix product,
  on blocks of examples that stay in cache;
- ``brute_force`` (with ``--brute-force``): the whole network, twice per coordinate.

The bars are against ``prefix_cached``, which is what one would write; ``rank_one`` has an idea of
sparse flips in it, and is reported beside it.

The differences between them are examples within rounding of a threshold; they are reported
relative to the largest entry of the gradient.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import _common
import torch
from torch import Tensor

from gradlab.evaluation import Params
from gradlab.evaluation import population as pop
from gradlab.models import BinarizedMLP
from gradlab.objectives import TeacherStudent

# Floats of one batch of perturbed activations: 16 MiB.
_CHUNK_FLOATS = 2**22
# The same where examples are taken in blocks: one megabyte, a core's second-level cache.
_CACHE_FLOATS = 2**18
# Times faster at epsilon .1 than prefix_cached.
BARS = {8: 60.0, 32: 400.0}


def main() -> int:
    """Every num_dim and epsilon."""
    parser = _common.parser(__doc__)
    parser.set_defaults(rounds=3)
    parser.add_argument("--brute-force", action="store_true", help="also measure brute force")
    options = parser.parse_args()
    _common.start(options)
    dims, batch = ((8,), 1024) if options.quick else ((8, 32), 16384)
    rows = []
    for num_dim in dims:
        objective = TeacherStudent(num_dim, batch, seed=0, depth=2, device=options.device)
        params = objective.initial_params(0)
        for epsilon in (0.01, 0.1, 1.0):
            rows.append(measure(objective, params, epsilon, options))
            print(sentence(rows[-1]), flush=True)
    bars = [
        _common.bar(
            f"num_dim {row['num_dim']}, epsilon .1: times faster than prefix_cached",
            row["times_faster"]["prefix_cached"]["median"],
            at_least=BARS[row["num_dim"]],
        )
        for row in rows
        if row["epsilon"] == 0.1
    ]
    return _common.finish("cdg", options, rows, bars)


def measure(
    objective: TeacherStudent, params: Params, epsilon: float, options: argparse.Namespace
) -> dict[str, Any]:
    """One row: milliseconds, ratios and differences of the ways."""
    network = (objective.model, objective.inputs, objective.targets, params, epsilon)
    cases = {
        "sparse": lambda: objective.coordinate_differences(params, epsilon),
        "prefix_cached": lambda: prefix_cached(*network),
        "rank_one": lambda: rank_one(*network),
    }
    if options.brute_force or options.quick:
        cases["brute_force"] = lambda: brute_force(*network)
    gradients = {name: pop.flatten(case()) / (2 * epsilon) for name, case in cases.items()}
    largest = float(gradients["sparse"].abs().max())
    seconds = _common.interleaved(cases, options.rounds, options.device)
    others = [name for name in cases if name != "sparse"]
    faster = {name: _common.ratio(seconds[name], seconds["sparse"]) for name in others}
    return {
        "num_dim": objective.model.num_dim,
        "batch_size": len(objective.inputs),
        "epsilon": epsilon,
        "milliseconds": {
            name: _common.spread([1000 * value for value in values])
            for name, values in seconds.items()
        },
        "times_faster": faster,
        "largest_entry": largest,
        "largest_difference": {
            name: float((gradients[name] - gradients["sparse"]).abs().max()) / largest
            for name in others
        },
    }


def sentence(row: dict[str, Any]) -> str:
    """A row in words."""
    others = ", ".join(
        f"{_common.words(faster)} times faster than {name} "
        f"(largest difference {row['largest_difference'][name]:.1e})"
        for name, faster in row["times_faster"].items()
    )
    return (
        f"num_dim {row['num_dim']:2d}, epsilon {row['epsilon']:g}: sparse flips in "
        f"{_common.words(row['milliseconds']['sparse'])} ms, {others}"
    )


def brute_force(
    model: BinarizedMLP, inputs: Tensor, targets: Tensor, params: Params, epsilon: float
) -> Params:
    """The whole network for every coordinate and sign."""
    out = {}
    for name, tensor in params.items():
        moved = {**params, name: tensor.clone()}
        flat = moved[name].view(-1)
        differences = torch.zeros(tensor.numel(), dtype=torch.float64, device=tensor.device)
        for index, weight in enumerate(tensor.flatten()):
            for sign in (1, -1):
                flat[index] = weight + sign * epsilon
                error = model.forward(moved, inputs) - targets
                differences[index] += sign * error.square_().mean(dtype=torch.float64)
            flat[index] = weight
        out[name] = differences.reshape(tensor.shape)
    return out


def prefix_cached(
    model: BinarizedMLP, inputs: Tensor, targets: Tensor, params: Params, epsilon: float
) -> Params:
    """The layers below a weight once, the layers above it for a batch of coordinates at a time."""
    names, activate = model.layer_names, model.activation_function.forward
    hidden = [inputs.T.contiguous()]
    pre_activations = []
    for name in names:
        pre_activations.append(params[name] @ hidden[-1])
        hidden.append(activate(pre_activations[-1]))
    out = {}
    for layer, name in enumerate(names):
        tensor = params[name]
        differences = torch.zeros(tensor.numel(), dtype=torch.float64, device=tensor.device)
        held = max(1, _CHUNK_FLOATS // hidden[layer].numel())
        for low, high in pop.chunks(tensor.numel(), held):
            index = torch.arange(low, high, device=tensor.device)
            rows, columns = index // tensor.shape[1], index % tensor.shape[1]
            for sign in (1, -1):
                z = pre_activations[layer][rows] + sign * epsilon * hidden[layer][columns]
                if layer < len(names) - 1:
                    h = hidden[layer + 1].repeat(high - low, 1, 1)
                    h[index - low, rows] = activate(z)
                    for later in names[layer + 1 : -1]:
                        h = activate(params[later] @ h)
                    z = (params[names[-1]] @ h)[:, 0]
                error = z - targets[:, 0]
                differences[low:high] += sign * error.square_().mean(dim=1, dtype=torch.float64)
        out[name] = differences.reshape(tensor.shape)
    return out


def rank_one(
    model: BinarizedMLP, inputs: Tensor, targets: Tensor, params: Params, epsilon: float
) -> Params:
    """A changed neuron's outputs correct the next layer's pre-activations, which are stored."""
    names, activate = model.layer_names, model.activation_function.forward
    length = max(256, _CACHE_FLOATS // (8 * model.num_dim))
    out = {
        name: torch.zeros(tensor.shape, dtype=torch.float64, device=tensor.device)
        for name, tensor in params.items()
    }
    for start, stop in pop.chunks(len(inputs), length):
        hidden, stored = [inputs[start:stop].T.contiguous()], []
        for name in names:
            stored.append(params[name] @ hidden[-1])
            hidden.append(activate(stored[-1]))
        error = stored[-1][0] - targets[start:stop, 0]
        for layer, name in enumerate(names):
            differences = out[name].view(-1)
            columns = params[name].shape[1]
            held = max(1, _CACHE_FLOATS // hidden[layer].numel())
            for low, high in pop.chunks(differences.numel(), held):
                index = torch.arange(low, high, device=inputs.device)
                row, moved = index // columns, epsilon * hidden[layer][index % columns]
                for sign in (1, -1):
                    change = sign * moved
                    if layer < len(names) - 1:
                        change = activate(stored[layer][row] + change) - hidden[layer + 1][row]
                    if layer < len(names) - 2:
                        after = params[names[layer + 1]].T[row][:, :, None]
                        z = torch.addcmul(stored[layer + 1], after, change[:, None, :])
                        for later in names[layer + 2 :]:
                            z = params[later] @ activate(z)
                        change = z[:, 0] - stored[-1][0]
                    elif layer < len(names) - 1:
                        change = params[names[-1]][0, row, None] * change
                    squares = (error + change).square_().sum(dim=1, dtype=torch.float64)
                    differences[low:high] += sign * squares
    return {name: total / len(inputs) for name, total in out.items()}


if __name__ == "__main__":
    sys.exit(main())
