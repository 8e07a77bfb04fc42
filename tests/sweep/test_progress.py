"""Progress where nobody watches a terminal, and on one."""

from __future__ import annotations

import io

import pytest

from gradlab.sweep.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(work=100.0, total=110, done=10, stream=stream) as progress:
        for cell in range(100):
            now[0] += 1.0
            progress.advance(1.0, seconds=1.0, failed=cell == 5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "19/110 cells, 1 failed, 10 s, about 1 min 30 s left"
    assert lines[-1] == "109/110 cells, 1 failed, 1 min 40 s, under 1 s left"


def test_the_time_left_follows_the_work_and_not_the_number_of_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress(work=1.0 + 9.0, total=2, done=0, stream=io.StringIO())
    now[0] = 60.0  # the worker took 50 s to start
    progress.advance(1.0, seconds=10.0, failed=False)
    assert progress.words() == "1/2 cells, 1 min, about 1 min 30 s left"


def test_a_terminal_gets_a_bar() -> None:
    stream = Terminal()
    with Progress(work=2.0, total=2, done=0, stream=stream) as progress:
        progress.advance(1.0, seconds=1.0, failed=False)
        progress.say("a worker died")
    assert "50 %" in stream.getvalue()
    assert "1/2 cells" in stream.getvalue()
    assert "a worker died" in stream.getvalue()
