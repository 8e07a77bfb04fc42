"""A cell: one measurement of a sweep, and what makes two cells the same.

A cell is a plain dict of JSON values with every default written out. Its identity is the SHA-256
of its canonical JSON: sorted keys, shortest round-trip floats, and integral floats written as
integers, so that ``1`` and ``1.0`` are one cell on every machine. The version of the code is not
part of it (that is provenance), nor is the name of the spec: two sweeps share what they share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

SCHEMA = 1
"""Version of the meaning of a cell's keys. A new meaning needs a new number: old cells then no
longer count as done."""


def canonical(config: Mapping[str, Any]) -> str:
    """The canonical JSON text of a cell.

    Raises:
        ValueError: a number is not finite, or a value is not JSON.

    >>> canonical({"b": 1.0, "a": [0.1, True]})
    '{"a":[0.1,true],"b":1}'
    """
    return json.dumps(_plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def hash_of(config: Mapping[str, Any]) -> str:
    """The identity of a cell: 64 hexadecimal digits.

    >>> hash_of({"lr": 1, "seed": 0}) == hash_of({"seed": 0, "lr": 1.0})
    True
    """
    return hashlib.sha256(canonical(config).encode()).hexdigest()


@dataclass(frozen=True)
class Cell:
    """One measurement of a sweep.

    Attributes:
        config: what the study runs on: JSON values, every default filled in.
        hash: its identity, see :func:`hash_of`.
    """

    config: dict[str, Any]

    @cached_property
    def hash(self) -> str:
        """The identity of this cell, see :func:`hash_of`."""
        return hash_of(self.config)


def describe(value: Any) -> str:
    """A value the way a person would type it on the command line.

    >>> describe([500, 5000]), describe(1e-05), describe(None), describe(True)
    ('[500, 5000]', '1e-05', 'none', 'true')
    >>> describe({"name": "swish_sign", "beta": 5.0})
    'swish_sign beta=5'
    """
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(describe(item) for item in value)}]"
    if isinstance(value, Mapping):
        options = [f"{key}={describe(item)}" for key, item in value.items() if key != "name"]
        return " ".join([str(value.get("name", "")), *options]).strip()
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def title(config: Mapping[str, Any]) -> str:
    """One line that says which cell this is.

    >>> title({"objective": {"name": "teacher_student", "num_dim": 8}, "init": 0, "batch": 1,
    ...        "estimator": {"name": "nes", "sigma": 0.1}})
    'teacher_student num_dim=8, nes sigma=0.1, init 0, batch 1'
    """
    parts = [_entry(config["objective"])]
    if (student := config.get("student", {}).get("state", "fresh")) != "fresh":
        parts.append(f"{student} student")
    parts += [_entry(config["estimator"]), f"init {config['init']}", f"batch {config['batch']}"]
    return ", ".join(parts)


def _entry(entry: Mapping[str, Any]) -> str:
    options = {k: v for k, v in entry.items() if k != "name" and v is not None}
    return " ".join([entry["name"], *(f"{k}={describe(v)}" for k, v in options.items())])


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as dotted keys, each estimator's options under its own name.

    >>> flat({"seed": 0, "estimator": {"name": "ste", "surrogate": "relu"}})
    {'seed': 0, 'estimator': 'ste', 'estimator.surrogate': 'relu'}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= {key if k == "name" else f"{key}.{k}": v for k, v in value.items()}
        else:
            found[key] = value
    return found


def group_labels(configs: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """For each cell (problem, estimator): in words, only with what varies over these cells.

    ``init``, ``batch`` and the seed are replicates: they never tell two groups apart.

    >>> group_labels([{"objective": {"name": "teacher_student", "num_dim": d}, "init": 0,
    ...                "estimator": {"name": "ste", "surrogate": "relu"}} for d in (2, 4)])
    [('num_dim=2', 'ste'), ('num_dim=4', 'ste')]
    """
    rows = [flat(config) for config in configs]
    replicates = {"init", "batch", "seed", "schema", "study", "threads"}
    keys = dict.fromkeys(key for row in rows for key in row)
    problem = [
        key
        for key in keys
        if key not in replicates
        and not key.startswith("estimator")
        # what only some cells have, such as a student's training, tells none of them apart
        and _varies(row[key] for row in rows if key in row)
    ]
    options: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["estimator"] for row in rows):
        own = [row for row in rows if row["estimator"] == name]
        own_keys = dict.fromkeys(key for row in own for key in row)
        options[name] = [
            key
            for key in own_keys
            if key.startswith("estimator.") and _varies(row.get(key) for row in own)
        ]
    return [
        (
            _words(row, problem) or row["objective"],
            " ".join(filter(None, [row["estimator"], _words(row, options[row["estimator"]])])),
        )
        for row in rows
    ]


def _varies(values: Iterable[Any]) -> bool:
    return len({json.dumps(value, sort_keys=True) for value in values}) > 1


def _words(row: Mapping[str, Any], keys: Iterable[str]) -> str:
    short = {key: key.split(".")[-1] for key in keys}
    return " ".join(f"{name}={describe(row[key])}" for key, name in short.items() if key in row)
