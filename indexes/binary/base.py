"""What indexes over packed binary codes share: the checks of codes, the order of rows, and search by radius."""

from __future__ import annotations

import functools
import importlib
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexes.base import BUILDING, Index, available_threads, in_chunks
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors

LONGEST = 8191  # bytes of a code: distances fit 16 bits
ALL = np.empty(0, np.bool_)  # the filter that lets every document pass


@dataclass(frozen=True)
class Within:
    """All rows within a radius of each query: query i's at `starts[i]:starts[i + 1]`, by distance, ties by smaller id.

    `starts` int64 (nq + 1,), `distances` int32, `ids` int64.
    """

    starts: np.ndarray
    distances: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """For each query its (id, distance) pairs, nearest first."""
        for query in range(len(self)):
            part = slice(self.starts[query], self.starts[query + 1])
            yield list(zip(self.ids[part].tolist(), self.distances[part].tolist(), strict=True))


class BinaryIndex(Index):
    """Base of the indexes over packed codes: uint8 (n, nbytes), as `numpy.packbits` makes them; up to 8,191 bytes.

    The score is minus the Hamming distance. Codes that are added wait for the next search or save. Structures hold the
    documents in the order of their ids (a *place*, in that order), so that the smaller id comes first among equals.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nbytes: int | None = None
        self._clear()

    def search_radius(
        self, queries: Any, radius: int, *, allow: np.ndarray | None = None, threads: int | None = None
    ) -> Within:
        """All rows whose Hamming distance from a query is at most `radius` (bits, >= 0).

        `queries`, `allow` and `threads` as in `search`. Raises `InvalidParameter`, `InvalidVectors`, `InvalidAllow`.
        """
        if not isinstance(radius, int | np.integer) or radius < 0:
            raise InvalidParameter(f"radius is {radius!r}; it must be an integer of at least 0")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InvalidParameter(f"threads is {threads!r}; it must be an integer of at least 1, or None")
        checked = self._check_queries(queries)
        bitmap = None if allow is None else self._check_allow(allow)
        starts = np.zeros(len(checked) + 1, np.int64)
        if not len(checked) or not len(self):
            return Within(starts, np.empty(0, np.int32), np.empty(0, np.int64))
        with BUILDING:
            words, allowed = self._prepare(checked, bitmap)
        radius = min(int(radius), checked.shape[1] * 8)
        workers = available_threads() if threads is None else threads
        lengths, distances, places = self._within(words, radius, allowed, workers)
        np.cumsum(lengths, out=starts[1:])
        return Within(starts, distances, self.ids_at(places))

    def nearest(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """What `search` finds, for an index that goes on from here: scores and places (nq, k), ranked.

        A place is that of a document in the order of ids, or -1. Arguments are those of `search`; knobs are checked.
        """
        words, allowed = self._prepare(queries, allow)
        return self._nearest(words, k, allowed, threads, **self._settings(knobs))

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        """The ids of documents by their places; of the place -1, any id."""
        return self._ids[self.rows_at(places)]

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        """The rows of documents by their places; of the place -1, any row."""
        return places if self._order is None else self._order[places]

    @property
    def codes(self) -> np.ndarray:
        """The stored codes, uint8 (n, nbytes), by row."""
        if not self._packed:
            return np.concatenate([np.empty((0, self.nbytes or 1), np.uint8), *self._pending])
        packed = self._unpack()
        by_row = packed if self._order is None else np.empty_like(packed)
        if self._order is not None:
            by_row[self._order] = packed
        return np.concatenate([by_row, *self._pending])

    # -- what a kind of binary index provides ----------------------------------------------------------------------

    @abstractmethod
    def _pack(self, codes: np.ndarray) -> None:
        """Build the structures of the codes (n, nbytes); they are in the order of their ids."""

    @abstractmethod
    def _unpack(self) -> np.ndarray:
        """The codes that were packed last."""

    @abstractmethod
    def _nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 and places int64 (nq, k), -inf and -1 beyond the last.

        `queries` uint64 (nq, W), `allowed` bool (n,) over places, or (0,) for all.
        """

    @abstractmethod
    def _within(
        self, queries: np.ndarray, radius: int, allowed: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How many each query has, int64 (nq,); in turn their distances, int32, and places, int64, ranked."""

    # -- the contract ----------------------------------------------------------------------------------------------

    def _check_vectors(self, vectors: Any) -> np.ndarray:
        array = np.asarray(vectors)
        if array.ndim == 1:
            array = array[None, :]
        if array.dtype != np.uint8:
            raise InvalidVectors(f"codes are {array.dtype}; they must be uint8, eight bits a byte (numpy.packbits)")
        if array.ndim != 2 or not 1 <= array.shape[1] <= LONGEST:
            raise InvalidVectors(f"codes have shape {array.shape}; they must be (n, nbytes), 1 <= nbytes <= {LONGEST}")
        if self.nbytes is not None and array.shape[1] != self.nbytes:
            raise InvalidVectors(f"codes have {array.shape[1]} bytes; those of this index have {self.nbytes}")
        return array

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        self.nbytes = vectors.shape[1]
        self._pending.append(vectors.copy())

    def _remove(self, keep: np.ndarray) -> None:
        kept = self.codes[keep]
        self._clear()
        self._pending.append(kept)

    def _clear(self) -> None:
        self._pending: list[np.ndarray] = []
        self._packed = 0  # documents in the structures
        self._order: np.ndarray | None = None  # row of each place in them, or None where they are the same

    def _build(self) -> None:
        if self._pending or not self._packed:
            codes, order = self.codes, id_order(self._ids)
            self._pending, self._order, self._packed = [], order, len(codes)
            try:
                self._pack(codes if order is None else codes[order])
            except BaseException:  # memory
                self._clear()
                self._pending = [codes]
                raise

    def _prepare(self, queries: np.ndarray, allow: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Queries as words, and the filter in the order of ids."""
        self._build()
        words = kernels("hamming").as_words(queries)
        if allow is None:
            return words, ALL
        return words, allow if self._order is None else allow[self._order]

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        words, allowed = self._prepare(queries, allow)
        scores, places = self._nearest(words, k, allowed, threads, **knobs)
        ids = self.ids_at(places)
        if allow is not None:  # without a filter all k exist
            ids[places < 0] = -1
        return scores, ids

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        self._build()
        return {"nbytes": self.nbytes}, self._arrays(), {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.nbytes, self._packed, self._order = state["nbytes"], len(self), id_order(self._ids)
        if len(self) and not (isinstance(self.nbytes, int) and 1 <= self.nbytes <= LONGEST):
            raise CorruptIndex(f"nbytes is {self.nbytes!r}; it must be an integer from 1 to {LONGEST}")
        self._open(arrays)

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """The built structures, to be saved."""

    @abstractmethod
    def _open(self, arrays: dict[str, np.ndarray]) -> None:
        """Take saved structures, or `CorruptIndex`."""

    def _shape(self) -> dict[str, Any]:
        return {"nbytes": self.nbytes}


@functools.cache
def kernels(name: str) -> Any:
    """A module of `indexes.kernels`, once it is needed. For every search an import statement would take 10 us more."""
    return importlib.import_module(f"indexes.kernels.{name}")


def id_order(ids: np.ndarray) -> np.ndarray | None:
    """The rows (n,) in the order of their ids, or None when they are in it already."""
    return None if (ids[1:] > ids[:-1]).all() else np.argsort(ids)


def in_shares(work: Callable[[int, int], None], nq: int, threads: int) -> None:
    """As `in_chunks`, with one part of the queries per thread: those of a part share what a scan reads."""
    shares = min(nq, threads)
    if shares <= 1:
        work(0, nq)
        return
    bounds = [nq * share // shares for share in range(shares + 1)]
    in_chunks(lambda a, b: work(bounds[a], bounds[b]), shares, threads)


def gather(search: Callable[[int, int], tuple[np.ndarray, ...]], nq: int, threads: int) -> list[np.ndarray]:
    """The arrays that `search(start, stop)` returns for parts of the queries, each put together in their order."""
    parts: dict[int, tuple[np.ndarray, ...]] = {}

    def work(a: int, b: int) -> None:
        parts[a] = search(a, b)

    in_chunks(work, nq, threads)
    return [np.concatenate(column) for column in zip(*(parts[a] for a in sorted(parts)), strict=True)]
