"""HNSW (Malkov and Yashunin, 2018) by hnswlib and by usearch, with parameters and defaults of `HNSWIndex`."""

from __future__ import annotations

import struct
import threading
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from indexes.dense.hnsw import HNSWIndex, check_parameters, usual_ef
from indexes.dense.library_base import LibraryIndex


class LibraryHNSW(LibraryIndex):
    """Base of the two: `M`, `ef_construction` and `ef_search` as in `HNSWIndex`."""

    search_knobs: ClassVar = HNSWIndex.search_knobs
    search_ladders: ClassVar = HNSWIndex.search_ladders

    def __init__(
        self,
        *,
        metric: str = "ip",
        M: int = 32,
        ef_construction: int = 200,
        ef_search: int | None = None,
        dtype: str = "float16",
    ) -> None:
        super().__init__(metric=metric, dtype=dtype)
        check_parameters(M, ef_construction, ef_search)
        self.M, self.ef_construction, self.ef_search = M, ef_construction, ef_search

    def parameters(self) -> dict[str, Any]:
        return {
            "metric": self.metric, "M": self.M, "ef_construction": self.ef_construction,
            "ef_search": self.ef_search, "dtype": self.dtype,
        }  # fmt: skip

    def _chosen(self) -> dict[str, Any]:
        return {"ef_search": self._beam(ef_search=self.ef_search)}

    def _beam(self, **knobs: Any) -> int:
        ef: int | None = knobs["ef_search"]
        return ef if ef is not None else usual_ef(len(self))


class HnswlibIndex(LibraryHNSW):
    """Approximate search by hnswlib (pip install hnswlib); the exact twin is `FlatIndex`.

    `metric`, `M`, `ef_construction`, `ef_search`: as in `HNSWIndex`, also under filters and after removals, which
    exclude candidates after the walk; hnswlib's own filter is a function of Python, called at every vector met.
    `dtype`: "float16" or "float32", of the vectors kept beside the graph, for which scores are exact. The graph holds
    them as float32, and hands them out as lists of Python only, too slow to score candidates.
    The build runs on one thread: on more, the graph depends on their timing.
    """

    kind = "hnswlib"
    library = package = "hnswlib"

    def _extend(self, library: ModuleType, vectors: np.ndarray) -> None:
        n, d = vectors.shape
        if self._graph is None:
            self._graph = library.Index(self._space(), d)
            self._graph.init_index(n, M=self.M, ef_construction=self.ef_construction)
            self._graph.set_ef(1)  # as many candidates are kept as are asked for
        if n > self._graph.get_max_elements():
            self._graph.resize_index(max(n, self._linked + self._linked // 2))
        self._graph.add_items(self._scaled(vectors[self._linked :]), np.arange(self._linked, n), num_threads=1)
        self._linked = n

    def _space(self) -> str:
        return "l2" if self.metric == "l2" else "ip"

    def _candidates(self, queries: np.ndarray, count: int, threads: int) -> np.ndarray:
        try:
            found: np.ndarray = self._graph.knn_query(queries, count, num_threads=min(threads, len(queries)))[0]
            return found.view(np.int64)
        except RuntimeError:  # a query met fewer; which one is not said
            if len(queries) == 1:
                return np.full((1, count), -1)
            return np.concatenate([self._candidates(query[None], count, 1) for query in queries])

    def _write(self, path: str) -> None:
        self._graph.save_index(path)

    def _bytes(self) -> int:
        return int(self._graph.index_file_size())

    def _read(self, library: ModuleType, path: str) -> tuple[int, int]:
        with open(path, "rb") as file:  # hnswlib takes the width of its vectors on trust
            labels, vectors = struct.unpack("@6N", file.read(6 * struct.calcsize("@N")))[4:]
        width = (labels - vectors) // 4
        if width != self.d:
            return width, self._linked
        self._graph = library.Index(self._space(), width)
        self._graph.load_index(path)
        self._graph.set_ef(1)
        return width, self._graph.get_current_count()


class UsearchIndex(LibraryHNSW):
    """Approximate search by usearch (pip install usearch); the exact twin is `FlatIndex`.

    `metric`, `M`, `ef_construction`, `ef_search`: as in `HNSWIndex`, also under filters and after removals.
    `dtype`: "float16" or "float32", of the vectors in the graph, and of those kept beside it, by which candidates are
    ranked again: scores are exact for what is stored.
    The build runs on one thread: on more, the graph depends on their timing. Searches of several callers wait for each
    other: they would share the memory of usearch's threads.
    """

    kind = "usearch"
    library = "usearch.index"
    package = "usearch"
    _turn: threading.Lock

    def _empty(self, library: ModuleType, d: int) -> Any:
        self._turn = threading.Lock()
        return library.Index(
            ndim=d, metric="l2sq" if self.metric == "l2" else "ip", dtype="f16" if self.dtype == "float16" else "f32",
            connectivity=self.M, expansion_add=self.ef_construction, expansion_search=1, enable_key_lookups=False,
        )  # fmt: skip

    def _extend(self, library: ModuleType, vectors: np.ndarray) -> None:
        n, d = vectors.shape
        if self._graph is None:
            self._graph = self._empty(library, d)
        self._graph.add(np.arange(self._linked, n), self._scaled(vectors[self._linked :]), threads=1)
        self._linked = n

    def _candidates(self, queries: np.ndarray, count: int, threads: int) -> np.ndarray:
        with self._turn:
            matches = self._graph.search(queries, count, threads=min(threads, len(queries)))
        keys = matches.keys.reshape(len(queries), -1)
        found = np.full((len(queries), count), -1)
        found[:, : keys.shape[1]] = keys
        if len(queries) > 1:  # a single answer is as long as what was found
            found[np.arange(count) >= matches.counts[:, None]] = -1
        return found

    def _write(self, path: str) -> None:
        self._graph.save(path)

    def _bytes(self) -> int:
        return int(self._graph.serialized_length)

    def _read(self, library: ModuleType, path: str) -> tuple[int, int]:
        self._graph = self._empty(library, self.d or 0)
        self._graph.load(path)
        self._graph.expansion_search = 1
        return self._graph.ndim, len(self._graph)
