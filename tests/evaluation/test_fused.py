"""The compiled evaluator on other processors than this one, without Numba, and on threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from gradlab.evaluation import GaussianPopulation, LinePopulation
from gradlab.objectives import TeacherStudent

SCRIPT = textwrap.dedent("""
    import sys
    if "no numba" in sys.argv:
        sys.modules["numba"] = None
    import torch
    from gradlab.evaluation import GaussianPopulation, LinePopulation
    from gradlab.evaluation.mlp_tensors import TensorMLPEvaluator
    from gradlab.objectives import TeacherStudent

    for num_dim, activation, weight in [(11, "binary", "real")]:
        objective = TeacherStudent(num_dim, 300, 0, 0, 2, activation, weight)
        params = objective.initial_params(1)
        population = GaussianPopulation(params, 0.3, 5, 0, 10)
        wide = TensorMLPEvaluator(
            objective.model, objective.inputs.double(), objective.targets.double()
        )
        exact = wide.losses({k: w.double() for k, w in population.members().items()})
        error = (objective.losses(population) / exact - 1).abs().max()
        assert error < 1e-6, error
        found = objective.coordinate_differences(params, 0.1)
        line = LinePopulation(params, params, (0.0, 0.1))
        assert objective.decreases(params, line)[0] == 0
        print(objective._evaluator.path)
""")


def run(environment: dict[str, str], tmp_path: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, **environment, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors")
@pytest.mark.parametrize(
    ("name", "features", "lanes"),
    [("haswell", "+avx,+avx2,+fma,+sse4.2", 8), ("x86-64", "", 4)],
)
def test_processors_without_avx_512_give_the_right_losses_and_say_what_runs(
    name: str, features: str, lanes: int, tmp_path: Path
) -> None:
    if lanes == 8 and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    lines = run({"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}, tmp_path)
    assert lines == [f"compiled, vectors of {lanes} floats"]


def test_without_numba_tensor_operations_give_the_right_losses_and_say_why(tmp_path: Path) -> None:
    lines = run({}, tmp_path, "no numba")
    assert len(lines) == 1
    assert all(line.startswith("tensor operations: Numba cannot be loaded (") for line in lines)


def test_the_next_process_compiles_nothing(tmp_path: Path) -> None:
    found = []
    for _ in range(3):
        run({}, tmp_path)
        found.append(len(list(tmp_path.rglob("*.nbc"))))
    assert found[0] > 10
    assert found[1] == found[2]


@pytest.mark.parametrize("weight", ["real", "binary"])
def test_threads_and_parts_of_a_population_change_no_bit(weight: str) -> None:
    objective = TeacherStudent(12, 700, seed=0, depth=2, weight=weight)
    params, threads = objective.initial_params(1), torch.get_num_threads()
    population = GaussianPopulation(params, 0.1, 5, 0, 301, antithetic=True)
    line = LinePopulation(params, params, tuple(0.01 * i for i in range(40)))
    found = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append((objective.losses(population), objective.decreases(params, line)))
    finally:
        torch.set_num_threads(threads)
    for losses, decreases in found[1:]:
        assert torch.equal(losses, found[0][0])
        assert torch.equal(decreases, found[0][1])
    assert torch.equal(objective.losses(population.part(77, 90)), found[0][0][77:90])
