"""Checking sparse queries in one pass, without scipy's overhead, which exceeds the search itself for one query."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def compress(starts, terms, weights, width, V):
    """Drop zero weights and terms from V on; returns whether the queries are in order, and the three arrays.

    In: CSR (`starts` int32 or int64 (nq + 1,), `terms` the same, below `width`, `weights` float32). Out: int64, int32,
    float32. In order means: terms ascend within each query, weights are finite and not negative, and no index leads
    outside.
    """
    nq = starts.shape[0] - 1
    out_starts = np.zeros(nq + 1, np.int64)
    size = terms.shape[0]
    out_terms, out_weights = np.empty(size, np.int32), np.empty(size, np.float32)
    good = weights.shape[0] == size and starts[0] == 0 and starts[nq] <= size
    count = 0
    for query in range(nq):
        if not good or starts[query] > starts[query + 1] or starts[query + 1] > size:
            good = False
            break
        before = -1
        for i in range(starts[query], starts[query + 1]):
            term, weight = terms[i], weights[i]
            if term <= before or term >= width or not (0 <= weight < np.inf):
                good = False
            before = term
            if weight > 0 and term < V:
                out_terms[count], out_weights[count] = term, weight
                count += 1
        out_starts[query + 1] = count
    return good, out_starts, out_terms[:count], out_weights[:count]
