"""Where the files that travel with gradlab lie: the shipped sweeps and figures."""

from __future__ import annotations

from pathlib import Path

KINDS = ("sweeps", "figures")


def folder(kind: str) -> Path:
    """The folder of the shipped ``sweeps`` or ``figures``.

    In an installed wheel they lie inside the package (``gradlab/_shipped_files/<kind>``); in a
    checkout they lie at the root of the repository, where people edit them.

    Raises:
        ValueError: another kind is asked for.
        FileNotFoundError: neither place has the folder.

    >>> folder("figures").name
    'figures'
    """
    if kind not in KINDS:
        raise ValueError(f"there are no shipped {kind!r}: choose one of {', '.join(KINDS)}.")
    package = Path(__file__).resolve().parent
    candidates = [package / "_shipped_files" / kind, package.parent / kind]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    places = " nor ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"the shipped {kind} are neither in {places}: install gradlab again.")
