"""Writing a spec back as TOML (the standard library only reads it)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def dumps(spec: Mapping[str, Any]) -> str:
    """A spec as TOML text; keys without a value are left out.

    >>> print(dumps({"name": "a", "settings": {"lr": [0.1, 1.0]}, "estimators": [{"name": "ste"}]}))
    name = "a"
    <BLANKLINE>
    [settings]
    lr = [0.1, 1.0]
    <BLANKLINE>
    [[estimators]]
    name = "ste"
    <BLANKLINE>
    """
    plain, blocks = [], []
    for key, value in spec.items():
        if isinstance(value, Mapping):
            blocks.append("\n".join([f"[{_key(key)}]", *_lines(value)]))
        elif _is_array_of_tables(value):
            blocks += ["\n".join([f"[[{_key(key)}]]", *_lines(entry)]) for entry in value]
        elif value is not None:
            plain.append(f"{_key(key)} = {_value(value)}")
    return "\n\n".join(filter(None, ["\n".join(plain), *blocks])) + "\n"


def _is_array_of_tables(value: Any) -> bool:
    listed = isinstance(value, list) and bool(value)
    return listed and all(isinstance(entry, Mapping) for entry in value)


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items() if value is not None]


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value)
    # A JSON string without escapes beyond the BMP is a TOML basic string; so are true and 12.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
