"""Building of the graph of `GraphIndex`: which rows come when, and what the kernels need to measure distances."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from indexes.base import in_chunks
from indexes.dense.store import LINE, aligned

if TYPE_CHECKING:
    from indexes.dense.graph_codes import RowCodes

BLOCK = 4096  # rows decoded at once
SLACK = 1.3  # times R: lists grow so long before they are pruned, which then happens rarely
BATCH = 50  # a batch is at most one of so many rows
STARTS = 256  # rows from which walks begin: one alone leaves some queries stuck in the wrong part of the graph


class Distances(NamedTuple):
    """What `kernels.graph_build` measures distances with: each row as a query."""

    asked: np.ndarray  # int8 (n * numbers,)
    slopes: np.ndarray  # float32 (n,)
    tilts: np.ndarray  # float32 (n,)
    selves: np.ndarray  # float32 (n,): the score of each row with itself


def distances(codes: RowCodes, threads: int) -> Distances:
    """Of all rows."""
    from indexes.kernels import graph_build, graph_rows

    n, levels = len(codes), codes.levels
    asked = aligned((n, codes.lines * LINE * (8 // levels.bits)), np.int8)
    slopes, tilts, selves = (np.empty(n, np.float32) for _ in range(3))

    def ask(a: int, b: int) -> None:
        for block in range(a, b):
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            weights, tilts[part] = levels.query_terms(codes.decoded(np.arange(n)[part]))
            graph_rows.quantize(weights, levels.bits, asked[part], slopes[part])

    in_chunks(ask, -(-n // BLOCK), threads)
    none, flat = np.empty(0, np.int64), asked.reshape(-1)
    graph = codes.graph(np.empty((0, 1), np.int32), none)
    in_chunks(lambda a, b: graph_build.score_selves(graph, flat, slopes, tilts, a, b, selves), n, threads)
    return Distances(flat, slopes, tilts, selves)


def extend(
    codes: RowCodes, neighbors: np.ndarray, starts: np.ndarray, *, window: int, alpha: float, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Link the rows that are not in `neighbors` int32 (linked, R) yet.

    Returns the links of all, int32 (n, R), -1 where a row has fewer, and where walks start, int64: `starts`, if rows
    were linked before.
    They come in an order drawn by `seed`, in batches as large as what came before, up to 2% of all;
    the first are the starts.
    """
    from indexes.kernels import graph_build

    (linked, R), n = neighbors.shape, len(codes)
    lists = aligned((n, int(R * SLACK)), np.int32)
    lists[:] = -1
    lists[:linked, :R] = neighbors
    counts = np.zeros(n, np.int32)
    counts[:linked] = (neighbors >= 0).sum(axis=1)
    order = linked + np.random.default_rng([seed, linked]).permutation(n - linked)
    starts = starts if linked else order[:STARTS].copy()
    graph, known, near = codes.graph(lists, starts), distances(codes, threads), np.float32(alpha)
    free: list[np.ndarray] = []

    done = 0
    while done < len(order):
        batch = order[done : done + min(max(linked + done, len(starts)), max(1, n // BATCH))]

        def link(a: int, b: int, batch: np.ndarray = batch) -> None:
            seen = free.pop() if free else np.zeros(n + 1, np.uint8)
            graph_build.link(graph, *known, batch, a, b, window, near, R, seen, counts)
            free.append(seen)

        in_chunks(link, len(batch), threads)
        targets, sources, firsts = _by_target(lists[batch, :R], batch)

        def link_back(
            a: int, b: int, targets: np.ndarray = targets, sources: np.ndarray = sources, firsts: np.ndarray = firsts
        ) -> None:
            graph_build.link_back(graph, *known, targets, sources, firsts, a, b, near, R, counts)

        in_chunks(link_back, len(firsts) - 1, threads)
        done += len(batch)

    in_chunks(lambda a, b: graph_build.finish(graph, *known, a, b, near, R, counts), n, threads)
    out = aligned((n, R), np.int32)
    out[:] = lists[:, :R]
    return out, starts


def _by_target(chosen: np.ndarray, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Links back, sorted by the row that gets them: these rows int64, who to link int32, and where each row starts."""
    targets, sources = chosen.reshape(-1), np.repeat(batch, chosen.shape[1])
    there = np.flatnonzero(targets >= 0)
    order = there[np.argsort(targets[there], kind="stable")]
    targets, sources = targets[order].astype(np.int64), sources[order].astype(np.int32)
    return targets, sources, np.append(np.flatnonzero(np.diff(targets, prepend=-1)), len(targets))
