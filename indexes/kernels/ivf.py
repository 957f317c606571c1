"""Inverted lists: which of them lie nearest to a query, and a scan over the codes of these alone.

Rows lie list by list, each list in whole blocks of the layout of `indexes.kernels.scan`, so that a list is a run of
blocks. One query costs some 20 microseconds beside its arithmetic, so that much is done in few calls.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.exact import chosen, distance, product
from indexes.kernels.scan import quantize_queries
from indexes.kernels.scan import search as scan_search
from indexes.kernels.topk import push_lists, sort_heaps


@njit(nogil=True, cache=True)
def nearest(centroids, words, step, shifts, by_length, reach, queries, lists):
    """The nearest lists, best first: `lists` int64 (nq, nprobe), -1 for those beyond `reach`.

    How near a list is: the inner product of the query with its centroid, float32 (nlist, d), as scored by codes of 8
    bits with levels of `step` float32 (d,) in `words` (blocks, W, LANES), less `shifts` float32 (16 for each block),
    which `by_length` multiplies by the length of the query. `reach`: how many times the distance of the nearest one's
    centroid that of others may be; infinity for any.
    """
    nq, width, nprobe = queries.shape[0], words.shape[1], lists.shape[1]
    asked, slopes = quantize_queries(queries * step, 8, width)
    tilts = np.empty(nq, np.float32)
    for q in range(nq):
        tilts[q] = -np.sqrt(product(queries[q], queries[q])) if by_length else np.float32(-1)
    near = np.full(lists.shape, -np.inf, np.float32)
    lists[:] = -1
    scan_search(
        words, 8, width, np.arange(words.shape[0]), np.arange(centroids.shape[0]), np.empty(0, np.bool_),
        np.ones(shifts.shape[0], np.float32), shifts, np.empty(0, np.float32),
        asked, slopes, tilts, near, lists,
    )  # fmt: skip
    sort_heaps(near, lists)
    if reach < np.inf:
        away = np.empty(nprobe, np.float32)
        for q in range(nq):
            for i in range(nprobe):
                away[i] = distance(centroids[lists[q, i]], queries[q])
            least = away.min()
            for i in range(nprobe):
                if away[i] > reach * reach * least:
                    lists[q, i] = -1


@njit(nogil=True, cache=True)
def search(
    words, bits, width, starts, lists, ids, allowed, scales, offsets, squares, weights, tilts, factor,
    heap_scores, heap_ids,
):  # fmt: skip
    """Rank the documents of the lists of each query, `lists` int64 (nq, nprobe), -1 for none, in heaps (nq, k).

    List i is made of the blocks `starts[i]` to `starts[i + 1]`, int64 (nlist + 1,). `weights` float32 (nq, levels) and
    `tilts` (nq,) are of the queries, not quantised yet, and count `factor` times. All else as in `scan.search`. Queries
    have lists of their own, so that they are scanned one after the other.
    """
    nq = lists.shape[0]
    queries, slopes = quantize_queries(weights, bits, width)
    for q in range(nq):
        slopes[q] *= factor
        total = 0
        for i in lists[q]:
            total += starts[i + 1] - starts[i] if i >= 0 else 0
        blocks, at = np.empty(total, np.int64), 0
        for i in lists[q]:
            if i >= 0:
                for block in range(starts[i], starts[i + 1]):
                    blocks[at] = block
                    at += 1
        one = slice(q, q + 1)
        scan_search(
            words, bits, width, blocks, ids, allowed, scales, offsets, squares,
            queries[one], slopes[one], tilts[one] * factor, heap_scores[one], heap_ids[one],
        )  # fmt: skip
    sort_heaps(heap_scores, heap_ids)


@njit(nogil=True, cache=True)
def rerank(vectors, queries, rows, labels, l2, heap_scores, heap_labels):
    """Rank the vectors at `rows` int64 (nq, m) by exact scores, in heaps (nq, k); `labels` (nq, m), -1 for none."""
    scores = np.empty(rows.shape, np.float32)
    chosen(vectors, queries, rows, l2, scores)
    push_lists(scores, labels, heap_scores, heap_labels)
    sort_heaps(heap_scores, heap_labels)
