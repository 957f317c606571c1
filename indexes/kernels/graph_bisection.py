"""Recursive graph bisection: the order of documents that the literature compares with.

Dhulipala, Kabiljo, Karrer, Ottaviano, Pupyrev and Shalita, "Compressing Graphs and Indexes with Recursive Graph
Bisection" (KDD 2016), section 3; swaps in pairs as there, with the estimate of logarithmic gaps as the cost.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.ordering import first_half

ROUNDS = 20  # of swaps in each part, at most: the paper's number


@njit(nogil=True, cache=True)
def improve(starts, terms, rows, first, stop, middle, left, right, touched, gains, keys):
    """Swap rows between `rows[first:middle]` and `rows[middle:stop]` while that shortens gaps.

    Scratch, which is zero before and after: `left`, `right` int32 (V,), documents with a term on each side; and
    `touched` int64 (V,), `gains` float32 (2, V), `keys` float32 (n,).
    """
    count = 0
    for place in range(first, stop):
        side = left if place < middle else right
        for i in range(starts[rows[place]], starts[rows[place] + 1]):
            term = terms[i]
            if left[term] == 0 and right[term] == 0:
                touched[count] = term
                count += 1
            side[term] += 1
    for _ in range(ROUNDS):
        price(touched[:count], left, right, middle - first, stop - middle, gains)
        for place in range(first, stop):
            gain, side = np.float32(0), gains[0] if place < middle else gains[1]
            for i in range(starts[rows[place]], starts[rows[place] + 1]):
                gain += side[terms[i]]
            keys[place] = gain
        if swap(starts, terms, rows, first, stop, middle, left, right, keys) == 0:
            break
    for i in range(count):
        left[touched[i]] = right[touched[i]] = 0


@njit(nogil=True, cache=True)
def price(terms, left, right, on_left, on_right, gains):
    """What the bits of each term's gaps fall by when one document with it moves: from the left, from the right."""
    for term in terms:
        a, b = left[term], right[term]
        now = bits(a, on_left) + bits(b, on_right)
        gains[0, term] = now - bits(a - 1, on_left) - bits(b + 1, on_right) if a else 0
        gains[1, term] = now - bits(a + 1, on_left) - bits(b - 1, on_right) if b else 0


@njit(nogil=True, cache=True)
def bits(degree, size):
    return degree * np.log2(size / (degree + 1.0))


@njit(nogil=True, cache=True)
def swap(starts, terms, rows, first, stop, middle, left, right, keys):
    """Swap the row that gains most on one side with that on the other, and so on. Returns how many pairs."""
    ours = np.argsort(-keys[first:middle], kind="mergesort")
    theirs = np.argsort(-keys[middle:stop], kind="mergesort")
    for pair in range(min(len(ours), len(theirs))):
        a, b = first + ours[pair], middle + theirs[pair]
        if keys[a] + keys[b] <= 0:
            return pair
        for i in range(starts[rows[a]], starts[rows[a] + 1]):
            left[terms[i]] -= 1
            right[terms[i]] += 1
        for i in range(starts[rows[b]], starts[rows[b] + 1]):
            left[terms[i]] += 1
            right[terms[i]] -= 1
        rows[a], rows[b] = rows[b], rows[a]
    return min(len(ours), len(theirs))


@njit(nogil=True, cache=True)
def bisect(starts, terms, V, rows, first, stop, units, smallest, depth):
    """Order `rows[first:stop]` in place by `depth` levels of bisection, or down to `smallest` rows if it is below 0.

    Halves begin as they stand in `rows`, and are cut as in `indexes.kernels.ordering.bisect`. Returns the borders of
    the parts that remain, int64.
    """
    left, right, touched = np.zeros(V, np.int32), np.zeros(V, np.int32), np.empty(V, np.int64)
    gains, keys = np.zeros((2, V), np.float32), np.empty(stop, np.float32)
    parts = [(first, stop, 0)]
    borders = [first, stop]
    while len(parts):
        a, b, level = parts.pop()
        size = b - a
        if size <= smallest or level == depth:
            continue
        middle = a + first_half(size, units)
        improve(starts, terms, rows, a, b, middle, left, right, touched, gains, keys)
        parts.append((middle, b, level + 1))
        parts.append((a, middle, level + 1))
        borders.append(middle)
    return np.sort(np.array(borders))
