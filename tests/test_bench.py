"""``gradlab bench``: every path has a rate, in a table and as JSON, and mistakes are sentences."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradlab import cli
from gradlab.evaluation import GaussianPopulation
from gradlab.objectives import TeacherStudent
from gradlab.sweep import machine

Call = Callable[..., tuple[int, str, str]]
PATHS = {
    machine.DEFAULT, machine.WITHOUT_TABLES, machine.TENSORS, machine.LOOP, machine.BINARY
}  # fmt: skip


@pytest.fixture(scope="module")
def rates() -> machine.MachineRates:
    """A measurement of small networks on a small batch."""
    return machine.measure(quick=True, num_dims=(2, 16), batch_size=512)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    rates: machine.MachineRates,
) -> Call:
    """Calls the command line with rates that were measured before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def measured(device: str, threads: int, *, quick: bool) -> machine.MachineRates:
        return dataclasses.replace(rates, device=device, threads=threads)

    monkeypatch.setattr(machine, "measure", measured)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


def test_rates_are_positive_and_finite(rates: machine.MachineRates) -> None:
    assert {(rate.num_dim, rate.path) for rate in rates.paths} == {
        (num_dim, path) for num_dim in (2, 16) for path in PATHS
    }
    for rate in rates.paths:
        numbers = rate.fastest, rate.milliseconds, rate.slowest, rate.gflops, rates.share(rate)
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert rate.fastest <= rate.milliseconds <= rate.slowest
        # operations per member over seconds per member, by hand
        by_hand = 2 * 512 * (2 * rate.num_dim**2 + rate.num_dim) / (rate.milliseconds / 1000) / 1e9
        assert rate.gflops == pytest.approx(by_hand)


def test_the_peak_is_the_fastest_float32_product(rates: machine.MachineRates) -> None:
    singles = {each.gflops for each in rates.products if each.dtype == "float32"}
    assert all(math.isfinite(each.gflops) and each.gflops > 0 for each in rates.products)
    assert rates.peak.dtype == "float32"
    assert rates.peak.gflops == max(singles)


def test_no_thread_setting_is_left_behind() -> None:
    before = torch.get_num_threads()
    machine.measure(threads=before + 1, quick=True, num_dims=(2,), batch_size=64)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("num_dim", [4, 16])
def test_every_path_evaluates_the_same_members(num_dim: int) -> None:
    _, cases = machine.path_cases(num_dim, 1000, "cpu")
    objective = TeacherStudent(num_dim, 1000, seed=0, depth=machine.DEPTH)
    start = objective.initial_params(0)
    members = GaussianPopulation(start, 0.1, key=1, start=0, stop=8).members()
    wide = {name: tensor.double() for name, tensor in members.items()}
    exact = machine.loop(wide, objective.inputs.double(), objective.targets.double())
    for name in PATHS - {machine.BINARY}:
        torch.testing.assert_close(cases[name](8).double(), exact, rtol=1e-5, atol=1e-9)
    binary = TeacherStudent(num_dim, 1000, seed=0, depth=machine.DEPTH, weight="binary")
    signs = {name: w.sign() if name in list(wide)[:-1] else w for name, w in wide.items()}
    # The signs of zero differ between torch.sign and the network: sums of ±1 are often zero.
    hidden = [binary.inputs.double()] * 8
    for name in list(signs)[:-1]:
        hidden = [torch.where(h @ w.T >= 0, 1.0, -1.0).double()
                  for h, w in zip(hidden, signs[name], strict=True)]  # fmt: skip
    outputs = [h @ w.T for h, w in zip(hidden, list(signs.values())[-1], strict=True)]
    losses = torch.stack([(o - binary.targets.double()).square().mean() for o in outputs])
    torch.testing.assert_close(cases[machine.BINARY](8).double(), losses, rtol=1e-5, atol=1e-9)


def test_cases_take_turns_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    found = machine._interleaved(
        {name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, device="cpu"
    )
    assert "".join(order) == "abccbaabc"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_product_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(device: str, sizes: tuple[int, ...]) -> dict[machine.Product, machine.Case]:
        def missing() -> None:
            raise RuntimeError("not implemented for 'Char'")

        return {
            key: case
            for n in sizes
            for key, case in {
                ("torch.mm", "float32", n): lambda: None,
                ("torch.mm", "bfloat16", n): lambda: None,
                ("torch._int_mm", "int8", n): missing,
            }.items()
        }

    monkeypatch.setattr(machine, "product_cases", cases)
    monkeypatch.setattr(machine, "_clock", lambda case, device: 0.01)
    found = machine._measurable_products("cpu", 1, quick=False)
    # 0.01 s at 256 make 0.64 s at 1024 and 5 s at 2048
    assert sorted(found) == [("torch.mm", "bfloat16", 1024), ("torch.mm", "float32", 1024)]
    monkeypatch.setattr(machine, "_clock", lambda case, device: 1.0)
    found = machine._measurable_products("cpu", 1, quick=False)
    assert list(found) == [("torch.mm", "float32", 1024)]  # never without a peak


@pytest.mark.parametrize("columns", ["80", "160"])
def test_the_table_fits_the_terminal(
    call: Call, monkeypatch: pytest.MonkeyPatch, columns: str, rates: machine.MachineRates
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    status, text, errors = call("bench", "--quick")
    assert (status, errors) == (0, "")
    assert max(map(len, text.splitlines())) <= int(columns)
    assert f"default: {rates.path}." in text
    assert f"float32 peak: {rates.peak.gflops:,.0f} GFLOP/s" in text
    lines = [line.strip() for line in text.splitlines()]
    for path in PATHS:
        assert sum(line.removeprefix("16 ").strip().startswith(path) for line in lines) >= 2
    words = " ".join(text.split())
    assert "the machine may be shared" in words
    assert "One thread is one core alone" in words


def test_json_holds_every_path_and_the_environment(call: Call) -> None:
    status, text, errors = call("bench", "--json", "--threads", 2)
    assert (status, errors) == (0, "")
    found = json.loads(text)
    assert {row["path"] for row in found["paths"]} == PATHS
    assert all(row["milliseconds"] > 0 and row["share_of_peak"] > 0 for row in found["paths"])
    assert (found["device"], found["threads"], found["batch_size"]) == ("cpu", 2, 512)
    assert found["peak"] in found["products"]
    assert found["environment"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert "cores" in found["environment"]["machine"]
    assert found["date"][:2] == "20"
    assert "spec" not in found


SPEC = """
name = "small"
study = "loss_decrease"
[objective]
name = "teacher_student"
num_dim = [2, 4]
batch_size = 256
depth = 1
[[estimators]]
name = "ste"
surrogate = "relu"
"""


def test_a_spec_gets_its_time_and_where_it_goes(call: Call) -> None:
    Path("small.toml").write_text(SPEC)
    status, text, errors = call("bench", "small.toml", "inits=3", "-j", 1)
    assert (status, errors) == (0, "")
    assert max(map(len, text.splitlines())) <= 80
    after = text[text.index("small: ") :]
    assert after.startswith("small: 6 cells to run, about ")
    assert "on 1 worker" in " ".join(after.split())
    (row,) = [line for line in after.splitlines() if line.startswith("STE relu")]
    assert row.split()[2] == "6"
    assert not Path("results").exists()
    found = json.loads(call("bench", "small.toml", "--json", "-j", 2)[1])["spec"]
    assert (found["name"], found["missing"], found["jobs"]) == ("small", 2, 2)
    assert found["work_seconds"] == pytest.approx(sum(e["seconds"] for e in found["expenses"]))
    assert found["seconds"] >= found["start_seconds"] + found["longest_cell_seconds"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "gpu"], "device is 'gpu': give cpu, or cuda where there is a GPU"),
        (["--threads", "0"], "invalid value for '--threads'"),
        (["--threads", "two"], "invalid value for '--threads'"),
        (["--fast"], "no such option"),
        (["quikstart"], "unknown sweep 'quikstart': did you mean 'quickstart'"),
        (["quickstart", "seed"], "'seed' is no override: write key=value"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(
    call: Call, arguments: list[str], words: str
) -> None:
    status, text, errors = call("bench", *arguments)
    assert (status, text) == (2, "")
    assert errors.startswith("gradlab: ")
    assert words in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_one_sentence(call: Call) -> None:
    status, text, errors = call("bench", "--device", "cuda")
    assert (status, text) == (2, "")
    assert errors == "gradlab: device is 'cuda', and torch sees no GPU here: give cpu.\n"


def test_the_help_has_an_example_and_bench_is_the_last_command(call: Call) -> None:
    text = call("bench", "--help")[1]
    assert "Example: gradlab bench " in text
    assert max(map(len, text.splitlines())) <= 80
    commands = call("--help")[1].partition("Commands:")[2].split("Example:")[0]
    names = [line.split()[0] for line in commands.splitlines() if line.strip()]
    assert names[0] == "run"
    assert names[-2:] == ["bench", "data"]  # behind the commands, the one that has commands itself
    assert "..." not in commands
