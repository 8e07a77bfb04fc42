"""From a spec to its cells: every axis expanded, every default filled in, every option checked.

The order is fixed: replicates outermost (init, then batch), then objective, student, settings,
and estimators innermost. A sweep stopped half-way has whole replicates of everything, and what is
compared within one replicate ran close together.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from gradlab._registry import unknown
from gradlab.sweep import spec as specs
from gradlab.sweep.cells import SCHEMA, Cell, title
from gradlab.sweep.spec import Spec

MOST_CELLS = 1_000_000


def read_spec(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec and check everything about it, down to the last cell.

    Args:
        path_or_name: a TOML file, or the bare name of a shipped sweep such as ``quickstart``.
        overrides: ``key=value`` texts, such as ``seed=1`` or ``objective.num_dim=[2, 4]``.

    Raises:
        SpecError: one sentence that names the file, the key, the mistake and the fix.
    """
    spec = specs.load(path_or_name, overrides)
    expand(spec)
    return spec


def expand(spec: Spec) -> list[Cell]:
    """All cells of a spec, in the order in which they run.

    Raises:
        SpecError: an unknown study, estimator, objective, option or figure, a value out of range,
            a combination that cannot be run, or the same cell twice.
    """
    from gradlab import studies

    try:
        study = studies.create(spec.study)
    except ValueError as error:
        raise spec.error(str(error)) from None
    kind, given = _kind(study), spec.entries[0]
    if kind != given:
        raise spec.error(f"the study {spec.study} compares {kind}: write [[{kind}]] instead of "
                         f"[[{given}]].")  # fmt: skip
    _check_figures(spec)
    replicates = [range(spec.inits), range(spec.batches)]
    problems = [
        _objectives(spec),
        _students(spec),
        _settings(spec, study),
        _estimators(spec, study),
    ]
    count = spec.inits * spec.batches
    for axis in problems:
        count *= len(axis)
    if count > MOST_CELLS:
        raise spec.error(f"this makes {count:,} cells, and {MOST_CELLS:,} are the most: "
                         "shorten an axis, inits or batches.")  # fmt: skip
    cells = []
    for init, batch in itertools.product(*replicates):
        for objective, student, settings, estimator in itertools.product(*problems):
            config = {
                "schema": SCHEMA, "study": spec.study, "seed": spec.seed, "threads": spec.threads,
                "objective": objective, "student": student, "estimator": estimator,
                "init": init, "batch": batch, "settings": settings,
            }  # fmt: skip
            if init == batch == 0:
                try:
                    study.validate(config)
                except ValueError as error:
                    raise spec.error(str(error)) from None
            cells.append(Cell(config))
    _refuse_repeats(spec, cells[: len(cells) // (spec.inits * spec.batches)])
    return cells


def _refuse_repeats(spec: Spec, cells: list[Cell]) -> None:
    seen: set[str] = set()
    for cell in cells:
        if cell.hash in seen:
            raise spec.error(f"two [[{spec.entries[0]}]] entries make the same cell "
                             f"({title(cell.config)}): remove one of them.")  # fmt: skip
        seen.add(cell.hash)


def _check_figures(spec: Spec) -> None:
    known = specs.shipped_figures()
    for figure in spec.figures or ():
        if figure not in known:
            raise spec.error(unknown("figure", figure, known))


def _objectives(spec: Spec) -> list[dict[str, Any]]:
    from gradlab import objectives

    name = _name(spec, "objective", spec.objective, "teacher_student")
    try:
        valid, defaults = objectives.REGISTRY.options(name), objectives.defaults(name)
    except ValueError as error:
        raise spec.error(f"objective.name: {error}") from None
    # The study gives every cell its own seed and batch.
    replicate = {option: 0 for option in ("seed", "batch") if option in valid}
    valid = [option for option in valid if option not in replicate]
    defaults = {key: value for key, value in defaults.items() if key in valid}
    found = []
    whole = {option for owner, option in objectives.LIST_OPTIONS if owner == name}
    for options in _entries(spec, "objective", spec.objective, valid, defaults, whole):
        try:
            objectives.create(name, **_small(options), **replicate)
        except (ValueError, TypeError, RuntimeError) as error:
            raise spec.error(f"objective: {error}") from None
        found.append({"name": name, **options})
    return found


def _small(options: dict[str, Any]) -> dict[str, Any]:
    """An objective's options with one example, so that checking them costs nothing."""
    size = options.get("batch_size")
    valid = isinstance(size, int) and not isinstance(size, bool) and size > 1
    return {**options, "batch_size": 1} if valid else options


def _students(spec: Spec) -> list[dict[str, Any]]:
    from gradlab.studies import students

    found: list[dict[str, Any]] = []
    objective = str(spec.objective.get("name"))
    known = students.defaults(objective)
    for options in _product(_axes(spec, "student", spec.student, ())):
        options = {k: _like(known.get(k), v, False) for k, v in options.items()}
        try:
            student = students.canonical(options, objective)
        except ValueError as error:
            raise spec.error(f"student: {error}") from None
        if student not in found:  # a fresh student has no training to vary
            found.append(student)
    return found


def _estimators(spec: Spec, study: Any) -> list[dict[str, Any]]:
    """The entries of ``[[estimators]]``, or of ``[[methods]]`` where the study compares those."""
    from gradlab import estimators

    registry = getattr(study, "entries", estimators.REGISTRY)
    kind, entries = spec.entries
    found = []
    for number, entry in enumerate(entries, start=1):
        name = _name(spec, f"[[{kind}]] entry {number}", entry, "ste")
        where = f"{kind}.{name}"
        try:
            valid, defaults = registry.options(name), registry.defaults(name)
        except ValueError as error:
            raise spec.error(str(error)) from None
        own: Collection[tuple[str, str]] = getattr(study, "list_options", ())
        lists = estimators.LIST_OPTIONS if kind == "estimators" else own
        whole = {option for owner, option in lists if owner == name}
        for options in _entries(spec, where, entry, valid, defaults, whole):
            try:
                registry.create(name, **options)
            except ValueError as error:
                raise spec.error(f"{where}: {error}") from None
            except TypeError as error:
                raise spec.error(
                    f"{where}: an option has the wrong type ({error}): compare with "
                    f"`gradlab list {getattr(study, 'listed_as', kind)}`."
                ) from None
            found.append({"name": name, **options})
    return found


def _kind(study: Any) -> str:
    return "methods" if hasattr(study, "entries") else "estimators"


def _settings(spec: Spec, study: Any) -> list[dict[str, Any]]:
    model = study.settings_model
    whole = {name for name, field in model.model_fields.items() if _is_list(field.annotation)}
    found = []
    given = {
        # One number where a list is meant is a list of one.
        key: [value] if key in whole and not isinstance(value, (list, Mapping)) else value
        for key, value in spec.settings.items()
    }
    for options in _product(_axes(spec, "settings", given, whole)):
        try:
            # Through JSON: a strict model then takes a list where it says tuple, and nothing else.
            validated = model.model_validate_json(_json(options), strict=True)
        except pydantic.ValidationError as error:
            raise spec.error(specs.sentence(error, model, {}, "settings.")) from None
        found.append(validated.model_dump(mode="json"))
    return found


def _json(options: Mapping[str, Any]) -> str:
    from pydantic_core import to_json

    return to_json(dict(options)).decode()


def _name(spec: Spec, where: str, entry: Mapping[str, Any], example: str) -> str:
    if "name" not in entry:
        raise spec.error(f'{where} has no name: write for example name = "{example}".')
    if not isinstance(entry["name"], str):
        raise spec.error(f"{where}: name should be one word in quotes, not {entry['name']!r}: "
                         f'write for example name = "{example}".')  # fmt: skip
    return entry["name"]


def _entries(
    spec: Spec,
    where: str,
    entry: Mapping[str, Any],
    valid: Sequence[str],
    defaults: Mapping[str, Any],
    whole: Collection[str],
) -> list[dict[str, Any]]:
    """Every combination of an entry's axes, with the defaults written out."""
    given = {key: value for key, value in entry.items() if key != "name"}
    for option in given:
        if option not in valid:
            raise spec.error(unknown(f"option of {where}", option, valid))
    for option in valid:
        if option not in given and option not in defaults:
            raise spec.error(f"{where} needs '{option}': give {option} = ….")
    found = []
    for options in _product(_axes(spec, where, given, whole)):
        complete = {option: options.get(option, defaults.get(option)) for option in valid}
        found.append({k: _like(defaults.get(k), v, k in whole) for k, v in complete.items()})
    return found


def _axes(
    spec: Spec, where: str, given: Mapping[str, Any], whole: Collection[str]
) -> dict[str, list[Any]]:
    """The values each option takes, one list per option."""
    axes = {}
    for option, value in given.items():
        if specs.is_range(value):
            value = specs.points(spec, f"{where}.{option}", value)
        if option in whole:
            # A list of lists is an axis over lists: one cell per inner list.
            nested = isinstance(value, list) and all(isinstance(item, list) for item in value)
            axes[option] = value if nested else [value]
        else:
            axes[option] = value if isinstance(value, list) else [value]
    return axes


def _product(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _like(default: Any, value: Any, whole: bool) -> Any:
    """A number in the type of its option, so that 1 and 1.0 run and are stored the same.

    >>> _like(0.1, 1, False), _like(None, 16384.0, False), _like(500, 500, True)
    (1.0, 16384, [500])
    """
    if isinstance(value, (list, tuple)):
        first = default[0] if isinstance(default, (list, tuple)) and default else default
        return [_like(first, item, False) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(default, float):
            value = float(value)
        elif isinstance(value, float) and value.is_integer():
            value = int(value)
        return [value] if whole else value
    return value


def _is_list(annotation: Any) -> bool:
    """Whether a settings field holds a list, so that a list given for it is not an axis."""
    origin = typing.get_origin(annotation)
    if origin in (list, tuple) or annotation in (list, tuple):
        return True
    return any(_is_list(part) for part in typing.get_args(annotation) if part is not Ellipsis)
