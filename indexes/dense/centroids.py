"""Where the lists of an inverted file lie: their centroids, which of them are near a query, and the places of rows."""

from __future__ import annotations

import numpy as np

from indexes.base import in_chunks
from indexes.clustering import nearest_centroids
from indexes.codecs import SQ
from indexes.errors import InvalidParameter, InvalidVectors

ROUNDING = 1e-5  # of a score, as a share of what its summands may be


class Centroids:
    """Centroids float32 (nlist, d), and codes of them by which those nearest to queries are found.

    How near a list is: the inner product of its centroid with the query, less its shift float32 (nlist,) times the
    length of the query (times 1 for "l2").
    """

    def __init__(self, vectors: np.ndarray, shifts: np.ndarray, metric: str) -> None:
        self.vectors, self.shifts, self.metric = vectors, shifts, metric
        self._codec = SQ(bits=8).fit(vectors)
        self._coded: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.vectors)

    def check(self, metric: str, d: int, nlist: int | None) -> None:
        """Whether an index with such parameters can have these lists. Raises `InvalidParameter`, `InvalidVectors`."""
        if metric != self.metric or nlist not in (None, len(self)):
            seen = f"{len(self)} by {self.metric!r}"
            raise InvalidParameter(f"centroids are {seen}; the index has metric={metric!r}, nlist={nlist}")
        if self.vectors.shape[1] != d:
            raise InvalidVectors(f"centroids have {self.vectors.shape[1]} dimensions; the vectors have {d}")

    def nearest(self, queries: np.ndarray, nprobe: int, epsilon: float | None, threads: int) -> np.ndarray:
        """The lists to visit, int64 (nq, nprobe), nearest first; -1 for those left out by `epsilon`."""
        from indexes.kernels import ivf, scan

        if self._coded is None:
            words = scan.interleave(self._codec.encode(self.vectors))
            shifts = np.zeros(len(words) * scan.LANES, np.float32)
            shifts[: len(self)] = self.shifts
            self._coded = words, self._codec.step, shifts
        words, step, shifts = self._coded
        by_length, reach = self.metric != "l2", np.float32(np.inf if epsilon is None else 1 + epsilon)
        lists = np.empty((len(queries), nprobe), np.int64)

        def work(a: int, b: int) -> None:
            ivf.nearest(self.vectors, words, step, shifts, by_length, reach, queries[a:b], lists[a:b])

        in_chunks(work, len(queries), threads)
        return lists

    def bounds(self, queries: np.ndarray, lists: np.ndarray, radii: np.ndarray) -> np.ndarray:
        """Scores that no vector within the radius of its list exceeds, float32 (nq, nprobe): the triangle inequality.

        A little more than that, for what rounding may add to scores.
        """
        bounds = np.empty(lists.shape, np.float32)
        for q, query in enumerate(queries):
            chosen, reach = self.vectors[lists[q]], radii[lists[q]]
            length = np.linalg.norm(query)
            longest = np.linalg.norm(chosen, axis=1) + reach
            if self.metric == "l2":
                away = np.linalg.norm(chosen - query, axis=1)
                bounds[q] = ROUNDING * (length + longest) ** 2 - np.square(np.maximum(away - reach, 0))
            else:
                bounds[q] = chosen @ query + length * reach + ROUNDING * length * longest
        return bounds


def usual_probes(nlist: int) -> int:
    """How many of `nlist` lists are visited where nothing else is said."""
    return min(nlist, max(64, nlist // 8))


def shifts_of(sample: np.ndarray, centroids: np.ndarray, metric: str) -> np.ndarray:
    """What makes lists farther than their centroids' inner products say, float32 (nlist,). See `Centroids`.

    For "l2", half the squared length of the centroid: that is its distance. Inner products alone would favour lists of
    few directions, whose centroids are long, over those of many, whose best members are farther from the centroid: for
    vectors of length 1 the distance finds more, and its like for those of any length is what the centroid's squared
    length falls short of the members', in units of twice the sample's length.
    """
    squares = np.einsum("ij,ij->i", centroids, centroids)
    if metric == "l2":
        return squares / 2
    lengths = np.einsum("ij,ij->i", sample, sample)
    nearest = nearest_centroids(sample, centroids)[1][:, 0]
    counts = np.bincount(nearest, minlength=len(centroids))
    means = np.where(counts > 0, np.bincount(nearest, lengths, len(centroids)) / np.maximum(counts, 1), squares)
    typical = 2 * np.sqrt(lengths.mean(dtype=np.float64))
    return ((squares - means) / typical if typical > 0 else np.zeros(len(squares))).astype(np.float32)


def places_in(lists: np.ndarray, nlist: int, unit: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each row int64 (n,) and the unit at which each list begins int64 (nlist + 1,), by its list."""
    counts = np.bincount(lists, minlength=nlist)
    starts = np.concatenate([[0], np.cumsum(-(-counts // unit))])
    order, places = np.argsort(lists, kind="stable"), np.empty(len(lists), np.int64)
    firsts = np.cumsum(counts) - counts
    places[order] = np.arange(len(lists)) + np.repeat(starts[:-1] * unit - firsts, counts)
    return places, starts
