"""Numbers and lists in the words of a sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, without powers of ten where they can be avoided.

    >>> number(0.012345), number(1234.5), number(float("nan")), number(-0.5)
    ('0.0123', '1,230', '–', '−0.500')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -5 or exponent > 8:
        return f"{value:.{digits - 1}g}".replace("-", "−")
    rounded = round(value, digits - 1 - exponent)
    return f"{rounded:,.{max(0, digits - 1 - exponent)}f}".replace("-", "−")


def word(value: object) -> str:
    """A value as a short word.

    >>> word(0.1), word(5000.0), word("raw"), word(None), word(True)
    ('0.1', '5,000', 'raw', '–', 'yes')
    """
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, float)) or hasattr(value, "dtype"):
        number = float(value)  # type: ignore[arg-type]
        return f"{number:,.0f}" if number == int(number) else f"{number:.3g}"
    return str(value)


def interval(low: float, high: float, scale: float = 1.0, digits: int = 3) -> str:
    """`` [low, high]``, or nothing where there is no interval.

    >>> interval(0.91, 0.97, scale=100, digits=2), interval(float("nan"), 1.0)
    (' [91, 97]', '')
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f" [{number(low * scale, digits)}, {number(high * scale, digits)}]"


def percent(share: Mapping[str, float]) -> str:
    """A :func:`~gradlab.reporting.summaries.ratio` as ``94 % [91, 97]``.

    >>> percent({"ratio": 0.94, "low": 0.91, "high": 0.97})
    '94 % [91, 97]'
    >>> percent({"ratio": 0.94, "low": math.nan, "high": math.nan})
    '94 %'
    """
    shown = [100 * share[key] for key in ("ratio", "low", "high")]
    # A narrow interval deserves a decimal.
    close = shown[2] - shown[1] < 3
    mean, low, high = ((f"{v:.1f}" if close else f"{v:.0f}").replace("-", "−") for v in shown)
    return f"{mean} %" + (f" [{low}, {high}]" if all(map(math.isfinite, shown)) else "")


def cosine(value: float) -> str:
    """A cosine with two digits, three where it is close to one.

    >>> cosine(0.8765), cosine(0.9934), cosine(1.0)
    ('.88', '.993', '1')
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.3f}" if 0.975 < value < 0.9995 else f"{value:.2f}"
    text = text.replace("0.", ".", 1).replace("-", "−")
    return {"1.00": "1", "−.00": ".00"}.get(text, text)


def begin(text: str) -> str:
    """``text`` as the beginning of a sentence.

    >>> begin("local NES gains"), begin("")
    ('Local NES gains', '')
    """
    return text[:1].upper() + text[1:]


def listed(items: Iterable[object]) -> str:
    """``a, b and c``.

    >>> listed([2, 4, 8]), listed(["x"]), listed([])
    ('2, 4 and 8', 'x', '')
    """
    words = [str(item) for item in items]
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def at_num_dim(num_dims: Sequence[int]) -> str:
    """`` at num_dim 2 and 4``; nothing where the objective has no num_dim.

    >>> at_num_dim([2, 4]), at_num_dim([0])
    (' at num_dim 2 and 4', '')
    """
    known = sorted({int(n) for n in num_dims if n > 0})
    return f" at num_dim {listed(known)}" if known else ""


def count(n: float, noun: str) -> str:
    """``3 inits``, ``1 init``.

    >>> count(1, "init"), count(3, "init")
    ('1 init', '3 inits')
    """
    return f"{int(n):,} {noun}" + ("" if int(n) == 1 else "s")


def sample(n: float) -> str:
    """``n = 3 inits``, and that there is no interval where there is none.

    >>> sample(3), sample(2)
    ('n = 3 inits', 'n = 2 inits, too few for an interval')
    """
    return f"n = {count(n, 'init')}" + (", too few for an interval" if n < 3 else "")


def passes(forward: float) -> str:
    """A cost in words.

    >>> passes(1), passes(6208.0), passes(2.5)
    ('1 forward pass', '6,208 forward passes', '2.5 forward passes')
    """
    amount = f"{forward:,.0f}" if forward == round(forward) else f"{forward:,.1f}"
    return f"{amount} forward pass{'' if forward == 1 else 'es'}"


def lr(value: float) -> str:
    """A learning rate.

    >>> lr(0.1), lr(1e-5), lr(0.046415888)
    ('0.1', '1e-05', '0.0464')
    """
    return f"{value:.3g}"
