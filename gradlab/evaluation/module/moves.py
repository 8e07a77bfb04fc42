r"""The outputs of a layer when single weights change, and which weights make the same one.

Changing one weight moves one channel of the layer's output. A *copy* of the output holds one move
per channel, so that all channels are followed at a time; a *move* is one change of one channel.

- Where the parameter itself multiplies, or its sign does, a weight adds a known multiple of its
  column (:mod:`gradlab.evaluation.module.layers`): a move per weight and direction.
- Where every row of the weight that multiplies depends on the same row of the parameter alone, as
  with one scale :math:`\alpha_o` per channel times a sign, a weight changes its whole row, and many
  do it in the same way: all those of a channel that keep their sign move :math:`\alpha_o` alike.
  Equal rows are one move.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from gradlab.evaluation.module.graph import ModuleGraph, Schedule, State
from gradlab.evaluation.module.layers import Layer, Patches, find_layer, layer_arguments

# Rows that differ by less than so many units in the last place are taken for equal: the same sum
# of absolute weights in another order is.
_SLACK = {torch.float32: (torch.int32, 4), torch.float64: (torch.int64, 5)}


class Moves(Protocol):
    """All moves of one parameter's layer.

    Attributes:
        node: the layer.
        input: its input's node.
        channel: the dimension of the output that a row of the parameter belongs to.
        ids: which move each copy has in each channel, ``(copies, O)``; -1 for none.
        count: number of moves.
        overhead: copies of the output that making one takes.
    """

    node: Node
    input: Node
    channel: int
    ids: Tensor
    count: int
    overhead: int

    def outputs(self, copies: range, inputs: Tensor, output: Tensor) -> Tensor:
        """The layer's output in some copies, ``(copies b, ...)``, given that without a move."""

    def differences(self, jumps: Tensor) -> Tensor:
        """Raised minus lowered, ``(O, K)``, from a number per move."""


def find_moves(
    graph: ModuleGraph,
    state: State,
    name: str,
    parameter: Tensor,
    epsilon: float,
    index: Tensor | None = None,
) -> Moves | None:
    """The moves of a parameter whose layer lends itself to them; None for others.

    Args:
        graph: the module.
        state: parameters and buffers by name.
        name: the parameter.
        parameter: its value.
        epsilon: by how much each weight is raised and lowered.
        index: flat coordinates that are wanted; all if None.
    """
    wanted = None
    if index is not None:
        wanted = torch.zeros(parameter.numel(), dtype=torch.bool, device=parameter.device)
        wanted[index] = True
        wanted = wanted.reshape(parameter.shape[0] if parameter.dim() else 1, -1)
    layer = find_layer(graph, name, state)
    if layer is not None:
        steps = layer.steps(graph, parameter, epsilon, state)
        return ColumnMoves(layer, parameter.shape, steps, wanted)
    rows = find_row_layer(graph, name, state)
    return None if rows is None else RowMoves(rows, parameter, epsilon, state, wanted)


class ColumnMoves:
    """A move per weight and direction.

    Args:
        layer: the layer.
        shape: the parameter's.
        steps: by how much the weight that multiplies changes, up and down, ``(O, K)`` each.
        wanted: which weights, ``(O, K)``; all if None.
    """

    overhead = 1

    def __init__(
        self, layer: Layer, shape: torch.Size, steps: tuple[Tensor, Tensor], wanted: Tensor | None
    ) -> None:
        self.layer = layer
        self.node, self.input, self.channel = layer.node, layer.input, layer.channel
        self.shape = shape
        self.steps = torch.stack(steps, dim=1).flatten(1)
        rows, width = steps[0].shape
        device = steps[0].device
        self.count = 2 * rows * width
        self.whole = wanted is None
        moves = torch.arange(self.count, device=device).reshape(rows, 2, width)
        if wanted is None:
            # a copy moves the same weight of all channels: that is one operation
            self.places = moves[0].T.flatten()[:, None].expand(-1, rows)
        else:
            chosen = wanted[:, None].expand(-1, 2, -1).flatten(1)
            self.places = packed([row.nonzero()[:, 0] for row in chosen])
        self.ids = numbered(self.places, moves)

    def outputs(self, copies: range, inputs: Tensor, output: Tensor) -> Tensor:
        """See :class:`Moves`."""
        columns = self.layer.columns(inputs, self.shape, output.shape)
        steps, width = self.steps.to(output.dtype), self.steps.shape[1] // 2
        if self.whole:
            shape = [1] * output.dim()
            shape[self.channel] = -1
            places = self.places[copies.start : copies.stop, 0].tolist()
            return torch.cat(
                [output + steps[:, at].reshape(shape) * columns(at % width) for at in places]
            )
        moved = output.expand(len(copies), *output.shape).clone()
        rows = moved.movedim(self.channel if self.channel < 0 else self.channel + 1, 1)
        for copy, number in enumerate(copies):
            for row in (self.places[number] >= 0).nonzero()[:, 0].tolist():
                at = int(self.places[number, row])
                column = columns(at % width).movedim(self.channel, 0)
                rows[copy, row] += steps[row, at] * column[row if len(column) > 1 else 0]
        return moved.flatten(0, 1)

    def differences(self, jumps: Tensor) -> Tensor:
        """See :class:`Moves`."""
        found = jumps.reshape(len(self.steps), 2, -1)
        return found[:, 0] - found[:, 1]


def packed(places: Sequence[Tensor]) -> Tensor:
    """What each copy moves in each channel, from a list per channel; -1 for nothing.

    >>> packed([torch.tensor([5, 7]), torch.tensor([3])]).tolist()
    [[5, 3], [7, -1]]
    """
    copies = max(len(each) for each in places)
    found = places[0].new_full((copies, len(places)), -1)
    for row, each in enumerate(places):
        found[: len(each), row] = each
    return found


def numbered(places: Tensor, moves: Tensor) -> Tensor:
    """The moves ``(copies, O)`` at places of ``moves``, ``(O, 2, K)``; -1 where there is none."""
    found = moves.flatten(1).gather(1, places.clamp_min(0).T).T
    return torch.where(places >= 0, found, -1)


@dataclass(frozen=True)
class RowLayer:
    """A linear layer or convolution, each row of whose weight depends on one row of a parameter.

    Attributes:
        graph: what it is part of.
        node: the layer.
        input: its input's node.
        weight: the node of the weight that multiplies.
        name: the parameter.
        patches: of a convolution.
    """

    graph: ModuleGraph
    node: Node
    input: Node
    weight: Node
    name: str
    patches: Patches | None

    @functools.cached_property
    def _schedule(self) -> Schedule:
        return Schedule.of(self.graph.needed({self.weight}), frozenset({self.weight}))

    def effective(self, parameter: Tensor, state: State) -> Tensor:
        """The weight that multiplies."""
        values = self.graph.run(self._schedule, {}, {**state, self.name: parameter})
        found: Tensor = values[self.weight]
        return found


def find_row_layer(graph: ModuleGraph, name: str, state: State) -> RowLayer | None:
    """The layer of a parameter that it reaches row by row; None if it is no such layer.

    That rows depend on rows is tried out: mixing the rows of two parameters must mix the rows of
    their weights.
    """
    live = graph.needed({graph.result})
    dependent: set[Node] = set()
    for node in live:
        if name in graph.reads(node) or any(each in dependent for each in node.all_input_nodes):
            dependent.add(node)
    layers = [node for node in live if node in dependent and layer_arguments(node) is not None]
    if not layers:
        return None
    arguments = layer_arguments(layers[0])
    assert arguments is not None
    weight = arguments["weight"]
    if not isinstance(weight, Node) or weight not in dependent:
        return None
    others = {each for key in ("input", "bias") if isinstance(each := arguments.get(key), Node)}
    inside = dependent & set(graph.needed({weight}))
    leaving = {user for node in inside for user in node.users} - inside
    if others & dependent or leaving & set(live) != {layers[0]}:
        return None
    if graph.placeholder in graph.needed({weight}):
        return None
    patches = None
    if "stride" in arguments:
        patches = Patches(*(arguments[key] for key in ("stride", "padding", "dilation", "groups")))
        if patches.groups != 1:
            return None
    found = RowLayer(graph, layers[0], arguments["input"], weight, name, patches)
    return found if _by_rows(found, state) else None


def _by_rows(layer: RowLayer, state: State) -> bool:
    own = state[layer.name]
    generator = torch.Generator().manual_seed(0)
    other = own + torch.randn(own.shape, generator=generator).to(own) * (own.abs().mean() + 0.1)
    first, second = layer.effective(own, state), layer.effective(other, state)
    if first.shape != own.shape or own.dim() < 2:
        return False
    for _ in range(3):
        mask = torch.rand(len(own), generator=generator).to(own.device) < 0.5
        mask = mask.reshape(-1, *[1] * (own.dim() - 1))
        mixed = layer.effective(torch.where(mask, own, other), state)
        if not torch.equal(mixed, torch.where(mask, first, second)):
            return False
    return True


class RowMoves:
    """Moves of whole rows, equal ones joined.

    Args:
        layer: the layer.
        parameter: ``(O, ...)``.
        epsilon: the half-width of the differences.
        state: parameters and buffers by name.
        wanted: which weights, ``(O, K)``; all if None.
    """

    overhead = 3  # the convolution of all rows, the same copy by copy, and its sum with the output

    def __init__(
        self,
        layer: RowLayer,
        parameter: Tensor,
        epsilon: float,
        state: State,
        wanted: Tensor | None,
    ) -> None:
        self.layer = layer
        self.node, self.input = layer.node, layer.input
        self.channel = -1 if layer.patches is None else 1
        self.parameter = parameter
        self.state = state
        self.epsilon = epsilon
        self.base = layer.effective(parameter, state)
        rows = len(parameter)
        width = parameter.numel() // rows
        if wanted is None:
            wanted = torch.ones(rows, width, dtype=torch.bool, device=parameter.device)
        self._number(wanted)

    def _number(self, wanted: Tensor) -> None:
        """Give every weight and direction its move, and every copy its moves."""
        rows, width = wanted.shape
        device = wanted.device
        moved = torch.zeros(rows, 2, width, dtype=torch.bool, device=device)
        keys = torch.zeros(rows, 2, width, dtype=torch.int64, device=device)
        generator = torch.Generator().manual_seed(0)
        factors = torch.randint(-(2**62), 2**62, (width,), generator=generator).to(device)
        base = self.base.reshape(rows, -1)
        for column in wanted.any(dim=0).nonzero()[:, 0].tolist():
            for direction in range(2):
                place = torch.full((rows,), direction * width + column, device=device)
                changed = self._changed(place).reshape(rows, -1)
                moved[:, direction, column] = (changed != base).any(dim=1) & wanted[:, column]
                keys[:, direction, column] = _fingerprint(changed, factors)
        # -1 where the row stays, or nobody asks
        moves = torch.full((rows, 2 * width), -1, dtype=torch.int64, device=device)
        examples: list[Tensor] = []  # of every row, one place of each of its moves
        self.count = 0
        for row in range(rows):
            places = moved[row].flatten().nonzero()[:, 0]
            found, inverse = torch.unique(keys[row].flatten()[places], return_inverse=True)
            moves[row, places] = self.count + inverse
            examples.append(places.new_zeros(len(found)).scatter_(0, inverse, places))
            self.count += len(found)
        self.moves = moves.reshape(rows, 2, width)
        self.places = packed(examples)
        self.ids = numbered(self.places, self.moves)

    def _changed(self, places: Tensor) -> Tensor:
        """The weight that multiplies, with one weight of every row raised or lowered.

        Args:
            places: of every row, direction times K plus weight; -1 leaves it as it is.
        """
        rows = len(self.parameter)
        flat = self.parameter.reshape(rows, -1).clone()
        chosen = (places >= 0).nonzero()[:, 0]
        direction, column = places[chosen] // flat.shape[1], places[chosen] % flat.shape[1]
        flat[chosen, column] += (1.0 - 2.0 * direction.to(flat.dtype)) * self.epsilon
        return self.layer.effective(flat.reshape(self.parameter.shape), self.state)

    def outputs(self, copies: range, inputs: Tensor, output: Tensor) -> Tensor:
        """See :class:`Moves`."""
        joined = torch.cat([self._changed(self.places[copy]) - self.base for copy in copies])
        size, rows = len(copies), len(self.parameter)
        patches = self.layer.patches
        if patches is None:
            moved = F.linear(inputs, joined)
            moved = moved.reshape(*moved.shape[:-1], size, rows).movedim(-2, 0)
        else:
            moved = F.conv2d(patches.pad(inputs), joined, None, patches.stride, 0, patches.dilation)
            moved = moved.reshape(len(moved), size, rows, *moved.shape[2:]).movedim(1, 0)
        return (moved + output).flatten(0, 1)

    def differences(self, jumps: Tensor) -> Tensor:
        """See :class:`Moves`."""
        # a row that stays has no move, -1, whose jump is the zero at the end
        found = torch.cat((jumps, jumps.new_zeros(1)))[self.moves]
        return found[:, 0] - found[:, 1]


def _fingerprint(rows: Tensor, factors: Tensor) -> Tensor:
    """A number per row ``(O, K)``, equal for rows that are equal up to rounding."""
    kind: Any = _SLACK.get(rows.dtype)
    if kind is None:
        rows, kind = rows.float(), _SLACK[torch.float32]
    integer, bits = kind
    whole = rows.contiguous().view(integer).long()
    # products and sums wrap around; shifts bring high bits, such as that of the sign, down to
    # where multiplying spreads them: another row has the same number with probability 2⁻⁶⁴
    mixed = ((whole + 2 ** (bits - 1)) >> bits) ^ factors
    for factor, shift in ((-0x40A7B892E31B1A47, 31), (-0x6B2FB644ECCEEE15, 29)):
        mixed = mixed ^ (mixed >> shift)
        mixed = mixed * factor
    found: Tensor = (mixed ^ (mixed >> 32)).sum(dim=1)
    return found
