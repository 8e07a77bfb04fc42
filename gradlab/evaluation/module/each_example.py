"""Every example in a pass of its own, as a batch of one, so that it can have its own parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from gradlab.evaluation.module.program import quiet_vmap


def each_example(
    function: Callable[[dict[Any, Any], dict[str, Tensor]], Any],
    values: Mapping[Any, Any],
    kinds: Mapping[Any, Any],
    own: Mapping[str, Tensor],
    *,
    batched: bool = True,
) -> Any:
    """A function of one example's values, for all examples.

    Args:
        function: of values like ``values``, but with one example, and of one example's row of every
            tensor in ``own``; returns tensors with one row, in tuples and dicts.
        values: what is known of all examples.
        kinds: how each value grows with the number of examples, see
            :func:`gradlab.evaluation.module.channelwise.growth`.
        own: tensors with a row for every example.
        batched: all examples in one pass, by ``torch.func.vmap``; otherwise one after the other.

    Returns:
        What the function returns, with a row for every example.

    >>> values = {"x": torch.tensor([1.0, 2.0]), "shift": torch.tensor(1.0)}
    >>> kinds = {"x": "examples", "shift": "fixed"}
    >>> own = {"w": torch.tensor([10.0, 20.0])}
    >>> each_example(lambda v, o: v["x"] * o["w"] + v["shift"], values, kinds, own)
    tensor([11., 41.])
    """
    rows: list[Tensor] = []
    for node, kind in kinds.items():
        _take_rows(values[node], kind, rows)

    def one(rows: list[Tensor], own: dict[str, Tensor]) -> Any:
        left = iter(rows)
        return function(
            {node: _one_row(values[node], kind, left) for node, kind in kinds.items()}, own
        )

    own = dict(own)
    if batched:
        with quiet_vmap():
            found = torch.func.vmap(one)(rows, own)
        return tree_map(lambda tensor: tensor.flatten(0, 1), found)
    size = len(next(iter(own.values())))
    each = [
        one([row[i] for row in rows], {name: tensor[i] for name, tensor in own.items()})
        for i in range(size)
    ]
    return tree_map(lambda *parts: torch.cat(parts), *each)


def _take_rows(value: Any, kind: Any, rows: list[Tensor]) -> None:
    """Append the tensors with a row per example, in the order of :func:`_one_row`."""
    if kind == "examples":
        rows.append(value)
    elif isinstance(kind, tuple):
        for each, inner in zip(value, kind, strict=True):
            _take_rows(each, inner, rows)


def _one_row(value: Any, kind: Any, rows: Iterator[Tensor]) -> Any:
    """A value for one example, whose rows come from ``rows``."""
    if kind == "examples":
        return next(rows)[None]
    if kind == "count":
        return 1
    if isinstance(kind, tuple):
        made = [_one_row(each, inner, rows) for each, inner in zip(value, kind, strict=True)]
        return type(value)(made)
    return value
