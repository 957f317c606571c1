"""Exact search over dense vectors: every score is computed, block by block, by matrix products (BLAS)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from indexes.base import in_chunks
from indexes.dense.base import DenseIndex
from indexes.dense.store import DTYPES, VectorStore
from indexes.errors import InvalidParameter

BLOCK = 1 << 20  # scores held at once per batch of queries: 4 MB, which stays in cache
QUERY_BATCH = 256
FEW = 4  # queries: so few are scored faster with float16 as it is than by making float32 of it for BLAS


class FlatIndex(DenseIndex):
    """All vectors, exact scores.

    `metric`: "ip", "cosine" or "l2". `dtype`: "float32", or "float16" for half the bytes (each number keeps 11
    bits; scores are still computed in float32 from the stored numbers).
    `threads` of `search` governs the selection of the best, and few queries with float16, of which half the bytes is
    twice the speed; matrix products use the threads of numpy's BLAS.
    """

    kind = "flat"

    def __init__(self, *, metric: str = "ip", dtype: str = "float32") -> None:
        super().__init__(metric=metric)
        if dtype not in DTYPES:
            raise InvalidParameter(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        self.dtype = dtype
        self._store = VectorStore(dtype, "dtype='float32'")

    def parameters(self) -> dict[str, Any]:
        return {"metric": self.metric, "dtype": self.dtype}

    @property
    def vectors(self) -> np.ndarray:
        """The stored vectors (n, d), in the index's dtype, by row."""
        return self._store.vectors(self.d or 0)

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        self._store.add(vectors)
        self.d = vectors.shape[1]

    def _remove(self, keep: np.ndarray) -> None:
        self._store.keep(keep)

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import topk

        heap_scores, heap_ids = topk.empty_heaps(len(queries), k)
        vectors, ids = self.vectors, self._ids
        if allow is not None:
            rows = np.flatnonzero(allow)
            vectors, ids = vectors[rows] if len(rows) < len(ids) // 2 else vectors, ids
            ids = ids[rows] if len(vectors) == len(rows) else np.where(allow, ids, -1)
        for start in range(0, len(queries), QUERY_BATCH):
            batch = slice(start, start + QUERY_BATCH)
            block = max(1024, BLOCK // len(queries[batch]))
            if self.dtype == "float16" and len(queries[batch]) > FEW:
                block = min(block, max(1024, BLOCK // vectors.shape[1]))  # its vectors as float32 stay in cache too
            for row in range(0, len(vectors), block):
                scores = similarities(queries[batch], vectors[row : row + block], self.metric, threads)
                labels = np.ascontiguousarray(ids[row : row + block])

                def select(a: int, b: int, scores: np.ndarray = scores, labels: np.ndarray = labels) -> None:
                    topk.push_rows(scores[a:b], labels, heap_scores[batch][a:b], heap_ids[batch][a:b])  # noqa: B023

                in_chunks(select, len(scores), threads)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        return {"d": self.d}, {"vectors": self.vectors}, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.d = state["d"]
        self._store.open(arrays["vectors"], len(self), self.d or 0)


def similarities(queries: np.ndarray, vectors: np.ndarray, metric: str, threads: int = 1) -> np.ndarray:
    """Scores float32 (nq, n) of queries (nq, d) with vectors (n, d), float32 or float16; higher is better.

    For "l2", minus the squared distance as 2 q.x - |q|^2 - |x|^2, which loses digits when distances are tiny beside
    the vectors' lengths (about 1e-7 of the squared length). BLAS rounds differently from place to place in a block, so
    scores of equal vectors may differ in the last bit.
    """
    if vectors.dtype == np.float16 and len(queries) <= FEW:
        return _few(queries, vectors, metric, threads)
    block = vectors if vectors.dtype == np.float32 else _widened(vectors)
    scores = queries @ block.T
    if metric == "l2":
        scores *= 2
        scores -= np.einsum("ij,ij->i", block, block)[None, :]
        scores -= np.einsum("ij,ij->i", queries, queries)[:, None]
        np.minimum(scores, 0, out=scores)
    return scores


def _few(queries: np.ndarray, vectors: np.ndarray, metric: str, threads: int) -> np.ndarray:
    """`similarities` with float16 vectors, which are read once and made float32 number by number."""
    from indexes.kernels import exact

    scores, numbers = np.empty((len(queries), len(vectors)), np.float32), vectors.view(np.uint16)
    in_chunks(lambda a, b: exact.every(numbers, a, b, queries, metric == "l2", scores), len(vectors), threads)
    return scores


def _widened(vectors: np.ndarray) -> np.ndarray:
    """float32 (n, d) of float16, several times as fast as numpy's own."""
    from indexes.kernels import exact

    out = np.empty(vectors.shape, np.float32)
    exact.widened(vectors.reshape(-1).view(np.uint16), out.reshape(-1))
    return out
