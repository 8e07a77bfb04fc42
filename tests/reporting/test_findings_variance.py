"""Findings about gradient variance, from tables whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from gradlab.reporting import findings, findings_variance, page_tables, tables
from tests.reporting import synthetic_variance
from tests.reporting.synthetic_variance import METHODS, gradient_variance


def written(**options: object) -> dict[str, str]:
    table = gradient_variance(**options)  # type: ignore[arg-type]
    return {each.lead: each.text for each in findings.write({"gradient_variance": table})}


def test_ratios_are_paired_by_init_and_told_for_every_condition() -> None:
    found = written()
    places = found["Where the noise is"]
    # every init has its own scale, so only a paired ratio has no spread
    assert places.count("8.00 [8.00, 8.00] times on weights and "
                        "4.00 [4.00, 4.00] times with flipout") == 2  # fmt: skip
    assert "(fresh)" in places
    assert "(trained)" in places
    assert "n = 3 inits" in places
    score = found["Pathwise or score function"]
    # the best of each kind per pass: 600·100 against 1·4
    assert "score on weights, P = 100 has 15,000 [15,000, 15,000] times" in score
    assert "of pathwise on pre-activations (fresh)" in score
    assert "by 2.50 [2.50, 2.50] at α = 4 on weights (fresh)" in found["Additive or multiplicative"]
    assert "36 tests" not in found["No bias"]
    assert "108 tests" in found["No bias"]
    assert "the largest z is 0.500" in found["No bias"]
    assert ".998" in found["Reference"]


def test_one_condition_is_not_named_and_two_inits_have_no_interval() -> None:
    found = written(inits=2, students=["fresh"])
    assert "(fresh)" not in found["Where the noise is"]
    assert "is 8.00 times on weights" in found["Where the noise is"]
    assert "too few for an interval" in found["Where the noise is"]


def test_a_bias_is_called_one() -> None:
    found = written(bias_z=9.0)
    assert "No bias" not in found
    assert "In 36 of 108 tests, one for each layer and estimator, z is above 4" in found["Bias"]
    assert "z = 9.00, 25.0 % of the gradient" in found["Bias"]
    assert "and 8 more" in found["Bias"]


def test_nothing_is_said_that_the_table_does_not_support() -> None:
    assert set(written(methods=METHODS[:1])) == {"No bias", "Reference"}
    table = gradient_variance()
    table["relative_variance"] = np.nan
    (only,) = findings_variance.gradient_variance(table)
    assert only.lead == "Nothing to compare"


def test_methods_come_in_one_order() -> None:
    frame = findings_variance.annotated(gradient_variance(synthetic_variance.METHODS[::-1]))
    assert findings_variance.ordered_methods(frame) == [method["label"] for method in METHODS]


def test_the_summary_has_every_layer_and_the_largest_z() -> None:
    table = synthetic_variance.gradient_variance(inits=3)
    odd = (table["layer"] == "all") & (table["label"] == "pathwise with flipout")
    table.loc[odd & (table["init"] == 1), "bias_z"] = -7.5
    summary = tables.summarize({"gradient_variance": table})["gradient_variance"]
    assert len(summary) == 2 * 6 * 3
    assert list(summary["method"].unique()[:3]) == [
        "pathwise on weights", "pathwise with flipout", "pathwise on pre-activations",
    ]  # fmt: skip
    row = summary[(summary["method"] == "pathwise with flipout") & (summary["layer"] == "all")]
    assert set(row["largest_bias_z"]) == {-7.5}
    assert set(row["n"]) == {3}
    measured = table[odd & (table["student"] == "fresh")]["relative_variance"]
    fresh = row[row["condition"] == "fresh"].iloc[0]
    assert fresh["relative_variance"] == pytest.approx(measured.mean())
    assert fresh["relative_variance_low"] <= fresh["relative_variance"]
    (grid,) = page_tables.grids({"gradient_variance": summary})
    assert len(grid.rows) == 12
    assert [heading for heading, _ in grid.header][2:5] == [
        "all layers", "features.0", "classifier.0",
    ]  # fmt: skip
    assert "−7.50" in [entry.text for entry in grid.rows[1]]
