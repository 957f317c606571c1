"""Linear maps that stand in front of a codec (see `Chain`): fewer dimensions, or a better basis for the same.

A map takes documents x to z = B (x - mean) and queries q to A q, such that q.x is near (A q).z + q.mean. The last term
is kept, so that the mean costs nothing and takes up no dimension.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np

from indexes.codecs.base import Fitted, check_integer, check_vectors
from indexes.errors import InvalidParameter

BLOCK = 1 << 16  # vectors per matrix product in float64


class LinearMap(Fitted):
    """Base of the maps. `mean` float32 (d,); `projection` float32 (d', d), its rows orthonormal but for `LeanVec`."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: np.ndarray
        self.projection: np.ndarray

    @property
    def query_projection(self) -> np.ndarray:
        """A, float32 (d', d): of queries; the one of documents where they are treated alike."""
        return self.projection

    def transform(self, vectors: Any) -> np.ndarray:
        """Documents (n, d) to float32 (n, d'). Raises `NotFitted`, `InvalidVectors`."""
        return (check_vectors(vectors, self._width()) - self.mean) @ self.projection.T

    def transform_queries(self, queries: Any) -> tuple[np.ndarray, np.ndarray]:
        """Queries (nq, d) to float32 (nq, d'), and what is to be added to all their scores, float32 (nq,)."""
        checked = check_vectors(queries, self._width(), "queries")
        return checked @ self.query_projection.T, checked @ self.mean

    def inverse(self, reduced: np.ndarray) -> np.ndarray:
        """Documents float32 (n, d) with the scores of `reduced` (n, d')."""
        return reduced @ self.query_projection + self.mean

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"mean": (d,), "projection": (self._out(d), d)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        self.mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._learn(vectors, queries)

    @abstractmethod
    def _out(self, d: int) -> int:
        """d', the number of dimensions left of d, or `InvalidParameter`."""

    @abstractmethod
    def _learn(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        """Set `projection`; `mean` is known."""


class PCA(LinearMap):
    """Principal components: the `dimensions` directions in which the documents vary most.

    Best where queries lie as documents do (LeanVec-ID of Tepper et al., "LeanVec: Searching vectors faster by making
    them fit", 2023, is this). With fewer vectors than dimensions the last directions are arbitrary, and hold zeros.
    """

    kind = "pca"

    def __init__(self, *, dimensions: int) -> None:
        super().__init__()
        check_integer("dimensions", dimensions, 1)
        self.dimensions = dimensions

    def parameters(self) -> dict[str, Any]:
        return {"dimensions": self.dimensions}

    def _out(self, d: int) -> int:
        return _at_most(self.dimensions, d)

    def _learn(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        width = self._out(vectors.shape[1])
        self.projection = _rounded(_eigenvectors(_second_moment(vectors, self.mean))[1][:width])


class RandomRotation(LinearMap):
    """A rotation drawn evenly from all of them, by `seed`: spreads what a few dimensions hold over all."""

    kind = "rotation"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        check_integer("seed", seed, 0)
        self.seed = seed

    def parameters(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def _out(self, d: int) -> int:
        return d

    def _learn(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        d = vectors.shape[1]
        # a stream of its own: vectors that a test or a simulation drew from default_rng(seed) would align with it
        source = np.random.default_rng([self.seed, d])
        q, r = np.linalg.qr(source.normal(size=(d, d)))
        self.projection = (q * np.where(np.diag(r) < 0, -1, 1)).astype(np.float32)  # without it, not evenly drawn


class LeanVec(LinearMap):
    """Fewer dimensions for queries that do not lie as documents do; `fit` needs a sample of queries.

    Of all pairs of linear maps to `dimensions` it is the one with the least squared error of the inner products of
    sample queries with sample vectors. Tepper et al., "LeanVec", 2023, state the problem (LeanVec-OOD) and search for
    orthonormal A, B by iteration; without that restriction it has a closed form, LeanVec-Sphering of Tepper and
    Willke, "GleanVec", 2024: with K the second moment of the queries and S = K^(1/2), documents become P S x and
    queries P S^-1 q, where P holds the principal components of S x. Errors of a codec behind the map then weigh alike
    in every direction, so that it helps even with `dimensions` = d.
    K counts, besides the sample's queries, d more that come from all directions alike, so that few queries do not
    mislead; with none it would be PCA.
    """

    kind = "leanvec"

    def __init__(self, *, dimensions: int) -> None:
        super().__init__()
        check_integer("dimensions", dimensions, 1)
        self.dimensions = dimensions
        self.queries: np.ndarray

    @property
    def query_projection(self) -> np.ndarray:
        return self.queries

    def parameters(self) -> dict[str, Any]:
        return {"dimensions": self.dimensions}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return super()._shapes(d) | {"queries": (self._out(d), d)}

    def _out(self, d: int) -> int:
        return _at_most(self.dimensions, d)

    def _learn(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        if queries is None or not len(queries):
            raise InvalidParameter("queries is empty; LeanVec learns from a sample of queries: fit(vectors, queries)")
        nq, d = queries.shape
        width = self._out(d)
        moment = _second_moment(queries, np.zeros(d, np.float32))
        size = np.trace(moment) / d
        moment = np.eye(d) if size == 0 else (nq * moment / size + d * np.eye(d)) / (nq + d)
        values, rows = _eigenvectors(moment)
        root, inverse = (rows.T * values**0.5) @ rows, (rows.T * values**-0.5) @ rows
        components = _eigenvectors(root @ _second_moment(vectors, self.mean) @ root)[1][:width]
        self.projection, self.queries = _rounded(components @ root), _rounded(components @ inverse)


def _at_most(dimensions: int, d: int) -> int:
    if dimensions > d:
        raise InvalidParameter(f"dimensions is {dimensions}; the vectors have only {d}")
    return dimensions


def _second_moment(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """float64 (d, d): the mean of (x - mean) (x - mean)^T."""
    total = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), BLOCK):
        part = (vectors[start : start + BLOCK] - mean).astype(np.float64)
        total += part.T @ part
    return total / len(vectors)


def _eigenvectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (d,), largest first, and eigenvectors as rows (d, d), the largest entry of each positive."""
    values, columns = np.linalg.eigh(matrix)
    rows = columns.T[::-1]
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    return values[::-1], rows * np.sign(largest)[:, None]


def _rounded(projection: np.ndarray) -> np.ndarray:
    """float32, to multiples of 2^-20: LAPACK's last bits depend on its threads, which must not show in codes.

    Directions that explain exactly as much as one another, as all that explain nothing, may still come in any basis.
    """
    return (np.ldexp(np.rint(np.ldexp(projection, 20)), -20) + 0.0).astype(np.float32)  # and no -0.0
