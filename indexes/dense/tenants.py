"""One index for many tenants, each of which sees vectors of its own: a clustering that is shared, and a list for each.

Jin et al., "Curator: Efficient Indexing for Multi-Tenant Vector Databases" (arXiv:2401.07119, 2024) share a tree of
clusters, and descend it from the best child on. Here the clusters lie side by side, and all in which a tenant has
something are compared with the query: of the 10 nearest of 50,000 vectors in synthetic clusters, 96% lay among the
first 500 that are met so, and 31% among the first 500 below a tree of 32 children per node (of 62,000 sentence
embeddings, 92% and 77%).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from indexes.base import Hits, in_chunks
from indexes.binary.base import id_order
from indexes.clustering import k_means
from indexes.dense.base import DenseIndex
from indexes.dense.store import DTYPES, VectorStore, as_numbers
from indexes.errors import CorruptIndex, InvalidIds, InvalidParameter, NotFitted

Label: TypeAlias = int | str
PER_LIST = 39  # vectors of the sample, at least
FEWEST = 500  # vectors: scoring so many costs little more than choosing among them


class TenantIndex(DenseIndex):
    """Vectors in clusters, searched by each tenant as if the index held the tenant's vectors alone.

    The clusters (k-means, learned by `fit`) and the vectors are there once. A tenant costs 8 bytes for each vector that
    it may see, a list of them cluster by cluster; a search goes through the tenant's own vectors in the clusters whose
    centroids are the nearest to the query. Whatever `allow` leaves is searched the same way. The exact twin is
    `FlatIndex`.

    `metric`: "ip", "cosine" or "l2". `dtype`: "float32", or "float16" for half the bytes and more speed.
    `nlist`: number of clusters; None chooses from the size of the training sample: its square root times 4, at least 39
    training vectors per cluster.
    `candidates`: how many vectors are scored, also a parameter of `search`; never less than k. None chooses 8 sqrt(m)
    for a tenant of m vectors, at least 500. Where there are no more than these and nlist together, all are scored,
    which takes no longer than choosing some, and the answer is exact.
    `seed`: of the k-means runs.
    """

    kind = "tenants"
    needs_fit = True
    search_knobs: ClassVar = {"candidates": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {"candidates": (20_000, 10_000, 5000, 3000, 2000, 1500, 1000, 700, 500, 300, 200, 100)}

    def __init__(
        self,
        *,
        metric: str = "ip",
        dtype: str = "float32",
        nlist: int | None = None,
        candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric)
        if dtype not in DTYPES:
            raise InvalidParameter(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
        if nlist is not None and (not isinstance(nlist, int) or nlist < 1):
            raise InvalidParameter(f"nlist is {nlist!r}; it must be an integer of at least 1, or None")
        if not self.search_knobs["candidates"](candidates):
            raise InvalidParameter(f"candidates is {candidates!r}; it must be an integer of at least 1, or None")
        self.dtype, self.nlist, self.candidates, self.seed = dtype, nlist, candidates, seed
        self._store = VectorStore(dtype, "dtype='float32'")
        self._centroids: np.ndarray | None = None
        self._keys = np.empty(0, np.int64)  # of each row: its cluster << 32 | the row
        self._tenants: dict[Label, Seen] = {}
        self._seen: Seen | None = None  # what a search goes through; None: not made of all rows yet

    def parameters(self) -> dict[str, Any]:
        return {
            "metric": self.metric, "dtype": self.dtype, "nlist": self.nlist, "candidates": self.candidates,
            "seed": self.seed,
        }  # fmt: skip

    def _chosen(self) -> dict[str, Any]:
        return {} if self._centroids is None else {"nlist": len(self._centroids)}

    @property
    def vectors(self) -> np.ndarray:
        """The stored vectors (n, d), in the index's dtype, by row."""
        return self._store.vectors(self.d or 0)

    # -- the public verbs ----------------------------------------------------------------------------------------------

    def fit(self, vectors: Any) -> TenantIndex:
        """Learn the clusters from a sample (n, d). Only an empty index can be fitted.

        Raises `InvalidParameter`, `InvalidVectors`.
        """
        if len(self):
            raise InvalidParameter(f"fit needs an empty index; this one holds {len(self)} vectors")
        before, self.d = self.d, None
        try:
            sample = self._check_vectors(vectors)
        finally:
            self.d = before
        nlist = self.nlist or max(1, min(int(4 * len(sample) ** 0.5), len(sample) // PER_LIST))
        self._centroids, self.d = k_means(sample, nlist, seed=self.seed, iterations=10), sample.shape[1]
        return self

    def add(self, vectors: Any, ids: Any = None, *, tenants: Any = None) -> TenantIndex:
        """Add vectors (n, d), with ids as in every index.

        `tenants`: who may see them, besides those who search everything: one label (int or str) for all of them, or a
        list, tuple or array of n, each a label or several (list, tuple or set). Raises `InvalidVectors`, `InvalidIds`,
        `InvalidParameter`, `NotFitted`; nothing is added then.
        """
        granted = {} if tenants is None else _rows_by_label(tenants, len(np.atleast_2d(np.asarray(vectors))))
        before = len(self)
        super().add(vectors, ids)
        for tenant, rows in granted.items():
            self._grant(before + rows, tenant)
        return self

    def grant(self, ids: Any, tenant: Label) -> int:
        """Let a tenant see the vectors with these ids as well. Returns how many it did not see before.

        Raises `InvalidIds` for ids that are not in the index, `InvalidParameter` for what is no label.
        """
        rows = self._rows_of(ids)
        if (rows < 0).any():
            raise InvalidIds(f"id {np.asarray(ids).reshape(-1)[np.argmin(rows)]} is not in the index")
        return self._grant(rows, _label(tenant))

    def revoke(self, ids: Any, tenant: Label) -> int:
        """Let a tenant no longer see the vectors with these ids; others are ignored. Returns how many it saw before."""
        rows, seen = self._rows_of(ids), self._seen_by(tenant)
        places, there = seen.find(np.unique(self._keys[rows[rows >= 0]]))
        if there.any():
            self._tenants[_label(tenant)] = Seen(np.delete(seen.keys, places[there]))
            if there.sum() == len(seen.keys):
                del self._tenants[_label(tenant)]
        return int(there.sum())

    def search(
        self, queries: Any, k: int = 10, *, allow: np.ndarray | None = None, threads: int | None = None,
        tenant: Label | None = None, **knobs: Any,
    ) -> Hits:  # fmt: skip
        """As in every index, among the vectors that `tenant` may see (None: all vectors).

        A tenant that was never granted anything sees nothing. `allow` is bool (n,) over all rows.
        """
        if tenant is None:
            return super().search(queries, k, allow=allow, threads=threads, **knobs)
        view = copy.copy(self)  # of this search: another thread may search for another tenant
        view._seen = self._seen_by(tenant)
        view._settled = True  # there is nothing else to build
        return super(TenantIndex, view).search(queries, k, allow=allow, threads=threads, **knobs)

    @property
    def tenants(self) -> list[Label]:
        """Those who may see something: numbers, then strings, each in their order."""
        return sorted(self._tenants, key=lambda label: (isinstance(label, str), label))

    def ids_of(self, tenant: Label) -> np.ndarray:
        """int64 (m,): the ids of the vectors that a tenant may see, in the order of their rows."""
        from indexes.kernels.tenants import ROW

        return self._ids[np.sort(self._seen_by(tenant).keys & ROW)]

    # -- what an index provides ----------------------------------------------------------------------------------------

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        if self._centroids is None:
            raise NotFitted("the clusters must be learned from a sample first: call fit(sample) before add")
        from indexes.kernels import tenants

        cells = np.empty(len(vectors), np.int64)
        tenants.nearest(vectors, self._centroids, cells)
        self._store.add(vectors)
        self._keys = np.concatenate([self._keys, cells << 32 | np.arange(len(self), len(self) + len(vectors))])
        self._seen = None
        self.d = vectors.shape[1]

    def _remove(self, keep: np.ndarray) -> None:
        from indexes.kernels.tenants import ROW

        moved = np.cumsum(keep) - 1 - np.arange(len(keep))  # by how much the row of each changes

        def kept(keys: np.ndarray) -> np.ndarray:
            left = keys[keep[keys & ROW]]
            return left + moved[left & ROW]

        self._store.keep(keep)
        self._keys, self._seen = kept(self._keys), None
        left = {tenant: kept(seen.keys) for tenant, seen in self._tenants.items()}
        self._tenants = {tenant: Seen(keys) for tenant, keys in left.items() if len(keys)}

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import tenants, topk

        assert self._centroids is not None
        if self._seen is None:
            self._seen = Seen(np.sort(self._keys))
        seen = self._seen if allow is None else Seen(self._seen.keys[allow[self._seen.keys & tenants.ROW]])
        candidates = max(k, knobs["candidates"] or max(FEWEST, int(8 * len(seen.keys) ** 0.5)))
        if len(seen.keys) <= candidates + len(self._centroids):
            candidates = len(seen.keys)
        cells, starts = seen.lists() if candidates < len(seen.keys) else NO_LISTS
        vectors = as_numbers(self.vectors)
        heap_scores, heap_ids = topk.empty_heaps(len(queries), k)

        def work(a: int, b: int) -> None:
            tenants.search(
                queries[a:b], self._centroids, cells, starts, seen.keys, self._ids, vectors, self.metric == "l2",
                candidates, heap_scores[a:b], heap_ids[a:b],
            )  # fmt: skip

        in_chunks(work, len(queries), threads)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def _rows_of(self, ids: Any) -> np.ndarray:
        """int64 (m,): the rows of ids, -1 for those that are not there, or `InvalidIds`."""
        given = np.asarray(ids).reshape(-1)
        if len(given) and not np.issubdtype(given.dtype, np.integer):
            raise InvalidIds(f"ids are {given.dtype}; they must be integers")
        if not len(self):
            return np.full(len(given), -1)
        order = id_order(self._ids)
        ascending = self._ids if order is None else self._ids[order]
        places = np.minimum(np.searchsorted(ascending, given), len(self) - 1)
        return np.where(ascending[places] == given, places if order is None else order[places], -1)

    def _seen_by(self, tenant: Label) -> Seen:
        return self._tenants.get(_label(tenant)) or Seen(np.empty(0, np.int64))

    def _grant(self, rows: np.ndarray, tenant: Label) -> int:
        seen, asked = self._seen_by(tenant), np.unique(self._keys[rows])
        places, there = seen.find(asked)
        if not there.all():
            self._tenants[tenant] = Seen(np.insert(seen.keys, places[~there], asked[~there]))
        return int((~there).sum())

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        lists = [self._tenants[tenant].keys for tenant in self.tenants]
        arrays = {
            "vectors": self.vectors, "keys": self._keys, "grants": np.concatenate([np.empty(0, np.int64), *lists]),
            "starts": np.cumsum([0, *map(len, lists)], dtype=np.int64),
        }  # fmt: skip
        if self._centroids is not None:
            arrays["centroids"] = self._centroids
        return {"d": self.d, "tenants": self.tenants}, arrays, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        from indexes.kernels.tenants import ROW

        n, self.d, labels = len(self), state["d"], [_label(label) for label in state["tenants"]]
        self._store.open(arrays["vectors"], n, self.d or 0)
        self._keys, grants, starts = arrays["keys"], arrays["grants"], arrays["starts"]
        if any(array.dtype != np.int64 or array.ndim != 1 for array in (self._keys, grants, starts)):
            seen = ", ".join(f"{array.dtype} {array.shape}" for array in (self._keys, grants, starts))
            raise CorruptIndex(f"keys, grants, starts are {seen}; they must be int64, of one dimension")
        count = 0
        if self.d is not None:
            self._centroids = arrays["centroids"]
            count = len(self._centroids)
            if self._centroids.shape != (count, self.d) or self._centroids.dtype != np.float32 or not count:
                seen = f"{self._centroids.dtype} {self._centroids.shape}"
                raise CorruptIndex(f"centroids are {seen}, not float32 (nlist, {self.d})")
        if self._keys.shape != (n,) or (self._keys & ROW != np.arange(n)).any():
            raise CorruptIndex(f"keys are {self._keys.shape}, or not those of rows 0 to {n - 1}")
        if n and not (self._keys.min() >= 0 and self._keys.max() >> 32 < count):
            raise CorruptIndex(f"keys name clusters {self._keys.min() >> 32} to {self._keys.max() >> 32} of {count}")
        if starts.shape != (len(labels) + 1,) or starts[0] or starts[-1] != len(grants) or (np.diff(starts) < 1).any():
            raise CorruptIndex(f"starts are {starts.shape}, or do not divide {len(grants)} grants among {len(labels)}")
        if len(set(labels)) < len(labels) or not np.isin(grants, self._keys).all():
            raise CorruptIndex("tenants name one twice, or grants hold a key that is not in the index")
        for i, label in enumerate(labels):
            self._tenants[label] = Seen(grants[starts[i] : starts[i + 1]])
            if (np.diff(self._tenants[label].keys) < 1).any():
                raise CorruptIndex(f"grants of {label!r} are not in order")


class Seen:
    """What one may see: keys int64 (m,), ascending, see `indexes.kernels.tenants`."""

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self._lists: tuple[np.ndarray, np.ndarray] | None = None

    def find(self, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where other keys are or would have to stand, int64 (m,), and whether they are there, bool (m,)."""
        places = np.searchsorted(self.keys, asked)
        there = places < len(self.keys)
        there[there] = self.keys[places[there]] == asked[there]
        return places, there

    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        """The clusters int64 (c,) in which there is something, and where each starts, int64 (c + 1,)."""
        if self._lists is None:
            cells = self.keys >> 32
            starts = np.flatnonzero(np.diff(cells, prepend=-1, append=1 << 32))
            self._lists = cells[starts[:-1]], starts
        return self._lists


NO_LISTS = np.empty(0, np.int64), np.zeros(1, np.int64)


def _label(label: Any) -> Label:
    if isinstance(label, np.integer):
        return int(label)
    if isinstance(label, bool) or not isinstance(label, (int, str)):
        raise InvalidParameter(f"tenant is {label!r}; it must be an int or a str")
    return label


def _rows_by_label(tenants: Any, count: int) -> dict[Label, np.ndarray]:
    """Label -> the rows int64 (m,), of `count`, that it is given to."""
    if not isinstance(tenants, (list, tuple, np.ndarray)):
        return {_label(tenants): np.arange(count)}
    if len(tenants) != count:
        raise InvalidParameter(f"tenants has {len(tenants)} entries; {count} vectors need as many, or one for all")
    rows: dict[Label, list[int]] = {}
    for row, entry in enumerate(tenants):
        several = isinstance(entry, (list, tuple, set, frozenset, np.ndarray))
        for label in entry if several else [entry]:
            rows.setdefault(_label(label), []).append(row)
    return {label: np.array(some, np.int64) for label, some in rows.items()}
