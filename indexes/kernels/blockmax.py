"""Exact top-k over sparse vectors, best blocks first.

Documents stand in an order that puts similar ones together, and are counted in groups of groups:

    group          256 documents   one maximum per term (frequent enough terms only)
      superblock    32             one maximum per term (frequent terms)
        block        4             one maximum per term: a dense row (frequent terms) or a list (all others)
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

A maximum is one byte, rounded up, in units of its term's scale, and a bound is a 16-bit whole number, rounded up, in
units of the query: a bound is therefore never below a score. What a bound decides is only whether to look: scores come
from the forward index, summed in the order of the terms, and are the same to the last bit as those of exhaustive
scoring.

The time goes into waiting for memory, some 10 nanoseconds for every line of 64 bytes that a query touches. So
everything is asked for ahead, and is as small as it can be.

Mallia, Suel and Tonellotto, "Faster Learned Sparse Retrieval with Block-Max Pruning" (SIGIR 2024) visits blocks in
the order of their bounds; superblocks, and bounds that are only as fine as a term's share in the score, are what
keeps the bounds from costing more than the documents.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, types
from numba.experimental import structref

from indexes.kernels.blockmax_bounds import (
    GROUP,
    SUPER,
    ask_ahead,
    bound_superblocks,
    clear,
    exclude,
    has_few,
    nth_best,
    pick,
)
from indexes.kernels.blockmax_score import BLOCK, EPSILON, score_queue, sink, threshold, units
from indexes.kernels.fixed_point import FULL, add_full, add_scaled_lanes
from indexes.kernels.prefetch import prefetch

FIRST = 24  # superblocks opened in the first wave, beside one for each block that k documents fill
WHOLE = 65000  # units of what all terms of a query may add; beyond, bounds stop being told apart


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
    blocks: np.ndarray  # uint16 (blocks,): sums of the lists, at the places of `place`
    table: np.ndarray  # uint16 (256,): what each maximum of a list adds
    supers: np.ndarray  # uint16 (superblocks,): bounds
    rest: np.ndarray  # uint16 (groups,): what light terms without rows of blocks may add
    groups: np.ndarray  # uint16 (groups,): what all light terms may add
    best: np.ndarray  # uint16 (groups,): the highest bound of its superblocks
    opened: np.ndarray  # int32 (superblocks,): those whose blocks are looked at
    queue: np.ndarray  # int32 (blocks,): a heap of blocks to visit
    bounds: np.ndarray  # uint16 (blocks,): their bounds
    work: np.ndarray  # int64 (4,): list entries read, superblocks opened, blocks scored, documents scored in full


@structref.register
class WorkspaceType(types.StructRef):
    """numba's type of `Workspace`."""


class Workspace(structref.StructRefProxy):
    """A `Segment` and a `Scratch` behind one pointer: as arguments, two dozen arrays cost 9 microseconds a call."""

    def __new__(cls, segment, scratch):
        made = structref.StructRefProxy.__new__(cls, segment, scratch)
        made.work = scratch.work
        return made


structref.define_proxy(Workspace, WorkspaceType, ["segment", "scratch"])


@njit(nogil=True, cache=True)
def search(
    query_starts, query_terms, query_weights, base, workspace, allowed, alpha, query_cut, budget, light, heap_scores,
    heap_ids,
):  # fmt: skip
    """Offer to each query's heap the rows of the segment of `workspace` that may enter it.

    Queries: CSR (`query_starts` int64 (nq + 1,), `query_terms` int32, `query_weights` float32 > 0). `base` float64
    (V,), or (0,): what each term adds to every score. `allowed` uint8 (blocks,): a bit per document, or (0,) for all.
    Approximation: `alpha` (1 is exact), `query_cut` (terms that guide the search; 0 is all), `budget` (blocks scored;
    0 is no limit). `light`: a term is light if its share of the score is below so many times the mean share of the
    query's terms.
    """
    segment, scratch, longest = workspace.segment, workspace.scratch, 1
    for query in range(heap_scores.shape[0]):
        longest = max(longest, query_starts[query + 1] - query_starts[query])
    found, shares = np.empty(longest, np.int64), np.empty(longest, np.float64)
    ranks, weights, ends = np.empty(longest, np.int64), np.empty(longest, np.uint16), np.zeros(4, np.int64)
    for query in range(heap_scores.shape[0]):
        start, stop = query_starts[query], query_starts[query + 1]
        count, most = translate(query_terms[start:stop], query_weights[start:stop], segment.ranks, segment.scales,
                                found, shares, scratch.weights)  # fmt: skip
        if count == 0:
            continue
        more = constant(query_terms[start:stop], query_weights[start:stop], base)
        unit = most / WHOLE
        slack = (2 * count + 16) * EPSILON * most  # how far rounding may carry a score above its bound
        least = np.sort(shares[:count])[count - query_cut] if 0 < query_cut < count else 0.0
        arrange(found, shares, count, least, light * most / count, segment.block_rows.shape[0],
                segment.group_rows.shape[0], unit, ranks, weights, ends)  # fmt: skip
        ask_ahead(segment, ranks, ends)
        few = has_few(segment, ranks, ends, scratch.blocks.shape[0])
        bound_superblocks(segment, scratch, ranks, weights, ends, few)
        if allowed.shape[0]:
            exclude(allowed, scratch.supers, scratch.best)
        visit(segment, scratch, allowed, ranks, weights, ends, unit, more, slack, alpha, budget,
              heap_scores[query], heap_ids[query])  # fmt: skip
        scratch.weights[found[:count]] = 0
        clear(segment, ranks, ends, few, scratch.blocks)


@njit(nogil=True, cache=True)
def constant(terms, weights, base):
    """What the terms add to the score of every document."""
    total = 0.0
    if base.shape[0]:
        for i in range(terms.shape[0]):
            total += weights[i] * base[terms[i]]
    return np.float32(total)


@njit(nogil=True, cache=True)
def translate(terms, given, all_ranks, scales, ranks, shares, query):
    """Write down the query by rank: `query`. Returns how many of its terms documents have, and what all may add."""
    count, most = 0, 0.0
    for i in range(terms.shape[0]):  # all at once, instead of one after the other
        prefetch(all_ranks, terms[i])
    for i in range(terms.shape[0]):
        rank = all_ranks[terms[i]] if terms[i] < all_ranks.shape[0] else -1
        if rank >= 0:
            query[rank] = given[i]
            ranks[count], shares[count] = rank, 255.0 * given[i] * scales[rank]
            most += shares[count]
            count += 1
    return count, most


@njit(nogil=True, cache=True)
def arrange(found, shares, count, least, bar, rows, group_rows, unit, ranks, weights, ends):
    """Sort the terms whose share is at least `least` by how they are bounded; `ends`: where each kind ends.

    Heavy terms with rows; light ones (share below `bar`) with rows of blocks; light ones with rows of groups only;
    terms with lists. `weights`: 256ths of `unit` that a term adds for each unit of its maxima.
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
                ranks[place] = rank
                weights[place] = np.uint16(min(int(shares[i] / unit * (256.0 / 255.0)) + 1, FULL))
                place += 1
        ends[kind] = place


@njit(nogil=True, cache=True)
def visit(
    segment, scratch, allowed, ranks, weights, ends, unit, base, slack, alpha, budget, heap_scores, heap_ids,
):  # fmt: skip
    """Score the documents of promising blocks: in three waves of falling bounds, so that the first give a threshold.

    The first wave opens few superblocks, the second all in the upper half of what then remains above the threshold.
    """
    left, high = budget if budget else scratch.queue.shape[0], FULL + 1
    for wave in range(3):
        limit = units(threshold(heap_scores[0], heap_ids[0], base, slack, alpha), unit)
        low = limit
        if wave == 0:
            low = nth_best(scratch.best, FIRST + heap_scores.shape[0] // BLOCK)
        elif wave == 1:
            low = (high + limit) // 2
        low = max(low, limit)
        opened = pick(scratch.supers, scratch.best, scratch.blocks, low, high, scratch.opened, scratch.bounds)
        add_parts(segment.block_rows, ranks, weights, 0, ends[0], scratch.opened, opened, scratch.bounds)
        kept = sift(scratch.groups, scratch.rest, limit, scratch.opened, opened, scratch.bounds)
        add_parts(segment.block_rows, ranks, weights, ends[0], ends[1], scratch.opened, kept, scratch.bounds)
        count = queue_blocks(scratch.opened, kept, allowed, limit, segment.starts, scratch.queue, scratch.bounds)
        scored = score_queue(
            segment.starts, segment.terms, segment.weights, segment.row_scales, segment.ids, scratch.weights, allowed,
            scratch.queue, scratch.bounds, count, left, unit, base, slack, alpha, heap_scores, heap_ids, scratch.work,
        )  # fmt: skip
        left -= scored
        scratch.work[1] += opened
        scratch.work[2] += scored
        if left <= 0 or low <= limit:
            break
        high = low


@njit(nogil=True, cache=True)
def add_parts(rows, ranks, weights, first, last, opened, count, bounds):
    """Add the maxima of some terms to the bounds of the blocks of the opened superblocks, asking one term ahead."""
    for q in range(first, last):
        row, weight = rows[ranks[q]], weights[q]
        if q + 1 < last:
            following = rows[ranks[q + 1]]
            for i in range(count):
                prefetch(following, opened[i] * SUPER)
        for i in range(count):
            add_scaled_lanes(bounds, i * SUPER, row, opened[i] * SUPER, weight)


@njit(nogil=True, cache=True)
def sift(groups, rest, limit, opened, count, bounds):
    """Keep the opened superblocks with a block that may reach `limit`; add what light terms without rows may add."""
    kept = 0
    for i in range(count):
        highest, group = np.uint16(0), opened[i] // GROUP
        for j in range(SUPER):
            highest = max(highest, bounds[i * SUPER + j])
        if add_full(highest, groups[group]) >= limit:
            opened[kept] = opened[i]
            for j in range(SUPER):
                bounds[kept * SUPER + j] = add_full(bounds[i * SUPER + j], rest[group])
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def queue_blocks(opened, count, allowed, limit, starts, queue, bounds):
    """Keep the blocks whose bounds reach `limit`, as a heap with the highest bound first. Returns how many.

    Blocks behind the last document exist, to fill its group; what light terms may add to the group is in their bounds.
    """
    kept, blocks = 0, (starts.shape[0] - 1 + BLOCK - 1) // BLOCK
    for i in range(count):
        for j in range(SUPER):
            block, bound = opened[i] * SUPER + j, bounds[i * SUPER + j]
            queue[kept], bounds[kept] = block, bound
            kept += (bound >= limit) & (block < blocks) & (allowed.shape[0] == 0 or allowed[block] != 0)
    for i in range(kept):
        prefetch(starts, queue[i] * BLOCK)
    for place in range(kept // 2 - 1, -1, -1):
        sink(queue, bounds, place, kept)
    return kept
