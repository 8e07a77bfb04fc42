"""Gradient estimators of binarized networks, one file each.

>>> {"cdg", "nes", "ste"} <= set(names())
True
>>> create("nes", population=100).label()
'NES 100'
>>> create("ness")
Traceback (most recent call last):
    ...
ValueError: unknown estimator 'ness': did you mean 'nes'? Valid: ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradlab._registry import Registry
from gradlab.estimators.arm import ARM, DisARM
from gradlab.estimators.base import Estimator, GradientEstimate, OneEstimate, cosine
from gradlab.estimators.cdg import CDG
from gradlab.estimators.forward_gradient import ForwardGradient
from gradlab.estimators.greedy_discrete import GreedyDiscrete
from gradlab.estimators.guided import GuidedES
from gradlab.estimators.gumbel_softmax import GumbelSoftmax
from gradlab.estimators.local_expectation import LocalExpectation
from gradlab.estimators.low_rank_nes import LowRankNES
from gradlab.estimators.moment_nes import MomentNES
from gradlab.estimators.moment_propagation import MomentPropagation
from gradlab.estimators.multi_step_ste import MultiStepSTE
from gradlab.estimators.nes import NES
from gradlab.estimators.nes_cdg import NESCDG
from gradlab.estimators.nes_local import NESLocal
from gradlab.estimators.psa import PSA
from gradlab.estimators.random_cdg import RandomCDG
from gradlab.estimators.rao_blackwell_nes import RaoBlackwellNES
from gradlab.estimators.regression_nes import RegressionNES
from gradlab.estimators.reinforce import REINFORCE
from gradlab.estimators.reinmax import ReinMax
from gradlab.estimators.spsa import SPSA
from gradlab.estimators.sr_ste import SRSTE
from gradlab.estimators.ste import STE
from gradlab.estimators.ste_mean_nes import STEMeanNES
from gradlab.estimators.switching import Switching

REGISTRY: Registry[Estimator] = Registry("estimator", group="gradlab.estimators")
for _name, _factory in {
    "arm": ARM,
    "cdg": CDG,
    "disarm": DisARM,
    "forward_gradient": ForwardGradient,
    "greedy_discrete": GreedyDiscrete,
    "guided": GuidedES,
    "gumbel_softmax": GumbelSoftmax,
    "local_expectation": LocalExpectation,
    "low_rank_nes": LowRankNES,
    "moment_nes": MomentNES,
    "moment_propagation": MomentPropagation,
    "multi_step_ste": MultiStepSTE,
    "nes": NES,
    "nes_cdg": NESCDG,
    "nes_local": NESLocal,
    "psa": PSA,
    "random_cdg": RandomCDG,
    "rao_blackwell_nes": RaoBlackwellNES,
    "regression_nes": RegressionNES,
    "reinforce": REINFORCE,
    "reinmax": ReinMax,
    "spsa": SPSA,
    "sr_ste": SRSTE,
    "ste": STE,
    "ste_mean_nes": STEMeanNES,
    "switching": Switching,
}.items():
    REGISTRY.register(_name)(_factory)

LIST_OPTIONS = frozenset(
    {
        ("guided", "population"),
        ("guided", "surrogates"),
        ("low_rank_nes", "population"),
        ("nes", "population"),
        ("nes_local", "layers"),
        ("regression_nes", "population"),
        ("spsa", "population"),
        ("ste_mean_nes", "population"),
        ("switching", "population"),
    }
)
"""Options whose value may itself be a list; in a sweep they are not an axis."""

__all__ = [
    "ARM",
    "CDG",
    "LIST_OPTIONS",
    "NES",
    "NESCDG",
    "PSA",
    "REGISTRY",
    "REINFORCE",
    "SPSA",
    "SRSTE",
    "STE",
    "DisARM",
    "Estimator",
    "ForwardGradient",
    "GradientEstimate",
    "GreedyDiscrete",
    "GuidedES",
    "GumbelSoftmax",
    "LocalExpectation",
    "LowRankNES",
    "MomentNES",
    "MomentPropagation",
    "MultiStepSTE",
    "NESLocal",
    "OneEstimate",
    "RandomCDG",
    "RaoBlackwellNES",
    "RegressionNES",
    "ReinMax",
    "STEMeanNES",
    "Switching",
    "cosine",
    "create",
    "defaults",
    "label",
    "names",
]


def names() -> list[str]:
    """The registered estimators, sorted."""
    return REGISTRY.names()


def defaults(name: str) -> dict[str, Any]:
    """Every option of an estimator with its default."""
    return REGISTRY.defaults(name)


def create(name: str, **options: Any) -> Estimator:
    """The estimator called ``name``.

    Raises:
        ValueError: unknown name or option (the nearest valid one is suggested), or one out of
            range.
    """
    return REGISTRY.create(name, **options)


def label(name: str, options: Mapping[str, Any]) -> str:
    """The display name of an estimator with its options.

    >>> label("ste", {"surrogate": "matched"})
    'matched STE'
    """
    return create(name, **options).label()
