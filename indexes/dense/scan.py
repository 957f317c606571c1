"""Exhaustive search over compressed vectors, the best of which are ranked again by the vectors themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from indexes.base import in_chunks
from indexes.binary.base import id_order
from indexes.codecs import SQ, Codec
from indexes.codecs.base import unfitted
from indexes.dense.coded import CodedIndex
from indexes.dense.codes import Codes, PlainCodes, codes_for
from indexes.errors import InvalidParameter, NotFitted


class ScanIndex(CodedIndex):
    """Codes of all vectors, scanned for candidates, which are then scored exactly. The exact twin is `FlatIndex`.

    `codec`: any of `indexes.codecs`; None chooses `SQ(bits=4)`. The index keeps a copy of its own. SQ, LVQ, SignBits
    and RaBitQ, also behind linear maps (`Chain`), are scanned by integer products, many times as fast as the others.
    For queries that come one at a time take `SQ(bits=2)`: such a scan waits for memory, and half the bytes make it 1.4
    to 2 times as fast. A batch reads codes from the cache, and gains nothing.
    `rerank`: "float32" or "float16" stores the vectors too (4 d or 2 d bytes), and scores are exact for what is stored;
    "lvq8" stores them in a byte a number and eight a vector: of the nearest 10, about one in 200 is then another one
    (384 dimensions; with 50, one in 65); None stores codes only, and scores are those of the decoded vectors. A loaded
    index leaves the vectors on disk unless `mmap=False`, and reads those of the candidates only.
    `metric`: "ip", "cosine" or "l2".
    `candidates`: how many are scored again, also a parameter of `search`; never less than k. None chooses 10 k, at
    least 100: the nearest 10 are nearly always among them (of embeddings of 384 dimensions, among 30 with 4 bits per
    dimension, 50 to 200 with 2, 300 to 1,000 with one).
    `fit` learns what the codec needs; codecs that learn nothing (float16) and those that are fitted do without.
    """

    kind = "scan"
    needs_fit = True
    search_knobs: ClassVar = {"candidates": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {"candidates": (10_000, 5000, 2000, 1000, 500, 200, 100, 50, 30, 20, 15, 10)}

    def __init__(
        self,
        *,
        codec: Codec | None = None,
        metric: str = "ip",
        rerank: str | None = "float32",
        candidates: int | None = None,
    ) -> None:
        super().__init__(metric=metric, codec=codec, default=SQ(bits=4), rerank=rerank)
        if not self.search_knobs["candidates"](candidates):
            raise InvalidParameter(f"candidates is {candidates!r}; it must be an integer of at least 1, or None")
        self.candidates, self.d = candidates, self.codec.d
        self.needs_fit = self.d is None
        self._codes: Codes | None = None
        self._ranked: tuple[np.ndarray, np.ndarray | None] | None = None  # see `_ranks`; made by a search

    def parameters(self) -> dict[str, Any]:
        return {
            "codec": unfitted(self.codec.header()), "metric": self.metric, "rerank": self.rerank,
            "candidates": self.candidates,
        }  # fmt: skip

    def fit(self, vectors: Any, queries: Any = None) -> ScanIndex:
        """Fit the codec to a sample (n, d); `queries` (nq, d) are for `LeanVec`. Only an empty index can be fitted.

        Raises `InvalidParameter`, `InvalidVectors`.
        """
        if len(self):
            raise InvalidParameter(f"fit needs an empty index; this one holds {len(self)} vectors")
        self.d = None
        sample = self._check_vectors(vectors)
        self.codec.fit(sample, None if queries is None else self._check_vectors(queries))
        self.d, self._codes = sample.shape[1], None
        return self

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        if self.codec.d is None:
            if self.codec.needs_fit:
                raise NotFitted(f"{self.codec!r} must learn from a sample first: call fit(sample) before add")
            self.codec.fit(vectors)
        codes = self.codec.encode(vectors)
        if self._store is not None:
            self._store.add(vectors)
        self._coded().add(codes)
        self._ranked = None
        self.d = vectors.shape[1]

    def _coded(self) -> Codes:
        if self._codes is None:
            self._codes = codes_for(self.codec, self.metric == "l2")
        return self._codes

    def _remove(self, keep: np.ndarray) -> None:
        self._coded().keep(keep)
        self._ranked = None
        if self._store is not None:
            self._store.keep(keep)

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import topk

        codes = self._coded()
        count = min(len(self), max(k, knobs["candidates"] or max(100, 10 * k)))
        if self._store is None and isinstance(codes, PlainCodes):  # its scores are not rough
            return codes.best(queries, k, self._ids, allow, threads)
        ranks, order = self._ranks()
        _, found = codes.best(queries, count, ranks, allow, threads)
        rows = found if order is None else np.where(found >= 0, order[found], -1)
        heap_scores, heap_ranks = topk.empty_heaps(len(queries), k)

        def work(a: int, b: int) -> None:
            if self._store is None:
                scores = codes.scores(queries[a:b], rows[a:b])
            else:
                scores = self._store.scores(queries[a:b], rows[a:b], self.metric)
            topk.push_lists(scores, found[a:b], heap_scores[a:b], heap_ranks[a:b])

        in_chunks(work, len(queries), threads)
        topk.sort_heaps(heap_scores, heap_ranks)
        if ranks is self._ids:
            return heap_scores, heap_ranks
        best = heap_ranks if order is None else order[heap_ranks]
        return heap_scores, np.where(heap_ranks >= 0, self._ids[best], -1)

    def _ranks(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The place of each row's id among all, int64 (n,), and the row at each place, or None where both are one.

        Candidates are known by these: equals rank as their ids do, and rows need not be searched for.
        """
        if self._ranked is None:
            order, ranks = id_order(self._ids), np.arange(len(self))
            if order is not None:
                ranks[order] = np.arange(len(self))
            self._ranked = (self._ids if np.array_equal(ranks, self._ids) else ranks), order
        return self._ranked

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        state, arrays = self._coded_state()
        if self.codec.d is not None:
            arrays |= self._coded().arrays()
        return state, arrays, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self._restore_codec(state, arrays)
        self.needs_fit = self.d is None
        if self.d is not None:
            self._coded().open(arrays, len(self))
        if self._store is not None:
            self._store.open(arrays["vectors"], len(self), self.d or 0)
