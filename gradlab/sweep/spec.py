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
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from gradlab import _shipped
from gradlab._registry import unknown

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
}


class SpecError(ValueError):
    """A spec, an override or an argument is wrong; the message is one sentence with the fix."""


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
    estimators: list[dict[str, Any]] = Field(min_length=1)

    _source: str = PrivateAttr(default="the spec")

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
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = shipped_sweeps()
    if path.is_dir():
        raise SpecError(f"{path} is a folder: give the TOML file of a sweep.")
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    if len(path.parts) > 1 or path.suffix:
        raise SpecError(f"there is no file {path}: give the path of a TOML spec, or the name of a "
                        f"shipped sweep ({', '.join(shipped) or 'none here'}).")  # fmt: skip
    raise SpecError(unknown("sweep", str(path_or_name), shipped))


def shipped_sweeps() -> dict[str, Path]:
    """The sweeps that travel with gradlab, by name."""
    return _shipped_files("sweeps", "*.toml")


def shipped_figures() -> dict[str, Path]:
    """The figures that travel with gradlab, by name."""
    return _shipped_files("figures", "[!_]*.py")


def _shipped_files(kind: str, pattern: str) -> dict[str, Path]:
    try:
        folder = _shipped.folder(kind)
    except FileNotFoundError:
        return {}
    return {path.stem: path for path in sorted(folder.glob(pattern))}


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec and its overrides, and check their shape.

    Args:
        path_or_name: a TOML file, or the bare name of a shipped sweep.
        overrides: ``key=value`` texts, see :func:`override`.

    Raises:
        SpecError: one sentence, see the module's docstring.
    """
    path = find(path_or_name)
    raw = _read_toml(path)
    for text in overrides:
        override(raw, text)
    changed = f" with {', '.join(overrides)}" if overrides else ""
    return from_dict(raw, source=f"{path}{changed}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not TOML: {_lower(str(error))}.") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not TOML: save it as UTF-8 text.") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {_lower(str(error.strerror))}.") from None


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
    for number, entry in enumerate(spec.estimators, start=1):
        for option, value in entry.items():
            _check_value(spec, f"estimators.{entry.get('name', number)}.{option}", value)
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
    ``estimators.nes.population=[100]`` for every entry of that name. The value is read as TOML,
    and as a bare word where it is none.

    Raises:
        SpecError: no ``=``, an unknown key, or an estimator the spec does not have.

    >>> spec = {"estimators": [{"name": "nes"}, {"name": "ste"}]}
    >>> override(spec, "estimators.nes.population=[100]")
    >>> spec["estimators"][0]
    {'name': 'nes', 'population': [100]}
    """
    key, equals, written = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise SpecError(f"'{text}' is no override: write key=value, for example seed=1.")
    if parts[0] not in Spec.model_fields:
        raise SpecError(f"override '{text}': {unknown('key', parts[0], Spec.model_fields)}")
    value = _value(text, written.strip())
    if parts[0] == "estimators" and len(parts) > 1:
        _override_estimators(raw, text, parts[1:], value)
        return
    target = raw
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise SpecError(f"override '{text}': '{part}' holds no keys of its own: "
                            f"write {part}=….")  # fmt: skip
    target[parts[-1]] = value


def _value(text: str, written: str) -> Any:
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        if not written or written[0] in "[{\"'":
            raise SpecError(f"override '{text}': {written or 'nothing'} is no value: write a "
                            "number, a word, or a list such as [2, 4] or "
                            '["relu", "steep"].') from None  # fmt: skip
        return written


def _override_estimators(raw: dict[str, Any], text: str, parts: list[str], value: Any) -> None:
    if len(parts) != 2:
        raise SpecError(f"override '{text}': write estimators.NAME.OPTION=value, for example "
                        "estimators.nes.sigma=0.1.")  # fmt: skip
    entries = [e for e in raw.get("estimators", []) if isinstance(e, dict)]
    chosen = [entry for entry in entries if entry.get("name") == parts[0]]
    if not chosen:
        names = {str(entry.get("name")) for entry in entries}
        raise SpecError(f"override '{text}': {unknown('estimator of this spec', parts[0], names)}")
    for entry in chosen:
        entry[parts[1]] = value


def sentence(
    error: pydantic.ValidationError,
    model: type[BaseModel],
    examples: Mapping[str, str],
    prefix: str = "",
) -> str:
    """The first of pydantic's complaints as one sentence with the fix.

    Args:
        error: what pydantic raised.
        model: the model that refused, for its valid keys and defaults.
        examples: a correct line for each key.
        prefix: what stands before the key in the spec, such as ``settings.``.
    """
    # A misspelt key often leaves the right one missing: the misspelling is the mistake to name.
    details = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = details[0]
    location = [str(part) for part in first["loc"] if not str(part).startswith("function-")]
    top = location[0] if location else ""
    key = f"{prefix}{top}"
    if first["type"] == "extra_forbidden":
        return unknown(f"key in [{prefix[:-1]}]" if prefix else "key", top, model.model_fields)
    field = model.model_fields.get(top)
    example = examples.get(top)
    if example is None and field is not None and field.get_default() is not None:
        example = f"{top} = {_toml(field.get_default(call_default_factory=True))}"
    fix = f"write for example {example}" if example else "see the study's documentation"
    if first["type"] == "missing":
        return f"the key '{key}' is missing: {fix}."
    if not top:
        return f"{_lower(first['msg'].removeprefix('Value error, ')).rstrip('.')}."
    message = first["msg"]
    for opening in ("Input should be ", "Value error, ", "Assertion failed, "):
        message = message.removeprefix(opening)
    if first["type"] == "string_pattern_mismatch":
        message = "letters, digits, '-', '_' and '.' only"
    if first["type"] in ("value_error", "assertion_error"):
        return f"{key}: {message.rstrip('.')}."
    message = message.replace("a valid array", "a list")
    given = repr(first["input"])
    given = given if len(given) < 60 else given[:57] + "…"
    return f"{key} should be {_lower(message)}, not {given}: {fix}."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        shown = [_toml(item) for item in value[:3]] + ["…"] * (len(value) > 3)
        return f"[{', '.join(shown)}]"
    return str(value)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
