"""The cost–quality plane in seconds: cosine of the hidden layers' gradient against time.

As the plane in passes, but with the time that the estimates took on the machine that ran the study,
the median over inits: exact differences along all coordinates are far cheaper than their passes
say, and estimators with arithmetic of their own are dearer.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from . import _plane, cost_quality

TABLES = cost_quality.TABLES


def draw(tables: Mapping[str, pd.DataFrame]) -> tuple[Figure, pd.DataFrame]:
    """Draw the figure.

    Raises:
        ValueError: there is nothing to draw.
    """
    return cost_quality.draw(tables, _plane.SECONDS)
