"""Latent semantic analysis: dense vectors that need no download and no torch (Deerwester et al., 1990).

A truncated singular value decomposition of the BM25-weighted term matrix of the corpus itself. Words that occur in
like documents come near to each other, so a query finds documents that share no word with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.sparse.base import stacked
from indexes.sparse.weighting import BM25
from retrieval.analysis.base import Analyzer, load_analyzer
from retrieval.analysis.base import analyzer as named_analyzer
from retrieval.encoders.bag_of_words import BagOfWords, pack_terms, unpack_terms
from retrieval.encoders.base import Encoder, batches
from retrieval.errors import EncoderError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

logger = logging.getLogger(__name__)
BATCH = 4096  # texts analysed at once


class LSA(Encoder):
    """Fitted on the corpus; documents added later are folded in with what was learned then.

    `d`: dimensions, fewer where the corpus has fewer documents or terms. `sample`: at most so many documents, evenly
    spaced, are decomposed (memory is about 4 (n + V) (d + 16) bytes). `seed`: of the randomised SVD.
    Terms in a single document are left out: no other document can be found by them.
    """

    kind = "lsa"
    similarity = "cosine"
    # a weaker signal than a trained encoder: on the dev queries of NFCorpus and the train queries of SciFact, half the
    # weight of BM25 gave nDCG@10 0.304 and 0.699, an even sum 0.297 and 0.670 (BM25 alone 0.288 and 0.700)
    fusion_weight = 0.5

    def __init__(
        self, *, d: int = 256, analyzer: str | Analyzer = "english", sample: int = 50_000, seed: int = 0
    ) -> None:
        if d < 1 or sample < 2:
            raise EncoderError(f"d is {d}, sample {sample}; d must be >= 1 and sample >= 2")
        self.d, self.sample, self.seed = d, sample, seed
        self.analyzer = named_analyzer(analyzer) if isinstance(analyzer, str) else analyzer
        self.fitted_on = 0
        self._weighting = BM25()
        self._bag: BagOfWords | None = None
        self._idf = np.empty(0)
        self._mean_length = 1.0
        self._components = np.empty((0, d), np.float32)

    def fit(self, texts: Callable[[], Iterable[str]]) -> LSA:
        """Learn vocabulary, weights and the decomposition from a corpus."""
        from scipy.sparse import csr_matrix

        count = sum(1 for _ in texts())
        bag = BagOfWords(self.analyzer)
        chosen = islice(texts(), 0, None, max(1, -(-count // self.sample)))
        parts = [bag.encode_documents(batch) for batch in batches(chosen, BATCH)]
        self.fitted_on = count
        counts = stacked(parts, len(bag.vocabulary)) if parts else csr_matrix((0, 0), dtype=np.float32)
        df = np.bincount(counts.indices, minlength=counts.shape[1])
        kept = np.flatnonzero(df >= min(2, df.max(initial=0)))
        self._bag = bag
        bag.keep(kept)
        counts = counts[:, kept]
        self._mean_length = float(counts.sum() / max(1, counts.shape[0])) or 1.0
        self._idf = self._weighting.idf(df[kept], counts.shape[0])
        self._components = principal_directions(self._weighted(counts), self.d, self.seed)
        logger.info("LSA: %d documents, %d terms, %d dimensions", counts.shape[0], *self._components.shape)
        return self

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, d). A text without a known term becomes the zero vector, which is similar to nothing."""
        if self._bag is None:
            raise EncoderError("LSA is not fitted: call fit first")
        counts = self._bag.encode_queries(texts)  # the vocabulary stays as fitted
        return np.asarray(self._weighted(counts) @ self._components, np.float32)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (nq, d): a query is encoded as a document, its words weighed alike."""
        return self.encode_documents(texts)

    def outgrown(self, n: int) -> bool:
        """True once the corpus is more than twice what the decomposition was fitted on."""
        return n > 2 * self.fitted_on

    def _weighted(self, counts: csr_matrix) -> csr_matrix:
        weighted, lengths = counts.astype(np.float32), np.asarray(counts.sum(axis=1)).reshape(-1)
        relative = np.repeat(lengths / self._mean_length, np.diff(counts.indptr))
        weighted.data = self._weighting.score(counts.data, self._idf[counts.indices], relative).astype(np.float32)
        return weighted

    def settings(self) -> dict[str, Any]:
        return {"d": self.d, "analyzer": self.analyzer.settings(), "sample": self.sample, "seed": self.seed}

    def arrays(self) -> dict[str, np.ndarray]:
        if self._bag is None:
            return {}
        return {
            "terms": pack_terms(self._bag.vocabulary),
            "idf": self._idf,
            "mean_length": np.array([self._mean_length]),
            "fitted_on": np.array([self.fitted_on]),
            "components": self._components,
        }

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> LSA:
        lsa = cls(
            d=settings["d"], analyzer=load_analyzer(settings["analyzer"]),
            sample=settings["sample"], seed=settings["seed"],
        )  # fmt: skip
        if arrays:
            lsa._bag = BagOfWords(lsa.analyzer)
            lsa._bag.vocabulary = unpack_terms(arrays["terms"])
            lsa._idf, lsa._components = arrays["idf"], arrays["components"]
            lsa._mean_length, lsa.fitted_on = float(arrays["mean_length"][0]), int(arrays["fitted_on"][0])
        return lsa


def principal_directions(matrix: csr_matrix, d: int, seed: int) -> np.ndarray:
    """The first `d` right singular vectors of a sparse matrix (n, V), as columns: float32 (V, d).

    Randomised subspace iteration (Halko, Martinsson and Tropp, 2011, section 4.5) with 16 extra directions and 4
    rounds, orthogonalised on the shorter side of the matrix. Fewer directions are returned when the matrix has fewer
    rows or columns; an empty matrix has one, zero.
    """
    d = min(d, *matrix.shape)
    if d == 0 or matrix.nnz == 0:
        return np.zeros((matrix.shape[1], 1), np.float32)
    wide = matrix.shape[0] < matrix.shape[1]
    short, long = (matrix, matrix.T.tocsr()) if wide else (matrix.T.tocsr(), matrix)  # shapes (m, M) and (M, m)
    width = min(d + 16, short.shape[0])
    basis = np.random.default_rng(seed).standard_normal((short.shape[0], width), dtype=np.float32)
    for _ in range(4):
        basis, _ = np.linalg.qr(short @ (long @ basis))
    image = long @ basis
    squares, rotation = np.linalg.eigh(image.T.astype(np.float64) @ image)
    rotation = rotation[:, ::-1][:, :d]
    if not wide:
        return np.ascontiguousarray(basis @ rotation, np.float32)
    lengths = np.sqrt(np.maximum(squares[::-1][:d], 0))
    return np.ascontiguousarray(image @ (rotation / np.maximum(lengths, 1e-6 * lengths[0])), np.float32)
