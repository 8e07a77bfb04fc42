"""Losses of a population of networks on a GPU, see :mod:`gradlab.evaluation.gpu`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab._registry import unknown
from gradlab.evaluation import population as pop
from gradlab.evaluation.gpu.launch import (
    LARGE,
    ceil,
    halves,
    launch,
    modules,
    shared_bytes,
    sizes,
    torch_half,
    triton_half,
    width,
)
from gradlab.evaluation.gpu.noise import units_of
from gradlab.evaluation.mlp_tensors import TensorMLPEvaluator
from gradlab.evaluation.population import GaussianPopulation, LinePopulation, Population
from gradlab.models.mlp import BinarizedMLP

EXAMPLES = 2**14
"""Examples that one program evaluates; drawing a weight costs as much as some 400 uses of it."""
PRECISIONS = ("exact", "rounded")
LOSSES = ("mse", "cross_entropy")
_WIDTH = 128
# Rows of a tensor-core instruction of one warpgroup (four warps): tiles are one or two of them.
_ROWS = 64
# What the system takes of a multiprocessor's shared memory for each program.
_SYSTEM_BYTES = 2**10
# Bytes of stored members at a time.
_STORED_BYTES = 2**26
# Noise ends before this.
_NOISE_REACH = 6.0


def unsupported(model: BinarizedMLP, inputs: Tensor, population: Population) -> str | None:
    """None if :func:`mlp_losses` can evaluate this, else why not, in one line."""
    num_inputs, num_outputs = sizes(model)
    if max(num_inputs, model.num_dim, num_outputs) > _WIDTH:
        return f"layers are at most {_WIDTH} wide."
    tensors = [inputs, *_tensors(population)]
    if any(tensor.dtype != torch.float32 for tensor in tensors):
        return "inputs and weights are float32."
    if any(tensor.device != inputs.device for tensor in tensors):
        return "inputs and weights are on one device."
    return None


def _tensors(population: Population) -> list[Tensor]:
    if isinstance(population, GaussianPopulation):
        return list(population.mean.values())
    if isinstance(population, LinePopulation):
        return [*population.origin.values(), *population.direction.values()]
    return list(population.values())


def rounding_over_sigma(population: Population) -> float:
    """Root mean square rounding of members to bfloat16 in units of sigma, over eight members.

    Infinite for populations without a sigma, whose members are meant as they are.

    >>> population = GaussianPopulation({"w": torch.full((100,), 0.15)}, 0.1, 1, 0, 8)
    >>> 0.002 < rounding_over_sigma(population) < 0.004
    True
    """
    if not isinstance(population, GaussianPopulation):
        return float("inf")
    some = pop.flatten(population.part(0, min(8, len(population))).members(), batch_dims=1)
    rounding = (some.bfloat16().to(some.dtype) - some).double()
    return float(rounding.square().mean().sqrt()) / population.sigma


def mlp_losses(
    model: BinarizedMLP,
    inputs: Tensor,
    targets: Tensor,
    population: Population,
    *,
    loss: str = "mse",
    precision: str = "exact",
) -> Tensor:
    """Mean loss of every member on one batch, ``(P,)`` float64.

    Args:
        model: the architecture, at most 128 wide.
        inputs: ``(B, num_inputs)`` float32.
        targets: ``(B, num_outputs)`` float32, or for cross-entropy int64 labels ``(B,)``.
        population: any kind, float32; a :class:`GaussianPopulation` is drawn where it is used.
        loss: "mse", the mean over examples and outputs, or "cross_entropy".
        precision: "exact", or "rounded" for hidden weights of a Gaussian population rounded to
            bfloat16 (in the first layer of mirrored pairs only their noise).

    Raises:
        ValueError: an unknown option, or what :func:`unsupported` names.
    """
    if loss not in LOSSES:
        raise ValueError(unknown("loss", loss, LOSSES))
    if precision not in PRECISIONS:
        raise ValueError(unknown("precision", precision, PRECISIONS))
    reason = unsupported(model, inputs, population)
    if reason is not None:
        raise ValueError(f"this network cannot use the GPU kernel: {reason} Use MLPEvaluator.")
    if precision == "rounded" and not isinstance(population, GaussianPopulation):
        raise ValueError(
            "only members of a Gaussian population may be rounded: use precision = 'exact'."
        )
    problem = _Problem(model, inputs, targets, loss, precision)
    if not problem.bounded:
        return problem.tensors.losses(population)
    if isinstance(population, GaussianPopulation):
        largest = torch.stack([w.abs().amax() for w in population.mean.values()]).amax()
        if not float(largest) + _NOISE_REACH * population.sigma < LARGE:
            return problem.tensors.losses(population)
        # the kernel numbers coordinates by layer
        in_order = tuple(population.mean) == model.layer_names
        if in_order and problem.fits(twins=1 + population.antithetic):
            return problem.drawn(population)
    losses = [
        problem.stored(pop.part(population, low, high))
        for low, high in pop.chunks(pop.size(population), problem.members_stored)
    ]
    return torch.cat(losses)


class _Problem:
    """A network and a batch, padded, with the shapes of its programs."""

    def __init__(
        self, model: BinarizedMLP, inputs: Tensor, targets: Tensor, loss: str, precision: str
    ) -> None:
        self.model, self.inputs, self.targets, self.loss = model, inputs, targets, loss
        self.tensors = TensorMLPEvaluator(model, inputs, targets, loss)
        self.num_inputs, self.num_outputs = sizes(model)
        self.k_in, self.k = width(self.num_inputs), width(model.num_dim)
        self.k_out = width(self.num_outputs)
        if loss == "mse" and self.num_outputs == 1:
            self.k_out = 1  # a sum, not a product
        levels = model.activation_function.levels
        self.steps = 0 if levels is None else -1 if levels[0] < 0 else len(levels) - 1
        self.parts = 3 if precision == "exact" else 1
        self.weight_parts = 1 if model.weight == "binary" else self.parts
        self.batch = len(inputs)
        self.padded_batch = ceil(self.batch, 2 * _ROWS) * 2 * _ROWS
        self.bounded = bool(inputs.abs().amax() < LARGE)
        # Parts of a member's weights, first layer and one hidden layer.
        self.first_size = self.weight_parts * self.k_in * self.k
        self.hidden_size = self.weight_parts * self.k * self.k
        self.member_size = self.first_size + (model.depth - 1) * self.hidden_size

    def unit_bytes(self, twins: int) -> int:
        """Shared memory of the weights of one member or pair."""
        firsts = 1 if twins == 2 and self.model.weight == "real" else twins
        head = 0 if self.k_out == 1 else 3 * self.k_out * self.k
        hidden = self.member_size - self.first_size
        return 2 * (firsts * self.first_size + twins * (hidden + head))

    def tile_bytes(self, rows: int, twins: int, stages: int) -> int:
        """Shared memory of the inputs of a tile and of x @ mean, one after the other or ahead."""
        widths = self.k_in, self.k if twins == 2 and self.model.weight == "real" else 0
        return 4 * rows * (sum(widths) if stages == 2 else max(widths))

    def fits(self, twins: int) -> bool:
        """Whether a unit's weights stay in shared memory."""
        tile = self.tile_bytes(2 * _ROWS, twins, 1)
        return self.unit_bytes(twins) + tile <= shared_bytes(self.inputs.device)

    def program(self, twins: int) -> dict[str, int]:
        """Units and examples of a program, its warps and stages.

        A chain of products and signs leaves the tensor cores idle half the time, so three programs
        should share a multiprocessor: three times 128 threads with 168 registers (what the loop
        needs; drawing may spill), and a third of its shared memory. Two units to a program halve
        the reads of examples, some 260 bytes for 20 thousand operations. Reading them one tile
        ahead (two stages) matters least, as the other programs go on meanwhile. Wide layers run
        alone, with eight warps.
        """
        unit, room = self.unit_bytes(twins), shared_bytes(self.inputs.device)
        for group, stages in ((2, 2), (2, 1), (1, 2), (1, 1)):
            needed = group * unit + self.tile_bytes(_ROWS, twins, stages) + _SYSTEM_BYTES
            if 3 * needed <= room + _SYSTEM_BYTES:
                shape = {"group": group, "tile": _ROWS, "num_warps": 4, "num_stages": stages}
                return shape | {"registers": 168}
        ahead = unit + self.tile_bytes(2 * _ROWS, twins, 2) <= room
        return {"group": 1, "tile": 2 * _ROWS, "num_warps": 8, "num_stages": 1 + ahead}

    @property
    def members_stored(self) -> int:
        """Members of a population of tensors at a time."""
        return max(1, _STORED_BYTES // (4 * self.member_size))

    def drawn(self, population: GaussianPopulation) -> Tensor:
        """Losses of members that the programs draw themselves."""
        twins = 1 + population.antithetic
        first, units = units_of(population)
        shared = twins == 2 and self.model.weight == "real"
        base = self._base(population.mean[self.model.layer_names[0]]) if shared else None
        mean = pop.flatten(population.mean)
        total = self._run(
            mean, mean, base, units, twins, drawn=True, shared=shared,
            sigma=float(population.sigma), key=population.key, first=first,
        )  # fmt: skip
        skipped = population.start - first * twins
        return total[skipped : skipped + len(population)]

    def stored(self, population: Population) -> Tensor:
        """Losses of members that are read, a chunk of them."""
        members = pop.members(population)
        good = torch.stack([_all_below(w) for w in members.values()]).all(dim=0)
        weights = self.model.effective_weights(members)
        names = self.model.layer_names
        # members that could overflow are none in this sum: their own losses replace it
        clean = {name: weights[name].where(_as(good, weights[name]), 0.0) for name in names}
        parts = [
            self._parts(clean[name], self.k if layer else self.k_in)
            for layer, name in enumerate(names[:-1])
        ]
        heads = clean[names[-1]].contiguous()
        total = self._run(torch.cat(parts, dim=1), heads, None, len(good), 1)
        bad = (~good).nonzero()[:, 0]
        if len(bad):
            some = {name: w[bad] for name, w in members.items()}
            total[bad] = self.tensors.losses(some)
        return total

    def _parts(self, weight: Tensor, rows: int) -> Tensor:
        """``(P, outputs, inputs)`` as parts ``(P, parts · rows · k)``, padded and transposed."""
        padding = (0, rows - weight.shape[2], 0, self.k - weight.shape[1])
        rest = F.pad(weight, padding).transpose(1, 2)
        found = []
        for _ in range(self.weight_parts):
            found.append(rest.bfloat16())
            rest = rest - found[-1].float()
        return torch.stack(found, dim=1).to(torch_half()).flatten(1)

    def _base(self, mean: Tensor) -> Tensor:
        """Inputs @ mean of the first layer, rounded once, padded."""
        base = torch.empty(self.batch, mean.shape[0], device=mean.device)
        for low, high in pop.chunks(self.batch, EXAMPLES):
            base[low:high] = self.inputs[low:high].double() @ mean.double().T
        return self._padded(base, self.k)

    def _padded(self, tensor: Tensor, width: int) -> Tensor:
        return F.pad(
            tensor, (0, width - tensor.shape[1], 0, self.padded_batch - self.batch)
        ).contiguous()

    def _run(
        self, weights: Tensor, heads: Tensor, base: Tensor | None, units: int, twins: int, *,
        drawn: bool = False, shared: bool = False, sigma: float = 0.0, key: int = 0, first: int = 0,
    ) -> Tensor:  # fmt: skip
        inputs = self._padded(self.inputs, self.k_in)
        targets = self.targets
        if self.loss == "mse":
            targets = self._padded(targets, self.k_out)
        else:
            targets = F.pad(targets, (0, self.padded_batch - self.batch))
        shape = self.program(twins)
        chunks = ceil(self.batch, EXAMPLES)
        partial = torch.empty(chunks, units * twins, dtype=torch.float64, device=inputs.device)
        launch(
            modules()[1].losses_kernel, (ceil(units, shape["group"]), chunks), inputs.device,
            inputs, inputs if base is None else base, targets, weights, heads, partial,
            sigma, *halves(key), *halves(first), units, self.batch, 0,
            num_inputs=self.num_inputs, num_dim=self.model.num_dim, num_outputs=self.num_outputs,
            depth=self.model.depth, k_in=self.k_in, k=self.k, k_out=self.k_out, steps=self.steps,
            binary=self.model.weight == "binary", drawn=drawn, twins=twins, shared=shared,
            streamed=not (drawn or self.fits(twins)), entropy=self.loss != "mse",
            parts=self.parts, half=triton_half(),
            tiles=EXAMPLES // shape["tile"], **shape,
        )  # fmt: skip
        return partial.sum(dim=0) / self.batch


def _all_below(weight: Tensor) -> Tensor:
    # NaN compares false, so one reduction finds NaN, infinity and numbers that could overflow.
    found: Tensor = weight.flatten(1).abs().amax(dim=1) < LARGE
    return found


def _as(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (like.dim() - 1))
