"""PSA on the conformance network, whose two hidden layers it is exact for in expectation."""

from __future__ import annotations

from tests.estimators.case import Case, smoothed

CASES = [
    Case("psa", {}, 1.0, 1.0, referee=smoothed),
    Case("psa", {"passes": 4}, 4.0, 4.0, referee=smoothed),
    Case("psa", {"sigma": 0.3, "passes": 2}, 2.0, 2.0),
]
