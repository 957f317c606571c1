"""HNSW (Malkov and Yashunin, 2018) by faiss: a navigable graph over all vectors, kept in float32."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from indexes.dense.faiss_base import FaissIndex, faiss_metric
from indexes.dense.flat import FEW, QUERY_BATCH, similarities
from indexes.dense.store import as_numbers
from indexes.errors import InvalidParameter

if TYPE_CHECKING:
    import faiss

EFFORT = 40  # vectors that a walk through the graph looks at for each candidate that it keeps, roughly
SCANNED = 512  # rows scored at a time: they and their scores stay in cache
REBUILD_ABOVE = 0.5  # share of removed slots at which the graph is built anew


class HNSWIndex(FaissIndex):
    """Approximate search; the exact twin is `FlatIndex`.

    `M`: links per vector (twice as many on the lowest level). `ef_construction`: candidates kept while building.
    `ef_search`: candidates kept while searching, also a parameter of `search`; never less than k. None chooses from
    n: 96 up to 100,000 vectors, 160 above. Where a filter or removals leave a share s of the vectors, 1 / s times
    as many are kept.
    The build runs on one thread so that the same vectors always give the same graph.
    A search that finds fewer than k allowed rows is answered by an exact scan, and so is one that allows so few that
    scanning them takes less time than the graph: a third of 40,000 vectors, a twelfth of a million.
    """

    kind = "hnsw"
    search_knobs: ClassVar = {"ef_search": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {"ef_search": (1024, 768, 512, 384, 256, 192, 128, 96, 64, 48, 32, 24, 16)}

    def __init__(
        self, *, metric: str = "ip", M: int = 32, ef_construction: int = 200, ef_search: int | None = None
    ) -> None:
        super().__init__(metric=metric)
        check_parameters(M, ef_construction, ef_search)
        self.M, self.ef_construction, self.ef_search = M, ef_construction, ef_search

    def parameters(self) -> dict[str, Any]:
        return {
            "metric": self.metric, "M": self.M,
            "ef_construction": self.ef_construction, "ef_search": self.ef_search,
        }  # fmt: skip

    def _chosen(self) -> dict[str, Any]:
        return {"ef_search": self._ef(self.ef_search)}

    def _ef(self, ef_search: int | None) -> int:
        return ef_search if ef_search is not None else usual_ef(len(self))

    def _make(self, d: int) -> faiss.Index:
        import faiss

        index = faiss.IndexHNSWFlat(d, self.M, faiss_metric(self.metric))
        index.hnsw.efConstruction = self.ef_construction
        return index

    def _search_parameters(self, selector: faiss.IDSelector | None, **knobs: Any) -> faiss.SearchParameters:
        import faiss

        return faiss.SearchParametersHNSW(efSearch=knobs["ef"], sel=selector)

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = None if allow is None else np.flatnonzero(allow)
        exist = min(k, len(self) if rows is None else len(rows))
        assert self._faiss is not None
        # excluded and removed vectors take up places among the candidates
        answering = len(self) if rows is None else len(rows)
        ef = math.ceil(max(k, self._ef(knobs["ef_search"])) * self._faiss.ntotal / answering)
        if rows is not None and len(rows) <= EFFORT * ef:
            return self._scan(queries, k, rows, threads)
        scores, ids = self._search_slots(queries, k, rows, threads, ef=ef)
        short = np.flatnonzero((ids >= 0).sum(axis=1) < exist)
        if len(short):
            scores[short], ids[short] = self._scan(queries[short], k, rows, threads)
        return scores, ids

    @property
    def vectors(self) -> np.ndarray:
        """The stored vectors float32 (n, d), by row, normalised if the metric is "cosine". Copied at each call."""
        return np.empty((0, self.d or 0), np.float32) if self._faiss is None else self._stored()[self._slots]

    def _stored(self) -> np.ndarray:
        """float32 (slots, d), by slot."""
        import faiss

        assert self._faiss is not None
        storage = faiss.downcast_index(self._faiss.storage)
        return faiss.rev_swig_ptr(storage.get_xb(), storage.ntotal * storage.d).reshape(storage.ntotal, storage.d)

    def _scan(
        self, queries: np.ndarray, k: int, rows: np.ndarray | None, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact answers over the given rows."""
        slots, ids = (self._slots, self._ids) if rows is None else (self._slots[rows], self._ids[rows])
        return scan(self._stored(), slots, ids, queries, k, self.metric, threads)

    def _remove(self, keep: np.ndarray) -> None:
        super()._remove(keep)
        assert self._faiss is not None
        if len(self._slots) < REBUILD_ABOVE * self._faiss.ntotal:
            vectors = self._stored()[self._slots]
            self._faiss, self._slots = None, np.empty(0, np.int64)
            if len(vectors):
                self._add(vectors, self._ids[keep])


def check_parameters(M: Any, ef_construction: Any, ef_search: Any) -> None:
    """Those of every HNSW graph, or `InvalidParameter`."""
    for name, value, least in (("M", M, 2), ("ef_construction", ef_construction, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InvalidParameter(f"{name} is {value!r}; it must be an integer of at least {least}")
    if not HNSWIndex.search_knobs["ef_search"](ef_search):
        raise InvalidParameter(f"ef_search is {ef_search!r}; it must be an integer of at least 1, or None")


def usual_ef(n: int) -> int:
    """Candidates of a search among n vectors that says nothing of them."""
    return 96 if n <= 100_000 else 160


def scan(
    stored: np.ndarray, slots: np.ndarray, ids: np.ndarray, queries: np.ndarray, k: int, metric: str, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exact scores and ids (nq, k), ranked, of the vectors at `slots` of `stored`, whose ids are `ids`.

    `stored` float32 or float16 (any, d). Stored vectors and queries are normalised already for cosine.
    """
    from indexes.kernels import exact, topk

    numbers = as_numbers(stored)
    metric = "ip" if metric == "cosine" else metric
    heap_scores, heap_ids = topk.empty_heaps(len(queries), k)
    for start in range(0, len(queries), QUERY_BATCH):
        batch = slice(start, start + QUERY_BATCH)
        asked = queries[batch]
        for first in range(0, len(slots), SCANNED):
            some = slots[first : first + SCANNED]
            if len(asked) <= FEW:  # not worth a copy of the vectors: a third of the time
                scores = np.empty((len(asked), len(some)), np.float32)
                exact.chosen(numbers, asked, np.tile(some, (len(asked), 1)), metric == "l2", scores)
            else:
                scores = similarities(asked, stored[some], metric, threads)
            topk.push_rows(scores, ids[first : first + SCANNED], heap_scores[batch], heap_ids[batch])
    topk.sort_heaps(heap_scores, heap_ids)
    return heap_scores, heap_ids
