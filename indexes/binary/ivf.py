"""Inverted file over packed binary codes: only the lists around the centroids nearest to a query are scanned."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import numpy as np

from indexes.binary.base import BinaryIndex, gather, in_shares, kernels
from indexes.binary.clustering import k_majority, nearest_centroids
from indexes.clustering import usual_count
from indexes.dense.centroids import places_in
from indexes.errors import CorruptIndex, InvalidParameter, NotFitted

logger = logging.getLogger(__name__)

DEAR = 4  # documents of a list are compared in about the time of one anywhere


class BinaryIVFIndex(BinaryIndex):
    """Codes in lists around binary centroids, of which a query scans the nearest. The exact twin is `HammingIndex`.

    Centroids are learned by `k_majority`, from a sample given to `fit`.
    `nlist`: number of lists; None chooses from the size of the sample, as `IVFIndex` does: its square root times 4, at
    least 24 codes of the sample per list, at most 65,536.
    `nprobe`: lists visited, also a parameter of `search`; None chooses an eighth of nlist, at least 8. A list whose
    radius shows that it holds nothing nearer than what was found is not looked at; `nprobe` = nlist is exact, ties
    included. Queries of a batch that visit the same list share it.
    `seed`: of the clustering.
    A search that finds fewer than k allowed rows visits more lists. Few allowed rows are compared without lists.
    `search_radius` is always exact: it passes by the lists whose radius shows that they hold nothing within.
    """

    kind = "binary-ivf"
    needs_fit = True
    search_knobs: ClassVar = {"nprobe": lambda value: value is None or (isinstance(value, int) and value >= 1)}
    search_ladders: ClassVar = {
        "nprobe": (4096, 2048, 1024, 512, 256, 192, 128, 96, 64, 48, 32, 24, 16, 12, 8, 4, 2, 1)
    }

    def __init__(self, *, nlist: int | None = None, nprobe: int | None = None, seed: int = 0) -> None:
        super().__init__()
        if nlist is not None and (not isinstance(nlist, int) or nlist < 1):
            raise InvalidParameter(f"nlist is {nlist!r}; it must be an integer of at least 1, or None")
        if not self.search_knobs["nprobe"](nprobe):
            raise InvalidParameter(f"nprobe is {nprobe!r}; it must be an integer of at least 1, or None")
        self.nlist, self.nprobe, self.seed = nlist, nprobe, seed
        self._centroids: np.ndarray | None = None  # uint8 (nlist, nbytes)
        self._lists = np.empty(0, np.int32)  # of each row

    def parameters(self) -> dict[str, Any]:
        return {"nlist": self.nlist, "nprobe": self.nprobe, "seed": self.seed}

    def _chosen(self) -> dict[str, Any]:
        if self._centroids is None:
            return {}
        return {"nlist": len(self._centroids), "nprobe": self._probes(self.nprobe)}

    def _probes(self, nprobe: int | None) -> int:
        nlist = len(self._fitted())
        return min(nlist, nprobe if nprobe is not None else max(8, nlist // 8))

    def _fitted(self) -> np.ndarray:
        if self._centroids is None:
            raise NotFitted("BinaryIVFIndex must learn its lists first: call fit(sample) before add")
        return self._centroids

    # -- learning, adding, removing ------------------------------------------------------------------------------------

    def fit(self, vectors: Any) -> BinaryIVFIndex:
        """Learn the centroids from a sample of codes, uint8 (n, nbytes). The index must be empty.

        Raises `InvalidParameter` (also where the sample is smaller than nlist), `InvalidVectors`.
        """
        if len(self):
            raise InvalidParameter(f"fit needs an empty index; this one holds {len(self)} codes")
        self._centroids = self.nbytes = None  # what is refused below leaves nothing learned
        sample = self._check_vectors(vectors)
        n = len(sample)
        if n < (self.nlist or 1):
            raise InvalidParameter(f"fit got {n} codes; nlist = {self.nlist} needs as many, best 40 times as many")
        nlist = self.nlist or usual_count(n)
        self._centroids, self.nbytes = k_majority(sample, nlist, seed=self.seed), sample.shape[1]
        self._clear()
        logger.info("binary IVF fitted on %d codes: %s", n, self._chosen())
        return self

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        lists = nearest_centroids(vectors, self._fitted())[1]
        super()._add(vectors, ids)
        self._lists = np.concatenate([self._lists, lists.astype(np.int32)])

    def _remove(self, keep: np.ndarray) -> None:
        super()._remove(keep)
        self._lists = self._lists[keep]

    def _pack(self, codes: np.ndarray) -> None:
        if self._centroids is None:
            return
        self._lay_out()
        as_words, lists = kernels("hamming").as_words, kernels("binary_ivf")
        rows = np.zeros((len(self._places), -(-codes.shape[1] // 8)), np.uint64)
        rows[self._positions] = as_words(codes)
        self._words = np.ascontiguousarray(rows.reshape(-1, lists.LANES, rows.shape[1]).transpose(0, 2, 1))
        self._radii = lists.radii_of(self._words, self._starts, self._places, as_words(self._centroids))

    def _lay_out(self) -> None:
        """Which place is where, from the list of each row."""
        lanes = kernels("binary_ivf").LANES
        centroids, lists = self._fitted(), self._lists if self._order is None else self._lists[self._order]
        self._near = kernels("hamming").interleave(centroids)
        self._positions, self._starts = places_in(lists, len(centroids), lanes)
        self._places = np.full(self._starts[-1] * lanes, -1, np.int32)
        self._places[self._positions] = np.arange(len(lists), dtype=np.int32)

    def _unpack(self) -> np.ndarray:
        assert self.nbytes is not None
        rows = self._words.transpose(0, 2, 1).reshape(-1, self._words.shape[1])[self._positions]
        return np.ascontiguousarray(rows.view(np.uint8)[:, : self.nbytes])

    # -- searching -----------------------------------------------------------------------------------------------------

    def _nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """From `nprobe` lists, or more where these hold too few."""
        nlist, n, nprobe = len(self._fitted()), len(self), self._probes(knobs["nprobe"])
        if len(allowed):
            chosen = np.sort(self._positions[allowed])
            if len(chosen) <= k or len(chosen) * DEAR * nlist <= n * nprobe:
                return self._among(queries, k, chosen, threads)
        elif k == n:
            nprobe = nlist
        scores, places, short = self._visit(queries, k, allowed, threads, nprobe)
        while short:
            again = np.flatnonzero(places[:, k - 1] < 0)
            nprobe = min(nlist, 4 * nprobe)
            scores[again], places[again], short = self._visit(queries[again], k, allowed, threads, nprobe)
        return scores, places

    def _visit(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, threads: int, nprobe: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """As `_nearest`, from so many lists, and how many queries have fewer than k."""
        scores, places = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        short = []

        def work(a: int, b: int) -> None:
            fewer = kernels("binary_ivf").search(
                self._near, self._radii, self._words, self._starts, self._places, queries[a:b], allowed, nprobe,
                scores[a:b], places[a:b],
            )  # fmt: skip
            short.append(fewer)

        in_shares(work, len(queries), threads)
        return scores, places, sum(short)

    def _among(
        self, queries: np.ndarray, k: int, positions: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of the documents at the positions int64 (m,)."""
        scores, places = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

        def work(a: int, b: int) -> None:
            kernels("binary_ivf").among(self._words, self._places, positions, queries[a:b], scores[a:b], places[a:b])

        in_shares(work, len(queries), threads)
        return scores, places

    def _within(
        self, queries: np.ndarray, radius: int, allowed: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        within = kernels("binary_ivf").within
        lengths, distances, places = gather(
            lambda a, b: within(
                self._near, self._radii, self._words, self._starts, self._places, queries[a:b], allowed, radius
            ), len(queries), threads,
        )  # fmt: skip
        return lengths, distances, places

    # -- files ---------------------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, np.ndarray]:
        if self._centroids is None:
            return {}
        return {"centroids": self._centroids, "words": self._words, "lists": self._lists, "radii": self._radii}

    def _open(self, arrays: dict[str, np.ndarray]) -> None:
        if self.nbytes is None:
            if len(self):
                raise CorruptIndex(f"n is {len(self)}, and nbytes is missing")
            return
        centroids, lists = arrays["centroids"], arrays["lists"]
        nlist = len(centroids)
        if not nlist or centroids.shape[1:] != (self.nbytes,) or centroids.dtype != np.uint8:
            raise CorruptIndex(f"centroids are {centroids.dtype} {centroids.shape}, not uint8 (nlist, {self.nbytes})")
        if lists.shape != (len(self),) or lists.dtype != np.int32:
            raise CorruptIndex(f"lists are {lists.dtype} {lists.shape}, not int32 ({len(self)},)")
        if len(lists) and not 0 <= lists.min() <= lists.max() < nlist:
            raise CorruptIndex(f"lists are {lists.min()} to {lists.max()}; there are {nlist}")
        self._centroids, self._lists = centroids, lists
        self._lay_out()
        self._words, self._radii = arrays["words"], arrays["radii"]
        expected = (self._starts[-1], -(-self.nbytes // 8), kernels("binary_ivf").LANES)
        if self._words.shape != expected or self._words.dtype != np.uint64:
            raise CorruptIndex(f"words are {self._words.dtype} {self._words.shape}, not uint64 {expected}")
        if self._radii.shape != (nlist,) or self._radii.dtype != np.int32:
            raise CorruptIndex(f"radii are {self._radii.dtype} {self._radii.shape}, not int32 ({nlist},)")
        if not 0 <= self._radii.min() <= self._radii.max() <= 8 * self.nbytes:
            raise CorruptIndex(f"radii are {self._radii.min()} to {self._radii.max()}, of {8 * self.nbytes} bits")
