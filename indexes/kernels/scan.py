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
from indexes.kernels.prefetch import prefetch_range
from indexes.kernels.topk import push_one

TILE = 1 << 17  # bytes of codes that all queries meet in turn
AHEAD = 1  # blocks: so far ahead memory is asked for when no other query hides the wait
WIDE, WIDE_SIGNS = 8, 2  # queries for each visit to a block: as many sums as there are registers

one_8, wide_8 = make_products(8, 1), make_products(8, WIDE)
one_4, wide_4 = make_products(4, 1), make_products(4, WIDE)
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


def quantize_queries(weights: np.ndarray, bits: int, W: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights float32 (nq, d) as signed bytes, uint32 (nq, W, 8 // bits), and what to multiply them by, float32 (nq,).

    The largest number of each query becomes 127 or -127. The order is that of the numbers in `interleave`d codes.
    """
    nq, d = weights.shape
    steps = np.abs(weights).max(axis=1) / np.float32(127)
    parts = 8 // bits
    padded = np.zeros((nq, W * 4 * parts), np.int8)
    padded[:, :d] = np.rint(weights / np.where(steps > 0, steps, 1)[:, None])
    ordered = np.ascontiguousarray(padded.reshape(nq, W, 4, parts).transpose(0, 1, 3, 2))
    return ordered.view(np.uint32)[..., 0], steps


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
    W, nq, stride = words.shape[1], queries.shape[0], queries.shape[1] * queries.shape[2]
    flat, asked = words.reshape(-1), queries.reshape(-1)
    wide = WIDE_SIGNS if bits == 1 else WIDE
    sums, scores = np.empty(WIDE * LANES, np.int32), np.empty(LANES, np.float32)
    step = max(1, TILE // (W * LANES * 4))
    for start in range(0, blocks.shape[0], step):
        stop = min(blocks.shape[0], start + step)
        query = 0
        while query < nq:
            count = wide if query + wide <= nq else 1
            for place in range(start, stop):
                block = blocks[place]
                if count == 1:
                    ahead = blocks[min(place + AHEAD, blocks.shape[0] - 1)] * W * LANES
                    prefetch_range(flat, ahead, ahead + W * LANES)
                multiply(flat, block * W * LANES, bits, width, asked, query * stride, count, sums)
                for i in range(count):
                    q = query + i
                    least = heap_scores[q, 0]  # no row of the heaps is taken out before it is needed: that costs more
                    found = rate(
                        sums, i * LANES, slopes[q], scales, tilts[q], offsets, squares, block * LANES, least, scores
                    )
                    if found:
                        offer(found, scores, block * LANES, ids, allowed, heap_scores[q], heap_ids[q])
            query += count


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
    elif count == 1:
        one_1(words, at, width, queries, first, sums)
    else:
        wide_1(words, at, width, queries, first, sums)


@njit(nogil=True, cache=True)
def offer(found, scores, start, ids, allowed, heap_scores, heap_ids):
    """Offer those documents of a block that have a bit in `found` to a heap."""
    for i in range(min(LANES, ids.shape[0] - start)):
        if (found >> np.uint32(i)) & np.uint32(1) and (allowed.shape[0] == 0 or allowed[start + i]):
            push_one(scores[i], ids[start + i], heap_scores, heap_ids)
