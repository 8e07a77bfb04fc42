"""Runs a tiny training again and again and kills it, from within and from without.

A program of its own: it forks, which a process whose autograd has worked must not. Prints one line
of JSON per attempt.

    python -m tests.training.kills FOLDER inside   # SIGKILL before or behind the k-th rename
    python -m tests.training.kills FOLDER outside  # SIGKILL a random while behind an epoch
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradlab import training
from gradlab.training import files
from tests.training import tiny

EPOCHS = {"inside": 2, "outside": 16}


def train(folder: Path, how: str) -> None:
    """The run that is killed."""
    torch.set_num_threads(1)
    changes: dict[str, Any] = {
        "loop": {"epochs": EPOCHS[how], "ema": 0.9, "clip": 1.0},
        "schedule": {"name": "cosine"},
        "data": {"crop": 1, "flip": True},
    }
    if how == "outside":
        by_nes = {"name": "nes", "population": 8}
        changes["switch"] = [{"epoch": EPOCHS[how] - 2, "estimator": by_nes}]
    training.run(tiny.spec(**changes), folder, datasets=tiny.datasets(test=True))


def in_child(work: Callable[[], None], wait: Callable[[], None] | None = None) -> int:
    """Do something in a forked process, which is killed after ``wait``; its signal or 0."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if wait is not None:
        wait()
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return status


def killed_at(folder: Path, call: int) -> int:
    """Train until the ``call``-th rename, or look behind one, and die before it.

    Between these nothing changes but the content of files that have no name of their own yet.
    """
    seen = [0]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return wrapped

    def work() -> None:
        files._sync_folder, os.replace = dying(files._sync_folder), dying(os.replace)
        train(folder, "inside")

    return in_child(work)


def main(root: Path, how: str) -> None:
    """Kill runs and finish them."""
    # Loads everything once, without autograd, whose engine would not survive forking.
    by_nes = {"name": "nes", "population": 8}
    training.run(tiny.spec(estimator=by_nes), root / "warm", datasets=tiny.datasets())
    in_child(lambda: train(root / "whole", how))
    if how == "inside":
        for call in range(1, 1000):
            folder = root / f"call-{call}"
            killed = killed_at(folder, call)
            again = in_child(lambda folder=folder: train(folder, how)) if killed else 0
            report(folder, killed, again)
            if not killed:  # it ended before so many calls
                break
        return
    generator = random.Random(0)
    folder = root / "outside"
    for _ in range(4):
        epochs = logged(folder) + generator.randint(1, 3)
        while_longer = generator.uniform(0.0, 0.05)

        def wait(epochs: int = epochs, while_longer: float = while_longer) -> None:
            deadline = time.monotonic() + 60
            while logged(folder) < epochs and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(while_longer)

        report(folder, in_child(lambda: train(folder, how), wait), 0)
    report(folder, 0, in_child(lambda: train(folder, how)))


def logged(folder: Path) -> int:
    """Epochs in a run's log."""
    log = folder / "log.csv"
    return len(log.read_text().splitlines()) - 1 if log.is_file() else 0


def report(folder: Path, killed: int, again: int) -> None:
    """One attempt: the signal that ended it, and how the next one ended."""
    print(json.dumps({"folder": folder.name, "killed": killed, "again": again}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
