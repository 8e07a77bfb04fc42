"""SIGKILL at any moment, and the bits of a run that was never killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killing is tested with forked processes")
@pytest.mark.parametrize("how", ["inside", "outside"])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(how: str, tmp_path: Path) -> None:
    """SIGKILL before and behind every rename, and at random moments."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kills", str(tmp_path), how],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    attempts = [json.loads(line) for line in done.stdout.splitlines()]
    killed = [attempt for attempt in attempts if attempt["killed"]]
    assert len(killed) >= (15 if how == "inside" else 3), done.stderr
    assert {attempt["killed"] for attempt in killed} == {9}
    assert {attempt["again"] for attempt in attempts} == {0}, done.stderr
    for folder in {attempt["folder"] for attempt in attempts}:
        for name in ("weights.safetensors", "weights-ema.safetensors"):
            assert tiny.same(tiny.weights(tmp_path / "whole" / name),
                             tiny.weights(tmp_path / folder / name))  # fmt: skip
        assert tiny.log(tmp_path / folder) == tiny.log(tmp_path / "whole")
