"""CIFF, the Common Index File Format in which Anserini, PISA, JASS, Terrier and others hand over inverted indexes.

Lin et al., "Supporting Interoperability Between Open-Source Search Engines with the Common Index File Format" (SIGIR
2020, arXiv:2003.08276). A file is a sequence of Protocol Buffers messages, each preceded by its length: a `Header`,
its `num_postings_lists` times a `PostingsList` (document numbers as gaps), its `num_docs` times a `DocRecord`. The
messages are decoded by kernels of our own (`indexes.kernels.ciff`), one window of the file at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np

from indexes.errors import InvalidVectors
from indexes.sparse.interchange import InterchangeError, checked, opened, replacing

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

WINDOW = 1 << 22  # bytes read at a time
MESSAGES = 1 << 16  # at most so many are decoded at a time
Value: TypeAlias = int | float | str
HEADER: dict[int, tuple[str, Value]] = {  # field number -> (name, value when it is left out)
    1: ("version", 0),
    2: ("num_postings_lists", 0),
    3: ("num_docs", 0),
    4: ("total_postings_lists", 0),
    5: ("total_docs", 0),
    6: ("total_terms_in_collection", 0),
    7: ("average_doclength", 0.0),
    8: ("description", ""),
}


@dataclass(frozen=True)
class CIFF:
    """What a CIFF file holds.

    counts: int32 (n, V), CSR: how often each term occurs in each document (or its quantised impact).
    terms: the V names of the columns, in the order of the file. ids: the n collection ids of the rows.
    lengths: int32 (n,), document lengths. header: the file's own statistics; `total_docs`, `total_postings_lists` and
    `total_terms_in_collection` are larger than what is here when only some terms or documents were exported.
    """

    counts: csr_matrix
    terms: list[str]
    ids: list[str]
    lengths: np.ndarray
    header: dict[str, Value] = field(default_factory=dict)


def read_ciff(path: str | Path) -> CIFF:
    """Read a CIFF file, plain or `.gz`. Rows are in the order of the file's document numbers.

    Raises `FileNotFoundError`, and `InterchangeError` with the position (in bytes, decompressed) of what is wrong.
    """
    from scipy.sparse import csr_matrix

    from indexes.kernels.postings import transpose

    with opened(Path(path)) as data:
        stream = _Stream(path, data)
        header = stream.header()
        terms, sizes, docids, tfs = stream.lists(int(header["num_postings_lists"]))
        numbers, lengths, ids = stream.records(int(header["num_docs"]))
        stream.end()
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    rows = np.minimum(np.searchsorted(ordered, docids), max(len(ordered) - 1, 0)).astype(np.int32)
    if len(docids) and (not len(ordered) or (ordered[rows] != docids).any()):
        raise InterchangeError(f"{path}: a posting names a document number that has no record")
    if len(np.unique(numbers)) != len(numbers):
        raise InterchangeError(f"{path}: two records have the same document number")
    if len(set(terms)) != len(terms):
        raise InterchangeError(f"{path}: a term has two postings lists")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    row_starts, columns, counts = transpose(starts, rows, tfs, len(ids))
    matrix = csr_matrix((counts, columns, row_starts), shape=(len(ids), len(terms)))
    return CIFF(matrix, terms, [ids[i] for i in order.tolist()], lengths[order], header)


def write_ciff(
    path: str | Path,
    counts: Any,
    terms: Sequence[str],
    ids: Sequence[str],
    lengths: np.ndarray | None = None,
    description: str = "",
) -> None:
    """Write a CIFF file, compressed if its name ends in `.gz`; an older file is replaced when all is written.

    `counts`: whole numbers (n, V), sparse. `terms`, `ids`: the names of its columns and rows. `lengths`: int (n,),
    document lengths; by default the sums of the rows. Lists are written in the order of their terms, as readers expect;
    terms that no document has are left out.
    Raises `InvalidVectors`.
    """
    from indexes.kernels.ciff import INT32_MAX, POSTING_BYTES, write_postings

    rows = checked(counts, ids, terms)
    sums = np.asarray(rows.sum(axis=1, dtype=np.float64)).reshape(-1)
    sizes = sums if lengths is None else np.asarray(lengths)
    if rows.data.size and ((rows.data != np.rint(rows.data)).any() or rows.data.max() > INT32_MAX):
        raise InvalidVectors(f"counts ({rows.dtype}) must be whole numbers up to {INT32_MAX}; quantise weights first")
    if sizes.shape != (len(ids),) or sizes.dtype.kind not in "fiu" or not ((sizes >= 0) & (sizes <= INT32_MAX)).all():
        raise InvalidVectors(f"lengths are {sizes.dtype} {sizes.shape}; they must be ({len(ids)},), 0 to {INT32_MAX}")
    columns = rows.tocsc()
    columns.sort_indices()
    df = np.diff(columns.indptr)
    used = sorted(np.flatnonzero(df).tolist(), key=lambda t: terms[t].encode())
    docids, tfs = columns.indices.astype(np.int32), columns.data.astype(np.int32)
    postings = np.empty(int(df.max(initial=0)) * POSTING_BYTES, np.uint8)
    total = int(sizes.sum())
    average = total / max(len(ids), 1)
    header: tuple[Value, ...] = (1, len(used), len(ids), len(used), len(ids), total, average, description)
    with replacing(Path(path)) as out:
        _put(out, b"".join(_field(number, value) for number, value in enumerate(header, 1)))
        for t in used:
            part = slice(columns.indptr[t], columns.indptr[t + 1])
            written = write_postings(docids[part], tfs[part], postings)
            cf = int(tfs[part].sum(dtype=np.int64))
            _put(out, _field(1, terms[t]) + _field(2, int(df[t])) + _field(3, cf), postings[:written].tobytes())
        for row, (id, length) in enumerate(zip(ids, sizes.astype(np.int64).tolist(), strict=True)):
            _put(out, _field(1, row) + _field(2, id) + _field(3, length))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _field(number: int, value: Value) -> bytes:
    """One field of a message; the format leaves out what is 0 or empty."""
    if not value:
        return b""
    if isinstance(value, float):
        return _varint(number << 3 | 1) + struct.pack("<d", value)
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    text = value.encode()
    return _varint(number << 3 | 2) + _varint(len(text)) + text


def _put(out: IO[bytes], *parts: bytes) -> None:
    """Write a message, its length before it."""
    out.write(b"".join((_varint(sum(map(len, parts))), *parts)))


class _Stream:
    """A CIFF file, read forwards through a window that starts with a whole message."""

    def __init__(self, path: str | Path, data: IO[bytes]) -> None:
        self.path, self.data = path, data
        self.window = np.empty(0, np.uint8)
        self.offset = 0  # of the window in the file

    def header(self) -> dict[str, Value]:
        from indexes.kernels import ciff as kernels

        while (span := kernels.message(self.window, 0))[0] == -1:
            self._more("the header")
        at, stop = span
        if at < 0:
            raise self._error(0, "not the length of a header")
        header = dict(HEADER.values())
        while at < stop:
            number, wire, value, start, end = kernels.field(self.window, at, stop)
            if end < 0:
                raise self._error(at, "a malformed field of the header")
            name, missing = HEADER.get(number, ("", None))
            if isinstance(missing, float) and wire == 1:
                header[name] = struct.unpack("<d", self.window[start:end].tobytes())[0]
            elif isinstance(missing, int) and wire == 0:
                header[name] = int(value)
            elif isinstance(missing, str) and wire == 2:
                header[name] = self._text(start, end)
            elif missing is not None:
                raise self._error(at, f"{name} of the header has the wrong type")
            at = end
        if header["version"] != 1:
            raise self._error(0, f"a header of version {header['version']}; this release reads version 1")
        self._advance(stop)
        return header

    def lists(self, wanted: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Terms, and int64 sizes, int32 document numbers, int32 counts of their postings."""
        from indexes.kernels.ciff import read_lists

        terms: list[str] = []
        parts = [(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int32))]
        while len(terms) < wanted:
            half = len(self.window) // 2
            docids, tfs = np.empty(half, np.int32), np.empty(half, np.int32)
            spans, sizes = np.empty((MESSAGES, 2), np.int64), np.empty(MESSAGES, np.int64)
            count, used, bad = read_lists(self.window, wanted - len(terms), docids, tfs, spans, sizes)
            if bad >= 0:
                raise self._error(bad, f"postings list {len(terms) + count} is malformed")
            terms.extend(self._texts(spans[:count]))
            total = int(sizes[:count].sum())
            parts.append((sizes[:count], docids[:total].copy(), tfs[:total].copy()))
            self._advance(used)
            if not count:
                self._more(f"postings list {len(terms)} of {wanted}")
        sizes, docids, tfs = (np.concatenate(part) for part in zip(*parts, strict=True))
        return terms, sizes, docids, tfs

    def records(self, wanted: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """int32 document numbers, int32 lengths, and collection ids."""
        from indexes.kernels.ciff import read_records

        ids: list[str] = []
        parts = [(np.empty(0, np.int32), np.empty(0, np.int32))]
        while len(ids) < wanted:
            docids, lengths = np.empty(MESSAGES, np.int32), np.empty(MESSAGES, np.int32)
            spans = np.empty((MESSAGES, 2), np.int64)
            count, used, bad = read_records(self.window, wanted - len(ids), docids, lengths, spans)
            if bad >= 0:
                raise self._error(bad, f"document record {len(ids) + count} is malformed")
            ids.extend(self._texts(spans[:count]))
            parts.append((docids[:count], lengths[:count]))
            self._advance(used)
            if not count:
                self._more(f"document record {len(ids)} of {wanted}")
        docids, lengths = (np.concatenate(part) for part in zip(*parts, strict=True))
        return docids, lengths, ids

    def end(self) -> None:
        if len(self.window) or self.data.read(1):
            raise self._error(0, "bytes after the last document record")

    def _more(self, what: str) -> None:
        """Widen the window, or raise that the file ends within `what`."""
        more = self.data.read(max(WINDOW, len(self.window)))
        if not more:
            raise self._error(len(self.window), f"the file ends within {what}")
        self.window = np.concatenate([self.window, np.frombuffer(more, np.uint8)])

    def _advance(self, used: int) -> None:
        self.window, self.offset = self.window[used:], self.offset + used

    def _texts(self, spans: np.ndarray) -> Iterator[str]:
        return (self._text(start, stop) for start, stop in spans.tolist())

    def _text(self, start: int, stop: int) -> str:
        try:
            return self.window[start:stop].tobytes().decode()
        except UnicodeDecodeError as problem:
            raise self._error(start, "a text that is not UTF-8") from problem

    def _error(self, at: int, what: str) -> InterchangeError:
        return InterchangeError(f"{self.path}, byte {self.offset + at}: {what}")
