"""BiDR: codes in memory find candidates, dense vectors on disk verify them, and either is trained for its part.

Xiao et al., "Progressively Optimized Bi-Granular Document Representation for Scalable Embedding Based Retrieval", WWW
2022. What comes of it is `ScanIndex(codec=..., rerank="float16")`: the codes stay in memory, vectors on disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexes.clustering import k_means, nearest_centroids
from indexes.codecs import Codec
from retrieval.encoders.adapted import Adapted
from retrieval.encoders.base import Encoder
from retrieval.training import losses
from retrieval.training.data import TrainingData
from retrieval.training.jpq import DEPTH, JPQ
from retrieval.training.method import search_codes
from retrieval.training.query_side import AdaptedQueries

NEIGHBOURS = 64  # queries of a cluster, on average


class BiDR(JPQ):
    """Contrastive learning twice: of codes among all documents, then of dense queries among what the codes find.

    `bytes`, `codebooks`, `tune`, `rank`, `lr`, `query_lr`: as of `JPQ`. `first`: epochs of the first stage, out of all.
    `mined`: documents per query, of the 200 that the codes rank first, which all queries of a batch are told from,
    beside the relevant documents of one another. `temperature`: of both losses. `dense_lr`: learning rate of the second
    stage. `local`: batches of the second stage are of neighbouring queries, whose relevant documents are hard negatives
    of one another: the paper's locality-centric sampling, by clusters of queries, not by walks on a graph of them. It
    saves the paper encoding mined documents; here they cost nothing, and beside them it made no clear difference on
    NFCorpus and SciFact.
    The first stage moves centroids and what `tune` names, and codes are chosen anew by the centroids before each of its
    epochs. In the second stage codes stay as they are. Documents' embeddings are frozen here: what the paper trains of
    the dense side is B, a map of queries that is the identity but for `rank` dimensions. An index has one query for
    codes and vectors: it is asked by B q, and the codec takes B off again, so that codes see what the first stage made.
    Where relevant documents of training are asked for again, as in NFCorpus and SciFact, centroids learn what B cannot:
    the codes of `JPQ` alone may rank better than frozen vectors do. Compare on dev queries.
    """

    name = "bidr"
    rerank = "float16"
    epochs = 10

    def __init__(
        self, *, bytes: int = 48, codebooks: str = "product", tune: str = "adapter", rank: int = 16, lr: float = 1e-2,
        query_lr: float = 1e-4, dense_lr: float = 1e-3, first: int = 4, mined: int = 8, temperature: float = 0.05,
        local: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(bytes=bytes, codebooks=codebooks, tune=tune, rank=rank, lr=lr, query_lr=query_lr, seed=seed)
        self.dense_lr, self.first, self.mined, self.temperature = dense_lr, first, mined, temperature
        self.local = local

    def begin(self, data: TrainingData) -> None:
        super().begin(data)
        self.dense = self.modules["dense"] = AdaptedQueries(data.queries, self.rank, self.seed)
        self.second = False

    def restarts(self) -> frozenset[int]:
        return frozenset({self.first + 1})

    def groups(self) -> list[dict[str, Any]]:
        books = {"params": list(self.quantizer.books.parameters()), "lr": self.rate()}
        dense = {"params": list(self.dense.parameters()), "lr": self.dense_lr}
        return [books, dense, *super().groups()[1:]]

    def epoch(self, data: TrainingData, number: int) -> None:
        self.second = number > self.first
        if number <= self.first + 1:
            self.code_anew(data)
        elif len(self.negatives):
            return  # nothing that finds candidates moves any more
        asked = self.asked(data.queries, data.texts)
        self.negatives = search_codes(self.codec(), self.coded, asked, DEPTH)
        self.dense.vectors = torch.from_numpy(self.queries.asked(data.queries, data.texts))

    def order(self, data: TrainingData, random: np.random.Generator) -> np.ndarray:
        order = super().order(data, random)
        if not (self.second and self.local):
            return order
        count = -(-len(order) // NEIGHBOURS)
        centroids = k_means(data.queries, count, seed=int(random.integers(1 << 30)))
        clusters = nearest_centroids(data.queries, centroids)[1][:, 0]
        return order[np.argsort(random.permutation(count)[clusters[order]], kind="stable")]

    def loss(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        drawn, others = self.drawn(data, rows, random)
        if self.second:
            scores = self.dense(rows) @ torch.from_numpy(data.documents[drawn]).T
        else:
            coded = self.quantizer.books.decode(self.coded[drawn])
            scores = self.queries(rows) @ self.quantizer.turn @ coded.T
        scores = scores.masked_fill(torch.from_numpy(others), -torch.inf)
        return losses.info_nce(scores, torch.arange(len(rows)), self.temperature)

    def drawn(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Documents int64 (m,) that B queries are told from: a relevant one of each first, then `mined` of each.

        bool (B, m): where one is relevant to a query and not the one drawn for it, which is no negative.
        """
        assert data.positives is not None
        relevant = [data.positives[row] for row in rows]
        drawn = [random.choice(some, 1) for some in relevant]
        for row, some in zip(rows, relevant, strict=True):
            left = np.setdiff1d(self.negatives[row], some)
            if data.negatives is not None:
                left = np.union1d(left, np.setdiff1d(data.negatives[row], [-1]))
            drawn.append(random.choice(left, min(self.mined, len(left)), replace=False))
        pool = np.concatenate(drawn)
        others = np.stack([np.isin(pool, some) for some in relevant])
        np.fill_diagonal(others, False)
        return pool, others

    def codec(self) -> Codec:
        taken_off = np.linalg.inv(self.dense.matrix().astype(np.float64)).astype(np.float32)
        return self.quantizer.codec(self.queries.matrix() @ taken_off)

    def asked(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        return self.dense.embed(super().asked(vectors, texts), None)

    def search(
        self, codec: Codec, codes: np.ndarray, data: TrainingData, asked: np.ndarray, k: int
    ) -> np.ndarray:
        """As `ScanIndex` does: so many candidates as are its default, ranked by their vectors."""
        found = search_codes(codec, codes, asked, max(100, 10 * k))
        best = np.empty((len(found), min(k, found.shape[1])), np.int64)
        for query, rows in enumerate(found):
            best[query] = rows[np.lexsort((rows, -(data.documents[rows] @ asked[query])))[:k]]
        return best

    def encoder(self, base: Encoder) -> Encoder:
        return Adapted(super().encoder(base), self.dense.matrix())
