"""Estimators by name."""

from __future__ import annotations

from gradlab import estimators
from gradlab.diagnosis.entries import DEFAULT_ESTIMATORS, OwnBackward, entries


def test_names_tables_and_estimators_are_all_taken() -> None:
    made = estimators.create("cdg")
    found = entries(
        ["own", "hardtanh", {"name": "hardtanh", "threshold": 0.5}, "nes", made, "hardtanh",
         {"name": "ste", "surrogate": "steep", "weight_surrogate": "identity"}],
        0.03, 0.02,
    )  # fmt: skip
    assert [each.label for each in found] == [
        "own backward", "STE hardtanh", "STE hardtanh(threshold=0.5)", "NES 500", "CDG",
        "STE steep / weights identity",
    ]  # fmt: skip
    assert isinstance(found[0].estimator, OwnBackward)
    assert found[3].estimator == estimators.create("nes", sigma=0.03)
    assert found[4].estimator is made


def test_widths_of_the_diagnosis_apply_where_none_is_given() -> None:
    given = [{"name": "nes", "sigma": 0.5}, "cdg", {"name": "ste", "surrogate": "matched"}]
    found = entries(given, 0.03, 0.02)
    assert [each.label for each in found] == ["NES 500 σ=0.5", "CDG", "matched STE"]
    assert found[1].estimator == estimators.create("cdg", epsilon=0.02)
    assert found[2].estimator == estimators.create(
        "ste", surrogate={"name": "matched", "sigma": 0.03}
    )


def test_only_defaults_may_be_left_out() -> None:
    assert any(each.optional for each in entries(DEFAULT_ESTIMATORS, 0.1, 0.1))
    assert not any(each.optional for each in entries(list(DEFAULT_ESTIMATORS), 0.1, 0.1))
