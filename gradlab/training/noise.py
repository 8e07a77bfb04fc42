"""How the noise of trained weights is drawn, and how that is changed.

Methods with the same parameters can stand in for each other: Bayes by Backprop trained with sampled
weights is evaluated with sampled pre-activations, dropout with another rate. Overrides of the
weights' own ``[variational]`` say what changes. The rest of that table (the KL term, the samples of
a step) belongs to training, and is refused.

>>> trained = {"method": {"name": "bayes_by_backprop"}, "layers": "all"}
>>> asked = ["variational.method.estimator=local", "variational.evaluation_samples=50"]
>>> table = changed(trained, asked, "the weights")
>>> table["method"], table["evaluation_samples"]
({'name': 'bayes_by_backprop', 'estimator': 'local'}, 50)
>>> differences(trained, table)[0]
'variational.method.estimator ("weights", now "local")'
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from gradlab import _toml, variational
from gradlab._toml import SpecError
from gradlab.training import spec

TABLE = "variational"
KEYS = ("method", "layers", "evaluation_samples")
"""What of ``[variational]`` it takes to use trained weights, and can be changed."""


def changed(trained: Mapping[str, Any], overrides: Sequence[str], source: str) -> dict[str, Any]:
    """A ``[variational]`` of trained weights with overrides.

    Args:
        trained: what the weights say of it.
        overrides: ``key=value`` texts, such as ``variational.method.estimator=local``. Where they
            name another method, the options that it does not have are left behind.
        source: how messages name the weights.

    Returns:
        The table, with all of :data:`KEYS`.

    Raises:
        SpecError: an override of anything else, an unknown method, or a value of the wrong type.
    """
    table: dict[str, Any] = copy.deepcopy(dict(trained))
    parsed = [(text, *_parsed(text)) for text in overrides]
    for _, parts, value in parsed:
        if parts == ["method", "name"] and value in variational.names():
            known = {"name", *variational.REGISTRY.options(value)}
            method = table["method"]
            table["method"] = {key: method[key] for key in method if key in known}
    for text, parts, value in parsed:
        _toml.assign(table, text, parts, value)
    checked = spec.variational_from_dict(table, source)
    return checked.model_dump(include=set(KEYS))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between two such tables, defaults included, each as ``key (old, now new)``."""
    return spec.differences(_complete(before), _complete(after), f"{TABLE}.")


def _parsed(text: str) -> tuple[list[str], Any]:
    """The parts of an override's key behind ``variational``, and its value."""
    key, equals, _ = text.partition("=")
    top, *inner = (part.strip() for part in key.split("."))
    if not equals or top != TABLE or not inner or inner[0] not in KEYS:
        *most, last = (f"{TABLE}.{key}" for key in KEYS)
        raise SpecError(f"'{text}' is nothing that can be changed in trained weights: give "
                        f"{', '.join(most)} or {last}, for example {last}=50.")  # fmt: skip
    parts, value = _toml.parse_override(text, [TABLE])
    return parts[1:], value


def _complete(table: Mapping[str, Any]) -> dict[str, Any]:
    """With every default."""
    known = changed(table, (), "the weights")
    defaults = variational.REGISTRY.defaults(known["method"]["name"])
    return {**known, "method": {**defaults, **known["method"]}}
