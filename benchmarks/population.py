"""How many milliseconds does the population evaluator take per member?

One core, two sign layers, 16,384 examples; everything below in the same interleaved rounds, for
each num_dim:

- ``gradlab``: ``TeacherStudent.losses`` of members held as tensors; ``gradlab_with_noise`` and
  ``gradlab_antithetic``: of a ``GaussianPopulation``, whose members it draws itself, the latter in
  mirrored pairs. Every pre-activation within float32 rounding of zero is decided in float64;
- ``gradlab_rounded``: of members and inputs that are bfloat16 numbers, multiplied as such;
- ``gradlab_without_tables``: its kernels for processors without AVX-512, and ``gradlab_tensors``:
  its tensor operations;
- ``torch_loop``: one member after another, two lines of plain torch; ``torch_vmap``:
  ``torch.func.vmap`` in chunks of four; ``numpy_tiled``: NumPy products of blocks of examples that
  stay in cache;
- the rival, evosax and JAX, in nine ways (``peers.py``). The bars are against the fastest of the
  six that its users write; ``columns`` is reported beside them. ``evosax_generation`` also asks for
  members and tells their losses; compare it with ``gradlab_with_noise``.

Also there: what this core reaches in large matrix products. ``share_of_peak`` is the population's
2·B·(depth·n² + n) floating-point operations per member, whatever the evaluator really does, as a
share of the fastest float32 product of torch, NumPy and JAX. Where weights and activations are
binary, counting bits is compared with the float32 product.

The rival's outputs are compared with gradlab's, example by example: where they differ by more than
rounding, the example must have a pre-activation within float32 rounding of zero. These are counted
and left out; over the others the losses must agree to 1e-5.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import _common
import exactness
import numpy as np
import peers
import torch
from torch import Tensor

from gradlab.evaluation import GaussianPopulation, Params
from gradlab.evaluation.fused import FusedMLPEvaluator
from gradlab.evaluation.mlp import MLPEvaluator
from gradlab.evaluation.mlp_tensors import TensorMLPEvaluator
from gradlab.objectives import TeacherStudent

Cases = dict[str, Callable[[], Any]]

# Few members where one is slow: a call takes tens of milliseconds.
MEMBERS = {2: 2048, 4: 1024, 8: 512, 16: 256, 32: 128, 64: 64}
# The bars: times faster than the rival, the same with rounded members, times faster than the loop;
# shares of the float32 peak; bits.
RIVAL = {8: 2.5, 16: 1.8, 32: 1.2, 64: 1.1}
RIVAL_ROUNDED = {8: 3.0, 16: 3.0, 32: 2.0, 64: 1.8}
LOOP = {8: 9.0, 16: 2.5, 32: 1.8, 64: 1.5}
SHARE = {16: 0.7, 32: 0.7, 64: 0.7}
ROUNDED_SHARE = {16: 1.3, 32: 1.3, 64: 1.3}
BITS = {32: 2.5, 64: 2.5}
# Members whose outputs are compared example by example.
_COMPARED = 16
# Floats of one block of activations of the tiled loop: 256 KiB.
_TILE_FLOATS = 2**16


def main() -> int:
    """Every num_dim."""
    parser = _common.parser(__doc__)
    parser.set_defaults(rounds=7)
    parser.add_argument("--num-dim", type=int, nargs="+", help="[2 4 8 16 32 64]")
    parser.add_argument("--members", type=int, help="members of the population [as many as fit]")
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--depth", type=int, default=2, help="sign layers [2]")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has jax and evosax")
    parser.add_argument("--without-peer", action="store_true", help="leave the rival out")
    options = parser.parse_args()
    peers.alone(options.threads)
    _common.start(options)
    dims = options.num_dim or list(MEMBERS)
    if options.quick:
        dims, options.batch_size, options.members = options.num_dim or [2, 32], 2048, 16
        options.rounds = 2
    rows = []
    with contextlib.ExitStack() as stack:
        peer = None
        if not options.without_peer:
            peer = stack.enter_context(peers.Peer(options.peer_python, options.threads))
        for num_dim in dims:
            rows.append(measure(num_dim, options, peer))
            print(sentence(rows[-1]), flush=True)
        versions = peer.versions if peer else None
    results = {"peer": versions, "rows": rows}
    return _common.finish("population", options, results, bars(rows))


def measure(num_dim: int, options: argparse.Namespace, peer: peers.Peer | None) -> dict[str, Any]:
    """One row: milliseconds per member of everything, and what follows from them."""
    objective = TeacherStudent(
        num_dim, options.batch_size, seed=0, depth=options.depth, device=options.device
    )
    size = options.members or MEMBERS.get(num_dim, 64)
    gaussian = GaussianPopulation(objective.initial_params(0), 0.1, key=1, start=0, stop=size)
    members = gaussian.members()
    cases = ours(objective, gaussian, members) | plain(objective, members)
    row: dict[str, Any] = {"num_dim": num_dim, "members": size}
    if peer is not None:
        batch = (each.numpy() for each in (objective.inputs, objective.targets))
        peer.load(*batch, [tensor.numpy() for tensor in members.values()])
        row["agreement"] = agreement(objective, members, peer)
        ways = (*peers.IDIOMS, *peers.BY_HAND, "evosax_generation")
        cases |= {name: peer.case(name) for name in ways}
    row["largest_relative_difference"] = differences(cases, peer)
    binary = bits(num_dim, options, size) if num_dim in BITS else {}
    peaks = products(peer)
    seconds = _common.interleaved(cases | binary | peaks, options.rounds, options.device)
    row["milliseconds_per_member"] = {
        name: _common.spread([1000 * value / size for value in seconds[name]])
        for name in (*cases, *binary)
    }
    mine = seconds["gradlab"]
    row["times_faster_than"] = {
        name: _common.ratio(seconds[name], mine) for name in cases if name != "gradlab"
    }
    if peer is not None:
        row["rival"] = fastest(seconds, peers.IDIOMS)
        row["rival_by_hand"] = fastest(seconds, peers.BY_HAND)
        row["rival_over_rounded"] = _common.ratio(
            seconds[row["rival"]["name"]], seconds["gradlab_rounded"]
        )
    operations = 2 * options.batch_size * (options.depth * num_dim**2 + num_dim) * size
    row["gflops_equivalent"] = _common.spread([operations / value / 1e9 for value in mine])
    speeds = {
        name: [PRODUCTS[name.split("_")[-1]] / value for value in seconds[name]] for name in peaks
    }
    row["peak_gflops"] = {
        name: _common.spread([speed / 1e9 for speed in each]) for name, each in speeds.items()
    }
    float32 = [each for name, each in speeds.items() if "float32" in name]
    peak = [max(each) for each in zip(*float32, strict=True)]
    row["share_of_peak"] = _common.ratio([operations / value for value in mine], peak)
    row["rounded_share_of_peak"] = _common.ratio(
        [operations / value for value in seconds["gradlab_rounded"]], peak
    )
    if binary:
        row["bits_times_faster"] = {
            name: _common.ratio(seconds[name], seconds["binary_bits"])
            for name in binary
            if name != "binary_bits"
        }
    return row


def ours(objective: TeacherStudent, gaussian: GaussianPopulation, members: Params) -> Cases:
    """Gradlab's paths."""
    batch = (objective.model, objective.inputs, objective.targets)
    without_tables = FusedMLPEvaluator(*batch, tables=False)
    tensors = TensorMLPEvaluator(*batch)
    pairs = replace(gaussian, antithetic=True)
    rounded = replace(gaussian, rounded=True).members()
    coarse = FusedMLPEvaluator(batch[0], batch[1].bfloat16().float(), batch[2])
    return {
        "gradlab": lambda: objective.losses(members),
        "gradlab_with_noise": lambda: objective.losses(gaussian),
        "gradlab_antithetic": lambda: objective.losses(pairs),
        "gradlab_rounded": lambda: coarse.losses(rounded)[0],
        "gradlab_without_tables": lambda: without_tables.losses(members)[0],
        "gradlab_tensors": lambda: tensors.losses(members),
    }


def plain(objective: TeacherStudent, members: Params) -> Cases:
    """What one would write first, and second."""
    inputs, targets = objective.inputs, objective.targets
    weights = tuple(members.values())

    def loss(weights: tuple[Tensor, ...]) -> Tensor:
        hidden = inputs
        for weight in weights[:-1]:
            hidden = torch.sign(hidden @ weight.T)
        return (hidden @ weights[-1].T - targets).square().mean()

    mapped = torch.func.vmap(loss, chunk_size=4)
    arrays = [weight.numpy() for weight in weights]
    columns = np.ascontiguousarray(inputs.numpy().T)
    goals = targets.numpy()[:, 0]
    return {
        "torch_loop": lambda: torch.stack([loss(each) for each in zip(*weights, strict=True)]),
        "torch_vmap": lambda: mapped(weights),
        "numpy_tiled": lambda: tiled(arrays, columns, goals),
    }


def tiled(weights: list[np.ndarray], inputs: np.ndarray, targets: np.ndarray) -> Tensor:
    """Activations as ``(n, block of examples)``, which stays in cache; torch takes the sign."""
    num_dim, size = inputs.shape
    length = min(size, max(512, _TILE_FLOATS // num_dim))
    here, there = np.empty((2, num_dim, length), np.float32)
    signs = {id(each): torch.from_numpy(each) for each in (here, there)}
    total = np.zeros(len(weights[0]))
    for start in range(0, size, length):
        block = np.ascontiguousarray(inputs[:, start : start + length])
        goals = targets[start : start + length]
        width = block.shape[1]
        for index in range(len(total)):
            hidden, out, spare = block, here, there
            for weight in weights[:-1]:
                np.matmul(weight[index], hidden, out=out[:, :width])
                signs[id(out)].sign_()
                hidden, out, spare = out[:, :width], spare, out
            error = (weights[-1][index] @ hidden)[0] - goals
            total[index] += error @ error
    return torch.from_numpy(total / size)


# Floating-point operations of the case of this name.
PRODUCTS = {"1024": 8 * 2 * 1024.0**3, "2048": 2 * 2048.0**3}


def products(peer: peers.Peer | None) -> Cases:
    """Large square matrix products: eight of 1,024 or one of 2,048."""
    cases: Cases = {}
    for size, times in ((1024, 8), (2048, 1)):
        one = torch.randn(size, size)
        for dtype in (torch.float32, torch.bfloat16):
            name = f"torch_{str(dtype).removeprefix('torch.')}_{size}"
            cases[name] = _repeated(torch.mm, one.to(dtype), times)
        cases[f"numpy_float32_{size}"] = _repeated(np.matmul, one.numpy(), times)
    if peer is not None:
        cases["jax_float32_2048"] = peer.case("product")
    return cases


def _repeated(product: Callable[[Any, Any], Any], matrix: Any, times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            product(matrix, matrix)

    return run


def bits(num_dim: int, options: argparse.Namespace, size: int) -> Cases:
    """Binary weights and activations: bits, look-up tables, and the float32 product."""
    objective = TeacherStudent(
        num_dim, options.batch_size, seed=0, depth=options.depth, weight="binary"
    )
    mean = objective.initial_params(0)
    members = GaussianPopulation(mean, 0.1, key=1, start=0, stop=size).members()
    batch = (objective.model, objective.inputs, objective.targets)
    tables = FusedMLPEvaluator(*batch, bits=False)
    product = FusedMLPEvaluator(*batch, bits=False, tables=False)
    return {
        "binary_bits": lambda: objective.losses(members),
        "binary_tables": lambda: tables.losses(members)[0],
        "binary_product": lambda: product.losses(members)[0],
    }


def fastest(seconds: dict[str, list[float]], names: tuple[str, ...]) -> dict[str, Any]:
    """The fastest of these over all rounds, and how many times faster gradlab is."""
    name = min(names, key=lambda each: _common.spread(seconds[each])["median"])
    return {"name": name, "times_faster": _common.ratio(seconds[name], seconds["gradlab"])}


def differences(cases: Cases, peer: peers.Peer | None) -> dict[str, float]:
    """Largest relative difference of the losses from gradlab's: examples at a tie included."""
    own = cases["gradlab"]()
    found = {
        name: torch.as_tensor(case()).double()
        for name, case in cases.items()
        if name.startswith(("gradlab_", "torch_", "numpy_"))
        and name not in ("gradlab_antithetic", "gradlab_rounded")
    }
    if peer is not None:
        for name in (*peers.IDIOMS, *peers.BY_HAND):
            found[name] = torch.from_numpy(peer.losses(name)).double()
    return {name: float(((each - own) / own).abs().max()) for name, each in found.items()}


def agreement(objective: TeacherStudent, members: Params, peer: peers.Peer) -> dict[str, Any]:
    """The rival's outputs against gradlab's; ends the program where they are not the same network.

    Raises:
        SystemExit: an example differs without a near tie, or losses differ without such examples.
    """
    model, inputs, targets = objective.model, objective.inputs, objective.targets
    evaluator = MLPEvaluator(model, inputs, targets)
    compared = min(_COMPARED, len(next(iter(members.values()))))
    boundary, largest = 0, 0.0
    for index, outputs in enumerate(torch.from_numpy(peer.outputs(compared)).double()):
        member = {name: tensor[index] for name, tensor in members.items()}
        own = evaluator.outputs(member).double()[:, 0]
        scale = member[model.layer_names[-1]].abs().sum().double()
        differ = (outputs - own).abs() > 1e-5 * scale
        if differ.any() and float(exactness.nearest(model, member, inputs[differ]).max()) > 1:
            raise SystemExit("the rival evaluates another network: no rounding explains it.")
        boundary += int(differ.sum())
        goals, same = targets[:, 0].double(), ~differ
        one, other = ((each - goals)[same].square().mean() for each in (own, outputs))
        largest = max(largest, float(((other - one) / one).abs()))
    if largest > 1e-5:
        raise SystemExit(f"the rival's losses differ by {largest:.1e} (relative) off every tie.")
    return {
        "examples": compared * len(inputs),
        "boundary_examples": boundary,
        "largest_relative_difference_of_the_others": largest,
    }


def bars(rows: list[dict[str, Any]]) -> list[_common.Bar]:
    """What was measured against what has to be reached."""
    found = []

    def add(row: dict[str, Any], what: str, values: dict[str, float], limits: Any) -> None:
        if row["num_dim"] in limits:
            text = f"num_dim {row['num_dim']}: {what}"
            limit = limits[row["num_dim"]]
            found.append(_common.bar(text, values["median"], at_least=limit))

    for row in rows:
        if "rival" in row:
            name, faster = row["rival"]["name"], row["rival"]["times_faster"]
            add(row, f"times faster than evosax/JAX ({name})", faster, RIVAL)
            add(row, f"rounded members ({name})", row["rival_over_rounded"], RIVAL_ROUNDED)
        add(row, "times faster than the loop", row["times_faster_than"]["torch_loop"], LOOP)
        add(row, "share of the float32 product peak", row["share_of_peak"], SHARE)
        share = row["rounded_share_of_peak"]
        add(row, "rounded members: share of the float32 product peak", share, ROUNDED_SHARE)
        if "bits_times_faster" in row:
            product = row["bits_times_faster"]["binary_product"]
            add(row, "bits times faster than the float32 product", product, BITS)
    return found


def sentence(row: dict[str, Any]) -> str:
    """A row in words."""
    lines = [f"num_dim {row['num_dim']}, {row['members']} members, milliseconds per member:"]
    for name, values in row["milliseconds_per_member"].items():
        faster = row["times_faster_than"].get(name)
        text = f"; gradlab {_common.words(faster)} times faster" if faster else ""
        lines.append(f"  {name:24s} {_common.words(values)}{text}")
    for name, values in row["peak_gflops"].items():
        lines.append(f"  {name:24s} {_common.words(values)} GFLOP/s")
    lines.append(
        f"  gradlab does as much as {_common.words(row['gflops_equivalent'])} GFLOP/s, "
        f"{_common.words(row['share_of_peak'])} of the float32 peak"
    )
    if "agreement" in row:
        agreement = row["agreement"]
        lines.append(
            f"  the rival has {agreement['boundary_examples']} of {agreement['examples']:,} "
            "examples on the other side of a near tie; over the others, losses differ by "
            f"{agreement['largest_relative_difference_of_the_others']:.1e}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
