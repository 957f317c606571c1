"""Orders that put similar documents next to each other, which is what makes block maxima tell blocks apart.

An order of one's own (by cluster, by URL) needs no name here: add the vectors in that order, with their `ids`, to an
index that keeps the order of insertion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from indexes.base import in_chunks

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ORDERS = ("bisection", "insertion")
DIMENSIONS = 48
SEED = 20


def bisection(vectors: csr_matrix, units: tuple[int, ...] = (256, 32, 8), threads: int = 1) -> np.ndarray:
    """int64 (n,): rows of `vectors` (n, V) in an order of similarity.

    The rows are projected at random and halved recursively along the line between two of a part's points that lie far
    apart. Halves are balanced, and cut so that every aligned run of `units` rows is a part of its own. The result
    depends on the vectors only.
    """
    from indexes.kernels import ordering

    points, rows = projected(vectors, threads), np.arange(vectors.shape[0])
    ordering.bisect(points, rows, 0, len(rows), np.array(units), units[-1])
    return rows


def projected(vectors: csr_matrix, threads: int = 1) -> np.ndarray:
    """float32 (n, 48): `vectors` (n, V) projected at random, which keeps inner products.

    Johnson and Lindenstrauss, 1984.
    """
    from indexes.kernels import ordering

    n = vectors.shape[0]
    terms = 1 << min(16, max(vectors.shape[1] - 1, 0).bit_length())  # beyond, terms share their directions
    directions = np.random.default_rng(SEED).standard_normal((terms, DIMENSIONS), np.float32)
    starts, points = vectors.indptr.astype(np.int64), np.empty((n, DIMENSIONS), np.float32)

    def project(a: int, b: int) -> None:
        ordering.project(starts, vectors.indices, vectors.data, directions, a, b, points)

    in_chunks(project, n, threads)
    return points
