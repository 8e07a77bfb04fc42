"""Processes of gradlab's own keep what they freed."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from gradlab import cli
from gradlab._memory import keep_freed_memory


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """What the allocator was told, in place of telling it."""
    found: dict[int, int] = {}

    def mallopt(number: int, value: int) -> int:
        found[number] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD", *(f"MALLOC_{n}_" for n in
                 ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "TOP_PAD"))):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    return found


def test_nothing_is_trimmed_and_large_blocks_come_from_the_heap(told: dict[int, int]) -> None:
    assert keep_freed_memory()
    assert set(told) == {-1, -2, -3}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    assert all(2**26 <= value < 2**31 for value in told.values())


def test_what_the_environment_says_stands(
    told: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "0")
    assert keep_freed_memory()
    assert set(told) == {-2, -3}
    told.clear()
    for name, value in (
        ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=1"),
        ("LD_PRELOAD", "libjemalloc.so"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not keep_freed_memory()
    assert not told


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_an_allocator_without_options_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: Any) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert not keep_freed_memory()


def test_only_the_command_itself_is_changed(
    told: dict[int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, tells in ((["--version"], False), (None, True)):
        monkeypatch.setattr(sys, "argv", ["gradlab", "--version"])
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 0
        assert bool(told) == tells
    assert "gradlab" in capsys.readouterr().out
