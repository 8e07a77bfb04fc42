"""Series that are no estimators: their order shows in lightness, for every kind of vision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from figures import _series
from tests.figures.test_style import SIMULATED, lab


@pytest.mark.parametrize("vision", SIMULATED)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_an_order_is_one_of_lightness_for_every_kind_of_vision(vision: str, count: int) -> None:
    looks = _series.ordered([str(i) for i in range(count)])
    seen = [lab(look.colour, SIMULATED[vision]) for look in looks.values()]
    lightness = [colour[0] for colour in seen]
    assert lightness == sorted(lightness, reverse=True)
    for one, other in itertools.pairwise(seen):
        assert np.linalg.norm(one - other) > 15


def test_neighbours_have_markers_of_their_own_and_a_single_series_is_dark() -> None:
    looks = list(_series.ordered(list("abcdefghij")).values())
    assert len({look.marker for look in looks}) == len(looks)
    (alone,) = _series.ordered(["a"]).values()
    assert lab(alone.colour, np.eye(3))[0] < 40
