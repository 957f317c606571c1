"""Orders that put similar documents next to each other, which is what makes block maxima tell blocks apart.

An order of one's own (by cluster, by URL) needs no name here: add the vectors in that order, with their `ids`, to an
index that keeps the order of insertion.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from indexes.base import in_chunks

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ORDERS = ("bisection", "graph", "insertion")
DIMENSIONS = 48
UNITS = (256, 32, 8)
SEED = 20


def arrange(vectors: csr_matrix, order: str, threads: int = 1) -> np.ndarray:
    """int64 (n,): the rows of `vectors` (n, V) in one of `ORDERS`."""
    if order == "insertion":
        return np.arange(vectors.shape[0])
    return bisection(vectors, threads=threads) if order == "bisection" else graph_bisection(vectors, threads=threads)


def bisection(vectors: csr_matrix, units: tuple[int, ...] = UNITS, threads: int = 1) -> np.ndarray:
    """int64 (n,): rows of `vectors` (n, V) in an order of similarity.

    The rows are projected at random and halved recursively along the line between two of a part's points that lie far
    apart. Halves are balanced, and cut so that every aligned run of `units` rows is a part of its own. The result
    depends on the vectors only.
    """
    return bisected(projected(vectors, threads), units)


def bisected(points: np.ndarray, units: tuple[int, ...] = UNITS) -> np.ndarray:
    """int64 (n,): the order of `bisection`, of `points` float32 (n, 48)."""
    from indexes.kernels import ordering

    rows = np.arange(len(points))
    ordering.bisect(points, rows, 0, len(rows), np.array(units), units[-1])
    return rows


def graph_bisection(vectors: csr_matrix, units: tuple[int, ...] = UNITS, threads: int = 1) -> np.ndarray:
    """int64 (n,): the order of `bisection`, with rows swapped between the halves of every part to shorten gaps.

    Dhulipala et al., KDD 2016. On 200,000 SPLADE-like vectors this takes 20 times as long as `bisection`, and makes
    exact search 3% faster.
    """
    from indexes.kernels import graph_bisection as kernel

    rows, starts = bisection(vectors, units, threads), vectors.indptr.astype(np.int64)

    def bisect(first: int, stop: int, depth: int) -> np.ndarray:
        return kernel.bisect(
            starts, vectors.indices, vectors.shape[1], rows, first, stop, np.array(units), units[-1], depth
        )

    borders = bisect(0, len(rows), (threads - 1).bit_length())

    def work(first: int, stop: int) -> None:
        for a, b in itertools.pairwise(borders[first : stop + 1]):
            bisect(a, b, -1)

    in_chunks(work, len(borders) - 1, threads)
    return rows


def projected(vectors: csr_matrix, threads: int = 1) -> np.ndarray:
    """float32 (n, 48): `vectors` (n, V) projected at random, which keeps inner products.

    Johnson and Lindenstrauss, 1984.
    """
    points = np.empty((vectors.shape[0], DIMENSIONS), np.float32)
    starts = vectors.indptr.astype(np.int64)
    project(starts, vectors.indices, vectors.data, directions(vectors.shape[1]), points, threads)
    return points


def directions(V: int) -> np.ndarray:
    """float32 (2^x, 48), 2^x >= V, at most 65,536: what `project` multiplies terms by; beyond, terms share them."""
    terms = 1 << min(16, max(V - 1, 0).bit_length())
    return np.random.default_rng(SEED).standard_normal((terms, DIMENSIONS), np.float32)


def project(
    starts: np.ndarray, terms: np.ndarray, weights: np.ndarray, onto: np.ndarray, points: np.ndarray, threads: int = 1
) -> None:
    """Project the rows of a CSR matrix onto `directions`, into `points` float32 (n, 48)."""
    from indexes.kernels import ordering

    in_chunks(lambda a, b: ordering.project(starts, terms, weights, onto, a, b, points), len(points), threads)
