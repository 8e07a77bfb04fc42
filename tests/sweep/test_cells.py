"""The identity of a cell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.sweep.cells import canonical, group_labels, hash_of

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**50), 2**50), st.text(max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
CONFIGS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5),
)


def test_the_hash_is_the_same_on_every_machine_and_in_every_version() -> None:
    config = {"schema": 1, "seed": 0, "estimator": {"name": "nes", "sigma": 0.1}, "lr": [1e-5, 1.0]}
    text = '{"estimator":{"name":"nes","sigma":0.1},"lr":[1e-05,1],"schema":1,"seed":0}'
    assert canonical(config) == text
    assert hash_of(config) == ("e6c3609184634d45fa237675198fb9c1c743e33702b7005010bd5e97860adff7")


@given(CONFIGS)
def test_the_order_of_keys_does_not_matter(config: dict[str, object]) -> None:
    assert hash_of(dict(reversed(config.items()))) == hash_of(config)


@given(st.integers(-(2**50), 2**50))
def test_a_whole_number_is_one_value_however_it_is_written(number: int) -> None:
    assert hash_of({"a": float(number)}) == hash_of({"a": number})


@given(SCALARS, SCALARS)
def test_different_values_are_different_cells(one: object, two: object) -> None:
    same = one == two and isinstance(one, bool) == isinstance(two, bool)
    assert (hash_of({"a": one}) == hash_of({"a": two})) == same


def test_a_number_that_is_not_finite_has_no_identity() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        hash_of({"sigma": float("nan")})


def test_groups_name_only_what_varies() -> None:
    def cell(num_dim: int, name: str, **options: object) -> dict[str, object]:
        return {"objective": {"name": "teacher_student", "num_dim": num_dim, "depth": 3}, "init": 0,
                "student": {"state": "fresh"}, "estimator": {"name": name, **options}}  # fmt: skip

    labels = group_labels([
        cell(2, "ste", surrogate="steep", beta=None), cell(2, "ste", surrogate="relu", beta=None),
        cell(4, "nes", sigma=0.1),
    ])  # fmt: skip
    assert labels == [("num_dim=2", "ste surrogate=steep"), ("num_dim=2", "ste surrogate=relu"),
                      ("num_dim=4", "nes")]  # fmt: skip
    assert group_labels([cell(2, "cdg")]) == [("teacher_student", "cdg")]
