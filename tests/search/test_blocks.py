from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlab.search.blocks import UPDATES, blocks, check


@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.sampled_from(UPDATES),
       st.integers(1, 4))  # fmt: skip
def test_blocks_cover_every_coordinate_once_and_stay_within_tensors(
    sizes: list[int], update: str, block_size: int
) -> None:
    params = {f"t{place}": torch.zeros(size) for place, size in enumerate(sizes)}
    found = blocks(params, update, block_size)
    assert [i for low, high in found for i in range(low, high)] == list(range(sum(sizes)))
    ends = {sum(sizes[: place + 1]) for place in range(len(sizes))}
    if update == "joint":
        assert len(found) == 1
    else:
        assert ends <= {high for _, high in found}
    if update == "parameter_wise":
        assert max(high - low for low, high in found) <= block_size


def test_an_unknown_update_and_an_unused_block_size_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown update 'layerwise': did you mean 'layer_wise'"):
        check("layerwise", 1)
    with pytest.raises(ValueError, match="only parameter_wise updates have blocks"):
        check("layer_wise", 3)
    with pytest.raises(ValueError, match="block_size is 0"):
        check("parameter_wise", 0)
