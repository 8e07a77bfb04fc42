"""Compiled functions on disk: what another process left there never gives other numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba", reason="kernels are compiled by Numba, which is optional")

from gradlab import _kernels
from gradlab._kernels import kernel_function

FACTORY = textwrap.dedent("""
    import sys
    import numpy as np
    from gradlab._kernels import kernel_function

    def made(number):
        @kernel_function(number)
        def inner(x, y):
            # too long to become a part of what calls it
            total = 0
            for i in range(len(x)):
                total += x[i] * number
            for i in range(1, len(y), 2):
                y[i] = np.exp(y[i]) - np.log(1 + np.abs(y[i - 1]))
            for i in range(2, len(y), 3):
                y[i] = np.sin(y[i]) - np.cos(1 + np.abs(y[i - 2]))
            return total + int(np.sum(y) * 0.0)

        @kernel_function(number)
        def outer(x, y):
            return inner(x, y) + inner(x[::1], y) + number

        return outer

    for number in sys.argv[1:]:
        print(made(int(number))(np.ones(5, np.int64), np.ones(5)))
""")

# What each says of an array: dimensions and type, which is a signature of its own.
SIGNATURES = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    import numpy as np
    from gradlab._kernels import kernel_function

    @kernel_function()
    def size(x):
        return x.itemsize * 100 + x.ndim

    types = [np.float32, np.float64, np.int32, np.int64, np.int8, np.complex128]
    arrays = [np.zeros((2,) * n, t) for n in (1, 2, 3) for t in types]
    mine, of = int(sys.argv[1]), int(sys.argv[2])
    Path(f"ready{mine}").touch()
    while len(list(Path().glob("ready*"))) < of:
        time.sleep(0.001)
    for x in arrays[mine::of]:
        assert size(x) == x.itemsize * 100 + x.ndim, (x.dtype, x.ndim, size(x))
    print(sum(size.stats.cache_hits.values()))
""")


def start(script: Path, *arguments: object) -> subprocess.Popen[str]:
    root = str(Path(_kernels.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        cwd=script.parent,
        env={**os.environ, "NUMBA_CACHE_DIR": str(script.parent / "cache"), "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out.split()


def test_functions_of_one_factory_compiled_by_two_processes_stay_apart(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FACTORY)
    assert finish(start(script, 2)) == ["22"]
    assert finish(start(script, 3)) == ["33"]
    # with Numba's own cache both symbols have the same name here, and the second prints 22
    assert finish(start(script, 2, 3)) == ["22", "33"]
    assert finish(start(script, 3, 2)) == ["33", "22"]


def test_processes_that_compile_at_once_leave_what_a_third_may_trust(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SIGNATURES)
    for process in [start(script, number, 3) for number in range(3)]:
        finish(process)
    for ready in tmp_path.glob("ready*"):
        ready.unlink()
    # every signature is found, and is what it promises to be
    assert finish(start(script, 0, 1)) == ["18"]


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function of a module that is new to this process, and compiled when first called."""
    (tmp_path / "fresh.py").write_text("def f(x):\n    return x + 1\n")
    namespace: dict[str, object] = {"__name__": "fresh"}

    def make(**options: object):
        text = (tmp_path / "fresh.py").read_text()
        exec(compile(text, tmp_path / "fresh.py", "exec"), namespace)
        return kernel_function(**options)(namespace["f"])

    return make


def files(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.rglob("*.nbc"))


def test_the_same_function_is_found_again(compiled, tmp_path: Path) -> None:
    assert compiled()(1) == 2
    again = compiled()
    assert again(1) == 2
    assert sum(again.stats.cache_hits.values()) == 1
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("content", [b"", b"half of it", b"\x80\x04N."])
def test_a_file_that_is_not_whole_is_compiled_again(
    compiled, tmp_path: Path, content: bytes
) -> None:
    compiled()(1)
    files(tmp_path)[0].write_bytes(content)
    again = compiled()
    assert again(1) == 2
    assert not again.stats.cache_hits
    assert len(files(tmp_path)[0].read_bytes()) > 100


def test_another_key_under_the_same_name_is_not_taken(
    compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernels, "_hash", lambda *parts: "same")
    assert compiled()(1) == 2
    other = compiled()
    assert other(np.float32(1.5)) == 2.5
    assert not other.stats.cache_hits


@pytest.mark.parametrize("what", ["_DIGEST", "VERSION"])
def test_other_sources_and_releases_of_numba_compile_anew_and_old_files_go(
    compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    compiled()(1)
    before = files(tmp_path)
    monkeypatch.setattr(_kernels, what, "another")
    again = compiled()
    assert again(1) == 2
    assert not again.stats.cache_hits
    assert len(files(tmp_path)) == 1
    assert files(tmp_path) != before


def test_options_are_part_of_what_is_compared(compiled, tmp_path: Path) -> None:
    compiled(error_model="numpy", fastmath={"nsz", "reassoc"})(1)
    other = compiled(error_model="numpy")
    other(1)
    assert not other.stats.cache_hits


def test_a_disk_that_takes_nothing_costs_a_compilation(
    compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert compiled()(1) == 2
    monkeypatch.undo()
    assert files(tmp_path) == []
    assert not [p for p in tmp_path.rglob("*") if re.search("tmp", p.name)]


def test_flush_forgets(compiled, tmp_path: Path) -> None:
    function = compiled()
    function(1)
    function._cache.flush()
    assert files(tmp_path) == []


def test_without_numbas_cache_every_process_compiles(
    compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kernels, "FunctionCache", None)
    assert compiled()(1) == 2
    assert files(tmp_path) == []


def test_values_that_would_make_no_name_are_refused() -> None:
    with pytest.raises(TypeError, match=r"whole numbers and truth values, not \(1\.5,\)"):
        kernel_function(1.5)  # type: ignore[arg-type]
