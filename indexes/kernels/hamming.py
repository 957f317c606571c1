"""Exhaustive Hamming search over packed codes, at the speed of memory.

Layout: blocks of 128 documents, and within a block word by word: `words[block, w]` holds the `w`-th 64 bits of all.
A word of the query then meets many documents with the same instructions, without sums across a register; AVX-512
VPOPCNTDQ counts eight words at once. Documents are in the order of their ids, so that ties go to the earlier row.

    each tile of blocks (it stays in the first cache), each query
        each half of a block: which of its distances are below the query's limit (`near`); these are appended
            the histogram of what was appended says where the k-th nearest is now, the new limit
            list full: sort by counting, keep k: `rank`
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.distances import lowest, make_near

LANES = 128  # documents in a block,
GROUP = 64  # and those of them that are compared at once: eight registers of 512 bits
TILE = 1 << 15  # bytes
AHEAD = 4096  # bytes: so far ahead memory is asked for: a single query gains 5 to 20%, a batch loses 4%
BATCH = 512  # queries whose lists are kept at once: 12 bytes for each of some 2 k entries
ROOM = 256  # entries of a list beyond k
SIZE, LIMIT, WITHIN = 0, 1, 2  # of a query: length of its list, the k-th lowest distance, entries up to it

near = make_near(GROUP, LANES, AHEAD)


def interleave(codes: np.ndarray) -> np.ndarray:
    """Packed codes uint8 (n, nbytes) as words uint64 (blocks, W, LANES), filled up with zeros."""
    rows = as_words(codes)
    padded = np.zeros((-(-len(rows) // LANES) * LANES, rows.shape[1]), np.uint64)
    padded[: len(rows)] = rows
    return np.ascontiguousarray(padded.reshape(-1, LANES, rows.shape[1]).transpose(0, 2, 1))


def separate(words: np.ndarray, n: int, nbytes: int) -> np.ndarray:
    """The inverse of `interleave`: codes uint8 (n, nbytes)."""
    blocks, W, _ = words.shape
    rows = np.ascontiguousarray(words.transpose(0, 2, 1)).view(np.uint8)
    return np.ascontiguousarray(rows.reshape(blocks * LANES, W * 8)[:n, :nbytes])


def as_words(codes: np.ndarray) -> np.ndarray:
    """Packed codes uint8 (n, nbytes) as words uint64 (n, W), filled up with zeros."""
    n, nbytes = codes.shape
    padded = np.zeros((n, -(-nbytes // 8) * 8), np.uint8)
    padded[:, :nbytes] = codes
    return padded.view(np.uint64)


@njit(nogil=True, cache=True)
def nearest(words, n, queries, allowed, scores, found):
    """The k nearest documents of each query, by distance, then by row.

    `words` uint64 (blocks, W, LANES) of n documents, `queries` uint64 (nq, W), `allowed` bool (n,) or (0,) for all.
    Fills `scores` float32 (nq, k), minus the distances, and `found` int64 (nq, k), rows; -inf and -1 beyond the last.
    """
    nq, k = found.shape
    size, room, most = min(nq, BATCH), min(n, k + max(k, ROOM)), words.shape[1] * 64 + 1
    distances, rows = np.empty((size, room), np.int32), np.empty((size, room), np.int64)
    counts, states = np.empty((size, most + 1), np.int64), np.empty((size, 3), np.int64)
    spare = np.empty(room, np.int32), np.empty(room, np.int64), np.empty(most + 1, np.int64)
    for start in range(0, nq, BATCH):
        together = queries[start : start + BATCH]
        counts[:], states[:], states[:, LIMIT] = 0, 0, most
        scan(words, n, together, allowed, k, distances, rows, counts, states, spare)
        for q in range(together.shape[0]):
            kept = min(k, states[q, SIZE])
            rank(distances[q], rows[q], states[q, SIZE], kept, spare)
            for i in range(kept):
                scores[start + q, i], found[start + q, i] = -distances[q, i], rows[q, i]
            scores[start + q, kept:], found[start + q, kept:] = -np.inf, -1


@njit(nogil=True, cache=True)
def scan(words, n, queries, allowed, k, distances, rows, counts, states, spare):
    """Append to the list of each query the documents that are below its limit: the k-th lowest distance so far.

    The loops stay in one function: passing it the arrays would take as long as scanning a quarter of a tile.
    """
    blocks, W, nq = words.shape[0], words.shape[1], queries.shape[0]
    flat, asked, apart = words.reshape(-1), queries.reshape(-1), np.empty(GROUP, np.uint64)
    step = max(1, TILE // (W * LANES * 8)) if nq > 1 else blocks
    for first in range(0, blocks, step):
        for q in range(nq):
            size, limit, within = states[q, SIZE], states[q, LIMIT], states[q, WITHIN]
            for start in range(first * LANES, min(first + step, blocks) * LANES, GROUP):
                at = start // LANES * LANES * W + start % LANES
                lanes = near(flat, at, W, asked, q * W, limit - 1, apart)
                while lanes:
                    lane = lowest(lanes)
                    lanes &= lanes - 1
                    distance, row = np.int64(apart[lane]), start + lane
                    if distance < limit and row < n and (allowed.shape[0] == 0 or allowed[row]):
                        if size == rows.shape[1]:
                            rank(distances[q], rows[q], size, k, spare)
                            size = k
                        distances[q, size], rows[q, size] = distance, row
                        size += 1
                        counts[q, distance] += 1
                        within += 1
                        while within - counts[q, limit] >= k:
                            within -= counts[q, limit]
                            limit -= 1
            states[q, SIZE], states[q, LIMIT], states[q, WITHIN] = size, limit, within


@njit(nogil=True, cache=True)
def within(words, n, queries, allowed, radius):
    """All documents up to `radius` from each query, by distance, then by row.

    Returns how many each query has, int64 (nq,), and one after the other their distances, int32, and rows, int64.
    """
    lengths, size = np.zeros(queries.shape[0], np.int64), 0
    distances, rows = np.empty(ROOM, np.int32), np.empty(ROOM, np.int64)
    flat, asked, W, apart = words.reshape(-1), queries.reshape(-1), words.shape[1], np.empty(GROUP, np.uint64)
    for q in range(queries.shape[0]):
        before = size
        for start in range(0, words.shape[0] * LANES, GROUP):
            at = start // LANES * LANES * W + start % LANES
            lanes = near(flat, at, W, asked, q * W, radius, apart)
            while lanes:
                lane = lowest(lanes)
                lanes &= lanes - 1
                row = start + lane
                if row < n and (allowed.shape[0] == 0 or allowed[row]):
                    if size == rows.shape[0]:
                        distances, rows = np.append(distances, distances), np.append(rows, rows)
                    distances[size], rows[size] = apart[lane], row
                    size += 1
        lengths[q] = count = size - before
        spare = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(W * 64 + 2, np.int64)
        rank(distances[before:], rows[before:], count, count, spare)
    return lengths, distances[:size], rows[:size]


@njit(nogil=True, cache=True)
def rank(distances, rows, size, k, spare):
    """Sort the first `size` entries by distance, equal ones in the order they have, and keep k; by counting."""
    spare_distances, spare_rows, places = spare
    places[:] = 0
    for i in range(size):
        spare_distances[i], spare_rows[i] = distances[i], rows[i]
        places[distances[i] + 1] += 1
    for distance in range(1, places.shape[0]):
        places[distance] += places[distance - 1]
    for i in range(size):
        place = places[spare_distances[i]]
        places[spare_distances[i]] += 1
        if place < k:
            distances[place], rows[place] = spare_distances[i], spare_rows[i]
