"""Make the arrays of a block-max segment: see `indexes.kernels.blockmax` for what they are.

`starts`, `terms`, `weights` and `row_scales` may be those of a part of the documents that begins with a tile: what has
to be known of the parts before is handed from call to call.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.blockmax_bounds import GROUP, SUPER, TILE
from indexes.kernels.blockmax_score import BLOCK

BRIDGE = 65535  # the longest gap that a list's entry can hold


@njit(nogil=True, cache=True)
def gather(starts, terms, weights, order, ranks, targets, new_terms, new_weights, first, stop):
    """Copy the rows `order[first:stop]` of a CSR matrix to where `targets` says, with terms replaced by `ranks`."""
    for i in range(first, stop):
        row, to = order[i], targets[i]
        for entry in range(starts[row], starts[row + 1]):
            new_terms[to] = ranks[terms[entry]]
            new_weights[to] = weights[entry]
            to += 1


@njit(nogil=True, cache=True)
def round_up(value, scale):
    """`value` in units of `scale`, as a byte of at least 1 that is worth no less."""
    units = int(value / scale)
    while units < 255 and np.float32(units) * scale < value:
        units += 1
    return np.uint8(max(units, 1))


@njit(nogil=True, cache=True)
def block_maxima(starts, terms, weights, row_scales, block, maxima, touched):
    """The highest weight of each term in one block. `maxima` float32 (used,) is -inf before; returns how many terms."""
    count = 0
    for row in range(block * BLOCK, min(starts.shape[0] - 1, (block + 1) * BLOCK)):
        scale = row_scales[row] if row_scales.shape[0] else np.float32(1)
        for i in range(starts[row], starts[row + 1]):
            term, weight = terms[i], np.float32(weights[i]) * scale
            if maxima[term] == -np.inf:
                touched[count] = term
                count += 1
            maxima[term] = max(maxima[term], weight)
    return count


@njit(nogil=True, cache=True)
def highest(starts, terms, weights, row_scales, out):
    """Raise `out` float32 (used,) to the highest absolute weight of each term."""
    for row in range(starts.shape[0] - 1):
        scale = row_scales[row] if row_scales.shape[0] else np.float32(1)
        for i in range(starts[row], starts[row + 1]):
            out[terms[i]] = max(out[terms[i]], abs(np.float32(weights[i]) * scale))


@njit(nogil=True, cache=True)
def block_at(place):
    """The block whose sum stands at `place`: within tiles of TILE superblocks, all first blocks come first."""
    tile, within = place // (TILE * SUPER), place % (TILE * SUPER)
    return tile * TILE * SUPER + within % TILE * SUPER + within // TILE


@njit(nogil=True, cache=True)
def places(rows):
    """How many places the blocks of so many documents have: whole tiles."""
    tile = BLOCK * SUPER * TILE
    return (rows + tile - 1) // tile * TILE * SUPER


@njit(nogil=True, cache=True)
def count_entries(starts, terms, first, dense, last, out):
    """Add to `out` int64 (used - dense,) how many entries the lists of the terms from `dense` on get, with bridges.

    `first`: the place of the first block. `last` int64 (used,): the place of each term's last entry, -1 before any.
    """
    n = starts.shape[0] - 1
    for at in range(places(n)):
        block, place = block_at(at), first + at
        for i in range(starts[min(n, block * BLOCK)], starts[min(n, (block + 1) * BLOCK)]):
            term = terms[i]
            if term >= dense and last[term] != place:
                # bridges reach BRIDGE places each; what remains is the gap of the entry itself
                out[term - dense] += 1 + (place - max(last[term], 0)) // BRIDGE
                last[term] = place


@njit(nogil=True, cache=True)
def fill(
    starts, terms, weights, row_scales, scales, first, last, ends, block_rows, super_rows, group_rows, gaps, out
):  # fmt: skip
    """Fill the rows (zero before) and the lists (`gaps`, `out`) with quantised maxima.

    `first`, `last`: as in `count_entries`. `ends` int64 (used - dense,): where the next entry of each list goes.
    """
    used, dense, grouped = scales.shape[0], block_rows.shape[0], group_rows.shape[0]
    maxima, touched = np.full(used, -np.inf, np.float32), np.empty(used, np.int64)
    for at in range(places(starts.shape[0] - 1)):
        count = block_maxima(starts, terms, weights, row_scales, block_at(at), maxima, touched)
        place, block = first + at, first + block_at(at)
        above, group = block // SUPER, block // (SUPER * GROUP)
        for c in range(count):
            term = touched[c]
            units = round_up(maxima[term], scales[term])
            maxima[term] = -np.inf
            if term < grouped:
                group_rows[term, group] = max(group_rows[term, group], units)
            if term < dense:
                block_rows[term, block] = units
                super_rows[term, above] = max(super_rows[term, above], units)
                continue
            gap, p = place - max(last[term], 0), ends[term - dense]
            while gap >= BRIDGE:
                gaps[p], out[p] = BRIDGE, 0
                gap -= BRIDGE
                p += 1
            gaps[p], out[p] = gap, units
            ends[term - dense], last[term] = p + 1, place


@njit(nogil=True, cache=True)
def quantize(starts, weights, codes, row_scales):
    """Weights > 0 as bytes of at least 1, in units of a 255th of their row's highest."""
    for row in range(starts.shape[0] - 1):
        highest = np.float32(0)
        for i in range(starts[row], starts[row + 1]):
            highest = max(highest, weights[i])
        # normal numbers, and 255 of them no more than float32 holds
        scale = min(max(highest / np.float32(255), np.float32(1.2e-38)), np.float32(1.334e36))
        row_scales[row] = scale
        for i in range(starts[row], starts[row + 1]):
            codes[i] = np.uint8(min(max(np.rint(weights[i] / scale), 1), 255))


@njit(nogil=True, cache=True)
def allowed_bits(rows, allow, out):
    """A bit per document and block: whether its row (-1: removed) is allowed. `allow` bool (rows,), or (0,) for all."""
    out[:] = 0
    for place in range(rows.shape[0]):
        row = rows[place]
        if row >= 0 and (allow.shape[0] == 0 or allow[row]):
            out[place // BLOCK] |= np.uint8(1 << (place % BLOCK))
