"""How fast this machine evaluates populations, against its own matrix products.

Every path of the evaluator runs the same members of a network with two sign layers on the same
batch. The paths and the products take turns (A B C A B C …), so that whatever else the machine does
meanwhile falls on all of them alike; each number is a median over the rounds.

A member's work is counted as the 2·B·(2n² + n) floating-point operations of its products, whatever
a path really does. Look-up tables and bits do without most of them, so their share of the
machine's peak can exceed one.
"""

from __future__ import annotations

import datetime
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.evaluation import GaussianPopulation, Params
from gradlab.evaluation.mlp import MLPEvaluator
from gradlab.evaluation.mlp_tensors import TensorMLPEvaluator
from gradlab.objectives import TeacherStudent
from gradlab.objectives.base import check_device
from gradlab.sweep import provenance
from gradlab.sweep.worker import torch_threads

BATCH_SIZE = 16_384
DEPTH = 2
NUM_DIMS = (2, 4, 8, 16, 32, 64)
QUICK_NUM_DIMS = (4, 32)

DEFAULT = "default"
WITHOUT_TABLES = "compiled, no tables"
TENSORS = "tensor operations"
LOOP = "torch loop"
BINARY = "binary weights"

# How many members one measurement evaluates: at the least, so that those who share work do (members
# of bits share the sums of inputs), and at the most.
_FEWEST_MEMBERS = 16
_FEWEST_BINARY = 128
_MOST_MEMBERS = 1024
# A product that would take longer than this is left out.
_PRODUCT_SECONDS = 1.0
_PROBE = 256
Product = tuple[str, str, int]
Case = Callable[[], object]


@dataclass(frozen=True)
class PathRate:
    """The rate of one path of the evaluator.

    Attributes:
        num_dim: width of the network.
        path: which path.
        milliseconds: per member, the median over the rounds.
        fastest: the smallest of the rounds.
        slowest: the largest.
        gflops: 10⁹ operations per second of the products that the member stands for.
        members: how many were evaluated at a time.
    """

    num_dim: int
    path: str
    milliseconds: float
    fastest: float
    slowest: float
    gflops: float
    members: int


@dataclass(frozen=True)
class ProductRate:
    """The rate of one square matrix product.

    Attributes:
        library: whose product.
        dtype: float32, bfloat16 or int8.
        size: rows and columns.
        gflops: 10⁹ operations per second, the median over the rounds.
    """

    library: str
    dtype: str
    size: int
    gflops: float


@dataclass(frozen=True)
class MachineRates:
    """What was measured.

    Attributes:
        device: "cpu" or "cuda".
        threads: torch threads.
        path: which path the default is, in a line.
        rounds: how often each was measured.
        batch_size: examples.
        paths: the evaluator's paths, by num_dim.
        products: matrix products.
        date: when, UTC.
        environment: versions and machine, see :func:`gradlab.sweep.provenance.environment`.
    """

    device: str
    threads: int
    path: str
    rounds: int
    batch_size: int
    paths: list[PathRate]
    products: list[ProductRate]
    date: str
    environment: dict[str, Any]

    @property
    def peak(self) -> ProductRate:
        """The fastest float32 product."""
        singles = [each for each in self.products if each.dtype == "float32"]
        return max(singles, key=lambda each: each.gflops)

    def share(self, rate: PathRate) -> float:
        """A path's rate as a share of the float32 peak."""
        return rate.gflops / self.peak.gflops


def measure(
    device: str = "cpu",
    threads: int = 1,
    *,
    quick: bool = False,
    num_dims: Sequence[int] | None = None,
    batch_size: int = BATCH_SIZE,
) -> MachineRates:
    """Measure every path and the matrix products, in turns.

    Args:
        device: "cpu" or "cuda".
        threads: torch threads.
        quick: fewer sizes, less time for each.
        num_dims: widths; left out, those of ``quick`` or all.
        batch_size: examples.

    Raises:
        ValueError: an unknown device, or cuda where there is none.
    """
    check_device(device)
    num_dims = num_dims or (QUICK_NUM_DIMS if quick else NUM_DIMS)
    seconds, rounds = (0.02, 3) if quick else (0.03, 5)
    lines: dict[str, None] = {}
    paths: dict[tuple[int, str], tuple[Case, int]] = {}
    with torch_threads(threads):
        for num_dim in num_dims:
            line, found = path_cases(num_dim, batch_size, device)
            lines[line] = None
            for name, evaluate in found.items():
                fewest = _FEWEST_BINARY if name == BINARY else _FEWEST_MEMBERS
                count = _members_in(seconds, evaluate, fewest, device)
                paths[num_dim, name] = functools.partial(evaluate, count), count
        products = _measurable_products(device, threads, quick=quick)
        cases: dict[Any, Case] = {key: case for key, (case, _) in paths.items()}
        times = _interleaved(cases | products, rounds, device)
    return MachineRates(
        device=device,
        threads=threads,
        path="; ".join(lines),
        rounds=rounds,
        batch_size=batch_size,
        paths=[
            _path_rate(*key, [value / count for value in times[key]], count, batch_size)
            for key, (_, count) in paths.items()
        ],
        products=[
            ProductRate(*key, gflops=2 * key[2] ** 3 / statistics.median(times[key]) / 1e9)
            for key in products
        ],
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        environment=provenance.environment(),
    )


def operations(num_dim: int, batch_size: int) -> float:
    """Floating-point operations of one member's products.

    >>> operations(32, 16384) == 2 * 16384 * (2 * 32**2 + 32)
    True
    """
    return 2.0 * batch_size * (DEPTH * num_dim**2 + num_dim)


def path_cases(
    num_dim: int, batch_size: int, device: str
) -> tuple[str, dict[str, Callable[[int], Tensor]]]:
    """Which path the default is, in a line, and every path as a function of a number of members.

    The members are held as tensors: the time of drawing them is not part of it.

    >>> line, cases = path_cases(4, 256, "cpu")
    >>> [len(evaluate(16)) for evaluate in cases.values()] == [16] * len(cases)
    True
    """
    objective = TeacherStudent(num_dim, batch_size, seed=0, depth=DEPTH, device=device)
    binary = TeacherStudent(
        num_dim, batch_size, seed=0, depth=DEPTH, weight="binary", device=device
    )
    problem = objective.model, objective.inputs, objective.targets
    params = objective.initial_params(0)
    members = GaussianPopulation(params, 0.1, key=1, start=0, stop=_MOST_MEMBERS).members()

    def first(count: int) -> Params:
        return {name: tensor[:count] for name, tensor in members.items()}

    default, tensors = MLPEvaluator(*problem), TensorMLPEvaluator(*problem)
    cases: dict[str, Callable[[int], Tensor]] = {
        DEFAULT: lambda count: default.losses(first(count))
    }
    if default.path.startswith("compiled"):
        from gradlab.evaluation.fused import FusedMLPEvaluator

        without = FusedMLPEvaluator(*problem, tables=False)
        cases[WITHOUT_TABLES] = lambda count: without.losses(first(count))[0]
    cases[TENSORS] = lambda count: tensors.losses(first(count))
    cases[LOOP] = lambda count: loop(first(count), objective.inputs, objective.targets)
    cases[BINARY] = lambda count: binary.losses(first(count))
    return default.path, cases


def loop(members: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    """What one would write first: one member after another, two lines of plain torch, ``(P,)``."""
    losses = []
    for weights in zip(*members.values(), strict=True):
        hidden = inputs
        for weight in weights[:-1]:
            hidden = torch.sign(hidden @ weight.T)
        losses.append((hidden @ weights[-1].T - targets).square().mean())
    return torch.stack(losses)


def product_cases(device: str, sizes: Sequence[int]) -> dict[Product, Case]:
    """Square matrix products by (library, type, size); of other types than float32 the largest.

    >>> sorted({dtype for _, dtype, _ in product_cases("cpu", (64, 128))})
    ['bfloat16', 'float32', 'int8']
    """
    generator = torch.Generator().manual_seed(0)
    cases: dict[Product, Case] = {}
    for size in sizes:
        single = torch.randn(size, size, generator=generator).to(device)
        cases["torch.mm", "float32", size] = functools.partial(torch.mm, single, single)
        if device == "cpu":
            array = single.numpy()
            cases["NumPy matmul", "float32", size] = functools.partial(np.matmul, array, array)
    half, byte = single.bfloat16(), single.mul(10).to(torch.int8)
    cases["torch.mm", "bfloat16", size] = functools.partial(torch.mm, half, half)
    cases["torch._int_mm", "int8", size] = functools.partial(torch._int_mm, byte, byte)
    return cases


def _measurable_products(device: str, threads: int, *, quick: bool) -> dict[Product, Case]:
    """The products that exist here, end soon, and keep to the number of threads."""
    # A GPU is not busy with small ones.
    sizes = (1024, 2048) if device == "cpu" else (2048, 8192)
    soon = set()
    for (library, dtype, size), case in product_cases(device, (_PROBE,)).items():
        try:
            case()
        except (RuntimeError, NotImplementedError):
            continue
        # Without units for it a product of halves or bytes can take minutes.
        taken = _clock(case, device)
        soon |= {
            (library, dtype, n) for n in sizes if taken * (n / size) ** 3 < _PRODUCT_SECONDS
        } | ({(library, dtype, sizes[0])} if dtype == "float32" else set())
    cases = product_cases(device, sizes[:1] if quick else sizes)
    return {
        key: case
        for key, case in cases.items()
        if key in soon and (key[0] != "NumPy matmul" or _threads_of(case) < threads + 0.5)
    }


def _threads_of(case: Case) -> float:
    """How many cores a run keeps busy: NumPy has its own idea of how many threads it may use."""
    wall, busy = time.perf_counter(), time.process_time()
    case()
    return (time.process_time() - busy) / (time.perf_counter() - wall)


def _members_in(seconds: float, evaluate: Callable[[int], Tensor], fewest: int, device: str) -> int:
    """How many members a path evaluates in about so many seconds; compiles what has to be."""
    evaluate(fewest)
    taken = _clock(functools.partial(evaluate, fewest), device)
    return max(fewest, min(_MOST_MEMBERS, int(fewest * seconds / taken)))


def _interleaved(cases: Mapping[Any, Case], rounds: int, device: str) -> dict[Any, list[float]]:
    """Seconds of every case in every round: A B C, C B A, A B C and so on."""
    seconds: dict[Any, list[float]] = {key: [] for key in cases}
    for number in range(rounds):
        for key in list(cases)[:: 1 if number % 2 == 0 else -1]:
            seconds[key].append(_clock(cases[key], device))
    return seconds


def _clock(case: Case, device: str) -> float:
    """Seconds of one run; a GPU is waited for."""
    _wait(device)
    started = time.perf_counter()
    case()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _path_rate(
    num_dim: int, path: str, seconds: Sequence[float], members: int, batch_size: int
) -> PathRate:
    middle = statistics.median(seconds)
    return PathRate(
        num_dim=num_dim,
        path=path,
        milliseconds=1000 * middle,
        fastest=1000 * min(seconds),
        slowest=1000 * max(seconds),
        gflops=operations(num_dim, batch_size) / middle / 1e9,
        members=members,
    )
