r"""A population of binarized MLPs on a processor, compiled and fused.

A block of 128 examples runs through all layers of a member before the next member and the next
block, so activations stay in the first-level cache. What is done there depends on the shapes:

- the first layer is real: a register-tiled product of fused multiply-adds;
- a later layer sees few levels, so four bits of input code choose among sixteen sums of weights
  held in a vector register: one permutation and one addition for four multiply-adds, exact (with
  AVX-512; elsewhere the register-tiled product again);
- inputs and weights that are bfloat16 numbers: the first layer multiplies them in pairs, exactly,
  where the processor has units for it (rounded populations, see ``GaussianPopulation``);
- binary weights: the first layer looks up signed sums of four inputs, which all members share, and
  later layers count differing bits;
- up to eight bits of code (num_dim ≤ 8 for the sign): all layers behind the first are a table with
  an entry for every code, made once per member;
- the output layer, the errors and their sums are float64.

Every pre-activation within float32 rounding of a threshold is computed again in float64, so that
each activation is the one of exact arithmetic. ``settled`` counts them. Members are independent of
each other and of threads and chunks, bit for bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab.evaluation import coordinates
from gradlab.evaluation import population as pop
from gradlab.evaluation.compiled import bits as bit_kernel
from gradlab.evaluation.compiled import coordinates as coordinate_kernel
from gradlab.evaluation.compiled import mlp as kernel
from gradlab.evaluation.compiled import parts
from gradlab.evaluation.compiled.tiles import BLOCK, HAS_BF16, HAS_TABLES, LANES
from gradlab.evaluation.mlp_tensors import LARGE
from gradlab.evaluation.population import LinePopulation, Params, Population
from gradlab.models.mlp import BinarizedMLP

# Floats of prepared weights of one chunk of members: half a megabyte, half of a core's second-level
# cache, for they are read again for every block.
_CHUNK_FLOATS = 2**17
_CHUNK_MEMBERS = 1024
# Members, and floats of members, that are drawn at a time: a megabyte at most.
_DRAWN_MEMBERS, _DRAWN_FLOATS = 4096, 2**18
# Members compared with one origin, which is evaluated again in every chunk: many.
_LINE_MEMBERS = 63
# Members of bits: many, for they share the sums of inputs.
_BIT_MEMBERS = 128


def describe() -> str:
    """What runs on this processor, in a line.

    >>> describe().startswith("compiled")
    True
    """
    if HAS_TABLES:
        return "compiled, AVX-512 with look-up tables"
    return f"compiled, vectors of {LANES} floats"


@dataclass(frozen=True)
class FusedMLPEvaluator:
    """Losses of many finite members of :class:`BinarizedMLP` on one finite float32 batch.

    Args:
        model: the architecture.
        inputs: ``(B, num_inputs)`` float32 on the CPU, finite.
        targets: ``(B, num_outputs)`` float32, or labels ``(B,)`` int64 for cross-entropy.
        loss: "mse" or "cross_entropy".
        tables: whether to use look-up tables, where the processor has them.
        bits: whether to count bits where weights and activations are binary, which needs tables.
    """

    model: BinarizedMLP
    inputs: Tensor
    targets: Tensor
    loss: str = "mse"
    tables: bool = HAS_TABLES
    bits: bool = True
    _batch: tuple[Any, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inputs = self.inputs.detach()
        # A negative norm: what pads the last block is never near a threshold.
        norms = np.full((-(-len(inputs) // BLOCK), BLOCK), -1, np.float32)
        norms.reshape(-1)[: len(inputs)] = inputs.double().norm(dim=1).float().numpy()
        if self.loss == "mse":
            goals, labels = _blocked(self.targets.detach(), np.float64), np.zeros((1, 1), np.int64)
        else:
            goals, labels = np.zeros((1, 1, 1)), np.zeros(norms.shape, np.int64)
            labels.reshape(-1)[: len(inputs)] = self.targets.numpy()
        batch = _blocked(inputs, np.float32), norms, goals, labels
        object.__setattr__(self, "_batch", batch)

    @property
    def _scale(self) -> float:
        outputs = self.model.num_outputs if self.loss == "mse" else 1
        return 1.0 / (len(self.inputs) * outputs)

    def outputs(self, params: Params) -> Tensor:
        """Network outputs of one parameter dict, ``(B, num_outputs)`` float32, rounded once."""
        member = {name: tensor[None] for name, tensor in params.items()}
        weights = self._effective(_flat(member, self.model.layer_names))
        outputs = np.empty((1, len(self.inputs), self.model.num_outputs))
        self._call(parts.OUTPUTS, weights, weights, outputs)
        return torch.from_numpy(outputs[0]).float()

    def losses(self, population: Population) -> tuple[Tensor, Tensor]:
        """Loss of every member, ``(P,)`` float64, and how many pre-activations were settled.

        Where the latter is -1 the member is not finite, and its loss means nothing.
        """
        kind = parts.SQUARED_ERROR if self.loss == "mse" else parts.CROSS_ENTROPY
        names = self.model.layer_names

        def evaluate(part: Population) -> tuple[np.ndarray, np.ndarray]:
            weights = _flat(pop.members(part), names)
            finite = _finite(weights)
            weights = self._effective(weights)
            pieces = [weights[a:b] for a, b in pop.chunks(len(weights), self._chunk)]
            found = [self._call(kind, piece, piece) for piece in pieces]
            losses, settled = (np.concatenate(each) for each in zip(*found, strict=True))
            return losses, np.where(finite, settled, -1)

        # Members are drawn for many chunks at once, since each drawing has its own price in Python.
        drawn = max(self._chunk, min(_DRAWN_MEMBERS, _DRAWN_FLOATS // self._coordinates))
        return self._over_chunks(population, evaluate, drawn)

    def decreases(self, params: Params, population: Population) -> tuple[Tensor, Tensor]:
        """loss(params) - loss(member), ``(P,)`` float64, differences per example in float64.

        The members of a line are taken as exact: origin - step · direction in float64. Also returns
        what :meth:`losses` does.
        """
        kind = parts.SQUARED_DECREASE if self.loss == "mse" else parts.ENTROPY_DECREASE
        names = self.model.layer_names
        origin = _flat({name: tensor[None].double() for name, tensor in params.items()}, names)

        def evaluate(part: Population) -> tuple[np.ndarray, np.ndarray]:
            exact = np.concatenate((origin, _flat(pop.members(_double(part)), names)))
            finite = _finite(exact)
            exact = self._effective(exact)
            out, settled = self._call(kind, exact.astype(np.float32), exact)
            return out[1:], np.where(finite, settled, -1)[1:]

        return self._over_chunks(population, evaluate, max(self._chunk, _LINE_MEMBERS))

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Loss differences over ±epsilon of every finite weight, float64, by sparse flips."""
        model = self.model
        layers = [params[name].detach() for name in model.layer_names]
        padded = -(-max(model.num_dim, layers[0].shape[1]) // 32) * 32
        ups, downs = np.zeros((2, model.depth, model.num_dim, padded), np.float32)
        for layer, name in enumerate(model.layer_names[:-1]):
            up, down = coordinates.steps(model, params, name, epsilon)
            ups[layer, :, : up.shape[1]], downs[layer, :, : up.shape[1]] = up.numpy(), down.numpy()
        one = {name: w[None] for name, w in params.items()}
        weights = self._effective(_flat(one, model.layer_names))
        head = np.zeros((model.num_outputs, model.num_dim))
        out = np.zeros((model.depth, model.num_dim, padded))
        compiled = coordinate_kernel.compiled(self._thresholds, int(self.tables))

        def neurons(first: int, last: int) -> None:
            compiled(
                *self._batch, weights, weights.astype(np.float64), self._sizes,
                model.weight == "binary", *self._quantizer, self.loss != "mse", len(self.inputs),
                ups, downs, first, last, epsilon, out, head,
            )  # fmt: skip

        _in_threads(
            neurons, pop.chunks(model.num_dim, -(-model.num_dim // torch.get_num_threads()))
        )
        if self.loss == "mse":
            head *= 4 * epsilon  # the loss is quadratic in the output weights
        found = [out[layer, :, : w.shape[1]] for layer, w in enumerate(layers[:-1])] + [head]
        return {
            name: torch.from_numpy(each * self._scale)
            for name, each in zip(model.layer_names, found, strict=True)
        }

    def _over_chunks(
        self, population: Population, evaluate: Any, length: int
    ) -> tuple[Tensor, Tensor]:
        size, threads = pop.size(population), torch.get_num_threads()
        chunks = pop.chunks(size, min(length, -(-size // threads)))
        pieces = [(pop.part(population, start, stop),) for start, stop in chunks]
        results = _in_threads(evaluate, pieces)
        losses, settled = (np.concatenate(each) for each in zip(*results, strict=True))
        return torch.from_numpy(losses), torch.from_numpy(settled)

    @property
    def _chunk(self) -> int:
        """Members of a chunk: a pure function of the shapes."""
        if self._by_bits:
            return _BIT_MEMBERS
        per_group = 4 if self._thresholds == 1 else 2
        widening = 16 / per_group if self.tables and self._thresholds else 1.0
        held = self._coordinates * widening
        return int(min(_CHUNK_MEMBERS, max(1, _CHUNK_FLOATS // (held + 512))))

    @functools.cached_property
    def _pairs(self) -> Any:
        """Pairs of inputs ``(blocks, columns / 2, 128)`` if all are bfloat16, otherwise None."""
        inputs = self._batch[0]
        if not (HAS_BF16 and _representable(inputs)):
            return None
        blocks, columns, _ = inputs.shape
        out = _aligned((blocks, -(-columns // 2), BLOCK), np.int32)
        words = inputs.view(np.uint32)
        out.view(np.uint32)[:] = words[:, 0::2] >> 16
        out.view(np.uint32)[:, : columns // 2] |= words[:, 1::2]
        return out

    @property
    def _by_bits(self) -> bool:
        """Whether weights and activations are both bits, and too many for a table of all codes."""
        binary = self.model.weight == "binary" and self.model.activation == "binary"
        return self.tables and self.bits and binary and 8 < self.model.num_dim <= 128

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        model = self.model
        return model.num_inputs or model.num_dim, model.num_dim, model.depth, model.num_outputs

    @property
    def _quantizer(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Thresholds as float32 and as float64, and levels."""
        activation = self.model.activation_function
        edges = np.array(activation.thresholds or (0.0,))
        return edges.astype(np.float32), edges, np.array(activation.levels or (0.0, 1.0))

    @property
    def _coordinates(self) -> int:
        return sum(rows * columns for rows, columns in self.model.shapes.values())

    @property
    def _thresholds(self) -> int:
        return len(self.model.activation_function.thresholds or ())

    def _effective(self, weights: np.ndarray) -> np.ndarray:
        if self.model.weight == "binary":
            hidden = weights[:, : weights.shape[1] - self.model.num_outputs * self.model.num_dim]
            np.copyto(hidden, np.where(hidden >= 0, 1, -1))
        return weights

    def _call(
        self, kind: int, weights: np.ndarray, exact: np.ndarray, outputs: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        out, settled = np.zeros(len(weights)), np.zeros(len(weights), np.int64)
        inputs, rows = self._batch[0], self.model.num_dim
        tables = int(self.tables and self._thresholds > 0)
        first = weights[:, : rows * inputs.shape[1]]
        pairs = tables and self._pairs is not None and _representable(first)
        factors = self._pairs if pairs else inputs
        front = _aligned((len(weights), rows * factors.shape[1]), factors.dtype)
        if self._by_bits:
            evaluate = bit_kernel.compiled()
        else:
            evaluate = kernel.compiled(self._thresholds, tables, int(pairs)).evaluate
        evaluate(
            *self._batch, factors, front, weights, exact.astype(np.float64), self._sizes,
            self.model.weight == "binary", *self._quantizer, kind, len(self.inputs), out, settled,
            np.empty((0, 0, 0)) if outputs is None else outputs,
        )  # fmt: skip
        return out * self._scale, settled


def _in_threads(function: Any, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """``function(*each)`` for all arguments, on as many threads as torch may use."""
    threads = torch.get_num_threads()
    if threads == 1 or len(arguments) == 1:
        return [function(*each) for each in arguments]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda each: function(*each), arguments))


def _blocked(tensor: Tensor, dtype: Any) -> np.ndarray:
    """``(B, n)`` to ``(blocks, n, 128)``, padded with zeros, at the start of a cache line."""
    size, width = tensor.shape
    blocks = -(-size // BLOCK)
    out = _aligned((blocks, width, BLOCK), dtype)
    for block in range(blocks):
        part = tensor[block * BLOCK : (block + 1) * BLOCK].numpy()
        out[block, :, : len(part)] = part.T
    return out


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros at the start of a cache line, which vectors then never straddle."""
    size = math.prod(shape)
    whole = np.zeros(size + 64, dtype)
    skip = (-whole.ctypes.data % 64) // whole.itemsize
    return whole[skip : skip + size].reshape(shape)


def _representable(numbers: np.ndarray) -> bool:
    """Whether float32 numbers are all bfloat16: their lower 16 bits are zero."""
    return not (numbers.view(np.uint32) & np.uint32(0xFFFF)).any()


def _finite(weights: np.ndarray) -> np.ndarray:
    """Which members are finite and no product sum of theirs can overflow; the others become 0."""
    finite: np.ndarray = np.abs(weights).max(axis=1) < LARGE
    weights[~finite] = 0.0
    return finite


def _flat(members: Params, names: tuple[str, ...]) -> np.ndarray:
    """``(P, d)``, layer after layer, whatever the order of the dict."""
    ordered = {name: members[name] for name in names}
    return pop.flatten(ordered, batch_dims=1).detach().numpy()


def _double(population: Population) -> Population:
    """A line in float64, where its members are exact; others are what float32 made them."""
    if isinstance(population, LinePopulation):
        return LinePopulation(
            {name: tensor.double() for name, tensor in population.origin.items()},
            {name: tensor.double() for name, tensor in population.direction.items()},
            population.steps,
        )
    return {name: tensor.double() for name, tensor in pop.members(population).items()}
