"""How far a run is: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from gradlab.sweep.units import about, counted, seconds_text

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY = 10.0  # seconds between plain lines


class Clock:
    """The time left, from the share of the estimated work that is done.

    It runs from when the first cell began: what the workers took to start says nothing about the
    cells.

    Args:
        total: estimated work, in any unit.

    >>> clock = Clock(4.0)
    >>> clock.advance(1.0, seconds=10.0, now=110.0)
    >>> clock.left(now=112.0)
    28.0
    """

    def __init__(self, total: float) -> None:
        self.total = total
        self.done = 0.0
        self.began = self.last = 0.0

    def advance(self, work: float, seconds: float, now: float) -> None:
        """Count ``work`` as done, which took ``seconds`` until ``now``."""
        if self.done <= 0:
            self.began = now - seconds
        self.done += work
        self.last = now

    def left(self, now: float) -> float | None:
        """Seconds left, ``None`` while nothing is known."""
        if self.done <= 0:
            return None
        rate = (self.last - self.began) / self.done
        return max((self.total - self.done) * rate - (now - self.last), 0.0)


class Progress:
    """Shows a run's progress on stderr.

    Args:
        work: estimated work of the cells that will run, in any unit.
        total: number of cells of the study, those already done included.
        done: number of cells already done.
        stream: where to write; a bar if it is a terminal, else plain lines.
    """

    def __init__(self, work: float, total: int, done: int, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.total = total
        self.done = done
        self.failed = 0
        self.clock = Clock(work)
        self._started = self._last_line = time.monotonic()
        self._bar = bar(self.words, self.stream) if self.stream.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=max(self.clock.total, 1e-9))
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, work: float, seconds: float, failed: bool) -> None:
        """Count one cell as over, which took ``seconds``."""
        now = time.monotonic()
        self.clock.advance(work, seconds, now)
        self.done += not failed
        self.failed += failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self.clock.done)
        elif now - self._last_line >= LINE_EVERY:
            self._last_line = now
            self.say(self.words())

    def say(self, sentence: str) -> None:
        """Write one line beside the progress."""
        if self._bar is not None:
            self._bar.console.print(sentence, highlight=False, markup=False)
        else:
            print(sentence, file=self.stream, flush=True)

    def words(self) -> str:
        """``12/45 cells, 1 failed, 1 min 10 s, about 3 min left``."""
        now = time.monotonic()
        parts = [f"{self.done:,}/{counted(self.total, 'cell')}"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        parts.append(seconds_text(now - self._started))
        left = self.clock.left(now)
        if left is not None:
            parts.append(f"{about(left)} left")
        return ", ".join(parts)


def bar(words: Callable[[], str], stream: TextIO) -> Bar:
    """A bar of ``rich`` with the percentage and what ``words()`` says at the time."""
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    class Words(rich.ProgressColumn):
        def render(self, task: rich.Task) -> Text:
            return Text(words())

    return rich.Progress(
        rich.BarColumn(bar_width=20),
        rich.TextColumn("{task.percentage:>3.0f} %"),
        Words(),
        console=Console(file=stream),
        refresh_per_second=4,
    )
