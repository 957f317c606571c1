"""Products of float queries with chosen codes of signs, without decoding them."""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.hamming import LANES
from indexes.kernels.prefetch import prefetch

AHEAD = 4  # documents: so far ahead memory is asked for


@njit(nogil=True, cache=True)
def products(words, queries, rows, scores):
    """`scores[q, i]` = the inner product of query q with the signs of document `rows[q, i]`, 1 for a bit, else -1.

    `words` uint64 (blocks, W, LANES), bits beyond d zero; `queries` float32 (nq, 64 * W), numbers beyond d zero; `rows`
    int64 (nq, m), -1 for none; `scores` float32 (nq, m).
    """
    flat, W = words.reshape(-1), words.shape[1]
    for q in range(queries.shape[0]):
        query, total = queries[q], np.float32(0)
        for i in range(query.shape[0]):
            total += query[i]
        for i in range(rows.shape[1]):
            if i + AHEAD < rows.shape[1]:
                ahead = max(0, rows[q, i + AHEAD])
                for w in range(W):
                    prefetch(flat, (ahead // LANES * W + w) * LANES + ahead % LANES)
            row = rows[q, i]
            if row >= 0:
                scores[q, i] = 2 * positive(words[row // LANES, :, row % LANES], query) - total


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def positive(code, query):
    """The sum of the query's numbers where the code (W,) has a bit; in any order, for wide instructions.

    A mask per 64 numbers beats a table per byte: nothing is built per query, and the query stays in the first cache.
    """
    total = np.float32(0)
    for w in range(code.shape[0]):
        word, part = code[w], query[64 * w : 64 * w + 64]
        for i in range(64):
            total += part[i] if (word >> np.uint64(i)) & np.uint64(1) else np.float32(0)
    return total
