"""What the indexes built on a graph of another library share: deletion, filters, exact scores, files.

    query --> the library's graph: candidates --> vectors kept here: exact scores, the best k

Vectors are numbered by *slot*, in the order in which they were added; slots of removed vectors stay in the graph, and
are no answers.
"""

from __future__ import annotations

import errno
import importlib
import math
import os
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from indexes.base import in_chunks
from indexes.dense.base import DenseIndex
from indexes.dense.hnsw import EFFORT, REBUILD_ABOVE, scan
from indexes.dense.store import DTYPES, VectorStore, as_numbers, ask_disk
from indexes.errors import CorruptIndex, InvalidParameter, MissingLibrary

LARGEST = {"float16": 60_000.0, "float32": 1e17}  # number that is given to a graph: sums of squares stay finite


class LibraryIndex(DenseIndex):
    """Base of the indexes that hold a graph of another library, and the vectors beside it, as `dtype`.

    What is asked of a library is little: candidates, of all slots, without a filter. As many more are asked for as a
    filter or removals exclude, since the libraries' own filters are callbacks of Python (hnswlib) or none.
    """

    library: ClassVar[str]  # what is imported
    package: ClassVar[str]  # what is installed

    def __init__(self, *, metric: str, dtype: str) -> None:
        super().__init__(metric=metric)
        if dtype not in DTYPES:
            raise InvalidParameter(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        self.dtype = dtype
        self._store = VectorStore(dtype, "dtype='float32'")
        self._graph: Any = None
        self._linked = 0  # slots that the graph holds, the first ones; the others are candidates of every search
        self._scale = 1.0
        self._slots = np.empty(0, np.int64)  # the slot of each row
        self._answers: np.ndarray | None = None  # the id of each slot, -1 for removed ones

    # -- what a library provides ---------------------------------------------------------------------------------------

    @abstractmethod
    def _extend(self, library: ModuleType, vectors: np.ndarray) -> None:
        """Link those of `vectors` (slots, d), as they are stored, that are not linked, or leave them for later.

        Sets `_graph` and `_linked`. The graph takes them as `_scaled` returns them.
        """

    @abstractmethod
    def _candidates(self, queries: np.ndarray, count: int, threads: int) -> np.ndarray:
        """Slots (nq, count) that the graph finds, -1 where it finds fewer. `count` <= `_linked`."""

    @abstractmethod
    def _write(self, path: str) -> None:
        """The graph into a file: the same bytes for the same graph."""

    @abstractmethod
    def _bytes(self) -> int:
        """Of that file."""

    @abstractmethod
    def _read(self, library: ModuleType, path: str) -> tuple[int, int]:
        """Set `_graph` from a file; its d and number of slots. Anything that is raised means a corrupt file."""

    @abstractmethod
    def _beam(self, **knobs: Any) -> int:
        """Candidates for k = 1 where nothing is excluded."""

    # -- adding and removing -------------------------------------------------------------------------------------------

    def _library(self) -> ModuleType:
        try:
            return importlib.import_module(self.library)
        except ImportError as problem:
            name = type(self).__name__
            raise MissingLibrary(f"{name} needs {self.package} ({problem}): pip install {self.package}") from problem

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        library, slots, before = self._library(), len(self._store.vectors(0)), (self._slots, self.d)
        self._store.add(vectors)
        self._slots = np.concatenate([self._slots, np.arange(slots, slots + len(vectors))])
        self.d, self._answers = vectors.shape[1], None
        if self._graph is None:
            self._scale = 1.0 if self.metric == "cosine" else _scale(vectors)
        try:
            self._extend(library, self._store.vectors(self.d))
        except BaseException:
            self._store.keep(np.arange(slots + len(vectors)) < slots)
            self._slots, self.d = before
            raise

    def _remove(self, keep: np.ndarray) -> None:
        self._slots, self._answers = self._slots[keep], None
        stored = self._store.vectors(0)
        if len(self._slots) >= REBUILD_ABOVE * len(stored):
            return
        vectors, ids = stored[self._slots].astype(np.float32), self._ids[keep]
        self._store = VectorStore(self.dtype, "dtype='float32'")
        self._graph, self._linked, self._slots = None, 0, np.empty(0, np.int64)
        if len(ids):
            self._add(vectors, ids)

    def _scaled(self, vectors: np.ndarray) -> np.ndarray:
        """float32, as the graph holds them: hnswlib and usearch compute 1 - x.y, in which small products vanish."""
        with np.errstate(over="ignore"):
            scaled = vectors.astype(np.float32) * np.float32(self._scale)
        return scaled.clip(-LARGEST[self.dtype], LARGEST[self.dtype])

    # -- searching -----------------------------------------------------------------------------------------------------

    @property
    def vectors(self) -> np.ndarray:
        """The stored vectors (n, d) in `dtype`, by row, normalised if the metric is "cosine". Copied at each call."""
        return self._store.vectors(self.d or 0)[self._slots]

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import candidates

        rows = None if allow is None else np.flatnonzero(allow)
        stored = self._store.vectors(self.d or 0)
        slots, answering = len(stored), len(self) if rows is None else len(rows)
        count = min(self._linked, math.ceil(max(k, self._beam(**knobs)) * slots / answering))
        if answering <= EFFORT * count or not count:
            return self._scan(queries, k, rows, threads)
        answers = self._prepared()
        if rows is not None:
            answers = np.full(slots, -1)
            answers[self._slots[rows]] = self._ids[rows]
        found = self._candidates(self._asked(queries), count, threads)
        ask_disk(stored, found)
        scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        numbers, l2 = as_numbers(stored), self.metric == "l2"

        def rank(a: int, b: int) -> None:
            candidates.rank(numbers, queries[a:b], found[a:b], self._linked, answers, l2, scores[a:b], ids[a:b])

        in_chunks(rank, len(queries), threads)
        if ids[:, -1].min() < 0:
            short = np.flatnonzero(ids[:, -1] < 0)
            scores[short], ids[short] = self._scan(queries[short], k, rows, threads)
        return scores, ids

    def _prepared(self) -> np.ndarray:
        if self._answers is None:
            answers = np.full(len(self._store.vectors(0)), -1)
            answers[self._slots] = self._ids
            self._answers = answers
        return self._answers

    def _asked(self, queries: np.ndarray) -> np.ndarray:
        """The queries as the graph takes them: their lengths do not matter to inner products."""
        if self.metric == "cosine":
            return queries
        if self.metric == "l2":
            return self._scaled(queries)
        return queries / np.maximum(np.abs(queries).max(axis=1, keepdims=True), np.float32(1e-38))

    def _scan(
        self, queries: np.ndarray, k: int, rows: np.ndarray | None, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact answers over the given rows."""
        slots, ids = (self._slots, self._ids) if rows is None else (self._slots[rows], self._ids[rows])
        return scan(self._store.vectors(self.d or 0), slots, ids, queries, k, self.metric, threads)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _part(self) -> str:
        return f"index.{self.kind}"

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        def write(path: str) -> None:
            self._write(path)
            if os.path.getsize(path) != self._bytes():  # the libraries say nothing of a full disk
                raise OSError(errno.ENOSPC, f"{self.kind} wrote less than the {self._bytes()} bytes of its graph", path)

        arrays = {"vectors": self._store.vectors(self.d or 0), "slots": self._slots}
        state = {"d": self.d, "linked": self._linked, "scale": self._scale}
        return state, arrays, {} if self._graph is None else {self._part(): write}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.d, self._linked, self._scale, self._slots = state["d"], state["linked"], state["scale"], arrays["slots"]
        n, slots = len(arrays["vectors"]), self._slots
        self._store.open(arrays["vectors"], n, self.d or 0)
        if slots.shape != self._ids.shape or slots.dtype != np.int64:
            raise CorruptIndex(f"slots are {slots.dtype} {slots.shape}, ids {self._ids.shape}; each id must have one")
        if len(slots) and not (slots[0] >= 0 and slots[-1] < n and (np.diff(slots) > 0).all()):
            raise CorruptIndex(f"slots must ascend from 0 to {n - 1} at most")
        if not (isinstance(self._linked, int) and 0 <= self._linked <= n and 0 < self._scale < math.inf):
            raise CorruptIndex(f"linked is {self._linked}, scale {self._scale}, for {n} vectors")
        if self._part() not in foreign:
            if self._linked:
                raise CorruptIndex(f"the header names no {self._part()}, yet {self._linked} vectors are linked")
            return
        path, library = foreign[self._part()], self._library()
        try:
            seen = self._read(library, str(path))
        except Exception as problem:  # each library has errors of its own
            raise CorruptIndex(f"{path}: {self.kind} cannot read it ({problem})") from problem
        if seen != (self.d, self._linked):
            raise CorruptIndex(f"{path}: holds d={seen[0]}, n={seen[1]}; the header says {self.d}, {self._linked}")

    def _foreign_bytes(self) -> dict[str, int]:
        return {} if self._graph is None else {self._part(): self._bytes()}


def _scale(vectors: np.ndarray) -> float:
    """A power of two, so that nothing is rounded, with which the longest of the vectors is about 1 long."""
    longest = math.sqrt(float(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64).max()))
    return 2.0 ** max(-126, min(126, -round(math.log2(longest)))) if longest > 0 else 1.0
