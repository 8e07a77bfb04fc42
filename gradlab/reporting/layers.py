"""Layers by name: their order from input to output, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from gradlab.reporting.problems import short_name

JOINED = ("hidden", "all")  # what gradient_quality calls groups of layers


def layer_name(layer: str) -> str:
    """``layers.0.weight`` as ``1``, the way papers count; other names without their endings.

    >>> layer_name("layers.0.weight"), layer_name("all"), layer_name("cells.0.first.odd.weight")
    ('1', 'all', 'cells.0.first.odd')
    """
    match = re.fullmatch(r"layers\.(\d+)\.weight", str(layer))
    return str(int(match[1]) + 1) if match else short_name(layer)


def layer_title(layer: str) -> str:
    """A layer as the title of a panel or column.

    >>> [layer_title(layer) for layer in ("layers.0.weight", "hidden", "cells.0.first.odd.weight")]
    ['layer 1', 'hidden layers', 'cells.0.first.odd']
    """
    if layer in JOINED:
        return f"{layer} layers"
    name = layer_name(layer)
    return f"layer {name}" if name.isdigit() else name


def layer_order(frame: pd.DataFrame) -> list[str]:
    """The distinct layers, first to last, then the groups ``hidden`` and ``all``.

    Args:
        frame: rows with ``layer`` and, where a network's names do not say it, ``depth_index``.
    """
    depth = depths(frame)

    def position(layer: str) -> tuple[int, float, list[tuple[int, str]]]:
        parts = [(int(p), "") if p.isdigit() else (0, p) for p in re.split(r"(\d+)", layer)]
        group = JOINED.index(layer) + 1 if layer in JOINED else 0
        return group, depth.get(layer, np.inf), parts

    return sorted(frame["layer"].dropna().astype(str).unique(), key=position)


def depths(frame: pd.DataFrame) -> dict[str, int]:
    """The ``depth_index`` of every layer that has one."""
    if "depth_index" not in frame:
        return {}
    known = frame[frame["depth_index"].notna() & ~frame["layer"].isin(JOINED)]
    first = known.drop_duplicates("layer").set_index("layer")["depth_index"]
    return {str(layer): int(index) for layer, index in first.items()}


def single_layers(frame: pd.DataFrame) -> list[str]:
    """The distinct layers without the groups of layers."""
    return [layer for layer in layer_order(frame) if layer not in JOINED]


def tick_names(frame: pd.DataFrame) -> dict[str, str]:
    """A short name of every layer: a network's by depth, since their names are long."""
    depth = depths(frame)
    return {layer: str(depth[layer]) if layer in depth else layer_name(layer)
            for layer in layer_order(frame)}  # fmt: skip


def spread(layers: Sequence[str], most: int) -> list[str]:
    """At most ``most`` of the layers, evenly spaced from first to last, groups always kept.

    >>> spread(["a", "b", "c", "d", "e", "all"], 4)
    ['a', 'c', 'e', 'all']
    """
    groups = [layer for layer in layers if layer in JOINED]
    single = [layer for layer in layers if layer not in JOINED]
    room = max(1, most - len(groups))
    if len(single) <= room:
        return list(layers)
    chosen: Iterable[int] = np.unique(np.linspace(0, len(single) - 1, room).round().astype(int))
    return [*(single[i] for i in chosen), *groups]
