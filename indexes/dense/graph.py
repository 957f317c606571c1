"""A flat graph of near neighbours, walked over codes; what it finds is ranked again by the vectors themselves.

    query --> codes: from the best of some starts to ever nearer rows --> `search_window` of them
          --> vectors: exact scores, the best k
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from indexes.base import available_threads, in_chunks
from indexes.codecs import SQ, Codec
from indexes.codecs.base import unfitted
from indexes.dense import graph_building
from indexes.dense.coded import CodedIndex
from indexes.dense.graph_codes import RowCodes
from indexes.dense.store import as_numbers, ask_disk, file_of
from indexes.errors import CorruptIndex, InvalidParameter, NotFitted

if TYPE_CHECKING:
    from indexes.kernels.graph_rows import Graph

UNLINKED = 1000, 100  # so many rows, or one of so many if that is more, are scanned by every search instead of linked
REBUILD_ABOVE = 0.3  # share of removed rows at which the graph is built anew
SCANNED = 24  # rows that are scanned in the time in which a walk goes through one place of its window
NONE = np.empty(0, np.bool_)


class Ready:
    """What searches read: the `graph` of the kernels, `ids` of all places, -1 for removed rows, `places` of rows, None
    where all are, and `vectors` to rank by; `numbers` are the same as kernels take them, None where they are on disk.
    """

    def __init__(self, graph: Graph, ids: np.ndarray, places: np.ndarray | None, vectors: np.ndarray | None) -> None:
        self.graph, self.ids, self.places, self.vectors = graph, ids, places, vectors
        self.numbers = None if vectors is None or file_of(vectors) is not None else as_numbers(vectors)


class Asked(NamedTuple):
    """A batch of queries; `weights` and `tilts` are for codes, `excluded` bool (places,) or (0,) forbids answers."""

    queries: np.ndarray
    weights: np.ndarray
    tilts: np.ndarray
    excluded: np.ndarray
    kept: int  # places that are ranked again
    least: int  # with fewer, a walk was in vain


class GraphIndex(CodedIndex):
    """Approximate search; the exact twin is `FlatIndex`.

    The graph is Vamana (Subramanya et al., "DiskANN", NeurIPS 2019), walked over codes that are scored by integer
    products, as in LVQ and LeanVec (Aguerrebere et al., VLDB 2023; Tepper et al., 2023), and built in batches (Dobson
    et al., "ParlayANN", PPoPP 2024), so that the same vectors give the same graph on any number of threads.

    `metric`: "ip", "cosine" or "l2".
    `R`: neighbours per row, at most. `window`: candidates kept while a row is linked. `alpha`: neighbours are
    those not nearer to another neighbour than to the row itself; room that is left goes to those that are nearer by
    less than this factor of squared distances, which keeps long links.
    `codec`: what the walk reads: SQ, LVQ, SignBits or RaBitQ, or a `Chain` that ends so; None chooses `SQ(bits=8)`.
    The index keeps a copy of its own. `fit` learns what it needs.
    `rerank`: "float16" or "float32" stores the vectors too, and scores are exact for what is stored; "lvq8" stores them
    in a byte a number; None stores codes only, and scores are those of the decoded vectors.
    `search_window`: candidates kept while searching, all of which are ranked again; also a parameter of `search`; never
    less than k. None chooses 64.
    `seed`: of the order in which rows are linked, so that sorted input does no harm.

    A filter that leaves few rows is answered by scanning their codes; others by a walk with a window that is wider by
    as much as they exclude. Up to 1,000 rows (or 1%) that were added last are scanned, not linked. Removed rows stay in
    the graph, but not in answers, until they are 30% of it, when the rest is built anew.
    """

    kind = "graph"
    needs_fit = True
    search_knobs: ClassVar = {"search_window": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {"search_window": (1024, 512, 256, 192, 128, 96, 64, 48, 40, 32, 24, 20, 16, 12, 10)}

    def __init__(
        self,
        *,
        metric: str = "ip",
        R: int = 32,
        window: int = 128,
        alpha: float = 1.2,
        codec: Codec | None = None,
        rerank: str | None = "float16",
        search_window: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(metric=metric, codec=codec, default=SQ(bits=8), rerank=rerank)
        for name, value, least in (("R", R, 2), ("window", window, 1), ("alpha", alpha, 1), ("seed", seed, 0)):
            kinds = (int, float) if name == "alpha" else int
            if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value < math.inf:
                raise InvalidParameter(f"{name} is {value!r}; it must be a number of at least {least}")
        if not self.search_knobs["search_window"](search_window):
            raise InvalidParameter(f"search_window is {search_window!r}; it must be an integer of at least 1, or None")
        self.R, self.window, self.alpha, self.seed = R, window, alpha, seed
        self.codec = _copied(self.codec)
        self.search_window, self.d = search_window, self.codec.d
        self._codes: RowCodes | None = None
        self._clear()

    def _clear(self) -> None:
        """Without links and removed rows."""
        self._neighbors, self._starts = np.empty((0, self.R), np.int32), np.empty(0, np.int64)
        self._removed = np.empty(0, np.bool_)  # of each place: rows are those of them that are not removed
        self._ready: Ready | None = None
        self._free: list[np.ndarray] = []  # what searches need to mark rows, one array for each at the same time

    def parameters(self) -> dict[str, Any]:
        return {
            "metric": self.metric, "R": self.R, "window": self.window, "alpha": self.alpha,
            "codec": unfitted(self.codec.header()), "rerank": self.rerank, "search_window": self.search_window,
            "seed": self.seed,
        }  # fmt: skip

    def fit(self, vectors: Any, queries: Any = None) -> GraphIndex:
        """Fit the codec to a sample (n, d); `queries` (nq, d) are for `LeanVec`. Only an empty index can be fitted.

        Raises `InvalidParameter` (also for a codec whose codes are no whole numbers), `InvalidVectors`.
        """
        if len(self):
            raise InvalidParameter(f"fit needs an empty index; this one holds {len(self)} vectors")
        self.d = None
        sample = self._check_vectors(vectors)
        self.codec.fit(sample, None if queries is None else self._check_vectors(queries))
        self.codec, self._codes = _copied(self.codec), None
        self._coded()
        self.d = sample.shape[1]
        return self

    # -- adding and removing -------------------------------------------------------------------------------------------

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        if self.codec.d is None:
            raise NotFitted(f"{self.codec!r} must learn from a sample first: call fit(sample) before add")
        codes, encoded = self._coded(), self.codec.encode(vectors)
        if self._store is not None:
            self._store.add(vectors)
        codes.add(encoded)
        self._removed = np.concatenate([self._removed, np.zeros(len(encoded), np.bool_)])
        self._ready, self._free, self.d = None, [], vectors.shape[1]
        self._link()

    def _link(self) -> None:
        codes, linked = self._coded(), len(self._neighbors)
        if len(codes) - linked <= max(UNLINKED[0], linked // UNLINKED[1]):
            return
        self._neighbors, self._starts = graph_building.extend(
            codes, self._neighbors, self._starts, window=self.window, alpha=self.alpha, seed=self.seed,
            threads=available_threads(),
        )  # fmt: skip

    def _coded(self) -> RowCodes:
        if self._codes is None:
            self._codes = RowCodes(self.codec, self.metric == "l2")
        return self._codes

    def _remove(self, keep: np.ndarray) -> None:
        places = np.flatnonzero(~self._removed)
        self._removed[places[~keep]] = True
        self._ready = None
        if len(self._neighbors) and self._removed.mean() <= REBUILD_ABOVE:
            return
        kept = ~self._removed
        self._coded().keep(kept)
        if self._store is not None:
            self._store.keep(kept)
        self._clear()
        self._removed = np.zeros(int(kept.sum()), np.bool_)
        self._link()

    # -- searching -----------------------------------------------------------------------------------------------------

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        ready, levels = self._prepared(), self._coded().levels
        excluded, answering = self._excluded(allow, ready.places)
        n, kept = len(ready.ids), max(k, knobs["search_window"] or 64)
        window = min(n, -(-kept * n // answering))
        asked = Asked(queries, *levels.query_terms(queries), excluded, min(kept, answering), min(k, answering))
        scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        if len(self._neighbors) and answering > SCANNED * window:
            in_chunks(lambda a, b: self._walk(ready, asked, window, a, b, scores, ids), len(queries), threads)
        else:
            chosen = np.flatnonzero(~excluded) if len(excluded) else np.arange(n)
            in_chunks(lambda a, b: self._scan(ready, asked, chosen, a, b, scores, ids), len(queries), threads)
        return scores, ids

    @property
    def vectors(self) -> np.ndarray | None:
        """As in other indexes with a codec; copied at each call once something was removed."""
        stored = super().vectors
        return stored if stored is None or not self._removed.any() else stored[~self._removed]

    def _prepared(self) -> Ready:
        if self._ready is None:
            ids, places = self._ids, None
            if self._removed.any():
                places = np.flatnonzero(~self._removed)
                ids = np.full(len(self._removed), -1)
                ids[places] = self._ids
            vectors = None if self._store is None else self._store.stored(self.d or 0)
            self._ready = Ready(self._coded().graph(self._neighbors, self._starts), ids, places, vectors)
        return self._ready

    def _excluded(self, allow: np.ndarray | None, places: np.ndarray | None) -> tuple[np.ndarray, int]:
        """Which places no answer may hold, bool (places,) or (0,) where there are none, and how many are left."""
        if allow is None:
            return (NONE, len(self)) if places is None else (self._removed, len(places))
        if places is None:
            return ~allow, int(np.count_nonzero(allow))
        excluded = self._removed.copy()
        excluded[places] = ~allow
        return excluded, int(np.count_nonzero(allow))

    def _walk(
        self, ready: Ready, asked: Asked, window: int, a: int, b: int, scores: np.ndarray, ids: np.ndarray
    ) -> None:
        """Answer queries `a` to `b` by walks."""
        from indexes.kernels import graph_search

        queries, weights, tilts, excluded, kept, least = asked
        try:
            seen = self._free.pop()
        except IndexError:
            seen = np.zeros(len(ready.ids) + 1, np.uint8)
        if ready.numbers is not None:
            graph_search.search_and_rank(
                ready.graph, weights[a:b], tilts[a:b], window, least, excluded, seen, kept, ready.numbers,
                queries[a:b], self.metric == "l2", ready.ids, scores[a:b], ids[a:b],
            )  # fmt: skip
        else:
            found, rough = np.empty((b - a, kept), np.int64), np.empty((b - a, kept), np.float32)
            graph_search.search(
                ready.graph, weights[a:b], tilts[a:b], window, least, excluded, seen, found, rough
            )  # fmt: skip
            self._rank(ready, queries[a:b], found, scores[a:b], ids[a:b])
        self._free.append(seen)

    def _scan(
        self, ready: Ready, asked: Asked, chosen: np.ndarray, a: int, b: int, scores: np.ndarray, ids: np.ndarray
    ) -> None:
        """Answer queries `a` to `b` by scanning the codes at the places `chosen`."""
        from indexes.kernels import graph_search

        found, rough = np.empty((b - a, asked.kept), np.int64), np.empty((b - a, asked.kept), np.float32)
        graph_search.scan(ready.graph, asked.weights[a:b], asked.tilts[a:b], chosen, found, rough)
        self._rank(ready, asked.queries[a:b], found, scores[a:b], ids[a:b])

    def _rank(
        self, ready: Ready, queries: np.ndarray, found: np.ndarray, scores: np.ndarray, ids: np.ndarray
    ) -> None:
        """The best of the places found."""
        from indexes.kernels import graph_search, topk

        if ready.vectors is None:
            scores[:], ids[:] = -np.inf, -1
            topk.push_lists(
                self._coded().scores(queries, found), np.where(found >= 0, ready.ids[found], -1), scores, ids
            )  # fmt: skip
            topk.sort_heaps(scores, ids)
            return
        ask_disk(ready.vectors, found)
        graph_search.rank(as_numbers(ready.vectors), queries, found, self.metric == "l2", ready.ids, scores, ids)

    # -- files ---------------------------------------------------------------------------------------------------------

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        state, arrays = self._coded_state()
        arrays |= {"neighbors": self._neighbors, "starts": self._starts, "removed": self._removed}
        if self.codec.d is not None:
            arrays["codes"] = self._coded().rows()
        return state, arrays, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self._restore_codec(state, arrays)
        self._removed, self._neighbors, self._starts = arrays["removed"], arrays["neighbors"], arrays["starts"]
        n, links, starts = len(self._removed), self._neighbors, self._starts
        if self._removed.dtype != np.bool_ or self._removed.shape != (n,) or n - self._removed.sum() != len(self):
            seen = f"{self._removed.dtype} {self._removed.shape}"
            raise CorruptIndex(f"removed is {seen}; it must be bool and leave {len(self)} rows")
        if links.dtype != np.int32 or links.ndim != 2 or links.shape[1] != self.R or len(links) > n:
            raise CorruptIndex(f"neighbors are {links.dtype} {links.shape}, not int32 (at most {n}, {self.R})")
        if starts.dtype != np.int64 or starts.ndim != 1 or (len(starts) > 0) != (len(links) > 0):
            raise CorruptIndex(f"starts are {starts.dtype} {starts.shape} for a graph of {len(links)} rows")
        if len(links) and not (links.min() >= -1 and max(links.max(), starts.max()) < len(links) and starts.min() >= 0):
            raise CorruptIndex(f"neighbors or starts name a row that is not one of the {len(links)} linked")
        if self.d is not None:
            self._coded().open(arrays["codes"], n)
        elif n:
            raise CorruptIndex(f"n is {n}, and d is missing")
        if self._store is not None:
            self._store.open(arrays["vectors"], n, self.d or 0)


def _copied(codec: Codec) -> Codec:
    """With arrays by row, as they come from a file: products with others round differently."""
    return Codec.restore(codec.header(), {name: np.array(array, order="C") for name, array in codec.arrays().items()})
