"""Vectors kept as float32, float16 or 8-bit levels, in memory or on disk, some or all of which an index scores."""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

from indexes.errors import CorruptIndex, InvalidVectors

DTYPES: dict[str, np.dtype] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}
LEVELS = "lvq8"
KEPT = (*DTYPES, LEVELS)
BOUNDS = 8  # bytes before the levels of a vector: its smallest number and its step, float32
LINE = 64  # bytes of memory that are read together


class GrowingRows:
    """An array by row, to which rows are appended: it grows by half, so that few additions copy what is there."""

    def __init__(self) -> None:
        self._whole, self._count = np.empty((0, 0)), 0

    def __len__(self) -> int:
        return self._count

    def append(self, rows: np.ndarray) -> None:
        """Rows (m, width), of the width and dtype of those before; the first are taken as they are, not copied."""
        if not self._count:
            self.open(rows)
            return
        count = self._count + len(rows)
        if count > len(self._whole):
            larger = aligned((max(count, self._count + self._count // 2), rows.shape[1]), rows.dtype)
            larger[: self._count] = self.all()
            self._whole = larger
        self._whole[self._count : count] = rows
        self._count = count

    def all(self) -> np.ndarray:
        """(n, width); (0, 0) where nothing was appended yet."""
        return self._whole[: self._count]

    def open(self, rows: np.ndarray) -> None:
        """Take an array, not copied, instead of what is there."""
        self._whole, self._count = rows, len(rows)


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array, not filled, that begins where a line of memory does: `np.empty` promises 16 bytes only."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    whole = np.empty(size + LINE, np.uint8)
    start = -whole.ctypes.data % LINE
    return whole[start : start + size].view(dtype).reshape(shape)


class VectorStore:
    """Vectors (n, d) by row. `kept`: "float32", "float16", or "lvq8" for a byte a number and eight a vector.

    "lvq8" is LVQ with 8 bits and without a mean (Aguerrebere et al., VLDB 2023): each number becomes the nearest of 256
    levels from the smallest to the largest of its vector. `instead`: what to use for numbers beyond float16.
    """

    def __init__(self, kept: str, instead: str) -> None:
        self.dtype, self.instead = DTYPES.get(kept, np.dtype(np.uint8)), instead
        self._rows = GrowingRows()

    def add(self, vectors: np.ndarray) -> None:
        """Append float32 (n, d). Raises `InvalidVectors` for numbers beyond float16; nothing is appended then."""
        if self.dtype == np.uint8:
            self._rows.append(in_levels(vectors))
            return
        with np.errstate(over="ignore"):
            stored = vectors.astype(self.dtype)
        if self.dtype == np.float16 and not np.isfinite(stored).all():
            raise InvalidVectors(f"a vector holds a number beyond float16's 65,504; use {self.instead} or scale it")
        self._rows.append(stored)

    def keep(self, rows: np.ndarray) -> None:
        """Only the rows where bool (n,) is True."""
        self._rows.open(self.stored(0)[rows])

    def stored(self, d: int) -> np.ndarray:
        """All as they are kept: (n, d) of float32 or float16, or of levels what `in_levels` makes."""
        return self._rows.all() if len(self._rows) else np.empty((0, self._width(d)), self.dtype)

    def vectors(self, d: int) -> np.ndarray:
        """All as numbers (n, d): float16 as they are kept, else float32."""
        stored = self.stored(d)
        return of_levels(stored, d) if self.dtype == np.uint8 else stored

    def at(self, rows: np.ndarray, d: int) -> np.ndarray:
        """The vectors float32 (m, d) at rows int64 (m,)."""
        some = self.stored(d)[rows]
        return of_levels(some, d) if self.dtype == np.uint8 else some.astype(np.float32, copy=False)

    def open(self, vectors: np.ndarray, n: int, d: int) -> None:
        """Take a saved array, or `CorruptIndex`."""
        expected = n, self._width(d)
        if vectors.shape != expected or vectors.dtype != self.dtype:
            raise CorruptIndex(f"vectors are {vectors.dtype} {vectors.shape}, not {self.dtype} {expected}")
        self._rows.open(vectors)

    def _width(self, d: int) -> int:
        return BOUNDS + -(-d // 4) * 4 if self.dtype == np.uint8 else d

    def scores(self, queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
        """Exact scores float32 (nq, m) of queries float32 (nq, d) with vectors at `rows` int64 (nq, m), -1 for none."""
        from indexes.kernels import exact

        stored = self.stored(queries.shape[1])
        ask_disk(stored, rows)
        scores = np.full(rows.shape, -np.inf, np.float32)
        exact.chosen(as_numbers(stored), queries, rows, metric == "l2", scores)
        return scores


def as_numbers(stored: np.ndarray) -> np.ndarray:
    """Stored vectors as kernels take them: float32, the bits, uint16, of float16, or levels as they are."""
    return stored.view(np.uint16) if stored.dtype == np.float16 else stored


def in_levels(vectors: np.ndarray) -> np.ndarray:
    """Levels of float32 (n, d): uint8 (n, 8 + d, and what makes that a multiple of 4), the two bounds first."""
    n, d = vectors.shape
    rows = aligned((n, BOUNDS + -(-d // 4) * 4), np.uint8)
    rows[:, BOUNDS + d :] = 0
    for start in range(0, n, 4096):
        some = vectors[start : start + 4096]
        lower = some.min(axis=1, keepdims=True)
        step = (some.max(axis=1, keepdims=True) - lower) / np.float32(255)
        levels = np.rint((some - lower) / np.where(step > 0, step, 1))
        part = rows[start : start + 4096]
        part[:, :BOUNDS] = np.concatenate([lower, step], axis=1).view(np.uint8)
        part[:, BOUNDS : BOUNDS + d] = np.minimum(levels, 255)
    return rows


def of_levels(rows: np.ndarray, d: int) -> np.ndarray:
    """The float32 (n, d) that `in_levels` made these rows of, each within half a step."""
    bounds = np.ascontiguousarray(rows[:, :BOUNDS]).view(np.float32)
    return bounds[:, :1] + bounds[:, 1:] * rows[:, BOUNDS : BOUNDS + d].astype(np.float32)


def file_of(array: np.ndarray) -> mmap.mmap | None:
    """The file that the array lies in, or None where it is in memory."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None


def ask_disk(array: np.ndarray, rows: np.ndarray) -> None:
    """Have the pages of these rows (any shape, -1 for none) read at once, where the array is a file mapped to memory.

    Without, each page would be waited for before the next is asked for, and its neighbours read with it: a hundred rows
    of a file of 300 MB that was not in memory took 156 ms and read 250 MB, and now take 1.3 ms and 0.5 MB. Elsewhere
    nothing is done.
    """
    owner = file_of(array)
    if owner is None or not hasattr(mmap, "MADV_WILLNEED"):
        return
    offset = array.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    size, page = array.strides[0], mmap.PAGESIZE
    wanted = np.unique(rows)
    starts = (offset + wanted[wanted >= 0] * size) // page * page
    stops = offset + (wanted[wanted >= 0] + 1) * size
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        owner.madvise(mmap.MADV_WILLNEED, start, stop - start)
