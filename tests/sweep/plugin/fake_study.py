"""A study that costs nothing and fails on demand, installed as an entry point by conftest.py."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat

Fault = Literal["none", "raise", "kill", "kill_once", "warn", "exit", "infinite"]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    lr: list[PositiveFloat] = [0.1]
    normalize: Literal["tensor", "global", "none"] = "tensor"
    fault: Fault = "none"
    fault_init: int = 0


class FakeStudy:
    name = "fake"
    settings_model = Settings

    def validate(self, cell: Mapping[str, Any]) -> None:
        if cell["student"]["state"] == "converged" and cell["objective"]["num_dim"] == 64:
            raise ValueError("a converged student needs num_dim of at most 32: leave 64 out.")

    def forward_passes(self, cell: Mapping[str, Any]) -> float:
        return float(len(cell["settings"]["lr"]))

    def run(self, cell: Mapping[str, Any], scratch: Path) -> dict[str, list[dict[str, Any]]]:
        import torch

        settings = cell["settings"]
        key = f"{cell['init']}-{cell['batch']}-{settings['fault']}"
        with (scratch / "ran.txt").open("a") as log:
            log.write(f"{key}\n")
        time.sleep(float(os.environ.get("FAKE_STUDY_SECONDS", "0")))
        if cell["init"] == settings["fault_init"]:
            _fail(settings["fault"], scratch)
        num_dim = cell["objective"]["num_dim"]
        rng = np.random.default_rng([cell["seed"], cell["init"], cell["batch"], num_dim])
        # A long float32 sum: its last bits depend on the number of torch threads.
        noise = float(torch.from_numpy(rng.standard_normal(300_001, dtype=np.float32)).sum())
        keys = {
            "study": "fake", "num_dim": num_dim, "init": cell["init"], "batch": cell["batch"],
            "estimator": cell["estimator"]["name"],
        }  # fmt: skip
        threads = torch.get_num_threads()
        bad = float("inf") if settings["fault"] == "infinite" else 1.0
        rows = [
            {**keys, "lr": lr, "loss_decrease": lr * noise * bad, "threads": threads,
             "seconds": time.perf_counter(), "device": "cpu"}
            for lr in settings["lr"]
        ]  # fmt: skip
        return {"loss": rows, "diagnostics": [{**keys, "quantity": "noise", "value": noise}]}


def _fail(fault: str, scratch: Path) -> None:
    if fault == "raise":
        raise RuntimeError("this cell fails on purpose")
    if fault == "warn":
        warnings.warn("overflow in a made-up place", RuntimeWarning, stacklevel=2)
    if fault == "exit":
        raise SystemExit("a library called exit()")
    if fault == "kill" or (fault == "kill_once" and _first(scratch / "killed")):
        os.kill(os.getpid(), signal.SIGKILL)


def _first(mark: Path) -> bool:
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
