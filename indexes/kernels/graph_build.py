"""Linking rows into a graph: search for candidates, prune, and link back.

Rows come in batches. All of a batch search the graph as it was before, so that they may do so at once; then each takes
those of its candidates that are nearer to it than to any other taken; then each is offered to those that it took, which
prune what they have too much of. Threads share a batch by rows, and no outcome depends on how (Dobson et al.,
"ParlayANN", PPoPP 2024). The rule is RobustPrune of Subramanya et al., "DiskANN", NeurIPS 2019, in two turns, as in
their code: with alpha 1, then with the given one.

How far a row is from row i is `selves[i]`, the score of row i with itself, less that of the other with row i: half the
squared distance, for "l2" and for vectors of the same length. For inner products of others it may be negative: longer
vectors in the same direction are nearer than the row itself, and become everybody's neighbours, as they should. Scores
are computed by the same products as in a search, between decoded vectors, one of the two as a query of 8 bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.graph_rows import LINE, prefetch_row, score
from indexes.kernels.graph_search import entry_of, row_of, score_of, walk
from indexes.kernels.prefetch import prefetch_range


@njit(nogil=True, cache=True, inline="always")
def rate(rows, terms, lines, bits, at, scaled, l2, row, asked, slopes, tilts, i):
    """The score of a row with row i as the query."""
    first = i * lines * LINE * (8 // bits)
    return score(rows, terms, lines, bits, at, scaled, l2, row, asked, first, slopes[i], tilts[i])


@njit(nogil=True, cache=True)
def score_selves(graph, asked, slopes, tilts, start, stop, selves):
    """`selves[i]` = the score of row i with itself, for i from `start` to `stop`."""
    rows, terms, lines, bits = graph.rows, graph.terms, graph.lines, graph.bits
    at, scaled, l2 = graph.at, graph.scaled, graph.l2
    for i in range(start, stop):
        selves[i] = rate(rows, terms, lines, bits, at, scaled, l2, i, asked, slopes, tilts, i)


@njit(nogil=True, cache=True)
def prune(graph, asked, slopes, tilts, selves, i, entries, count, alpha, out, most):
    """Up to `most` neighbours of row i into `out` int32, of `count` entries, best first. Returns how many.

    An entry is taken unless it is nearer to one before it that was taken than to row i. Where that leaves room, it is
    filled with those that are nearer, but not alpha times: as many links as there may be, the best of them first.
    Of those at no distance only half as many: a row that takes none but its equals is cut off from all others.
    """
    rows, terms, lines, bits = graph.rows, graph.terms, graph.lines, graph.bits
    at, scaled, l2 = graph.at, graph.scaled, graph.l2
    stride = lines * LINE * (8 // bits)
    turns = np.zeros(count, np.uint8)  # in which an entry is looked at: never is 2
    kept, equal = 0, 0
    for turn in range(2):
        before = kept  # those taken in the first turn were compared with all then
        for e in range(count):
            row = row_of(entries[e])
            if turns[e] != turn or row == i or (e > 0 and row == row_of(entries[e - 1])):
                continue
            if e + 1 < count:
                prefetch_row(rows, lines, row_of(entries[e + 1]))
            apart = selves[i] - score_of(entries[e])
            if apart <= 0 and 2 * equal >= most:
                continue
            for j in range(before, kept):
                other = np.int64(out[j])
                nearby = rate(rows, terms, lines, bits, at, scaled, l2, row, asked, slopes, tilts, other)
                between = selves[other] - nearby
                if alpha * between < apart:
                    turns[e] = 2
                    break
                if between < apart:
                    turns[e] = 1
            if turns[e] == turn:
                out[kept] = row
                kept += 1
                equal += apart <= 0
                if kept == most:
                    return kept
                prefetch_range(asked, row * stride, row * stride + stride)
    return kept


@njit(nogil=True, cache=True)
def link(graph, asked, slopes, tilts, selves, batch, start, stop, window, alpha, most, seen, counts):
    """Give the rows `batch` int64, from `start` to `stop`, their neighbours, at most `most`: `counts` int32 (n,)."""
    entries, done = np.empty(window, np.int64), np.empty(4 * window, np.int64)
    stride = graph.lines * LINE * (8 // graph.bits)
    for b in range(start, stop):
        i = batch[b]
        _, steps = walk(graph, asked, i * stride, slopes[i], tilts[i], entries, seen, done)
        steps = min(steps, done.shape[0])
        ranked = -np.sort(-done[:steps])
        out = graph.neighbors[i]
        kept = prune(graph, asked, slopes, tilts, selves, i, ranked, steps, alpha, out, most)
        out[kept:] = -1
        counts[i] = kept


@njit(nogil=True, cache=True)
def link_back(graph, asked, slopes, tilts, selves, targets, sources, starts, start, stop, alpha, most, counts):
    """Add `sources[starts[g] : starts[g + 1]]` to the neighbours of `targets[starts[g]]`, for g from `start` to `stop`.

    Where a row has no room for them, it prunes all that it has to `most`.
    """
    room = graph.neighbors.shape[1]
    entries, fresh = np.empty(256, np.int64), np.empty(room, np.int32)
    for g in range(start, stop):
        a, b = starts[g], starts[g + 1]
        i = targets[a]
        row, count = graph.neighbors[i], counts[i]
        many = count + b - a
        if many <= room:
            for j in range(a, b):
                if not (row[:count] == sources[j]).any():  # rows of one batch may have taken each other
                    row[count] = sources[j]
                    count += 1
            counts[i] = count
            continue
        if many > entries.shape[0]:
            entries = np.empty(2 * many, np.int64)
        for j in range(many):
            entries[j] = row[j] if j < count else sources[a + j - count]
            prefetch_row(graph.rows, graph.lines, entries[j])
        counts[i] = shorten(graph, asked, slopes, tilts, selves, i, entries, many, alpha, fresh, most)


@njit(nogil=True, cache=True)
def shorten(graph, asked, slopes, tilts, selves, i, entries, many, alpha, fresh, most):
    """Make the best of `many` rows, given in `entries`, the neighbours of row i. Returns how many these are."""
    rows, terms, lines, bits = graph.rows, graph.terms, graph.lines, graph.bits
    at, scaled, l2 = graph.at, graph.scaled, graph.l2
    for j in range(many):
        other = entries[j]
        total = rate(rows, terms, lines, bits, at, scaled, l2, other, asked, slopes, tilts, i)
        entries[j] = entry_of(total, other)
    ranked = -np.sort(-entries[:many])
    kept = prune(graph, asked, slopes, tilts, selves, i, ranked, many, alpha, fresh, most)
    row = graph.neighbors[i]
    for j in range(row.shape[0]):
        row[j] = fresh[j] if j < kept else -1
    return kept


@njit(nogil=True, cache=True)
def finish(graph, asked, slopes, tilts, selves, start, stop, alpha, most, counts):
    """Shorten the lists of rows `start` to `stop` that have more than `most`."""
    entries, fresh = np.empty(graph.neighbors.shape[1], np.int64), np.empty(graph.neighbors.shape[1], np.int32)
    for i in range(start, stop):
        if counts[i] > most:
            for j in range(counts[i]):
                entries[j] = graph.neighbors[i, j]
                prefetch_row(graph.rows, graph.lines, entries[j])
            counts[i] = shorten(graph, asked, slopes, tilts, selves, i, entries, counts[i], alpha, fresh, most)
