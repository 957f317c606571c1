"""What the trainers of quantisers share: the unsupervised start, codes, scores, the codec."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from indexes.codecs import OPQ, PQ, RQ, BinaryAutoencoder, Chain, Codec, Learned, Retrained
from indexes.codecs.learned import with_centroids
from retrieval.errors import TrainingError
from retrieval.training.codebooks import Codebooks, SignedSums, usage
from retrieval.training.data import TrainingData
from retrieval.training.method import Method, sampled

CODEBOOKS = ("product", "additive", "binary")
KSUB = 256
First: TypeAlias = PQ | RQ | BinaryAutoencoder
ENCODED = 16_384  # documents encoded at once


class Quantizer:
    """A rotation (OPQ's; else none) and codebooks. `first`: the fitted PQ, RQ or BinaryAutoencoder that chooses codes.

    `projection` (d', d) takes documents to what is coded; it is the rotation unless a method trains it (RepCONC).
    All scores are those of rotated queries with centred, rotated documents: what the mean adds is equal for all
    documents of a query, and no loss sees it.
    """

    def __init__(self, rotation: np.ndarray, mean: np.ndarray, first: First, *, linear: bool = False) -> None:
        self.rotation, self.projection, self.mean, self.first = rotation, rotation, mean, first
        self.turn = torch.from_numpy(rotation.T.copy())
        self.books: Codebooks | SignedSums
        if isinstance(first, BinaryAutoencoder):
            self.books = SignedSums(first)
        else:
            self.books = Codebooks(first.centroids, rotation.shape[0], linear=linear)

    @classmethod
    def unsupervised(
        cls, data: TrainingData, bytes: int, codebooks: str, seed: int, *, linear: bool = False
    ) -> Quantizer:
        """OPQ and PQ, RQ, or a binary autoencoder, fitted on at most 65,536 documents. Raises `TrainingError`."""
        d, n = data.documents.shape[1], len(data.documents)
        if codebooks not in CODEBOOKS:
            raise TrainingError(f"codebooks is {codebooks!r}; it must be one of {', '.join(CODEBOOKS)}")
        fewest = 2 if codebooks == "binary" else 1  # a byte of bits, and the length
        if not fewest <= bytes <= d:
            raise TrainingError(f"bytes is {bytes}; it must be from {fewest} to the number of dimensions, {d}")
        if codebooks == "binary" and linear:
            raise TrainingError("linear=True is for codebooks of 256 centroids; binary ones are two, c and -c")
        if n < KSUB or (codebooks == "product" and n < d):
            least = max(KSUB, d)
            raise TrainingError(f"{n} documents are too few: {least} are needed for {KSUB} centroids and a rotation")
        sample = sampled(data.documents, seed)
        if codebooks != "product":
            mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
            additive = codebooks == "additive"
            first: First = RQ(M=bytes, seed=seed) if additive else BinaryAutoencoder(bytes=bytes, seed=seed)
            return cls(np.eye(d, dtype=np.float32), mean, first.fit(sample - mean), linear=linear)
        opq = OPQ(M=bytes, seed=seed).fit(sample)
        return cls(opq.projection, opq.mean, PQ(M=bytes, seed=seed).fit(opq.transform(sample)), linear=linear)

    def rotated(self, documents: np.ndarray) -> np.ndarray:
        """Documents (m, d) as they are coded, float32 (m, d')."""
        return (documents - self.mean) @ self.projection.T

    def encode(self, documents: np.ndarray) -> np.ndarray:
        """Codes uint8 (n, M) by the codec that chooses them."""
        parts = [
            self.first.encode(self.rotated(documents[start : start + ENCODED]))
            for start in range(0, len(documents), ENCODED)
        ]
        return np.concatenate(parts)

    def left_over(self, documents: np.ndarray, codes: np.ndarray) -> float:
        """The squared error of codes of the first `ENCODED` documents, in units of their variance."""
        turned = self.rotated(documents[:ENCODED])
        error = np.square(turned - self.first.decode(codes[:ENCODED])).sum(dtype=np.float64)
        return float(error / max(np.square(turned).sum(dtype=np.float64), 1e-12))

    def scores(self, queries: Tensor, codes: np.ndarray, candidates: np.ndarray) -> Tensor:
        """Scores (B, m) of queries (B, d) with candidates, rows int64 (B, m) of `codes`; -inf where the row is -1."""
        scores = self.books.scores(queries @ self.turn, codes[candidates])
        return scores.masked_fill(torch.from_numpy(candidates < 0), -torch.inf)

    def codec(self, query_matrix: np.ndarray) -> Codec:
        """Codes by the first centroids, scores by the trained ones, queries turned by `query_matrix` (d, d) first."""
        turn = Learned.of(self.projection, self.rotation @ query_matrix, self.mean)
        return Chain.of(turn, Retrained.of(self.first, self.books.array()))

    def settle(self) -> None:
        """Have the trained centroids choose codes from now on."""
        self.first = with_centroids(self.first, self.books.array())

    def arrays(self) -> dict[str, np.ndarray]:
        """What changes but is not trained by steps, for checkpoints."""
        return {"first": self.first.centroids, "projection": self.projection}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`."""
        self.first = with_centroids(self.first, arrays["first"])
        self.projection = arrays["projection"]


class QuantizerMethod(Method):
    """Base of the methods that train a quantizer; `coded` uint8 (n, M): the codes of all documents as they are now."""

    bytes: int
    codebooks: str = "product"
    linear: bool = False

    def begin(self, data: TrainingData) -> None:
        self.quantizer = Quantizer.unsupervised(data, self.bytes, self.codebooks, self.seed, linear=self.linear)
        self.coded = self.quantizer.encode(data.documents)
        self.modules["books"] = self.quantizer.books

    def code_anew(self, data: TrainingData) -> None:
        """Codes by the nearest of the trained centroids."""
        self.quantizer.settle()
        self.coded = self.quantizer.encode(data.documents)

    def codec(self) -> Codec:
        return self.quantizer.codec(self.queries.matrix())

    def codes(self, data: TrainingData) -> np.ndarray:
        return self.coded

    def report(self) -> dict[str, float]:
        return {"usage": usage(self.coded)}

    def arrays(self) -> dict[str, np.ndarray]:
        return self.quantizer.arrays() | {"codes": self.coded}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.quantizer.restore(arrays)
        self.coded = arrays["codes"]
