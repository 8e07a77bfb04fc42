"""Seconds and bytes in the units people read."""

from __future__ import annotations


def seconds_text(seconds: float) -> str:
    """A duration with two units at most.

    >>> [seconds_text(s) for s in (0.02, 7.4, 200, 7500, 280_000)]
    ['under 1 s', '7 s', '3 min 20 s', '2 h 5 min', '3 d 5 h']
    """
    if seconds < 1:
        return "under 1 s"
    total = round(seconds)
    for large, small, in_large, in_small in (
        ("d", "h", 86_400, 3_600),
        ("h", "min", 3_600, 60),
        ("min", "s", 60, 1),
    ):
        if total >= in_large:
            rest = total % in_large // in_small
            return f"{total // in_large} {large}" + (f" {rest} {small}" if rest else "")
    return f"{total} s"


def about(seconds: float) -> str:
    """An estimate of a duration.

    >>> about(0.1), about(61)
    ('under 1 s', 'about 1 min 1 s')
    """
    return seconds_text(seconds) if seconds < 1 else f"about {seconds_text(seconds)}"


def bytes_text(count: float) -> str:
    """A size in binary units.

    >>> bytes_text(900), bytes_text(3 * 2**20), bytes_text(1.25 * 2**30)
    ('900 B', '3.0 MiB', '1.2 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def counted(count: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "cell"), counted(1200, "cell")
    ('1 cell', '1,200 cells')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
