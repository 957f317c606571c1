"""Inverted file (Sivic and Zisserman, 2003; Jegou, Douze and Schmid, 2011): only lists near a query are scanned."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from indexes.base import in_chunks
from indexes.binary.base import id_order
from indexes.clustering import k_means, nearest_centroids, spread, usual_count
from indexes.codecs import SQ, Codec, Float32
from indexes.codecs.base import unfitted
from indexes.dense.centroids import Centroids, places_in, shifts_of, usual_probes
from indexes.dense.coded import CodedIndex
from indexes.dense.codes import Codes, PlainCodes, codes_for
from indexes.dense.store import as_numbers, ask_disk
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted

logger = logging.getLogger(__name__)

FEW = 64  # members that every list may have, however small the index is
ROUNDS = 10  # of k-means, as in faiss
TOGETHER = 1 << 22  # scores of all allowed rows that are held at once
DEAR = 10  # rows of a list are scanned in about the time in which one row anywhere is scored exactly


class IVFIndex(CodedIndex):
    """Vectors in lists around centroids, of which a query scans the nearest. The exact twin is `FlatIndex`.

    `nlist`: number of lists; None chooses from the size of the training sample: its square root times 4, at least 24
    training vectors per list, at most 65,536.
    `codec`, `rerank`, `candidates`: what lies in the lists, and how the best of it is scored again, as in `ScanIndex`.
    None of the first is `SQ(bits=4)`; one that training made stays as it is, and `fit` learns lists only.
    `codec=Float32(), rerank=None` is what others call IVF flat. Codes are of the vectors, not of what sets them apart
    from their centroid: with 4 bits per number that needs as many candidates.
    `metric`: "ip", "cosine" or "l2".
    `balance`: None lets each vector go to its nearest list. A number of at least 1: no list holds more than so many
    times the mean (but 64 if that is more), overfull ones give their farthest members to the next lists with room; it
    bounds what crowds and duplicates cost, and finds a little less where there are none.
    `nprobe`: lists visited, also a parameter of `search`; None is an eighth of nlist, at least 64. `nprobe` = nlist
    finds the very best, up to what codes lose; where codes are not scored again and not scanned by integer products
    (Float32, Float16, PQ), lists whose radius shows that they hold nothing better are not looked at.
    `epsilon`: visit only lists whose centroid is at most 1 + epsilon times as far from the query as the nearest one,
    also a parameter of `search`: easy queries take less time (Chen et al., "SPANN", NeurIPS 2021, section 3.3). None
    visits all `nprobe`.
    `seed`: of k-means.
    A search that finds fewer than k allowed rows visits more lists. Few allowed rows are scored without lists.
    Vectors that were added are put into their lists by the next search or `save`, which takes time in proportion to n.
    """

    kind = "ivf"
    needs_fit = True
    search_knobs: ClassVar = {
        "nprobe": lambda value: value is None or (isinstance(value, int) and value >= 1),
        "epsilon": lambda value: value is None or (isinstance(value, (int, float)) and 0 <= value < math.inf),
        "candidates": lambda value: value is None or (isinstance(value, int) and value >= 1),
    }
    search_ladders: ClassVar = {
        "nprobe": (4096, 2048, 1024, 512, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 4, 2, 1),
        "candidates": (1000, 200, 100, 50, 30, 20, 15),
    }

    def __init__(
        self,
        *,
        nlist: int | None = None,
        codec: Codec | None = None,
        metric: str = "ip",
        rerank: str | None = "float32",
        balance: float | None = None,
        nprobe: int | None = None,
        epsilon: float | None = None,
        candidates: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, codec=codec, default=SQ(bits=4), rerank=rerank)
        if nlist is not None and (not isinstance(nlist, int) or nlist < 1):
            raise InvalidParameter(f"nlist is {nlist!r}; it must be an integer of at least 1, or None")
        if balance is not None and not 1 <= balance < math.inf:
            raise InvalidParameter(f"balance is {balance!r}; it must be at least 1, or None")
        for name, value, allowed in (
            ("nprobe", nprobe, "an integer of at least 1, or None"),
            ("epsilon", epsilon, "at least 0, or None"),
            ("candidates", candidates, "an integer of at least 1, or None"),
        ):
            if not self.search_knobs[name](value):
                raise InvalidParameter(f"{name} is {value!r}; it must be {allowed}")
        self.nlist, self.balance, self.seed = nlist, balance, seed
        self.nprobe, self.epsilon, self.candidates = nprobe, epsilon, candidates
        self._centroids: Centroids | None = None
        self._given = False  # whether training made the centroids
        self._lists = np.empty(0, np.int64)  # of each row
        self._codes: Codes | None = None  # list by list, of the rows that were in their lists already
        self._fresh: list[np.ndarray] = []  # codes of the rows after these
        self._layout: Layout | None = None

    def parameters(self) -> dict[str, Any]:
        return {
            "nlist": self.nlist, "codec": unfitted(self.codec.header()), "metric": self.metric, "rerank": self.rerank,
            "balance": self.balance, "nprobe": self.nprobe, "epsilon": self.epsilon, "candidates": self.candidates,
            "seed": self.seed,
        }  # fmt: skip

    def _chosen(self) -> dict[str, Any]:
        if self._centroids is None:
            return {}
        return {"nlist": len(self._centroids), "nprobe": self._probes(self.nprobe)}

    def _probes(self, nprobe: int | None) -> int:
        nlist = len(self._fitted())
        return usual_probes(nlist) if nprobe is None else min(nlist, nprobe)

    def _fitted(self) -> Centroids:
        if self._centroids is None:
            raise NotFitted("IVFIndex must learn its lists first: call fit(sample) before add")
        return self._centroids

    # -- learning, adding, removing ------------------------------------------------------------------------------------

    def fit(
        self, vectors: Any, queries: Any = None, *, centroids: Centroids | np.ndarray | None = None
    ) -> IVFIndex:  # fmt: skip
        """Learn centroids and codes from a sample (n, d); `queries` (nq, d) are for `LeanVec`. The index must be empty.

        `centroids`: float32 (nlist, d), or what training made. They stay: k-means is left out, also when the index is
        `emptied`. Raises `InvalidParameter` (also where the sample is smaller than nlist), `InvalidVectors`; the index
        is as before then.
        """
        if len(self):
            raise InvalidParameter(f"fit needs an empty index; this one holds {len(self)} vectors")
        before, self.d = self.d, None
        try:
            self._learn(self._check_vectors(vectors), queries, centroids)
        except BaseException:
            self.d = before
            raise
        return self

    def _learn(self, sample: np.ndarray, queries: Any, centroids: Centroids | np.ndarray | None) -> None:
        n = len(sample)
        given = self._centroids if centroids is None and self._given else centroids
        if given is not None and not isinstance(given, Centroids):
            means = np.require(given, np.float32, ["C", "W"])
            if means.ndim != 2 or means.shape[1:] != sample.shape[1:] or not np.isfinite(means).all():
                raise InvalidVectors(
                    f"centroids have shape {means.shape}; they must be finite, (nlist, {sample.shape[1]})"
                )
            given = Centroids(means, shifts_of(sample, means, self.metric), self.metric)
        if given is not None:
            given.check(self.metric, sample.shape[1], self.nlist)
        elif n < (self.nlist or 1):
            raise InvalidParameter(f"fit got {n} vectors; nlist = {self.nlist} needs as many, best 40 times as many")
        nlist = self.nlist or usual_count(n)
        if not self.codec.trained:
            self.codec.fit(sample, None if queries is None else self._check_vectors(queries))
        elif self.codec.d != sample.shape[1]:
            raise InvalidVectors(f"vectors have {sample.shape[1]} dimensions; {self.codec!r} is for {self.codec.d}")
        if given is None:
            means = k_means(sample, nlist, seed=self.seed, iterations=ROUNDS)
            self._centroids = Centroids(means, shifts_of(sample, means, self.metric), self.metric)
        else:
            self._centroids, self._given, self.trained = given, True, True
        self.d = sample.shape[1]
        logger.info("IVF fitted on %d vectors: %s", n, self._chosen())

    def emptied(self) -> IVFIndex:
        made = super().emptied()
        if self._given:
            made._centroids, made._given, made.trained, made.d = self._centroids, True, True, self.d
        return made

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        centroids = self._fitted()
        codes = self.codec.encode(vectors)
        if self._store is not None:
            self._store.add(vectors)
        self._lists = np.concatenate([self._lists, nearest_centroids(vectors, centroids.vectors)[1][:, 0]])
        self._fresh.append(codes)
        self._layout = None

    def _remove(self, keep: np.ndarray) -> None:
        self._fresh, self._codes = [self._by_row()[keep]], None
        self._lists, self._layout = self._lists[keep], None
        if self._store is not None:
            self._store.keep(keep)

    def _by_row(self) -> np.ndarray:
        """The codes of all rows, uint8 (n, bytes), in their order."""
        nlist, earlier = len(self._fitted()), self._lists[: len(self._lists) - sum(map(len, self._fresh))]
        parts = list(self._fresh)
        if self._codes is not None:
            parts.insert(0, self._codes.at(places_in(earlier, nlist, self._codes.unit)[0]))
        return np.concatenate(parts) if parts else np.empty((0, self.codec.bytes_per_vector), np.uint8)

    def _empty(self) -> Codes:
        return codes_for(self.codec, self.metric == "l2")

    def _arranged(self) -> Layout:
        if self._layout is None:
            if self._fresh or self._codes is None:
                self._arrange()
            self._layout = self._laid_out()
        return self._layout

    def _arrange(self) -> None:
        """Put all rows into their lists."""
        centroids, codes, by_row, n = self._fitted(), self._empty(), self._by_row(), len(self._lists)

        def vectors(rows: np.ndarray) -> np.ndarray:
            if self._store is None:
                return self.codec.decode(by_row[rows])
            return self._store.at(rows, self.d or 0)

        if self.balance is not None:
            most = max(FEW, math.ceil(self.balance * n / len(centroids)))
            self._lists = spread(self._lists, vectors, centroids.vectors, most)
        places, starts = places_in(self._lists, len(centroids), codes.unit)
        source = np.zeros(starts[-1] * codes.unit, np.int64)  # what fills a list up does not matter
        source[places] = np.arange(n)
        codes.add(by_row[source])
        self._codes, self._fresh = codes, []

    def _laid_out(self) -> Layout:
        codes = self._codes
        assert codes is not None
        places, starts = places_in(self._lists, len(self._fitted()), codes.unit)
        order = id_order(self._ids)
        ranks = np.full(starts[-1] * codes.unit, -1)
        ranks[places if order is None else places[order]] = np.arange(len(places))
        radii = self._radii(codes, places) if self._store is None and isinstance(codes, PlainCodes) else None
        ids = self._ids if order is None else self._ids[order]
        return Layout(codes, starts, places, ranks, ranks >= 0, order, ids, radii)

    def _radii(self, codes: Codes, places: np.ndarray) -> np.ndarray:
        """How far the farthest decoded vector of each list is from its centroid, float32 (nlist,)."""
        centroids = self._fitted().vectors
        radii = np.zeros(len(centroids), np.float32)
        for start in range(0, len(places), 4096):
            some = slice(start, start + 4096)
            apart = self.codec.decode(codes.at(places[some])) - centroids[self._lists[some]]
            np.maximum.at(radii, self._lists[some], np.sqrt(np.einsum("ij,ij->i", apart, apart)))
        return radii

    def hold(self, centroids: np.ndarray, vectors: np.ndarray, lists: np.ndarray, ids: np.ndarray) -> IVFIndex:
        """Take vectors (n, d) with ids int64 (n,) in given lists int64 (n,); the index must be new, and not learn.

        For inner products, lists count as near as their centroids, float32 (nlist, d), alone say.
        Raises `InvalidVectors`, `InvalidIds`, `InvalidParameter` (the index or its codec was fitted or must be).
        """
        if self._centroids is not None or self.codec.needs_fit:
            raise InvalidParameter(f"hold needs a new index and a codec that learns nothing, not {self.codec!r}")
        checked, new = self._check_vectors(vectors), self._check_ids(ids, len(vectors))
        squares = np.einsum("ij,ij->i", centroids, centroids)
        shifts = squares / 2 if self.metric == "l2" else np.zeros_like(squares)
        self._centroids, self.d = Centroids(centroids, shifts, self.metric), checked.shape[1]
        self.codec.fit(centroids)
        if self._store is not None:
            self._store.add(checked)
        self._lists, self._fresh, self._ids = lists.astype(np.int64), [self.codec.encode(checked)], new
        return self

    def held(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The inverse of `hold`: centroids, float32 vectors by row, and the list of each.

        Raises `InvalidParameter` unless vectors are held as float32.
        """
        self._arranged()
        if self._store is not None and self.rerank == "float32":
            vectors = self._store.vectors(self.d or 0)
        elif isinstance(self.codec, Float32):
            vectors = self.codec.decode(self._by_row())
        else:
            raise InvalidParameter(f"the index holds no float32: rerank is {self.rerank!r}, codec {self.codec!r}")
        return self._fitted().vectors, np.ascontiguousarray(vectors), self._lists

    # -- searching -----------------------------------------------------------------------------------------------------

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        layout, nlist = self._arranged(), len(self._fitted())
        nprobe, epsilon = self._probes(knobs["nprobe"]), knobs["epsilon"]
        count = min(len(self), max(k, knobs["candidates"] or max(100, 10 * k)))
        allowed, exist = layout.real, len(self)
        if allow is not None:
            places = layout.places[allow]
            allowed, exist = np.zeros(len(layout.real), np.bool_), len(places)
            allowed[places] = True
            nprobe = min(nlist, max(nprobe, -(-nlist * k // max(exist, 1))))  # so many lists hold k allowed rows
        if exist <= k or (exist < len(self) and exist * DEAR * nlist <= len(self) * nprobe):
            scores, found = self._score_all(queries, layout.ranks[allowed], k, threads)
        else:
            scores, found = self._probe(queries, k, count, nprobe, epsilon, allowed, threads)
            while len(short := np.flatnonzero(found[:, k - 1] < 0)):
                nprobe = min(nlist, 4 * nprobe)
                scores[short], found[short] = self._probe(queries[short], k, count, nprobe, None, allowed, threads)
        return scores, np.where(found >= 0, layout.ids[found], -1)

    def _probe(
        self, queries: np.ndarray, k: int, count: int, nprobe: int, epsilon: float | None, allowed: np.ndarray,
        threads: int,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """The best k, scores and ranks (nq, k), in the `nprobe` nearest lists."""
        layout, centroids = self._arranged(), self._fitted()
        lists = centroids.nearest(queries, nprobe, epsilon, threads)
        final = layout.radii is not None  # codes are scored but once
        bounds = centroids.bounds(queries, lists, layout.radii) if layout.radii is not None else None
        scores, found = layout.codes.best_in(
            queries, k if final else count, layout.ranks, allowed, threads, lists, layout.starts, bounds
        )
        return (scores, found) if final else self._rerank(queries, found, k, threads)

    def _score_all(self, queries: np.ndarray, ranks: np.ndarray, k: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k, scores and ranks (nq, k), of the ranks int64 (m,)."""
        scores, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        step = max(1, TOGETHER // len(ranks))
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            every = np.tile(ranks, (len(queries[some]), 1))
            scores[some], found[some] = self._rerank(queries[some], every, k, threads)
        return scores, found

    def _rerank(self, queries: np.ndarray, found: np.ndarray, k: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k, scores and ranks (nq, k), of the ranks `found` int64 (nq, m), -1 for none."""
        from indexes.kernels import ivf, topk

        layout = self._arranged()
        rows = found if layout.order is None else np.where(found >= 0, layout.order[found], -1)
        heap_scores, heap_ranks = topk.empty_heaps(len(queries), k)
        if self._store is None:
            scores = layout.codes.scores(queries, np.where(rows >= 0, layout.places[rows], -1))
            topk.push_lists(scores, found, heap_scores, heap_ranks)
            topk.sort_heaps(heap_scores, heap_ranks)
            return heap_scores, heap_ranks
        stored = self._store.stored(self.d or 0)
        ask_disk(stored, rows)
        numbers = as_numbers(stored)

        def work(a: int, b: int) -> None:
            ivf.rerank(
                numbers, queries[a:b], rows[a:b], found[a:b], self.metric == "l2", heap_scores[a:b], heap_ranks[a:b]
            )

        in_chunks(work, len(queries), threads)
        return heap_scores, heap_ranks

    # -- files ---------------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        state, arrays = self._coded_state()
        if self._centroids is not None:
            layout = self._arranged()
            arrays |= layout.codes.arrays() | {"lists": self._lists.astype(np.int32)}
            arrays |= {"centroids": self._centroids.vectors, "shifts": self._centroids.shifts}
        return state | {"given": self._given}, arrays, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self._restore_codec(state, arrays, first=True)
        self._given = bool(state.get("given", False))  # which files of earlier versions do not say
        self.trained = self.trained or self._given
        if self.d is not None:
            centroids, shifts, lists = arrays["centroids"], arrays["shifts"], arrays["lists"]
            nlist = len(centroids)
            if not nlist or centroids.shape[1:] != (self.d,) or centroids.dtype != np.float32:
                raise CorruptIndex(f"centroids are {centroids.dtype} {centroids.shape}, not float32 (nlist, {self.d})")
            if shifts.shape != (nlist,) or shifts.dtype != np.float32:
                raise CorruptIndex(f"shifts are {shifts.dtype} {shifts.shape}, not float32 ({nlist},)")
            if lists.shape != (len(self),) or lists.dtype != np.int32:
                raise CorruptIndex(f"lists are {lists.dtype} {lists.shape}, not int32 ({len(self)},)")
            if len(lists) and not 0 <= lists.min() <= lists.max() < nlist:
                raise CorruptIndex(f"lists are {lists.min()} to {lists.max()}; there are {nlist}")
            self._centroids, self._lists = Centroids(centroids, shifts, self.metric), lists.astype(np.int64)
            codes = self._empty()
            _, starts = places_in(self._lists, nlist, codes.unit)
            codes.open(arrays, int(starts[-1]) * codes.unit)
            self._codes = codes
        if self._store is not None:
            self._store.open(arrays["vectors"], len(self), self.d or 0)


class Layout(NamedTuple):
    """Where rows lie: list by list, each list filled up to whole units of the codes."""

    codes: Codes
    starts: np.ndarray  # int64 (nlist + 1,): the unit at which each list begins
    places: np.ndarray  # int64 (n,): of each row
    ranks: np.ndarray  # int64 (places,): of the id at each place among all ids, -1 where a list is filled up
    real: np.ndarray  # bool (places,): where it is not
    order: np.ndarray | None  # int64 (n,): the row at each rank; None where they are the same
    ids: np.ndarray  # int64 (n,): the id at each rank
    radii: np.ndarray | None  # float32 (nlist,): see `IVFIndex._radii`; None unless scores of codes are final
