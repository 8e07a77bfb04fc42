"""What ``search_run`` compares: the methods of :mod:`gradlab.search`, and descent along a gradient.

>>> label("snes", {"sigma": 0.3, "adaptation_sampling": True})
'SNES σ=0.3 adaptation sampling'
>>> label("descent", {"estimator": {"name": "ste", "surrogate": "steep"}, "lr": 0.1})
'STE steep descent'
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from gradlab import estimators, search
from gradlab._registry import Registry
from gradlab.estimators.base import above_zero, one_of
from gradlab.estimators.bernoulli import binary_weights
from gradlab.evaluation import Params
from gradlab.objectives import Objective
from gradlab.search import GaussianES, Particles, SearchMethod
from gradlab.search.walk import RandomWalk

NORMALIZATIONS = ("tensor", "global", "none")
LIST_OPTIONS = frozenset(
    {("metropolis", "temperature"), ("metropolis", "binary_weights"),
     ("particles", "binary_weights")}
)  # fmt: skip
"""Options that take a list as one value."""
ABOUT = {
    "descent": "steps against an estimated gradient; the best of several lr is drawn",
    "gaussian_es": "a Gaussian of one fixed width, its mean moved by an optimizer",
    "metropolis": "chains that sample weights by exp(-loss/temperature); several temperatures "
                  "exchange",
    "particles": "a sample led from a prior to exp(-loss/temperature), stage by stage",
    "pgpe": "a width per coordinate that adapts, by mirrored pairs and a baseline",
    "snes": "a width per coordinate that adapts, along the natural gradient",
    "xnes": "a full covariance that adapts, along the natural gradient; for hundreds of weights",
}  # fmt: skip
"""One line on each."""
_TITLES = {
    "gaussian_es": "Gaussian ES", "metropolis": "Metropolis", "particles": "particles",
    "pgpe": "PGPE", "snes": "SNES", "xnes": "xNES",
}  # fmt: skip
_SYMBOLS = {"sigma": "σ", "population": "P", "prior_sigma": "prior σ", "temperature": "T"}


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Steps against an estimated gradient, beside which a search has to stand.

    Args:
        estimator: its name, or a table of its name and options.
        lr: the learning rate.
        normalize: divide each tensor's gradient ("tensor"), or all of it ("global"), by its norm.

    Raises:
        ValueError: an option out of range, or an estimator that does not exist.
    """

    estimator: str | Mapping[str, Any] = "ste"
    lr: float = 0.03
    normalize: str = "tensor"

    def __post_init__(self) -> None:
        above_zero("lr", self.lr)
        one_of("normalize", self.normalize, NORMALIZATIONS)
        population = self.entry.get("population")
        if isinstance(population, list | tuple) and len(population) > 1:
            raise ValueError(
                "a descent follows one gradient: give its estimator one population instead of a "
                "nested list."
            )
        self.source()

    @property
    def entry(self) -> dict[str, Any]:
        """The estimator as a cell has it: its name and all of its options."""
        given = self.estimator
        options: dict[str, Any] = {"name": given} if isinstance(given, str) else {}
        if isinstance(given, Mapping):
            options = dict(given)
        if not isinstance(options.get("name"), str):
            raise ValueError(
                f'estimator is {given!r}: write for example estimator = "ste", or '
                'estimator = {name = "ste", surrogate = "steep"}.'
            )
        return {**estimators.defaults(options["name"]), **options}

    def source(self) -> estimators.Estimator:
        """What estimates the gradient."""
        return estimators.create(**self.entry)


Entry: TypeAlias = SearchMethod | Descent
REGISTRY: Registry[Entry] = Registry("search method")
for _name in search.names():
    if _name != "gaussian_es":
        REGISTRY.register(_name)(search.REGISTRY.factory(_name))
REGISTRY.register("descent")(Descent)


@REGISTRY.register("gaussian_es")
def _gaussian_es(
    *,
    population: int = GaussianES.population,
    sigma: float = GaussianES.sigma,
    learning_rate: float = GaussianES.learning_rate,
    fitness: str = GaussianES.fitness,
    optimizer: str = GaussianES.optimizer,
) -> GaussianES:
    """Without options of the optimizer, for a spec reads a table of numbers as a range."""
    return GaussianES(population=population, sigma=sigma, learning_rate=learning_rate,
                      fitness=fitness, optimizer=optimizer)  # fmt: skip


def names() -> list[str]:
    """The registered ones, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> Entry:
    """The one called ``name``; ``ValueError`` with the nearest valid name otherwise."""
    return REGISTRY.create(name, **options)


def label(name: str, options: Mapping[str, Any]) -> str:
    """A short display name with what is unusual; a descent's lr apart."""
    made, usual = create(name, **options), REGISTRY.defaults(name)
    if isinstance(made, Descent):
        title = f"{made.source().label()} descent"
        options = {key: value for key, value in options.items() if key not in ("estimator", "lr")}
    else:
        title = _TITLES.get(name, name)
    words = [_worded(key, value) for key, value in options.items() if not _same(value, usual[key])]
    return " ".join([title, *words])


def _same(value: Any, default: Any) -> bool:
    """Whether an option has its default, which a spec may hold as a list."""
    if isinstance(value, list | tuple):
        return list(value) == (list(default) if isinstance(default, list | tuple) else [default])
    return bool(value == default)


def _worded(option: str, value: Any) -> str:
    name = _SYMBOLS.get(option, option.replace("_", " "))
    if isinstance(value, bool):
        return name if value else f"not {name}"
    if isinstance(value, list | tuple):
        return f"{name}={'/'.join(map(str, value))}"
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def fitted(method: SearchMethod, objective: Objective) -> SearchMethod:
    """The method as it runs on this objective: a walk knows which weights are binary.

    Raises:
        ValueError: options for binary weights, and the objective has none or others.
    """
    if not isinstance(method, RandomWalk):
        return method
    there = sorted(binary_weights(objective)[0])
    for name in method.binary_weights:
        if name not in there:
            raise ValueError(
                f"binary_weights names {name}, which is not among the binary weights of this "
                f"objective ({', '.join(there) or 'none'}): leave it out, or use "
                'objective.weight = "binary".'
            )
    if not there and method.flips != type(method).flips:
        raise ValueError(
            f"flips = {method.flips} is how many signs of binary weights a move flips, and this "
            'objective has real weights: leave it out, or use objective.weight = "binary".'
        )
    return replace(method, binary_weights=tuple(method.binary_weights or there))


def least_budget(method: SearchMethod, params: Params, generator: Any) -> int:
    """Forward passes below which the method has no result.

    The start, and a generation with the loss at its mean; particles have to reach their last
    target.
    """
    generations = method.generations if isinstance(method, Particles) else 1
    state = method.initial(params, generator=generator)
    return 1 + generations * (method.size(state) + 1)
