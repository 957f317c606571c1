"""Product quantisation (Jegou, Douze and Schmid, 2011) and the rotation that suits it (OPQ, Ge et al., 2013), by faiss.

Several levels, residual PQ, are `Residual(PQ(M=24), PQ(M=24))`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.codecs.base import Codec, Scorer, check_choice, check_integer
from indexes.codecs.linear import LinearMap
from indexes.codecs.packing import by_tables, nibble_tables, unpack_nibbles
from indexes.errors import InvalidParameter, InvalidVectors

if TYPE_CHECKING:
    import faiss

BITS = (4, 8)


class PQ(Codec):
    """M parts of each vector, each as the number of the nearest of ksub = 2^bits centroids: M * bits / 8 bytes.

    `M`: sub-quantisers; it must divide d. `bits`: 8 (ksub 256) or 4 (ksub 16). `seed`: of the k-means runs.
    `fit` needs ksub vectors or more, best 40 times as many; of more than 256 times as many, faiss samples so many.
    Embeddings need a rotation in front, `Chain(OPQ(M=48), PQ(M=48))`, or codes lose much more.
    """

    kind = "pq"

    def __init__(self, *, M: int, bits: int = 8, seed: int = 0) -> None:
        super().__init__()
        _check(M, bits, seed)
        self.M, self.bits, self.seed = M, bits, seed
        self.centroids: np.ndarray

    def parameters(self) -> dict[str, Any]:
        return {"M": self.M, "bits": self.bits, "seed": self.seed}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        if d % self.M:
            raise InvalidParameter(f"M is {self.M}; it must divide d = {d}; OPQ(M={self.M}) in front makes it so")
        return {"centroids": (self.M, 2**self.bits, d // self.M)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        from indexes.dense.faiss_base import faiss_threads

        n, d = vectors.shape
        shape = self._shapes(d)["centroids"]
        _check_sample("PQ", n, self.bits)
        trained = _quantizer(d, self.M, self.bits, self.seed)
        with faiss_threads(1):  # sums of k-means on several threads differ in their last bits
            trained.train(vectors)
        self.centroids = _array(trained.centroids).reshape(shape)

    def _bytes(self, d: int) -> int:
        return -(-self.M * self.bits // 8)

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        import faiss

        from indexes.dense.faiss_base import faiss_threads

        quantizer = _quantizer(vectors.shape[1], self.M, self.bits, self.seed)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.centroids).reshape(-1), quantizer.centroids)
        with faiss_threads(1):
            return quantizer.compute_codes(vectors)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        chosen = codes if self.bits == 8 else unpack_nibbles(codes, self.M)
        return self.centroids[np.arange(self.M), chosen].reshape(len(codes), self._width())

    def _scorer(self, queries: np.ndarray) -> Scorer:
        nq, d = queries.shape
        parts = queries.reshape(nq, self.M, d // self.M).transpose(1, 0, 2)
        tables = (parts @ self.centroids.transpose(0, 2, 1)).transpose(1, 0, 2)
        return by_tables(tables if self.bits == 8 else nibble_tables(tables))


class OPQ(LinearMap):
    """The rotation that makes the error of a PQ with the same `M` and `bits` small: goes in front of it.

    `dimensions`: kept of d; None: all but d mod M, so that M divides what is left. `seed`: of the k-means runs.
    `fit` needs d vectors or more, and 2^bits.
    """

    kind = "opq"

    def __init__(self, *, M: int, bits: int = 8, dimensions: int | None = None, seed: int = 0) -> None:
        super().__init__()
        _check(M, bits, seed)
        if dimensions is not None:
            check_integer("dimensions", dimensions, M)
            if dimensions % M:
                raise InvalidParameter(f"dimensions is {dimensions}; M = {M} must divide it")
        self.M, self.bits, self.dimensions, self.seed = M, bits, dimensions, seed

    def parameters(self) -> dict[str, Any]:
        return {"M": self.M, "bits": self.bits, "dimensions": self.dimensions, "seed": self.seed}

    def _out(self, d: int) -> int:
        width = d - d % self.M if self.dimensions is None else self.dimensions
        if not 0 < width <= d:
            raise InvalidParameter(f"OPQ of M = {self.M} and dimensions = {self.dimensions} needs more than d = {d}")
        return width

    def _learn(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        import faiss

        from indexes.dense.faiss_base import faiss_threads

        n, d = vectors.shape
        width = self._out(d)
        _check_sample("OPQ", n, self.bits)
        if n < d:  # faiss's training writes beyond its buffers then
            raise InvalidVectors(f"OPQ got {n} vectors; for d = {d} it needs at least {d} to learn from")
        rotation = faiss.OPQMatrix(d, self.M, width)
        rotation.niter = 10  # faiss's 50 take five times as long and change the error by under 1%
        rotation.pq = _quantizer(width, self.M, self.bits, self.seed)
        rotation.pq.this.disown()
        with faiss_threads(1):
            rotation.train(np.ascontiguousarray(vectors - self.mean))
        self.projection = _array(rotation.A).reshape(width, d)


def _check(M: Any, bits: Any, seed: Any) -> None:
    check_integer("M", M, 1)
    check_choice("bits", bits, BITS)
    check_integer("seed", seed, 0)


def _check_sample(name: str, n: int, bits: int) -> None:
    if n < 2**bits:
        raise InvalidVectors(
            f"{name} got {n} vectors; {bits} bits, which are {2**bits} centroids, need at least {2**bits} to learn from"
        )


def _quantizer(d: int, M: int, bits: int, seed: int) -> faiss.ProductQuantizer:
    import faiss

    made = faiss.ProductQuantizer(d, M, bits)
    made.cp.seed = seed + 1234
    made.cp.min_points_per_centroid = 1  # we say what is small, not stderr
    return made


def _array(vector: Any) -> np.ndarray:
    """A faiss vector of floats as an array that owns its memory."""
    import faiss

    return faiss.vector_to_array(vector).astype(np.float32)
