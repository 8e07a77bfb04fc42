"""How long does a weight-space NES gradient of 50,000 members take on a GPU?

One gradient is the losses of all members and the sum of their noise, weighted by those losses:
num_dim 32, 160,000 examples, mirrored pairs, σ = 0.1, two and three sign layers.

- ``exact`` and ``rounded``: the Triton kernels, see ``gradlab.evaluation.gpu``;
- ``compiled``: what one would write in torch, members in chunks, noise from ``torch.randn``,
  compiled by ``torch.compile``, float32; ``compiled_tf32`` the same with tf32 products, which keep
  11 bits. They take ``--reference-members`` members, and their seconds are scaled to all.

And local NES with two passes: ``kernel`` against the estimator's own torch operations on this GPU.

Bars: exact gradients take at most 0.3 s and a tenth of the compiled ones.

``--quick`` runs tiny sizes, on the CPU in Triton's interpreter: does the script run?
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import _common
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from gradlab.estimators.nes_local import NESLocal
from gradlab.evaluation import GaussianPopulation, Params, gpu
from gradlab.objectives import TeacherStudent

SIGMA = 0.1


def main() -> int:
    """Both depths, then local NES."""
    parser = _common.parser(__doc__)
    parser.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--members", type=int, default=50_000)
    parser.add_argument("--reference-members", type=int, default=2_000, help="of torch [2000]")
    parser.add_argument("--batch-size", type=int, default=160_000)
    parser.add_argument("--num-dim", type=int, default=32)
    options = parser.parse_args()
    _common.start(options)
    if options.quick:
        options.members, options.reference_members, options.batch_size = 8, 4, 100
        options.num_dim, options.rounds = 8, 1
    elif options.device == "cpu":
        raise SystemExit("the interpreter tells nothing about speed: use --quick, or a GPU.")
    reason = gpu.available(options.device)
    if reason is not None:
        raise SystemExit(f"the kernels cannot run: {reason}")
    rows = [gradient(depth, options) for depth in (2, 3)]
    for row in rows:
        print(f"{row['depth']} sign layers:", *(sentence(*item) for item in row["seconds"].items()))
    local = local_nes(options)
    print("local NES:", *(sentence(*item) for item in local["seconds"].items()))
    bars = []
    for row in rows:
        what = f"exact gradient, {row['depth']} sign layers"
        bars.append(_common.bar(f"{what}, seconds", row["seconds"]["exact"]["median"], at_most=0.3))
        times = row["times_faster"]["exact"]["median"]
        bars.append(_common.bar(f"{what}, times as fast as compiled", times, at_least=10))
    record = {"device": device_name(options.device), "gradients": rows, "local_nes": local}
    return _common.finish("gpu_kernels", options, record, bars)


def device_name(device: str) -> str:
    """As the driver calls it."""
    return torch.cuda.get_device_name() if device != "cpu" else "Triton's interpreter"


def sentence(name: str, seconds: dict[str, float]) -> str:
    """Seconds in words."""
    return f"{name} {_common.words(seconds)} s;"


def gradient(depth: int, options: Any) -> dict[str, Any]:
    """One depth: seconds of every case, and how far its losses are from float32 torch."""
    objective = TeacherStudent(
        options.num_dim, options.batch_size, seed=0, depth=depth, device=options.device
    )
    whole = GaussianPopulation(
        objective.initial_params(0), SIGMA, key=1, start=0, stop=options.members, antithetic=True
    )

    def by_kernels(precision: str) -> Tensor:
        losses = gpu.mlp_losses(
            objective.model, objective.inputs, objective.targets, whole, precision=precision
        )
        weights = (losses - losses.mean()) / len(losses)
        return gpu.weighted_noise(whole, weights[None], second=False)[0]

    compiled = Compiled(objective, options)
    part = whole.part(0, compiled.members)
    cases: dict[str, Callable[[], Any]] = {
        "exact": lambda: by_kernels("exact"),
        "rounded": lambda: by_kernels("rounded"),
        "compiled": lambda: compiled.gradient(part, tf32=False),
        "compiled_tf32": lambda: compiled.gradient(part, tf32=True),
    }
    seconds = _common.interleaved(cases, options.rounds, options.device)
    for name in ("compiled", "compiled_tf32"):
        seconds[name] = [value * len(whole) / len(part) for value in seconds[name]]
    few = whole.part(0, 4)
    expected = compiled.losses(few.members()).double()
    found = {
        precision: gpu.mlp_losses(
            objective.model, objective.inputs, objective.targets, few, precision=precision
        )
        for precision in ("exact", "rounded")
    }
    return {
        "depth": depth,
        "num_dim": options.num_dim,
        "rounding_over_sigma": gpu.rounding_over_sigma(whole),
        "seconds": {name: _common.spread(values) for name, values in seconds.items()},
        "times_faster": {
            name: _common.ratio(seconds["compiled"], seconds[name]) for name in ("exact", "rounded")
        },
        "times_faster_than_tf32": {
            name: _common.ratio(seconds["compiled_tf32"], seconds[name])
            for name in ("exact", "rounded")
        },
        # signs of pre-activations within rounding of zero may differ
        "largest_relative_difference_of_losses": {
            name: float(((losses - expected) / expected).abs().max())
            for name, losses in found.items()
        },
    }


class Compiled:
    """A chunk of members by compiled torch operations, one gradient of many chunks."""

    def __init__(self, objective: TeacherStudent, options: Any) -> None:
        self.objective = objective
        # pairs whose activations of a layer take a gigabyte, and whole chunks of them
        self.pairs = max(1, min(2**27 // objective.inputs.numel(), options.reference_members // 2))
        self.members = max(1, options.reference_members // (2 * self.pairs)) * 2 * self.pairs
        backend = "eager" if options.quick else "inductor"
        self.evaluate = torch.compile(self._losses, backend=backend)

    def _losses(self, weights: list[Tensor]) -> Tensor:
        hidden = self.objective.inputs @ weights[0].transpose(1, 2)
        for weight in weights[1:]:
            hidden = torch.where(hidden >= 0, 1.0, -1.0) @ weight.transpose(1, 2)
        return (hidden - self.objective.targets).square().mean(dim=(1, 2))

    def losses(self, members: Params) -> Tensor:
        """Of members held as tensors."""
        return self._losses(list(members.values()))

    def gradient(self, population: GaussianPopulation, tf32: bool) -> Tensor:
        """A gradient from noise of torch's own generator, held until its losses are known."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        device = self.objective.inputs.device
        sizes = [w.numel() for w in population.mean.values()]
        flat = torch.cat([w.flatten() for w in population.mean.values()])
        total = torch.zeros_like(flat)
        step = self.pairs
        generator = torch.Generator(device=device).manual_seed(0)
        for _ in range(0, len(population) // 2, step):
            drawn = torch.randn(step, len(flat), generator=generator, device=device)
            both = torch.cat((flat + SIGMA * drawn, flat - SIGMA * drawn))
            weights = [
                part.reshape(-1, *w.shape)
                for part, w in zip(both.split(sizes, dim=1), population.mean.values(), strict=True)
            ]
            losses = self.evaluate(weights)
            total += (losses[:step] - losses[step:]) @ drawn
        torch.backends.cuda.matmul.allow_tf32 = before
        return total / len(population)


def local_nes(options: Any) -> dict[str, Any]:
    """Two passes through three sign layers."""
    objective = TeacherStudent(options.num_dim, options.batch_size, seed=0, device=options.device)
    params = objective.initial_params(0)
    estimator = NESLocal(sigma=SIGMA, passes=2)

    def by_torch() -> None:
        with mock.patch.object(gpu, "available", return_value="this is the other case"):
            estimator.estimate(objective, params, generator=torch.Generator().manual_seed(0))

    cases: dict[str, Callable[[], Any]] = {
        "kernel": lambda: gpu.local_nes_gradient(
            objective.model,
            objective.inputs,
            objective.targets,
            params,
            key=1,
            sigma=SIGMA,
            passes=2,
        ),
        "torch": by_torch,
    }
    seconds = _common.interleaved(cases, options.rounds, options.device)
    return {
        "seconds": {name: _common.spread(values) for name, values in seconds.items()},
        "times_faster": _common.ratio(seconds["torch"], seconds["kernel"]),
    }


if __name__ == "__main__":
    sys.exit(main())
