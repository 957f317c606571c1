"""Inverted lists of packed codes: the lists whose centroids are nearest to a query, scanned.

A list is a run of blocks of 16 documents, word by word as in `indexes.kernels.hamming`: `words[block, w]` holds the
`w`-th 64 bits of all. Each document stands there with its place among all ids, so that ties go to the smaller one
whatever the order in which lists are visited.

    the nearest centroids of each query: `hamming.nearest`
    each visit of a list by a query, in the order of `visits`; passed by if its radius shows that it cannot help
        each block: which of its distances are up to the query's limit (`near`); these are appended: `keep`
            the histogram of what was appended says where the k-th nearest is now, the new limit
            list full: sort, keep k: `cut`
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels import hamming
from indexes.kernels.distances import lowest, make_near
from indexes.kernels.popcount import popcount

LANES = 16  # documents in a block: two registers of 512 bits
SHIFT = 40
PLACE = np.int64(1) << SHIFT  # a distance and a place in one number
ROOM = 256  # entries of a list of answers beyond k
BATCH = 512  # queries whose lists of answers are kept at once,
VISITS = 1 << 20  # and visits whose order is
SHARED = 2  # visits for each list: from so many on, queries of a batch visit it together
SIZE, LIMIT, WITHIN, BOUND = 0, 1, 2, 3  # of a query: entries, the k-th lowest distance, entries up to it; see `keep`

near = make_near(LANES, LANES)


@njit(nogil=True, cache=True)
def search(centroids, radii, words, starts, places, queries, allowed, nprobe, scores, found):
    """The k nearest documents of each query in its `nprobe` nearest lists, by distance, then by place.

    `centroids` uint64 (blocks, W, 128), as in the scan; `radii` int32 (nlist,): how far the farthest document of each
    list is from its centroid. `words` uint64 (blocks, W, LANES): list i is the blocks `starts[i]` to `starts[i + 1]`,
    int64 (nlist + 1,). `places` int32 (blocks * LANES,), -1 where a list is filled up. `queries` uint64 (nq, W),
    `allowed` bool (n,) over places, or (0,) for all.
    Fills `scores` float32 (nq, k), minus the distances, and `found` int64 (nq, k), places, -inf and -1 beyond the last;
    returns how many queries have fewer than k.
    """
    nq, step, short = found.shape[0], max(1, min(BATCH, VISITS // nprobe)), 0
    for first in range(0, nq, step):
        part = slice(first, min(nq, first + step))
        short += visit(
            centroids, radii, words, starts, places, queries[part], allowed, nprobe, scores[part], found[part]
        )
    return short


@njit(nogil=True, cache=True)
def visit(centroids, radii, words, starts, places, queries, allowed, nprobe, scores, found):
    """`search` for a batch of queries: those that visit the same list share it."""
    nq, k = found.shape
    nlist, away, lists = len(radii), np.empty((nq, nprobe), np.float32), np.empty((nq, nprobe), np.int64)
    hamming.nearest(centroids, nlist, queries, np.empty(0, np.bool_), away, lists)
    answers, counts, states = empty_answers(nq, k, words.shape[1] * 64)
    distances = np.empty(LANES, np.uint64)
    W, flat, asked = words.shape[1], words.reshape(-1), queries.reshape(-1)
    for pair in visits(lists, nlist):
        q, i = pair // nprobe, pair % nprobe
        chosen = lists[q, i]
        if -np.int64(away[q, i]) - radii[chosen] > states[q, LIMIT]:
            continue
        for block in range(starts[chosen], starts[chosen + 1]):
            lanes = near(flat, block * W * LANES, W, asked, q * W, states[q, LIMIT], distances)
            while lanes:
                lane = lowest(lanes)
                lanes &= lanes - 1
                place = np.int64(places[block * LANES + lane])
                if place >= 0 and (allowed.shape[0] == 0 or allowed[place]):
                    keep(np.int64(distances[lane]), place, k, answers, counts, states, q)
    return finish(answers, states, scores, found)


@njit(nogil=True, cache=True)
def among(words, places, positions, queries, scores, found):
    """As `search`, among the documents at the positions int64 (m,) only."""
    nq, k = found.shape
    answers, counts, states = empty_answers(nq, k, words.shape[1] * 64)
    for q in range(nq):
        for position in positions:
            distance = np.uint64(0)
            for w in range(words.shape[1]):
                distance += popcount(words[position // LANES, w, position % LANES] ^ queries[q, w])
            keep(np.int64(distance), np.int64(places[position]), k, answers, counts, states, q)
    return finish(answers, states, scores, found)


@njit(nogil=True, cache=True)
def empty_answers(nq, k, most):
    """For each query room for entries, a distance and a place in one int64; a histogram of distances; its state."""
    answers, counts = np.empty((nq, k + max(k, ROOM)), np.int64), np.zeros((nq, most + 1), np.int32)
    states = np.zeros((nq, 4), np.int64)
    states[:, LIMIT], states[:, BOUND] = most, (most + 1) * PLACE
    return answers, counts, states


@njit(nogil=True, cache=True)
def visits(lists, nlist):
    """The order of visits, int64 (nq * nprobe,): places in `lists` (nq, nprobe).

    Query by query, nearest lists first. If lists are visited often: list by list, so that queries find it in the cache;
    but first of all the nearest list of each query, after which its limit is low.
    """
    nq, nprobe = lists.shape
    if nq * nprobe < SHARED * nlist or nq == 1:
        return np.arange(nq * nprobe)
    ends = np.zeros(2 * nlist + 1, np.int64)
    for q in range(nq):
        for i in range(nprobe):
            ends[lists[q, i] + nlist * (i > 0) + 1] += 1
    for key in range(2 * nlist):
        ends[key + 1] += ends[key]
    order = np.empty(nq * nprobe, np.int64)
    for q in range(nq):
        for i in range(nprobe):
            key = lists[q, i] + nlist * (i > 0)
            order[ends[key]] = q * nprobe + i
            ends[key] += 1
    return order


@njit(nogil=True, cache=True, inline="always")
def keep(distance, place, k, answers, counts, states, q):
    """Append an entry of query q if it is below the bound, and lower the limit to the k-th lowest distance.

    The bound is on distance and place together: where many are equally near, only smaller places still count.
    """
    entry = distance * PLACE + place
    if entry >= states[q, BOUND]:
        return
    if states[q, SIZE] == answers.shape[1]:
        states[q, SIZE] = cut(answers, states, q, k)
        if entry >= states[q, BOUND]:
            return
    answers[q, states[q, SIZE]] = entry
    states[q, SIZE] += 1
    counts[q, distance] += 1
    within, limit = states[q, WITHIN] + 1, states[q, LIMIT]
    while within - counts[q, limit] >= k:
        within -= counts[q, limit]
        limit -= 1
        states[q, BOUND] = min(states[q, BOUND], (limit + 1) * PLACE)
    states[q, WITHIN], states[q, LIMIT] = within, limit


@njit(nogil=True, cache=True)
def cut(answers, states, q, k):
    """Sort the k lowest entries to the front. Returns how many there are; from now on only lower ones count."""
    size, entries = 0, answers[q]
    for i in range(states[q, SIZE]):
        if entries[i] < states[q, BOUND]:
            entries[size] = entries[i]
            size += 1
    entries[:size].sort()
    if size >= k:
        states[q, BOUND] = entries[k - 1] + 1
    return min(size, k)


@njit(nogil=True, cache=True)
def finish(answers, states, scores, found):
    """Rank the entries of all queries, -inf and -1 beyond the last. Returns how many queries have fewer than k."""
    nq, k = found.shape
    short = 0
    for q in range(nq):
        size = cut(answers, states, q, k)
        for i in range(size):
            scores[q, i], found[q, i] = -(answers[q, i] >> SHIFT), answers[q, i] & (PLACE - 1)
        scores[q, size:], found[q, size:] = -np.inf, -1
        short += size < k
    return short


@njit(nogil=True, cache=True)
def within(centroids, radii, words, starts, places, queries, allowed, radius):
    """All documents up to `radius` from each query, by distance, then by place; arguments as for `search`.

    Returns how many each query has, int64 (nq,), and one after the other their distances, int32, and places, int64.
    """
    lengths, size, found = np.zeros(queries.shape[0], np.int64), 0, np.empty(ROOM, np.int64)
    distances, away = np.empty(LANES, np.uint64), np.empty(hamming.GROUP, np.uint64)
    W, flat, asked, flat_centroids = words.shape[1], words.reshape(-1), queries.reshape(-1), centroids.reshape(-1)
    for q in range(queries.shape[0]):
        before = size
        for chosen in range(len(radii)):
            if chosen % hamming.GROUP == 0:
                at = chosen // hamming.LANES * hamming.LANES * W + chosen % hamming.LANES
                hamming.near(flat_centroids, at, W, asked, q * W, W * 64, away)
            if np.int64(away[chosen % hamming.GROUP]) - radii[chosen] > radius:
                continue
            for block in range(starts[chosen], starts[chosen + 1]):
                lanes = near(flat, block * W * LANES, W, asked, q * W, radius, distances)
                while lanes:
                    lane = lowest(lanes)
                    lanes &= lanes - 1
                    place = np.int64(places[block * LANES + lane])
                    if place >= 0 and (allowed.shape[0] == 0 or allowed[place]):
                        if size == found.shape[0]:
                            found = np.append(found, found)
                        found[size] = np.int64(distances[lane]) * PLACE + place
                        size += 1
        found[before:size].sort()
        lengths[q] = size - before
    return lengths, (found[:size] // PLACE).astype(np.int32), found[:size] % PLACE


@njit(nogil=True, cache=True)
def radii_of(words, starts, places, centroids):
    """How far the farthest document of each list is from its centroid, uint64 (nlist, W): int32 (nlist,)."""
    radii, distances = np.zeros(centroids.shape[0], np.int32), np.empty(LANES, np.uint64)
    W, flat, asked = words.shape[1], words.reshape(-1), centroids.reshape(-1)
    for chosen in range(centroids.shape[0]):
        for block in range(starts[chosen], starts[chosen + 1]):
            near(flat, block * W * LANES, W, asked, chosen * W, W * 64, distances)
            for lane in range(LANES):
                if places[block * LANES + lane] >= 0:
                    radii[chosen] = max(radii[chosen], np.int32(distances[lane]))
    return radii


@njit(nogil=True, cache=True)
def votes(codes, clusters, ones):
    """Count in `ones` int32 (nlist, 8 * nbytes) how often each bit is set in the codes (n, nbytes) of each cluster.

    The lowest bit of a byte comes first.
    """
    for row in range(codes.shape[0]):
        counted = ones[clusters[row]]
        for byte in range(codes.shape[1]):
            for bit in range(8):
                counted[8 * byte + bit] += (codes[row, byte] >> bit) & 1
