"""Sequential updates: which coordinates a generation searches.

A block is a half-open range of flat coordinates. Blocks take turns, one generation each; the others
keep their mean and their width meanwhile. A small block needs a small population and large steps,
at the price of one generation per block: what coordinate descent is to gradient descent.
"""

from __future__ import annotations

from gradlab.estimators.base import one_of
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer

UPDATES = ("joint", "layer_wise", "parameter_wise")


def check(update: str, block_size: int) -> None:
    """Refuse an unknown way to update, or a block size that goes with none."""
    one_of("update", update, UPDATES)
    positive_integer("block_size", block_size)
    if block_size > 1 and update != "parameter_wise":
        raise ValueError(
            f"block_size is {block_size}, and the update is {update}: only parameter_wise updates "
            "have blocks of a size to choose."
        )


def blocks(params: Params, update: str, block_size: int) -> list[tuple[int, int]]:
    """All coordinates once, in the order in which they are searched.

    ``joint`` is one block of everything, ``layer_wise`` one block per tensor, and
    ``parameter_wise`` one per ``block_size`` neighbours within a tensor.

    >>> import torch
    >>> params = {"a": torch.zeros(2, 2), "b": torch.zeros(3)}
    >>> blocks(params, "layer_wise", 1)
    [(0, 4), (4, 7)]
    >>> blocks(params, "parameter_wise", 2)
    [(0, 2), (2, 4), (4, 6), (6, 7)]
    """
    if update == "joint":
        return [(0, pop.num_coordinates(params))]
    tensors = [each for each in pop.coordinate_ranges(params).values() if each[1] > each[0]]
    if update == "layer_wise":
        return tensors
    return [
        (start + low, start + high)
        for start, stop in tensors
        for low, high in pop.chunks(stop - start, block_size)
    ]
