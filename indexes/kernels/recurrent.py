"""Symmetric distance calculation between recurrent binary codes: inner products of small integers by counting bits.

A number is the sum of 2^(L-1-i) * b_i over its L levels, each b_i 1 or -1. The product of two then needs, for each pair
of levels, the bits in which their planes differ: x.y = (2^L - 1)^2 * d - 2 * the sum of 2^(2L-2-i-j) * differ(x_i, y_j)
(Gan et al., "Binary Embedding-based Retrieval at Tencent", KDD 2023, section 3.3). No number is ever decoded, and the
sums are exact. The layout is that of `kernels.hamming`, with the planes of a document one after the other.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.hamming import LANES, TILE
from indexes.kernels.popcount import popcount
from indexes.kernels.topk import push_one


@njit(nogil=True, cache=True)
def search(words, factors, ids, d, levels, queries, query_factors, allowed, heap_scores, heap_ids):
    """Offer all documents to the heaps of all queries; the score is the product of integers times both factors.

    `words` uint64 (blocks, levels * W, LANES), `factors` float32 (n,), `ids` int64 (n,); `queries` uint64 (nq,
    levels * W), `query_factors` float32 (nq,); `allowed` bool (n,) or (0,) for all. `levels` is even.
    """
    blocks, n, nq = words.shape[0], ids.shape[0], queries.shape[0]
    most = d * ((1 << levels) - 1) ** 2
    differing, scores = np.empty(LANES, np.uint64), np.empty(LANES, np.float32)
    step = max(1, TILE // (words.shape[1] * LANES * 8))
    for first in range(0, blocks, step):
        for query in range(nq):
            kept_scores, kept_ids = heap_scores[query], heap_ids[query]
            for block in range(first, min(blocks, first + step)):
                start = block * LANES
                lanes = min(LANES, n - start)
                measure(words[block], queries[query], levels, differing)
                best = np.float32(-np.inf)
                for i in range(lanes):
                    product = np.float32(most - 2 * np.int64(differing[i]))
                    scores[i] = product * factors[start + i] * query_factors[query]
                    best = max(best, scores[i])
                if best < kept_scores[0]:
                    continue
                for i in range(lanes):
                    if scores[i] >= kept_scores[0] and (allowed.shape[0] == 0 or allowed[start + i]):
                        push_one(scores[i], ids[start + i], kept_scores, kept_ids)


@njit(nogil=True, cache=True, inline="always")
def measure(block, query, levels, differing):
    """The weighted bits in which a query (levels * W,) differs from the documents of a block, into `differing`.

    Two levels of each are taken at once: four counts for each visit to the sums.
    """
    W = query.shape[0] // levels
    differing[:] = 0
    one = np.uint64(1)
    for i in range(0, levels, 2):
        for j in range(0, levels, 2):
            shift = np.uint64(2 * levels - 4 - i - j)
            for w in range(W):
                x0, x1 = block[i * W + w], block[i * W + W + w]
                y0, y1 = query[j * W + w], query[j * W + W + w]
                for lane in range(LANES):
                    a, b = x0[lane], x1[lane]
                    twice = (popcount(a ^ y0) << one) + popcount(a ^ y1) + popcount(b ^ y0)
                    differing[lane] += ((twice << one) + popcount(b ^ y1)) << shift
