"""The eager sparse matrix: every term's score in every document, its *impact*, is computed when the index is built.

BM25S (Lu, 2024, arXiv:2407.03618): a query then only adds up postings. The given vectors are kept beside the impacts,
so that these are exact, or rounded once, after any sequence of `add` and `remove`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.base import available_threads, in_chunks
from indexes.errors import CorruptIndex, InvalidParameter
from indexes.sparse.base import Queries, SparseIndex, stacked
from indexes.sparse.weighting import CHUNK, Statistics, Weighting, from_settings, holders, row_lengths, scorer

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

EVERYTHING = np.empty(0, np.bool_)  # what the kernel takes for no filter
PRECISIONS: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16, "uint8": np.uint8}


class EagerIndex(SparseIndex):
    """Exact scores by term-at-a-time accumulation.

    `weighting`: None scores by the inner product of the given weights (learned sparse vectors); `BM25(...)` or
    `TFIDF()` take the vectors for counts of terms and weigh them (statistics over all documents in the index;
    a document's length is the sum of its counts).
    `precision` of the impacts: "float32"; "float16" (11 bits, clipped to 6.1e-5 to 65504); or "uint8" (255ths of the
    term's highest, at least 1), whose searches read 5 bytes of each posting instead of 8. Rounded impacts are never 0,
    so that the same rows answer, and scores are exact for them: products and sums in float32, in the order of the
    terms. The vectors stay as given, whatever the precision, in the narrowest type that holds them: impacts are made
    from them anew at every build, and rounding does not add up. Searches do not read them; a loaded index leaves
    them on disk.
    Rows that are added, and all rows once some are removed, wait for the next search or save, which weighs them once.
    """

    kind = "eager"

    def __init__(self, *, weighting: Weighting | None = None, precision: str = "float32") -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise InvalidParameter(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        self.weighting, self.precision = weighting, precision
        self._clear()

    def parameters(self) -> dict[str, Any]:
        return {"weighting": self.weighting.settings() if self.weighting else None, "precision": self.precision}

    @classmethod
    def _rebuild(cls, parameters: dict[str, Any]) -> EagerIndex:
        settings = parameters.pop("weighting")
        return cls(weighting=None if settings is None else from_settings(settings), **parameters)

    def counts(self) -> csr_matrix:
        """The stored vectors by row: float32 (n, V), not to be changed."""
        from scipy.sparse import csc_matrix

        stored = csc_matrix((self._counts, self._rows, self._starts), shape=(len(self._lengths), len(self._starts) - 1))
        parts = [stored.tocsr(), *self._pending] if len(self._lengths) or not self._pending else self._pending
        return stacked(parts, self.V).astype(np.float32, copy=False)

    def _add(self, vectors: csr_matrix, ids: np.ndarray) -> None:
        self._pending.append(vectors)
        given = self.weighting.statistics if self.weighting else None
        # in BM25L and BM25+ terms score here too that only documents elsewhere have
        self.V = max(self.V, vectors.shape[1], 0 if given is None else len(given.df))

    def _remove(self, keep: np.ndarray) -> None:
        kept = self.counts()[keep]
        self._clear()
        self._pending.append(kept)

    def _clear(self) -> None:
        self._pending: list[csr_matrix] = []
        self._starts, self._rows = np.zeros(1, np.int64), np.empty(0, np.int32)
        self._counts, self._lengths = np.empty(0, np.uint8), np.empty(0, np.float32)
        self._impacts, self._scales = np.empty(0, PRECISIONS[self.precision]), np.empty(0, np.float32)
        self._base = np.empty(0, np.float64)
        self._stale = False  # whether the impacts are yet those of other postings
        self._free: list[np.ndarray] = []  # sums for searches, an array for each that ran at the same time

    def _build(self) -> None:
        """Make postings and impacts of the rows that wait, together with those there are."""
        if self._pending:
            self._append()
        if self._stale:
            self._weigh()

    def _append(self) -> None:
        """Put the rows that wait behind those in the postings; each thread fills the lists of its own terms."""
        from indexes.kernels import postings

        df = np.zeros(self.V, np.int64)
        df[: len(self._starts) - 1] = np.diff(self._starts)
        lengths, dtype = [self._lengths], _narrowest([self._counts, *(part.data for part in self._pending)])
        parts = []
        for part in self._pending:
            terms = part.indices.astype(np.int32, copy=False)
            postings.count_terms(terms, df)
            first = sum(map(len, lengths))
            parts.append((part.indptr.astype(np.int64), terms, part.data.astype(dtype, copy=False), first))
            lengths.append(row_lengths(part))
        starts = np.concatenate([[0], np.cumsum(df)])
        places, rows, counts = starts[:-1].copy(), np.empty(starts[-1], np.int32), np.empty(starts[-1], dtype)
        old = self._starts, self._rows, self._counts.astype(dtype, copy=False)
        threads = available_threads()
        # as many postings to each piece; a few pieces to a thread, since each goes over all rows
        bounds = np.searchsorted(starts, np.linspace(0, starts[-1], 4 * threads + 1))

        def work(a: int, b: int) -> None:
            for low, high in zip(bounds[a:b], bounds[a + 1 : b + 1], strict=True):
                postings.move(*old, low, high, places, rows, counts)
                for part in parts:
                    postings.place(*part, low, high, places, rows, counts)

        in_chunks(work, len(bounds) - 1, threads)
        self._starts, self._rows, self._counts, self._lengths = starts, rows, counts, np.concatenate(lengths)
        self._pending, self._free, self._stale = [], [], True

    def _weigh(self) -> None:
        """Make the impacts of the postings."""
        from indexes.kernels import postings

        base, scores = np.empty(0), self._counts.astype(np.float32, copy=False)
        if self.weighting is not None:
            own = Statistics(len(self._lengths), np.diff(self._starts), float(self._lengths.sum(dtype=np.float64)))
            score, base = scorer(self.weighting, own, self._lengths)
            scores = np.empty(len(self._rows), np.float32)

            def weigh(a: int, b: int) -> None:
                for start in range(a, b, CHUNK):
                    part = slice(start, min(start + CHUNK, b))
                    terms = holders(self._starts, part.start, part.stop)
                    scores[part] = score(terms, self._rows[part], self._counts[part])

            in_chunks(weigh, len(scores), available_threads())
        self._base = base if base.any() else np.empty(0)  # then a query spends no time on it
        self._impacts = scores
        if self.precision == "float16":
            self._impacts = _halves(scores)
        elif self.precision == "uint8":
            codes, scales = np.empty(len(scores), np.uint8), np.empty(self.V, np.float32)
            postings.quantize(self._starts, scores, codes, scales)
            self._impacts, self._scales = codes, scales
        self._stale = False

    def _search(
        self, queries: Queries, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import postings, topk

        self._build()
        heap_scores, heap_ids = topk.empty_heaps(queries.shape[0], k)
        base, free = queries.dot(self._base), self._free
        bitmap = EVERYTHING if allow is None else allow
        impacts = self._impacts.view(np.uint16) if self.precision == "float16" else self._impacts

        def work(a: int, b: int) -> None:
            try:
                sums = free.pop()
            except IndexError:  # other searches have them all
                sums = np.full(len(self._ids), postings.NOTHING)
            postings.search(
                queries.starts[a : b + 1], queries.terms, queries.weights, self._starts, self._rows, impacts,
                self._scales, base[a:b], self._ids, bitmap, sums, heap_scores[a:b], heap_ids[a:b],
            )  # fmt: skip
            free.append(sums)

        in_chunks(work, queries.shape[0], threads)
        return heap_scores, heap_ids

    def _has_impacts(self) -> bool:
        """Whether the impacts are anything but the given vectors."""
        return self.weighting is not None or self.precision != "float32"

    def _postings(self) -> int:
        return len(self._rows)

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        self._build()
        arrays: dict[str, np.ndarray] = {
            "starts": self._starts,
            "rows": self._rows,
            "counts": self._counts,
            "lengths": self._lengths,
            "base": self._base,
        }
        if self._has_impacts():
            arrays["scores"] = self._impacts
        if self.precision == "uint8":
            arrays["scales"] = self._scales
        return {"V": self.V}, arrays, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.V = state["V"]
        self._starts, self._rows, self._lengths = arrays["starts"], arrays["rows"], arrays["lengths"]
        self._counts, self._base = arrays["counts"], arrays["base"]
        self._impacts = arrays["scores"] if self._has_impacts() else self._counts.astype(np.float32, copy=False)
        self._scales = arrays["scales"] if self.precision == "uint8" else self._scales
        n, entries = len(self._ids), len(self._rows)
        if len(self._starts) != self.V + 1 or len(self._lengths) != n or int(self._starts[-1]) != entries:
            raise CorruptIndex(f"postings of {len(self._starts) - 1} terms, {len(self._lengths)} rows: not V and n")
        if len(self._counts) != entries or len(self._impacts) != entries or len(self._base) not in (0, self.V):
            raise CorruptIndex(f"{len(self._counts)} counts, {len(self._impacts)} scores for {entries} postings")
        scales = self.V if self.precision == "uint8" else 0
        if self._impacts.dtype != PRECISIONS[self.precision] or len(self._scales) != scales:
            raise CorruptIndex(f"scores are {self._impacts.dtype}, {len(self._scales)} scales: not {self.precision}")


def _narrowest(parts: Sequence[np.ndarray]) -> np.dtype:
    """The smallest type that holds all counts; weights that are not whole need float32."""
    for dtype in (np.uint8, np.uint16):
        if all(part.max(initial=0) <= np.iinfo(dtype).max and (part == part.astype(dtype)).all() for part in parts):
            return np.dtype(dtype)
    return np.dtype(np.float32)


def _halves(scores: np.ndarray) -> np.ndarray:
    """Scores as normal float16 numbers, neither 0 nor infinite, of the same signs."""
    limits, out = np.finfo(np.float16), np.empty(len(scores), np.float16)
    for start in range(0, len(scores), CHUNK):
        part = scores[start : start + CHUNK]
        out[start : start + CHUNK] = np.copysign(np.clip(np.abs(part), limits.smallest_normal, limits.max), part)
    return out
