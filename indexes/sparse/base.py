"""What sparse indexes share: the checks of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from indexes.base import Index
from indexes.errors import InvalidVectors

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int32)


class Queries(NamedTuple):
    """Checked queries, row by row: terms ascend within each, all are below V, and weights are above 0."""

    starts: np.ndarray  # int64 (nq + 1,)
    terms: np.ndarray  # int32
    weights: np.ndarray  # float32

    @property
    def shape(self) -> tuple[int]:
        return (len(self.starts) - 1,)

    def dot(self, values: np.ndarray) -> np.ndarray:
        """float32 (nq,): the sum of weight times `values` (V,), or (0,) for none, over the terms of each query."""
        if not len(values):
            return np.zeros(len(self.starts) - 1, np.float32)
        products = self.weights * values[self.terms]
        rows = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        return np.bincount(rows, products, minlength=len(self.starts) - 1).astype(np.float32)


class SparseIndex(Index):
    """Base of the indexes over sparse vectors (n, V) with weights >= 0. V grows when wider vectors are added.

    A row answers a query only if they share a term: rows that share none are never returned, whatever `k`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.V = 0

    def describe(self) -> dict[str, Any]:
        """As of every index; also how many postings are stored, where the index says so, and the bytes for each."""
        described, postings = super().describe(), self._postings()
        if postings is None:
            return described
        each = round(described["bytes"] / postings, 2) if postings else 0.0
        return described | {"postings": postings, "bytes_per_posting": each}

    def _postings(self) -> int | None:
        """Weights above 0 that are stored, those of removed rows that are still there included."""
        return None

    def _check_vectors(self, vectors: Any) -> csr_matrix:
        """Canonical CSR: float32 weights, int32 sorted terms, no zeros, no duplicates."""
        from scipy import sparse

        if not sparse.issparse(vectors):
            array = np.atleast_2d(np.asarray(vectors))
            if array.dtype.kind not in "fiu" or array.ndim != 2:
                raise InvalidVectors(f"vectors are {array.dtype} {array.shape}; give a scipy sparse matrix (n, V)")
            vectors = sparse.csr_matrix(array)
        if vectors.dtype.kind not in "fiub":
            raise InvalidVectors(f"vectors are {vectors.dtype}; weights must be real numbers")
        with np.errstate(over="ignore"):
            csr = sparse.csr_matrix(vectors, dtype=np.float32, copy=True)
        try:
            csr.check_format(full_check=True)  # kernels trust the indices: scipy does not look at them by itself
        except ValueError as problem:
            raise InvalidVectors(f"vectors are no valid sparse matrix: {problem}") from problem
        csr.sum_duplicates()
        csr.eliminate_zeros()
        if not np.isfinite(csr.data).all():
            raise InvalidVectors("a weight is NaN or infinite; weights must be finite numbers >= 0")
        if len(csr.data) and csr.data.min() < 0:
            raise InvalidVectors(f"a weight is negative ({csr.data.min()}); weights must be >= 0")
        return csr

    def _check_queries(self, queries: Any) -> Queries:
        """Queries may name terms that no document has (they are dropped) and be narrower than V."""
        found = _in_order(queries, self.V)
        if found is None:  # then scipy checks and sorts them, or refuses them
            found = _in_order(self._check_vectors(queries), self.V)
        assert found is not None
        return found

    def _shape(self) -> dict[str, Any]:
        return {"V": self.V}


def _in_order(csr: Any, V: int) -> Queries | None:
    """Queries that are canonical CSR already, without terms from V on; None for anything else."""
    from indexes.kernels.queries import compress

    if getattr(csr, "format", None) != "csr" or len(csr.shape) != 2:
        return None
    starts, terms, weights = csr.indptr, csr.indices, csr.data
    if weights.dtype is not FLOAT:  # the usual types pass as they are: one query takes less time than its casts
        if weights.dtype.kind not in "fiu":
            return None
        with np.errstate(over="ignore"):
            weights = weights.astype(np.float32)
    if not starts.dtype is terms.dtype is INT:
        starts, terms = starts.astype(np.int64), terms.astype(np.int64)
    in_order, *compressed = compress(starts, terms, weights, csr.shape[1], V)
    return Queries(*compressed) if in_order else None


def stacked(parts: Sequence[csr_matrix], V: int) -> csr_matrix:
    """The rows of one or more matrices (n, up to V) in one (n, V). Widens `parts` themselves."""
    from scipy.sparse import csr_matrix, vstack

    for part in parts:
        part.resize(part.shape[0], V)
    return csr_matrix(parts[0] if len(parts) == 1 else vstack(parts, format="csr"))
