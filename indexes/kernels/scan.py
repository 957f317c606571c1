"""Exhaustive search over codes made of small whole numbers, by integer products with queries of 8 bits per number.

Layout: blocks of 16 documents, and within a block word by word: `words[block, w]` holds bytes 4w to 4w + 3 of all. One
instruction then multiplies four numbers of each document with four of a query, and no sum runs across a register
(Andre, Kermarrec and Le Scouarnec, "Cache locality is not enough", VLDB 2015, scan product quantisation in such
blocks). Every tile of blocks meets all queries of a batch while it is in the cache, several of them each time that a
block is read.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.multiply_add import LANES, make_products, rate
from indexes.kernels.popcount import popcount
from indexes.kernels.topk import is_worse, push_one

TILE = 1 << 17  # bytes of codes that all queries meet in turn
BATCH = 256  # queries that meet the codes together: what is kept for each takes memory
ROOM = 64  # entries kept beyond k, at least, until they are thinned out
WIDE, WIDE_QUARTERS, WIDE_SIGNS = 8, 4, 2  # queries for each visit to a block: as many sums as there are registers

one_8, wide_8 = make_products(8, 1), make_products(8, WIDE)
one_4, wide_4 = make_products(4, 1), make_products(4, WIDE)
one_2, wide_2 = make_products(2, 1), make_products(2, WIDE_QUARTERS)
one_1, wide_1 = make_products(1, 1), make_products(1, WIDE_SIGNS)


def interleave(codes: np.ndarray) -> np.ndarray:
    """Codes uint8 (n, nbytes) as words uint32 (blocks, W, LANES), filled up with zeros."""
    n, nbytes = codes.shape
    blocks, W = -(-n // LANES), -(-nbytes // 4)
    padded = np.zeros((blocks * LANES, W * 4), np.uint8)
    padded[:n, :nbytes] = codes
    return np.ascontiguousarray(padded.view(np.uint32).reshape(blocks, LANES, W).transpose(0, 2, 1))


def separate(words: np.ndarray, rows: np.ndarray, nbytes: int) -> np.ndarray:
    """The inverse of `interleave` for the given rows int64 (m,): codes uint8 (m, nbytes)."""
    chosen = np.ascontiguousarray(words[rows // LANES, :, rows % LANES])
    return np.ascontiguousarray(chosen.view(np.uint8).reshape(len(rows), words.shape[1] * 4)[:, :nbytes])


@njit(nogil=True, cache=True)
def quantize_queries(weights, bits, W):
    """Weights float32 (nq, d) as signed bytes, uint32 (nq, W, 8 // bits), and what to multiply them by, float32 (nq,).

    The largest number of each query becomes 127 or -127. The order is that of the numbers in `interleave`d codes.
    """
    nq, d = weights.shape
    parts = 8 // bits
    numbers, steps = np.zeros(nq * W * parts * 4, np.int8), np.zeros(nq, np.float32)
    for q in range(nq):
        largest = np.float32(0)
        for i in range(d):
            largest = max(largest, abs(weights[q, i]))
        steps[q] = largest / np.float32(127)
        step = steps[q] if steps[q] > 0 else np.float32(1)
        for i in range(d):
            word, place = divmod(i, 4 * parts)
            byte, part = divmod(place, parts)
            numbers[((q * W + word) * parts + part) * 4 + byte] = np.int8(np.rint(weights[q, i] / step))
    return numbers.view(np.uint32).reshape(nq, W, parts), steps


@njit(nogil=True, cache=True)
def search(
    words, bits, width, blocks, ids, allowed, scales, offsets, squares, queries, slopes, tilts, heap_scores, heap_ids
):
    """Offer the documents of some blocks to the heaps of all queries.

    The score of document i is slope * sum * scales[i] + tilt * offsets[i] - squares[i], where `sum` is the product of
    integers. `words` uint32 (all blocks, W, LANES), of which the first `width` words hold numbers; `blocks` int64,
    those to visit; `ids` int64 (n,); `allowed` bool (n,) or (0,) for all; `scales`, `offsets`, `squares` float32, LANES
    for each block, or (0,) for 1, 0 and 0; `queries` uint32 (nq, width, 8 // bits); `slopes`, `tilts` float32 (nq,).
    """
    nq, k = heap_scores.shape
    size = min(nq, BATCH)
    room = k + max(k // 4, ROOM)
    kept_scores, kept_ids = np.empty((size, room), np.float32), np.empty((size, room), np.int64)
    for first in range(0, nq, BATCH):
        last = min(nq, first + BATCH)
        least, counts = heap_scores[first:last, 0].copy(), np.zeros(last - first, np.int64)
        collect(
            words, bits, width, blocks, ids, allowed, scales, offsets, squares, queries[first:last], slopes[first:last],
            tilts[first:last], kept_scores, kept_ids, counts, least, k,
        )  # fmt: skip
        for q in range(last - first):
            for i in range(min(k, counts[q])):
                push_one(kept_scores[q, i], kept_ids[q, i], heap_scores[first + q], heap_ids[first + q])


@njit(nogil=True, cache=True)
def collect(
    words, bits, width, blocks, ids, allowed, scales, offsets, squares, queries, slopes, tilts,
    kept_scores, kept_ids, counts, least, k,
):  # fmt: skip
    """Write for each query the best k of some blocks to the front of `kept_scores`, `kept_ids` (nq, more than k).

    `counts` int64 (nq,): how many are filled, of which those beyond k are not among the best; `least` float32 (nq,):
    what a score must reach, which rises with those kept.
    """
    W, nq, stride = words.shape[1], queries.shape[0], queries.shape[1] * queries.shape[2]
    flat, asked = words.reshape(-1), queries.reshape(-1)
    wide = WIDE_SIGNS if bits == 1 else WIDE_QUARTERS if bits == 2 else WIDE
    sums, scores = np.empty(WIDE * LANES, np.int32), np.empty(LANES, np.float32)
    named = np.zeros(nq, np.int64)  # entries that have their ids; behind them are rows
    step = max(1, TILE // (W * LANES * 4))
    for start in range(0, blocks.shape[0], step):
        stop = min(blocks.shape[0], start + step)
        query = 0
        while query < nq:
            together = wide if query + wide <= nq else 1
            for place in range(start, stop):
                block = blocks[place]
                multiply(flat, block * W * LANES, bits, width, asked, query * stride, together, sums)
                for i in range(together):
                    q = query + i
                    found = rate(
                        sums, i * LANES, slopes[q], scales, tilts[q], offsets, squares, block * LANES, least[q], scores
                    )
                    if found:
                        if counts[q] + LANES > kept_scores.shape[1]:
                            settle(kept_scores[q], kept_ids[q], ids, named[q], counts[q], k)
                            counts[q], named[q], least[q] = k, k, kept_scores[q, k - 1]
                        count, bits_left = counts[q], np.int64(found)
                        while bits_left:
                            lane = np.int64(popcount(np.uint64((bits_left & -bits_left) - 1)))  # of the lowest bit
                            bits_left &= bits_left - 1
                            row = block * LANES + lane
                            if row < ids.shape[0] and (allowed.shape[0] == 0 or allowed[row]):
                                kept_scores[q, count], kept_ids[q, count] = scores[lane], row
                                count += 1
                        counts[q] = count
            query += together
    for q in range(nq):
        settle(kept_scores[q], kept_ids[q], ids, named[q], counts[q], k)


@njit(nogil=True, cache=True, inline="always")
def multiply(words, at, bits, width, queries, first, count, sums):
    """The products of a block with `count` queries, 1 or as many as its codes take at once."""
    if bits == 4:
        if count == 1:
            one_4(words, at, width, queries, first, sums)
        else:
            wide_4(words, at, width, queries, first, sums)
    elif bits == 8:
        if count == 1:
            one_8(words, at, width, queries, first, sums)
        else:
            wide_8(words, at, width, queries, first, sums)
    elif bits == 2:
        if count == 1:
            one_2(words, at, width, queries, first, sums)
        else:
            wide_2(words, at, width, queries, first, sums)
    elif count == 1:
        one_1(words, at, width, queries, first, sums)
    else:
        wide_1(words, at, width, queries, first, sums)


@njit(nogil=True, cache=True)
def settle(kept_scores, kept_ids, ids, named, count, k):
    """Give the entries from `named` on the ids of their rows, and thin all out.

    Not one by one as they are found: each would be waited for, as none is in the cache.
    """
    for i in range(named, count):
        kept_ids[i] = ids[kept_ids[i]]
    thin_out(kept_scores, kept_ids, count, k)


@njit(nogil=True, cache=True)
def thin_out(scores, ids, count, k):
    """Bring the best k of the first `count` entries to the front, the k-th in its place (Hoare's quickselect).

    A heap would order all that it ever held: to keep 1,000 of 200,000 so took as long as to score them.
    """
    low, high, place = 0, count - 1, k - 1
    while low < high and place <= high:
        middle = low + (high - low) // 2
        for a, b in ((low, middle), (middle, high), (low, middle)):  # the median of three becomes the pivot
            if is_worse(scores[a], ids[a], scores[b], ids[b]):
                scores[a], scores[b], ids[a], ids[b] = scores[b], scores[a], ids[b], ids[a]
        score, label, i, j = scores[middle], ids[middle], low, high
        while i <= j:
            while is_worse(score, label, scores[i], ids[i]):
                i += 1
            while is_worse(scores[j], ids[j], score, label):
                j -= 1
            if i <= j:
                scores[i], scores[j], ids[i], ids[j] = scores[j], scores[i], ids[j], ids[i]
                i, j = i + 1, j - 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
