"""Term-at-a-time scoring over postings lists sorted by term (compressed sparse columns)."""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.topk import push_one, sort_heaps


@njit(nogil=True, cache=True)
def search(
    query_starts, query_terms, query_weights, starts, rows, scores, base, ids, allow, heap_scores, heap_ids
):  # fmt: skip
    """Rank, for each query, the rows that share a term with it.

    Queries: CSR (`query_starts` int64 (nq + 1,), `query_terms` int32, `query_weights` float32). Postings of term t:
    `rows`, `scores` [`starts[t]`:`starts[t + 1]`]. `base` float32 (nq,): added to every score. `ids` int64 (n,).
    `allow` bool (n,), or (0,) for all. Results go to the heaps (nq, k), ranked.
    """
    n = ids.shape[0]
    sums = np.zeros(n, np.float32)
    seen_by = np.full(n, -1, np.int32)  # the last query that touched a row: nothing is cleared between queries
    touched = np.empty(n, np.int32)
    for query in range(heap_scores.shape[0]):
        count = 0
        for q in range(query_starts[query], query_starts[query + 1]):
            term, weight = query_terms[q], query_weights[q]
            for p in range(starts[term], starts[term + 1]):
                row, gain = rows[p], weight * scores[p]
                if seen_by[row] == query:
                    sums[row] += gain
                else:
                    seen_by[row] = query
                    sums[row] = gain
                    touched[count] = row
                    count += 1
        kept_scores, kept_ids = heap_scores[query], heap_ids[query]
        for i in range(count):
            row = touched[i]
            if allow.shape[0] == 0 or allow[row]:
                score = sums[row] + base[query]
                if score >= kept_scores[0]:
                    push_one(score, ids[row], kept_scores, kept_ids)
    sort_heaps(heap_scores, heap_ids)


@njit(nogil=True, cache=True)
def transpose(starts, columns, values, width):
    """CSR (`starts` int64 (n + 1,), `columns`, `values`) to CSC: (starts int64 (width + 1,), rows int32, values).

    Rows are ascending within a column. Linear in the number of entries.
    """
    out_starts = np.zeros(width + 1, np.int64)
    for i in range(columns.shape[0]):
        out_starts[columns[i] + 1] += 1
    for t in range(width):
        out_starts[t + 1] += out_starts[t]
    place = out_starts[:-1].copy()
    out_rows = np.empty(columns.shape[0], np.int32)
    out_values = np.empty_like(values)
    for row in range(starts.shape[0] - 1):
        for i in range(starts[row], starts[row + 1]):
            p = place[columns[i]]
            out_rows[p], out_values[p] = row, values[i]
            place[columns[i]] = p + 1
    return out_starts, out_rows, out_values
