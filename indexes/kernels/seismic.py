"""Seismic: pruned inverted lists in blocks of similar documents, each block with a summary of what is in it.

    list of a term      blocks of places          a block's summary, and the documents
      "cat"  ------->   [3 17 18] [40 41 77] ...    highest weight of each term in it, the heaviest only, as bytes

    query --+-- its `query_cut` heaviest terms: score the summaries of their lists' blocks
            +-- blocks by the score of their summary, until that is below `heap_factor` times the k-th score so far
            +-- their documents, each once, from the forward index, with all terms of the query
            +-- (optional) the nearest neighbours of the documents that are among the best

Summaries are rows of sparse vectors like the documents, and are scored by the same function. Terms are numbered from
the most frequent to the least (*ranks*), documents by their *place* in the forward index.

Bruch, Nardini, Rulli and Venturini, "Efficient Inverted Indexes for Approximate Retrieval over Learned Sparse
Representations" (SIGIR 2024, arXiv:2404.18812), and "Pairing Clustered Inverted Indexes with kNN Graphs for Fast
Approximate Retrieval over Learned Sparse Representations" (CIKM 2024, arXiv:2408.04443: blocks by the score of their
summaries, list by list; the graph). Ordering the blocks of all lists together raises the threshold sooner.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from indexes.kernels.blockmax_score import sink
from indexes.kernels.ordering import bisect
from indexes.kernels.prefetch import prefetch_range
from indexes.kernels.topk import push_one

CODES = 256
LEAST = np.float32(1.2e-38)  # the smallest normal number


class Rows(NamedTuple):
    """Sparse vectors: row i has `terms`, `weights` [`starts[i]`:`starts[i + 1]`]."""

    starts: np.ndarray  # int64 (rows + 1,)
    terms: np.ndarray  # uint16 or int32: ranks
    weights: np.ndarray  # float32, or uint8 in units of `row_scales`
    row_scales: np.ndarray  # float32 (rows,), or (0,) where weights are float32


class Lists(NamedTuple):
    """What is searched: U terms, B blocks."""

    ids: np.ndarray  # int64 (n,): of each place
    ranks: np.ndarray  # int32 (V,): rank of a term, -1 where no document has it
    list_blocks: np.ndarray  # int64 (U + 1,): the blocks of each term's list
    block_starts: np.ndarray  # int64 (B + 1,): the places of each block, in `places`
    places: np.ndarray  # int32
    neighbors: np.ndarray  # int32 (n, m): the places most similar to each, -1 where fewer are known


class Scratch(NamedTuple):
    """Room for one query at a time. `weights` and `visited` are zero between queries."""

    weights: np.ndarray  # float32 (U,): the query by rank
    visited: np.ndarray  # uint8 (n / 8,): a bit per place
    queue: np.ndarray  # int32 (B,): a heap of blocks
    bounds: np.ndarray  # float32 (B,): the scores of their summaries
    scored: np.ndarray  # int32 (n,): the places visited
    scores: np.ndarray  # float32 (n,): their scores
    work: np.ndarray  # int64 (3,): summaries scored, blocks visited, documents scored


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def dot(terms, weights, query):
    """Summed in any order, which lets the compiler use wide instructions."""
    total = np.float32(0)
    for i in range(terms.shape[0]):
        total += query[terms[i]] * np.float32(weights[i])
    return total


@njit(nogil=True, cache=True)
def near(rows, row, query):
    """The score of a row up to rounding."""
    a, b = rows.starts[row], rows.starts[row + 1]
    total = dot(rows.terms[a:b], rows.weights[a:b], query)
    return total * rows.row_scales[row] if rows.row_scales.shape[0] else total


@njit(nogil=True, cache=True)
def exactly(rows, row, query):
    """The score of a row, summed in the order of the terms as exhaustive search does, and how many terms it shares."""
    a, b = rows.starts[row], rows.starts[row + 1]
    terms, weights = rows.terms[a:b], rows.weights[a:b]
    scale = rows.row_scales[row] if rows.row_scales.shape[0] else np.float32(1)
    total, shared = np.float32(0), 0
    for i in range(terms.shape[0]):
        weight = query[terms[i]]
        total += weight * (np.float32(weights[i]) * scale)
        shared += weight != 0
    return total, shared


@njit(nogil=True, cache=True)
def prefetch_row(rows, row):
    prefetch_range(rows.terms, rows.starts[row], rows.starts[row + 1])
    prefetch_range(rows.weights, rows.starts[row], rows.starts[row + 1])


@njit(nogil=True, cache=True)
def search(
    query_starts, query_terms, query_weights, lists, documents, summaries, allowed, scratch, query_cut, heap_factor,
    complete, heap_scores, heap_ids,
):  # fmt: skip
    """Offer to each query's heap the documents of promising blocks.

    Queries: CSR (`query_starts` int64 (nq + 1,), `query_terms` int32, `query_weights` float32 > 0). `documents`,
    `summaries`: `Rows`. `allowed` bool (n,) by place, or (0,) for all. `complete`: go on with all other documents if
    these do not fill the heap.
    """
    for query in range(heap_scores.shape[0]):
        start, stop = query_starts[query], query_starts[query + 1]
        terms, weights = query_terms[start:stop], query_weights[start:stop]
        kept_scores, kept_ids = heap_scores[query], heap_ids[query]
        for i in range(terms.shape[0]):
            if lists.ranks[terms[i]] >= 0:
                scratch.weights[lists.ranks[terms[i]]] = weights[i]
        queued = score_summaries(terms, weights, lists, summaries, scratch, query_cut)
        count = visit(lists, documents, allowed, scratch, queued, heap_factor, kept_scores, kept_ids)
        if lists.neighbors.shape[1]:
            count = refine(lists, documents, allowed, scratch, count, kept_scores, kept_ids)
        scratch.work[2] += count
        if complete and kept_ids[0] < 0:
            scan(lists, documents, allowed, scratch, kept_scores, kept_ids)
        for i in range(count):
            scratch.visited[scratch.scored[i] >> 3] = 0
        for i in range(terms.shape[0]):
            if lists.ranks[terms[i]] >= 0:
                scratch.weights[lists.ranks[terms[i]]] = 0


@njit(nogil=True, cache=True)
def score_summaries(terms, weights, lists, summaries, scratch, query_cut):
    """Queue the blocks of the lists of the heaviest terms, with the scores of their summaries. Returns how many."""
    count, cut = 0, min(query_cut, terms.shape[0])
    order = np.argsort(-weights, kind="mergesort")
    for i in range(cut):
        rank = lists.ranks[terms[order[i]]]
        if i + 1 < cut and lists.ranks[terms[order[i + 1]]] >= 0:
            prefetch_summaries(lists.ranks[terms[order[i + 1]]], lists, summaries)
        if rank >= 0:
            for block in range(lists.list_blocks[rank], lists.list_blocks[rank + 1]):
                scratch.queue[count], scratch.bounds[count] = block, near(summaries, block, scratch.weights)
                count += 1
    scratch.work[0] += count
    return count


@njit(nogil=True, cache=True)
def prefetch_summaries(rank, lists, summaries):
    """Ask for the start of a list's summaries; the processor foresees the rest."""
    a = summaries.starts[lists.list_blocks[rank]]
    prefetch_range(summaries.terms, a, a + 1024)
    prefetch_range(summaries.weights, a, a + 1024)


@njit(nogil=True, cache=True)
def visit(lists, documents, allowed, scratch, queued, heap_factor, heap_scores, heap_ids):
    """Score the documents of the queued blocks, best summary first. Returns how many were scored."""
    queue, bounds, count = scratch.queue, scratch.bounds, 0
    for place in range(queued // 2 - 1, -1, -1):
        sink(queue, bounds, place, queued)
    while queued and (heap_ids[0] < 0 or bounds[0] >= heap_factor * heap_scores[0]):
        block = queue[0]
        queued -= 1
        queue[0], bounds[0] = queue[queued], bounds[queued]
        if queued:
            sink(queue, bounds, 0, queued)
            ahead = lists.block_starts[queue[0]]
            prefetch_range(lists.places, ahead, ahead + 1)
        scratch.work[1] += 1
        first = count
        for i in range(lists.block_starts[block], lists.block_starts[block + 1]):
            count = note(lists.places[i], documents, allowed, scratch, count)
        score(lists, documents, scratch, first, count, heap_scores, heap_ids)
    return count


@njit(nogil=True, cache=True)
def note(place, documents, allowed, scratch, count):
    """Add a place to those to be scored, unless it was there before or may not be returned. Returns their number."""
    bit = np.uint8(1 << (place & 7))
    if scratch.visited[place >> 3] & bit == 0 and (allowed.shape[0] == 0 or allowed[place]):
        scratch.visited[place >> 3] |= bit
        prefetch_row(documents, place)
        scratch.scored[count] = place
        count += 1
    return count


@njit(nogil=True, cache=True)
def score(lists, documents, scratch, first, stop, heap_scores, heap_ids):
    """Score the places noted from `first` to `stop`, and offer them to the heap."""
    for i in range(first, stop):
        place = scratch.scored[i]
        total = near(documents, place, scratch.weights)
        scratch.scores[i] = total
        # in the order of the terms, where it matters: the very scores of exhaustive search
        if total >= heap_scores[0] * np.float32(1 - 1e-5):
            exact, shared = exactly(documents, place, scratch.weights)
            if shared and exact >= heap_scores[0]:
                push_one(exact, lists.ids[place], heap_scores, heap_ids)


@njit(nogil=True, cache=True)
def refine(lists, documents, allowed, scratch, count, heap_scores, heap_ids):
    """Score the neighbours of the documents that are among the best so far. Returns how many were scored by now."""
    found, least = count, heap_scores[0] * np.float32(1 - 1e-5)
    for i in range(found):
        if scratch.scores[i] >= least:
            for place in lists.neighbors[scratch.scored[i]]:
                if place >= 0:
                    count = note(place, documents, allowed, scratch, count)
    score(lists, documents, scratch, found, count, heap_scores, heap_ids)
    return count


@njit(nogil=True, cache=True)
def scan(lists, documents, allowed, scratch, heap_scores, heap_ids):
    """Offer every document that was not scored yet."""
    for place in range(lists.ids.shape[0]):
        if (allowed.shape[0] == 0 or allowed[place]) and not scratch.visited[place >> 3] >> (place & 7) & 1:
            total, shared = exactly(documents, place, scratch.weights)
            if shared and total >= heap_scores[0]:
                push_one(total, lists.ids[place], heap_scores, heap_ids)


@njit(nogil=True, cache=True)
def prune(starts, weights, postings, keep, first, stop):
    """Mark in `keep` (bool) the `postings` heaviest entries of each list [first, stop), ties to the first of them."""
    for term in range(first, stop):
        a, b = starts[term], starts[term + 1]
        if b - a <= postings:
            keep[a:b] = True
            continue
        least = np.partition(weights[a:b], b - a - postings)[b - a - postings]
        left = postings
        for i in range(a, b):
            keep[i] = weights[i] > least
            left -= keep[i]
        for i in range(a, b):
            if left and weights[i] == least:
                keep[i] = True
                left -= 1


@njit(nogil=True, cache=True)
def cluster(points, list_starts, places, size, first, stop):
    """Order the places of the lists [first, stop): runs of `size` lie close together. `points` float32 (n, d)."""
    units = np.array([size])
    for term in range(first, stop):
        a, b = list_starts[term], list_starts[term + 1]
        bisect(points, places[a:b], 0, b - a, units, size)


@njit(nogil=True, cache=True)
def summarize(documents, block_starts, places, energy, codes, first, stop, out_sizes, out_terms, out_weights, scales):
    """The summaries of the blocks [first, stop), one after another in `out_terms`, `out_weights`. Returns their size.

    The highest weight of each term in the block, in bytes of a 255th of the highest of all (`scales`). The lowest
    bytes are left out, as long as the sum of those that stay is a share `energy` of all. `codes`: uint8 (U,), room.
    """
    highest = np.zeros(codes.shape[0], np.float32)
    touched = np.empty(codes.shape[0] + 1, np.int64)
    mass = np.empty(CODES, np.float64)
    size = 0
    for block in range(first, stop):
        count, most, total = 0, np.float32(0), 0.0
        for at in range(block_starts[block], block_starts[block + 1]):
            place = places[at]
            if at + 1 < places.shape[0]:
                prefetch_row(documents, places[at + 1])
            a, b = documents.starts[place], documents.starts[place + 1]
            terms, weights = documents.terms[a:b], documents.weights[a:b]
            scale = documents.row_scales[place] if documents.row_scales.shape[0] else np.float32(1)
            for i in range(terms.shape[0]):
                term, weight = terms[i], np.float32(weights[i]) * scale
                so_far = highest[term]
                touched[count] = term
                count += so_far == 0
                highest[term] = max(so_far, weight)
                most = max(most, weight)
        scales[block] = max(most / np.float32(255), LEAST)
        units = np.float32(1) / scales[block]
        mass[:] = 0
        for i in range(count):
            weight = highest[touched[i]]
            highest[touched[i]] = 0
            codes[i] = min(max(int(weight * units + np.float32(0.5)), 1), 255)
            mass[codes[i]] += weight
            total += weight
        least, held = CODES, 0.0
        while least > 1 and held < energy * total:
            least -= 1
            held += mass[least]
        before = size
        for i in range(count):
            out_terms[size], out_weights[size] = touched[i], codes[i]
            size += codes[i] >= least
        out_sizes[block] = size - before
    return size
