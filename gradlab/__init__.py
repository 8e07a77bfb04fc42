"""gradlab measures gradient estimators for binarized networks.

Which estimator points downhill, how far, at what cost, and how sure is that? See the README for a
first run. Submodules load when they are first used, so ``import gradlab`` is quick:

>>> import gradlab
>>> gradlab.binary.surrogates.create("hardtanh")
Hardtanh(threshold=1.0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlab import (
        binary,
        data,
        diagnosis,
        estimators,
        evaluation,
        models,
        objectives,
        reporting,
        search,
        studies,
        sweep,
        training,
        variational,
    )
    from gradlab.diagnosis import diagnose

__version__ = "0.1.0"

__all__ = [
    "binary",
    "data",
    "diagnose",
    "diagnosis",
    "estimators",
    "evaluation",
    "models",
    "objectives",
    "reporting",
    "search",
    "studies",
    "sweep",
    "training",
    "variational",
]


def __getattr__(name: str) -> Any:
    # PEP 562: torch takes seconds to import, and figures must be drawn without it
    if name == "diagnose":
        return importlib.import_module("gradlab.diagnosis").diagnose
    if name in __all__:
        return importlib.import_module(f"gradlab.{name}")
    raise AttributeError(f"module 'gradlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
