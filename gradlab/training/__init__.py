"""Training: one loop, schedules, checkpoints, metrics; a run is one folder.

- :mod:`~gradlab.training.spec` reads a TOML spec, with ``key=value`` overrides;
- :mod:`~gradlab.training.setup` checks it and makes everything that a run needs;
- :mod:`~gradlab.training.loop` is the loop, :mod:`~gradlab.training.gradients` where its gradients
  come from: backpropagation, or any registered estimator;
- :mod:`~gradlab.training.folder` fills the folder, and goes on where a killed run stopped;
- :mod:`~gradlab.training.weights` keeps weights with the name of their network,
  :mod:`~gradlab.training.noise` draws their noise in another way,
  :mod:`~gradlab.training.evaluation` judges them, :mod:`~gradlab.training.images` reads images to
  classify.

Importing this package does not import torch; its functions do.

>>> "mnist_mlp" in shipped_trainings()
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradlab._toml import SpecError
from gradlab.training.spec import TrainingSpec, from_dict, load, shipped_trainings

if TYPE_CHECKING:
    from gradlab.training.evaluation import evaluate, predict
    from gradlab.training.files import FileProblem
    from gradlab.training.folder import Interrupted, TrainingResult, run
    from gradlab.training.loop import Diverged, Moment
    from gradlab.training.setup import Datasets, check
    from gradlab.training.weights import build, load_weights, save_weights

_HOMES = {
    "Datasets": "setup",
    "Diverged": "loop",
    "FileProblem": "files",
    "Interrupted": "folder",
    "Moment": "loop",
    "TrainingResult": "folder",
    "build": "weights",
    "check": "setup",
    "evaluate": "evaluation",
    "load_weights": "weights",
    "predict": "evaluation",
    "run": "folder",
    "save_weights": "weights",
}

__all__ = [
    "Datasets",
    "Diverged",
    "FileProblem",
    "Interrupted",
    "Moment",
    "SpecError",
    "TrainingResult",
    "TrainingSpec",
    "build",
    "check",
    "evaluate",
    "from_dict",
    "load",
    "load_weights",
    "predict",
    "run",
    "save_weights",
    "shipped_trainings",
]


def __getattr__(name: str) -> Any:
    # PEP 562: torch takes seconds to import, and a spec can be read without it
    if name in _HOMES:
        return getattr(importlib.import_module(f"gradlab.training.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'gradlab.training' has no attribute {name!r}")
