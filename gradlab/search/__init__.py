"""Whole searches: evolution strategies that adapt their mean and width, and chains of samples.

:mod:`gradlab.estimators` asks what one gradient is worth; here the same search distributions are
optimized from start to end, or weights are sampled by how low their loss is. A method is a frozen
dataclass of options with pure functions over an explicit :class:`SearchState`:

- ``state = method.initial(params, generator=generator)``
- ``members = method.ask(state)``, the same members whenever asked
- ``state = method.tell(state, objective.losses(members))``

``state.params()`` is the mean, ``state.best`` the best parameters evaluated so far. Noise is a
function of the state's key and of a count, so a state that is stored as tensors and whole numbers
(:meth:`SearchState.tensors`, :meth:`SearchState.numbers`) goes on to the same bits.
:func:`minimize` is the loop around it.

==============  =============================================  ======================
method          search distribution                            members from
==============  =============================================  ======================
``snes``        one standard deviation per coordinate          samples, or reused ones
``xnes``        a full covariance                              samples, or reused ones
``pgpe``        one standard deviation per coordinate          mirrored pairs
``gaussian_es`` one standard deviation, fixed                  mirrored pairs
``metropolis``  exp(-loss/temperature), sampled                a random walk of chains
``particles``   the same, annealed from a prior                a walk, resampled
==============  =============================================  ======================

>>> import torch
>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=500, seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> trace = minimize(objective, objective.initial_params(0), create("snes"), 50, generator)
>>> trace.rows[-1].best_loss < trace.rows[0].loss
True
"""

from __future__ import annotations

from typing import Any

from gradlab._registry import Registry
from gradlab.search.gaussian_es import GaussianES
from gradlab.search.loop import SearchMethod, Trace, TraceRow, advance, evaluate, minimize
from gradlab.search.metropolis import Metropolis
from gradlab.search.particles import Particles
from gradlab.search.pgpe import PGPE
from gradlab.search.snes import SNES
from gradlab.search.state import SearchState
from gradlab.search.xnes import XNES

REGISTRY: Registry[SearchMethod] = Registry("search method")
REGISTRY.register("gaussian_es")(GaussianES)
REGISTRY.register("metropolis")(Metropolis)
REGISTRY.register("particles")(Particles)
REGISTRY.register("pgpe")(PGPE)
REGISTRY.register("snes")(SNES)
REGISTRY.register("xnes")(XNES)

__all__ = [
    "PGPE",
    "REGISTRY",
    "SNES",
    "XNES",
    "GaussianES",
    "Metropolis",
    "Particles",
    "SearchMethod",
    "SearchState",
    "Trace",
    "TraceRow",
    "advance",
    "create",
    "defaults",
    "evaluate",
    "minimize",
    "names",
]


def names() -> list[str]:
    """The registered search methods, sorted."""
    return REGISTRY.names()


def defaults(name: str) -> dict[str, Any]:
    """Every option of a search method with its default."""
    return REGISTRY.defaults(name)


def create(name: str, **options: Any) -> SearchMethod:
    """The search method called ``name``.

    Raises:
        ValueError: unknown name or option (the nearest valid one is suggested), or one out of
            range.

    >>> create("xnes", sigma=0.5).sigma
    0.5
    >>> create("sens")
    Traceback (most recent call last):
    ValueError: unknown search method 'sens': did you mean 'snes'? Valid: ...
    """
    return REGISTRY.create(name, **options)
