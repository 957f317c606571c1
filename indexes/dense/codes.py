"""Codes of many vectors, scanned from the first to the last for the best candidates of queries.

`codes_for` chooses how they lie: in blocks, scored by integer products, where a code is made of small whole numbers
(SQ, LVQ, signs, RaBitQ, also behind linear maps), and row by row, scored by the codec itself, for all others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from indexes.base import in_chunks
from indexes.codecs import Codec
from indexes.codecs.base import Scorer
from indexes.codecs.levels import Levels, levels_of
from indexes.errors import CorruptIndex

Heaps: TypeAlias = tuple[np.ndarray, np.ndarray]
QUERY_BATCH = 256
BLOCK = 1 << 20  # scores held at once per batch of queries: 4 MB, which stays in cache


def codes_for(codec: Codec, l2: bool) -> Codes:
    """An empty collection of codes of a fitted codec; `l2`: whether scores are minus squared distances."""
    levels = levels_of(codec)
    return PlainCodes(codec, l2) if levels is None else BlockedCodes(codec, l2, levels)


class Codes(ABC):
    """Codes by row. For "l2", squared lengths of the decoded vectors are kept beside them, float32 (n,)."""

    unit: int = 1  # rows; a list (see `best_in`) fills so many, or a multiple

    def __init__(self, codec: Codec, l2: bool) -> None:
        self.codec, self.l2 = codec, l2
        self.squares = np.empty(0, np.float32)

    def add(self, codes: np.ndarray) -> None:
        """Append codes uint8 (n, bytes)."""
        if self.l2:
            decoded = self.codec.decode(codes)
            self.squares = np.concatenate([self.squares, np.einsum("ij,ij->i", decoded, decoded)])
        self._append(codes)

    def keep(self, rows: np.ndarray) -> None:
        """Only the rows where bool (n,) is True."""
        kept = self.at(np.flatnonzero(rows))
        self.squares = self.squares[rows] if self.l2 else self.squares
        self._clear()
        self._append(kept)

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Scores float32 (nq, m) of float queries with the codes at `rows` int64 (nq, m), -1 for none."""
        scores = np.full(rows.shape, -np.inf, np.float32)
        for q, some in enumerate(rows):
            real = some[some >= 0]
            scores[q, : len(real)] = self._similarities(queries[q : q + 1], real)[0]
        return scores

    def _similarities(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Scores of the decoded vectors at `rows` int64 (m,), float32 (nq, m)."""
        return self._as_metric(self.codec.scorer(queries)(self.at(rows)), queries, rows)

    def _as_metric(self, products: np.ndarray, queries: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        if not self.l2:
            return products
        lengths = np.einsum("ij,ij->i", queries, queries)[:, None]
        return np.minimum(2 * products - self.squares[rows] - lengths, 0)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is saved."""
        return {"codes": self._packed(), **({"squares": self.squares} if self.l2 else {})}

    def open(self, arrays: dict[str, np.ndarray], n: int) -> None:
        """The inverse of `arrays`, or `CorruptIndex`."""
        codes, squares = arrays["codes"], arrays["squares"] if self.l2 else self.squares
        expected = self._packed_like(n)
        if codes.shape != expected.shape or codes.dtype != expected.dtype:
            seen = f"{codes.dtype} {codes.shape}"
            raise CorruptIndex(f"codes are {seen}; {n} of {self.codec!r} are {expected.dtype} {expected.shape}")
        if self.l2 and (squares.shape != (n,) or squares.dtype != np.float32):
            raise CorruptIndex(f"squares are {squares.dtype} {squares.shape}, not float32 ({n},)")
        self.squares = squares
        self._open(codes, n)

    # -- what a way of laying them out provides ------------------------------------------------------------------------

    @abstractmethod
    def best(
        self, queries: np.ndarray, count: int, ids: np.ndarray, allow: np.ndarray | None, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and ids (nq, count) of the best, ranked; -1 beyond the last. `allow` bool (n,), None for all.

        Scores may be rough, and lack what is equal for all documents of a query.
        """

    @abstractmethod
    def best_in(
        self, queries: np.ndarray, count: int, ids: np.ndarray, allow: np.ndarray, threads: int,
        lists: np.ndarray, starts: np.ndarray, bounds: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """As `best`, among the `lists` of each query, int64 (nq, nprobe), -1 for none; `allow` is always given.

        List i holds the rows from `starts[i]` to `starts[i + 1]` times `unit`, int64 (nlist + 1,). `bounds` float32
        (nq, nprobe) are never below a score in that list, so that lists may be passed by; None where none are known.
        """

    @abstractmethod
    def at(self, rows: np.ndarray) -> np.ndarray:
        """Codes uint8 (m, bytes) of rows int64 (m,)."""

    @abstractmethod
    def _append(self, codes: np.ndarray) -> None: ...

    @abstractmethod
    def _clear(self) -> None: ...

    @abstractmethod
    def _packed(self) -> np.ndarray: ...

    @abstractmethod
    def _packed_like(self, n: int) -> np.ndarray:
        """An array of the shape and dtype that `_packed` has for n rows; its content does not matter."""

    @abstractmethod
    def _open(self, packed: np.ndarray, n: int) -> None: ...


class PlainCodes(Codes):
    """Codes one after the other, scored by the codec, block by block."""

    def __init__(self, codec: Codec, l2: bool) -> None:
        super().__init__(codec, l2)
        self._clear()

    def best(
        self, queries: np.ndarray, count: int, ids: np.ndarray, allow: np.ndarray | None, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import topk

        codes, n = self._packed(), len(ids)
        heap_scores, heap_ids = topk.empty_heaps(len(queries), count)
        for first in range(0, len(queries), QUERY_BATCH):
            batch = slice(first, first + QUERY_BATCH)
            asked = queries[batch]
            score, step = self.codec.scorer(asked), max(1024, BLOCK // len(asked))

            def scan(
                a: int, b: int, heaps: Heaps, asked: np.ndarray = asked, score: Scorer = score, step: int = step
            ) -> None:
                for start in range(a, b, step):
                    rows = np.arange(start, min(b, start + step))
                    rows = rows if allow is None else rows[allow[rows]]
                    if len(rows):
                        block = codes[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] < len(rows) else codes[rows]
                        topk.push_rows(self._as_metric(score(block), asked, rows), ids[rows], *heaps)

            merge(scan, n, heap_scores[batch], heap_ids[batch], threads)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def best_in(
        self, queries: np.ndarray, count: int, ids: np.ndarray, allow: np.ndarray, threads: int,
        lists: np.ndarray, starts: np.ndarray, bounds: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        from indexes.kernels import topk

        codes = self._packed()
        labels = np.where(allow, ids, -1)
        heap_scores, heap_ids = topk.empty_heaps(len(queries), count)

        def work(a: int, b: int) -> None:
            for q in range(a, b):
                asked, heap = queries[q : q + 1], (heap_scores[q : q + 1], heap_ids[q : q + 1])
                score = self.codec.scorer(asked)
                for place, chosen in enumerate(lists[q].tolist()):
                    rows = slice(starts[chosen], starts[chosen + 1]) if chosen >= 0 else slice(0, 0)
                    if rows.stop > rows.start and (bounds is None or bounds[q, place] >= heap_scores[q, 0]):
                        topk.push_rows(self._as_metric(score(codes[rows]), asked, rows), labels[rows], *heap)

        in_chunks(work, len(queries), threads)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def at(self, rows: np.ndarray) -> np.ndarray:
        return self._packed()[rows]

    def _append(self, codes: np.ndarray) -> None:
        self._chunks.append(codes)

    def _clear(self) -> None:
        self._chunks: list[np.ndarray] = []

    def _packed(self) -> np.ndarray:
        if len(self._chunks) != 1:
            self._chunks = [np.concatenate([self._packed_like(0), *self._chunks])]
        return self._chunks[0]

    def _packed_like(self, n: int) -> np.ndarray:
        return np.empty((n, self.codec.bytes_per_vector), np.uint8)

    def _open(self, packed: np.ndarray, n: int) -> None:
        self._chunks = [packed]


class BlockedCodes(Codes):
    """Codes in blocks of 16, scored by integer products of their levels with queries of 8 bits per dimension.

    Rounding a query moves its numbers by an eighth of what 4 bits per dimension do to the documents', and by twice what
    8 bits do: good enough to choose candidates, which are scored again in any case.
    """

    unit = 16

    def __init__(self, codec: Codec, l2: bool, levels: Levels) -> None:
        super().__init__(codec, l2)
        self._levels = levels
        self._terms: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._clear()

    def best(
        self, queries: np.ndarray, count: int, ids: np.ndarray, allow: np.ndarray | None, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import scan, topk

        words, bits, width = self._packed(), self._levels.bits, -(-self._levels.nbytes // 4)
        factor = np.float32(2 if self.l2 else 1)
        weights, tilts = self._levels.query_terms(queries)
        asked, slopes = scan.quantize_queries(weights, bits, width)
        scales, offsets, squares = self._row_terms()
        blocks, allowed = np.arange(len(words)), np.empty(0, np.bool_)
        if allow is not None:
            allowed = allow
            blocks = np.flatnonzero(np.logical_or.reduceat(allow, blocks * scan.LANES))
        heap_scores, heap_ids = topk.empty_heaps(len(queries), count)

        def search(a: int, b: int, heaps: Heaps) -> None:
            scan.search(
                words, bits, width, blocks[a:b], ids, allowed, scales, offsets, squares,
                asked, slopes * factor, tilts * factor, *heaps,
            )  # fmt: skip

        merge(search, len(blocks), heap_scores, heap_ids, threads)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def best_in(
        self, queries: np.ndarray, count: int, ids: np.ndarray, allow: np.ndarray, threads: int,
        lists: np.ndarray, starts: np.ndarray, bounds: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        from indexes.kernels import ivf, topk

        words, bits, width = self._packed(), self._levels.bits, -(-self._levels.nbytes // 4)
        weights, tilts = self._levels.query_terms(queries)
        factor, terms = np.float32(2 if self.l2 else 1), self._row_terms()
        heap_scores, heap_ids = topk.empty_heaps(len(queries), count)

        def work(a: int, b: int) -> None:
            ivf.search(
                words, bits, width, starts, lists[a:b], ids, allow, *terms, weights[a:b], tilts[a:b], factor,
                heap_scores[a:b], heap_ids[a:b],
            )  # fmt: skip

        in_chunks(work, len(queries), threads)
        return heap_scores, heap_ids

    def at(self, rows: np.ndarray) -> np.ndarray:
        from indexes.kernels import scan

        return scan.separate(self._packed(), rows, self.codec.bytes_per_vector)

    def _row_terms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scales, offsets and squares, filled up to whole blocks; read from the codes at the first search."""
        if self._terms is None:
            from indexes.kernels import scan

            words, room = self._packed(), len(self._packed()) * scan.LANES
            first = self._levels.nbytes // 4 * 4  # the numbers lie behind the levels
            nbytes = self.codec.bytes_per_vector - first
            tails = scan.separate(words[:, first // 4 :], np.arange(room), nbytes)
            scales, offsets = self._levels.row_terms(tails)
            squares = np.zeros(room if self.l2 else 0, np.float32)
            squares[: len(self.squares)] = self.squares
            self._terms = scales, offsets, squares
        return self._terms

    def _append(self, codes: np.ndarray) -> None:
        self._pending.append(codes)
        self._terms = None

    def _clear(self) -> None:
        self._words = self._packed_like(0)
        self._n = 0  # rows in the words
        self._pending: list[np.ndarray] = []
        self._terms = None

    def _packed(self) -> np.ndarray:
        from indexes.kernels import scan

        if self._pending:
            whole = self._n // scan.LANES  # blocks that stay as they are
            rest = scan.separate(self._words, np.arange(whole * scan.LANES, self._n), self.codec.bytes_per_vector)
            fresh, self._pending = np.concatenate([rest, *self._pending]), []
            self._words = np.concatenate([self._words[:whole], scan.interleave(fresh)])
            self._n = whole * scan.LANES + len(fresh)
        return self._words

    def _packed_like(self, n: int) -> np.ndarray:
        from indexes.kernels import scan

        return np.empty((-(-n // scan.LANES), -(-self.codec.bytes_per_vector // 4), scan.LANES), np.uint32)

    def _open(self, packed: np.ndarray, n: int) -> None:
        self._words, self._n = packed, n


def merge(
    scan: Callable[[int, int, Heaps], None], count: int, heap_scores: np.ndarray, heap_ids: np.ndarray, threads: int
) -> None:
    """Call `scan(start, stop, heaps)` over `count` blocks or rows in shares, one per thread, each with its own heaps.

    All queries meet a block while it is in the cache, and one query alone is spread over all threads.
    """
    from indexes.kernels import topk

    shares = max(1, min(threads, count // 1024))  # a thread for less costs more than it saves
    if shares == 1:
        scan(0, count, (heap_scores, heap_ids))
        return
    heaps = [(heap_scores, heap_ids), *(topk.empty_heaps(*heap_ids.shape) for _ in range(shares - 1))]
    bounds = [count * share // shares for share in range(shares + 1)]

    def work(a: int, b: int) -> None:
        for share in range(a, b):
            scan(bounds[share], bounds[share + 1], heaps[share])

    in_chunks(work, shares, threads)
    for scores, ids in heaps[1:]:
        topk.push_lists(scores, ids, heap_scores, heap_ids)
