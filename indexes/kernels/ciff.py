"""Protocol Buffers' wire format, as far as CIFF needs it: whole messages are decoded from a window of a file.

A message is `length, fields...`; a field is `number << 3 | wire type, value`; a number is a varint, seven bits a byte,
least significant first, with the top bit set on all bytes but the last. Readers work on the messages that lie wholly
within the window and return (messages read, bytes used, position of the first byte that makes no sense or -1).
"""

from __future__ import annotations

import numpy as np
from numba import njit

INT32_MAX = 2**31 - 1
POSTING_BYTES = 14  # at most: tag and length, then two fields of a tag and five bytes


@njit(nogil=True, cache=True)
def varint(data, at, stop):
    """(value, position after it) of the varint at `at`; position -1 when it does not end before `stop`, -2 when it is
    wider than 64 bits."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < stop:
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return value, at
        shift += np.uint64(7)
        if shift > np.uint64(63):
            return value, -2
    return value, -1


@njit(nogil=True, cache=True)
def field(data, at, stop):
    """(number, wire type, value, start, end) of the field at `at`; end is negative when it is malformed.

    `value` is that of a varint (wire type 0). Text and messages (wire type 2) lie at [start, end).
    """
    tag, at = varint(data, at, stop)
    number, wire, value, start = np.int64(tag >> np.uint64(3)), np.int64(tag & np.uint64(7)), np.uint64(0), at
    if at < 0:
        return number, wire, value, start, at
    end = np.int64(-1)
    if wire == 0:
        value, end = varint(data, at, stop)
    elif wire == 1:
        end = at + 8
    elif wire == 5:
        end = at + 4
    elif wire == 2:
        length, start = varint(data, at, stop)
        if start >= 0 and length <= np.uint64(stop - start):
            end = start + np.int64(length)
    if end > stop:
        end = np.int64(-1)
    return number, wire, value, start, end


@njit(nogil=True, cache=True)
def message(data, at):
    """(start, end) of the message at `at`: (-1, -1) when `data` ends before it, (-2, -2) when it makes no sense."""
    length, start = varint(data, at, data.shape[0])
    if start == -2 or (start >= 0 and length > np.uint64(INT32_MAX)):
        return -2, -2
    if start == -1 or length > np.uint64(data.shape[0] - start):
        return -1, -1
    return start, start + np.int64(length)


@njit(nogil=True, cache=True)
def two_numbers(data, at, stop):
    """(value of field 1, value of field 2, whether the message at [at, stop) is well formed): a `Posting`."""
    first, second = np.uint64(0), np.uint64(0)
    while at < stop:
        # the usual posting: one byte of tag, then the varint
        tag = data[at]
        if tag == 8:
            first, at = varint(data, at + 1, stop)
        elif tag == 16:
            second, at = varint(data, at + 1, stop)
        else:
            number, _, _, _, at = field(data, at, stop)
            if number == 1 or number == 2:  # not as a varint
                at = -1
        if at < 0:
            return np.int64(0), np.int64(0), False
    limit = np.uint64(INT32_MAX)
    return np.int64(first), np.int64(second), first <= limit and second <= limit


@njit(nogil=True, cache=True)
def read_lists(data, wanted, docids, tfs, terms, sizes):
    """Decode up to `wanted` `PostingsList` messages from `data` (uint8).

    Written: `docids`, `tfs` int32 (at least half of data's bytes), one list after another, gaps added up; for each
    list `terms` int64 (m, 2), where its name lies in `data`, and `sizes` int64 (m,), its number of postings.
    """
    at, count, total = 0, 0, 0
    while count < min(wanted, sizes.shape[0]):
        start, stop = message(data, at)
        if start < 0:
            return count, at, at if start == -2 else -1
        first, docid, position = total, np.int64(0), start
        terms[count, 0] = terms[count, 1] = start
        while position < stop:
            number, wire, _, begin, end = field(data, position, stop)
            if end < 0 or (1 <= number <= 4 and wire != (2 if number == 1 or number == 4 else 0)):
                return count, at, position
            if number == 1:
                terms[count, 0], terms[count, 1] = begin, end
            elif number == 4:
                gap, tf, well_formed = two_numbers(data, begin, end)
                docid += gap
                if not well_formed or docid > INT32_MAX or (gap == 0 and total > first):
                    return count, at, position
                docids[total], tfs[total] = docid, tf
                total += 1
            position = end
        sizes[count] = total - first
        count += 1
        at = stop
    return count, at, -1


@njit(nogil=True, cache=True)
def read_records(data, wanted, docids, lengths, names):
    """Decode up to `wanted` `DocRecord` messages from `data`.

    Written for each: `docids`, `lengths` int32 (m,), and `names` int64 (m, 2), where its collection id lies in `data`.
    """
    at, count = 0, 0
    while count < min(wanted, docids.shape[0]):
        start, stop = message(data, at)
        if start < 0:
            return count, at, at if start == -2 else -1
        docids[count], lengths[count] = 0, 0
        names[count, 0] = names[count, 1] = start
        position = start
        while position < stop:
            number, wire, value, begin, end = field(data, position, stop)
            if end < 0 or (1 <= number <= 3 and (wire != (2 if number == 2 else 0) or value > np.uint64(INT32_MAX))):
                return count, at, position
            if number == 1:
                docids[count] = value
            elif number == 2:
                names[count, 0], names[count, 1] = begin, end
            elif number == 3:
                lengths[count] = value
            position = end
        count += 1
        at = stop
    return count, at, -1


@njit(nogil=True, cache=True)
def put_varint(value, out, at):
    """Write `value` >= 0 at `out[at]`; the position after it."""
    while value > 127:
        out[at] = value & 127 | 128
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@njit(nogil=True, cache=True)
def write_postings(docids, tfs, out):
    """Encode a list's postings (`docids` ascending, `tfs`, int32) into `out` uint8; the number of bytes written.

    `out` needs `POSTING_BYTES` bytes a posting. The format leaves out numbers that are 0.
    """
    at, previous = 0, 0
    for i in range(docids.shape[0]):
        out[at] = 4 << 3 | 2
        begin = at + 2
        at = begin
        gap = docids[i] - previous
        if gap > 0:
            out[at] = 1 << 3
            at = put_varint(gap, out, at + 1)
        if tfs[i] > 0:
            out[at] = 2 << 3
            at = put_varint(tfs[i], out, at + 1)
        out[begin - 1] = at - begin
        previous = docids[i]
    return at
