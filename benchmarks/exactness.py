"""How far are the fast paths from float64, and how often does float32 rounding decide a sign?

The reference evaluates the same float32 members and inputs in float64. Against it, for every
activation, real and binary weights:

- ``default``: what ``MLPEvaluator`` chooses here (look-up tables where the processor has them, bits
  where weights and activations are binary), with the number of examples whose output differs by
  more than float32 rounding, and the number of pre-activations that lie within float32 rounding of
  a threshold and were decided in float64 (behind the first layer of a narrow network, of the codes
  in its table, not of the examples);
- ``without_bits`` and ``without_tables``: the same kernels as other processors and shapes use them;
- ``tensors``: tensor operations;
- ``loop``: the network in plain torch, one member after the other, with the number of examples that
  have another activation somewhere than in float64.

An example with another activation changes a loss by 1e-7 to 1e-4 of its value, as the loop shows.
The bars: no example with another output, and no loss further than 1e-6.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import _common
import torch
from torch import Tensor

from gradlab.evaluation import GaussianPopulation, Params
from gradlab.evaluation.fused import FusedMLPEvaluator
from gradlab.evaluation.mlp import MLPEvaluator
from gradlab.evaluation.mlp_tensors import TensorMLPEvaluator
from gradlab.models.mlp import ACTIVATIONS, WEIGHTS, BinarizedMLP
from gradlab.objectives import TeacherStudent

# Rounding of a float32 product sum of n terms, in units of the sum of magnitudes, at most.
ROUNDING = 2.0**-24


def main() -> int:
    """Every num_dim, activation and weight."""
    parser = _common.parser(__doc__)
    parser.add_argument("--members", type=int, default=64, help="members of the population [64]")
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--depth", type=int, default=2, help="hidden layers [2]")
    options = parser.parse_args()
    _common.start(options)
    dims = [8, 16, 32, 64]
    if options.quick:
        dims, options.batch_size, options.members = [8, 16], 2048, 8
    rows = []
    for num_dim in dims:
        for activation in ACTIVATIONS:
            for weight in WEIGHTS:
                rows.append(measure(num_dim, activation, weight, options))
                print(sentence(rows[-1]))
    paths = ("default", "without_bits", "without_tables", "tensors")
    bars = [
        _common.bar(
            f"largest relative difference of a loss from float64, {path}",
            max(row["largest_relative_difference"].get(path, 0.0) for row in rows),
            at_most=1e-6,
        )
        for path in paths
    ]
    differing = sum(row["examples_where_the_default_differs"] or 0 for row in rows)
    bars.append(
        _common.bar("examples whose output differs from float64, default", differing, at_most=0)
    )
    return _common.finish("exactness", options, rows, bars)


def measure(
    num_dim: int, activation: str, weight: str, options: argparse.Namespace
) -> dict[str, Any]:
    """One row: differences of every path from float64."""
    objective = TeacherStudent(
        num_dim,
        options.batch_size,
        seed=0,
        depth=options.depth,
        activation=activation,
        weight=weight,
    )
    mean = objective.initial_params(0)
    members = GaussianPopulation(mean, 0.1, key=1, start=0, stop=options.members).members()
    batch = (objective.model, objective.inputs, objective.targets)
    evaluator = MLPEvaluator(*batch)
    paths: dict[str, Callable[[], Tensor]] = {
        "default": lambda: evaluator.losses(members),
        "without_tables": lambda: FusedMLPEvaluator(*batch, tables=False).losses(members)[0],
        "tensors": lambda: TensorMLPEvaluator(*batch).losses(members),
    }
    if activation == weight == "binary":
        paths["without_bits"] = lambda: FusedMLPEvaluator(*batch, bits=False).losses(members)[0]
    reference, looped, differing = torch.zeros(3, options.members, dtype=torch.float64)
    other_outputs = 0
    for index in range(options.members):
        member = {name: tensor[index] for name, tensor in members.items()}
        exact, codes = forward(objective.model, doubled(member), objective.inputs.double())
        reference[index] = (exact - objective.targets).square().mean()
        plain, plain_codes = forward(objective.model, member, objective.inputs)
        looped[index] = (plain - objective.targets).square().mean()
        differing[index] = (codes != plain_codes).any(dim=1).sum()
        scale = member[objective.model.layer_names[-1]].abs().sum()
        away = (evaluator.outputs(member) - exact).abs() > 1e-6 * scale
        other_outputs += int(away.any(dim=1).sum())
    found = {name: path() for name, path in paths.items()} | {"loop": looped}
    quantized = objective.model.activation_function.thresholds is not None
    settled = int(evaluator.settled(members).sum())
    pre_activations = options.members * options.batch_size * options.depth * num_dim
    return {
        "num_dim": num_dim,
        "activation": activation,
        "weight": weight,
        "path": evaluator.path,
        "largest_relative_difference": {
            name: float(((losses - reference) / reference).abs().max())
            for name, losses in found.items()
        },
        "settled": settled if quantized else None,
        "settled_per_million": 1e6 * settled / pre_activations if quantized else None,
        "pre_activations": pre_activations,
        "examples": options.members * options.batch_size,
        "examples_where_the_default_differs": other_outputs if quantized else None,
        "examples_where_the_loop_differs": int(differing.sum()) if quantized else None,
        "members_where_the_loop_differs": int((differing > 0).sum()) if quantized else None,
    }


def doubled(member: Params) -> Params:
    """The same numbers in float64."""
    return {name: tensor.double() for name, tensor in member.items()}


def forward(model: BinarizedMLP, member: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs ``(B, 1)``, and which interval every pre-activation is in, ``(B, depth · num_dim)``.

    A continuous activation has no intervals.
    """
    weights, hidden, codes = model.effective_weights(member), inputs, []
    for name in model.layer_names[:-1]:
        z = hidden @ weights[name].T
        codes += [z >= edge for edge in model.activation_function.thresholds or ()]
        hidden = model.activation_function.forward(z)
    outputs = hidden @ weights[model.layer_names[-1]].T
    return outputs, torch.cat(codes, dim=1) if codes else torch.zeros(len(inputs), 1)


def nearest(model: BinarizedMLP, member: Params, inputs: Tensor) -> Tensor:
    """How near each example's pre-activations come to a threshold, ``(B,)``, in float64.

    In units of the largest rounding of a float32 sum, n · 2⁻²⁴ · Σ|w||x|: where it is below one,
    the order of a float32 summation may decide.
    """
    weights, hidden = model.effective_weights(doubled(member)), inputs.double()
    found = torch.full((len(inputs),), torch.inf, dtype=torch.float64)
    for name in model.layer_names[:-1]:
        weight = weights[name]
        z, reach = hidden @ weight.T, hidden.abs() @ weight.abs().T
        for edge in model.activation_function.thresholds or ():
            units = (z - edge).abs() / (weight.shape[1] * ROUNDING * reach)
            found = torch.minimum(found, units.min(dim=1).values)
        hidden = model.activation_function.forward(z)
    return found


def sentence(row: dict[str, Any]) -> str:
    """A row in words."""
    largest = row["largest_relative_difference"]
    text = f"num_dim {row['num_dim']:2d}, {row['activation']}, weights {row['weight']}: "
    text += ", ".join(f"{name} {value:.1e}" for name, value in largest.items())
    if row["settled"] is None:
        return text
    return text + (
        f"; other outputs in {row['examples_where_the_default_differs']} examples by default; "
        f"settled in float64 {row['settled_per_million']:.2g} in a million pre-activations; the "
        f"loop has other activations in {row['examples_where_the_loop_differs']} of "
        f"{row['examples']:,} examples"
    )


if __name__ == "__main__":
    sys.exit(main())
