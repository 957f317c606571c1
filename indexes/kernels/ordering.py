"""Orders of documents that put similar ones next to each other."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def project(starts, terms, weights, directions, first, stop, out):
    """Project sparse rows [first, stop) onto `directions` float32 (2^x, d), into `out` float32 (n, d).

    Terms beyond 2^x share the directions of others.
    """
    d, last = directions.shape[1], directions.shape[0] - 1
    for row in range(first, stop):
        sums = out[row]
        sums[:] = 0
        for i in range(starts[row], starts[row + 1]):
            weight, direction = weights[i], directions[terms[i] & last]
            for x in range(d):
                sums[x] += weight * direction[x]


@njit(nogil=True, cache=True)
def select(keys, rows, start, stop, middle):
    """Hoare's selection: reorder keys[start:stop], and rows with them, so that the smallest come before `middle`."""
    while stop - start > 1:
        a, b, c = keys[start], keys[(start + stop) // 2], keys[stop - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = start, stop - 1
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                rows[i], rows[j] = rows[j], rows[i]
                i += 1
                j -= 1
        if middle <= j:
            stop = j + 1
        elif middle >= i:
            start = i
        else:
            return


@njit(nogil=True, cache=True)
def first_half(size, units):
    """How many of `size` rows come before the cut: a multiple of the largest of `units` (falling) that is smaller."""
    unit = 1
    for u in units:
        if u < size:
            unit = u
            break
    return (size // 2 + unit - 1) // unit * unit


@njit(nogil=True, cache=True)
def bisect(points, rows, start, stop, units, smallest):
    """Order `rows[start:stop]` by recursive balanced bisection of `points` float32 (n, d), in place.

    A part is split at its median along the line through two of its points. Cuts fall on multiples of the largest of
    `units` (falling sizes) that is smaller than the part, so that aligned runs of that many rows are parts too; parts
    of up to `smallest` rows are left as they are.
    """
    d = points.shape[1]
    keys = np.empty(stop - start, np.float32)
    stack = np.empty((128, 2), np.int64)  # halves are balanced: the depth is about log2(n)
    stack[0] = start, stop
    depth = 1
    along = np.empty(d, np.float32)
    while depth:
        depth -= 1
        a, b = stack[depth]
        size = b - a
        if size <= smallest:
            continue
        half = first_half(size, units)
        # two points that lie far apart: the farthest of a few from the middle one
        here, there, widest = rows[a + size // 2], rows[a], np.float32(-1)
        for i in range(a, b, max(1, size // 8)):
            distance = np.float32(0)
            for x in range(d):
                difference = points[rows[i], x] - points[here, x]
                distance += difference * difference
            if distance > widest:
                there, widest = rows[i], distance
        for x in range(d):
            along[x] = points[there, x] - points[here, x]
        for i in range(a, b):
            point, key = points[rows[i]], np.float32(0)
            for x in range(d):
                key += point[x] * along[x]
            keys[i - start] = key
        select(keys, rows[start:stop], a - start, b - start, a - start + half)
        stack[depth] = a + half, b
        stack[depth + 1] = a, a + half
        depth += 2
