"""Residual quantisation over whole vectors, by faiss: codes that are sums of M centroids of all d dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.codecs.base import Codec, Scorer, check_integer
from indexes.codecs.packing import by_tables
from indexes.errors import InvalidVectors

if TYPE_CHECKING:
    import faiss

KSUB = 256


class RQ(Codec):
    """The sum of M centroids, one of each codebook of 256: M bytes.

    Chen, Guan and Wang, "Approximate nearest neighbor search by residual vector quantization", 2010; a code is found by
    beam search, keeping the `beam` best sums at each level (Babenko and Lempitsky, "Additive quantization", 2014).
    Where PQ gives each part of a vector to one codebook, all codebooks see all dimensions here: a third of the error of
    OPQ at 12 bytes on embeddings of few documents, two thirds on many, for M times as many numbers in the codebooks
    (1.5 MB per 4 bytes at d = 384), and M times the time for a query's tables.
    `M`: codebooks. `beam`: kept while encoding; twice as many take twice the time. `seed`: of the k-means runs.
    `fit` needs 256 vectors or more; of more than 65,536, faiss samples so many.
    """

    kind = "rq"

    def __init__(self, *, M: int, beam: int = 8, seed: int = 0) -> None:
        super().__init__()
        check_integer("M", M, 1)
        check_integer("beam", beam, 1)
        check_integer("seed", seed, 0)
        self.M, self.beam, self.seed = M, beam, seed
        self.centroids: np.ndarray

    def parameters(self) -> dict[str, Any]:
        return {"M": self.M, "beam": self.beam, "seed": self.seed}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"centroids": (self.M, KSUB, d)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        import faiss

        from indexes.dense.faiss_base import faiss_threads

        if len(vectors) < KSUB:
            raise InvalidVectors(f"RQ got {len(vectors)} vectors; it needs at least {KSUB} to learn from")
        trained = self._quantizer(vectors.shape[1])
        with faiss_threads(1):  # sums of k-means on several threads differ in their last bits
            trained.train(vectors)
        self.centroids = faiss.vector_to_array(trained.codebooks).astype(np.float32).reshape(self.M, KSUB, -1)

    def _bytes(self, d: int) -> int:
        return self.M

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        import faiss

        from indexes.dense.faiss_base import faiss_threads

        quantizer = self._quantizer(vectors.shape[1])
        faiss.copy_array_to_vector(np.ascontiguousarray(self.centroids).reshape(-1), quantizer.codebooks)
        quantizer.is_trained = True
        with faiss_threads(1):
            return quantizer.compute_codes(vectors)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return summed(self.centroids, codes)

    def _scorer(self, queries: np.ndarray) -> Scorer:
        return by_tables(tables(self.centroids, queries))

    def _quantizer(self, d: int) -> faiss.ResidualQuantizer:
        import faiss

        made = faiss.ResidualQuantizer(d, self.M, 8, faiss.AdditiveQuantizer.ST_decompress)
        made.max_beam_size = self.beam
        made.cp.seed, made.cp.min_points_per_centroid, made.cp.niter = self.seed + 1234, 1, 10
        return made


def tables(centroids: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Products float32 (nq, M, ksub) of queries (nq, d) with centroids, (M, ksub, d / M) or (M, ksub, d)."""
    M, ksub, width = centroids.shape
    nq, d = queries.shape
    if width == d:
        return (queries @ centroids.reshape(-1, d).T).reshape(nq, M, ksub)
    parts = queries.reshape(nq, M, width).transpose(1, 0, 2)
    return (parts @ centroids.transpose(0, 2, 1)).transpose(1, 0, 2)


def summed(centroids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The sums float32 (n, d) of one centroid of each codebook (M, ksub, d), by codes uint8 (n, M)."""
    total = np.zeros((len(codes), centroids.shape[2]), np.float32)
    for book, chosen in zip(centroids, codes.T, strict=True):
        total += book[chosen]
    return total
