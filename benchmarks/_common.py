"""What the benchmarks share: options, interleaved clocks, peak memory, result files."""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gradlab.sweep import provenance

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
Bar = dict[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    found = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--quick", action="store_true", help="tiny sizes: does the script run?")
    found.add_argument("--threads", type=int, default=1, help="torch threads [1]")
    found.add_argument("--device", default="cpu", help="cpu or cuda [cpu]")
    found.add_argument("--rounds", type=int, default=5, help="rounds of A B A B … [5]")
    found.add_argument("--output", type=Path, help="folder of the result file")
    return found


def start(options: argparse.Namespace) -> None:
    """Fix the number of torch threads; refuse a device that is not there."""
    torch.set_num_threads(options.threads)
    if options.device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(f"--device {options.device}: torch sees no GPU here, use --device cpu.")


def synchronize(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device != "cpu":
        torch.cuda.synchronize()


def interleaved(
    cases: Mapping[str, Callable[[], Any]], rounds: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every case in every round: A B, B A, A B, … after one warm-up each.

    Neighbours in time share whatever else the machine does, so ratios are taken within a round.
    """
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        order = list(cases)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            gc.collect()
            synchronize(device)
            clock = time.perf_counter()
            cases[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - clock)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest.

    >>> spread([1.0, 4.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 4.0}
    """
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios within each round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def words(values: Mapping[str, float], digits: int = 3) -> str:
    """A spread in words.

    >>> words({"median": 2.0, "min": 1.0, "max": 4.0})
    '2 (1–4)'
    """
    return f"{values['median']:.{digits}g} ({values['min']:.{digits}g}–{values['max']:.{digits}g})"


class PeakMemory:
    """Peak resident memory between entry and exit, and what was resident at entry.

    Use it once, in a fresh process: freed memory that the allocator keeps would hide a peak. Linux
    resets the high-water mark at entry; elsewhere the process's own peak stands in, which misses a
    peak that stays below an earlier one (``method`` says which).
    """

    def __enter__(self) -> PeakMemory:
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.method = "VmHWM, reset at entry"
        except OSError:
            self.method = "ru_maxrss"
        self.at_entry = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = self._read("VmHWM")

    @property
    def above_entry(self) -> int:
        """Bytes."""
        return self.peak - self.at_entry

    def _read(self, field: str) -> int:
        if self.method == "ru_maxrss":
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return resident(field)


def resident(field: str = "VmRSS") -> int:
    """A memory field of this process in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def in_fresh_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script with ``--child`` and further arguments; the JSON of its last line."""
    command = [sys.executable, script, "--child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def bar(
    what: str,
    value: float,
    *,
    below: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Bar:
    """A number that has to be reached: give one of the three limits.

    >>> bar("seconds", 250.0, below=300)["met"]
    True
    """
    limits = {"<": below, "≤": at_most, "≥": at_least}
    ((sign, limit),) = [(s, limit) for s, limit in limits.items() if limit is not None]
    met = {"<": value < limit, "≤": value <= limit, "≥": value >= limit}[sign]
    return {"what": what, "value": value, "bar": f"{sign} {limit:g}", "met": met}


def finish(name: str, options: argparse.Namespace, results: Any, bars: Sequence[Bar] = ()) -> int:
    """Write the result file beside ``environment.json``, print the bars; the exit status.

    Quick runs go to a folder of their own and are not judged: their sizes are not the bars' sizes.
    """
    folder = options.output or (RESULTS / "quick" if options.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = {
        key: value
        for key, value in vars(options).items()
        if key not in ("output", "child") and not isinstance(value, Path)
    }
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "made_with": provenance.code(),
        "arguments": arguments,
        "bars": [] if options.quick else list(bars),
        "results": results,
    }
    _write(folder / f"{name}.json", record)
    _write(folder / "environment.json", provenance.environment())
    for each in bars:
        verdict = "not judged" if options.quick else "PASS" if each["met"] else "FAIL"
        print(f"{verdict}  {each['what']}: {each['value']:.4g} (bar: {each['bar']})")
    print(f"written: {os.path.relpath(folder / name)}.json")
    return 0 if options.quick or all(each["met"] for each in bars) else 1


def _write(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
