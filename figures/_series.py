"""Colours of series that are no estimators: widths, weight decays, whatever has an order.

From light to dark as the order goes, in a ramp whose lightness falls evenly, so that it reads in
greyscale and for every kind of colour vision; markers tell neighbours apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import _style

RAMP = [(0.0, "#eab13f"), (0.33, "#d0623f"), (0.66, "#8a2f6b"), (1.0, "#1f1450")]
MARKERS = "osD^vPX<>*"


def ordered(names: Sequence[str]) -> dict[str, _style.Style]:
    """One style per name, in their order; a single one is dark."""
    last = len(names) - 1
    return {
        name: _style.Style(
            _style.shade(i / last if last else 0.66, RAMP), MARKERS[i % len(MARKERS)]
        )
        for i, name in enumerate(names)
    }
