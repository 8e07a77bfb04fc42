"""The greedy discrete step against a search written as loops, and where it is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab.estimators import create
from gradlab.evaluation import Params
from gradlab.evaluation import population as pop
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees
from tests.estimators.case import as_layers


def generator() -> torch.Generator:
    return torch.Generator()


def by_loops(objective: TeacherStudent, params: Params, epsilon: float, levels: int) -> Tensor:
    """The rule of the docstring, one coordinate, one length and one sign at a time, in float64."""
    layers, flat = as_layers(objective), pop.flatten(params).double()

    def loss(weights: Tensor) -> float:
        one = pop.unflatten(weights.float()[None], params)
        return float(layers.losses(one)[0])

    start, moves = loss(flat), []
    for index in range(len(flat)):
        for level in range(1, levels + 1):
            length, best = epsilon * (level / levels), (0.0, 0.0)
            for sign in (1, -1):
                moved = flat.clone()
                moved[index] += sign * length
                best = max(best, (start - loss(moved), sign * length))
            if best[0] > 1e-12:
                moves.append((best[0] / length**2, index, best[1]))
                break
    step, spent = torch.zeros_like(flat), 0.0
    for _, index, move in sorted(moves, reverse=True):
        spent += move**2
        if spent > epsilon**2 * (1 + 1e-9):
            break
        step[index] = move
    return step


@pytest.mark.parametrize("weight", ["real", "binary"])
@pytest.mark.parametrize(("epsilon", "levels"), [(0.1, 4), (0.5, 3), (0.3, 1)])
def test_it_is_the_rule_written_as_loops(weight: str, epsilon: float, levels: int) -> None:
    objective = TeacherStudent(4, 37, seed=1, depth=2, weight=weight)
    params = {name: 0.3 * w for name, w in objective.initial_params(0).items()}
    expected = by_loops(objective, params, epsilon, levels)
    found = create("greedy_discrete", epsilon=epsilon, levels=levels).estimate(
        objective, params, generator=generator()
    )
    assert expected.any()
    torch.testing.assert_close(-referees.flat(found.gradient), expected, rtol=1e-6, atol=0)
    assert found.diagnostics["moves"] == expected.count_nonzero()


def test_a_linear_function_takes_the_steepest_coordinates() -> None:
    # every coordinate falls at the smallest length ε/3, and 9 of them are the budget
    objective = TestFunction("linear", num_dim=20)
    found = create("greedy_discrete", epsilon=0.6, levels=3).estimate(
        objective, objective.initial_params(0), generator=generator()
    )
    expected = torch.zeros(20, dtype=torch.float64)
    expected[-9:] = 0.2
    torch.testing.assert_close(found.gradient["x"], expected)
    assert found.forward_passes == 2 * 3 * 20


def test_the_smallest_length_that_falls_is_taken_not_the_best() -> None:
    # from x = 1 a quadratic falls furthest at 1, and first at 0.4
    objective = TestFunction("quadratic", num_dim=1)
    params = {"x": torch.ones(1, dtype=torch.float64)}
    found = create("greedy_discrete", epsilon=1.2, levels=3).estimate(
        objective, params, generator=generator()
    )
    assert float(found.gradient["x"]) == pytest.approx(0.4)


def test_rounds_start_where_the_one_before_ended_and_share_the_budget() -> None:
    objective = TeacherStudent(6, 500, seed=0, depth=2)
    params = objective.initial_params(0)
    here, total = params, 0.0
    for _ in range(3):
        found = create("greedy_discrete", epsilon=0.1).estimate(
            objective, here, generator=generator()
        )
        here = {name: w - found.gradient[name] for name, w in here.items()}
        total += found.forward_passes
    several = create("greedy_discrete", epsilon=0.3, steps=3).estimate(
        objective, params, generator=generator()
    )
    for name, gradient in several.gradient.items():
        torch.testing.assert_close(gradient, params[name] - here[name], rtol=0, atol=1e-6)
    assert several.forward_passes == total
    assert referees.flat(several.gradient).norm() <= 0.3 * (1 + 1e-6)
    stepped = {name: w - several.gradient[name] for name, w in params.items()}
    assert objective.loss(stepped) < objective.loss(params)


def test_a_minimum_gives_no_direction() -> None:
    objective = TestFunction("quadratic", num_dim=3)
    found = create("greedy_discrete").estimate(
        objective, {"x": torch.zeros(3, dtype=torch.float64)}, generator=generator()
    )
    assert not found.gradient["x"].any()
    assert found.diagnostics == {"moves": 0.0}


def test_a_teacher_has_nothing_to_gain() -> None:
    objective = TeacherStudent(4, 100, seed=0, depth=2)
    found = create("greedy_discrete", epsilon=0.5).estimate(
        objective, objective.teacher, generator=generator()
    )
    assert not referees.flat(found.gradient).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epsilon": 0}, "epsilon is 0: give a finite number above 0."),
        ({"levels": 0}, "levels is 0"),
        ({"steps": 1.5}, "steps is 1.5"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        create("greedy_discrete", **options)


def test_label() -> None:
    assert create("greedy_discrete").label() == "greedy discrete"
    estimator = create("greedy_discrete", epsilon=1, levels=1, steps=3)
    assert estimator.label() == "greedy discrete ε=1 1 level (3 steps)"
