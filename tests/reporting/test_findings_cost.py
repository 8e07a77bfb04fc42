"""What a direction costs, by whom, and what hides it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from gradlab.reporting import columns, findings_cost

STE = {"estimator": "ste", "surrogate": "hardtanh", "label": "STE hardtanh"}
STEEP = {"estimator": "ste", "surrogate": "steep", "label": "STE steep"}
MATCHED = {"estimator": "ste", "surrogate": "matched", "label": "matched STE"}


def nes(population: int) -> dict[str, Any]:
    return {"estimator": "nes", "population": population, "label": f"NES {population}"}


def local(passes: int) -> dict[str, Any]:
    return {"estimator": "nes_local", "passes": passes, "label": f"local NES ({passes} passes)"}


def rows(
    method: dict[str, Any], cosines: list[float], passes: float, **further: Any
) -> list[dict[str, Any]]:
    """A method's rows, one for each init."""
    usual = {
        "num_dim": 8, "student": "fresh", "layer": "all", "reference": "smoothed",
        "surrogate": None, "population": None, "passes": None, "forward_passes": passes,
        "backward_passes": 1.0 if method["estimator"] == "ste" else 0.0, "norm_ratio": 1.0,
        "reference_norm": 1.0,
    }  # fmt: skip
    return [
        {**usual, **method, "cosine": value, "init": init, **further}
        for init, value in enumerate(cosines)
    ]


def found(*tables: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The sentences by lead."""
    frame = columns.annotate(pd.DataFrame([row for table in tables for row in table]))
    result: dict[str, list[str]] = {}
    for finding in findings_cost.write(frame):
        result.setdefault(finding.lead, []).append(finding.text)
    return result


def test_the_cheapest_that_is_resolved_overtakes() -> None:
    sentences = found(
        rows(STE, [0.7, 0.72, 0.71], 1), rows(STEEP, [0.5, 0.5, 0.52], 1),
        rows(MATCHED, [0.95, 0.96, 0.95], 1),
        # on the mean ahead of hardtanh, but not in every init
        rows(local(1), [0.9, 0.9, 0.6], 2), rows(local(4), [0.9, 0.91, 0.92], 5),
        rows(nes(100), [0.2, 0.2, 0.2], 100), rows(nes(1000), [0.6, 0.6, 0.6], 1000),
    )  # fmt: skip
    assert sentences["At what cost"] == [
        "At num_dim 8, by the cosine to the smoothed gradient: NES in weights overtakes STE steep "
        "at 1,000 passes, stays behind STE hardtanh and matched STE up to 1,000 passes; "
        "local NES overtakes STE hardtanh at 5 passes, overtakes STE steep at 2 passes, stays "
        "behind matched STE up to 5 passes (n = 3 inits)."
    ]


def test_what_inits_do_not_resolve_is_no_defeat() -> None:
    steep = rows(STEEP, [0.7, 0.72, 0.71], 1)
    (text,) = found(steep, rows(local(1), [0.9, 0.9, 0.6], 2))["At what cost"]
    assert "local NES is not told apart from STE steep by 2 passes" in text
    two = found(rows(STE, [0.7, 0.7], 1), rows(local(1), [0.9, 0.9], 2))
    assert "At what cost" not in two, "two inits have no interval"


def test_backward_passes_count_twice() -> None:
    noisy = rows(local(2), [0.9, 0.9, 0.9], 3, backward_passes=1.5)
    (text,) = found(rows(STE, [0.7, 0.7, 0.7], 1), noisy)["At what cost"]
    assert "local NES overtakes STE hardtanh at 6 passes" in text


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ([0.68, 0.70, 0.69], "a difference of .02 [.02, .02], resolved, and little"),
        ([0.5, 0.5, 0.5], "a difference of .21 [.20, .22], resolved ("),
        ([0.75, 0.5, 0.71], "a difference of .06 [−.05, .22], not resolved"),
    ],
)
def test_surrogates_are_told_apart_as_far_as_inits_do(others: list[float], verdict: str) -> None:
    (text,) = found(rows(STE, [0.7, 0.72, 0.71], 1), rows(STEEP, others, 1))["Surrogates"]
    assert verdict in text
    assert "of 2 surrogates STE hardtanh is nearest to the smoothed gradient (.71 [.70" in text


def test_surrogates_that_point_away_are_named() -> None:
    tables = rows(STE, [0.1, -0.1, 0.2], 1), rows(STEEP, [-0.4, -0.5, -0.3], 1)
    assert "STE steep points away from it" in found(*tables)["Surrogates"][0]
    both = rows(STE, [-0.2, -0.1, -0.2], 1), tables[1]
    assert "all of them point away from it" in found(*both)["Surrogates"][0]
    assert "Surrogates" not in found(tables[0], rows(MATCHED, [0.9] * 3, 1))


def test_noise_is_told_from_a_missing_gradient() -> None:
    trained = {"student": "converged", "reference_norm": 0.2}
    sentences = found(
        rows(nes(100), [0.6, 0.7, 0.8], 100, norm_ratio=1.5), rows(local(8), [0.99] * 3, 9),
        rows(nes(100), [0.0, 0.1, 0.2], 100, norm_ratio=7.0, **trained),
        rows(local(8), [0.97, 0.96, 0.98], 9, **trained),
    )  # fmt: skip
    assert sentences["Noise or no gradient"] == [
        "Converged student at num_dim 8: NES 100 has a cosine of .10 [.00, .20] to the smoothed "
        "gradient and 7.0 times its length. The gradient is there: local NES (8 passes) has .97 "
        "[.96, .980] for 9 passes. It is 5.0 times shorter than that of the fresh student, where "
        "NES 100 has .70 [.60, .80] (n = 3 inits)."
    ]
    weak = found(rows(nes(100), [0.0, 0.1, 0.2], 100), rows(local(8), [0.3] * 3, 9))
    assert "The gradient is there" not in weak["Noise or no gradient"][0]


def test_tables_that_say_nothing_of_it() -> None:
    layer = rows(STE, [0.5] * 3, 1, layer="layers.0.weight")
    two = [*rows(STE, [0.5] * 3, 1), *rows(STE, [0.4] * 3, 1, reference="cdg")]
    unmeasured = rows(STE, [float("nan")] * 3, 1)
    for table in (layer, two, unmeasured):
        assert found(table) == {}
    older = [
        {key: value for key, value in row.items() if key != "reference_norm"}
        for row in rows(nes(100), [0.1] * 3, 100)
    ]
    assert "times shorter" not in found(older)["Noise or no gradient"][0]
    assert "n = 2 inits, too few" in found(rows(STE, [0.7, 0.7], 1), rows(STEEP, [0.6, 0.6], 1))[
        "Surrogates"
    ][0]  # fmt: skip
