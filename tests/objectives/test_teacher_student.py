"""The teacher-student objective: its public names, its seeds, its refusals."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from gradlab import objectives
from gradlab.binary import surrogates
from gradlab.evaluation import GaussianPopulation, LinePopulation
from gradlab.evaluation import population as pop
from gradlab.objectives import LayeredObjective, TeacherStudent, teacher_student


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_names_that_outside_scripts_rely_on() -> None:
    signature = inspect.signature(TeacherStudent)
    required = [n for n, p in signature.parameters.items() if p.default is inspect.Parameter.empty]
    assert required == ["num_dim", "batch_size", "seed"]
    contract = {"batch": 0, "depth": 3, "activation": "binary", "weight": "real"}
    assert {n: signature.parameters[n].default for n in contract} == contract
    assert list(signature.parameters)[:7] == [*required, *contract]
    objective = TeacherStudent(4, 9, 0)
    assert objective.inputs.shape == (9, 4)
    assert objective.targets.shape == (9, 1)
    assert objective.inputs.dtype == objective.targets.dtype == torch.float32
    shapes = [(4, 4), (4, 4), (4, 4), (1, 4)]
    for params in (objective.teacher, objective.initial_params(0)):
        assert list(params) == [f"layers.{layer}.weight" for layer in range(4)]
        assert [tuple(w.shape) for w in params.values()] == shapes
        assert all(w.abs().max() <= 0.5 for w in params.values())  # 1/√4
    assert isinstance(objective, LayeredObjective)


def test_teacher_inputs_and_students_have_streams_of_their_own() -> None:
    for seed in range(20):
        objective = TeacherStudent(3, 3, seed)
        for student in range(20):
            params = objective.initial_params(student)
            for name, tensor in params.items():
                assert not torch.equal(tensor, objective.teacher[name])
    states = [
        teacher_student._generator(seed, *stream).initial_seed()
        for seed in range(50)
        for stream in [(teacher_student._TEACHER,), (teacher_student._STUDENT,)]
        + [(teacher_student._INPUTS, batch) for batch in range(10)]
    ]
    assert len(set(states)) == len(states)


def test_the_seed_fixes_the_teacher_and_seed_and_batch_the_inputs() -> None:
    base = TeacherStudent(4, 50, seed=3, batch=2)
    again = TeacherStudent(4, 50, seed=3, batch=2)
    assert same(base.teacher, again.teacher)
    assert torch.equal(base.inputs, again.inputs)
    other_batch = TeacherStudent(4, 50, seed=3, batch=1)
    assert same(base.teacher, other_batch.teacher)
    assert not torch.equal(base.inputs, other_batch.inputs)
    other_seed = TeacherStudent(4, 50, seed=2, batch=2)
    assert not same(base.teacher, other_seed.teacher)
    assert not torch.equal(base.inputs, other_seed.inputs)
    # swapping the two numbers is another batch, not the same one
    assert not torch.equal(
        TeacherStudent(4, 50, seed=1, batch=2).inputs, TeacherStudent(4, 50, seed=2, batch=1).inputs
    )


def test_students_depend_on_their_own_seed_alone() -> None:
    first, second = TeacherStudent(4, 5, seed=0), TeacherStudent(4, 9, seed=1, batch=3)
    assert same(first.initial_params(7), second.initial_params(7))
    assert not same(first.initial_params(7), first.initial_params(8))


def test_the_global_random_state_is_left_alone() -> None:
    state = torch.get_rng_state()
    TeacherStudent(4, 5, seed=0).initial_params(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_are_standard_normal() -> None:
    inputs = TeacherStudent(10, 20_000, seed=0).inputs
    assert abs(float(inputs.mean())) < 4.5 / 200_000**0.5
    assert abs(float(inputs.square().mean()) - 1) < 4.5 * (2 / 200_000) ** 0.5


def test_loss_is_the_mean_squared_error_to_the_teacher() -> None:
    objective = TeacherStudent(6, 300, seed=0, depth=2)
    params = objective.initial_params(0)
    targets = objective.model.forward(objective.teacher, objective.inputs)
    torch.testing.assert_close(objective.targets, targets)
    outputs = objective.model.forward(params, objective.inputs)
    loss = objective.loss(params)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(float((outputs - targets).square().mean()), rel=1e-6)
    population = {name: torch.stack((w, objective.teacher[name])) for name, w in params.items()}
    assert objective.losses(population).tolist() == pytest.approx([float(loss), 0.0], abs=1e-12)


def test_every_kind_of_population_is_evaluated() -> None:
    objective = TeacherStudent(6, 300, seed=0, depth=2)
    params = objective.initial_params(0)
    gaussian = GaussianPopulation(params, 0.1, 3, 0, 7)
    line = LinePopulation(params, objective.teacher, (0.0, 0.5))
    for population, size in [(gaussian, 7), (line, 2), (gaussian.members(), 7)]:
        assert objective.losses(population).shape == (size,)
        decreases = objective.decreases(params, population)
        torch.testing.assert_close(
            decreases, objective.loss(params) - objective.losses(population), rtol=1e-4, atol=1e-6
        )


def test_a_surrogate_gradient_does_not_depend_on_its_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objective = TeacherStudent(6, 500, seed=0, depth=2)
    params = objective.initial_params(0)
    whole = objective.surrogate_gradient(params, surrogates.create("hardtanh"))
    chunks = pop.chunks
    monkeypatch.setattr(pop, "chunks", lambda total, length: chunks(total, 33))
    pieces = objective.surrogate_gradient(params, surrogates.create("hardtanh"))
    for name in params:
        torch.testing.assert_close(whole[name], pieces[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_dim": 0}, r"^num_dim is 0: give a whole number of at least 1\.$"),
        ({"batch_size": 0}, r"^batch_size is 0: give a whole number of at least 1\.$"),
        ({"batch_size": 2.5}, r"^batch_size is 2\.5: give a whole number of at least 1\.$"),
        ({"seed": -1}, r"^seed is -1: give a whole number of at least 0\.$"),
        ({"seed": 0.5}, r"^seed is 0\.5: give a whole number of at least 0\.$"),
        ({"batch": -2}, r"^batch is -2: give a whole number of at least 0\.$"),
        ({"depth": 0}, r"^depth is 0: give a whole number of at least 1\.$"),
        ({"activation": "binry"}, r"^unknown activation 'binry': did you mean 'binary'\? Valid: "),
        ({"weight": "Binary"}, r"^unknown weight 'Binary': did you mean 'binary'\? Valid: "),
        ({"batchsize": 3}, "did you mean 'batch_size'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    valid: dict[str, Any] = {"num_dim": 2, "batch_size": 3, "seed": 0}
    with pytest.raises(ValueError, match=sentence):
        objectives.create("teacher_student", **(valid | options))


def test_seeds_may_be_numpy_integers() -> None:
    seeded = TeacherStudent(2, 3, seed=np.int64(4))
    assert same(seeded.teacher, TeacherStudent(2, 3, seed=4).teacher)


def test_parameters_of_another_network_are_refused() -> None:
    objective = TeacherStudent(2, 3, seed=0, depth=1)
    params = objective.initial_params(0)
    with pytest.raises(ValueError, match=r"^seed is -1: give a whole number of at least 0\.$"):
        objective.initial_params(-1)
    del params["layers.1.weight"]
    params["extra"] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match=r"\(missing: layers\.1\.weight; unknown: extra\): start from objective\.initial_par",
    ):
        objective.loss(params)
    wide = TeacherStudent(3, 3, seed=0, depth=1).initial_params(0)
    sentence = r"^parameter layers\.0\.weight has shape \(3, 3\), not \(2, 2\): start from"
    for call in (
        objective.loss,
        lambda p: objective.surrogate_gradient(p, None),
        lambda p: objective.coordinate_differences(p, 0.1),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(wide)


def test_nan_weights_give_a_nan_loss() -> None:
    objective = TeacherStudent(4, 30, seed=0)
    for name in objective.layer_names:
        params = objective.initial_params(0)
        params[name][0, 0] = torch.nan
        assert objective.loss(params).isnan()


def test_names() -> None:
    assert {"teacher_student", "test_function"} <= set(objectives.names())
    assert objectives.defaults("teacher_student")["depth"] == 3
    with pytest.raises(ValueError, match="unknown objective 'teacher': did you mean"):
        objectives.create("teacher")
