"""Batches of queries with filters of their own, answered together.

Mohoney et al., "High-Throughput Vector Similarity Search in Knowledge Graphs" (HQI; SIGMOD 2023): vectors are divided
by the filters of the workload (a tree of cuts, learned when the index is built), and queries that ask for the same part
are answered by one matrix product. Here the parts are made of the batch itself, which takes a small share of the time
of the products, and so fit any batch and need no index of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from indexes.base import Hits, Index, available_threads
from indexes.dense.flat import FlatIndex, similarities
from indexes.errors import InvalidAllow

PART = 512  # rows: their vectors and scores stay in cache
# what things take, in products of one vector with one query
FETCH, MASKED, BIT = 40, 1.4, 1 / 16  # bringing a vector from memory, a product not all of which counts, sorting a bit


def search_groups(
    index: Index, queries: Any, k: int, allow: Any, group: Any, *, threads: int | None = None, **knobs: Any
) -> Hits:
    """The `k` best rows for each query among those that the filter of its group allows, as by `index.search`.

    `queries`: (nq, d), or scipy sparse (nq, V). `allow`: bool (g, n), the filters, over the rows of the index. `group`:
    int (nq,), which of them each query has. `threads`, `knobs`: as for `index.search`.
    Each filter is searched once, for all of its queries. With a `FlatIndex`, filters that overlap also share a pass
    over the rows where that takes less time: a twelfth of it, for 1,000 queries with as many ranges of 10%.
    Raises `InvalidAllow`, and what `index.search` raises.
    """
    queries = queries.tocsr() if hasattr(queries, "tocsr") else np.atleast_2d(np.asarray(queries))
    nothing = index.search(queries[:0], k, threads=threads, **knobs)  # says what is wrong with the rest
    filters, groups = np.asarray(allow), np.asarray(group)
    if filters.dtype != np.bool_ or filters.ndim != 2 or filters.shape[1] != len(index):
        raise InvalidAllow(f"allow is {filters.dtype} {filters.shape}; it must be bool (g, {len(index)})")
    nq = queries.shape[0]
    if groups.shape != (nq,) or not (np.issubdtype(groups.dtype, np.integer) or not nq):
        raise InvalidAllow(f"group is {groups.dtype} {groups.shape}; it must be int ({nq},), one for each query")
    if nq and not 0 <= groups.min() <= groups.max() < len(filters):
        raise InvalidAllow(f"group names {groups.min()} to {groups.max()}; allow has {len(filters)} filters")
    if not nq:
        return nothing
    if isinstance(index, FlatIndex):
        parts = _shared_parts(filters, groups)
        if parts is not None:
            return _shared(index, index._check_queries(queries), k, groups, parts, threads or available_threads())
    scores, ids = np.empty((nq, k), np.float32), np.empty((nq, k), np.int64)
    for one in np.unique(groups):
        mine = np.flatnonzero(groups == one)
        hits = index.search(queries[mine], k, allow=filters[one], threads=threads, **knobs)
        scores[mine], ids[mine] = hits.scores, hits.ids
    return Hits(scores, ids)


class Parts(NamedTuple):
    """Rows that the same of the filters `used` allow, side by side, PART by PART."""

    used: np.ndarray  # int64 (u,), ascending
    rows: np.ndarray  # int64 (m,)
    bits: np.ndarray  # uint8 (m, u / 8): which filters allow each row
    touched: np.ndarray  # bool (m / PART, u): which filters allow some of a part


def _shared_parts(filters: np.ndarray, groups: np.ndarray) -> Parts | None:
    """The parts for these filters bool (g, n), or None where one filter after the other takes less time."""
    used, counts = np.unique(groups, return_counts=True)
    sizes = filters[used].sum(axis=1)
    alone = (sizes * (FETCH + counts)).sum()
    if alone <= BIT * len(used) * filters.shape[1]:
        return None
    rows, bits = _alike(filters, used)
    some = np.bitwise_or.reduceat(bits, np.arange(0, len(rows), PART), axis=0)
    touched = np.unpackbits(some, axis=1, count=len(used)).view(np.bool_)
    if alone <= MASKED * PART * (touched @ counts).sum():
        return None
    return Parts(used, rows, bits, touched)


def _shared(
    index: FlatIndex, queries: np.ndarray, k: int, groups: np.ndarray, parts: Parts, threads: int
) -> Hits:
    """All filters in one pass over the rows."""
    from indexes.kernels import topk

    heap_scores, heap_ids = topk.empty_heaps(len(queries), k)
    places = np.searchsorted(parts.used, groups)
    for part, touched in enumerate(parts.touched):
        here = slice(part * PART, (part + 1) * PART)
        rows, asking = parts.rows[here], np.flatnonzero(touched[places])
        inside = np.unpackbits(parts.bits[here], axis=1, count=len(parts.used)).T.view(np.bool_)  # filter, row
        scores = similarities(queries[asking], index.vectors[rows], index.metric, threads)
        scores[~inside[places[asking]]] = -np.inf
        best, best_ids = heap_scores[asking], heap_ids[asking]
        topk.push_rows(scores, index.ids[rows], best, best_ids)
        heap_scores[asking], heap_ids[asking] = best, best_ids
    topk.sort_heaps(heap_scores, heap_ids)
    heap_ids[heap_scores == -np.inf] = -1
    return Hits(heap_scores, heap_ids)


def _alike(filters: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows int64 (m,) that some of the filters `used` allow, and which do, packed uint8 (m, len(used) / 8).

    Rows are in the order of these bits: the first filter divides all of them, the next one both parts, as a tree would.
    """
    packed = np.zeros((-(-len(used) // 8), filters.shape[1]), np.uint8)
    for place, one in enumerate(used):  # numpy's own is slow along this axis
        packed[place // 8] |= filters[one].view(np.uint8) << (7 - place % 8)
    rows = np.flatnonzero(packed.any(axis=0))
    bits = np.ascontiguousarray(packed[:, rows].T)
    order = np.argsort(bits.view(f"V{len(packed)}")[:, 0], kind="stable")
    return rows[order], bits[order]
