"""gradlab measures gradient estimators for binarized networks.

Which estimator points downhill, how far, at what cost, and how sure is that? See the README for a
first run. Submodules load when they are first used, so ``import gradlab`` is quick:

>>> import gradlab
>>> gradlab.binary.surrogates.create("hardtanh")
Hardtanh(threshold=1.0)
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradlab import (
        binary,
        data,
        estimators,
        evaluation,
        models,
        objectives,
        reporting,
        studies,
        sweep,
        training,
        variational,
    )

__version__ = "0.1.0"

__all__ = [
    "binary",
    "data",
    "estimators",
    "evaluation",
    "models",
    "objectives",
    "reporting",
    "studies",
    "sweep",
    "training",
    "variational",
]


def __getattr__(name: str) -> ModuleType:
    # PEP 562: torch takes seconds to import, and figures must be drawn without it
    if name in __all__:
        return importlib.import_module(f"gradlab.{name}")
    raise AttributeError(f"module 'gradlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
