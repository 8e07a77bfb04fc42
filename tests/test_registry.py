from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from gradlab import _registry
from gradlab._registry import Registry, unknown


@dataclass(frozen=True)
class Widget:
    size: int
    colour: str = "blue"


@pytest.fixture
def registry() -> Registry[Any]:
    fresh: Registry[Any] = Registry("widget")
    fresh.register("round")(Widget)
    fresh.register("square")(lambda side=2: side)
    return fresh


def test_creates_with_options_and_defaults(registry: Registry[Any]) -> None:
    assert registry.create("round", size=3) == Widget(3, "blue")
    assert registry.create("square") == 2
    assert registry.names() == ["round", "square"]
    assert registry.defaults("round") == {"colour": "blue"}
    assert registry.options("round") == ["size", "colour"]


def test_the_decorator_returns_what_it_was_given(registry: Registry[Any]) -> None:
    assert registry.register("oval")(Widget) is Widget


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rond", {}, "unknown widget 'rond': did you mean 'round'? Valid: round, square."),
        ("zzzzz", {}, "unknown widget 'zzzzz'. Valid: round, square."),
        (
            "round",
            {"size": 1, "color": "red"},
            "unknown option of widget round 'color': did you mean 'colour'? Valid: colour, size.",
        ),
        ("round", {}, "widget round needs the option 'size': give size=…."),
        (["round"], {}, "the name of a widget must be a string, not ['round']."),
        (None, {}, "the name of a widget must be a string, not None."),
    ],
)
def test_one_sentence_for_each_mistake(
    registry: Registry[Any], name: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        registry.create(name, **options)
    assert str(caught.value) == message


def test_refuses_to_register_a_name_twice(registry: Registry[Any]) -> None:
    with pytest.raises(ValueError, match="'round' is registered twice"):
        registry.register("round")(Widget)


def test_unknown_with_nothing_registered() -> None:
    assert unknown("thing", "a", []) == "unknown thing 'a'. Valid: (none)."


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    """A registry with two entry points: one that loads and one that does not."""
    points = [
        EntryPoint("fraction", "fractions:Fraction", "gradlab.widgets"),
        EntryPoint("broken", "no_such_module:thing", "gradlab.widgets"),
        EntryPoint("round", "no_such_module:thing", "gradlab.widgets"),
    ]

    def fake(group: str) -> list[EntryPoint]:
        return [point for point in points if point.group == group]

    monkeypatch.setattr(_registry, "entry_points", fake)
    fresh: Registry[Any] = Registry("widget", group="gradlab.widgets")
    fresh.register("round")(Widget)
    return fresh


def test_finds_entry_points(plugins: Registry[Any]) -> None:
    assert plugins.names() == ["broken", "fraction", "round"]
    assert plugins.create("fraction", numerator=1, denominator=2) == 0.5


def test_own_names_come_before_entry_points(plugins: Registry[Any]) -> None:
    assert plugins.create("round", size=1) == Widget(1)


def test_a_broken_plugin_says_so_and_harms_nobody_else(plugins: Registry[Any]) -> None:
    with pytest.raises(ValueError, match="'broken' of an installed package does not load"):
        plugins.create("broken")
    assert plugins.create("round", size=1) == Widget(1)
