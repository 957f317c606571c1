"""What the indexes built on faiss share: deletion, filters, files, and faiss's threads.

faiss numbers vectors by *slot*, in the order they were added; slots of removed vectors stay, and are excluded
from every search (`HNSWIndex` builds anew when they are many).
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.dense.base import DenseIndex
from indexes.errors import CorruptIndex

if TYPE_CHECKING:
    import faiss


class FaissIndex(DenseIndex):
    """Base of the indexes that hold a faiss index. Cosine is inner product over normalised vectors."""

    def __init__(self, *, metric: str) -> None:
        super().__init__(metric=metric)
        self._faiss: faiss.Index | None = None
        self._slots = np.empty(0, np.int64)  # the slot of each row
        self._mapped = False

    @abstractmethod
    def _make(self, d: int) -> faiss.Index:
        """An empty faiss index for `d` dimensions, or `NotFitted`."""

    @abstractmethod
    def _search_parameters(self, selector: faiss.IDSelector | None, **knobs: Any) -> faiss.SearchParameters: ...

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        if self._faiss is None:
            self._faiss, self._mapped = self._make(vectors.shape[1]), False
            self.d = vectors.shape[1]
        if self._mapped:
            self._faiss, self._mapped = faiss_copy(self._faiss), False  # faiss aborts when a mapped index grows
        first = self._faiss.ntotal
        with faiss_threads(1):  # on several threads the graph would depend on their timing
            self._faiss.add(vectors)
        self._slots = np.concatenate([self._slots, np.arange(first, first + len(vectors))])

    def _remove(self, keep: np.ndarray) -> None:
        self._slots = self._slots[keep]

    def _search_slots(
        self, queries: np.ndarray, k: int, rows: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and ids (nq, k), ranked by our tie rule, of the given rows only (None: all)."""
        import faiss

        from indexes.kernels import topk

        assert self._faiss is not None
        selector = None
        slots = self._slots if rows is None else self._slots[rows]
        if len(slots) < self._faiss.ntotal:
            bitmap = np.zeros(self._faiss.ntotal, np.bool_)
            bitmap[slots] = True
            packed = np.packbits(bitmap, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(packed), faiss.swig_ptr(packed))
        with faiss_threads(min(threads, len(queries))):
            found, found_slots = self._faiss.search(queries, k, params=self._search_parameters(selector, **knobs))
        # slots ascend with the rows; -1, where faiss found fewer than k, is no slot
        found_rows = np.searchsorted(self._slots, np.maximum(found_slots, self._slots[0]))
        ids = np.where(found_slots >= 0, self._ids[found_rows], -1)
        scores = np.ascontiguousarray(-found if self.metric == "l2" else found, np.float32)
        heap_scores, heap_ids = topk.empty_heaps(len(queries), k)
        topk.push_lists(scores, ids, heap_scores, heap_ids)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        def write(path: str) -> None:
            import faiss

            # through a Python file: faiss's own writer says nothing when closing the file fails on a full disk
            with open(path, "wb") as out:
                faiss.write_index(self._faiss, faiss.PyCallbackIOWriter(out.write))

        return {"d": self.d}, {"slots": self._slots}, {"index.faiss": write} if self._faiss is not None else {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.d, self._slots = state["d"], arrays["slots"]
        if self._slots.shape != self._ids.shape:
            raise CorruptIndex(f"slots are {self._slots.shape}, ids {self._ids.shape}; there must be one slot per id")
        if "index.faiss" not in foreign:
            if len(self):
                raise CorruptIndex(f"the header names no index.faiss, yet n is {len(self)}")
            return
        import faiss

        path = foreign["index.faiss"]
        try:
            self._faiss, self._mapped = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), True
        except RuntimeError as problem:
            raise CorruptIndex(f"{path}: faiss cannot read it ({str(problem).splitlines()[0]})") from problem
        if self._faiss.d != self.d or self._faiss.metric_type != faiss_metric(self.metric):
            raise CorruptIndex(f"{path}: holds d={self._faiss.d}, metric {self._faiss.metric_type}; the header differs")
        if len(self) and not 0 <= self._slots.min() <= self._slots.max() < self._faiss.ntotal:
            raise CorruptIndex(f"{path}: holds {self._faiss.ntotal} vectors; slots name others")

    def _foreign_bytes(self) -> dict[str, int]:
        if self._faiss is None:
            return {}
        import faiss

        sizes: list[int] = []  # counted as they go by: a copy of the index could take all the memory there is
        faiss.write_index(self._faiss, faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part))))
        return {"index.faiss": sum(sizes)}


def faiss_metric(metric: str) -> int:
    """faiss's number of our metric."""
    import faiss

    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def faiss_copy(index: faiss.Index) -> faiss.Index:
    """A copy that owns its memory."""
    import faiss

    return faiss.deserialize_index(faiss.serialize_index(index))


@contextlib.contextmanager
def faiss_threads(threads: int) -> Iterator[None]:
    """faiss on so many threads within the block; the caller's setting comes back after it."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
