"""Diagnosing one's own network: which gradient estimator points downhill on it.

:func:`diagnose` takes any ``nn.Module`` with signs, a loss and a batch; ``gradlab.diagnose`` is the
same function.
"""

from __future__ import annotations

from gradlab.diagnosis.entries import DEFAULT_ESTIMATORS
from gradlab.diagnosis.measuring import COLUMNS, Diagnosis, diagnose

__all__ = ["COLUMNS", "DEFAULT_ESTIMATORS", "Diagnosis", "diagnose"]
