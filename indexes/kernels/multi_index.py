"""Multi-index hashing: exact neighbours from tables of substrings (Norouzi, Punjani and Fleet, CVPR 2012).

A code of b bits is cut into m substrings; a table for each lists the documents by the substring's value. Two codes at a
distance of up to m * s + j agree in one of substrings 0 to j up to s bits, or in a later one up to s - 1 (Proposition
2). Looking up, substring by substring, all values at s = 0, 1, ... bits from the query's therefore completes one
distance after the other, until the asked radius or the k-th neighbour is reached.

A document is met again in other tables, but taken only where it is met first, which its own code tells: no marks are
kept. Memory is asked for ahead: values of one shell are handled in groups, table, list and code in turn.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.hamming import LANES
from indexes.kernels.popcount import popcount
from indexes.kernels.prefetch import prefetch

GROUP = 64  # values looked up at once
VALUE, CANDIDATE = 60, 150  # cost of looking one up, against that of a word of a scan: about 0.2 nanoseconds
PLACE = np.int64(1) << 40  # a distance and a row in one number


@njit(nogil=True, cache=True)
def tables(words, firsts):
    """Rows by the value of each substring: `starts` int32 (m, 2 ** widest + 1), `rows` int32 (m, n).

    `words` uint64 (n, W), row by row; substring j is the bits `firsts[j]:firsts[j + 1]`.
    """
    n, m, widest = words.shape[0], firsts.shape[0] - 1, 0
    for j in range(m):
        widest = max(widest, firsts[j + 1] - firsts[j])
    starts, rows = np.zeros((m, (1 << widest) + 1), np.int32), np.empty((m, n), np.int32)
    for j in range(m):
        for row in range(n):
            starts[j, substring(words[row], firsts[j], firsts[j + 1]) + np.uint64(1)] += 1
        for value in range(1, starts.shape[1]):
            starts[j, value] += starts[j, value - 1]
        for row in range(n - 1, -1, -1):  # backwards, so that rows of equal values ascend
            value = substring(words[row], firsts[j], firsts[j + 1])
            place = starts[j, value + np.uint64(1)] - 1
            starts[j, value + np.uint64(1)] = place
            rows[j, place] = row
        for value in range(starts.shape[1] - 1):
            starts[j, value] = starts[j, value + 1]
        starts[j, starts.shape[1] - 1] = n
    return starts, rows


@njit(nogil=True, cache=True)
def search(words, firsts, starts, rows, queries, allowed, k, radius):
    """Up to k of the documents within `radius` of each query, by distance, then by row.

    `words` uint64 (blocks, W, LANES) as in the scan, `queries` uint64 (nq, W), `allowed` bool (n,) or (0,) for all.
    Returns how many each query has, int64 (nq,), whether these are all, bool (nq,) (False, and none, where look-ups
    would have cost more than half a scan), and one after the other their distances, int32, and rows, int64.
    """
    lengths, complete, size = np.zeros(queries.shape[0], np.int64), np.ones(queries.shape[0], np.bool_), 0
    distances, found_rows = np.empty(256, np.int32), np.empty(256, np.int64)
    found, counts = np.empty(256, np.int64), np.zeros(queries.shape[1] * 64 + 2, np.int64)
    for q in range(queries.shape[0]):
        state = np.array([0, radius, 0])  # length of the list, limit, entries up to the limit
        found, complete[q] = probe(words, firsts, starts, rows, queries[q], allowed, k, found, counts, state)
        for i in range(state[0]):
            counts[found[i] // PLACE] = 0
        if complete[q]:
            kept = np.sort(found[: state[0]])[:k]
            lengths[q] = kept.shape[0]
            while size + kept.shape[0] > distances.shape[0]:
                distances, found_rows = np.append(distances, distances), np.append(found_rows, found_rows)
            for i in range(kept.shape[0]):
                distances[size + i], found_rows[size + i] = kept[i] // PLACE, kept[i] % PLACE
            size += kept.shape[0]
    return lengths, complete, distances[:size], found_rows[:size]


@njit(nogil=True, cache=True)
def probe(words, firsts, starts, rows, query, allowed, k, found, counts, state):
    """Complete one distance after the other until the limit; False when that would cost more than half a scan."""
    n, m, budget = rows.shape[1], rows.shape[0], 0.5 * rows.shape[1] * words.shape[1]
    flat_words, flat_starts, flat_rows = words.reshape(-1), starts.reshape(-1), rows.reshape(-1)
    values, complete = np.empty(GROUP, np.int64), -1
    while complete < state[1]:
        shell, j = (complete + 1) // m, (complete + 1) % m
        width = firsts[j + 1] - firsts[j]
        ways = choose(width, shell)
        if ways * (VALUE + CANDIDATE * n / 2.0**width) > budget:
            return found, False
        mask, left = (np.uint64(1) << np.uint64(shell)) - np.uint64(1), int(ways)
        own, table = substring(query, firsts[j], firsts[j + 1]), j * starts.shape[1]
        while left:
            if budget < 0:
                return found, False
            group = min(left, GROUP)
            left -= group
            for i in range(group):
                values[i] = table + np.int64(own ^ mask)
                prefetch(flat_starts, values[i])
                mask = following(mask)
            for i in range(group):
                prefetch(flat_rows, j * n + flat_starts[values[i]])
            for i in range(group):
                for place in range(flat_starts[values[i]], flat_starts[values[i] + 1]):
                    row = np.int64(flat_rows[j * n + place])
                    for w in range(words.shape[1]):
                        prefetch(flat_words, (row // LANES * words.shape[1] + w) * LANES + row % LANES)
            for i in range(group):
                for place in range(flat_starts[values[i]], flat_starts[values[i] + 1]):
                    row = np.int64(flat_rows[j * n + place])
                    code = words[row // LANES, :, row % LANES]
                    distance = between(code, query)
                    budget -= CANDIDATE
                    if distance > state[1] or (allowed.shape[0] and not allowed[row]):
                        continue
                    if met_first(code, query, firsts, j, shell):
                        found = keep(found, counts, state, distance, row, k)
        budget -= VALUE * ways
        complete += 1
    return found, True


@njit(nogil=True, cache=True)
def keep(found, counts, state, distance, row, k):
    """Append an entry; lower the limit to the k-th lowest distance. Returns the list, which may have grown."""
    if state[0] == found.shape[0]:
        found = np.append(found, found)
    found[state[0]] = distance * PLACE + row
    state[0] += 1
    counts[distance] += 1
    state[2] += 1
    while state[2] - counts[state[1]] >= k:
        state[2] -= counts[state[1]]
        state[1] -= 1
    return found


@njit(nogil=True, cache=True, inline="always")
def substring(row, first, last):
    """The bits `first:last` of a code (W,), at most 32 of them, as a number."""
    word, offset = first >> 6, np.uint64(first & 63)
    bits = row[word] >> offset
    if (last - 1) >> 6 > word:
        bits |= row[word + 1] << (np.uint64(64) - offset)
    return bits & ((np.uint64(1) << np.uint64(last - first)) - np.uint64(1))


@njit(nogil=True, cache=True, inline="always")
def between(row, query):
    """The Hamming distance of two codes (W,)."""
    total = np.uint64(0)
    for w in range(query.shape[0]):
        total += popcount(row[w] ^ query[w])
    return np.int64(total)


@njit(nogil=True, cache=True)
def met_first(row, query, firsts, table, shell):
    """Whether no other table lists the document at an earlier step than `table` at `shell`."""
    for j in range(firsts.shape[0] - 1):
        if j != table:
            own, other = substring(query, firsts[j], firsts[j + 1]), substring(row, firsts[j], firsts[j + 1])
            if np.int64(popcount(own ^ other)) < shell + (j < table):
                return False
    return True


@njit(nogil=True, cache=True, inline="always")
def following(mask):
    """The next larger number with as many ones (Gosper); of 0, which is alone, anything."""
    if mask == 0:
        return mask
    lowest = mask & (~mask + np.uint64(1))
    carried = mask + lowest
    return (((carried ^ mask) >> np.uint64(2)) // lowest) | carried


@njit(nogil=True, cache=True)
def choose(n, k):
    """The number of ways to choose k of n; 0 where k > n."""
    ways = 1.0 if k <= n else 0.0
    for i in range(k):
        ways = ways * (n - i) / (i + 1)
    return np.rint(ways)
