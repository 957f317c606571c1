"""Vectors kept as float32 or float16, in memory or on disk, some or all of which an index scores exactly."""

from __future__ import annotations

import mmap

import numpy as np

from indexes.errors import CorruptIndex, InvalidVectors

DTYPES: dict[str, np.dtype] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


class VectorStore:
    """Vectors (n, d) by row, `dtype` "float32" or "float16". `instead`: what to use for numbers beyond float16."""

    def __init__(self, dtype: str, instead: str) -> None:
        self.dtype, self.instead = DTYPES[dtype], instead
        self._chunks: list[np.ndarray] = []

    def add(self, vectors: np.ndarray) -> None:
        """Append float32 (n, d). Raises `InvalidVectors` for numbers beyond float16; nothing is appended then."""
        with np.errstate(over="ignore"):
            stored = vectors.astype(self.dtype)
        if self.dtype == np.float16 and not np.isfinite(stored).all():
            raise InvalidVectors(f"a vector holds a number beyond float16's 65,504; use {self.instead} or scale it")
        self._chunks.append(stored)

    def keep(self, rows: np.ndarray) -> None:
        """Only the rows where bool (n,) is True."""
        self._chunks = [self.vectors(0)[rows]]

    def vectors(self, d: int) -> np.ndarray:
        """All, (n, d), in the store's dtype."""
        if not self._chunks:
            return np.empty((0, d), self.dtype)
        if len(self._chunks) > 1:
            self._chunks = [np.concatenate(self._chunks)]
        return self._chunks[0]

    def open(self, vectors: np.ndarray, n: int, d: int) -> None:
        """Take a saved array, or `CorruptIndex`."""
        if vectors.shape != (n, d) or vectors.dtype != self.dtype:
            raise CorruptIndex(f"vectors are {vectors.dtype} {vectors.shape}, not {self.dtype} ({n}, {d})")
        self._chunks = [vectors] if n else []

    def scores(self, queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
        """Exact scores float32 (nq, m) of queries float32 (nq, d) with vectors at `rows` int64 (nq, m), -1 for none."""
        from indexes.kernels import exact

        vectors = self.vectors(queries.shape[1])
        ask_disk(vectors, rows)
        numbers = vectors if self.dtype == np.float32 else vectors.view(np.uint16)
        scores = np.full(rows.shape, -np.inf, np.float32)
        exact.chosen(numbers, queries, rows, metric == "l2", scores)
        return scores


def ask_disk(array: np.ndarray, rows: np.ndarray) -> None:
    """Have the pages of these rows (any shape, -1 for none) read at once, where the array is a file mapped to memory.

    Without, each page would be waited for before the next is asked for, and its neighbours read with it: a hundred rows
    of a file of 300 MB that was not in memory took 156 ms and read 250 MB, and now take 1.3 ms and 0.5 MB. Elsewhere
    nothing is done.
    """
    owner = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return
    offset = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    size, page = array.strides[0], mmap.PAGESIZE
    wanted = np.unique(rows)
    starts = (offset + wanted[wanted >= 0] * size) // page * page
    stops = offset + (wanted[wanted >= 0] + 1) * size
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        owner.madvise(mmap.MADV_WILLNEED, start, stop - start)
