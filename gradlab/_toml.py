"""Specs as TOML: reading, ``key=value`` overrides, and complaints of one sentence.

What sweeps (:mod:`gradlab.sweep.spec`) and training runs (:mod:`gradlab.training.spec`) share. A
complaint names the file, the key, the mistake and the fix. Nothing here imports torch.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel

from gradlab import _shipped
from gradlab._registry import unknown


class SpecError(ValueError):
    """A spec, an override or an argument is wrong; the message is one sentence with the fix."""


def shipped(kind: str, pattern: str, subfolder: str = "") -> dict[str, Path]:
    """The files of one kind that travel with gradlab, by name without ending.

    >>> "quickstart" in shipped("sweeps", "*.toml")
    True
    """
    try:
        folder = _shipped.folder(kind)
    except FileNotFoundError:
        return {}
    return {path.stem: path for path in sorted((folder / subfolder).glob(pattern))}


def find(path_or_name: str | Path, files: Mapping[str, Path], kind: str, a_kind: str) -> Path:
    """The file behind a path or the bare name of one that is shipped.

    Args:
        path_or_name: what was given.
        files: the shipped ones by name.
        kind: what they are, such as "sweep".
        a_kind: the same as somebody writes one, such as "a sweep".

    Raises:
        SpecError: there is no such file.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    if path.is_dir():
        raise SpecError(f"{path} is a folder: give the TOML file of {a_kind}.")
    if str(path_or_name) in files:
        return files[str(path_or_name)]
    if len(path.parts) > 1 or path.suffix:
        raise SpecError(f"there is no file {path}: give the path of a TOML spec, or the name of a "
                        f"shipped {kind} ({', '.join(files) or 'none here'}).")  # fmt: skip
    raise SpecError(unknown(kind, str(path_or_name), files))


def read(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        SpecError: it is not TOML, or cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path} is not TOML: {lower(str(error))}.") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not TOML: save it as UTF-8 text.") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {lower(str(error.strerror))}.") from None


def parse_override(text: str, keys: Collection[str]) -> tuple[list[str], Any]:
    """The parts of an override's key, and its value.

    The value is read as TOML, and as a bare word where it is none.

    Args:
        text: ``key=value``, the key with dots where tables nest.
        keys: what the key may begin with.

    Raises:
        SpecError: no ``=``, an unknown key, or a value that is none.

    >>> parse_override("objective.num_dim=[2, 4]", ["objective"])
    (['objective', 'num_dim'], [2, 4])
    >>> parse_override("settings.normalize=global", ["settings"])
    (['settings', 'normalize'], 'global')
    """
    key, equals, written = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise SpecError(f"'{text}' is no override: write key=value, for example seed=1.")
    if parts[0] not in keys:
        raise SpecError(f"override '{text}': {unknown('key', parts[0], keys)}")
    return parts, _value(text, written.strip())


def _value(text: str, written: str) -> Any:
    try:
        return tomllib.loads(f"value = {written}")["value"]
    except tomllib.TOMLDecodeError:
        if not written or written[0] in "[{\"'":
            raise SpecError(f"override '{text}': {written or 'nothing'} is no value: write a "
                            "number, a word, or a list such as [2, 4] or "
                            '["relu", "steep"].') from None  # fmt: skip
        return written


def assign(raw: dict[str, Any], text: str, parts: list[str], value: Any) -> None:
    """Set one key of nested tables in place; tables that are missing are made.

    Raises:
        SpecError: something on the way is no table.

    >>> spec = {"loop": {"epochs": 3}}
    >>> assign(spec, "model.width=8", ["model", "width"], 8)
    >>> spec
    {'loop': {'epochs': 3}, 'model': {'width': 8}}
    """
    target = raw
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise SpecError(f"override '{text}': '{part}' holds no keys of its own: "
                            f"write {part}=….")  # fmt: skip
    target[parts[-1]] = value


def with_overrides(path: Path, overrides: Iterable[str]) -> str:
    """How messages name a file with its overrides.

    >>> with_overrides(Path("a.toml"), ["seed=1", "inits=2"])
    'a.toml with seed=1, inits=2'
    """
    changed = ", ".join(overrides)
    return f"{path} with {changed}" if changed else str(path)


def not_finite(key: str, value: Any) -> str | None:
    """A complaint about the first number in a value that is NaN or infinite, if there is one.

    >>> not_finite("optimizer", {"lr": float("nan")})
    'optimizer.lr is nan: give a finite number.'
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f"{key} is {value}: give a finite number."
    inner: Iterable[tuple[str, Any]] = ()
    if isinstance(value, Mapping):
        inner = ((f"{key}.{name}", item) for name, item in value.items())
    elif isinstance(value, list):
        inner = ((key, item) for item in value)
    return next((found for place, item in inner if (found := not_finite(place, item))), None)


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
        return f"{lower(first['msg'].removeprefix('Value error, ')).rstrip('.')}."
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
    return f"{key} should be {lower(message)}, not {given}: {fix}."


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, (list, tuple)):
        shown = [_toml(item) for item in value[:3]] + ["…"] * (len(value) > 3)
        return f"[{', '.join(shown)}]"
    return str(value)


def lower(text: str) -> str:
    """With a small first letter, to stand inside a sentence."""
    return text[:1].lower() + text[1:]
