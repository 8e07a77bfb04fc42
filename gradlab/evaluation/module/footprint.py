"""What a computation holds in memory at most, and how much of it to do at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# On one core, networks of 2 to 40 layers: as long as one member on the whole batch holds less than
# a megabyte, the cost is that of calling operations, and many members share the calls. Beyond it is
# that of moving memory, and members go one at a time, in blocks of examples.
_CPU_BATCHED = 2**20
_CPU_GROUP = 2**23
_CPU_BLOCK = 2**24


class Footprint(TorchDispatchMode):
    """Bytes of the tensors that operations inside it make: the most alive at once, and all.

    Tensors that were there before do not count, nor does what a kernel allocates within itself.
    What is counted depends on shapes alone, not on the machine.

    Attributes:
        peak: most bytes alive at the same time.
        total: bytes of everything made, which is what a backward pass may keep.
        random: names of operations that drew random numbers.

    >>> with Footprint() as footprint:
    ...     x = torch.zeros(1000) + 1  # the zeros die as soon as 1 has been added
    ...     y = x.view(10, 100) * 2
    >>> footprint.peak, footprint.total, footprint.random
    (8000, 12000, [])
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self.total = 0
        self.random: list[str] = []
        self._alive: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and book what it made."""
        known = {id(leaf.untyped_storage()) for leaf in tree_leaves(args) if _has_storage(leaf)}
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random.append(func.__name__.split(".")[0])
        for leaf in tree_leaves(out):
            if not _has_storage(leaf):
                continue
            storage = leaf.untyped_storage()
            if id(storage) in known or storage in self._alive:
                continue
            self._alive[storage] = storage.nbytes()
            self.total += storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


def _has_storage(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


def peak_bytes(computation: Callable[[], Any]) -> int:
    """Most bytes alive at once while ``computation`` runs, its result included.

    >>> peak_bytes(lambda: torch.ones(8) + torch.ones(8))
    96
    """
    with Footprint() as footprint:
        result = computation()
    del result
    peak: int = footprint.peak
    return peak


def line(points: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Offset and slope, neither negative, of bytes against a number of examples.

    >>> line([(2, 1020), (3, 1030)]), line([(4, 100)])
    ((1000, 10), (0, 25))
    """
    (n, low), (m, high) = points[0], points[-1]
    slope = max(-((low - high) // (m - n)) if m > n else -(-low // n), 0)
    return max(low - slope * n, 0), slope


@dataclass(frozen=True)
class Needs:
    """Bytes that the evaluation of a population holds, and whether members can share a pass.

    Attributes:
        block: per example, while what all members share is computed.
        frontier: per example, what is kept of that.
        member: per member, whatever the examples.
        example: per member and example.
        batchable: whether vmap can batch the module.
        reason: why not, in one line.
    """

    block: int
    frontier: int
    member: int
    example: int
    batchable: bool = True
    reason: str = ""


@dataclass(frozen=True)
class Chunks:
    """Examples per block, members held at a time, and whether these share a pass."""

    examples: int
    members: int
    batched: bool


def chunk_sizes(
    needs: Needs, batch_size: int, memory: int, device: str = "cpu", whole_batch: bool = False
) -> Chunks:
    """How much to evaluate at a time: at least one example and one member.

    Args:
        needs: bytes per member and example.
        batch_size: examples in all.
        memory: bytes to stay within.
        device: "cpu", where caches decide, or a GPU, where every call has its launch to pay.
        whole_batch: examples must not be evaluated apart.

    >>> chunk_sizes(Needs(block=0, frontier=0, member=0, example=1000), 500, 10**9)
    Chunks(examples=500, members=16, batched=True)
    >>> chunk_sizes(Needs(block=0, frontier=0, member=0, example=10**5), 500, 10**9)
    Chunks(examples=167, members=64, batched=False)
    >>> chunk_sizes(Needs(block=0, frontier=0, member=0, example=10**5), 500, 10**9, "cuda")
    Chunks(examples=500, members=20, batched=True)
    """
    on_cpu = device == "cpu"
    batched = needs.batchable and (not on_cpu or batch_size * needs.example <= _CPU_BATCHED)
    room = memory
    if on_cpu:
        room = min(memory, needs.member + (_CPU_GROUP if batched else _CPU_BLOCK))
    wanted = 8 if batched else 1
    examples = batch_size
    if not whole_batch:
        for members in (wanted, 1):
            each = max(members * needs.example + needs.frontier, needs.block, 1)
            examples = (room - members * needs.member) // each
            if examples >= 1:
                break
        examples = min(max(examples, 1), batch_size)
    left = room - examples * needs.frontier
    if batched:
        members = left // max(1, needs.member + examples * needs.example)
    else:
        members = min(64, (left - examples * needs.example) // max(1, needs.member))
    return Chunks(examples, max(1, members), batched)
