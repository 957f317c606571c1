"""Greedy search in a graph of neighbours, over codes.

The window is one sorted array of entries, best first. An entry is one whole number: the score in its upper half, below
it the row, the smaller the better, and in the lowest bit whether the row's neighbours were looked at already.
Of the best entry whose neighbours were not, all that were not seen before are asked for at once, and then scored. It
ends when all of the window are done (Subramanya et al., "DiskANN", NeurIPS 2019, algorithm 1).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.exact import distance, product
from indexes.kernels.graph_rows import AHEAD, LINE, prefetch_row, quantize, score
from indexes.kernels.prefetch import prefetch_range
from indexes.kernels.topk import push_one, sort_heaps

NOTHING = np.int64(-(2**63))
STARTS = 6  # times the window: so many starts are looked at, which takes a fifth of the time of a walk at most
LAST = np.int64(2**31 - 1)  # a row as it is in an entry is this less the row


@njit(nogil=True, cache=True, inline="always")
def entry_of(score, row):
    bits = np.int64(np.float32(score).view(np.int32))
    ordered = bits ^ np.int64(0x7FFFFFFF) if bits < 0 else bits
    return (ordered << np.int64(32)) | ((LAST - np.int64(row)) << np.int64(1))


@njit(nogil=True, cache=True, inline="always")
def row_of(entry):
    return LAST - ((entry >> np.int64(1)) & LAST)


@njit(nogil=True, cache=True, inline="always")
def score_of(entry):
    ordered = np.int32(entry >> np.int64(32))
    return np.int32(ordered ^ np.int32(0x7FFFFFFF) if ordered < 0 else ordered).view(np.float32)


@njit(nogil=True, cache=True, inline="always")
def insert(entries, count, entry):
    """Insert into the `count` sorted ones, of which the last falls out where there is no room. Returns its place."""
    place = min(count, entries.shape[0] - 1)
    while place > 0 and entries[place - 1] < entry:
        entries[place] = entries[place - 1]
        place -= 1
    entries[place] = entry
    return place


@njit(nogil=True, cache=True)
def search(graph, weights, tilts, window, least, excluded, seen, found, scores):
    """The best rows of each query, by walking from the starts, and by scanning all rows that are not linked.

    `weights` float32 (nq, width), `tilts` float32 (nq,): see `codecs.levels`; `window`: places for candidates, those
    that are excluded included; `least`: where fewer are found, all rows are scanned; `excluded` bool (n,) or (0,) for
    none; `seen` uint8 (n + 1,): the last is the mark of the query before, and none is larger. `found` int64 (nq, m),
    `scores` float32 (nq, m): overwritten, best first, -1 where there are no more.
    """
    n, parts = seen.shape[0] - 1, 8 // graph.bits
    asked, slopes = np.empty((1, graph.lines * LINE * parts), np.int8), np.empty(1, np.float32)
    entries = np.empty(window, np.int64)
    best = np.empty(found.shape[1], np.int64)
    done = np.empty(0, np.int64)
    linked = graph.neighbors.shape[0]
    for q in range(weights.shape[0]):
        quantize(weights[q : q + 1], graph.bits, asked, slopes)
        count, kept = 0, 0
        if linked:
            count, _ = walk(graph, asked[0], 0, slopes[0], tilts[q], entries, seen, done)
        for i in range(count):
            row = row_of(entries[i])
            if kept < best.shape[0] and (excluded.shape[0] == 0 or not excluded[row]):
                best[kept] = entries[i] & ~np.int64(1)
                kept += 1
        kept = scan_range(graph, linked, n, asked[0], slopes[0], tilts[q], excluded, best, kept)
        if kept < least:
            kept = scan_range(graph, 0, n, asked[0], slopes[0], tilts[q], excluded, best, 0)
        give(best, kept, found[q], scores[q])


@njit(nogil=True, cache=True)
def search_and_rank(
    graph, weights, tilts, window, least, excluded, seen, kept, vectors, queries, l2, ids, top_scores, top_ids
):
    """`search` for `kept` rows, and `rank`, in one call: each costs as much as looking at a hundred rows."""
    found, scores = np.empty((weights.shape[0], kept), np.int64), np.empty((weights.shape[0], kept), np.float32)
    search(graph, weights, tilts, window, least, excluded, seen, found, scores)
    rank(vectors, queries, found, l2, ids, top_scores, top_ids)


@njit(nogil=True, cache=True)
def give(best, kept, found, scores):
    for i in range(found.shape[0]):
        found[i] = row_of(best[i]) if i < kept else -1
        scores[i] = score_of(best[i]) if i < kept else -np.inf


@njit(nogil=True, cache=True)
def walk(graph, asked, first, slope, tilt, entries, seen, done):
    """Fill `entries` int64 (window,) with the best that the walk meets. Returns how many, and how many it went through.

    `asked` int8 from `first` on: the query. `done` int64: those gone through, in this order, as many as there is room
    for.
    """
    neighbors, rows, terms = graph.neighbors.reshape(-1), graph.rows, graph.terms
    lines, bits, at, scaled, l2, R = graph.lines, graph.bits, graph.at, graph.scaled, graph.l2, graph.neighbors.shape[1]
    window, n = entries.shape[0], seen.shape[0] - 1
    if seen[n] == 255:
        seen[:] = 0
    seen[n] += 1
    mark = seen[n]
    fresh = np.empty(R, np.int32)
    count, place, steps = 0, 0, 0
    starts = graph.starts[: STARTS * window]
    for i in range(starts.shape[0]):
        row = starts[i]
        if i + AHEAD < starts.shape[0]:
            prefetch_row(rows, lines, starts[i + AHEAD])
        seen[row] = mark
        total = score(rows, terms, lines, bits, at, scaled, l2, row, asked, first, slope, tilt)
        entry = entry_of(total, row)
        if count < window or entry > entries[window - 1]:
            insert(entries, count, entry)
            count = min(count + 1, window)
    while place < count:
        entry = entries[place]
        if steps < done.shape[0]:
            done[steps] = entry
        steps += 1
        entries[place] = entry | np.int64(1)
        node = row_of(entry) * R
        place += 1
        while place < count and entries[place] & np.int64(1):
            place += 1
        if place < count:
            ahead = row_of(entries[place]) * R
            prefetch_range(neighbors, ahead, ahead + R)
        many = 0
        for i in range(node, node + R):
            row = neighbors[i]
            if row < 0:
                break
            if seen[row] != mark:
                seen[row] = mark
                prefetch_row(rows, lines, np.int64(row))
                fresh[many] = row
                many += 1
        for i in range(many):
            row = np.int64(fresh[i])
            total = score(rows, terms, lines, bits, at, scaled, l2, row, asked, first, slope, tilt)
            entry = entry_of(total, row)
            if count < window or entry > entries[window - 1]:
                put = insert(entries, count, entry)
                count = min(count + 1, window)
                place = min(place, put)
    return count, steps


@njit(nogil=True, cache=True)
def scan_range(graph, start, stop, asked, slope, tilt, excluded, best, kept):
    """Offer rows `start` to `stop` to the `kept` sorted entries of `best`. Returns how many there are then."""
    rows, terms, lines, bits = graph.rows, graph.terms, graph.lines, graph.bits
    at, scaled, l2 = graph.at, graph.scaled, graph.l2
    for row in range(start, stop):
        if excluded.shape[0] == 0 or not excluded[row]:
            total = score(rows, terms, lines, bits, at, scaled, l2, row, asked, 0, slope, tilt)
            entry = entry_of(total, row)
            if kept < best.shape[0] or entry > best[kept - 1]:
                insert(best, kept, entry)
                kept = min(kept + 1, best.shape[0])
    return kept


@njit(nogil=True, cache=True)
def scan(graph, weights, tilts, chosen, found, scores):
    """As `search`, over the rows `chosen` int64 only, each of which is scored."""
    rows, terms, lines, bits = graph.rows, graph.terms, graph.lines, graph.bits
    at, scaled, l2 = graph.at, graph.scaled, graph.l2
    asked, slopes = np.empty((1, lines * LINE * (8 // bits)), np.int8), np.empty(1, np.float32)
    best = np.empty(found.shape[1], np.int64)
    for q in range(weights.shape[0]):
        quantize(weights[q : q + 1], bits, asked, slopes)
        kept = 0
        for i in range(chosen.shape[0]):
            if i + AHEAD < chosen.shape[0]:
                prefetch_row(rows, lines, chosen[i + AHEAD])
            total = score(rows, terms, lines, bits, at, scaled, l2, chosen[i], asked[0], 0, slopes[0], tilts[q])
            entry = entry_of(total, chosen[i])
            if kept < best.shape[0] or entry > best[kept - 1]:
                insert(best, kept, entry)
                kept = min(kept + 1, best.shape[0])
        give(best, kept, found[q], scores[q])


@njit(nogil=True, cache=True)
def rank(vectors, queries, found, l2, ids, top_scores, top_ids):
    """Score the rows `found` int64 (nq, m) exactly, and rank the best of them by score and id.

    `vectors` as in `exact.chosen`; `ids` int64 (n,); `top_scores` float32 and `top_ids`
    int64 (nq, k): overwritten.
    """
    flat, d = vectors.reshape(-1), vectors.shape[1]
    top_scores[:], top_ids[:] = -np.inf, -1
    for q in range(queries.shape[0]):
        kept_scores, kept_ids = top_scores[q], top_ids[q]
        for i in range(min(AHEAD, found.shape[1])):
            ahead = max(0, found[q, i])
            prefetch_range(flat, ahead * d, ahead * d + d)
        for i in range(found.shape[1]):
            row = found[q, i]
            if row < 0:
                break
            if i + AHEAD < found.shape[1]:
                ahead = max(0, found[q, i + AHEAD])
                prefetch_range(flat, ahead * d, ahead * d + d)
            total = -distance(vectors[row], queries[q]) if l2 else product(vectors[row], queries[q])
            push_one(total, ids[row], kept_scores, kept_ids)
    sort_heaps(top_scores, top_ids)
