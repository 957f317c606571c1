"""Exact top-k over sparse vectors, best blocks first.

Documents stand in an order that puts similar ones together, and are counted in groups of groups:

    group          256 documents   one maximum per term (frequent enough terms only)
      superblock    32             one maximum per term (frequent terms)
        block        8             one maximum per term: a dense row (frequent terms) or a list (all others)
          document                 its terms and weights: the forward index

    query --+-- rare terms: walk their lists ----------------> a sum per block and the best block of each superblock
            +-- frequent heavy terms: add rows ---------------> a bound per superblock
            +-- light terms: add rows per group --------------> a bound per group, which holds for all inside
    then    the few best superblocks: bounds of their blocks, best blocks first: score documents -> a threshold
    then    all other superblocks whose bound reaches the threshold, in the same way

A maximum is one byte, rounded up, in units of its term's scale; a bound is therefore never below a score. What a
bound decides is only whether to look: scores come from the forward index, summed in the order of the terms, and are
the same to the last bit as those of exhaustive scoring.

Mallia, Suel and Tonellotto, "Faster Learned Sparse Retrieval with Block-Max Pruning" (SIGIR 2024) visits blocks in
the order of their bounds; superblocks, and bounds that are only as fine as a term's share in the score, are what
keeps the bounds from costing more than the documents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from indexes.kernels.prefetch import prefetch_range
from indexes.kernels.topk import push_one

BLOCK = 8  # documents
SUPER = 4  # blocks
GROUP = 8  # superblocks
FIRST = 48
TILE = 128  # groups: their superblocks' bounds (4 KB) stay in the first cache while rows are added
AHEAD = 128  # entries of each list that are asked for at once, before the first list is walked
LEAST = np.float32(1.2e-38)  # the smallest normal number: what a term that is there adds at least
EPSILON = 2.0**-23


class Segment(NamedTuple):
    """The arrays of n documents, in their order. Terms are numbered from the most frequent to the least: *ranks*."""

    ids: np.ndarray  # int64 (n,)
    ranks: np.ndarray  # int32 (V,): rank of a term, -1 where no document has it
    scales: np.ndarray  # float32 (U,), U terms used: what one unit of a maximum is worth
    block_rows: np.ndarray  # uint8 (D, blocks): maxima of the D most frequent terms
    super_rows: np.ndarray  # uint8 (D, superblocks)
    group_rows: np.ndarray  # uint8 (C, groups), C >= D
    list_starts: np.ndarray  # int64 (U - D + 1,): lists of the other terms, at `list_gaps` and `list_maxima`
    list_gaps: np.ndarray  # uint16: blocks since the entry before; 65535 with maximum 0 bridges longer gaps
    list_maxima: np.ndarray  # uint8
    starts: np.ndarray  # int64 (n + 1,): documents at `terms` and `weights`, in the order of the terms themselves
    terms: np.ndarray  # uint16 or int32: ranks
    weights: np.ndarray  # float32, or uint8 in units of `row_scales`
    row_scales: np.ndarray  # float32 (n,), or (0,) where weights are float32


class Scratch(NamedTuple):
    """Room for one query at a time. `weights` and `blocks` are zero between queries."""

    weights: np.ndarray  # float32 (U,): the query by rank
    blocks: np.ndarray  # float32 (blocks,): sums of the lists
    supers: np.ndarray  # float32 (superblocks,): bounds
    groups: np.ndarray  # float32 (groups,): what light terms may add
    rest: np.ndarray  # float32 (groups,): what light terms without rows of blocks may add
    best: np.ndarray  # float32 (groups,): the highest bound of its superblocks
    opened: np.ndarray  # int32 (superblocks,): those whose blocks are looked at
    queue: np.ndarray  # int32 (blocks,): a heap of blocks to visit
    bounds: np.ndarray  # float32 (blocks,): their bounds
    work: np.ndarray  # int64 (4,): list entries read, superblocks opened, blocks scored, documents scored in full


@njit(nogil=True, cache=True)
def search(
    query_starts, query_terms, query_weights, base, segment, allowed, scratch, alpha, query_cut, budget, light,
    heap_scores, heap_ids,
):  # fmt: skip
    """Offer to each query's heap the rows of `segment` that may enter it.

    Queries: CSR (`query_starts` int64 (nq + 1,), `query_terms` int32, `query_weights` float32 > 0). `base` float32
    (nq,): added to every score. `allowed` uint8 (blocks,): a bit per document, or (0,) for all. Approximation: `alpha`
    (1 is exact), `query_cut` (terms that guide the search; 0 is all), `budget` (blocks scored; 0 is no limit).
    """
    longest = 1
    for query in range(heap_scores.shape[0]):
        longest = max(longest, query_starts[query + 1] - query_starts[query])
    ranks, weights = np.empty(longest, np.int64), np.empty(longest, np.float32)
    for query in range(heap_scores.shape[0]):
        terms = query_terms[query_starts[query] : query_starts[query + 1]]
        given = query_weights[query_starts[query] : query_starts[query + 1]]
        heavy, dense, grouped, slack = spread(terms, given, segment, scratch, query_cut, light, ranks, weights)
        fold(segment, scratch, allowed, ranks, weights, heavy, dense, grouped)
        visit(segment, scratch, allowed, ranks[:dense], weights, base[query], slack, alpha, budget,
              heap_scores[query], heap_ids[query])  # fmt: skip
        clear(terms, segment, scratch)


@njit(nogil=True, cache=True)
def spread(terms, given, segment, scratch, query_cut, light, ranks, weights):
    """Write down the query by rank, walk the lists of its rare terms, and sort its other terms.

    Puts into `ranks` and `weights` the heavy terms with rows, then the light ones with rows of blocks, then the light
    ones with rows of groups only; returns where each of the three ends, and how far rounding may carry a score above
    its bound.
    """
    rows, group_rows = segment.block_rows.shape[0], segment.group_rows.shape[0]
    most, count = 0.0, 0  # what all terms may add
    for i in range(terms.shape[0]):
        rank = segment.ranks[terms[i]] if terms[i] < segment.ranks.shape[0] else -1
        if rank >= 0:
            scratch.weights[rank] = given[i]
            most += 255.0 * given[i] * segment.scales[rank]
            count += 1
            if rank >= rows:
                a, b = segment.list_starts[rank - rows], segment.list_starts[rank - rows + 1]
                prefetch_range(segment.list_gaps, a, min(b, a + AHEAD))
                prefetch_range(segment.list_maxima, a, min(b, a + AHEAD))
    slack = (2 * count + 16) * EPSILON * most
    bar, least = light * most / max(count, 1), -1.0
    if 0 < query_cut < count:
        least = cut_at(terms, given, segment, query_cut)
    scratch.supers[:] = 0
    heavy = dense = grouped = 0
    for part in range(3):
        for i in range(terms.shape[0]):
            rank = segment.ranks[terms[i]] if terms[i] < segment.ranks.shape[0] else -1
            if rank < 0:
                continue
            share = 255.0 * given[i] * segment.scales[rank]
            weight = max(np.float32(given[i] * segment.scales[rank]), LEAST)
            if share < least:
                continue
            if rank < rows:
                kind = 0 if share >= bar else 1
            elif share < bar and rank < group_rows:
                kind = 2
            else:
                if part == 0:
                    a, b = segment.list_starts[rank - rows], segment.list_starts[rank - rows + 1]
                    walk(segment.list_gaps[a:b], segment.list_maxima[a:b], weight, scratch.blocks, scratch.supers)
                    scratch.work[0] += b - a
                continue
            if kind == part:
                ranks[grouped], weights[grouped] = rank, weight
                grouped += 1
        if part == 0:
            heavy = grouped
        elif part == 1:
            dense = grouped
    return heavy, dense, grouped, slack


@njit(nogil=True, cache=True)
def cut_at(terms, weights, segment, query_cut):
    """The share of the `query_cut`-th heaviest term of a query."""
    shares = np.zeros(terms.shape[0], np.float64)
    for i in range(terms.shape[0]):
        rank = segment.ranks[terms[i]] if terms[i] < segment.ranks.shape[0] else -1
        if rank >= 0:
            shares[i] = 255.0 * weights[i] * segment.scales[rank]
    return np.sort(shares)[terms.shape[0] - query_cut]


@njit(nogil=True, cache=True)
def walk(gaps, maxima, weight, blocks, supers):
    """Add one term's list to the sums of its blocks, and raise each superblock to its best block."""
    block = np.uint64(0)  # unsigned: numba would look for negative indices at every access
    for i in range(gaps.shape[0]):
        block += gaps[i]
        total = blocks[block] + weight * np.float32(maxima[i])
        blocks[block] = total
        above = block // np.uint64(SUPER)
        supers[above] = max(supers[above], total)


@njit(nogil=True, cache=True)
def add_rows(rows, ranks, weights, start, stop, out):
    """Add to `out` the parts [start, stop) of some rows, times their weights: four rows at a time, to read in parallel.

    `weights` are in the order of `ranks`.
    """
    q, count, size = 0, ranks.shape[0], stop - start
    while q + 4 <= count:
        r0, r1 = rows[ranks[q], start:stop], rows[ranks[q + 1], start:stop]
        r2, r3 = rows[ranks[q + 2], start:stop], rows[ranks[q + 3], start:stop]
        w0, w1, w2, w3 = weights[q], weights[q + 1], weights[q + 2], weights[q + 3]
        for i in range(size):
            out[i] += (np.float32(r0[i]) * w0 + np.float32(r1[i]) * w1) + (
                np.float32(r2[i]) * w2 + np.float32(r3[i]) * w3
            )
        q += 4
    while q < count:
        row, weight = rows[ranks[q], start:stop], weights[q]
        for i in range(size):
            out[i] += np.float32(row[i]) * weight
        q += 1


@njit(nogil=True, cache=True)
def fold(segment, scratch, allowed, ranks, weights, heavy, dense, grouped):
    """Bounds of all superblocks, and the best of each group."""
    groups = scratch.groups.shape[0]
    scratch.groups[:] = 0
    add_rows(segment.group_rows, ranks[dense:grouped], weights[dense:grouped], 0, groups, scratch.groups)
    scratch.rest[:] = scratch.groups
    add_rows(segment.group_rows, ranks[heavy:dense], weights[heavy:dense], 0, groups, scratch.groups)
    for start in range(0, groups, TILE):
        stop = min(groups, start + TILE)
        bounds = scratch.supers[start * GROUP : stop * GROUP]
        add_rows(segment.super_rows, ranks[:heavy], weights[:heavy], start * GROUP, stop * GROUP, bounds)
        for group in range(start, stop):
            more, best = scratch.groups[group], np.float32(0)
            first = group * GROUP
            for i in range(first, first + GROUP):
                bound = scratch.supers[i] + more
                scratch.supers[i] = bound
                best = max(best, bound)
            scratch.best[group] = best
    if allowed.shape[0]:
        exclude(scratch, allowed)


@njit(nogil=True, cache=True)
def exclude(scratch, allowed):
    """Superblocks without an allowed document cannot be reached."""
    for group in range(scratch.groups.shape[0]):
        best = np.float32(0)
        for i in range(group * GROUP, group * GROUP + GROUP):
            there = False
            for block in range(i * SUPER, i * SUPER + SUPER):
                there |= allowed[block] != 0
            if not there:
                scratch.supers[i] = 0
            best = max(best, scratch.supers[i])
        scratch.best[group] = best


@njit(nogil=True, cache=True)
def visit(segment, scratch, allowed, ranks, weights, base, slack, alpha, budget, heap_scores, heap_ids):
    """Score the documents of promising blocks: in waves of falling bounds, so that the first give a threshold."""
    left = budget if budget else scratch.blocks.shape[0]
    limit = threshold(heap_scores, heap_ids, base, slack, alpha)
    wave, high = FIRST + heap_scores.shape[0] // BLOCK, np.float32(np.inf)
    while left > 0:
        low = nth_best(scratch.best, wave, scratch.bounds)
        last = low <= limit or wave >= scratch.best.shape[0]
        if last:
            low = limit
        count = open_superblocks(segment, scratch, allowed, ranks, weights, low, high, limit)
        left = score_queue(segment, scratch, allowed, count, base, slack, alpha, left, heap_scores, heap_ids)
        if last:
            break
        limit = threshold(heap_scores, heap_ids, base, slack, alpha)
        wave, high = 4 * wave, low


@njit(nogil=True, cache=True)
def threshold(heap_scores, heap_ids, base, slack, alpha):
    """The bound below which nothing can enter the heap."""
    if heap_ids[0] < 0:
        return np.float32(-np.inf)
    limit = heap_scores[0] - np.float64(base)
    if limit > 0:
        limit /= alpha
    limit = (limit - slack) * (1 - EPSILON) if limit > slack else (limit - slack) * (1 + EPSILON)
    return np.float32(limit) if limit == limit else np.float32(-np.inf)


@njit(nogil=True, cache=True)
def nth_best(values, count, heap):
    """The `count`-th highest of `values`, or the lowest when there are fewer. `heap` is room for that many."""
    count = min(count, values.shape[0])
    heap[:count] = -np.inf
    for i in range(values.shape[0]):
        value = values[i]
        if value > heap[0]:
            place = 0
            while True:
                child = 2 * place + 1
                if child >= count:
                    break
                if child + 1 < count and heap[child + 1] < heap[child]:
                    child += 1
                if heap[child] >= value:
                    break
                heap[place] = heap[child]
                place = child
            heap[place] = value
    return heap[0]


@njit(nogil=True, cache=True)
def open_superblocks(segment, scratch, allowed, ranks, weights, low, high, limit):
    """Queue the blocks whose bounds reach `limit`, of the superblocks with bounds in [low, high). Returns how many."""
    supers, bounds, opened, count = scratch.opened, scratch.bounds, 0, 0
    low = max(low, LEAST)
    for group in range(scratch.best.shape[0]):
        if scratch.best[group] >= low:
            for i in range(group * GROUP, group * GROUP + GROUP):
                if low <= scratch.supers[i] < high:
                    supers[opened] = i
                    for j in range(SUPER):
                        bounds[opened * SUPER + j] = scratch.blocks[i * SUPER + j] + scratch.rest[group]
                    opened += 1
    for q in range(ranks.shape[0]):
        add_parts(segment.block_rows[ranks[q]], weights[q], supers, opened, bounds)
    scratch.work[1] += opened
    for i in range(opened):
        for j in range(SUPER):
            block, bound = supers[i] * SUPER + j, bounds[i * SUPER + j]
            if bound >= limit and bound > 0 and (allowed.shape[0] == 0 or allowed[block]):
                scratch.queue[count], bounds[count] = block, bound
                count += 1
    return count


@njit(nogil=True, cache=True)
def add_parts(row, weight, supers, count, out):
    """Add to `out` the blocks of some superblocks, from one term's row times its weight: a superblock is one read."""
    for i in range(count):
        first = np.uint64(supers[i]) * np.uint64(SUPER)
        for j in range(SUPER):
            out[i * SUPER + j] += np.float32(row[first + np.uint64(j)]) * weight


@njit(nogil=True, cache=True)
def sink(queue, bounds, place, count):
    """Restore the order of a heap, highest bound first, after a change at `place`."""
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
def score_queue(segment, scratch, allowed, count, base, slack, alpha, left, heap_scores, heap_ids):
    """Score the documents of the queued blocks, best bound first, until no bound reaches the threshold.

    Returns what is left of the budget of `left` blocks.
    """
    queue, bounds, n = scratch.queue, scratch.bounds, segment.ids.shape[0]
    for place in range(count // 2 - 1, -1, -1):
        sink(queue, bounds, place, count)
    limit = threshold(heap_scores, heap_ids, base, slack, alpha)
    while count and left and bounds[0] >= limit:
        first = queue[0] * BLOCK
        stop = min(n, first + BLOCK)
        mask = allowed[queue[0]] if allowed.shape[0] else 255
        count -= 1
        left -= 1
        queue[0], bounds[0] = queue[count], bounds[count]
        if count:
            sink(queue, bounds, 0, count)
            ahead = queue[0] * BLOCK
            a, b = segment.starts[ahead], segment.starts[min(n, ahead + BLOCK)]
            prefetch_range(segment.terms, a, b)
            prefetch_range(segment.weights, a, b)
        scratch.work[2] += 1
        for row in range(first, stop):
            if mask >> (row - first) & 1:
                a, b = segment.starts[row], segment.starts[row + 1]
                terms, weights = segment.terms[a:b], segment.weights[a:b]
                scale = segment.row_scales[row] if segment.row_scales.shape[0] else np.float32(1)
                if estimate(terms, weights, scratch.weights) * scale >= limit:
                    scratch.work[3] += 1
                    score = score_row(terms, weights, scale, scratch.weights)
                    there = score != 0 or shares_term(terms, scratch.weights)
                    score += base
                    if there and score >= heap_scores[0]:
                        push_one(score, segment.ids[row], heap_scores, heap_ids)
                        limit = threshold(heap_scores, heap_ids, base, slack, alpha)
    return left


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def estimate(terms, weights, query):
    """A row's score up to rounding: summed in any order, which is what lets the compiler use wide instructions."""
    total = np.float32(0)
    for i in range(terms.shape[0]):
        total += query[terms[i]] * np.float32(weights[i])
    return total


@njit(nogil=True, cache=True)
def score_row(terms, weights, scale, query):
    """A row's score, summed in the order of the terms: those that the query does not have add zeros."""
    total = np.float32(0)
    for i in range(terms.shape[0]):
        total += query[terms[i]] * (np.float32(weights[i]) * scale)
    return total


@njit(nogil=True, cache=True)
def shares_term(terms, query):
    for i in range(terms.shape[0]):  # noqa: SIM110
        if query[terms[i]] != 0:
            return True
    return False


@njit(nogil=True, cache=True)
def clear(terms, segment, scratch):
    """Set to zero what a query wrote."""
    dense, entries = segment.block_rows.shape[0], 0
    for i in range(terms.shape[0]):
        rank = segment.ranks[terms[i]] if terms[i] < segment.ranks.shape[0] else -1
        if rank >= 0:
            scratch.weights[rank] = 0
        if rank >= dense:
            entries += segment.list_starts[rank - dense + 1] - segment.list_starts[rank - dense]
    if entries * 4 > scratch.blocks.shape[0]:
        scratch.blocks[:] = 0
        return
    for i in range(terms.shape[0]):
        rank = segment.ranks[terms[i]] if terms[i] < segment.ranks.shape[0] else -1
        if rank >= dense:
            block = np.uint64(0)
            for j in range(segment.list_starts[rank - dense], segment.list_starts[rank - dense + 1]):
                block += segment.list_gaps[j]
                scratch.blocks[block] = 0
