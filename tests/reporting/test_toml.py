from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from gradlab.reporting.toml import dumps

SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text(max_size=20)
)
KEYS = st.text(max_size=8)
VALUES = st.one_of(SCALARS, st.lists(st.integers(), max_size=4), st.dictionaries(KEYS, SCALARS))


@given(
    st.dictionaries(
        KEYS,
        st.one_of(VALUES, st.lists(st.dictionaries(KEYS, VALUES), min_size=1, max_size=3)),
        max_size=6,
    )
)
def test_what_is_written_reads_back_the_same(spec: dict[str, object]) -> None:
    assert tomllib.loads(dumps(spec)) == spec
