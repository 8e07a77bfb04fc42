"""How fast are central differences by sparse flips?

Three ways to the same coordinate discrete gradient of a network with two sign layers, interleaved:

- ``sparse``: gradlab's own, one suffix evaluation per neuron on the examples near its threshold;
- ``prefix_cached``: the layers below the changed weight are computed once, the changed layer's
  activations and all layers above it for a batch of coordinates at a time, on all examples;
- ``brute_force``: the whole network, twice per coordinate.

The differences between them are examples within rounding of a threshold; they are reported
relative to the largest entry of the gradient.
"""

from __future__ import annotations

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


def main() -> int:
    """Every num_dim and epsilon."""
    parser = _common.parser(__doc__)
    parser.set_defaults(rounds=3)
    options = parser.parse_args()
    _common.start(options)
    dims, batch = ((8,), 1024) if options.quick else ((8, 32), 16384)
    rows = []
    for num_dim in dims:
        objective = TeacherStudent(num_dim, batch, seed=0, depth=2, device=options.device)
        params = objective.initial_params(0)
        for epsilon in (0.01, 0.1, 1.0):
            rows.append(measure(objective, params, epsilon, options))
            row = rows[-1]
            print(
                f"num_dim {num_dim:2d}, epsilon {epsilon:g}: sparse flips in "
                f"{_common.words(row['milliseconds']['sparse'])} ms, "
                f"{_common.words(row['times_faster']['prefix_cached'])} times faster than "
                f"prefix-cached and {_common.words(row['times_faster']['brute_force'])} than brute "
                f"force; largest difference {row['largest_difference']['prefix_cached']:.1e} and "
                f"{row['largest_difference']['brute_force']:.1e}"
            )
    return _common.finish("cdg", options, rows)


def measure(
    objective: TeacherStudent, params: Params, epsilon: float, options: Any
) -> dict[str, Any]:
    """One row: milliseconds, ratios and differences of the three ways."""
    network = (objective.model, objective.inputs, objective.targets, params, epsilon)
    cases = {
        "sparse": lambda: objective.coordinate_differences(params, epsilon),
        "prefix_cached": lambda: prefix_cached(*network),
        "brute_force": lambda: brute_force(*network),
    }
    gradients = {name: pop.flatten(case()) / (2 * epsilon) for name, case in cases.items()}
    largest = float(gradients["brute_force"].abs().max())
    seconds = _common.interleaved(cases, options.rounds, options.device)
    others = ("prefix_cached", "brute_force")
    return {
        "num_dim": objective.model.num_dim,
        "batch_size": len(objective.inputs),
        "epsilon": epsilon,
        "milliseconds": {
            name: _common.spread([1000 * value for value in values])
            for name, values in seconds.items()
        },
        "times_faster": {name: _common.ratio(seconds[name], seconds["sparse"]) for name in others},
        "largest_entry": largest,
        "largest_difference": {
            name: float((gradients[name] - gradients["sparse"]).abs().max()) / largest
            for name in others
        },
    }


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


if __name__ == "__main__":
    sys.exit(main())
