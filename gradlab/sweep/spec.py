"""A spec: the TOML file that says what a sweep runs.

A list is an axis (one cell per value), except where the option itself is a list: ``settings.lr``,
the nested populations of NES. ``{start = 1e-5, stop = 1.0, num = 16}`` stands for a list of
log-spaced numbers. Whatever is wrong, the complaint is one sentence that names the file, the key,
the mistake and the fix.

This module knows the shape of a spec and nothing of estimators or studies (it never imports
torch); :mod:`gradlab.sweep.expansion` checks the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from gradlab import _toml
from gradlab._registry import unknown
from gradlab._toml import SpecError, sentence

EXAMPLES: dict[str, str] = {
    "name": 'name = "quickstart"',
    "title": 'title = "Loss decrease"',
    "description": 'description = "What is asked."',
    "study": 'study = "loss_decrease"',
    "seed": "seed = 0",
    "threads": "threads = 1",
    "inits": "inits = 3",
    "batches": "batches = 3",
    "figures": 'figures = ["loss_decrease_groups"]',
    "student": '[student] with state = "fresh"',
    "objective": '[objective] with name = "teacher_student"',
    "settings": "[settings] with lr = [0.01, 0.1]",
    "estimators": '[[estimators]] with name = "ste"',
    "methods": '[[methods]] with name = "sparse"',
}


__all__ = ["EXAMPLES", "Spec", "SpecError", "find", "from_dict", "is_range", "load", "override",
           "points", "sentence", "shipped_figures", "shipped_sweeps"]  # fmt: skip


class Spec(BaseModel):
    """What a sweep runs, as written: axes are still lists and defaults are still missing.

    Attributes:
        name: a slug; results go to ``results/<name>/``. Not part of any cell's identity.
        title: heading of the report.
        description: opening paragraph of the report.
        study: what one cell measures, one of ``gradlab.studies.names()``.
        seed: fixes every random number of the sweep.
        threads: torch threads of each cell; the last bits of a result depend on it.
        inits: number of (teacher, student) pairs.
        batches: batches per init.
        figures: names of figures to draw; ``None`` draws those of the study.
        student: state of the student before it is measured.
        objective: name and options of the objective.
        settings: settings of the study.
        estimators: name and options of each estimator.
        methods: in their place, those of each variational method, where a study compares these.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)
    title: str = ""
    description: str = ""
    study: str
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    inits: int = Field(default=1, ge=1)
    batches: int = Field(default=1, ge=1)
    figures: list[str] | None = None
    student: dict[str, Any] = Field(default_factory=dict)
    objective: dict[str, Any]
    settings: dict[str, Any] = Field(default_factory=dict)
    estimators: list[dict[str, Any]] = Field(default_factory=list)
    methods: list[dict[str, Any]] = Field(default_factory=list)

    _source: str = PrivateAttr(default="the spec")

    @property
    def entries(self) -> tuple[str, list[dict[str, Any]]]:
        """What is compared: "estimators" or "methods", and its entries."""
        return ("methods", self.methods) if self.methods else ("estimators", self.estimators)

    @property
    def source(self) -> str:
        """Where this spec came from, as error messages name it."""
        return self._source

    def error(self, message: str) -> SpecError:
        """A complaint about this spec: ``source: message``."""
        return SpecError(f"{self._source}: {message}")


def find(path_or_name: str | Path) -> Path:
    """The file behind a path or the bare name of a shipped sweep.

    Raises:
        SpecError: there is no such file.
    """
    return _toml.find(path_or_name, shipped_sweeps(), "sweep", "a sweep")


def shipped_sweeps() -> dict[str, Path]:
    """The sweeps that travel with gradlab, by name."""
    return _toml.shipped("sweeps", "*.toml")


def shipped_figures() -> dict[str, Path]:
    """The figures that travel with gradlab, by name."""
    return _toml.shipped("figures", "[!_]*.py")


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec and its overrides, and check their shape.

    Args:
        path_or_name: a TOML file, or the bare name of a shipped sweep.
        overrides: ``key=value`` texts, see :func:`override`.

    Raises:
        SpecError: one sentence, see the module's docstring.
    """
    path = find(path_or_name)
    raw = _toml.read(path)
    for text in overrides:
        override(raw, text)
    return from_dict(raw, source=_toml.with_overrides(path, overrides))


def from_dict(raw: Mapping[str, Any], source: str = "the spec") -> Spec:
    """A spec from the content of a TOML file.

    Raises:
        SpecError: unknown or missing key, wrong type, empty or repeated axis, a number that is
            not finite.
    """
    try:
        spec = Spec.model_validate(dict(raw))
    except pydantic.ValidationError as error:
        raise SpecError(f"{source}: {sentence(error, Spec, EXAMPLES)}") from None
    spec._source = source
    for key in ("student", "objective", "settings"):
        for option, value in getattr(spec, key).items():
            _check_value(spec, f"{key}.{option}", value)
    if not spec.estimators and not spec.methods:
        raise spec.error("there is nothing to compare: write for example [[estimators]] with "
                         'name = "ste".')  # fmt: skip
    if spec.estimators and spec.methods:
        raise spec.error("a study compares [[estimators]] or [[methods]], not both: leave out one "
                         "of them.")  # fmt: skip
    kind, entries = spec.entries
    for number, entry in enumerate(entries, start=1):
        for option, value in entry.items():
            _check_value(spec, f"{kind}.{entry.get('name', number)}.{option}", value)
    if spec.figures is not None:
        _check_value(spec, "figures", spec.figures)
    return spec


def _check_value(spec: Spec, key: str, value: Any) -> None:
    """Refuse what is wrong whatever the option means."""
    if isinstance(value, float) and not math.isfinite(value):
        raise spec.error(f"{key} is {value}: give a finite number.")
    if is_range(value):
        points(spec, key, value)
    elif isinstance(value, Mapping):
        for option, inner in value.items():
            # A list in a table of options is one value and no axis: two layers may have one width.
            if not isinstance(inner, list):
                _check_value(spec, f"{key}.{option}", inner)
    if isinstance(value, list):
        if not value:
            raise spec.error(f"{key} is an empty list: give at least one value, or leave it out.")
        for item in value:
            _check_value(spec, key, item)
        seen: list[Any] = []
        for item in value:
            if any(item == other and isinstance(item, bool) == isinstance(other, bool)
                   for other in seen):  # fmt: skip
                raise spec.error(f"{key} lists {item!r} twice: each value may stand there once.")
            seen.append(item)


def is_range(value: Any) -> bool:
    """Whether a value is ``{start, stop, num}``, and not an option with options of its own.

    >>> is_range({"start": 1e-5, "stop": 1.0}), is_range({"name": "swish_sign", "beta": 5.0})
    (True, False)
    """
    return isinstance(value, Mapping) and "name" not in value


def points(spec: Spec, key: str, value: Mapping[str, Any]) -> list[float]:
    """The numbers that ``{start, stop, num}`` stands for: log-spaced, both ends included.

    They are rounded to twelve digits, so that every machine makes the same cells of them.
    """
    example = f"{key} = {{start = 1e-5, stop = 1.0, num = 16}}"
    for name in value:
        if name not in ("start", "stop", "num"):
            raise spec.error(unknown(f"key in {key}", name, ("start", "stop", "num")))
    for name in ("start", "stop", "num"):
        if name not in value:
            raise spec.error(f"{key} needs '{name}': write for example {example}.")
    start, stop, num = value["start"], value["stop"], value["num"]
    for name, end in (("start", start), ("stop", stop)):
        if not _is_number(end) or not (math.isfinite(end) and end > 0):
            raise spec.error(f"{key}.{name} should be a positive number, not {end!r}: "
                             f"write for example {example}.")  # fmt: skip
    if not isinstance(num, int) or isinstance(num, bool) or not 2 <= num <= 100_000:
        raise spec.error(f"{key}.num should be a whole number from 2 to 100000, not {num!r}: "
                         f"write for example {example}.")  # fmt: skip
    if start == stop:
        raise spec.error(f"{key} starts where it stops, at {start}: write {key} = [{start}].")
    ratio = math.log(stop / start)
    inner = [float(f"{start * math.exp(ratio * i / (num - 1)):.12g}") for i in range(1, num - 1)]
    return [float(start), *inner, float(stop)]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def override(raw: dict[str, Any], text: str) -> None:
    """Change one key of a spec in place.

    ``objective.num_dim=[2, 4]``, ``settings.normalize=global``, ``seed=1``, and
    ``estimators.nes.population=[100]`` for every entry of that name (``methods.…`` likewise). The
    value is read as TOML, and as a bare word where it is none.

    Raises:
        SpecError: no ``=``, an unknown key, or an estimator the spec does not have.

    >>> spec = {"estimators": [{"name": "nes"}, {"name": "ste"}]}
    >>> override(spec, "estimators.nes.population=[100]")
    >>> spec["estimators"][0]
    {'name': 'nes', 'population': [100]}
    """
    parts, value = _toml.parse_override(text, Spec.model_fields)
    if parts[0] in ("estimators", "methods") and len(parts) > 1:
        _override_entries(raw, text, parts, value)
    else:
        _toml.assign(raw, text, parts, value)


def _override_entries(raw: dict[str, Any], text: str, parts: list[str], value: Any) -> None:
    kind, *rest = parts
    if len(rest) != 2:
        example = "estimators.nes.sigma=0.1" if kind == "estimators" else "methods.bernoulli.p=0.2"
        raise SpecError(f"override '{text}': write {kind}.NAME.OPTION=value, for example "
                        f"{example}.")  # fmt: skip
    entries = [e for e in raw.get(kind, []) if isinstance(e, dict)]
    name, option = rest
    chosen = [entry for entry in entries if entry.get("name") == name]
    if not chosen:
        names = {str(entry.get("name")) for entry in entries}
        complaint = unknown(f"{kind.removesuffix('s')} of this spec", name, names)
        raise SpecError(f"override '{text}': {complaint}")
    for entry in chosen:
        entry[option] = value
