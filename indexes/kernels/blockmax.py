"""Exact top-k over sparse vectors, best blocks first.

Documents stand in an order that puts similar ones together, and are counted in groups of groups:

    group          256 documents   one maximum per term (frequent enough terms only)
      superblock    32             one maximum per term (frequent terms)
        block        8             one maximum per term: a dense row (frequent terms) or a list (all others)
          document                 its terms and weights: the forward index

    query --+-- rare terms: walk their lists --------> a sum per block, and the best block of each superblock
            +-- frequent heavy terms: add rows ------> a bound per superblock
            +-- light terms: add rows of groups -----> a bound per group, which holds for all inside
              = bounds of all superblocks                                             `bound_superblocks`
    three waves of superblocks with falling bounds, all that reach the threshold:     `visit`
        bounds of their blocks: first the rows of heavy terms, then, if these do not
        rule them out, those of light terms too                                       `pick`, `add_parts`, `sift`
        blocks that reach the threshold, best first: score their documents,
        which raises the threshold                                                    `queue_blocks`, `score_queue`

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

from indexes.kernels.blockmax_score import BLOCK, EPSILON, MOST, score_queue, sink, threshold
from indexes.kernels.prefetch import prefetch, prefetch_range

SUPER = 4  # blocks
GROUP = 8  # superblocks
FIRST = 24  # superblocks opened in the first wave, beside one for each block that k documents fill
TILE = 128  # groups: their superblocks' bounds (4 KB) stay in the first cache while rows are added
AHEAD = 2048  # entries of each list that are asked for while rows are added
LEAST = np.float32(1.2e-38)  # the smallest normal number: what a term that is there adds at least
# Ranges and places are unsigned in the inner loops: of signed ones, numba would expect to be negative at every access.


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
    rest: np.ndarray  # float32 (groups,): what light terms without rows of blocks may add
    groups: np.ndarray  # float32 (groups,): what all light terms may add
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
    `light`: a term is light if its share of the score is below so many times the mean share of the query's terms.
    """
    longest = 1
    for query in range(heap_scores.shape[0]):
        longest = max(longest, query_starts[query + 1] - query_starts[query])
    found, shares = np.empty(longest, np.int64), np.empty(longest, np.float64)
    ranks, weights, ends = np.empty(longest, np.int64), np.empty(longest, np.float32), np.zeros(4, np.int64)
    for query in range(heap_scores.shape[0]):
        start, stop = query_starts[query], query_starts[query + 1]
        count, most = translate(query_terms[start:stop], query_weights[start:stop], segment.ranks, segment.scales,
                                found, shares, scratch.weights)  # fmt: skip
        slack = (2 * count + 16) * EPSILON * most  # how far rounding may carry a score above its bound
        least = np.sort(shares[:count])[count - query_cut] if 0 < query_cut < count else 0.0
        arrange(found, shares, count, least, light * most / max(count, 1), segment.block_rows.shape[0],
                segment.group_rows.shape[0], segment.scales, scratch.weights, ranks, weights, ends)  # fmt: skip
        bound_superblocks(segment, scratch, ranks, weights, ends)
        if allowed.shape[0]:
            exclude(allowed, scratch.supers, scratch.best)
        visit(segment, scratch, allowed, ranks, weights, ends, base[query], slack, alpha, budget,
              heap_scores[query], heap_ids[query])  # fmt: skip
        clear(segment.list_starts, segment.list_gaps, found[:count], segment.block_rows.shape[0], scratch.weights,
              scratch.blocks)  # fmt: skip


@njit(nogil=True, cache=True)
def translate(terms, given, all_ranks, scales, ranks, shares, query):
    """Write down the query by rank: `query`. Returns how many of its terms documents have, and what all may add."""
    count, most = 0, 0.0
    for i in range(terms.shape[0]):  # all at once, instead of one after the other
        prefetch(all_ranks, terms[i])  # type: ignore[call-arg]
    for i in range(terms.shape[0]):
        rank = all_ranks[terms[i]] if terms[i] < all_ranks.shape[0] else -1
        if rank >= 0:
            query[rank] = given[i]
            ranks[count], shares[count] = rank, 255.0 * given[i] * scales[rank]
            most += shares[count]
            count += 1
    return count, most


@njit(nogil=True, cache=True)
def arrange(found, shares, count, least, bar, rows, group_rows, scales, query, ranks, weights, ends):
    """Sort the terms whose share is at least `least` by how they are bounded; `ends`: where each kind ends.

    Heavy terms with rows; light ones (share below `bar`) with rows of blocks; light ones with rows of groups only;
    terms with lists.
    """
    place = 0
    for kind in range(4):
        for i in range(count):
            rank = found[i]
            if rank < rows:
                actual = 0 if shares[i] >= bar else 1
            else:
                actual = 2 if shares[i] < bar and rank < group_rows else 3
            if actual == kind and shares[i] >= least:
                ranks[place], weights[place] = rank, min(max(query[rank] * scales[rank], LEAST), MOST)
                place += 1
        ends[kind] = place


@njit(nogil=True, cache=True)
def bound_superblocks(segment, scratch, ranks, weights, ends):
    """Bounds of all superblocks, and the best of each group."""
    rows, groups = segment.block_rows.shape[0], scratch.groups.shape[0]
    for q in range(ends[2], ends[3]):  # lists are too short for the processor to see them coming
        start, stop = segment.list_starts[ranks[q] - rows], segment.list_starts[ranks[q] - rows + 1]
        prefetch_range(segment.list_gaps, start, min(stop, start + AHEAD))
        prefetch_range(segment.list_maxima, start, min(stop, start + AHEAD))
    scratch.rest[:] = 0
    add_rows(segment.group_rows, ranks, weights, ends[1], ends[2], 0, groups, scratch.rest)
    scratch.groups[:] = scratch.rest
    add_rows(segment.group_rows, ranks, weights, ends[0], ends[1], 0, groups, scratch.groups)
    scratch.supers[:] = 0
    for q in range(ends[2], ends[3]):
        start, stop = segment.list_starts[ranks[q] - rows], segment.list_starts[ranks[q] - rows + 1]
        walk(segment.list_gaps, segment.list_maxima, start, stop, weights[q], scratch.blocks, scratch.supers)
        scratch.work[0] += stop - start
    for start in range(0, groups, TILE):
        stop = min(groups, start + TILE)
        add_rows(segment.super_rows, ranks, weights, 0, ends[0], start * GROUP, stop * GROUP, scratch.supers)
        fold(scratch.supers, scratch.groups, start, stop, scratch.best)


@njit(nogil=True, cache=True)
def walk(gaps, maxima, start, stop, weight, blocks, supers):
    """Add one term's list to the sums of its blocks, and raise each superblock to its best block."""
    block = np.uint64(0)
    for i in range(np.uint64(start), np.uint64(stop)):
        block += gaps[i]
        total = blocks[block] + weight * np.float32(maxima[i])
        blocks[block] = total
        above = block // np.uint64(SUPER)
        supers[above] = max(supers[above], total)


@njit(nogil=True, cache=True)
def add_rows(rows, ranks, weights, first, last, start, stop, out):
    """Add to `out[start:stop]` the rows `ranks[first:last]` times their weights: four at once, to read in parallel."""
    part, q = out[start:stop], first
    while q + 4 <= last:
        r0, r1 = rows[ranks[q], start:stop], rows[ranks[q + 1], start:stop]
        r2, r3 = rows[ranks[q + 2], start:stop], rows[ranks[q + 3], start:stop]
        w0, w1, w2, w3 = weights[q], weights[q + 1], weights[q + 2], weights[q + 3]
        for i in range(stop - start):
            part[i] += (np.float32(r0[i]) * w0 + np.float32(r1[i]) * w1) + (
                np.float32(r2[i]) * w2 + np.float32(r3[i]) * w3
            )
        q += 4
    while q < last:
        row, weight = rows[ranks[q], start:stop], weights[q]
        for i in range(stop - start):
            part[i] += np.float32(row[i]) * weight
        q += 1


@njit(nogil=True, cache=True)
def fold(supers, groups, start, stop, best):
    """Add what the light terms of each group may add; note the best superblock of each group."""
    for group in range(start, stop):
        more, highest = groups[group], np.float32(0)
        for i in range(group * GROUP, group * GROUP + GROUP):
            supers[i] = min(supers[i] + more, MOST)
            highest = max(highest, supers[i])
        best[group] = highest


@njit(nogil=True, cache=True)
def exclude(allowed, supers, best):
    """Superblocks without an allowed document cannot be reached."""
    for group in range(best.shape[0]):
        highest = np.float32(0)
        for i in range(group * GROUP, group * GROUP + GROUP):
            there = False
            for block in range(i * SUPER, i * SUPER + SUPER):
                there |= allowed[block] != 0
            if not there:
                supers[i] = 0
            highest = max(highest, supers[i])
        best[group] = highest


@njit(nogil=True, cache=True)
def visit(segment, scratch, allowed, ranks, weights, ends, base, slack, alpha, budget, heap_scores, heap_ids):
    """Score the documents of promising blocks: in three waves of falling bounds, so that the first give a threshold.

    The first wave opens few superblocks, the second all in the upper half of what then remains above the threshold.
    """
    left, high = budget if budget else scratch.blocks.shape[0], np.float32(np.inf)
    for wave in range(3):
        limit = threshold(heap_scores[0], heap_ids[0], base, slack, alpha)
        low = limit
        if wave == 0:
            low = nth_best(scratch.best, FIRST + heap_scores.shape[0] // BLOCK, scratch.bounds)
        elif wave == 1:
            low = (high + max(limit, np.float32(0))) / np.float32(2)
        low = max(low, limit)
        opened = pick(scratch.supers, scratch.best, scratch.groups, scratch.blocks, max(low, LEAST), high,
                      scratch.opened, scratch.bounds)  # fmt: skip
        for q in range(ends[0]):
            if q + 1 < ends[0]:
                prefetch_parts(segment.block_rows, ranks[q + 1], scratch.opened, opened)
            add_parts(segment.block_rows, ranks[q], weights[q], scratch.opened, opened, scratch.bounds)
        kept = sift(scratch.groups, scratch.rest, max(limit, LEAST), scratch.opened, opened, scratch.bounds)
        for q in range(ends[0], ends[1]):
            if q + 1 < ends[1]:
                prefetch_parts(segment.block_rows, ranks[q + 1], scratch.opened, kept)
            add_parts(segment.block_rows, ranks[q], weights[q], scratch.opened, kept, scratch.bounds)
        count = queue_blocks(scratch.opened, kept, allowed, max(limit, LEAST), segment.starts, scratch.queue,
                             scratch.bounds)  # fmt: skip
        scored = score_queue(
            segment.starts, segment.terms, segment.weights, segment.row_scales, segment.ids, scratch.weights, allowed,
            scratch.queue, scratch.bounds, count, left, base, slack, alpha, heap_scores, heap_ids, scratch.work,
        )  # fmt: skip
        left -= scored
        scratch.work[1] += opened
        scratch.work[2] += scored
        if left <= 0 or low <= limit:
            break
        high = low


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
def pick(supers, best, groups, blocks, low, high, opened, bounds):
    """List the superblocks with bounds in [low, high), and begin the bounds of their blocks. Returns how many."""
    count = 0
    for group in range(best.shape[0]):
        if best[group] >= low:
            for i in range(group * GROUP, group * GROUP + GROUP):
                if low <= supers[i] < high:
                    opened[count] = i
                    for j in range(SUPER):
                        bounds[count * SUPER + j] = blocks[i * SUPER + j] + groups[group]
                    count += 1
    return count


@njit(nogil=True, cache=True)
def sift(groups, rest, limit, opened, count, bounds):
    """Keep the opened superblocks with a block that reaches `limit`, without what the rows of light terms will add."""
    kept = 0
    for i in range(count):
        first = i * SUPER
        highest = max(max(bounds[first], bounds[first + 1]), max(bounds[first + 2], bounds[first + 3]))
        if highest >= limit:
            less = groups[opened[i] // GROUP] - rest[opened[i] // GROUP]
            less = less if less <= MOST else np.float32(0)
            opened[kept] = opened[i]
            for j in range(SUPER):
                bounds[kept * SUPER + j] = bounds[first + j] - less
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def add_parts(rows, rank, weight, opened, count, bounds):
    """Add one term's maxima of the blocks of the opened superblocks: one read for each superblock."""
    row = rows[rank]
    for i in range(count):
        first = np.uint64(opened[i]) * np.uint64(SUPER)
        for j in range(SUPER):
            bounds[i * SUPER + j] += np.float32(row[first + np.uint64(j)]) * weight


@njit(nogil=True, cache=True)
def prefetch_parts(rows, rank, opened, count):
    """Ask for what `add_parts` will read."""
    row = rows[rank]
    for i in range(count):
        prefetch(row, opened[i] * SUPER)  # type: ignore[call-arg]


@njit(nogil=True, cache=True)
def queue_blocks(opened, count, allowed, limit, starts, queue, bounds):
    """Keep the blocks whose bounds reach `limit`, as a heap with the highest bound first. Returns how many.

    Blocks behind the last document exist, to fill its group; what light terms may add to the group is in their bounds.
    """
    kept, n = 0, starts.shape[0] - 1
    for i in range(count):
        for j in range(SUPER):
            block, bound = opened[i] * SUPER + j, bounds[i * SUPER + j]
            if bound >= limit and block * BLOCK < n and (allowed.shape[0] == 0 or allowed[block]):
                queue[kept], bounds[kept] = block, bound
                prefetch(starts, block * BLOCK)  # type: ignore[call-arg]
                kept += 1
    for place in range(kept // 2 - 1, -1, -1):
        sink(queue, bounds, place, kept)
    return kept


@njit(nogil=True, cache=True)
def clear(list_starts, gaps, ranks, rows, query, blocks):
    """Set to zero what a query wrote."""
    entries = 0
    for rank in ranks:
        query[rank] = 0
        if rank >= rows:
            entries += list_starts[rank - rows + 1] - list_starts[rank - rows]
    if entries * 4 > blocks.shape[0]:
        blocks[:] = 0
        return
    for rank in ranks:
        if rank >= rows:
            block = np.uint64(0)
            for i in range(np.uint64(list_starts[rank - rows]), np.uint64(list_starts[rank - rows + 1])):
                block += gaps[i]
                blocks[block] = 0
