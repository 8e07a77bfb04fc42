"""Every estimator of gradlab's own has its line."""

from __future__ import annotations

from gradlab import estimators
from gradlab.estimators.about import ABOUT


def test_every_estimator_has_a_line() -> None:
    assert sorted(ABOUT) == estimators.names()
    for name, about in ABOUT.items():
        assert about.unbiased_for, name
        assert about.cost, name
