"""Bytes of codes looked up in tables: their numbers, or their parts of a score (asymmetric distance computation)."""

from __future__ import annotations

from numba import float32, njit


@njit(nogil=True, cache=True)
def look_up(table, codes, out):
    """`out[i]` = `table[codes[i]]`; `table` float32 (256,), `codes` uint8 (n,), `out` float32 (n,)."""
    for i in range(codes.shape[0]):
        out[i] = table[codes[i]]


@njit(nogil=True, cache=True)
def add_tables(tables, codes, scores):
    """`scores[q, i]` = the sum of `tables[q, m, codes[i, m]]` over m.

    `tables` float32 (nq, M, 256); `codes` uint8 (n, M or more); `scores` float32 (nq, n), overwritten.
    """
    nq, M = tables.shape[0], tables.shape[1]
    for query in range(nq):
        table, row = tables[query], scores[query]
        for i in range(codes.shape[0]):
            code = codes[i]
            # four sums: additions that wait for each other would take most of the time
            a, b, c, d = float32(0), float32(0), float32(0), float32(0)
            for m in range(0, M - 3, 4):
                a += table[m, code[m]]
                b += table[m + 1, code[m + 1]]
                c += table[m + 2, code[m + 2]]
                d += table[m + 3, code[m + 3]]
            for m in range(M - M % 4, M):
                a += table[m, code[m]]
            row[i] = (a + b) + (c + d)
