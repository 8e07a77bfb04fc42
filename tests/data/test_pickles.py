"""CIFAR's pickles are read, and nothing in any pickle is executed."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.data import DataError
from gradlab.data.pickles import parse
from tests.data.tiny import cifar_pickle

DATA = np.arange(12, dtype=np.uint8).reshape(2, 6)
GOOD = cifar_pickle({"labels": [3, 1], "data": DATA, "names": ["cat", "dog"], "number": 258})


def test_the_parts_of_a_batch_are_read() -> None:
    found = parse(GOOD, "x")
    assert list(found) == ["labels", "data", "names", "number"]
    assert found["labels"] == [3, 1]
    assert found["names"] == [b"cat", b"dog"]
    assert found["number"] == 258
    assert found["data"].dtype == np.uint8
    assert (found["data"] == DATA).all()
    assert not found["data"].flags.writeable


def test_what_is_read_is_what_unpickling_gives() -> None:
    # ours, so unpickling it is safe; numpy.core is what NumPy 2 calls numpy._core
    modern = GOOD.replace(b"cnumpy.core.", b"cnumpy._core.")
    theirs = pickle.loads(modern, encoding="bytes")
    ours = parse(GOOD, "x")
    assert [key.decode() for key in theirs] == list(ours)
    for key, value in ours.items():
        assert np.array_equal(theirs[key.encode()], value)


class Evil:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, f"{os.system.__module__}.system"),
        (eval, "builtins.eval"),
        (os.mkdir, f"{os.mkdir.__module__}.mkdir"),
    ],
    ids=["system", "eval", "mkdir"],
)
def test_a_malicious_pickle_is_refused_by_name_and_not_executed(
    tmp_path: Path, protocol: int, function: Callable[..., Any], name: str
) -> None:
    trace = tmp_path / "trace"
    argument = {
        os.system: f"mkdir {trace}",
        eval: f"__import__('os').mkdir({str(trace)!r})",
        os.mkdir: str(trace),
    }[function]
    content = pickle.dumps({"labels": [Evil(function, argument)]}, protocol=protocol)
    with pytest.raises(DataError) as caught:
        parse(content, "batch")
    shown = name.replace("builtins", "__builtin__") if protocol < 3 else name
    assert str(caught.value).startswith(f"batch is refused: it names {shown}, and CIFAR's files")
    assert not trace.exists()
    pickle.loads(content)  # so that the pickle is known to be malicious
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n.", "it names numpy.core.multiarray.scalar"),
        (b"(ios\nsystem\n.", "it names os.system"),
        (b"(inumpy\nndarray\n.", "it names numpy.ndarray"),  # INST calls what it names
        (b"\x82\x07.", "it names extension 7"),
        (b"Pperson\n.", "it uses the pickle opcode PERSID"),
        (b"}}\x81.", "it uses the pickle opcode NEWOBJ"),
        (b"\x80\x02}(U\x01aI5\nu.", "it uses the pickle opcode INT"),
        (GOOD[:-1] + b"cos\nsystem\n", "it names os.system"),  # after what is damaged
    ],
    ids=["scalar", "inst", "inst-array", "extension", "persistent", "newobj", "int", "hidden"],
)
def test_everything_else_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(content, "batch")
    assert str(caught.value).startswith(f"batch is refused: {words}")


def replaced(old: bytes, new: bytes) -> bytes:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        b"\x80\x02].",
        b"\x80\x02K\x05.",
        b"\x80\x02}(U\x01ae.",
        b"\x80\x02}(U\x01au.",
        b"\x80\x02h\x05.",
        b"\x80\x02R.",
        b"\x80\x02u.",
        b"\x80\x02}(K\x01K\x02u.",
        replaced(b"U\x02u1", b"U\x02f4"),
        replaced(b"\x89T", b"\x88T"),
        replaced(b"J" + struct.pack("<i", 6), b"J" + struct.pack("<i", 7)),
        replaced(b"(K\x01J" + struct.pack("<i", 2), b"(K\x01J" + struct.pack("<i", -2)),
        replaced(b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n"),
        GOOD[:-1],
        GOOD[: len(GOOD) // 2],
    ],
    ids=["empty", "text", "list", "number", "mark", "odd", "memo", "reduce", "setitems", "key",
         "floats", "fortran", "shape", "negative", "call", "end", "half"],
)  # fmt: skip
def test_what_is_damaged_is_one_sentence(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^batch is (not a complete|a damaged) pickle \(.*\)\.$"):
        parse(content, "batch")


def complaint(content: bytes) -> str:
    try:
        assert isinstance(parse(content, "x"), dict)
    except DataError as error:
        return str(error)
    return "none"


@given(st.data())
def test_damage_is_a_sentence_or_a_dict(data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    raw = raw[: data.draw(st.integers(0, len(raw)))]
    assert complaint(bytes(raw)).startswith(("x is ", "none"))


@given(st.binary(max_size=200))
def test_noise_is_a_sentence_or_a_dict(content: bytes) -> None:
    assert complaint(content).startswith(("x is ", "none"))
