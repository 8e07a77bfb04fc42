"""Things created by name: one registry serves estimators, surrogates, models and studies."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


def unknown(kind: str, given: str, valid: Iterable[str]) -> str:
    """One sentence that names a misspelt word, the nearest valid one and all valid ones.

    >>> unknown("estimator", "sle", ["cdg", "ste"])
    "unknown estimator 'sle': did you mean 'ste'? Valid: cdg, ste."
    >>> unknown("estimator", "nse", ["cdg", "nes", "ste"])
    "unknown estimator 'nse': did you mean 'nes'? Valid: cdg, nes, ste."
    """
    options = sorted(valid)
    # Two letters in the wrong order are the likeliest slip, and difflib's distance thinks little
    # of it: an anagram comes first.
    near = [option for option in options if sorted(option) == sorted(str(given))]
    near = near or difflib.get_close_matches(str(given), options, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'?" if near else "."
    return f"unknown {kind} '{given}'{hint} Valid: {', '.join(options) or '(none)'}."


class Registry(Generic[T]):
    """Factories by name, with errors that name the mistake and the fix.

    Args:
        kind: what is registered, in one or two words; it opens every error message.
        group: an entry-point group through which installed packages add their own.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._factories: dict[str, Callable[..., T]] = {}
        self._plugins: dict[str, EntryPoint] | None = None

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """A decorator that makes a class or function creatable under ``name``."""

        def keep(factory: Factory) -> Factory:
            before = self._factories.get(name)
            # A module that is imported a second time, as pytest does for doctests, is no clash.
            again = before is not factory and _origin(before) == _origin(factory)
            if before is not None and not again:
                raise ValueError(f"{self.kind} '{name}' is registered twice: choose another name.")
            self._factories[name] = factory
            return factory

        return keep

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted({*self._factories, *self._entry_points()})

    def factory(self, name: str) -> Callable[..., T]:
        """The factory behind ``name``; ``ValueError`` with the nearest valid name otherwise."""
        if not isinstance(name, str):
            raise ValueError(f"the name of a {self.kind} must be a string, not {name!r}.")
        if name not in self._factories:
            plugin = self._entry_points().get(name)
            if plugin is None:
                raise ValueError(unknown(self.kind, name, self.names()))
            self._factories[name] = _load(plugin, self.kind)
        return self._factories[name]

    def defaults(self, name: str) -> dict[str, Any]:
        """Every option of ``name`` that has a default, with that default."""
        return {
            key: parameter.default
            for key, parameter in self._parameters(name).items()
            if parameter.default is not inspect.Parameter.empty
        }

    def options(self, name: str) -> list[str]:
        """The names of every option of ``name``."""
        return list(self._parameters(name))

    def create(self, name: str, **options: Any) -> T:
        """Build ``name`` with ``options``.

        Raises:
            ValueError: unknown name or option (with the nearest valid one), missing option, or
                whatever the factory itself refuses.
        """
        factory = self.factory(name)
        parameters = self._parameters(name)
        for option in options:
            if option not in parameters:
                raise ValueError(unknown(f"option of {self.kind} {name}", option, parameters))
        for key, parameter in parameters.items():
            if parameter.default is inspect.Parameter.empty and key not in options:
                raise ValueError(f"{self.kind} {name} needs the option '{key}': give {key}=….")
        return factory(**options)

    def _parameters(self, name: str) -> dict[str, inspect.Parameter]:
        catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return {
            key: parameter
            for key, parameter in inspect.signature(self.factory(name)).parameters.items()
            if parameter.kind not in catch_all
        }

    def _entry_points(self) -> dict[str, EntryPoint]:
        # found once, and imported only when asked for: a plug-in that does not load must not
        # take everything else down with it
        if self._plugins is None:
            found = entry_points(group=self.group) if self.group is not None else ()
            self._plugins = {point.name: point for point in found}
        return self._plugins


def _origin(factory: Callable[..., Any] | None) -> tuple[str | None, str | None]:
    return getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)


def _load(plugin: EntryPoint, kind: str) -> Callable[..., Any]:
    try:
        factory: Callable[..., Any] = plugin.load()
    except Exception as error:
        raise ValueError(
            f"{kind} '{plugin.name}' of an installed package does not load from {plugin.value} "
            f"({type(error).__name__}: {error}): mend or uninstall that package."
        ) from error
    return factory
