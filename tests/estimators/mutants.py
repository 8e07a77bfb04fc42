"""Estimators broken on purpose, each in a way in which somebody has broken one.

A mutant patches gradlab and names the check that has to notice, and the options under which it
would otherwise pass. Several of them are in published libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlab.estimators import NES, SPSA, GradientEstimate, bernoulli, fitness_shaping
from gradlab.estimators import guided as guided_es
from gradlab.estimators import mirrored as mirrored_pairs
from gradlab.estimators import nes as nes_file
from gradlab.evaluation import GaussianPopulation, Params, Population, noise
from gradlab.objectives import TeacherStudent
from gradlab.search import XNES, SearchState, natural
from gradlab.search.natural import Step
from tests.estimators import test_conformance as battery
from tests.estimators.case import Case, smoothed
from tests.estimators.cases_directions import all_sign_patterns, guided
from tests.estimators.conformance import nes
from tests.search import test_losses, test_xnes

Break = Callable[[pytest.MonkeyPatch], None]
SPSA_CASE = Case("spsa", {}, 500.0)


@dataclass(frozen=True)
class Mutant:
    """A mistake and what finds it.

    Args:
        mistake: in a few words.
        check: a test of the battery, or of a module.
        breaks: makes the mistake, until the patch is undone.
        case: what the check is called with, if with anything.
    """

    mistake: str
    check: Callable[..., None]
    breaks: Break
    case: Case | None = None

    def __str__(self) -> str:
        return self.mistake

    def run(self, patch: pytest.MonkeyPatch) -> None:
        """The check, in what of the patch is not undone."""
        battery.run(self.check, self.case, patch)


def around(owner: Any, name: str, change: Callable[[Any], Any]) -> Break:
    """Puts what ``change`` makes of a function into its place."""
    return lambda patch: patch.setattr(owner, name, change(getattr(owner, name)))


def instead(owner: Any, name: str, other: Any) -> Break:
    """Puts something else into the place of a function."""
    return around(owner, name, lambda original: other)


def altered(
    estimator: type, change: Callable[[GradientEstimate], GradientEstimate], *, order: int = 1
) -> Break:
    """Changes every estimate of an estimator, and their order if it is -1."""

    def changed(original: Any) -> Any:
        def estimates(self: Any, *given: Any, **options: Any) -> list[GradientEstimate]:
            return [change(each) for each in original(self, *given, **options)][::order]

        return estimates

    return around(estimator, "estimates", changed)


def gradient(change: Callable[[Tensor], Tensor]) -> Callable[[GradientEstimate], GradientEstimate]:
    """Changes every tensor of a gradient."""
    return lambda found: replace(
        found, gradient={name: change(tensor) for name, tensor in found.gradient.items()}
    )


def widths_downhill(found: GradientEstimate) -> GradientEstimate:
    turned = {name: -tensor for name, tensor in (found.sigma_gradient or {}).items()}
    return replace(found, sigma_gradient=turned or None)


def without_one_over_pairs(original: Any) -> Any:
    def summed(*given: Any, **options: Any) -> list[GradientEstimate]:
        found = original(*given, **options)
        pairs = [(each.forward_passes - options["forward_passes"]) / 2 for each in found]
        return [gradient(lambda g, n=n: n * g)(e) for e, n in zip(found, pairs, strict=True)]

    return summed


def mean_of_all(losses: Tensor, fitness: str, *, antithetic: bool) -> Tensor:
    return losses.double() - losses.double().mean()


def hides_nan(original: Any) -> Any:
    def shape(losses: Tensor, fitness: str, *, antithetic: bool) -> Tensor:
        return original(losses.nan_to_num(0.0), fitness, antithetic=antithetic)

    return shape


def not_mirrored(original: Any) -> Any:
    def losses(self: TeacherStudent, population: Population) -> Tensor:
        if isinstance(population, GaussianPopulation):
            population = replace(population, antithetic=False)
        return original(self, population)

    return losses


def one_sided(original: Any) -> Any:
    def surroundings(params: Params, steps: Tensor) -> Params:
        first, second = steps.chunk(2)
        return original(params, torch.cat((first, torch.zeros_like(second))))

    return surroundings


def other_noise(original: Any) -> Any:
    def weighted(population: GaussianPopulation, weights: Tensor, *, second: bool) -> Any:
        moved = replace(population, start=population.start + 2, stop=population.stop + 2)
        return original(moved, weights, second=second)

    return weighted


def basis_of_the_transpose(directions: list[Tensor]) -> Tensor:
    # QR of (1, n) in the place of (n, 1) is ±1, and broadcasts to the same step in every coordinate
    basis, _ = torch.linalg.qr(torch.stack(directions).double())
    return basis * torch.ones(len(directions[0]), 1, dtype=torch.float64)


def back_and_forth(original: Any) -> Any:
    def estimates(self: SPSA, objective: Any, params: Params, **options: Any) -> Any:
        for tensor in params.values():  # up, down and up again, but for rounding
            tensor.add_(self.epsilon).sub_(2 * self.epsilon).add_(self.epsilon)
        return original(self, objective, params, **options)

    return estimates


def leaves_of_the_caller(original: Any) -> Any:
    def surrogate_gradient(
        self: TeacherStudent, params: Params, *given: Any, **options: Any
    ) -> Any:
        for tensor in params.values():
            tensor.requires_grad_()
        return original(self, params, *given, **options)

    return surrogate_gradient


def anew_in_every_chunk(original: Any) -> Any:
    def normal(key: int, members: tuple[int, int], *given: Any, **options: Any) -> Tensor:
        return original(key, (0, members[1] - members[0]), *given, **options)

    return normal


def elementwise_product(original: Any) -> Any:
    def step(self: XNES, spread: Tensor, *given: Any) -> Step:
        found = original(self, spread, *given)
        side = round(len(spread) ** 0.5)
        root = spread.reshape(side, side)
        factor = torch.linalg.solve(root, found.spread.reshape(side, side))
        return found._replace(spread=(root * factor).flatten())

    return step


def best_by_rank(original: Any) -> Any:
    def told(state: SearchState, losses: Tensor, *given: Any) -> tuple[SearchState, Tensor]:
        ranks = fitness_shaping.shape(losses, "centered_rank", antithetic=False)
        return original(state, ranks, *given)[0], losses

    return told


def half_the_passes(found: GradientEstimate) -> GradientEstimate:
    return replace(found, forward_passes=found.forward_passes / 2)


MUTANTS = [
    Mutant(
        "nes without 1/P",
        battery.test_no_coordinate_is_biased,
        around(NES, "_weights", lambda original: lambda self, losses, size: [
            size * row for row in original(self, losses, size)
        ]),
        nes(referee=smoothed),
    ),
    Mutant(
        "guided without 1/P",
        battery.test_no_coordinate_is_biased,
        around(guided_es, "mirrored_estimates", without_one_over_pairs),
        guided(alpha=1, sigma=0.6, form="unbiased", referee=smoothed),
    ),
    Mutant(
        "guided by QR of the transpose",
        battery.test_estimates_of_a_linear_loss_point_along_its_gradient,
        instead(guided_es, "orthonormal_basis", basis_of_the_transpose),
        guided(used=1, surrogates=["hardtanh"], alpha=0.25),
    ),
    Mutant(
        "utilities by the order, not by its inverse",
        battery.test_estimates_of_a_linear_loss_point_along_its_gradient,
        instead(fitness_shaping, "_by_rank", lambda losses, weights: weights[losses.argsort()]),
        nes(fitness="utilities"),
    ),
    Mutant(
        "ranks of sorted members for unsorted noise",
        battery.test_estimates_of_a_linear_loss_point_along_its_gradient,
        instead(fitness_shaping, "_by_rank", lambda losses, weights: weights),
        nes(fitness="centered_rank"),
    ),
    Mutant(
        "nes minus the mean of all members",
        battery.test_the_population_changes_the_spread_and_not_the_mean,
        instead(nes_file, "shape", mean_of_all),
        nes(referee=smoothed, antithetic=False),  # mirrored pairs cancel any baseline
    ),
    Mutant(
        "reinforce minus the mean of all members",
        battery.test_the_population_changes_the_spread_and_not_the_mean,
        instead(bernoulli, "shape", mean_of_all),
        Case("reinforce", {"population": 500}, 500.0, referee=smoothed, weight="binary"),
    ),
    Mutant(
        "pairs that are not mirrored",
        battery.test_no_coordinate_is_biased,
        around(TeacherStudent, "losses", not_mirrored),
        nes(referee=smoothed),
    ),
    Mutant(
        "pairs whose second member stays at w",
        battery.test_no_coordinate_is_biased,
        around(mirrored_pairs, "surroundings", one_sided),
        Case("spsa", {}, 500.0, referee=all_sign_patterns, weight="binary"),
    ),
    Mutant(
        "noise of other members than the losses",
        battery.test_no_coordinate_is_biased,
        around(nes_file, "weighted_noise", other_noise),
        nes(referee=smoothed),
    ),
    Mutant(
        "a transposed gradient",
        battery.test_no_coordinate_is_biased,
        altered(NES, gradient(lambda g: g.T.reshape(g.shape))),
        nes(2000, referee=smoothed),
    ),
    Mutant(
        "a gradient that points downhill",
        battery.test_a_small_step_against_the_gradient_lowers_the_smoothed_loss,
        altered(NES, gradient(lambda g: -g)),
        nes(fitness="utilities"),
    ),
    Mutant(
        "a sigma gradient that points downhill",
        battery.test_a_small_step_against_the_gradient_lowers_the_smoothed_loss,
        altered(NES, widths_downhill),
        nes(sigma_gradient="sigma"),
    ),
    Mutant(
        "passes counted by pairs",
        battery.test_cost_is_as_documented,
        altered(NES, half_the_passes),
        nes(),
    ),
    Mutant(
        "passes counted by pairs, in the case too",
        battery.test_no_more_is_evaluated_than_is_counted,
        altered(NES, half_the_passes),
        Case("nes", {"population": 500}, 250.0),
    ),
    Mutant(
        "nested populations largest first",
        battery.test_cost_is_as_documented,
        altered(NES, lambda found: found, order=-1),
        nes([20, 100, 500]),
    ),
    Mutant(
        "parameters moved to and fro",
        battery.test_neither_parameters_nor_objective_nor_global_random_state_change,
        around(SPSA, "estimates", back_and_forth),
        SPSA_CASE,
    ),
    Mutant(
        "parameters that ask for gradients ever after",
        battery.test_neither_parameters_nor_objective_nor_global_random_state_change,
        around(TeacherStudent, "surrogate_gradient", leaves_of_the_caller),
        Case("ste", {}, 1.0, 1.0, sampled=False),
    ),
    Mutant(
        "the same noise in every chunk",
        battery.test_chunk_size_changes_nothing_but_rounding,
        around(noise, "normal", anew_in_every_chunk),
        SPSA_CASE,
    ),
    Mutant(
        "torch's global generator",
        battery.test_a_seed_fixes_the_estimate_and_another_changes_a_sampled_one,
        instead(nes_file, "draw_key", lambda generator: int(torch.randint(2**62, ()))),
        nes(),
    ),
    Mutant(
        "torch's global generator, seeded",
        battery.test_neither_parameters_nor_objective_nor_global_random_state_change,
        instead(nes_file, "draw_key",
                lambda generator: torch.manual_seed(generator.seed()).initial_seed()),
        nes(),
    ),
    Mutant(
        "numpy's global generator",
        battery.test_neither_parameters_nor_objective_nor_global_random_state_change,
        instead(nes_file, "draw_key", lambda generator: int(np.random.randint(2**62))),
        nes(),
    ),
    Mutant(
        "the seed of the generator, not its state",
        battery.test_a_generator_used_twice_gives_independent_estimates,
        instead(nes_file, "draw_key", lambda generator: generator.initial_seed()),
        nes(),
    ),
    Mutant(
        "one sample for all seeds",
        battery.test_a_seed_fixes_the_estimate_and_another_changes_a_sampled_one,
        instead(nes_file, "draw_key", lambda generator: 0),
        nes(),
    ),
    Mutant(
        "a loss of NaN that counts as zero",
        battery.test_a_loss_that_is_not_a_number_is_not_hidden,
        around(nes_file, "shape", hides_nan),
        nes(fitness="utilities"),
    ),
    Mutant(
        "float32 for everybody",
        battery.test_estimates_of_a_linear_loss_point_along_its_gradient,
        altered(NES, gradient(torch.Tensor.float)),
        nes(),
    ),
    Mutant(
        "a label without options",
        battery.test_labels_tell_apart_all_that_changes_the_gradient,
        instead(NES, "label", lambda self: "NES"),
    ),
    Mutant(
        "xnes with an elementwise exponential",
        test_xnes.test_the_covariance_turns_into_a_rotated_ellipsoid,
        instead(torch.linalg, "matrix_exp", torch.exp),
    ),
    Mutant(
        "xnes with an elementwise product",
        test_xnes.test_the_covariance_turns_into_a_rotated_ellipsoid,
        around(XNES, "_step", elementwise_product),
    ),
    Mutant(
        "a best member by its rank in its own generation",
        test_losses.test_the_best_is_the_member_of_the_lowest_loss_and_is_never_lost,
        around(natural, "told", best_by_rank),
    ),
    Mutant(
        "a failed member's loss as it is",
        test_losses.test_a_failed_member_weighs_as_much_as_the_worst_and_is_said_once,
        instead(natural, "comparable", lambda losses, fitness: losses),
    ),
    Mutant(
        "xnes with utilities by the order",
        test_xnes.test_one_step_equals_the_formula,
        instead(fitness_shaping, "_by_rank", lambda losses, weights: weights[losses.argsort()]),
    ),
]  # fmt: skip
