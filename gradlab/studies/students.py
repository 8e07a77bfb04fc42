"""Students to measure on: fresh, or trained until the loss stops falling."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from gradlab._registry import unknown
from gradlab.binary import surrogates
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.studies import networks
from gradlab.studies.base import Cell, derived_seed
from gradlab.studies.cells import TRAINING, TRAINING_BATCHES, is_network, objective_of

STATES = ("fresh", "converged")
DEFAULTS: dict[str, Any] = {"state": "fresh", **TRAINING}
NETWORK_STATES = ("fresh", *networks.STATES)
NETWORK_DEFAULTS: dict[str, Any] = {"state": "fresh", **networks.TRAINING}
_LR = 0.01
_WINDOW = 100


def defaults(objective: str) -> dict[str, Any]:
    """The keys of a student table with their defaults."""
    return NETWORK_DEFAULTS if objective == "network" else DEFAULTS


def canonical(student: dict[str, Any], objective: str = "teacher_student") -> dict[str, Any]:
    """A student table with its defaults filled in, without what a fresh student does not have.

    Args:
        student: as the spec has it.
        objective: the objective's name: networks are trained by epochs, the others by steps.

    Raises:
        ValueError: an unknown key or state, or a size below one.

    >>> canonical({"state": "converged", "steps": 500})
    {'state': 'converged', 'steps': 500, 'batch_size': 16000}
    >>> canonical({})
    {'state': 'fresh'}
    >>> canonical({"state": "mid", "epochs": 10}, "network")
    {'state': 'mid', 'epochs': 10, 'examples': None, 'batch_size': 256, 'lr': 0.001}
    """
    known = defaults(objective)
    for key in student:
        if key not in known:
            raise ValueError(unknown("key of [student]", key, known))
    full = known | student
    states = NETWORK_STATES if objective == "network" else STATES
    if full["state"] not in states:
        raise ValueError(unknown("state", full["state"], states))
    if objective == "network":
        full = networks.canonical_training(full)
    else:
        positive_integer("student.steps", full["steps"])
        positive_integer("student.batch_size", full["batch_size"])
    return {"state": "fresh"} if full["state"] == "fresh" else full


def student_of(cell: Cell, scratch: Path) -> Params:
    """The parameters that a cell measures at."""
    if is_network(cell):
        network: Any = objective_of(cell, scratch=scratch)
        params: Params = network.params
        return params
    seed = derived_seed(cell, 0, cell["init"])
    objective = objective_of(cell)
    params = objective.initial_params(seed)
    if cell["student"]["state"] == "fresh":
        return params
    identity = {
        "seed": seed,
        "objective": {k: v for k, v in cell["objective"].items() if k != "batch_size"},
        "student": cell["student"],
        "threads": cell["threads"],
    }
    trained = cached(scratch, "student", identity, lambda: _train(cell, params))
    # A file gives its tensors in the order of their names, and on the CPU.
    return {name: trained[name].to(tensor.device) for name, tensor in params.items()}


def _train(cell: Cell, params: Params) -> Params:
    """Adam on the hardtanh STE, a fresh batch each step, until the loss stops falling.

    The mean loss of the last hundred steps is compared with that of the hundred before; training
    ends when it no longer falls by one percent, or after ``steps``.
    """
    student = cell["student"]
    options = {**cell["objective"], "batch_size": student["batch_size"]}
    larger = {**cell, "objective": options}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    optimizer = torch.optim.Adam(leaves.values(), lr=_LR)
    surrogate = surrogates.create("hardtanh")
    losses: list[float] = []
    for step in range(student["steps"]):
        objective = objective_of(larger, batch=TRAINING_BATCHES + step)
        current = {name: tensor.detach() for name, tensor in leaves.items()}
        losses.append(float(objective.loss(current)))
        if step and step % _WINDOW == 0 and step >= 2 * _WINDOW:
            before, now = losses[-2 * _WINDOW : -_WINDOW], losses[-_WINDOW:]
            if sum(now) > 0.99 * sum(before):
                break
        gradient = objective.surrogate_gradient(current, surrogate)
        for name, tensor in leaves.items():
            tensor.grad = gradient[name]
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in leaves.items()}


def cached(
    scratch: Path, kind: str, identity: dict[str, Any], compute: Callable[[], Params]
) -> Params:
    """``compute()``, kept in a file that all workers share.

    The file appears whole or not at all, so a killed worker leaves nothing half-written; a file
    that cannot be read is computed again.

    Args:
        scratch: folder of the cache.
        kind: first part of the file name.
        identity: everything the result depends on.
        compute: gives a dict of tensors.
    """
    text = json.dumps(identity, sort_keys=True)
    path = scratch / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:20]}.safetensors"
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        pass
    result = compute()
    scratch.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}.partial")
    try:
        save_file({name: t.cpu().contiguous() for name, t in result.items()}, temporary)
        os.replace(temporary, path)
    except PermissionError:
        # Windows refuses to replace a file that another worker has open: it holds the same.
        if not path.exists():
            raise
    finally:
        temporary.unlink(missing_ok=True)
    return result
