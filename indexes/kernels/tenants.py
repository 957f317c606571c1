"""Search of the cells of a clustering in which somebody has something, from the one nearest to the query on.

What somebody may see is a list of *keys*, `cell << 32 | row`, ascending, so that what lies in one cell lies together:

    cell 0 row 7 | cell 3 row 1 | cell 3 row 9 | cell 5 row 2      `cells`  0  3  5
    0              1                             3            4    `starts` 0  1  3  4
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.exact import distance, product
from indexes.kernels.prefetch import prefetch_range
from indexes.kernels.topk import push_one

ROW = (1 << 32) - 1  # the part of a key that is the row
AHEAD = 4  # vectors: so far ahead memory is asked for


@njit(nogil=True, cache=True)
def nearest(vectors, centroids, out):
    """`out[i]` = which of `centroids` (m, d) is the nearest to vector i of (n, d); the first of several."""
    for i in range(vectors.shape[0]):
        least = np.float32(np.inf)
        for cell in range(centroids.shape[0]):
            far = distance(centroids[cell], vectors[i])
            if far < least:
                least = far
                out[i] = cell


@njit(nogil=True, cache=True)
def search(queries, centroids, cells, starts, keys, ids, vectors, l2, candidates, heap_scores, heap_ids):
    """Offer to each query's heap the rows of the best cells, until `candidates` of them or all are scored.

    `cells` int64 (c,), ascending, `starts` int64 (c + 1,), `keys` int64 (m,): see above; `ids` int64 (n,); `vectors`
    float32 (n, d), or the bits, uint16, of float16; `l2`: whether scores are minus squared distances, not inner
    products.
    """
    scores, places = np.empty(cells.shape[0], np.float32), np.empty(cells.shape[0], np.int64)
    for q in range(queries.shape[0]):
        query, kept_scores, kept_ids = queries[q], heap_scores[q], heap_ids[q]
        if keys.shape[0] <= candidates:
            _offer(query, keys, 0, keys.shape[0], ids, vectors, l2, kept_scores, kept_ids)
            continue
        left, scored = cells.shape[0], 0
        for i in range(left):
            centroid = centroids[cells[i]]
            scores[i], places[i] = -distance(centroid, query) if l2 else product(centroid, query), i
        for i in range(left // 2 - 1, -1, -1):
            _sink(scores, places, i, left)
        while left and scored < candidates:
            start, stop = starts[places[0]], starts[places[0] + 1]
            _offer(query, keys, start, stop, ids, vectors, l2, kept_scores, kept_ids)
            scored += stop - start
            left -= 1
            scores[0], places[0] = scores[left], places[left]
            _sink(scores, places, 0, left)


@njit(nogil=True, cache=True)
def _offer(query, keys, start, stop, ids, vectors, l2, heap_scores, heap_ids):
    """Score the rows of some keys."""
    flat, d = vectors.reshape(-1), vectors.shape[1]
    for i in range(start, stop + AHEAD):
        if i < stop:
            ahead = (keys[i] & ROW) * d
            prefetch_range(flat, ahead, ahead + d)
        if i >= start + AHEAD:
            row = keys[i - AHEAD] & ROW
            score = -distance(vectors[row], query) if l2 else product(vectors[row], query)
            if score >= heap_scores[0]:
                push_one(score, ids[row], heap_scores, heap_ids)


@njit(nogil=True, cache=True, inline="always")
def _sink(scores, places, place, size):
    """Restore the order of a heap, the best score first, of equals the first place, below an entry that changed."""
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and _before(scores, places, child + 1, child):
            child += 1
        if not _before(scores, places, child, place):
            break
        scores[place], scores[child] = scores[child], scores[place]
        places[place], places[child] = places[child], places[place]
        place = child


@njit(nogil=True, cache=True, inline="always")
def _before(scores, places, a, b):
    return scores[a] > scores[b] or (scores[a] == scores[b] and places[a] < places[b])
