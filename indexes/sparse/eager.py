"""The eager sparse matrix: every term's score in every document is computed when the index is built.

BM25S (Lu, 2024, arXiv:2407.03618): a query then only adds up postings. The counts are kept beside the scores, so that
scores are exact after any sequence of `add` and `remove`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.base import in_chunks
from indexes.errors import CorruptIndex
from indexes.sparse.base import Queries, SparseIndex
from indexes.sparse.weighting import Weighting, from_settings, relative_lengths

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHUNK = 1 << 22  # postings weighted at once: bounds the float64 temporaries to about 100 MB


class EagerIndex(SparseIndex):
    """Exact scores by term-at-a-time accumulation.

    `weighting`: None scores by the inner product of the given weights (learned sparse vectors); `BM25(...)` or
    `TFIDF()` take the vectors for counts of terms and weigh them (statistics over all documents in the index;
    a document's length is the sum of its counts).
    Adding and removing mark the scores as stale; they are computed once, at the next search or save.
    """

    kind = "eager"

    def __init__(self, *, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.weighting = weighting
        self._pending: list[csr_matrix] = []
        self._starts = np.zeros(1, np.int64)
        self._rows = np.empty(0, np.int32)
        self._counts = np.empty(0, np.float32)
        self._lengths = np.empty(0, np.float32)
        self._scores: np.ndarray | None = self._counts
        self._base = np.empty(0, np.float64)

    def parameters(self) -> dict[str, Any]:
        return {"weighting": self.weighting.settings() if self.weighting else None}

    @classmethod
    def _rebuild(cls, parameters: dict[str, Any]) -> EagerIndex:
        settings = parameters.pop("weighting")
        return cls(weighting=None if settings is None else from_settings(settings), **parameters)

    def counts(self) -> csr_matrix:
        """The stored vectors by row: float32 (n, V), not to be changed."""
        from scipy.sparse import csc_matrix, csr_matrix, vstack

        stored = csc_matrix((self._counts, self._rows, self._starts), shape=(len(self._lengths), len(self._starts) - 1))
        parts = [stored.tocsr(), *self._pending] if len(self._lengths) or not self._pending else self._pending
        for part in parts:
            part.resize(part.shape[0], self.V)
        return csr_matrix(parts[0] if len(parts) == 1 else vstack(parts, format="csr"), dtype=np.float32)

    def explain(self, query: Any, id: int) -> list[tuple[int, float]]:
        """(term, score) of each term of `query` (1, V) that the document has, best first; they sum to its score.

        For BM25L and BM25+ a last entry with term -1 holds what the query's terms score in every document.
        """
        self._build()
        checked = self._check_queries(query)
        row = np.flatnonzero(self._ids == id)
        if checked.shape[0] != 1 or not len(row):
            raise ValueError(f"explain needs one query (got {checked.shape[0]}) and the id of a row (got {id!r})")
        parts, assert_scores = [], self._scores
        assert assert_scores is not None
        for term, weight in zip(checked.terms.tolist(), checked.weights.tolist(), strict=True):
            start, stop = self._starts[term], self._starts[term + 1]
            place = start + np.searchsorted(self._rows[start:stop], row[0])
            if place < stop and self._rows[place] == row[0]:
                parts.append((term, weight * float(assert_scores[place])))
        parts.sort(key=lambda part: (-part[1], part[0]))
        everywhere = float(checked.weights @ self._base[checked.terms])
        return [*parts, (-1, everywhere)] if everywhere else parts

    def _add(self, vectors: csr_matrix, ids: np.ndarray) -> None:
        self._pending.append(vectors)
        self.V = max(self.V, vectors.shape[1])
        self._scores = None

    def _remove(self, keep: np.ndarray) -> None:
        self._store(self.counts()[keep])
        self._scores = None

    def _store(self, counts: csr_matrix) -> None:
        from indexes.kernels.postings import transpose

        self._pending = []
        self._lengths = np.asarray(counts.sum(axis=1), np.float32).reshape(-1)
        self._starts, self._rows, self._counts = transpose(
            counts.indptr.astype(np.int64), counts.indices.astype(np.int32), counts.data.astype(np.float32), self.V
        )

    def _build(self) -> None:
        """Bring the postings and their scores up to date."""
        if self._scores is not None:
            return
        if self._pending:
            self._store(self.counts())
        df, n = np.diff(self._starts), len(self._lengths)
        if self.weighting is None or not n:
            self._scores, self._base = self._counts, np.zeros(len(df))
            return
        idf = self.weighting.idf(df, n)
        self._base = self.weighting.nonoccurrence(idf)
        lengths = relative_lengths(self._lengths)
        scores = np.empty(len(self._rows), np.float32)
        for start in range(0, len(scores), CHUNK):
            part = slice(start, start + CHUNK)
            terms = np.searchsorted(self._starts, np.arange(start, min(start + CHUNK, len(scores))), side="right") - 1
            weights = self.weighting.score(self._counts[part].astype(np.float64), idf[terms], lengths[self._rows[part]])
            scores[part] = weights - self._base[terms]
        self._scores = scores

    def _search(
        self, queries: Queries, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import postings, topk

        self._build()
        heap_scores, heap_ids = topk.empty_heaps(queries.shape[0], k)
        base = queries.dot(self._base) if self._base.any() else np.zeros(queries.shape[0], np.float32)
        bitmap = np.empty(0, np.bool_) if allow is None else allow

        def work(a: int, b: int) -> None:
            postings.search(
                queries.starts[a : b + 1], queries.terms, queries.weights, self._starts, self._rows, self._scores,
                base[a:b], self._ids, bitmap, heap_scores[a:b], heap_ids[a:b],
            )  # fmt: skip

        in_chunks(work, queries.shape[0], threads)
        return heap_scores, heap_ids

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        self._build()
        arrays: dict[str, np.ndarray] = {
            "starts": self._starts,
            "rows": self._rows,
            "counts": _narrowest(self._counts),
            "lengths": self._lengths,
            "base": self._base,
        }
        if self.weighting is not None and self._scores is not None:
            arrays["scores"] = self._scores
        return {"V": self.V}, arrays, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.V = state["V"]
        self._starts, self._rows, self._lengths = arrays["starts"], arrays["rows"], arrays["lengths"]
        self._base = arrays["base"]
        n, entries = len(self._ids), len(self._rows)
        if len(self._starts) != self.V + 1 or len(self._lengths) != n or int(self._starts[-1]) != entries:
            raise CorruptIndex(f"postings of {len(self._starts) - 1} terms, {len(self._lengths)} rows: not V and n")
        self._counts = arrays["counts"] if self.weighting else arrays["counts"].astype(np.float32, copy=False)
        self._scores = arrays["scores"] if self.weighting else self._counts
        if len(self._counts) != entries or len(self._scores) != entries or len(self._base) != self.V:
            raise CorruptIndex(f"{len(self._counts)} counts, {len(self._scores)} scores for {entries} postings")


def _narrowest(counts: np.ndarray) -> np.ndarray:
    """Counts in the smallest unsigned type that holds them; weights that are not whole stay float32."""
    for dtype in (np.uint8, np.uint16):
        if not len(counts) or (counts.max() <= np.iinfo(dtype).max and (counts == np.rint(counts)).all()):
            return counts.astype(dtype)
    return counts
