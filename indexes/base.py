"""The contract of every index: `fit`, `add`, `search`, `remove`, `save`, `load`, and what they return.

Letters: `n` vectors, `nq` queries, `d` dimensions, `V` vocabulary size, `k` results. A *row* is the position of a
vector among those now in the index, in the order in which they were added; an *id* is the caller's number for it.
"""

from __future__ import annotations

import importlib
import itertools
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from indexes import storage
from indexes.errors import CorruptIndex, InvalidAllow, InvalidIds, InvalidParameter, UnknownParameter, WrongKind

# kind, as saved in a header -> where its class lives; imported only when one is opened
KINDS = {
    "flat": "indexes.dense.flat:FlatIndex",
    "hnsw": "indexes.dense.hnsw:HNSWIndex",
    "hnswlib": "indexes.dense.hnsw_libraries:HnswlibIndex",
    "usearch": "indexes.dense.hnsw_libraries:UsearchIndex",
    "svs": "indexes.dense.svs:SVSIndex",
    "ivfpq": "indexes.dense.ivfpq:IVFPQIndex",
    "ivf": "indexes.dense.ivf:IVFIndex",
    "graph": "indexes.dense.graph:GraphIndex",
    "scan": "indexes.dense.scan:ScanIndex",
    "tenants": "indexes.dense.tenants:TenantIndex",
    "eager": "indexes.sparse.eager:EagerIndex",
    "blockmax": "indexes.sparse.blockmax:BlockMaxIndex",
    "seismic": "indexes.sparse.seismic:SeismicIndex",
    "hamming": "indexes.binary.hamming:HammingIndex",
    "multi-index-hashing": "indexes.binary.multi_index:MultiIndexHashing",
    "binary-ivf": "indexes.binary.ivf:BinaryIVFIndex",
    "two-stage": "indexes.binary.two_stage:TwoStageIndex",
    "recurrent-binary": "indexes.binary.recurrent:RecurrentBinaryIndex",
}

BUILDING = threading.RLock()  # of all indexes: with a lock of its own, none could be copied

Self = TypeVar("Self", bound="Index")


@dataclass(frozen=True)
class Hits:
    """Ranked answers. `scores` float32 (nq, k), higher is better; `ids` int64 (nq, k).

    Each row is ordered by score, ties by the smaller id; places beyond the last answer hold -inf and -1.
    """

    scores: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def padded(self, k: int) -> Hits:
        """With `k` places for each query, at least as many as now."""
        nq, found = self.ids.shape
        if found == k:
            return self
        scores, ids = np.full((nq, k), -np.inf, np.float32), np.full((nq, k), -1, np.int64)
        scores[:, :found], ids[:, :found] = self.scores, self.ids
        return Hits(scores, ids)

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        """For each query its (id, score) pairs, best first, without the padding."""
        for ids, scores in zip(self.ids, self.scores, strict=True):
            count = int((ids >= 0).sum())
            yield list(zip(ids[:count].tolist(), scores[:count].tolist(), strict=True))


class Index(ABC):
    """Base of all indexes. Constructors take keywords and only store them; `fit` learns; `add` stores vectors."""

    kind: ClassVar[str]
    needs_fit: bool = False  # whether `fit` must come before the first `add`
    trained: bool = False  # whether it holds what was learned by training, which `fit` could not learn anew

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int64)
        self._settled = False  # whether a search has built, since rows last changed, what all searches read

    # -- the public verbs ------------------------------------------------------------------------------------------

    def fit(self: Self, vectors: Any) -> Self:
        """Learn what the index needs (centroids, a rotation) from a sample of vectors; here nothing."""
        return self

    def add(self: Self, vectors: Any, ids: Any = None) -> Self:
        """Add vectors (dense (n, d), or scipy sparse (n, V)).

        `ids`: int64 (n,), unique and >= 0; by default the numbers that follow the largest id so far.
        Raises `InvalidVectors`, `InvalidIds`; nothing is added then.
        """
        checked = self._check_vectors(vectors)
        new = self._check_ids(ids, checked.shape[0])
        if len(new):
            self._settled = False
            self._add(checked, new)
            self._ids = np.concatenate([self._ids, new])
        return self

    def search(
        self, queries: Any, k: int = 10, *, allow: np.ndarray | None = None, threads: int | None = None, **knobs: Any
    ) -> Hits:
        """The `k` best rows for each query.

        `queries`: dense (nq, d) or one vector (d,), or scipy sparse (nq, V).
        `allow`: bool (n,) over the rows (aligned with `ids`); rows that are False are never returned, and `k` allowed
        rows are returned whenever they exist.
        `threads`: at most so many at once; default: the cores of this process for a batch. Results do not depend on it.
        `knobs`: search parameters of the kind of index, see `search_knobs`; unknown ones raise `UnknownParameter`.

        Several threads may search at the same time, but not while another adds or removes.
        """
        if not isinstance(k, (int, np.integer)) or k < 1:  # a union would be made at every call
            raise InvalidParameter(f"k is {k!r}; it must be an integer of at least 1")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise InvalidParameter(f"threads is {threads!r}; it must be an integer of at least 1, or None")
        settings = self._settings(knobs)
        checked = self._check_queries(queries)
        bitmap = None if allow is None else self._check_allow(allow)
        nq, found = checked.shape[0], min(int(k), len(self))
        if not (nq and found and (bitmap is None or bitmap.any())):
            return Hits(np.empty((nq, 0), np.float32), np.empty((nq, 0), np.int64)).padded(int(k))
        workers = available_threads() if threads is None else threads
        if self._settled:
            return Hits(*self._search(checked, found, bitmap, workers, **settings)).padded(int(k))
        with BUILDING:  # other callers wait: two that build at once would leave a mix behind
            hits = Hits(*self._search(checked, found, bitmap, workers, **settings))
            self._settled = True
        return hits.padded(int(k))

    def remove(self, ids: Any) -> int:
        """Remove the vectors with these ids; ids that are not there are ignored. Returns how many were removed.

        Raises `InvalidIds` when they are not integers.
        """
        given = np.asarray(ids).reshape(-1)
        if len(given) and not np.issubdtype(given.dtype, np.integer):
            raise InvalidIds(f"ids are {given.dtype}; they must be integers")
        gone = np.isin(self._ids, given.astype(np.int64))
        count = int(gone.sum())
        if count:
            self._settled = False
            self._remove(~gone)
            self._ids = self._ids[~gone]
        return count

    def save(self, path: str | Path) -> None:
        """Save into the folder `path`, atomically: after a crash it holds the old index or the new one."""
        with BUILDING:
            state, arrays, foreign = self._state()
        header = {"kind": self.kind, "n": len(self), "parameters": self.parameters(), "state": state}
        storage.save(path, header, {"ids": self._ids, **arrays}, foreign)

    @classmethod
    def load(cls: type[Self], path: str | Path, mmap: bool = True, *, verify: bool = True) -> Self:
        """Open the index saved in the folder `path`.

        `mmap`: leave the arrays on disk and read pages as they are needed. `verify`: check every file's SHA-256
        first (about a second per GB); sizes, dtypes and shapes are always checked.
        Raises `FileNotFoundError`, `CorruptIndex`, `NewerIndex`, `WrongKind`.
        """
        header = storage.load_header(path)
        kind = header.get("kind")
        if not isinstance(kind, str) or kind not in KINDS:
            raise WrongKind(f"{path}: holds an index of kind {kind!r}; this release knows {', '.join(sorted(KINDS))}")
        module, _, name = KINDS[kind].partition(":")
        actual = getattr(importlib.import_module(module), name)
        if not issubclass(actual, cls):
            raise WrongKind(f"{path}: holds {actual.__name__} (kind {kind!r}), not {cls.__name__}")
        arrays, foreign = storage.load_arrays(path, header, mmap=mmap, verify=verify)
        try:
            index = actual._rebuild(header["parameters"])
            index._ids = arrays.pop("ids")
            if index._ids.dtype != np.int64 or index._ids.shape != (header["n"],):
                raise CorruptIndex(f"{path}: ids are {index._ids.dtype} {index._ids.shape}, not int64 ({header['n']},)")
            index._restore(header["state"], arrays, foreign)
        except CorruptIndex:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
            raise CorruptIndex(f"{path}: the header lacks something or names something unknown: {problem}") from problem
        return index

    def emptied(self: Self) -> Self:
        """A new index with the same parameters, and nothing added or learned but what training gave (`trained`)."""
        return type(self)._rebuild(self.parameters())

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """int64 (n,): the id of each row."""
        return self._ids

    def describe(self) -> dict[str, Any]:
        """Kind, n, width, parameters (those chosen from n included) and bytes per part."""
        with BUILDING:
            _, arrays, _ = self._state()
        parts = {name: int(array.nbytes) for name, array in {"ids": self._ids, **arrays}.items()}
        parts.update(self._foreign_bytes())
        described = {"kind": self.kind, "n": len(self), **self._shape(), **self.parameters(), **self._chosen()}
        return described | {"bytes": sum(parts.values()), "bytes_per_part": parts}

    # -- what a kind of index provides -----------------------------------------------------------------------------

    search_knobs: ClassVar[Mapping[str, Callable[[Any], bool]]] = {}
    """Search parameter -> check of its value. An index keeps the defaults as attributes of the same name."""

    search_ladders: ClassVar[Mapping[str, Sequence[Any]]] = {}
    """Search parameter -> values for `indexes.tune` to try, from the safest (exact, where one is) to the fastest."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The constructor's parameters, as JSON values."""

    @classmethod
    def _rebuild(cls: type[Self], parameters: dict[str, Any]) -> Self:
        return cls(**parameters)

    @abstractmethod
    def _check_vectors(self, vectors: Any) -> Any:
        """Vectors in the canonical form of the index, or `InvalidVectors`."""

    def _check_queries(self, queries: Any) -> Any:
        return self._check_vectors(queries)

    @abstractmethod
    def _add(self, vectors: Any, ids: np.ndarray) -> None: ...

    @abstractmethod
    def _search(
        self, queries: Any, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores and ids (nq, k), ranked and padded. `k` <= n; `allow`, if given, is bool (n,) with a True in it."""

    @abstractmethod
    def _remove(self, keep: np.ndarray) -> None:
        """Keep only the rows where `keep`, bool (n,), is True. `_ids` still holds all rows."""

    @abstractmethod
    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        """What `save` writes: JSON values, arrays, and parts that another library writes."""

    @abstractmethod
    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        """The inverse of `_state`."""

    def _shape(self) -> dict[str, Any]:
        return {}

    def _chosen(self) -> dict[str, Any]:
        return {}

    def _foreign_bytes(self) -> dict[str, int]:
        return {}

    # -- checks that all share -------------------------------------------------------------------------------------

    def _settings(self, knobs: dict[str, Any]) -> dict[str, Any]:
        if not knobs:
            return {name: getattr(self, name) for name in self.search_knobs}
        if not knobs.keys() <= self.search_knobs.keys():
            unknown, known = sorted(set(knobs) - set(self.search_knobs)), ", ".join(self.search_knobs) or "none"
            raise UnknownParameter(f"{', '.join(unknown)}: no search parameter of {self.kind}; it has: {known}")
        for name, value in knobs.items():
            if not self.search_knobs[name](value):
                raise InvalidParameter(f"{name} is {value!r}, outside its allowed values")
        return {name: knobs[name] if name in knobs else getattr(self, name) for name in self.search_knobs}

    def _check_ids(self, ids: Any, count: int) -> np.ndarray:
        if ids is None:
            start = int(self._ids.max()) + 1 if len(self._ids) else 0
            return np.arange(start, start + count, dtype=np.int64)
        given = np.asarray(ids)
        if given.ndim != 1 or len(given) != count:
            raise InvalidIds(f"ids has shape {given.shape}; {count} vectors need ids of shape ({count},)")
        if count and not np.issubdtype(given.dtype, np.integer):
            raise InvalidIds(f"ids are {given.dtype}; they must be integers")
        new = given.astype(np.int64)
        if count and new.min() < 0:
            raise InvalidIds(f"id {new.min()} is negative; ids must be >= 0")
        unique, counts = np.unique(new, return_counts=True)
        if len(unique) != count:
            raise InvalidIds(f"id {unique[counts > 1][0]} is given more than once")
        if len(self._ids) and count and unique[0] <= self._ids.max():
            present = np.isin(unique, self._ids)
            if present.any():
                raise InvalidIds(f"id {unique[present][0]} is in the index already; remove it first")
        return new

    def _check_allow(self, allow: Any) -> np.ndarray:
        bitmap = np.asarray(allow)
        if bitmap.dtype != np.bool_ or bitmap.shape != (len(self),):
            raise InvalidAllow(f"allow is {bitmap.dtype} {bitmap.shape}; it must be bool ({len(self)},), one per row")
        return np.require(bitmap, requirements=["C", "W"])  # kernels are compiled for this layout only


def load(path: str | Path, mmap: bool = True, *, verify: bool = True) -> Index:
    """Open a saved index of any kind. See `Index.load`."""
    return Index.load(path, mmap, verify=verify)


def available_threads() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_chunks(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call `work(start, stop)` over `count` queries, spread over up to `threads` threads (kernels release the GIL)."""
    threads = min(threads, count)
    if threads <= 1:
        work(0, count)
        return
    # more chunks than threads, so that one slow query does not hold up the rest
    bounds = np.linspace(0, count, min(count, threads * 8) + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, int(a), int(b)) for a, b in itertools.pairwise(bounds)]:
            done.result()
