"""Candidates that something else found, ranked by exact scores."""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.exact import AHEAD, distance, product
from indexes.kernels.prefetch import prefetch_range
from indexes.kernels.topk import push_one, sort_heaps


@njit(nogil=True, cache=True)
def rank(vectors, queries, found, first, labels, l2, top_scores, top_ids):
    """Rank the slots `found` int64 (nq, m), -1 for none, and all slots from `first` on.

    `vectors` (slots, d) and `queries` (nq, d) as in `exact.chosen`; `labels` int64 (slots,): the id of each slot, -1
    for those that are no answers; `top_scores` float32 and `top_ids` int64 (nq, k): overwritten.
    """
    flat, d = vectors.reshape(-1), vectors.shape[1]
    top_scores[:], top_ids[:] = -np.inf, -1
    for q in range(queries.shape[0]):
        kept_scores, kept_ids = top_scores[q], top_ids[q]
        for i in range(-AHEAD, found.shape[1]):
            if i + AHEAD < found.shape[1]:
                ahead = found[q, i + AHEAD]
                if ahead >= 0 and labels[ahead] >= 0:
                    prefetch_range(flat, ahead * d, ahead * d + d)
            if i >= 0 and found[q, i] >= 0 and labels[found[q, i]] >= 0:
                slot = found[q, i]
                total = -distance(vectors[slot], queries[q]) if l2 else product(vectors[slot], queries[q])
                push_one(total, labels[slot], kept_scores, kept_ids)
        for slot in range(first, labels.shape[0]):
            if labels[slot] >= 0:
                total = -distance(vectors[slot], queries[q]) if l2 else product(vectors[slot], queries[q])
                push_one(total, labels[slot], kept_scores, kept_ids)
    sort_heaps(top_scores, top_ids)
