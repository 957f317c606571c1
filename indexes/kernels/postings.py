"""Term-at-a-time scoring over postings lists sorted by term (compressed sparse columns), and making them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from indexes.kernels.topk import push_one, sort_heaps

NOTHING = np.float32(-0.0)  # the sum of a row that no term has touched: adding to it is exact, no sum ends as it
UNTOUCHED = np.int32(-(1 << 31))  # ... and its bits
FEW = 8  # going over a posting again costs as much as passing by so many rows
STRIP = 64  # rows compared with the threshold at once


@njit(nogil=True, cache=True)
def search(
    query_starts, query_terms, query_weights, starts, rows, impacts, scales, base, ids, allow, sums, heap_scores,
    heap_ids,
):  # fmt: skip
    """Rank, for each query, the rows that share a term with it.

    Queries: CSR (`query_starts` int64 (nq + 1,), `query_terms` int32, `query_weights` float32). Postings of term t:
    `rows`, `impacts` [`starts[t]`:`starts[t + 1]`]; impacts are float32, the bits of normal float16 numbers, or uint8
    in units of `scales` float32 (V,), else (0,). `base` float32 (nq,): added to every score. `ids` int64 (n,).
    `allow` bool (n,), or (0,) for all. `sums` float32 (n,): `NOTHING` everywhere, before and after.
    Results go to the heaps (nq, k), ranked.
    """
    for query in range(heap_scores.shape[0]):
        terms = query_terms[query_starts[query] : query_starts[query + 1]]
        weights = query_weights[query_starts[query] : query_starts[query + 1]]
        count = 0
        for q in range(terms.shape[0]):
            term = terms[q]
            scale = scales[term] if scales.shape[0] else np.float32(1)
            add(weights[q], scale, rows, impacts, starts[term], starts[term + 1], sums)
            count += starts[term + 1] - starts[term]
        if count * FEW < ids.shape[0]:
            for term in terms:
                take_listed(rows, starts[term], starts[term + 1], base[query], ids, allow, sums,
                            heap_scores[query], heap_ids[query])  # fmt: skip
        else:
            take_all(base[query], ids, allow, sums, heap_scores[query], heap_ids[query])
    sort_heaps(heap_scores, heap_ids)


def value(impact: Any) -> Any:
    """An impact as float32; one of 16 bits is a normal float16 number, which numba does not know."""


@overload(value, inline="always")
def _value(impact):
    if impact == types.uint16:
        # sign; exponent and mantissa, with the bias of the one replaced by that of the other
        return lambda impact: np.uint32(
            ((np.uint32(impact) & np.uint32(0x8000)) << np.uint32(16))
            | (((np.uint32(impact) & np.uint32(0x7FFF)) << np.uint32(13)) + np.uint32(0x38000000))
        ).view(np.float32)
    return lambda impact: np.float32(impact)


@njit(nogil=True, cache=True)
def add(weight, scale, rows, impacts, start, stop, sums):
    """Add a term's postings, `start` to `stop`, to the sums."""
    for p in range(np.uint64(start), np.uint64(stop)):
        # + 0: a product that underflows to -0 is no NOTHING
        sums[np.uint64(rows[p])] += weight * (scale * value(impacts[p])) + np.float32(0)


@njit(nogil=True, cache=True)
def take_listed(rows, start, stop, base, ids, allow, sums, heap_scores, heap_ids):
    """Offer the rows of the postings `start` to `stop` that were not yet taken, and clear their sums."""
    bits = sums.view(np.int32)
    for p in range(np.uint64(start), np.uint64(stop)):
        row = np.uint64(rows[p])
        if bits[row] != UNTOUCHED:
            score = sums[row] + base
            sums[row] = NOTHING
            if score >= heap_scores[0] and (allow.shape[0] == 0 or allow[row]):
                push_one(score, ids[row], heap_scores, heap_ids)


@njit(nogil=True, cache=True)
def take_all(base, ids, allow, sums, heap_scores, heap_ids):
    """Offer all rows that were touched, and clear all sums."""
    bits, n = sums.view(np.int32), np.uint64(sums.shape[0])
    for start in range(np.uint64(0), n, np.uint64(STRIP)):
        stop, least, some = min(start + np.uint64(STRIP), n), heap_scores[0], False
        for row in range(start, stop):  # without a branch, so that many are compared in one instruction
            some |= sums[row] + base >= least
        if some:
            for row in range(start, stop):
                score = sums[row] + base
                if score >= heap_scores[0] and bits[row] != UNTOUCHED and (allow.shape[0] == 0 or allow[row]):
                    push_one(score, ids[row], heap_scores, heap_ids)
        sums[start:stop] = NOTHING


@njit(nogil=True, cache=True)
def count_terms(terms, counts):
    """Add to `counts` int64 (V,) how often each of `terms` int32 occurs."""
    for i in range(terms.shape[0]):
        counts[terms[i]] += 1


@njit(nogil=True, cache=True)
def move(starts, rows, values, low, high, places, out_rows, out_values):
    """Copy the postings of the terms `low` <= t < `high` to `places`, as `place` does; `starts` may end before."""
    for term in range(low, min(high, starts.shape[0] - 1)):
        count, p = starts[term + 1] - starts[term], places[term]
        out_rows[p : p + count] = rows[starts[term] : starts[term + 1]]
        out_values[p : p + count] = values[starts[term] : starts[term + 1]]
        places[term] = p + count


@njit(nogil=True, cache=True)
def place(starts, terms, values, first_row, low, high, places, out_rows, out_values):
    """Put the entries of terms `low` <= t < `high` of CSR rows, numbered from `first_row`, into their postings.

    CSR: `starts` int64 (n + 1,), `terms` int32 ascending in each row, `values`. `places` int64 (V,): where the next
    posting of each term goes in `out_rows` int32 and `out_values`; moved on by those put there.
    """
    for row in range(starts.shape[0] - 1):
        i, stop = starts[row], starts[row + 1]
        end = stop
        while i < end:  # the first entry from `low` on
            middle = (i + end) // 2
            if terms[middle] < low:
                i = middle + 1
            else:
                end = middle
        while i < stop and terms[i] < high:
            p = places[terms[i]]
            out_rows[p], out_values[p] = first_row + row, values[i]
            places[terms[i]] = p + 1
            i += 1


@njit(nogil=True, cache=True)
def transpose(starts, columns, values, width):
    """CSR (`starts` int64 (n + 1,), `columns`, `values`) to CSC: (starts int64 (width + 1,), rows int32, values).

    Rows are ascending within a column. Linear in the number of entries.
    """
    out_starts = np.zeros(width + 1, np.int64)
    count_terms(columns, out_starts[1:])
    for t in range(width):
        out_starts[t + 1] += out_starts[t]
    out_rows, out_values = np.empty(columns.shape[0], np.int32), np.empty_like(values)
    place(starts, columns, values, 0, 0, width, out_starts[:-1].copy(), out_rows, out_values)
    return out_starts, out_rows, out_values


@njit(nogil=True, cache=True)
def quantize(starts, scores, codes, scales):
    """Scores as bytes of at least 1, in units of a 255th of the highest score of their term: `scales` float32 (V,).

    The scores of a term have one sign, which becomes that of its scale (Robertson's BM25 has negative ones).
    """
    for term in range(scales.shape[0]):
        extreme = np.float32(0)
        for p in range(starts[term], starts[term + 1]):
            if abs(scores[p]) > abs(extreme):
                extreme = scores[p]
        # normal numbers, and 255 of them no more than float32 holds
        unit = min(max(abs(extreme) / np.float32(255), np.float32(1.2e-38)), np.float32(1.334e36))
        scales[term] = -unit if extreme < 0 else unit
        for p in range(starts[term], starts[term + 1]):
            codes[p] = np.uint8(min(max(np.rint(scores[p] / scales[term]), 1), 255))
