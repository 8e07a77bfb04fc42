"""Does the ranking of the original comparison on CIFAR-10 survive without noise at evaluation?

The original judged every noisy method by one draw of its noise, and the network without noise as it
is. Here every pair of its rows that was trained is ordered three times: by one draw, by the mean
weights and by the mean prediction of several draws, of one and the same network at the end of
training. Published is the accuracy of the last epoch: the best one was chosen by the test images.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from gradlab.reporting import noise, summaries
from gradlab.reporting import published_variational as variational
from gradlab.reporting.columns import PREDICTIONS
from gradlab.reporting.wording import count, listed

DIGITS = 9  # means that agree so far are equal: only their sums were rounded otherwise
MOST = 4  # rows that a sentence names


def ranking(results: pd.DataFrame) -> pd.DataFrame:
    """The rows of the comparison with their places, published and ours.

    Args:
        results: the stored ``training_result`` table.

    Returns:
        ``source, scale, row, ours`` (which configuration), ``remark`` (how it was trained
        otherwise), ``n``, ``published`` and ``published_rank`` among the rows that were trained
        here; for ``sample``, ``mean`` and ``monte_carlo`` the ``<kind>_accuracy``, ``<kind>_rank``
        and ``<kind>_kept``, how many of its ``pairs`` with the other rows have the published order;
        and ``statement``. No rows where fewer than two were trained.
    """
    frame = variational.annotated(results)
    found: list[dict[str, Any]] = []
    sources = dict.fromkeys(row.source for row in variational.ROWS)
    for source, scale in itertools.product(sources, variational.SCALES):
        rows = [row for row in variational.ROWS if row.source == source]
        found += _ranked(frame, rows, scale)
    return pd.DataFrame(found)


def _ranked(frame: pd.DataFrame, rows: list[variational.Row], scale: float) -> list[dict[str, Any]]:
    """The rows of one table at one scale that were trained."""
    place = variational.SCALES.index(scale)
    entries: list[dict[str, Any]] = []
    vectors: list[pd.DataFrame] = []
    seen: set[str] = set()
    for row in rows:
        near = variational.nearest(
            variational.matching(frame, row.rows(scale)), variational.COMPARISON
        )
        if not near:
            continue
        remark, group = near[0]
        wide = summaries.replicate_means(group, ["method"], [noise.final(k) for k in noise.JUDGES])
        own = wide.set_index("init").drop(columns="method").dropna()
        name = noise.run_name(group.iloc[0].to_dict(), frame)
        # a method that was published twice is one of ours, and no rival of itself
        if own.empty or name in seen:
            continue
        seen.add(name)
        entries.append({"source": row.source, "scale": scale, "row": row.name, "ours": name,
                        "remark": remark,
                        "n": len(own), "published": row.values[place][1]})  # fmt: skip
        vectors.append(own)
    if len(entries) < 2:
        return []
    names = [str(entry["row"]) for entry in entries]
    theirs = np.array([entry["published"] for entry in entries])
    entries = [e | {"published_rank": r} for e, r in zip(entries, _ranks(theirs), strict=True)]
    for kind in noise.JUDGES:
        values = np.array([own[noise.final(kind)].mean() for own in vectors])
        # a row against another: +1 where both orders agree, −1 where they do not
        signs = np.sign(theirs[:, None] - theirs) * np.sign(
            np.round(values[:, None] - values, DIGITS)
        )
        if kind == "mean":
            wrong = signs < 0
        for i, (entry, rank) in enumerate(zip(entries, _ranks(values), strict=True)):
            entry |= {f"{kind}_accuracy": values[i], f"{kind}_rank": rank,
                      f"{kind}_kept": int((signs[i] > 0).sum())}  # fmt: skip
    pairs = (theirs[:, None] != theirs).sum(axis=1)
    for i, entry in enumerate(entries):
        entry["pairs"] = int(pairs[i])
        above = [names[j] for j in np.flatnonzero(wrong[i]) if theirs[j] > theirs[i]]
        below = [names[j] for j in np.flatnonzero(wrong[i]) if theirs[j] < theirs[i]]
        entry["statement"] = _statement(entry, above, below)
    return entries


def _ranks(values: np.ndarray) -> list[int]:
    """Places from 1 for the largest; equal values share one."""
    return [int((np.round(values - value, DIGITS) > 0).sum()) + 1 for value in values]


def _statement(entry: dict[str, Any], passed: list[str], behind: list[str]) -> str:
    """Whether a row's place survives, in a sentence."""
    pairs = entry["pairs"]
    kept = {kind: entry[f"{kind}_kept"] for kind in noise.JUDGES}
    said = listed(f"{kept[kind]} by {_judge(kind)}" for kind in noise.JUDGES)
    if min(kept.values()) == pairs:
        return f"Survives: every judge keeps its {count(pairs, 'pair')}."
    text = f"Of its {count(pairs, 'pair')} {said} are kept."
    moves = [f"passes {_some(passed)}" if passed else "",
             f"falls behind {_some(behind)}" if behind else ""]  # fmt: skip
    moved = " and ".join(move for move in moves if move)
    return f"{text} By the mean weights it {moved}." if moved else text


def _some(names: list[str]) -> str:
    shown = names if len(names) <= MOST else [*names[: MOST - 1], f"{len(names) - MOST + 1} more"]
    return listed(shown)


def sentences(table: pd.DataFrame) -> list[str]:
    """How many pairs of every published table each judge orders as it does.

    Args:
        table: as :func:`ranking` gives it.
    """
    found = []
    for source, rows in table.groupby("source", sort=False) if len(table) else ():
        pairs = int(rows["pairs"].sum()) // 2
        kept = {kind: int(rows[f"{kind}_kept"].sum()) // 2 for kind in noise.JUDGES}
        said = [f"{kept[kind]} judged by {_judge(kind)}" for kind in noise.JUDGES]
        otherwise = rows["remark"].ne("").any()
        remark = " Some of our runs were trained otherwise." if otherwise else ""
        found.append(
            f"Of {count(pairs, 'pair')} of rows of {source}, whose methods were judged by one draw "
            f"of their noise, ours have the published order in {listed(said)}.{remark}"
        )
    return found


def _judge(kind: str) -> str:
    return {"mean": "the mean weights"}.get(kind, PREDICTIONS[kind])
