"""Scoring the documents of blocks from the forward index, best block first: the last step of a block-max search."""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.fixed_point import FULL
from indexes.kernels.prefetch import prefetch, prefetch_range
from indexes.kernels.topk import push_one

BLOCK = 4  # documents
MOST = np.float32(3.4e38)  # thresholds that overflow stop here, and stay comparable
WAITING = 3  # blocks that are asked for before they are scored
EPSILON = 2.0**-23


@njit(nogil=True, cache=True)
def threshold(worst, worst_id, base, slack, alpha):
    """The bound below which nothing can enter a heap with this worst entry."""
    if worst_id < 0:
        return np.float32(-np.inf)
    limit = worst - np.float64(base)
    if limit > 0:
        limit /= alpha
    limit -= slack
    limit -= abs(limit) * EPSILON
    return np.float32(min(limit, np.float64(MOST))) if limit == limit else np.float32(-np.inf)


@njit(nogil=True, cache=True)
def units(limit, unit):
    """The bound, at least 1, that all scores of `limit` or more have in units."""
    return int(min(max(np.float64(limit) / unit, 1.0), np.float64(FULL)))


@njit(nogil=True, cache=True)
def sink(queue, bounds, place, count):
    """Restore the order of a heap after a change at `place`."""
    block, bound = queue[place], bounds[place]
    while True:
        child = 2 * place + 1
        if child >= count:
            break
        if child + 1 < count and bounds[child + 1] > bounds[child]:
            child += 1
        if bounds[child] <= bound:
            break
        queue[place], bounds[place] = queue[child], bounds[child]
        place = child
    queue[place], bounds[place] = block, bound


@njit(nogil=True, cache=True)
def score_queue(
    starts, terms, weights, row_scales, ids, query, allowed, queue, bounds, count, most, unit, base, slack, alpha,
    heap_scores, heap_ids, work,
):  # fmt: skip
    """Score the documents of the queued blocks, best bound first, until no bound reaches the threshold.

    Returns how many blocks were scored, at most `most`. Blocks wait in a ring until their memory has come.
    """
    n, scored, scale, mask = ids.shape[0], 0, np.float32(1), (1 << BLOCK) - 1
    limit = threshold(heap_scores[0], heap_ids[0], base, slack, alpha)
    least = units(limit, unit)
    ring, ring_bounds, asked = np.zeros(WAITING, np.int64), np.zeros(WAITING, np.int64), 0
    while scored < most:
        while count and asked - scored < WAITING and bounds[0] >= least:
            block = queue[0]
            ring[asked % WAITING], ring_bounds[asked % WAITING] = block, bounds[0]
            asked += 1
            count -= 1
            queue[0], bounds[0] = queue[count], bounds[count]
            sink(queue, bounds, 0, count)
            a, b = starts[block * BLOCK], starts[min(n, block * BLOCK + BLOCK)]
            prefetch(ids, block * BLOCK)
            prefetch_range(terms, a, b)
            prefetch_range(weights, a, b)
        if asked == scored or ring_bounds[scored % WAITING] < least:
            break
        block = ring[scored % WAITING]
        scored += 1
        first = block * BLOCK
        if allowed.shape[0]:
            mask = np.int64(allowed[block])
        for row in range(first, min(n, first + BLOCK)):
            if mask >> (row - first) & 1:
                a, b = starts[row], starts[row + 1]
                if row_scales.shape[0]:
                    scale = row_scales[row]
                if estimate(terms, weights, a, b, query) * scale >= limit:
                    work[3] += 1
                    score = score_row(terms, weights, a, b, scale, query)
                    there = score != 0 or shares_term(terms, a, b, query)
                    score += base
                    if there and score >= heap_scores[0]:
                        push_one(score, ids[row], heap_scores, heap_ids)
                        limit = threshold(heap_scores[0], heap_ids[0], base, slack, alpha)
                        least = units(limit, unit)
    return scored


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def estimate(terms, weights, start, stop, query):
    """A row's score up to rounding: summed in any order, which is what lets the compiler use wide instructions."""
    total = np.float32(0)
    for i in range(np.uint64(start), np.uint64(stop)):
        total += query[terms[i]] * np.float32(weights[i])
    return total


@njit(nogil=True, cache=True)
def score_row(terms, weights, start, stop, scale, query):
    """A row's score, summed in the order of the terms: those that the query does not have add zeros."""
    total = np.float32(0)
    for i in range(np.uint64(start), np.uint64(stop)):
        total += query[terms[i]] * (np.float32(weights[i]) * scale)
    return total


@njit(nogil=True, cache=True)
def shares_term(terms, start, stop, query):
    for i in range(start, stop):  # noqa: SIM110
        if query[terms[i]] != 0:
            return True
    return False
