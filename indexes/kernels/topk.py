"""The one top-k of the toolkit: bounded heaps of (score, id), best = highest score, ties to the smaller id.

A heap is a row of two arrays, `heap_scores` float32 (k,) and `heap_ids` int64 (k,), with its worst entry first;
empty places hold (-inf, -1). Pushing blocks of scores one after another is also the merge of several rankings.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, inline="always")
def is_worse(score_a, id_a, score_b, id_b):
    """Whether entry a ranks below entry b. An empty place (id -1) ranks below everything."""
    if id_a < 0 or id_b < 0:
        return id_a < id_b
    return score_a < score_b or (score_a == score_b and id_a > id_b)


@njit(nogil=True, cache=True)
def sift_down(heap_scores, heap_ids, size):
    """Restore the heap order of the first `size` places after a change of the root."""
    score, label, place = heap_scores[0], heap_ids[0], 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        right = child + 1
        if right < size and is_worse(heap_scores[right], heap_ids[right], heap_scores[child], heap_ids[child]):
            child = right
        if not is_worse(heap_scores[child], heap_ids[child], score, label):
            break
        heap_scores[place], heap_ids[place] = heap_scores[child], heap_ids[child]
        place = child
    heap_scores[place], heap_ids[place] = score, label


@njit(nogil=True, cache=True)
def push_one(score, label, heap_scores, heap_ids):
    """Offer one entry to a heap; kept if it ranks above the worst entry there."""
    if is_worse(heap_scores[0], heap_ids[0], score, label):
        heap_scores[0], heap_ids[0] = score, label
        sift_down(heap_scores, heap_ids, heap_scores.shape[0])


@njit(nogil=True, cache=True)
def push_rows(scores, ids, heap_scores, heap_ids):
    """Offer `scores` (nq, b) of the documents `ids` (b,) to nq heaps (nq, k); an id of -1 is an excluded document."""
    for query in range(scores.shape[0]):
        row, kept_scores, kept_ids = scores[query], heap_scores[query], heap_ids[query]
        for i in range(row.shape[0]):
            # one cheap comparison lets nearly every document go
            if row[i] >= kept_scores[0] and ids[i] >= 0:
                push_one(row[i], ids[i], kept_scores, kept_ids)


@njit(nogil=True, cache=True)
def push_lists(scores, ids, heap_scores, heap_ids):
    """Offer to each of nq heaps its own list: `scores`, `ids` (nq, m); an id of -1 is no document."""
    for query in range(scores.shape[0]):
        for i in range(scores.shape[1]):
            if ids[query, i] >= 0:
                push_one(scores[query, i], ids[query, i], heap_scores[query], heap_ids[query])


@njit(nogil=True, cache=True)
def sort_heaps(heap_scores, heap_ids):
    """Turn heaps (nq, k) into rankings in place: best first, empty places last."""
    for query in range(heap_scores.shape[0]):
        row_scores, row_ids = heap_scores[query], heap_ids[query]
        for size in range(row_scores.shape[0] - 1, 0, -1):
            row_scores[0], row_scores[size] = row_scores[size], row_scores[0]
            row_ids[0], row_ids[size] = row_ids[size], row_ids[0]
            sift_down(row_scores, row_ids, size)


@njit(cache=True)
def empty_heaps(nq, k):
    """nq empty heaps of k places: scores float32 (nq, k) of -inf, ids int64 (nq, k) of -1."""
    return np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64)
