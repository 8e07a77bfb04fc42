"""Reads the arrays in CIFAR's pickles without unpickling.

A pickle is a program, and unpickling runs it. CIFAR's files use a small part of that language: a
dict of strings, whole numbers, lists, and one NumPy array of bytes. :func:`parse` knows the
opcodes for exactly this; :func:`pickletools.genops`, which splits a pickle into opcodes, executes
nothing. The three functions that a pickled array names are not looked up but recognized, and any
other is refused by name before anything else is looked at.
"""

from __future__ import annotations

import math
import pickletools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.data.files import DataError

_RECONSTRUCT = "numpy.core.multiarray._reconstruct"
_ARRAY = "numpy.ndarray"
_DTYPE = "numpy.dtype"
_UNSIGNED_BYTE = "u1"


class _Name:
    """A global that a pickle names; nothing is imported."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Mark:
    """Where a list, tuple or run of arguments begins on the stack."""


class _Type:
    """The element type of an array, always bytes without a sign."""


class _PendingArray:
    """An array whose shape and bytes follow."""

    value: NDArray[np.uint8]


def parse(content: bytes, where: str) -> dict[str, Any]:
    r"""The dict in a pickle of CIFAR's kind.

    Args:
        content: the file.
        where: how complaints name it.

    Returns:
        Its keys as text, whole numbers and lists as they are, strings as bytes, and arrays as
        read-only uint8 arrays.

    Raises:
        DataError: the pickle names anything but NumPy's array of bytes (the complaint says what),
            uses another opcode, or is damaged. Nothing of it is executed in any case.

    >>> parse(b"\x80\x02}(U\x06labels](K\x07K\x08eu.", "batch")
    {'labels': [7, 8]}
    >>> parse(b"cos\nsystem\n(U\x04truetR.", "batch")
    Traceback (most recent call last):
    gradlab.data.files.DataError: batch is refused: it names os.system, and CIFAR's files ...
    """
    operations: list[tuple[str, Any]] = []
    try:
        for operation, argument, _ in pickletools.genops(content):
            operations.append((operation.name, argument))
    except Exception as error:
        _refuse_globals(operations, where)  # the more important complaint, if there is one
        raise DataError(f"{where} is not a complete pickle ({error}).") from None
    _refuse_globals(operations, where)
    try:
        found = _interpret(operations, where)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} is a damaged pickle ({type(error).__name__}: {error}).") from None
    return found


def _refuse_globals(operations: list[tuple[str, Any]], where: str) -> None:
    """Refuse every name but the three of a pickled array, whichever opcode names it."""
    texts: list[str] = []
    for name, argument in operations:
        if name in ("GLOBAL", "INST"):
            asked = argument.replace(" ", ".")
        elif name == "STACK_GLOBAL":
            asked = ".".join(texts[-2:])
        elif name.startswith("EXT"):
            asked = f"extension {argument}"
        else:
            if isinstance(argument, str):
                texts.append(argument)
            continue
        if name != "GLOBAL" or asked not in (_RECONSTRUCT, _ARRAY, _DTYPE):
            raise DataError(
                f"{where} is refused: it names {asked or 'nothing'}, and CIFAR's files name only "
                "NumPy's array and its type; nothing of it was executed."
            )


def _interpret(operations: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for name, argument in operations:
        match name:
            case "PROTO":
                pass
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                stack.append(_Mark())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BININT" | "BININT1" | "BININT2":
                stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING":
                stack.append(argument.encode("latin-1"))  # genops decodes bytes one to one
            case "NONE":
                stack.append(None)
            case "NEWFALSE":
                stack.append(False)
            case "NEWTRUE":
                stack.append(True)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items = _since_mark(stack)
                stack.append(tuple(items))
            case "APPENDS":
                items = _since_mark(stack)
                _as(list, stack[-1]).extend(items)
            case "SETITEMS":
                items = _since_mark(stack)
                _as(dict, stack[-1]).update(
                    {
                        key.decode(): value
                        for key, value in zip(items[::2], items[1::2], strict=True)
                    }
                )
            case "GLOBAL":
                stack.append(_Name(argument.replace(" ", ".")))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_reduced(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                _build(stack[-1], state)
            case "STOP":
                return {key: _finished(value) for key, value in _as(dict, stack.pop()).items()}
            case _:
                raise DataError(f"{where} is refused: it uses the pickle opcode {name}, which "
                                "CIFAR's files do not; nothing of it was executed.")  # fmt: skip
    raise ValueError("no end")


def _since_mark(stack: list[Any]) -> list[Any]:
    """Take everything above the last mark, and the mark, off the stack."""
    items = []
    while not isinstance(top := stack.pop(), _Mark):
        items.append(top)
    return items[::-1]


def _as(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where a {kind.__name__} belongs")
    return value


def _reduced(function: Any, arguments: Any) -> _PendingArray | _Type:
    """What the call of one of the two known functions stands for."""
    name = _as(_Name, function).name
    if name == _DTYPE:
        if arguments[0] != _UNSIGNED_BYTE.encode():
            raise ValueError(f"an array of type {arguments[0]!r} where u1 belongs")
        return _Type()
    if name == _RECONSTRUCT and _as(_Name, arguments[0]).name == _ARRAY:
        return _PendingArray()
    raise ValueError(f"a call of {name}")


def _build(target: Any, state: Any) -> None:
    """Give a pending array its shape and bytes; a type already has all it needs."""
    if isinstance(target, _Type):
        return
    _, shape, kind, fortran, content = _as(tuple, state)
    _as(_Type, kind)
    if math.prod(shape) != len(_as(bytes, content)) or fortran:
        raise ValueError(f"{len(content)} bytes for an array of shape {shape}")
    _as(_PendingArray, target).value = np.frombuffer(content, np.uint8).reshape(shape)


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, _PendingArray) else value
