"""Bounds of superblocks, and which of them are worth opening: the first half of a block-max search.

See `indexes.kernels.blockmax` for the arrays and the words.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.fixed_point import FULL, LANES, add_scaled, raise_lanes
from indexes.kernels.prefetch import prefetch, prefetch_range

SUPER = LANES  # blocks
GROUP = 8  # superblocks
TILE = 32  # superblocks: their blocks' sums are stored transposed, so that their maxima are those of rows
ROUND = 256  # groups: their superblocks' bounds (4 KB) stay in the first cache while rows are added
SAFE = 256  # terms, at most, whose bounds add up to less than 65536: WHOLE, and two units each for rounding
FEW = 16  # going over an entry of a list again costs as much as passing by so many blocks
STRIP = 16  # groups compared with a bound at once
AHEAD = 512  # entries of a list that are asked for before they are read
# Ranges and places are unsigned in the inner loops: of signed ones, numba would expect to be negative at every access.


@njit(nogil=True, cache=True)
def ask_ahead(segment, ranks, ends):
    """Ask for the beginnings of all lists and rows of a query, which the processor can't see coming."""
    rows, groups = segment.block_rows.shape[0], segment.group_rows.shape[1]
    for q in range(ends[2], ends[3]):
        start, stop = segment.list_starts[ranks[q] - rows], segment.list_starts[ranks[q] - rows + 1]
        prefetch_range(segment.list_gaps, start, min(stop, start + AHEAD))
        prefetch_range(segment.list_maxima, start, min(stop, start + AHEAD))
    for q in range(ends[0], ends[2]):
        prefetch_range(segment.group_rows[ranks[q]], 0, min(groups, AHEAD))


@njit(nogil=True, cache=True)
def bound_superblocks(segment, scratch, ranks, weights, ends, few):
    """Bounds of all superblocks, and the best of each group. `few`: see `has_few`."""
    rows, groups = segment.block_rows.shape[0], scratch.groups.shape[0]
    if few:
        scratch.supers[:] = 0
    for q in range(ends[2], ends[3]):
        start, stop = segment.list_starts[ranks[q] - rows], segment.list_starts[ranks[q] - rows + 1]
        walk(segment.list_gaps, segment.list_maxima, start, stop, weights[q], ends[3] > SAFE, few, scratch.table,
             scratch.blocks, scratch.supers)  # fmt: skip
        scratch.work[0] += stop - start
    scratch.rest[:] = 0
    add_rows(segment.group_rows, ranks, weights, ends[1], ends[2], 0, groups, scratch.rest)
    scratch.groups[:] = scratch.rest
    add_rows(segment.group_rows, ranks, weights, ends[0], ends[1], 0, groups, scratch.groups)
    for start in range(0, groups, ROUND):
        stop = min(groups, start + ROUND)
        if not few:
            raise_to_best(scratch.blocks, start * GROUP, stop * GROUP, scratch.supers)
        add_rows(segment.super_rows, ranks, weights, 0, ends[0], start * GROUP, stop * GROUP, scratch.supers)
        fold(scratch.supers, scratch.groups, start, stop, scratch.best)


@njit(nogil=True, cache=True)
def has_few(segment, ranks, ends, blocks):
    """Whether the lists of a query hold so few entries that most of the `blocks` keep out of them."""
    rows, entries = segment.block_rows.shape[0], 0
    for q in range(ends[2], ends[3]):
        entries += segment.list_starts[ranks[q] - rows + 1] - segment.list_starts[ranks[q] - rows]
    return entries * FEW < blocks


@njit(nogil=True, cache=True)
def walk(gaps, maxima, start, stop, weight, full, few, table, blocks, supers):
    """Add one term's list to the sums of its blocks.

    `full`: sums may pass 65535, where they stop. `few`: raise each block's superblock at once, since most have none.
    """
    for i in range(256):
        table[i] = add_scaled(np.uint16(0), np.uint8(i), weight)
    place, tile, side = np.uint64(0), np.uint64(TILE), np.uint64(SUPER)
    for first in range(np.uint64(start), np.uint64(stop), np.uint64(64)):
        prefetch(gaps, first + np.uint64(AHEAD))  # two lines of 64 bytes, and one of maxima
        prefetch(gaps, first + np.uint64(AHEAD + 32))
        prefetch(maxima, first + np.uint64(AHEAD))
        for i in range(first, min(first + np.uint64(64), np.uint64(stop))):
            place += gaps[i]
            total = np.uint32(blocks[place]) + np.uint32(table[maxima[i]])
            if full:
                total = min(total, np.uint32(FULL))
            blocks[place] = total
            if few:
                above = place // (tile * side) * tile + place % tile
                supers[above] = max(np.uint32(supers[above]), total)


@njit(nogil=True, cache=True)
def clear(segment, ranks, ends, few, blocks):
    """Set the sums of the blocks to zero."""
    rows = segment.block_rows.shape[0]
    if not few:
        blocks[:] = 0
        return
    for q in range(ends[2], ends[3]):
        place = np.uint64(0)
        start, stop = segment.list_starts[ranks[q] - rows], segment.list_starts[ranks[q] - rows + 1]
        for i in range(np.uint64(start), np.uint64(stop)):
            place += segment.list_gaps[i]
            blocks[place] = 0


@njit(nogil=True, cache=True)
def raise_to_best(blocks, start, stop, supers):
    """The highest sum among the blocks of each superblock, for whole tiles."""
    for tile in range(start // TILE, stop // TILE):
        b, out = blocks[tile * TILE * SUPER : (tile + 1) * TILE * SUPER], supers[tile * TILE : (tile + 1) * TILE]
        for i in range(TILE):
            out[i] = max(
                max(max(b[i], b[i + TILE]), max(b[i + 2 * TILE], b[i + 3 * TILE])),
                max(max(b[i + 4 * TILE], b[i + 5 * TILE]), max(b[i + 6 * TILE], b[i + 7 * TILE])),
            )


@njit(nogil=True, cache=True)
def add_rows(rows, ranks, weights, first, last, start, stop, out):
    """Add to `out[start:stop]` the rows `ranks[first:last]` times their weights: two at once, to read in parallel."""
    part, q = out[start:stop], first
    while q + 2 <= last:
        r0, r1 = rows[ranks[q], start:stop], rows[ranks[q + 1], start:stop]
        w0, w1 = weights[q], weights[q + 1]
        for i in range(stop - start):
            part[i] = add_scaled(add_scaled(part[i], r0[i], w0), r1[i], w1)
        q += 2
    while q < last:
        row, weight = rows[ranks[q], start:stop], weights[q]
        for i in range(stop - start):
            part[i] = add_scaled(part[i], row[i], weight)
        q += 1


@njit(nogil=True, cache=True)
def fold(supers, groups, start, stop, best):
    """Add what the light terms of each group may add; note the best superblock of each group."""
    for group in range(start, stop):
        best[group] = raise_lanes(supers, group * GROUP, groups[group])


@njit(nogil=True, cache=True)
def exclude(allowed, supers, best):
    """Superblocks without an allowed document cannot be reached."""
    for group in range(best.shape[0]):
        highest = np.uint16(0)
        for i in range(group * GROUP, group * GROUP + GROUP):
            there = False
            for block in range(i * SUPER, i * SUPER + SUPER):
                there |= allowed[block] != 0
            if not there:
                supers[i] = 0
            highest = max(highest, supers[i])
        best[group] = highest


@njit(nogil=True, cache=True)
def nth_best(values, count):
    """The `count`-th highest of `values`, uint16, or a little less; at least 1."""
    low, high = 0, FULL
    while high - low > 1 + low // 32:
        middle, above = np.uint16((low + high) // 2), np.int32(0)
        for i in range(values.shape[0]):
            above = np.int32(above + np.int32(values[i] >= middle))  # in 32 bits, or numba counts in 64
        if above >= count:
            low = middle
        else:
            high = middle
    return max(low, 1)


@njit(nogil=True, cache=True)
def pick(supers, best, blocks, low, high, opened, bounds):
    """List the superblocks with bounds in [low, high), and begin the bounds of their blocks. Returns how many."""
    count = 0
    for strip in range(0, best.shape[0], STRIP):
        stop, highest = min(strip + STRIP, best.shape[0]), np.uint16(0)
        for group in range(strip, stop):
            highest = max(highest, best[group])
        if highest >= low:
            for group in range(strip, stop):
                if best[group] >= low:
                    for i in range(group * GROUP, group * GROUP + GROUP):
                        opened[count] = i
                        count += low <= supers[i] < high
    for i in range(count):
        first = opened[i] // TILE * TILE * SUPER + opened[i] % TILE
        for j in range(SUPER):
            bounds[i * SUPER + j] = blocks[first + j * TILE]
    return count
