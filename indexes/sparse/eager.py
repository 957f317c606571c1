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
from indexes.sparse.base import Queries, SparseIndex, stacked
from indexes.sparse.weighting import Weighting, from_settings, weigh

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class EagerIndex(SparseIndex):
    """Exact scores by term-at-a-time accumulation.

    `weighting`: None scores by the inner product of the given weights (learned sparse vectors); `BM25(...)` or
    `TFIDF()` take the vectors for counts of terms and weigh them (statistics over all documents in the index;
    a document's length is the sum of its counts).
    Rows that are added, and all rows once some are removed, wait for the next search or save, which weighs them once.
    """

    kind = "eager"

    def __init__(self, *, weighting: Weighting | None = None) -> None:
        super().__init__()
        self.weighting = weighting
        self._clear()

    def parameters(self) -> dict[str, Any]:
        return {"weighting": self.weighting.settings() if self.weighting else None}

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

    def explain(self, query: Any, id: int) -> list[tuple[int, float]]:
        """(term, score) of each term of `query` (1, V) that the document has, best first; they sum to its score.

        For BM25L and BM25+ a last entry with term -1 holds what the query's terms score in every document.
        """
        self._build()
        checked = self._check_queries(query)
        row = np.flatnonzero(self._ids == id)
        if checked.shape[0] != 1 or not len(row):
            raise ValueError(f"explain needs one query (got {checked.shape[0]}) and the id of a row (got {id!r})")
        parts = []
        for term, weight in zip(checked.terms.tolist(), checked.weights.tolist(), strict=True):
            start, stop = self._starts[term], self._starts[term + 1]
            place = start + np.searchsorted(self._rows[start:stop], row[0])
            if place < stop and self._rows[place] == row[0]:
                parts.append((term, weight * float(self._scores[place])))
        parts.sort(key=lambda part: (-part[1], part[0]))
        everywhere = float(checked.weights @ self._base[checked.terms])
        return [*parts, (-1, everywhere)] if everywhere else parts

    def _add(self, vectors: csr_matrix, ids: np.ndarray) -> None:
        self._pending.append(vectors)
        self.V = max(self.V, vectors.shape[1])

    def _remove(self, keep: np.ndarray) -> None:
        kept = self.counts()[keep]
        self._clear()
        self._pending.append(kept)

    def _clear(self) -> None:
        self._pending: list[csr_matrix] = []
        self._starts, self._rows = np.zeros(1, np.int64), np.empty(0, np.int32)
        self._counts, self._lengths = np.empty(0, np.float32), np.empty(0, np.float32)
        self._scores, self._base = self._counts, np.empty(0, np.float64)

    def _build(self) -> None:
        """Make postings and scores of the rows that wait, together with those there are."""
        if not self._pending:
            return
        from indexes.kernels.postings import transpose

        counts = self.counts()
        starts, terms = counts.indptr.astype(np.int64), counts.indices.astype(np.int32)
        self._starts, self._rows, self._counts = transpose(starts, terms, counts.data, self.V)
        self._lengths = np.asarray(counts.sum(axis=1), np.float32).reshape(-1)
        self._scores, self._base, self._pending = self._counts, np.zeros(self.V), []
        if self.weighting is not None:
            scores, self._base = weigh(self.weighting, counts)
            _, _, self._scores = transpose(starts, terms, scores, self.V)

    def _search(
        self, queries: Queries, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import postings, topk

        self._build()
        heap_scores, heap_ids = topk.empty_heaps(queries.shape[0], k)
        base = queries.dot(self._base)
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
        if self.weighting is not None:
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
