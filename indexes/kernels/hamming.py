"""Exhaustive Hamming search over packed codes, at the speed of memory.

Layout: blocks of 128 documents, and within a block word by word: `words[block, w]` holds the `w`-th 64 bits of all.
A word of the query then meets many documents with the same instructions, without sums across a register; AVX-512
VPOPCNTDQ counts eight words at once. Documents are in the order of their ids, so that ties go to the earlier row.

    each tile of blocks (it stays in the first cache), each query: `scan`
        each block: its distances; if the lowest is below the query's limit, append those that are: `measure`
            the histogram of what was appended says where the k-th nearest is now, the new limit
            list full: sort by counting, keep k: `rank`
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.popcount import popcount

LANES = 128  # documents in a block
TILE = 1 << 15  # bytes
ROOM = 256  # entries of a list beyond k


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
def nearest(words, n, queries, allowed, found_distances, found_rows):
    """The k nearest documents of each query, by distance, then by row.

    `words` uint64 (blocks, W, LANES) of n documents, `queries` uint64 (nq, W), `allowed` bool (n,) or (0,) for all.
    Fills `found_distances` int32 (nq, k) and `found_rows` int64 (nq, k); places beyond the last keep what they held.
    """
    blocks, W, nq, k = words.shape[0], words.shape[1], found_rows.shape[0], found_rows.shape[1]
    room, most = min(n, k + max(k, ROOM)), W * 64 + 1
    distances, rows = np.empty((nq, room), np.int32), np.empty((nq, room), np.int64)
    counts = np.zeros((nq, most + 1), np.int64)
    states = np.zeros((nq, 3), np.int64)  # length of the list, limit, entries up to the limit
    states[:, 1] = most
    spare = np.empty(room, np.int32), np.empty(room, np.int64), np.empty(most + 1, np.int64)
    step = max(1, TILE // (W * LANES * 8))
    for first in range(0, blocks, step):
        last = min(blocks, first + step)
        for q in range(nq):
            scan(words, first, last, n, queries[q], allowed, k, distances[q], rows[q], counts[q], states[q], spare)
    for q in range(nq):
        size = min(k, states[q, 0])
        rank(distances[q], rows[q], states[q, 0], size, spare)
        found_distances[q, :size], found_rows[q, :size] = distances[q, :size], rows[q, :size]


@njit(nogil=True, cache=True)
def scan(words, first, last, n, query, allowed, k, distances, rows, counts, state, spare):
    """Append the documents of some blocks that are below the limit: the k-th lowest distance so far."""
    block_distances = np.empty(LANES, np.uint64)
    size, limit, within = state[0], state[1], state[2]
    for block in range(first, last):
        if measure(words[block], query, block_distances) >= np.uint64(limit):
            continue
        start = block * LANES
        for lane in range(min(LANES, n - start)):
            distance, row = np.int64(block_distances[lane]), start + lane
            if distance < limit and (allowed.shape[0] == 0 or allowed[row]):
                if size == rows.shape[0]:
                    size = k
                    rank(distances, rows, rows.shape[0], k, spare)
                distances[size], rows[size] = distance, row
                size += 1
                counts[distance] += 1
                within += 1
                while within - counts[limit] >= k:
                    within -= counts[limit]
                    limit -= 1
    state[0], state[1], state[2] = size, limit, within


@njit(nogil=True, cache=True)
def within(words, n, queries, allowed, radius):
    """All documents up to `radius` from each query, by distance, then by row.

    Returns how many each query has, int64 (nq,), and one after the other their distances, int32, and rows, int64.
    """
    lengths, size = np.zeros(queries.shape[0], np.int64), 0
    distances, rows = np.empty(ROOM, np.int32), np.empty(ROOM, np.int64)
    block_distances = np.empty(LANES, np.uint64)
    for q in range(queries.shape[0]):
        before = size
        for block in range(words.shape[0]):
            if measure(words[block], queries[q], block_distances) > np.uint64(radius):
                continue
            start = block * LANES
            for lane in range(min(LANES, n - start)):
                distance, row = np.int64(block_distances[lane]), start + lane
                if distance <= radius and (allowed.shape[0] == 0 or allowed[row]):
                    if size == rows.shape[0]:
                        distances, rows = np.append(distances, distances), np.append(rows, rows)
                    distances[size], rows[size] = distance, row
                    size += 1
        lengths[q] = count = size - before
        spare = np.empty(count, np.int32), np.empty(count, np.int64), np.empty(words.shape[1] * 64 + 2, np.int64)
        rank(distances[before:], rows[before:], count, count, spare)
    return lengths, distances[:size], rows[:size]


@njit(nogil=True, cache=True, inline="always")
def measure(block, query, distances):
    """The distances of a block (W, LANES) into `distances` uint64 (LANES,); returns the lowest."""
    W = block.shape[0]
    for w in range(0, W - 3, 4):  # four at once: fewer visits to the sums
        r0, r1, r2, r3 = block[w], block[w + 1], block[w + 2], block[w + 3]
        q0, q1, q2, q3 = query[w], query[w + 1], query[w + 2], query[w + 3]
        if w == 0:
            for i in range(LANES):
                distances[i] = (popcount(r0[i] ^ q0) + popcount(r1[i] ^ q1)) + (
                    popcount(r2[i] ^ q2) + popcount(r3[i] ^ q3)
                )
        else:
            for i in range(LANES):
                distances[i] += (popcount(r0[i] ^ q0) + popcount(r1[i] ^ q1)) + (
                    popcount(r2[i] ^ q2) + popcount(r3[i] ^ q3)
                )
    if W < 4:
        distances[:] = 0
    for w in range(W - W % 4, W):
        r0, q0 = block[w], query[w]
        for i in range(LANES):
            distances[i] += popcount(r0[i] ^ q0)
    lowest = distances[0]
    for i in range(1, LANES):
        lowest = min(lowest, distances[i])
    return lowest


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
