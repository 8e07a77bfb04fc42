r"""The plain evolution strategy: mirrored pairs, one fixed width, and any optimizer on the mean.

With members :math:`\mu \pm \sigma\varepsilon_k` and weights w by fitness (Salimans, Ho, Chen, Sidor
and Sutskever, "Evolution strategies as a scalable alternative to reinforcement learning", 2017)

.. math:: g = \frac1{\sigma P}\sum_i w_i\,(\pm\varepsilon_i)

is handed to a torch optimizer as the gradient. With centred fitness it is the unbiased gradient of
the smoothed loss that :class:`gradlab.estimators.nes.NES` estimates. Members are never held in
memory: :meth:`GaussianES.ask` returns a :class:`~gradlab.evaluation.population.GaussianPopulation`,
which the compiled kernels evaluate.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=3)
>>> method = GaussianES(population=20, learning_rate=0.1)
>>> state = method.initial(objective.initial_params(0), generator=torch.Generator().manual_seed(0))
>>> for _ in range(100):
...     state = method.tell(state, objective.losses(method.ask(state)))
>>> bool(objective.loss(state.params()) < 0.01 * objective.loss(objective.initial_params(0)))
True
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.estimators.base import above_zero, one_of
from gradlab.estimators.fitness_shaping import FITNESS, shape
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import GaussianPopulation, Params
from gradlab.search.losses import comparable, told
from gradlab.search.natural import check_population
from gradlab.search.noise import rows, sums
from gradlab.search.state import SearchState, begin

# They need a closure or sparse gradients.
_UNFIT = {"lbfgs", "sparseadam"}


def _optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    classes = {name.lower(): each for name, each in vars(torch.optim).items()
               if inspect.isclass(each) and issubclass(each, torch.optim.Optimizer)}  # fmt: skip
    return {name: each for name, each in classes.items() if name not in _UNFIT | {"optimizer"}}


@dataclass(frozen=True, kw_only=True)
class GaussianES:
    """An isotropic evolution strategy of fixed width.

    Args:
        population: members of a generation, two for each direction.
        sigma: standard deviation, in units of the parameters.
        learning_rate: the optimizer's.
        fitness: "centered_rank", "centered", "raw", "z_score" or "utilities".
        optimizer: a class of ``torch.optim`` by its lower-case name.
        optimizer_options: further options of that class.

    Raises:
        ValueError: an option out of range, or an optimizer or an option of it that does not exist.
    """

    population: int = 100
    sigma: float = 0.1
    learning_rate: float = 0.01
    fitness: str = "centered_rank"
    optimizer: str = "adam"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_population(self.population, mirrored=True)
        above_zero("sigma", self.sigma)
        above_zero("learning_rate", self.learning_rate)
        one_of("fitness", self.fitness, FITNESS)
        one_of("optimizer", self.optimizer, tuple(_optimizers()))
        valid = set(inspect.signature(_optimizers()[self.optimizer]).parameters) - {"params", "lr"}
        for option in self.optimizer_options:
            if option not in valid:
                raise ValueError(unknown(f"option of optimizer {self.optimizer}", option, valid))

    def initial(self, params: Params, *, generator: torch.Generator) -> SearchState:
        """The state of a search that starts at ``params``; takes one key from the generator.

        Raises:
            ValueError: a parameter is not finite or no floating-point number.
        """
        return begin(params, generator, torch.tensor([float(self.sigma)]))

    def size(self, state: SearchState) -> int:
        """Members of a generation."""
        return self.population

    def sigma_of(self, state: SearchState) -> float:
        """The standard deviation."""
        return float(self.sigma)

    def widths(self, state: SearchState) -> Tensor:
        """The standard deviation, ``(1,)`` float64."""
        return state.spread

    def ask(
        self, state: SearchState, start: int = 0, stop: int | None = None
    ) -> GaussianPopulation:
        """Members ``start`` … ``stop - 1`` of the next generation, all by default."""
        stop = self.population if stop is None else stop
        first, last = state.drawn + start, state.drawn + stop
        mean = state.params()
        return GaussianPopulation(mean, float(self.sigma), state.key, first, last, antithetic=True)

    def tell(self, state: SearchState, losses: Tensor) -> SearchState:
        """The state after a generation.

        Args:
            state: what :meth:`ask` was given.
            losses: of the members that it returned, in their order; NaN ranks last.

        Raises:
            ValueError: another number of losses, or none that is finite.
        """
        size, dims = self.population, len(state.mean)
        after, losses = told(state, losses, size, lambda *part: self.ask(state, *part).members())
        weights = shape(comparable(losses, self.fitness), self.fitness, antithetic=True) / size
        noise = rows(state, (0, dims), antithetic=True)
        gradient, _ = sums(noise, dims, weights, weights)
        mean, extra = self._stepped(state, gradient / self.sigma)
        return replace(after, mean=mean, extra=extra, drawn=state.drawn + size,
                       generation=state.generation + 1)  # fmt: skip

    def _stepped(self, state: SearchState, gradient: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean after a step of the optimizer, and the optimizer's memory by tensor and name."""
        leaves = {
            name: each.clone() for name, each in pop.unflatten(state.mean, state.best).items()
        }
        for name, each in pop.unflatten(gradient, state.best).items():
            leaves[name].grad = each.clone()
        make: Any = _optimizers()[self.optimizer]
        optimizer = make(list(leaves.values()), lr=self.learning_rate, **self.optimizer_options)
        for key, tensor in state.extra.items():
            # the optimizer steps in place, and a state never changes
            memory, _, name = key.partition("/")
            optimizer.state[leaves[name]][memory] = tensor.clone()
        optimizer.step()
        extra = {
            f"{memory}/{name}": torch.as_tensor(value)
            for name, leaf in leaves.items()
            for memory, value in optimizer.state[leaf].items()
            if value is not None
        }
        return pop.flatten(leaves), extra
