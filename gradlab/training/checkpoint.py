"""Checkpoints: one file per run that appears whole or not at all, and the one before it.

A killed run leaves either the new checkpoint or the old one. A file that was damaged afterwards is
recognized by its SHA-256, and the one before it takes its place. Everything random derives from
the seed and the epoch, so a checkpoint holds no generator.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gradlab.training import files, optimizers, weights
from gradlab.training.files import FileProblem
from gradlab.training.state import State

FILE = "checkpoint.safetensors"
PREVIOUS = "checkpoint.previous.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a run had reached.

    Attributes:
        path: where it was read.
        tensors: ``model.*``, ``average.*`` and ``optimizer.*``.
        facts: spec, data, epoch, step, rows of the log, and where it was made.
        notes: what was wrong with newer files, one sentence each.
    """

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def write(folder: Path, state: State, facts: dict[str, Any], kept: str = "") -> Path:
    """Write the checkpoint of a state; the former one becomes the previous one.

    Args:
        folder: of the run.
        state: where the run is.
        facts: what else to know, as JSON.
        kept: what is safe if there is no space, in words.

    Raises:
        FileProblem: it cannot be written; the former checkpoint stays.
    """
    tensors, others = optimizers.state_tensors(state.optimizer)
    everything = {
        **{f"model.{name}": tensor for name, tensor in state.model.state_dict().items()},
        **{f"optimizer.{name}": tensor for name, tensor in tensors.items()},
    }
    if state.average is not None:
        averaged = state.average.model.state_dict()
        everything |= {f"average.{name}": tensor for name, tensor in averaged.items()}
    content = files.packed(
        everything,
        {
            **facts,
            "format": FORMAT,
            "epoch": state.epoch,
            "step": state.step,
            "rows": state.rows,
            "norms": state.norms,
            "layers": state.layers,
            "optimizer_values": others,
        },
    )
    path, arriving = folder / FILE, folder / (FILE + ".new")
    files.write(arriving, content, kept)
    try:
        if path.is_file():
            os.replace(path, folder / PREVIOUS)
        os.replace(arriving, path)
    except OSError as error:
        raise FileProblem(f"{path} cannot be written ({error.strerror or error}): mend the "
                          "permissions of its folder.") from None  # fmt: skip
    return path


def read(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder that is whole; ``None`` where there never was one.

    Raises:
        FileProblem: there are checkpoints, and none is whole.
    """
    notes: list[str] = []
    for path in (folder / FILE, folder / (FILE + ".new"), folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            tensors, facts = files.unpacked(path)
        except FileProblem as problem:
            notes.append(str(problem))
            continue
        if facts.get("format") != FORMAT:
            raise FileProblem(
                f"{path} was written by another version of gradlab (format {facts.get('format')}, "
                f"not {FORMAT}): start anew in another folder."
            )
        return Checkpoint(path, tensors, facts, notes)
    if notes:
        raise FileProblem(f"{notes[0].rstrip('.')}, and there is no other whole checkpoint: delete "
                          f"{folder} to start anew.")  # fmt: skip
    return None


def restore(state: State, checkpoint: Checkpoint) -> None:
    """Bring a fresh state to where a checkpoint was.

    Raises:
        FileProblem: the checkpoint is of another architecture, or has another optimizer's state.
    """
    _load(checkpoint, "model.", state.model)
    if state.average is not None:
        _load(checkpoint, "average.", state.average.model)
    optimizers.restore(
        state.optimizer,
        _part(checkpoint, "optimizer."),
        checkpoint.facts["optimizer_values"],
    )
    state.epoch, state.step = checkpoint.facts["epoch"], checkpoint.facts["step"]
    state.rows, state.norms = checkpoint.facts["rows"], checkpoint.facts["norms"]
    state.layers = checkpoint.facts.get("layers", [])


def _load(checkpoint: Checkpoint, prefix: str, module: Any) -> None:
    tensors = _part(checkpoint, prefix)
    complaint = weights.misfit(tensors, module.state_dict())
    if complaint:
        raise FileProblem(f"{checkpoint.path} is of another network ({complaint}): start anew in "
                          "another folder.")  # fmt: skip
    module.load_state_dict(tensors)


def _part(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }
